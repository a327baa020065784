//! From options to a connection.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use clap::Args;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::Error;

/// How to reach NATS and who we are there.
///
/// User, password and token come from the environment only (`LETHE_NATS_USER`, `LETHE_NATS_PASSWORD`,
/// `LETHE_NATS_TOKEN`): arguments are there for every user of a machine to see. Nothing of this is ever logged or sent.
#[derive(Clone, Default, Args)]
pub struct Options {
    /// NATS credentials file (JWT and seed).
    #[arg(long = "nats-creds", value_name = "FILE", env = "LETHE_NATS_CREDS", hide_env_values = true)]
    pub credentials: Option<PathBuf>,
    /// File with an nkey seed.
    #[arg(long = "nats-nkey", value_name = "FILE", env = "LETHE_NATS_NKEY", hide_env_values = true)]
    pub nkey: Option<PathBuf>,
    /// Certificates that the server's must come from (PEM), instead of the system's; asks for TLS.
    #[arg(long = "nats-ca", value_name = "FILE", env = "LETHE_NATS_CA")]
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM); asks for TLS.
    #[arg(long = "nats-cert", value_name = "FILE", env = "LETHE_NATS_CERT", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long = "nats-key", value_name = "FILE", env = "LETHE_NATS_KEY", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Seconds without a sign of life after which a worker's job goes to another; what the coordinator says counts.
    #[arg(long = "nats-patience", value_name = "SECONDS", env = "LETHE_NATS_PATIENCE", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub patience: u64,
    /// Seconds that an unreachable NATS or store is waited for before giving up (exit code 5).
    #[arg(long = "give-up", value_name = "SECONDS", env = "LETHE_GIVE_UP", default_value_t = 600)]
    pub give_up: u64,
    /// Copies of each stream that a NATS cluster keeps.
    #[arg(long = "nats-replicas", value_name = "N", env = "LETHE_NATS_REPLICAS", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("patience", &self.patience).field("give_up", &self.give_up).finish_non_exhaustive()
    }
}

impl Options {
    /// Files that hold secrets.
    pub fn secrets(&self) -> Vec<&std::path::Path> {
        [&self.credentials, &self.nkey, &self.key].into_iter().filter_map(|file| file.as_deref()).collect()
    }

    /// How long an unreachable server is waited for.
    pub fn give_up(&self) -> Duration {
        Duration::from_secs(self.give_up)
    }
}

/// An address without the user and password that someone may have put into it.
pub fn without_secrets(url: &str) -> String {
    let one = |address: &str| match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => address.to_owned(),
    };
    url.split(',').map(|address| one(address.trim())).collect::<Vec<_>>().join(",")
}

/// Longest wait for the first connection to be counted.
const SETTLED: Duration = Duration::from_secs(1);

/// Counts connections: whoever waits for an answer on the last one waits in vain when the number changes.
pub(super) type Connections = watch::Receiver<u64>;

/// Connects, waiting for a server that cannot be reached yet as long as the options say.
pub(super) async fn connect(url: &str, role: &str, name: &str, options: &Options) -> Result<(Client, Connections), Error> {
    connect_hearing(url, role, name, options, None).await
}

/// The same; what the server complains about is told to `hears` too, in its words.
pub(super) async fn connect_hearing(
    url: &str,
    role: &str,
    name: &str,
    options: &Options,
    hears: Option<mpsc::UnboundedSender<String>>,
) -> Result<(Client, Connections), Error> {
    let shown = without_secrets(url);
    let servers: Vec<&str> = url.split(',').map(str::trim).filter(|server| !server.is_empty()).collect();
    let (count, connections) = watch::channel(0u64);
    let deadline = Instant::now() + options.give_up();
    let mut pause = Duration::from_millis(200);
    loop {
        let settings = settings(role, name, options, &shown, count.clone(), hears.clone()).await?;
        let error = match settings.connect(&servers[..]).await {
            Ok(client) => {
                // It is counted a moment later: whoever asks from here on is not to be told of a change.
                let mut counted = connections.clone();
                let _ = tokio::time::timeout(SETTLED, counted.wait_for(|&connections| connections > 0)).await;
                return Ok((client, connections));
            }
            Err(error) => error,
        };
        // The kind alone: what lies under it may quote the address.
        let problem = format!("{shown}: {}", error.kind());
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                return Err(Error::Refused(format!("{problem}; check the credentials (--nats-creds, --nats-nkey, LETHE_NATS_USER …)")));
            }
            ConnectErrorKind::ServerParse => return Err(Error::Refused(format!("{problem}; an address is nats://host:4222"))),
            ConnectErrorKind::Tls => return Err(Error::Refused(format!("{problem}; check --nats-ca, --nats-cert and the server's name"))),
            _ if Instant::now() + pause >= deadline => return Err(Error::Unavailable(problem)),
            _ => {}
        }
        warn!(server = %shown, problem = %error.kind(), "cannot connect yet");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(Duration::from_secs(5));
    }
}

async fn settings(
    role: &str,
    name: &str,
    options: &Options,
    shown: &str,
    count: watch::Sender<u64>,
    hears: Option<mpsc::UnboundedSender<String>>,
) -> Result<ConnectOptions, Error> {
    let unreadable = |what: &str, file: &PathBuf, error: std::io::Error| Error::Refused(format!("{what} {}: {error}", file.display()));
    let shown = shown.to_owned();
    let mut settings = ConnectOptions::new()
        .name(name)
        // Each role hears the answers to its own requests only, where permissions say so.
        .custom_inbox_prefix(format!("_INBOX.{role}"))
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempts| Duration::from_millis(50 << attempts.min(6)).min(Duration::from_secs(2)))
        .event_callback(move |event| {
            match &event {
                Event::Connected => {
                    info!(server = %shown, "connected");
                    count.send_modify(|connections| *connections += 1);
                }
                // Whoever asked to hear it says it.
                Event::ServerError(error) if hears.as_ref().is_some_and(|hears| hears.send(error.to_string()).is_ok()) => {}
                Event::Draining | Event::Closed => info!(server = %shown, %event, "connection"),
                other => warn!(server = %shown, event = %other, "connection"),
            }
            async {}
        });
    if let Some(file) = &options.credentials {
        settings = settings.credentials_file(file).await.map_err(|error| unreadable("credentials", file, error))?;
    }
    if let Some(file) = &options.nkey {
        let seed = tokio::fs::read_to_string(file).await.map_err(|error| unreadable("nkey seed", file, error))?;
        settings = settings.nkey(seed.trim().to_owned());
    }
    let secret = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(user), Some(password)) = (secret("LETHE_NATS_USER"), secret("LETHE_NATS_PASSWORD")) {
        settings = settings.user_and_password(user, password);
    }
    if let Some(token) = secret("LETHE_NATS_TOKEN") {
        settings = settings.token(token);
    }
    if let Some(file) = &options.ca {
        settings = settings.add_root_certificates(file.clone()).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&options.certificate, &options.key) {
        settings = settings.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_messages() {
        assert_eq!(without_secrets("nats://user:p@ss@host:4222, tls://token@b"), "nats://host:4222,tls://b");
        assert_eq!(without_secrets("host:4222"), "host:4222");
        let options = Options { credentials: Some("/secret/place.creds".into()), ..Options::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
