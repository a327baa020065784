//! Connection options, and connecting with them.

use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use clap::Args;
use lethe_shared::retry::RetryPolicy;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::error::Error;

/// Credentials and settings of a connection to NATS.
///
/// User, password and token come from the environment only (`LETHE_NATS_USER`,
/// `LETHE_NATS_PASSWORD`, `LETHE_NATS_TOKEN`), because every user of a machine can see the
/// arguments of a process. None of them is ever logged.
#[derive(Clone, Default, Args)]
pub struct Options {
    /// NATS credentials file (JWT and seed).
    #[arg(
        long = "nats-creds",
        value_name = "FILE",
        env = "LETHE_NATS_CREDS",
        hide_env_values = true
    )]
    pub credentials: Option<PathBuf>,
    /// File with an nkey seed.
    #[arg(
        long = "nats-nkey",
        value_name = "FILE",
        env = "LETHE_NATS_NKEY",
        hide_env_values = true
    )]
    pub nkey: Option<PathBuf>,
    /// Root certificates (PEM) for verifying the server, instead of the system's; requires TLS.
    #[arg(long = "nats-ca", value_name = "FILE", env = "LETHE_NATS_CA")]
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM); requires TLS.
    #[arg(long = "nats-cert", value_name = "FILE", env = "LETHE_NATS_CERT", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// Private key of the client certificate (PEM).
    #[arg(
        long = "nats-key",
        value_name = "FILE",
        env = "LETHE_NATS_KEY",
        requires = "certificate"
    )]
    pub key: Option<PathBuf>,
    /// Seconds without a heartbeat after which a worker's job is delivered to another worker; the
    /// coordinator's value applies.
    #[arg(long = "nats-ack-wait", alias = "nats-patience", value_name = "SECONDS", env = "LETHE_NATS_ACK_WAIT",
          default_value = default_ack_wait(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub ack_wait: u64,
    /// Seconds to wait for an unreachable NATS server or store before giving up (exit code 5).
    #[arg(long = "give-up", value_name = "SECONDS", env = "LETHE_GIVE_UP", default_value_t = 600)]
    pub give_up: u64,
    /// Replicas of each stream in a NATS cluster.
    #[arg(long = "nats-replicas", value_name = "N", env = "LETHE_NATS_REPLICAS", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,
}

/// The default of `--nats-ack-wait`: the variable's former name, or 60 seconds.
fn default_ack_wait() -> &'static str {
    static DEFAULT: LazyLock<String> = LazyLock::new(|| {
        let former = std::env::var("LETHE_NATS_PATIENCE").ok().filter(|value| !value.is_empty());
        former.unwrap_or_else(|| "60".to_owned())
    });
    &DEFAULT
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("ack_wait", &self.ack_wait)
            .field("give_up", &self.give_up)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Returns the files that contain secrets.
    pub fn secrets(&self) -> Vec<&std::path::Path> {
        [&self.credentials, &self.nkey, &self.key]
            .into_iter()
            .filter_map(|file| file.as_deref())
            .collect()
    }

    /// Returns how long to wait for an unreachable server.
    pub fn give_up(&self) -> Duration {
        Duration::from_secs(self.give_up)
    }
}

/// Removes user and password from the addresses of servers.
pub fn without_secrets(url: &str) -> String {
    let one = |address: &str| match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => address.to_owned(),
    };
    url.split(',').map(|address| one(address.trim())).collect::<Vec<_>>().join(",")
}

/// Longest wait until the first connection is counted.
const SETTLED: Duration = Duration::from_secs(1);

/// Number of connections so far. When it changes, a reply that was awaited on the previous
/// connection will not come.
pub(super) type Connections = watch::Receiver<u64>;

/// Connects; retries while the server is unreachable, for as long as the options allow.
pub(super) async fn connect(
    url: &str,
    role: &str,
    name: &str,
    options: &Options,
) -> Result<(Client, Connections), Error> {
    connect_hearing(url, role, name, options, None).await
}

