//! Messages of every kind of envelope: jobs, notices, requests, replies.

use std::sync::LazyLock;

use lethe_shared::codec;
use lethe_shared::digest::Digest;
use lethe_shared::job::Job;

use crate::bytes;
use crate::draw::Draw;
use crate::harness::{Harness, Outcome, hold, refused, same};

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![Harness {
        name: "message",
        // bincode may make 16 MiB of a message of 1 MiB.
        memory: |input| (4 << 20) + 64 * input.len(),
        seeds: || MESSAGES.clone(),
        generate,
        check,
    }]
}

/// Bytes of an envelope before its body.
const HEADER: usize = 30;
const KINDS: [u16; 6] = [1, 2, 16, 17, 0, 3];

/// Messages of all kinds, as this version writes them.
static MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let golden = concat!(
        include_str!("../../../../shared/src/codec/golden-v2.txt"),
        include_str!("../../../../shared/src/codec/golden-control-v1.txt")
    );
    let byte = |line: &str, at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("digits");
    golden
        .lines()
        .map(|line| (0..line.len()).step_by(2).map(|at| byte(line, at)).collect())
        .collect()
});

/// Returns messages of all kinds, as this version writes them.
pub(super) fn messages() -> &'static [Vec<u8>] {
    &MESSAGES
}

/// Writes length and checksum of the body.
fn seal(message: &mut [u8]) {
    let Some((header, body)) = message.split_at_mut_checked(HEADER) else { return };
    header[10..14].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[14..30].copy_from_slice(&Digest::of(body).as_bytes()[..16]);
}

fn generate(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut message = draw.pick(&MESSAGES).clone();
    if draw.one_in(4)
        && let Ok(mut job) = codec::decode_job(&message)
    {
        change_job(&mut job, draw);
        let digests: Vec<Digest> = job.locations.files.keys().copied().collect();
        match codec::encode_job(&job) {
            Ok(bytes) => message = bytes,
            Err(_) => return message,
        }
        if draw.one_in(3) && digests.len() > 1 {
            // The same file at two places.
            let (one, other) = (digests[0].as_bytes(), digests[1].as_bytes());
            let at: Vec<usize> = (HEADER..message.len() - 31)
                .filter(|&at| message[at..].starts_with(other))
                .collect();
            if let Some(&at) = at.last() {
                message[at..at + 32].copy_from_slice(one);
            }
        }
    }
    if draw.one_in(12) {
        message[4..6].copy_from_slice(&draw.pick(&KINDS).to_le_bytes());
    }
    if draw.one_in(2) {
        let mut body = message.split_off(HEADER);
        bytes::mutate(&mut body, draw);
        message.extend(body);
    }
    seal(&mut message);
    if draw.one_in(24) {
        let at = draw.below(HEADER);
        message[at] ^= 1 << draw.below(8);
    }
    message
}

fn change_job(job: &mut Job, draw: &mut Draw<'_>) {
    match draw.below(5) {
        0 => job.run = draw.text(),
        1 => job.concept = Some(draw.text()),
        2 => job.arithmetic = Some(draw.text()),
        _ => {
            for _ in 0..=draw.below(3) {
                let digest = Digest::of(&draw.bytes(1));
                let address = job.locations.model.clone();
                job.locations.files.insert(digest, address);
            }
        }
    }
}

/// Checks that a message is read and written as the same bytes once it was written by this version.
/// Numbers that are not finite are not equal to themselves, so bytes are compared.
fn check_kind<T: std::fmt::Debug>(
    input: &[u8],
    decode: fn(&[u8]) -> Result<T, codec::Error>,
    encode: fn(&T) -> Result<Vec<u8>, codec::Error>,
) -> Result<Option<T>, String> {
    let message = match decode(input) {
        Ok(message) => message,
        Err(error) => return refused(error).map(|_| None),
    };
    let written = encode(&message).map_err(|error| format!("was accepted, but {error}"))?;
    let read = decode(&written).map_err(|error| format!("written again: {error}"))?;
    same("messages", &format!("{message:?}"), &format!("{read:?}"))?;
    let again = encode(&read).map_err(|error| format!("written again: {error}"))?;
    same("bytes of messages", &written, &again)?;
    Ok(Some(message))
}

fn check(input: &[u8]) -> Result<Outcome, String> {
    let job = check_kind(input, codec::decode_job, codec::encode_job)?;
    if let Some(job) = &job {
        hold(!job.kind().is_empty() && !job.label().is_empty(), || format!("{job:?}"))?;
        let again = codec::decode_job(&codec::encode_job(job).map_err(|error| error.to_string())?);
        same("ids", &again.map(|again| again.id()), &Ok(job.id()))?;
        for file in job.task.files() {
            let _ = job.locations.name(&file);
        }
    }
    let accepted = [
        job.is_some(),
        check_kind(input, codec::decode_notice, codec::encode_notice)?.is_some(),
        check_kind(input, codec::decode_request, codec::encode_request)?.is_some(),
        check_kind(input, codec::decode_reply, codec::encode_reply)?.is_some(),
    ];
    match accepted.iter().filter(|&&accepted| accepted).count() {
        0 => Ok(Outcome::Refused),
        1 => Ok(Outcome::Accepted),
        _ => Err("was accepted as messages of two kinds".to_owned()),
    }
}
