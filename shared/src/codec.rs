//! The binary envelope of all messages on a queue.
//!
//! ```text
//! magic "LTHE" · kind u16 · version u16 · flags u16 · length u32 · first 16 bytes of SHA-256(body) · body
//! ```
//!
//! Numbers are little-endian; the body is bincode of a frozen struct of that kind and version
//! (`codec/wire.rs`), at most 1 MiB. bincode does not describe itself: the version identifies the
//! struct, and a reader rejects unknown versions. The body of a job contains kind and version of
//! its task, whose spec is bincode as well ([`task`](crate::task)). Messages are never stored:
//! durable data is JSON and safetensors in the object store.

mod error;
mod wire;

pub use self::error::Error;
use crate::binary::{self, MAX_BODY};
use crate::digest::Digest;
use crate::job::Job;
use crate::message::{Notice, Reply, Request};

const MAGIC: &[u8; 4] = b"LTHE";
const HEADER: usize = 4 + 2 + 2 + 2 + 4 + 16;

/// A kind of message and the version of it that this program writes and reads.
#[derive(Debug, Clone, Copy)]
struct Message {
    kind: u16,
    version: u16,
}

const JOB: Message = Message { kind: 1, version: 2 };
const NOTICE: Message = Message { kind: 2, version: 2 };
const REQUEST: Message = Message { kind: 16, version: 1 };
const REPLY: Message = Message { kind: 17, version: 1 };

/// Encodes a job.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_job(job: &Job) -> Result<Vec<u8>, Error> {
    seal(JOB, &wire::JobV2::of(job)?)
}

/// Decodes a job.
///
/// # Errors
/// When the bytes are anything else; [`Error::is_foreign`] tells whether another version may read
/// them.
pub fn decode_job(bytes: &[u8]) -> Result<Job, Error> {
    open::<wire::JobV2>(JOB, bytes)?.try_into()
}

/// Encodes a notice.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_notice(notice: &Notice) -> Result<Vec<u8>, Error> {
    seal(NOTICE, &wire::NoticeV2::from(notice))
}

/// Decodes a notice.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_notice(bytes: &[u8]) -> Result<Notice, Error> {
    Ok(open::<wire::NoticeV2>(NOTICE, bytes)?.into())
}

/// Encodes a request.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, Error> {
    seal(REQUEST, &wire::RequestV1::from(request))
}

/// Decodes a request.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_request(bytes: &[u8]) -> Result<Request, Error> {
    Ok(open::<wire::RequestV1>(REQUEST, bytes)?.into())
}

/// Encodes a reply.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, Error> {
    seal(REPLY, &wire::ReplyV1::from(reply))
}

/// Decodes a reply.
///
/// # Errors
/// When the bytes are anything else.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, Error> {
    Ok(open::<wire::ReplyV1>(REPLY, bytes)?.into())
}

fn seal<T: serde::Serialize>(message: Message, body: &T) -> Result<Vec<u8>, Error> {
    let body = binary::encode(body).map_err(Error::Invalid)?;
    if body.len() > MAX_BODY {
        return Err(Error::TooLarge(body.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    for field in [message.kind, message.version, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&Digest::of(&body).as_bytes()[..16]);
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn open<T: serde::de::DeserializeOwned>(expected: Message, bytes: &[u8]) -> Result<T, Error> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(Error::NotOurs)?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if !header.starts_with(MAGIC) {
        return Err(Error::NotOurs);
    }
    let (kind, version) = (word(4), word(6));
    if kind != expected.kind {
        return Err(Error::OtherKind { found: kind, expected: expected.kind });
    }
    if version != expected.version {
        return Err(Error::UnknownVersion { found: version, expected: expected.version });
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
    binary::decode(body).map_err(Error::Invalid)
}

#[cfg(test)]
mod tests;
