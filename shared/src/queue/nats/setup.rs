//! Streams and the consumer, made by coordinators and held to what they should be.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use tracing::warn;

use super::super::{Error, Limits};
use super::lease;
use super::names;

const MIB: i64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);
/// Publications of one message within this time are one.
const DUPLICATES: Duration = Duration::from_secs(600);
/// Jobs in hand at most, of all runs.
const IN_HAND: i64 = 16_384;
/// Workers that ask for a job at one time, at most.
const ASKING: i64 = 8_192;

/// What a server says that has no room for a stream.
const NO_ROOM: [ErrorCode; 3] =
    [ErrorCode::INSUFFICIENT_RESOURCES, ErrorCode::STORAGE_RESOURCES_EXCEEDED, ErrorCode::ACCOUNT_RESOURCES_EXCEEDED];

fn streams(limits: &Limits, replicas: usize) -> [Config; 4] {
    let stream = |name: &str, subjects: &str| Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        storage: StorageType::File,
        num_replicas: replicas,
        // Enough for jobs of any size, and for a hostile message no more than for a job.
        max_message_size: (MIB + MIB / 16) as i32,
        duplicate_window: DUPLICATES,
        // No limit, as servers write it.
        max_messages_per_subject: -1,
        ..Config::default()
    };
    let jobs = Config {
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_bytes: 256 * MIB,
        ..stream(names::JOBS, "lethe.jobs.>")
    };
    // Of what is kept by subject, the last is what counts.
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
        Config { allow_direct: false, ..kept(names::LEASES, "lethe.lease.*", lease::term(limits), 4 * MIB) },
    ]
}

/// Makes what is missing and mends what differs.
pub(super) async fn ensure(context: &Context, limits: &Limits, replicas: usize) -> Result<(), Error> {
    for stream in streams(limits, replicas) {
        ensure_stream(context, stream).await?;
    }
    ensure_consumer(context, limits).await
}

async fn ensure_stream(context: &Context, wanted: Config) -> Result<(), Error> {
    let name = wanted.name.clone();
    let failed = |error: String| Error::Unavailable(format!("stream {name}: {error}"));
    let error = match context.create_stream(wanted.clone()).await {
        Ok(created) => match drift(&wanted, &created.cached_info().config) {
            // The server keeps to limits of its own where ours are wider.
            differences if differences.is_empty() => return Ok(()),
            differences => {
                warn!(stream = %name, differences = differences.join(", "), "the server made a stream otherwise");
                return Ok(());
            }
        },
        Err(error) => error,
    };
    match error.kind() {
        CreateStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NAME_EXIST => {}
        CreateStreamErrorKind::JetStream(inner)
            if [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT].contains(&inner.error_code()) =>
        {
            return Err(Error::Refused(format!("JetStream is not enabled on the server or for this account ({inner})")));
        }
        // A server short of storage (2.9 at least) refuses to make what is there already.
        CreateStreamErrorKind::JetStream(inner) if NO_ROOM.contains(&inner.error_code()) && context.get_stream(&name).await.is_ok() => {}
        kind => return Err(failed(kind.to_string())),
    }
    let found = context.get_stream(&name).await.map_err(|error| failed(error.to_string()))?.cached_info().config.clone();
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
    warn!(stream = %name, differences = differences.join(", "), "a stream had changed and is changed back");
    let mended = mended(wanted, found);
    context.update_stream(mended).await.map(drop).map_err(|error| failed(error.to_string()))
}

/// The settings that are ours; what else a stream has is its administrator's.
macro_rules! ours {
    ($($field:ident),+) => {
        /// What differs, of what we ask for.
        fn drift(wanted: &Config, found: &Config) -> Vec<String> {
            let mut differences = Vec::new();
            $(
                if wanted.$field != found.$field {
                    differences.push(format!("{} is {:?}, should be {:?}", stringify!($field), found.$field, wanted.$field));
                }
            )+
            differences
        }

        /// What is found, with our settings as they are wanted.
        fn mended(wanted: Config, found: Config) -> Config {
            Config { $($field: wanted.$field,)+ ..found }
        }
    };
}
ours!(subjects, max_bytes, max_messages_per_subject, max_age, max_message_size, duplicate_window, discard, allow_direct, num_replicas);

/// Makes the consumer where it is missing, and mends it where it differs.
pub(super) async fn ensure_consumer(context: &Context, limits: &Limits) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("consumer {}: {error}", names::CONSUMER));
    let wanted = pull::Config {
        durable_name: Some(names::CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: limits.patience,
        max_deliver: i64::from(limits.deliveries),
        max_ack_pending: IN_HAND,
        max_waiting: ASKING,
        ..pull::Config::default()
    };
    let found: Option<PullConsumer> = context.get_consumer_from_stream(names::CONSUMER, names::JOBS).await.ok();
    if let Some(consumer) = found {
        let config = &consumer.cached_info().config;
        if !config.filter_subject.is_empty() {
            return Err(Error::Refused(format!(
                "consumer {} on {} sees {} only; delete it: it will be made anew",
                names::CONSUMER,
                names::JOBS,
                config.filter_subject
            )));
        }
        let same =
            (config.ack_wait, config.max_deliver, config.max_ack_pending) == (wanted.ack_wait, wanted.max_deliver, wanted.max_ack_pending);
        if same {
            return Ok(());
        }
        warn!(patience = ?config.ack_wait, deliveries = config.max_deliver, in_hand = config.max_ack_pending, "the consumer had changed and is changed back");
    }
    context.create_consumer_on_stream(wanted, names::JOBS).await.map(drop).map_err(|error| failed(&error))
}
