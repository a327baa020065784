use proptest::prelude::*;

use super::*;
use crate::fault::{Class, Fault, Origin, StoredObject};
use crate::message::Event;
use crate::reference::JobId;
use crate::task::tests::{artifact, jobs};
use crate::task::{
    AnyTask, Correction, DecodeError, MomentsPart, MomentsReduce, RetainPart, RetainReduce,
};

fn notices() -> Vec<Notice> {
    let fault = |class| Fault::new(class, "what happened");
    let digest = Digest::of(b"x");
    let events = [
        Event::Started,
        Event::Finished { seconds: 1.25 },
        Event::Failed { fault: fault(Class::Transient), will_retry: true },
        Event::Failed { fault: fault(Class::Environment(Origin::Surroundings)), will_retry: true },
        Event::Failed { fault: fault(Class::Environment(Origin::Computation)), will_retry: true },
        Event::Failed { fault: fault(Class::Environment(Origin::Device)), will_retry: false },
        Event::Failed { fault: fault(Class::Foreign), will_retry: true },
        Event::Failed {
            fault: fault(Class::Corrupt(StoredObject::Artifact(digest))),
            will_retry: true,
        },
        Event::Failed {
            fault: fault(Class::Corrupt(StoredObject::Outcome(digest.into()))),
            will_retry: true,
        },
        Event::DeadLettered { fault: fault(Class::Input) },
        Event::Paused { reason: "permission denied".into() },
        Event::Resumed,
    ];
    let notice = |event| Notice {
        run: "r".into(),
        job: JobId::from(Digest::of(b"j")),
        attempt: 2,
        worker: "w/0".into(),
        event,
    };
    events.into_iter().map(notice).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden(name: &str, found: &str) {
    let path = format!("{}/src/codec/{name}", env!("CARGO_MANIFEST_DIR"));
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{name}: bytes that earlier releases wrote have changed; raise a version instead:\n{found}"
    );
}

/// Bytes as version 2 wrote them when it was made: they must be read for ever, and written the
/// same.
#[test]
fn version_2_is_frozen() {
    let jobs = jobs(6).into_iter().map(|job| encode_job(&job).unwrap());
    let found: String = jobs
        .chain(notices().iter().map(|n| encode_notice(n).unwrap()))
        .map(|bytes| hex(&bytes) + "\n")
        .collect();
    golden("golden-v2.txt", &found);
}

/// Messages of version 1 belong to workers of that version: they are refused as foreign, not as
/// broken.
#[test]
fn messages_of_version_1_are_left_for_others() {
    let golden =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/golden-v1.txt"))
            .unwrap();
    let bytes = |line: &str| {
        (0..line.len() / 2)
            .map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).unwrap())
            .collect::<Vec<u8>>()
    };
    let mut seen = 0;
    for line in golden.lines() {
        let error = decode_job(&bytes(line)).unwrap_err();
        assert!(error.is_foreign(), "{error}");
        seen += usize::from(matches!(error, Error::UnknownVersion { found: 1, expected: 2 }));
    }
    assert!(seen > 3);
}

/// What the next release may send: a kind, or a version of one, that this program does not know.
#[test]
fn unknown_kinds_and_versions_are_foreign() {
    let job = jobs(3).swap_remove(0);
    let bytes = encode_job(&job).unwrap();
    let reseal = |body: &[u8]| {
        let mut message = bytes[..10].to_vec();
        message.extend_from_slice(&(body.len() as u32).to_le_bytes());
        message.extend_from_slice(&Digest::of(body).as_bytes()[..16]);
        message.extend_from_slice(body);
        message
    };
    let body = &bytes[HEADER..];
    let kind = job.kind().as_bytes();
    let at = body.windows(kind.len()).position(|window| window == kind).unwrap();
    let mut renamed = body.to_vec();
    renamed[at] = b'x';
    let mut raised = body.to_vec();
    raised[at + kind.len()] += 1;
    for body in [renamed, raised] {
        let error = decode_job(&reseal(&body)).unwrap_err();
        assert!(error.is_foreign() && error.to_string().contains("same release"), "{error}");
    }
    // The same bytes, resealed and otherwise untouched, are the job.
    assert_eq!(decode_job(&reseal(body)).unwrap(), job);
}

/// The kind of a job that another program has sent is shown in logs.
#[test]
fn an_unknown_kind_can_be_shown() {
    let error = AnyTask::decode("\u{1b}]0;x\u{7}", 1, &[]).unwrap_err().to_string();
    assert!(error.contains(r"`\u{1b}]0;x\u{7}`"), "{error}");
}