/// Like [`connect`]; also sends the error messages of the server to `hears`.
pub(super) async fn connect_hearing(
    url: &str,
    role: &str,
    name: &str,
    options: &Options,
    hears: Option<mpsc::UnboundedSender<String>>,
) -> Result<(Client, Connections), Error> {
    let shown = without_secrets(url);
    let servers: Vec<&str> =
        url.split(',').map(str::trim).filter(|server| !server.is_empty()).collect();
    let (count, connections) = watch::channel(0u64);
    let mut attempts = RetryPolicy::service(options.give_up()).attempts();
    loop {
        let settings = settings(role, name, options, &shown, count.clone(), hears.clone()).await?;
        let error = match settings.connect(&servers[..]).await {
            Ok(client) => {
                // The event that counts this connection comes a moment later; callers must not take
                // it for a reconnect.
                let mut counted = connections.clone();
                let _ =
                    tokio::time::timeout(SETTLED, counted.wait_for(|&connections| connections > 0))
                        .await;
                return Ok((client, connections));
            }
            Err(error) => error,
        };
        // Only the kind is shown: the source of the error may quote the address with its
        // credentials.
        let problem = format!("{shown}: {}", error.kind());
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                return Err(Error::Refused(format!(
                    "{problem}; check the credentials (--nats-creds, --nats-nkey, LETHE_NATS_USER …)"
                )));
            }
            ConnectErrorKind::ServerParse => {
                return Err(Error::Refused(format!("{problem}; an address is nats://host:4222")));
            }
            ConnectErrorKind::Tls => {
                return Err(Error::Refused(format!(
                    "{problem}; check --nats-ca, --nats-cert and the server's name"
                )));
            }
            _ => {}
        }
        let Some(pause) = attempts.failed() else { return Err(Error::Unavailable(problem)) };
        warn!(server = %shown, problem = %error.kind(), ?pause, "cannot connect; retrying after a pause");
        tokio::time::sleep(pause).await;
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
    let unreadable = |what: &str, file: &PathBuf, error: std::io::Error| {
        Error::Refused(format!("{what} {}: {error}", file.display()))
    };
    let shown = shown.to_owned();
    let mut settings = ConnectOptions::new()
        .name(name)
        // With an inbox per role, permissions can limit each role to the replies to its own
        // requests.
        .custom_inbox_prefix(format!("_INBOX.{role}"))
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(50 << attempts.min(6)).min(Duration::from_secs(2))
        })
        .event_callback(move |event| {
            match &event {
                Event::Connected => {
                    info!(server = %shown, "connected");
                    count.send_modify(|connections| *connections += 1);
                }
                // The receiver reports the error instead.
                Event::ServerError(error)
                    if hears
                        .as_ref()
                        .is_some_and(|hears| hears.send(error.to_string()).is_ok()) => {}
                Event::Draining | Event::Closed => info!(server = %shown, %event, "connection"),
                other => warn!(server = %shown, event = %other, "connection"),
            }
            async {}
        });
    if let Some(file) = &options.credentials {
        settings = settings
            .credentials_file(file)
            .await
            .map_err(|error| unreadable("credentials", file, error))?;
    }
    if let Some(file) = &options.nkey {
        let seed = tokio::fs::read_to_string(file)
            .await
            .map_err(|error| unreadable("nkey seed", file, error))?;
        settings = settings.nkey(seed.trim().to_owned());
    }
    let secret = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(user), Some(password)) = (secret("LETHE_NATS_USER"), secret("LETHE_NATS_PASSWORD"))
    {
        settings = settings.user_and_password(user, password);
    }
    if let Some(token) = secret("LETHE_NATS_TOKEN") {
        settings = settings.token(token);
    }
    if let Some(file) = &options.ca {
        settings = settings.add_root_certificates(file.clone()).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&options.certificate, &options.key) {
        settings =
            settings.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_messages() {
        assert_eq!(
            without_secrets("nats://user:p@ss@host:4222, tls://token@b"),
            "nats://host:4222,tls://b"
        );
        assert_eq!(without_secrets("host:4222"), "host:4222");
        let options =
            Options { credentials: Some("/secret/place.creds".into()), ..Options::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn ack_wait(arguments: &[&str]) -> Result<u64, clap::Error> {
        let arguments = ["program"].iter().chain(arguments);
        <Program as clap::Parser>::try_parse_from(arguments).map(|program| program.options.ack_wait)
    }

    #[test]
    fn the_former_name_of_the_ack_wait_is_an_alias() {
        for flag in ["--nats-ack-wait", "--nats-patience"] {
            assert_eq!(ack_wait(&[flag, "3"]).unwrap(), 3);
            assert!(ack_wait(&[flag, "0"]).is_err());
        }
    }

    /// Runs itself once more for each environment, because a process cannot change its own safely.
    #[test]
    fn the_former_variable_of_the_ack_wait_is_read() {
        const EXPECTED: &str = "LETHE_TEST_EXPECTED_ACK_WAIT";
        if let Ok(expected) = std::env::var(EXPECTED) {
            assert_eq!(
                ack_wait(&[]).map_or_else(|_| "error".to_owned(), |seconds| seconds.to_string()),
                expected
            );
            return;
        }
        let environments: [(&[(&str, &str)], &str); 5] = [
            (&[], "60"),
            (&[("LETHE_NATS_ACK_WAIT", "5")], "5"),
            (&[("LETHE_NATS_PATIENCE", "7")], "7"),
            (&[("LETHE_NATS_ACK_WAIT", "5"), ("LETHE_NATS_PATIENCE", "7")], "5"),
            (&[("LETHE_NATS_PATIENCE", "soon")], "error"),
        ];
        for (variables, expected) in environments {
            let test = "nats::connect::tests::the_former_variable_of_the_ack_wait_is_read";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again
                .args([test, "--exact"])
                .env_remove("LETHE_NATS_ACK_WAIT")
                .env_remove("LETHE_NATS_PATIENCE");
            let output =
                again.envs(variables.iter().copied()).env(EXPECTED, expected).output().unwrap();
            assert!(
                output.status.success(),
                "{variables:?}: {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
}
