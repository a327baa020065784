//! Free ports on loopback.

use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Ports that the kernel gives to no outgoing connection (Linux gives those from 32768 on).
const RANGE: std::ops::Range<u16> = 10_240..32_768;

/// Returns a port that was free a moment ago, for servers that cannot choose one and report it.
///
/// No port is returned twice by one process, and none is one that the kernel may give to an
/// outgoing connection before the server has bound it.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let count = RANGE.end - RANGE.start;
    // Concurrent processes begin at different ports.
    let start = || std::process::id().wrapping_mul(97) % u32::from(count);
    let next = NEXT.get_or_init(|| AtomicU16::new(u16::try_from(start()).unwrap_or_default()));
    (0..count)
        .map(|_| RANGE.start + next.fetch_add(1, Ordering::Relaxed) % count)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port on loopback")
}

/// Longest wait of a test for an event that must come. Generous, because a loaded machine is no
/// fault of the program.
pub const LONGEST_WAIT: Duration = Duration::from_secs(900);

/// Waits until a port of a server accepts connections.
///
/// # Panics
/// If it does not in [`LONGEST_WAIT`], or the server has ended.
pub fn wait_for_port(port: u16, server: &mut Child, what: &str) {
    let deadline = Instant::now() + LONGEST_WAIT;
    // A connection whose two ends are one port has met nobody but itself.
    let answers = || {
        TcpStream::connect(("127.0.0.1", port))
            .is_ok_and(|connection| connection.local_addr().ok() != connection.peer_addr().ok())
    };
    while !answers() {
        assert!(Instant::now() < deadline, "{what} does not answer");
        let ended = server.try_wait().expect("the server's state");
        assert!(ended.is_none(), "{what} has ended: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// If it does not hold in [`LONGEST_WAIT`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONGEST_WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
