//! Creates the streams and the consumer, and restores their settings.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use lethe_shared::fault::Limits;
use tracing::warn;

use super::storage::{self, NO_ROOM, Wanted};
use super::{lease, names};
use crate::error::Error;

const MIB: i64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);
/// Time within which the server recognises repeated publications of a message.
const DUPLICATES: Duration = Duration::from_secs(600);
/// Most delivered jobs at a time, of all runs.
const IN_HAND: i64 = 16_384;
/// Most workers that wait for a job at a time.
const ASKING: i64 = 8_192;

/// Returns the configuration of every stream.
pub(super) fn streams(limits: &Limits, replicas: usize) -> [Config; 4] {
    let stream = |name: &str, subjects: &str| Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        storage: StorageType::File,
        num_replicas: replicas,
        // The largest job fits; larger messages are rejected by the server.
        max_message_size: (MIB + MIB / 16) as i32,
        duplicate_window: DUPLICATES,
        // No limit, in the form that servers report.
        max_messages_per_subject: -1,
        ..Config::default()
    };
    let jobs = Config {
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_bytes: 256 * MIB,
        ..stream(names::JOBS, "lethe.jobs.>")
    };
    // Only the last message of each subject matters.
    let kept = |name: &str, subjects: &str, max_age: Duration, bytes: i64| Config {
        max_messages_per_subject: 1,
        max_age,
        max_bytes: bytes,
        duplicate_window: DUPLICATES.min(max_age),
        allow_direct: true,
        ..stream(name, subjects)
    };
    [
        jobs,
        kept(names::DEAD, "lethe.dead.>", 30 * DAY, 256 * MIB),
        kept(names::LEDGER, "lethe.ledger.>", 7 * DAY, 64 * MIB),
        Config {
            allow_direct: false,
            ..kept(names::LEASES, "lethe.lease.*", lease::term(limits), 4 * MIB)
        },
    ]
}

/// Creates missing streams and the consumer, and restores settings that were changed.
pub(super) async fn ensure(
    context: &Context,
    limits: &Limits,
    replicas: usize,
) -> Result<(), Error> {
    let streams = streams(limits, replicas);
    let wanted = storage::missing(context, &streams).await;
    storage::check(context, &wanted).await?;
    for stream in streams {
        ensure_stream(context, stream, &wanted).await?;
    }
    ensure_consumer(context, limits).await
}

