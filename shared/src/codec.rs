//! The envelope around every message on a queue.
//!
//! ```text
//! magic "LTHE" · kind u16 · version u16 · flags u16 · length u32 · first 16 bytes of SHA-256(body) · body
//! ```
//!
//! Numbers are little-endian; the body is bincode of a frozen struct of that kind and version (`codec/wire.rs`), at most 1 MiB.
//! bincode describes nothing by itself: the version says which struct it is, and a reader that does not know it refuses.
//! Messages are transport, never storage: what lasts is JSON and safetensors in the [`store`](crate::store).

mod wire;

use crate::control::{Reply, Request};
use crate::digest::Digest;
use crate::job::Job;
use crate::queue::Notice;

const MAGIC: &[u8; 4] = b"LTHE";
const HEADER: usize = 4 + 2 + 2 + 2 + 4 + 16;
/// Largest body, bytes: NATS's default limit.
const MAX_BODY: usize = 1 << 20;
const VERSION: u16 = 1;
const KIND_JOB: u16 = 1;
const KIND_NOTICE: u16 = 2;
const KIND_JOB_IN: u16 = 3;
const KIND_REQUEST: u16 = 16;
const KIND_REPLY: u16 = 17;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// They do not start as our messages do.
    #[error("not a Lethe message")]
    NotOurs,
    /// A kind of message that was not asked for here.
    #[error("a message of kind {found}, expected kind {expected}")]
    OtherKind {
        /// Its kind.
        found: u16,
        /// What was asked for.
        expected: u16,
    },
    /// A newer or older Lethe wrote it.
    #[error("message version {0}, this program reads version 1; run the same release of lethe and lethe-worker")]
    UnknownVersion(u16),
    /// It uses something that this version does not have.
    #[error("message flags {0:#x} are unknown to this program")]
    UnknownFlags(u16),
    /// It is larger than a message may be.
    #[error("a message of {0} bytes, at most 1 MiB is allowed")]
    TooLarge(usize),
    /// Bytes are missing or left over.
    #[error("the message has {found} bytes of body, its header says {expected}")]
    Length {
        /// What is there.
        found: usize,
        /// What should be there.
        expected: usize,
    },
    /// Bytes have changed on the way.
    #[error("the message's checksum does not fit")]
    Checksum,
    /// The body is not what its version says.
    #[error("the message's body is invalid: {0}")]
    Invalid(String),
}

/// A job as a message.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_job(job: &Job) -> Result<Vec<u8>, Error> {
    match wire::JobInV1::of(job) {
        None => seal(KIND_JOB, &wire::JobV1::from(job)),
        Some(message) => seal(KIND_JOB_IN, &message),
    }
}

/// A job from a message.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_job(bytes: &[u8]) -> Result<Job, Error> {
    match open::<wire::JobV1>(KIND_JOB, bytes) {
        Err(Error::OtherKind { found: KIND_JOB_IN, .. }) => open::<wire::JobInV1>(KIND_JOB_IN, bytes)?.try_into(),
        job => job?.try_into(),
    }
}

/// A notice as a message.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_notice(notice: &Notice) -> Result<Vec<u8>, Error> {
    seal(KIND_NOTICE, &wire::NoticeV1::from(notice))
}

/// A notice from a message.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_notice(bytes: &[u8]) -> Result<Notice, Error> {
    Ok(open::<wire::NoticeV1>(KIND_NOTICE, bytes)?.into())
}

/// A request as a message.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, Error> {
    seal(KIND_REQUEST, &wire::RequestV1::from(request))
}

/// A request from a message.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_request(bytes: &[u8]) -> Result<Request, Error> {
    Ok(open::<wire::RequestV1>(KIND_REQUEST, bytes)?.into())
}

/// A reply as a message.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, Error> {
    seal(KIND_REPLY, &wire::ReplyV1::from(reply))
}

/// A reply from a message.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, Error> {
    Ok(open::<wire::ReplyV1>(KIND_REPLY, bytes)?.into())
}