/// The second address would replace the first one, or the first stay: programs may differ.
#[test]
fn a_file_has_one_address() {
    let bytes = encode_job(&jobs(2).swap_remove(0)).unwrap();
    let (one, other) = (Digest::of(&0u64.to_le_bytes()), Digest::of(&1u64.to_le_bytes()));
    let at = |digest: &Digest| {
        let last = bytes.windows(32).rposition(|window| window == digest.as_bytes());
        last.unwrap()
    };
    let mut body = bytes.clone();
    body[at(&other)..][..32].copy_from_slice(one.as_bytes());
    let mut message = body[..HEADER].to_vec();
    message[14..30].copy_from_slice(&Digest::of(&body[HEADER..]).as_bytes()[..16]);
    message.extend(&body[HEADER..]);
    let error = decode_job(&message).unwrap_err();
    assert_eq!(error, Error::Invalid("a file is named twice".to_owned()));
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
    vec![
        Reply::Done { json: "{}".into() },
        Reply::Refused { exit_code: 2, problem: "no such run".into() },
    ]
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
    golden("golden-control-v1.txt", &found);
    assert!(matches!(
        encode_reply(&Reply::Done { json: "x".repeat(MAX_BODY + 1) }),
        Err(Error::TooLarge(_))
    ));
}

proptest! {
    #[test]
    fn jobs_survive(seed in 0u64..1000) {
        for job in jobs(seed) {
            let read = decode_job(&encode_job(&job).unwrap()).unwrap();
            prop_assert_eq!(read.id(), job.id());
            prop_assert_eq!(&read, &job);
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_job(&bytes).is_err() && decode_notice(&bytes).is_err());
    }

    #[test]
    fn a_changed_bit_is_found(seed in 0u64..100, bit in any::<prop::sample::Index>()) {
        let mut bytes = encode_job(&jobs(seed).swap_remove(2)).unwrap();
        let bit = bit.index(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode_job(&bytes).is_err());
    }

    #[test]
    fn bodies_that_pass_the_checksum_are_still_checked(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = Vec::from(*MAGIC);
        for field in [JOB.kind, JOB.version, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&Digest::of(&body).as_bytes()[..16]);
        bytes.extend_from_slice(&body);
        let _ = decode_job(&bytes);
    }

    #[test]
    fn specs_of_any_bytes_are_tasks_or_errors(kind in 0..AnyTask::KINDS.len(), spec in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (kind, version) = AnyTask::KINDS[kind];
        let _ = AnyTask::decode(kind, version, &spec);
    }
}

fn with_task(task: impl Into<AnyTask>) -> Job {
    Job { task: task.into(), ..jobs(1).remove(0) }
}

#[test]
fn messages_of_every_size_up_to_the_limit_are_read() {
    let parts = |count: u64| RetainReduce {
        parts: (0..count)
            .map(|i| RetainPart { sum: artifact(i), batches: i, loss_sum: 0.5 })
            .collect(),
    };
    let large = with_task(parts(20_000));
    let bytes = encode_job(&large).unwrap();
    assert!(bytes.len() > MAX_BODY * 8 / 10, "{}", bytes.len());
    assert_eq!(decode_job(&bytes).unwrap(), large);
    assert!(matches!(encode_job(&with_task(parts(40_000))), Err(Error::TooLarge(_))));
}

#[test]
fn counts_that_cannot_be_added_up_are_refused() {
    let part = |items| MomentsPart { sum: artifact(1), items };
    let moments = |first, correction| {
        let (paired, unlabelled) = (vec![part(first), part(1)], vec![part(2)]);
        with_task(MomentsReduce {
            layer: "layer.0".into(),
            paired,
            unlabelled,
            unlabelled_weight: 0.5,
            correction,
            cost: 1.0,
            cross_fit: true,
        })
    };
    for correction in
        [Correction::Ridge { inputs: 0.001, outputs: 0.1 }, Correction::NullSpace(0.01)]
    {
        let good = moments(3, correction);
        assert_eq!(decode_job(&encode_job(&good).unwrap()).unwrap(), good);
        let bad = decode_job(&encode_job(&moments(u64::MAX, correction)).unwrap()).unwrap_err();
        assert!(matches!(bad, Error::Task(DecodeError::Invalid(_))) && !bad.is_foreign());
    }
    let batches = RetainReduce {
        parts: vec![RetainPart { sum: artifact(1), batches: u64::MAX, loss_sum: 0.5 }],
    };
    assert!(decode_job(&encode_job(&with_task(batches)).unwrap()).is_err());
}

#[test]
fn notices_survive() {
    for notice in notices() {
        assert_eq!(decode_notice(&encode_notice(&notice).unwrap()).unwrap(), notice);
    }
}

#[test]
fn each_damage_has_its_name() {
    let good = encode_job(&jobs(1).swap_remove(0)).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        decode_job(&bytes).unwrap_err()
    };
    assert_eq!(decode_job(b"hello").unwrap_err(), Error::NotOurs);
    assert_eq!(with(0, b'X'), Error::NotOurs);
    assert_eq!(with(4, 2), Error::OtherKind { found: 2, expected: 1 });
    assert_eq!(with(6, 9), Error::UnknownVersion { found: 9, expected: 2 });
    assert_eq!(with(8, 1), Error::UnknownFlags(1));
    assert_eq!(
        with(13, 1),
        Error::TooLarge(usize::from(good[10]) + usize::from(good[11]) * 256 + (1 << 24))
    );
    assert!(matches!(decode_job(&good[..good.len() - 1]).unwrap_err(), Error::Length { .. }));
    assert!(matches!(decode_job(&[&good[..], b"x"].concat()).unwrap_err(), Error::Length { .. }));
    assert_eq!(with(HEADER, 0xff), Error::Checksum);
}
