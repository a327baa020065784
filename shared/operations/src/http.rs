//! The HTTP port of a process: `/healthz`, `/readyz`, `/metrics`, and further routes of the
//! process.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

pub use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::log::say;
use crate::metrics;

/// Where to listen: `ADDRESS:PORT`, or a port alone, which listens on this machine's loopback only.
/// Port 0 takes a free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOn(SocketAddr);

impl FromStr for ListenOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = || {
            text.strip_prefix(':')
                .unwrap_or(text)
                .parse()
                .map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        };
        let address = text.replacen("localhost:", "127.0.0.1:", 1).parse().or_else(|_| port());
        address
            .map(Self)
            .map_err(|_| "expected a port, or an address and a port, as 127.0.0.1:9464".to_owned())
    }
}

impl fmt::Display for ListenOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An HTTP server that is bound to its address; it serves requests while it [`run`](Self::run)s.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    router: Router,
    address: SocketAddr,
}

impl Server {
    /// Binds the address. `more` are routes besides the common ones.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(on: ListenOn, health: Health, more: Router) -> std::io::Result<Self> {
        let listener = TcpListener::bind(on.0).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, router: routes(health).merge(more), address })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves requests until `cancel` is cancelled, and then completes those in progress.
    ///
    /// # Errors
    /// When accepting connections fails.
    pub async fn run(self, cancel: CancellationToken) -> std::io::Result<()> {
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(cancel.cancelled_owned())
            .await
    }
}

/// Binds the address, says so in the log, and serves metrics and probes until the process ends, also
/// while it is stopping.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_probes(on: ListenOn, health: Health) -> std::io::Result<()> {
    let server = Server::bind(on, health, Router::new()).await?;
    say("info", &format!("http://{}: metrics and probes", server.address()));
    tokio::spawn(server.run(CancellationToken::new()));
    Ok(())
}

fn routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|| async {
                ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::metrics().encode())
            }),
        )
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let (ready, text) = health.report();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_and_metrics_answer() {
        let (health, cancel) = (Health::waiting_for(&["queue"]), CancellationToken::new());
        let server =
            Server::bind("0".parse().unwrap(), health.clone(), Router::new()).await.unwrap();
        let address = server.address();
        assert!(address.ip().is_loopback());
        let running = tokio::spawn(server.run(cancel.clone()));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = get(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("queue: not yet known\n"),
            "{answer}"
        );
        health.met("queue");
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let answer = get(address, "/metrics").await;
        assert!(answer.contains("openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
        cancel.cancel();
        running.await.unwrap().unwrap();
    }

    #[test]
    fn a_port_alone_stays_on_this_machine() {
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            (":80", "127.0.0.1:80"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:2", "[::1]:2"),
        ] {
            assert_eq!(text.parse::<ListenOn>().unwrap().to_string(), address);
        }
        for text in ["", "x", "1.2.3.4", "70000"] {
            assert!(text.parse::<ListenOn>().is_err(), "{text}");
        }
    }
}
