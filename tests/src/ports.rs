//! Free ports on loopback.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Returns a port that was free a moment ago, for servers that cannot choose one and report it.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Longest wait of a test for an event that must come. Generous, because a loaded machine is no
/// fault of the program.
pub const LONGEST_WAIT: Duration = Duration::from_secs(900);

/// Waits until a port accepts connections.
///
/// # Panics
/// If it does not in [`LONGEST_WAIT`].
pub fn wait_for_port(port: u16, what: &str) {
    let deadline = Instant::now() + LONGEST_WAIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{what} does not answer");
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
