//! A faulty S3 store: a proxy on loopback in front of a real S3 server.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lethe_shared::digest::Digest;

use crate::proxy::message;

/// Handling of `If-None-Match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The header is forwarded.
    Kept,
    /// The header is removed, like in a store that ignores it.
    Dropped,
    /// A request with the header gets this status.
    Refused(u16),
}

/// A fault of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 503 with S3's `SlowDown`.
    Throttled,
    /// 429.
    TooMany,
    /// 500.
    Failed,
    /// The response is delayed.
    Slow,
    /// The request is executed and its response is lost.
    Lost,
    /// Half of the response is sent.
    Cut,
}

const FAULTS: [Fault; 6] =
    [Fault::Throttled, Fault::TooMany, Fault::Failed, Fault::Slow, Fault::Lost, Fault::Cut];

#[derive(Debug)]
struct Shared {
    server: u16,
    condition: Condition,
    /// Faulty requests per thousand.
    per_mille: u64,
    seed: u64,
    attempts: Mutex<HashMap<String, u64>>,
    requests: AtomicUsize,
    refused: AtomicUsize,
    faults: [AtomicUsize; FAULTS.len()],
}

/// Listens on loopback for as long as the process lives.
#[derive(Debug)]
pub struct FaultyS3 {
    port: u16,
    shared: Arc<Shared>,
}

impl FaultyS3 {
    /// Starts a proxy in front of a server on loopback.
    pub fn with(server: u16, condition: Condition) -> Self {
        Self::start(server, condition, 0, 0)
    }

    /// Starts a proxy in front of a server on loopback, with this many faulty requests per
    /// thousand. The seed determines which requests fail, and the kind of fault.
    pub fn faulty(server: u16, per_mille: u64, seed: u64) -> Self {
        Self::start(server, Condition::Kept, per_mille, seed)
    }

    fn start(server: u16, condition: Condition, per_mille: u64, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let (attempts, requests, refused) =
            (Mutex::default(), AtomicUsize::default(), AtomicUsize::default());
        let shared = Arc::new(Shared {
            server,
            condition,
            per_mille,
            seed,
            attempts,
            requests,
            refused,
            faults: Default::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // An error of one client ends only its own thread.
                std::thread::spawn(move || shared.pass(client).ok());
            }
        });
        Self { port, shared }
    }

    /// Returns the proxy's address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the number of requests received.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Returns the number of conditional requests refused.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Returns the number of injected faults by kind.
    pub fn faults(&self) -> Vec<(Fault, usize)> {
        FAULTS
            .into_iter()
            .zip(self.shared.faults.iter().map(|count| count.load(Ordering::Relaxed)))
            .collect()
    }
}

fn answer(client: &mut TcpStream, status: &str, code: &str) -> std::io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>of the test</Message></Error>"
    );
    let length = body.len();
    client.write_all(
        format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
            .as_bytes(),
    )
}

impl Shared {
    /// Draws the fault of a request from the request and its attempt number.
    fn fault(&self, request: &str) -> Option<Fault> {
        // A restarted upload has a new id and counts as the same request.
        let known = request.split("uploadId=").next().unwrap_or_default().to_owned();
        let attempt = {
            let mut attempts = self.attempts.lock().expect("no one panics with it");
            let count = attempts.entry(known.clone()).or_default();
            *count += 1;
            *count
        };
        let drawn = Digest::of(format!("{} {attempt} {known}", self.seed).as_bytes());
        let number = |at: usize| {
            u64::from_le_bytes(drawn.as_bytes()[at..at + 8].try_into().expect("eight bytes"))
        };
        if number(0) % 1000 >= self.per_mille {
            return None;
        }
        let kind = (number(8) % FAULTS.len() as u64) as usize;
        self.faults[kind].fetch_add(1, Ordering::Relaxed);
        Some(FAULTS[kind])
    }

    fn pass(&self, mut client: TcpStream) -> std::io::Result<()> {
        let (request, head, body) = message(&mut BufReader::new(client.try_clone()?))?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let is_condition = |line: &[u8]| line.to_ascii_lowercase().starts_with(b"if-none-match:");
        let lines: Vec<&[u8]> = head.split_inclusive(|&byte| byte == b'\n').collect();
        let conditional = lines.iter().any(|line| is_condition(line));
        if let (true, Condition::Refused(status)) = (conditional, self.condition) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return answer(&mut client, &format!("{status} Not Possible"), "NotImplemented");
        }
        let head = match self.condition {
            Condition::Dropped => {
                lines.into_iter().filter(|line| !is_condition(line)).collect::<Vec<_>>().concat()
            }
            _ => head,
        };
        let fault = self.fault(&request);
        match fault {
            Some(Fault::Throttled) => return answer(&mut client, "503 Slow Down", "SlowDown"),
            Some(Fault::TooMany) => {
                return answer(&mut client, "429 Too Many Requests", "TooManyRequests");
            }
            Some(Fault::Failed) => {
                return answer(&mut client, "500 Internal Server Error", "InternalError");
            }
            _ => {}
        }
        let mut upstream = TcpStream::connect(("127.0.0.1", self.server))?;
        upstream.write_all(&head)?;
        upstream.write_all(&body)?;
        let mut whole = Vec::new();
        upstream.read_to_end(&mut whole)?;
        match fault {
            Some(Fault::Slow) => std::thread::sleep(Duration::from_millis(300)),
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Cut) => return client.write_all(&whole[..whole.len() / 2]),
            _ => {}
        }
        client.write_all(&whole)
    }
}
