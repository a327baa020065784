//! Proxies between a client and an HTTP server: one on which the first attempts at every request
//! fail, each in another way, and one with an S3 server's access control.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Number of failing attempts at each request before one succeeds.
const FAILURES: usize = 3;

/// Numbers of faults, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The response was 503.
    pub refused: usize,
    /// The connection ended while the request was sent.
    pub torn: usize,
    /// The connection ended in the middle of the response.
    pub cut: usize,
    /// The response came slowly, in small parts.
    pub slow: usize,
}

/// An unreliable proxy on loopback, which runs as long as the process lives.
#[derive(Debug)]
pub struct BadLine {
    port: u16,
    faults: Arc<Mutex<Faults>>,
}

impl BadLine {
    /// Starts an unreliable proxy in front of a server on loopback.
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let faults: Arc<Mutex<Faults>> = Arc::default();
        let attempts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counted = Arc::clone(&faults);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (faults, attempts) = (Arc::clone(&counted), Arc::clone(&attempts));
                // An error of one client ends only its own thread.
                std::thread::spawn(move || pass(client, server, &attempts, &faults).ok());
            }
        });
        Self { port, faults }
    }

    /// Returns the proxy's address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the faults so far.
    pub fn faults(&self) -> Faults {
        *self.faults.lock().expect("no one panics with it")
    }
}

/// Returns a message's head, with its first line, and the body of the length in the head.
pub(crate) fn message(
    from: &mut BufReader<TcpStream>,
) -> std::io::Result<(String, Vec<u8>, Vec<u8>)> {
    let (mut first, mut head, mut length) = (String::new(), Vec::new(), None);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        }
        if first.is_empty() {
            first = line.trim_end().to_owned();
        }
        if line == "\r\n" {
            break;
        }
        // One request per connection, so that each belongs to a known attempt.
        if !lower.starts_with("connection:") && !lower.starts_with("expect:") {
            head.extend_from_slice(line.as_bytes());
        }
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    let mut body = Vec::new();
    match length {
        Some(length) => {
            body.resize(length, 0);
            if !first.starts_with("HTTP/") || !body.is_empty() {
                from.read_exact(&mut body)?;
            }
        }
        None if first.starts_with("HTTP/") => drop(from.read_to_end(&mut body)?),
        None => {}
    }
    Ok((first, head, body))
}

/// A proxy in front of an S3 server without access control, which answers 403 to requests signed
/// with a revoked access key. It listens on loopback as long as the process lives.
#[derive(Debug)]
pub struct AccessControl {
    port: u16,
    revoked: Arc<Mutex<HashSet<String>>>,
}

impl AccessControl {
    /// Starts the proxy for a server on loopback, without revoked keys.
    pub fn of(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let revoked: Arc<Mutex<HashSet<String>>> = Arc::default();
        let asked = Arc::clone(&revoked);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let revoked = Arc::clone(&asked);
                // An error of one client ends only its own thread.
                std::thread::spawn(move || admit(client, server, &revoked).ok());
            }
        });
        Self { port, revoked }
    }

    /// Returns the proxy's address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Revokes an access key: its requests are answered with 403.
    pub fn revoke(&self, key: &str) {
        self.revoked.lock().expect("no one panics with it").insert(key.to_owned());
    }

    /// Restores an access key.
    pub fn restore(&self, key: &str) {
        self.revoked.lock().expect("no one panics with it").remove(key);
    }
}

/// S3's response to credentials without the required permission.
const DENIED: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";

fn admit(client: TcpStream, server: u16, revoked: &Mutex<HashSet<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    let (request, head, body) = message(&mut reader)?;
    // Authorization: AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/s3/aws4_request, …
    let text = String::from_utf8_lossy(&head);
    let key = text
        .split("Credential=")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_default();
    if revoked.lock().expect("no one panics with it").contains(key) {
        let head = format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            DENIED.len()
        );
        client.write_all(head.as_bytes())?;
        return if request.starts_with("HEAD") {
            Ok(())
        } else {
            client.write_all(DENIED.as_bytes())
        };
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    upstream.write_all(&head)?;
    upstream.write_all(&body)?;
    // The server closes the connection after its response.
    std::io::copy(&mut upstream, &mut client).map(drop)
}

fn pass(
    client: TcpStream,
    server: u16,
    attempts: &Mutex<HashMap<String, usize>>,
    faults: &Mutex<Faults>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    let (request, head, body) = message(&mut reader)?;
    let attempt = {
        let mut attempts = attempts.lock().expect("no one panics with it");
        // A restarted upload has a new id and counts as the same request.
        let known = request.split("uploadId=").next().unwrap_or_default().to_owned();
        let count = attempts.entry(known).or_default();
        *count += 1;
        *count
    };
    let count = |fault: fn(&mut Faults) -> &mut usize| {
        *fault(&mut faults.lock().expect("no one panics with it")) += 1
    };
    if attempt == 1 {
        count(|faults| &mut faults.refused);
        return client.write_all(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    upstream.write_all(&head)?;
    if attempt == 2 && request.starts_with("PUT") && !body.is_empty() {
        count(|faults| &mut faults.torn);
        return upstream.write_all(&body[..body.len() / 2]);
    }
    upstream.write_all(&body)?;
    let (_, head, body) = if request.starts_with("HEAD") {
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        (String::new(), answer, Vec::new())
    } else {
        message(&mut BufReader::new(upstream))?
    };
    client.write_all(&head)?;
    if attempt == 2 && body.len() > 1 {
        count(|faults| &mut faults.cut);
        return client.write_all(&body[..body.len() / 2]);
    }
    if attempt == FAILURES && body.len() > 1 {
        count(|faults| &mut faults.slow);
        for piece in body.chunks(body.len().div_ceil(5)) {
            client.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(60));
        }
        return Ok(());
    }
    client.write_all(&body)
}
