//! A minimal HTTP client: one request, one response.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Requests a path. Returns the status and the whole response, including its head.
///
/// # Panics
/// If nothing answers.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).expect("somebody listens");
    connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer)
}

/// Returns the JSON document at a path.
///
/// # Panics
/// If there is none.
pub fn get_json(address: &str, path: &str) -> serde_json::Value {
    let (status, answer) = get(address, path);
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {status}, {error}: {body}"))
}
