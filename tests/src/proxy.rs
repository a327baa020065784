//! A bad line between a client and an HTTP server: the first attempts at everything fail, each in its own way.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Attempts at each request that fail before one succeeds.
const FAILURES: usize = 3;

/// What went wrong, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// 503.
    pub refused: usize,
    /// The connection ended while the request was sent: a torn upload.
    pub torn: usize,
    /// The connection ended half-way through the answer.
    pub cut: usize,
    /// The answer came in drops.
    pub slow: usize,
}

/// Listens on loopback for as long as the process lives.
#[derive(Debug)]
pub struct BadLine {
    port: u16,
    faults: Arc<Mutex<Faults>>,
}

impl BadLine {
    /// A bad line to a server on loopback.
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let faults: Arc<Mutex<Faults>> = Arc::default();
        let attempts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counted = Arc::clone(&faults);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (faults, attempts) = (Arc::clone(&counted), Arc::clone(&attempts));
                // A client that goes away ends its own thread only.
                std::thread::spawn(move || pass(client, server, &attempts, &faults).ok());
            }
        });
        Self { port, faults }
    }

    /// Where to connect.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What has gone wrong so far.
    pub fn faults(&self) -> Faults {
        *self.faults.lock().expect("no one panics with it")
    }
}

/// A head with its first line, and the body that its length says.
fn message(from: &mut BufReader<TcpStream>) -> std::io::Result<(String, Vec<u8>, Vec<u8>)> {
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
        // One request a connection: what belongs to which attempt stays plain.
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

fn pass(client: TcpStream, server: u16, attempts: &Mutex<HashMap<String, usize>>, faults: &Mutex<Faults>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    let (request, head, body) = message(&mut reader)?;
    let attempt = {
        let mut attempts = attempts.lock().expect("no one panics with it");
        // An upload that begins again has another id, and is the same request for all that.
        let known = request.split("uploadId=").next().unwrap_or_default().to_owned();
        let count = attempts.entry(known).or_default();
        *count += 1;
        *count
    };
    let count = |fault: fn(&mut Faults) -> &mut usize| *fault(&mut faults.lock().expect("no one panics with it")) += 1;
    if attempt == 1 {
        count(|faults| &mut faults.refused);
        return client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
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