fn seal<T: serde::Serialize>(kind: u16, body: &T) -> Result<Vec<u8>, Error> {
    let body = bincode::serde::encode_to_vec(body, bincode::config::standard()).map_err(|error| Error::Invalid(error.to_string()))?;
    if body.len() > MAX_BODY {
        return Err(Error::TooLarge(body.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    for field in [kind, VERSION, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&Digest::of(&body).as_bytes()[..16]);
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn open<T: serde::de::DeserializeOwned>(expected: u16, bytes: &[u8]) -> Result<T, Error> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(Error::NotOurs)?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if !header.starts_with(MAGIC) {
        return Err(Error::NotOurs);
    }
    let (kind, version) = (word(4), word(6));
    if kind != expected {
        return Err(Error::OtherKind { found: kind, expected });
    }
    if version != VERSION {
        return Err(Error::UnknownVersion(version));
    }
    if word(8) != 0 {
        return Err(Error::UnknownFlags(word(8)));
    }
    let length = u32::from_le_bytes([header[10], header[11], header[12], header[13]]) as usize;
    if length > MAX_BODY {
        return Err(Error::TooLarge(length));
    }
    if body.len() != length {
        return Err(Error::Length { found: body.len(), expected: length });
    }
    if header[14..30] != Digest::of(body).as_bytes()[..16] {
        return Err(Error::Checksum);
    }
    // The limit counts values as they are in memory, up to eight bytes for one of the body.
    let config = bincode::config::standard().with_limit::<{ 16 * MAX_BODY }>();
    let (value, read) = bincode::serde::decode_from_slice(body, config).map_err(|error| Error::Invalid(error.to_string()))?;
    if read == body.len() { Ok(value) } else { Err(Error::Invalid(format!("{} bytes are left over", body.len() - read))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::Address;
    use crate::job::{
        ArtifactRef, ConceptTask, Correction, EvaluateItem, JobId, Label, MethodSettings, ModelRef, MomentSource, MomentsPart,
        MomentsReduceTask, ProtectTask, RetainPart, ShardRef, SurveyTask, Task,
    };
    use crate::manifest::{Precision, Stop, Towers};
    use crate::queue::{Cause, Event};

    fn artifact(seed: u64) -> ArtifactRef {
        ArtifactRef { digest: Digest::of(&seed.to_le_bytes()), bytes: seed }
    }

    fn shard(seed: u64) -> ShardRef {
        let address = if seed.is_multiple_of(2) { "/data/shard.tar" } else { "s3://bucket/shard.tar" };
        ShardRef { digest: Digest::of(&seed.to_le_bytes()), bytes: seed, pairs: seed / 2, address: Address::parse(address).unwrap() }
    }

    fn job(task: Task) -> Job {
        let model = ModelRef {
            weights: Digest::of(b"w"),
            settings: Digest::of(b"s"),
            precision: Precision::Float32,
            address: Address::parse("gs://b/model").unwrap(),
        };
        Job { run: "emoji-100-0123456789ab".into(), algorithm: 1, model, task }
    }

    fn tasks(seed: u64) -> Vec<Task> {
        let method = MethodSettings {
            batch_size: 128,
            search_evaluations: 10,
            search_tolerance: 0.25,
            stop: if seed.is_multiple_of(3) { Stop::Fa1 } else { Stop::Fa5 },
            normalisation_gains: seed.is_multiple_of(2),
        };
        vec![
            Task::RetainGradient { shard: shard(seed), batch_size: 64, towers: Towers::Both },
            Task::RetainReduce { parts: (0..seed % 5).map(|i| RetainPart { sum: artifact(i), batches: i, loss_sum: 0.5 }).collect() },
            Task::Concept(Box::new(ConceptTask {
                concept: "pizza".into(),
                class: 3,
                forget: (0..seed % 4).map(shard).collect(),
                validation: vec![shard(9)],
                retain_gradient: artifact(1),
                classes: artifact(2),
                layers: None,
                method,
            })),
            Task::Evaluate {
                change: seed.is_multiple_of(2).then(|| artifact(5)),
                items: vec![
                    EvaluateItem { name: "validation".into(), shards: vec![shard(1)], label: Label::Caption },
                    EvaluateItem { name: "forget/pizza".into(), shards: vec![shard(2)], label: Label::Class(3) },
                ],
                classes: artifact(2),
            },
        ]
    }

    fn notices() -> Vec<Notice> {
        let events = [
            Event::Started,
            Event::Finished { seconds: 1.25 },
            Event::Failed { error: "disk full".into(), will_retry: true },
            Event::Buried { error: "no such file".into(), cause: Cause::Input },
        ];
        let notice = |event| Notice { run: "r".into(), job: JobId::from(Digest::of(b"j")), attempt: 2, worker: "w/0".into(), event };
        events.into_iter().map(notice).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Bytes that version 1 wrote when it was made: they must be read forever, and written the same.
    #[test]
    fn version_1_is_frozen() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/golden-v1.txt");
        let jobs = tasks(6).into_iter().map(|task| encode_job(&job(task)).unwrap());
        let found: String = jobs.chain(notices().iter().map(|n| encode_notice(n).unwrap())).map(|bytes| hex(&bytes) + "\n").collect();
        let expected = std::fs::read_to_string(folder).unwrap();
        assert!(found == expected, "the bytes of version 1 have changed; make a version 2 instead");
    }

    fn requests() -> Vec<Request> {
        vec![
            Request::Submit { submission: "{}".into() },
            Request::Status { run: None },
            Request::Status { run: Some("r".into()) },
            Request::Cancel { run: "r".into() },
            Request::Resume { run: "r".into() },
        ]
    }

    fn replies() -> Vec<Reply> {
        vec![Reply::Done { json: "{}".into() }, Reply::Refused { exit_code: 2, problem: "no such run".into() }]
    }

    #[test]
    fn requests_and_replies_survive_and_are_frozen() {
        let mut found = String::new();
        for request in requests() {
            let bytes = encode_request(&request).unwrap();
            found += &(hex(&bytes) + "\n");
            assert_eq!(decode_request(&bytes).unwrap(), request);
            assert!(decode_reply(&bytes).is_err());
        }
        for reply in replies() {
            let bytes = encode_reply(&reply).unwrap();
            found += &(hex(&bytes) + "\n");
            assert_eq!(decode_reply(&bytes).unwrap(), reply);
        }
        let expected = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/golden-control-v1.txt")).unwrap();
        assert!(found == expected, "the bytes of version 1 have changed; make a version 2 instead:\n{found}");
        assert!(matches!(encode_reply(&Reply::Done { json: "x".repeat(MAX_BODY + 1) }), Err(Error::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn jobs_survive(seed in 0u64..1000) {
            let mut tasks = tasks(seed);
            // One that only some layers may serve is another job.
            let mut among = tasks[2].clone();
            if let Task::Concept(task) = &mut among {
                task.layers = Some((0..seed % 3).map(|i| format!("layer.{i}")).collect());
            }
            prop_assert_ne!(job(among.clone()).id(), job(tasks[2].clone()).id());
            tasks.push(among);
            let layers = (0..seed % 4).map(|i| format!("layer.{i}")).collect();
            tasks.push(Task::Moments(MomentSource::ImagesAlone(shard(seed))));
            let towers = [Towers::Text, Towers::Vision, Towers::Both][(seed % 3) as usize];
            tasks.push(Task::RetainGradient { shard: shard(seed), batch_size: 64, towers });
            if let Task::Concept(task) = &tasks[2] {
                tasks.push(Task::Survey(Box::new(SurveyTask {
                    concept: task.concept.clone(),
                    forget: task.forget.clone(),
                    retain_gradient: task.retain_gradient,
                    folds: vec![artifact(seed)],
                    towers,
                    method: task.method.clone(),
                })));
            }
            tasks.push(Task::Protect(ProtectTask { texts: artifact(seed), layers, inverses: (0..seed % 3).map(artifact).collect() }));
            for task in tasks {
                let job = job(task);
                let read = decode_job(&encode_job(&job).unwrap()).unwrap();
                prop_assert_eq!(read.id(), job.id());
                prop_assert_eq!(&read, &job);
                for precision in [Precision::Tf32, Precision::Bfloat16] {
                    let mut other = job.clone();
                    other.model.precision = precision;
                    prop_assert_ne!(other.id(), job.id());
                    prop_assert_eq!(decode_job(&encode_job(&other).unwrap()).unwrap(), other);
                }
            }
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode_job(&bytes).is_err() && decode_notice(&bytes).is_err());
        }

        #[test]
        fn a_changed_bit_is_found(seed in 0u64..100, bit in any::<prop::sample::Index>()) {
            let mut bytes = encode_job(&job(tasks(seed).swap_remove(2))).unwrap();
            let bit = bit.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_job(&bytes).is_err());
        }

        #[test]
        fn bodies_that_pass_the_checksum_are_still_checked(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = Vec::from(*MAGIC);
            for field in [KIND_JOB, VERSION, 0] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&Digest::of(&body).as_bytes()[..16]);
            bytes.extend_from_slice(&body);
            let _ = decode_job(&bytes);
        }
    }

    #[test]
    fn what_can_be_written_can_be_read() {
        let parts = |count: u64| Task::RetainReduce {
            parts: (0..count).map(|i| RetainPart { sum: artifact(i), batches: i, loss_sum: 0.5 }).collect(),
        };
        let large = job(parts(22_000));
        let bytes = encode_job(&large).unwrap();
        assert!(bytes.len() > MAX_BODY * 9 / 10);
        assert_eq!(decode_job(&bytes).unwrap(), large);
        assert!(matches!(encode_job(&job(parts(40_000))), Err(Error::TooLarge(_))));
    }

    #[test]
    fn counts_that_cannot_be_added_up_are_refused() {
        let part = |items| MomentsPart { sum: artifact(1), items };
        let moments = |first, correction| {
            let (paired, unlabelled) = (vec![part(first), part(1)], vec![part(2)]);
            job(Task::MomentsReduce(MomentsReduceTask { paired, unlabelled, unlabelled_weight: 0.5, correction }))
        };
        for correction in [Correction::Ridge { inputs: 0.001, outputs: 0.1 }, Correction::NullSpace(0.01)] {
            let good = moments(3, correction);
            assert_eq!(decode_job(&encode_job(&good).unwrap()).unwrap(), good);
            assert!(matches!(decode_job(&encode_job(&moments(u64::MAX, correction)).unwrap()), Err(Error::Invalid(_))));
        }
        let batches = Task::RetainReduce { parts: vec![RetainPart { sum: artifact(1), batches: u64::MAX, loss_sum: 0.5 }] };
        assert!(matches!(decode_job(&encode_job(&job(batches)).unwrap()), Err(Error::Invalid(_))));
    }

    #[test]
    fn notices_survive() {
        for notice in notices() {
            assert_eq!(decode_notice(&encode_notice(&notice).unwrap()).unwrap(), notice);
        }
    }

    #[test]
    fn each_damage_has_its_name() {
        let good = encode_job(&job(tasks(1).swap_remove(0))).unwrap();
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            decode_job(&bytes).unwrap_err()
        };
        assert_eq!(decode_job(b"hello").unwrap_err(), Error::NotOurs);
        assert_eq!(with(0, b'X'), Error::NotOurs);
        assert_eq!(with(4, 2), Error::OtherKind { found: 2, expected: 1 });
        assert_eq!(with(6, 9), Error::UnknownVersion(9));
        assert_eq!(with(8, 1), Error::UnknownFlags(1));
        assert_eq!(with(13, 1), Error::TooLarge(usize::from(good[10]) + usize::from(good[11]) * 256 + (1 << 24)));
        assert!(matches!(decode_job(&good[..good.len() - 1]).unwrap_err(), Error::Length { .. }));
        assert!(matches!(decode_job(&[&good[..], b"x"].concat()).unwrap_err(), Error::Length { .. }));
        assert_eq!(with(HEADER, 0xff), Error::Checksum);
    }
}