async fn ensure_stream(context: &Context, wanted: Config, missing: &Wanted) -> Result<(), Error> {
    let name = wanted.name.clone();
    let failed = |error: String| Error::Unavailable(format!("stream {name}: {error}"));
    let error = match context.create_stream(wanted.clone()).await {
        Ok(created) => match drift(&wanted, &created.cached_info().config) {
            // A server can enforce limits of its own that are narrower.
            differences if differences.is_empty() => return Ok(()),
            differences => {
                warn!(stream = %name, differences = differences.join(", "), "the server created a stream with other settings");
                return Ok(());
            }
        },
        Err(error) => error,
    };
    match error.kind() {
        CreateStreamErrorKind::JetStream(inner)
            if inner.error_code() == ErrorCode::STREAM_NAME_EXIST => {}
        CreateStreamErrorKind::JetStream(inner)
            if [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
                .contains(&inner.error_code()) =>
        {
            return Err(Error::Refused(format!(
                "JetStream is not enabled on the server or for this account ({inner})"
            )));
        }
        CreateStreamErrorKind::JetStream(inner)
            if inner.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED =>
        {
            return Err(Error::Refused(format!(
                "stream {name}: {inner}; {} replicas need a cluster of as many servers; use --nats-replicas 1 for a single server",
                wanted.num_replicas
            )));
        }
        CreateStreamErrorKind::JetStream(inner) if NO_ROOM.contains(&inner.error_code()) => {
            match context.get_stream(&name).await {
                // A server short of storage (2.9 at least) reports this even for a stream that
                // exists.
                Ok(_) => {}
                Err(error) if is_not_found(error.kind()) => {
                    return Err(storage::no_room(&format!(
                        "{}; the server refuses {name}: {inner}",
                        missing.describe()
                    )));
                }
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        // A cluster reports this both for servers that are down and for too little storage, so it
        // is retried.
        CreateStreamErrorKind::JetStream(inner)
            if inner.error_code() == ErrorCode::CLUSTER_NO_PEERS =>
        {
            return Err(failed(format!("{inner}; {}", missing.describe())));
        }
        kind => return Err(failed(kind.to_string())),
    }
    let found = context
        .get_stream(&name)
        .await
        .map_err(|error| failed(error.to_string()))?
        .cached_info()
        .config
        .clone();
    if found.retention != wanted.retention || found.storage != wanted.storage {
        return Err(Error::Refused(format!(
            "stream {name} exists with {:?} retention on {:?} storage, where {:?} on {:?} is needed and cannot be changed; \
             delete the stream or use another account",
            found.retention, found.storage, wanted.retention, wanted.storage
        )));
    }
    let differences = drift(&wanted, &found);
    if differences.is_empty() {
        return Ok(());
    }
    warn!(stream = %name, differences = differences.join(", "), "a stream's settings had been changed; restoring them");
    let restored = restored(wanted, found);
    let Err(error) = context.update_stream(restored).await else { return Ok(()) };
    match error.kind() {
        // An administrator may have created a smaller stream because the server has no more
        // storage.
        CreateStreamErrorKind::JetStream(inner) if NO_ROOM.contains(&inner.error_code()) => {
            warn!(stream = %name, problem = %inner, "a stream's settings could not be restored");
            Ok(())
        }
        kind => Err(failed(kind.to_string())),
    }
}

fn is_not_found(kind: GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The settings that Lethe controls; an administrator may change all others.
macro_rules! ours {
    ($($field:ident),+) => {
        /// Returns which of these settings differ.
        fn drift(wanted: &Config, found: &Config) -> Vec<String> {
            let mut differences = Vec::new();
            $(
                if wanted.$field != found.$field {
                    differences.push(format!("{} is {:?}, should be {:?}", stringify!($field), found.$field, wanted.$field));
                }
            )+
            differences
        }

        /// Returns the found configuration with these settings restored.
        fn restored(wanted: Config, found: Config) -> Config {
            Config { $($field: wanted.$field,)+ ..found }
        }
    };
}
ours!(
    subjects,
    max_bytes,
    max_messages_per_subject,
    max_age,
    max_message_size,
    duplicate_window,
    discard,
    allow_direct,
    num_replicas
);

/// Creates the consumer, or restores its settings.
pub(super) async fn ensure_consumer(context: &Context, limits: &Limits) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Unavailable(format!("consumer {}: {error}", names::CONSUMER))
    };
    let wanted = pull::Config {
        durable_name: Some(names::CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: limits.ack_wait,
        max_deliver: i64::from(limits.deliveries),
        max_ack_pending: IN_HAND,
        max_waiting: ASKING,
        ..pull::Config::default()
    };
    let found: Option<PullConsumer> =
        context.get_consumer_from_stream(names::CONSUMER, names::JOBS).await.ok();
    if let Some(consumer) = found {
        let config = &consumer.cached_info().config;
        if !config.filter_subject.is_empty() {
            return Err(Error::Refused(format!(
                "consumer {} on {} is limited to {}; delete it, and a coordinator creates it again",
                names::CONSUMER,
                names::JOBS,
                config.filter_subject
            )));
        }
        let same = (config.ack_wait, config.max_deliver, config.max_ack_pending)
            == (wanted.ack_wait, wanted.max_deliver, wanted.max_ack_pending);
        if same {
            return Ok(());
        }
        warn!(ack_wait = ?config.ack_wait, deliveries = config.max_deliver, in_hand = config.max_ack_pending, "the consumer's settings had been changed; restoring them");
    }
    context
        .create_consumer_on_stream(wanted, names::JOBS)
        .await
        .map(drop)
        .map_err(|error| failed(&error))
}
