//! Names of machines and processes, for leases, outcomes and messages; and the signals that stop a
//! process.

/// Environment variable that names the machine.
pub const MACHINE: &str = "LETHE_MACHINE";

/// Returns the name of the machine: `LETHE_MACHINE`, or the host name.
pub fn machine_name() -> String {
    let named = std::env::var(MACHINE).ok().filter(|name| !name.trim().is_empty());
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: String = named
        .unwrap_or_else(host)
        .trim()
        .chars()
        .filter(|c| !c.is_control() && *c != '/')
        .take(64)
        .collect();
    if name.is_empty() { "lethe".to_owned() } else { name }
}

/// Returns the name of the process: machine and process id.
pub fn process_name() -> String {
    format!("{}-{}", machine_name(), std::process::id())
}

/// Waits for Ctrl-C or SIGTERM. Returns false when signals cannot be received.
///
/// # Cancel safety
/// Dropping the future loses no signal that comes later.
pub async fn interrupted() -> bool {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                result = tokio::signal::ctrl_c() => result.is_ok(),
                signal = terminate.recv() => signal.is_some(),
            },
            Err(_) => tokio::signal::ctrl_c().await.is_ok(),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await.is_ok()
    }
}
