//! JetStream storage: a server reserves a stream's `max_bytes` when the stream is created, and
//! rejects the stream when less is available. A retry does not help, so a coordinator stops with
//! the numbers.

use std::time::Duration;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{Context, ErrorCode};
use serde::Deserialize;

use crate::error::Error;

/// Error codes of a server or account without storage for a stream.
pub(super) const NO_ROOM: [ErrorCode; 6] = [
    ErrorCode::INSUFFICIENT_RESOURCES,
    ErrorCode::STORAGE_RESOURCES_EXCEEDED,
    ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ErrorCode::MAXIMUM_STREAMS_LIMIT,
    ErrorCode::NO_LIMITS,
    ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED,
];
/// Longest wait for the account's limits; accounts without permission to ask get no answer.
const ANSWER: Duration = Duration::from_secs(2);
const MIB: u64 = 1 << 20;

/// The answer to `$JS.API.INFO`. Servers before 2.10.8 omit the reserved storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Account {
    #[serde(flatten)]
    all: Tier,
    tiers: std::collections::BTreeMap<String, Tier>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Tier {
    storage: u64,
    reserved_storage: u64,
    limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Limits {
    max_storage: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_storage: -1 }
    }
}

/// Streams to create, and the storage they reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Name and bytes of one replica.
    streams: Vec<(String, u64)>,
    replicas: u64,
}

impl Wanted {
    fn of(streams: &[Config]) -> Self {
        let replicas = streams.first().map_or(1, |stream| stream.num_replicas as u64);
        let bytes =
            |stream: &Config| (stream.name.clone(), u64::try_from(stream.max_bytes).unwrap_or(0));
        Self { streams: streams.iter().map(bytes).collect(), replicas }
    }

    /// Returns the bytes of one replica of every stream.
    pub(super) fn bytes(&self) -> u64 {
        self.streams.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Describes the reservation for messages.
    pub(super) fn describe(&self) -> String {
        let each: Vec<String> = self
            .streams
            .iter()
            .map(|(name, bytes)| format!("{name} {} MiB", bytes.div_ceil(MIB)))
            .collect();
        let copies = if self.replicas > 1 {
            format!(", on each of {} servers", self.replicas)
        } else {
            String::new()
        };
        format!("streams reserve {} MiB ({}){copies}", self.bytes().div_ceil(MIB), each.join(", "))
    }

    /// Returns why the account's limit does not suffice; `None` when it does, or when there is no
    /// limit.
    fn too_much_for(&self, account: &Account) -> Option<String> {
        // Without tiers every replica counts; the limit of a tier applies to one replica.
        let (tier, bytes) = match account.tiers.get(&format!("R{}", self.replicas)) {
            Some(tier) => (tier, self.bytes()),
            None => (&account.all, self.bytes() * self.replicas),
        };
        let limit = u64::try_from(tier.limits.max_storage).ok()?;
        // A limit of 0 can mean that JetStream is off for the account; creating a stream reports
        // that better.
        let taken = tier.reserved_storage.max(tier.storage);
        (limit > 0 && taken + bytes > limit).then(|| {
            let (limit, taken) = (limit / MIB, taken.div_ceil(MIB));
            format!(
                "{}; this account may store {limit} MiB, of which {taken} MiB are used or reserved",
                self.describe()
            )
        })
    }
}

/// Returns the streams that do not exist. A stream that cannot be asked about counts as existing;
/// creating it will report why.
pub(super) async fn missing(context: &Context, streams: &[Config]) -> Wanted {
    let mut missing = Vec::new();
    for stream in streams {
        match context.get_stream(&stream.name).await.map(drop).map_err(|error| error.kind()) {
            Err(GetStreamErrorKind::JetStream(inner))
                if inner.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                missing.push(stream.clone())
            }
            _ => {}
        }
    }
    Wanted::of(&missing)
}

/// Compares the reservation with the account's limit.
///
/// # Errors
/// [`Error::NoRoom`] with the numbers.
pub(super) async fn check(context: &Context, wanted: &Wanted) -> Result<(), Error> {
    if wanted.streams.is_empty() {
        return Ok(());
    }
    match account(context).await.and_then(|account| wanted.too_much_for(&account)) {
        Some(problem) => Err(no_room(&problem)),
        None => Ok(()),
    }
}

/// The remedy.
pub(super) const FIX: &str = "give JetStream more storage (`max_file_store` of the server, the account's `max_file`), delete unused \
                              streams, or use another server; `nats account info` and `nats server report jetstream` show what is taken";

/// The error of a server or account with too little storage.
pub(super) fn no_room(problem: &str) -> Error {
    Error::NoRoom(format!("JetStream has too little storage: {problem}; {FIX}"))
}

/// Returns the account's limits; `None` without permission to ask.
async fn account(context: &Context) -> Option<Account> {
    let asked = context.request::<_, _, serde_json::Value>("INFO", b"");
    let answer = tokio::time::timeout(ANSWER, asked).await.ok()?.ok()?;
    // The type of async-nats requires fields that servers before 2.10.8 do not send.
    if answer.get("error").is_some() { None } else { serde_json::from_value(answer).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(replicas: u64) -> Wanted {
        Wanted { streams: vec![("A".into(), 256 * MIB), ("B".into(), 64 * MIB)], replicas }
    }

    fn account(text: &str) -> Account {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn limits_of_old_and_new_servers_are_read() {
        // 2.9.10, without a limit.
        let old = r#"{"type":"io.nats.jetstream.api.v1.account_info_response","memory":0,"storage":0,"streams":0,"consumers":0,
            "limits":{"max_memory":-1,"max_storage":-1,"max_streams":-1,"max_consumers":-1,"max_ack_pending":-1,
            "memory_max_stream_bytes":-1,"storage_max_stream_bytes":-1,"max_bytes_required":false},"api":{"total":1,"errors":0}}"#;
        assert_eq!(wanted(1).too_much_for(&account(old)), None);
        let limited = |bytes: u64| {
            account(&old.replace("\"max_storage\":-1", &format!("\"max_storage\":{bytes}")))
        };
        assert_eq!(wanted(1).too_much_for(&limited(320 * MIB)), None);
        let problem = wanted(1).too_much_for(&limited(319 * MIB)).unwrap();
        assert!(
            problem.contains("reserve 320 MiB (A 256 MiB, B 64 MiB)")
                && problem.contains("may store 319 MiB"),
            "{problem}"
        );
        // Every replica counts.
        assert!(
            wanted(3).too_much_for(&limited(960 * MIB)).is_none()
                && wanted(3).too_much_for(&limited(959 * MIB)).is_some()
        );
        // Reserved storage counts, where the server reports it.
        let new = r#"{"memory":0,"storage":5,"reserved_storage":104857600,"limits":{"max_storage":419430400}}"#;
        assert!(
            wanted(1).too_much_for(&account(new)).unwrap().contains("100 MiB are used or reserved")
        );
        // By tier.
        let tiers = r#"{"storage":0,"limits":{"max_storage":0},"tiers":{"R3":{"storage":0,"limits":{"max_storage":400000000}}}}"#;
        assert_eq!(wanted(3).too_much_for(&account(tiers)), None);
        assert!(
            wanted(3).too_much_for(&account(&tiers.replace("400000000", "300000000"))).is_some()
        );
    }
}
