//! Dead letters: written by workers for what they cannot do, by the coordinator for what nobody finished.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};

use super::super::{Cause, DeadLetter, Error};
use super::names;
use super::publish::{Message, publish};
use crate::codec;
use crate::digest::Digest;
use crate::job::Job;

/// Longest error kept in a letter, bytes.
const MAX_ERROR: usize = 4096;

const SUBJECT: &str = "Lethe-Subject";
const ATTEMPTS: &str = "Lethe-Attempts";
const CAUSE: &str = "Lethe-Cause";
const ERROR: &str = "Lethe-Error";
const WORKER: &str = "Lethe-Worker";

/// A dead letter as it lies in the stream: the message's own bytes, readable or not, and what is known about its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// What names it: [`JetStreamQueue::replay`](super::JetStreamQueue::replay) and
    /// [`drop_letter`](super::JetStreamQueue::drop_letter) take this.
    pub name: String,
    /// The job, when the message is one that this program reads.
    pub job: Option<Job>,
    /// Deliveries before the end.
    pub attempts: u32,
    /// The last error.
    pub error: String,
    /// Whose fault it is.
    pub cause: Cause,
    /// Who buried it.
    pub worker: String,
    /// When, seconds since 1970.
    pub time: i64,
    pub(super) subject: String,
    pub(super) body: Vec<u8>,
}

/// What is known about the end of a message.
#[derive(Debug, Clone)]
pub(super) struct End<'a> {
    pub(super) attempts: u32,
    pub(super) error: &'a str,
    pub(super) cause: Cause,
    pub(super) worker: &'a str,
}

/// Where the letter of a message goes: under its run and job where the subject names them.
fn place(subject: &str, body: &[u8]) -> String {
    let parts: Vec<&str> = subject.split('.').collect();
    match parts[..] {
        ["lethe", "jobs", run, _, job] if !run.is_empty() && !job.is_empty() && job.len() <= 64 => format!("lethe.dead.{run}.{job}"),
        _ => format!("lethe.dead.{}.{}", names::NOBODY, Digest::of(body)),
    }
}

/// Writes a letter. `sequence` is the message's in its stream: of several who bury it, one letter remains.
pub(super) async fn bury(context: &Context, subject: &str, sequence: u64, body: Vec<u8>, end: &End<'_>) -> Result<(), Error> {
    let cause = match end.cause {
        Cause::Input => "input",
        Cause::Circumstances => "circumstances",
    };
    let mut headers = HeaderMap::new();
    headers.insert(SUBJECT, one_line(subject).as_str());
    headers.insert(ATTEMPTS, end.attempts.to_string().as_str());
    headers.insert(CAUSE, cause);
    headers.insert(ERROR, one_line(end.error).as_str());
    headers.insert(WORKER, one_line(end.worker).as_str());
    let place = place(subject, &body);
    let id = Some(format!("{place}/{sequence}/{}", Digest::of(&body).short()));
    publish(context, Message { subject: place, headers, body, id, after: None }).await.map(drop)
}

/// What a header can hold.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line.trim().to_owned()
}

/// The letters under a subject, oldest first.
pub(super) async fn read(context: &Context, subject: &str) -> Result<Vec<Letter>, Error> {
    let stream = context.get_stream_no_info(names::DEAD).await.map_err(|error| failed(&error))?;
    let (mut letters, mut sequence) = (Vec::new(), 1);
    loop {
        let found = stream.direct_get_builder().next_by_subject(subject).sequence(sequence).send().await;
        let message = match found {
            Ok(message) => message,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(letters),
            Err(error) => return Err(failed(&error)),
        };
        sequence = message.sequence + 1;
        letters.push(letter(message));
    }
}

/// One letter by its name.
pub(super) async fn get(context: &Context, name: &str) -> Result<Option<Letter>, Error> {
    let stream = context.get_stream_no_info(names::DEAD).await.map_err(|error| failed(&error))?;
    match stream.direct_get_last_for_subject(format!("lethe.dead.{name}")).await {
        Ok(message) => Ok(Some(letter(message))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

/// Forgets the letters under a subject.
pub(super) async fn forget(context: &Context, subject: &str) -> Result<u64, Error> {
    let stream = context.get_stream_no_info(names::DEAD).await.map_err(|error| failed(&error))?;
    stream.purge().filter(subject).await.map(|purged| purged.purged).map_err(|error| failed(&error))
}

fn letter(message: StreamMessage) -> Letter {
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    Letter {
        name: message.subject.as_str().trim_start_matches("lethe.dead.").to_owned(),
        job: codec::decode_job(&message.payload).ok(),
        attempts: header(ATTEMPTS).parse().unwrap_or(0),
        error: header(ERROR),
        cause: if header(CAUSE) == "input" { Cause::Input } else { Cause::Circumstances },
        worker: header(WORKER),
        time: message.time.unix_timestamp(),
        subject: header(SUBJECT),
        body: message.payload.to_vec(),
    }
}

impl Letter {
    /// As the queue's users see it; a letter that is no job of ours is none of theirs.
    pub(super) fn into_dead_letter(self) -> Option<DeadLetter> {
        let Self { job, attempts, error, cause, .. } = self;
        job.map(|job| DeadLetter { job, attempts, error, cause })
    }
}

/// Buries a message that was delivered as often as it may be: the server keeps such a message and gives it to nobody.
pub(super) async fn bury_stuck(context: &Context, sequence: u64, attempts: u32) -> Result<Option<StreamMessage>, Error> {
    let stream = context.get_stream_no_info(names::JOBS).await.map_err(|error| failed(&error))?;
    let message = match stream.get_raw_message(sequence).await {
        Ok(message) => message,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let end =
        End { attempts, error: "delivered as often as a job may be, and never finished", cause: Cause::Circumstances, worker: "queue" };
    bury(context, &message.subject, sequence, message.payload.to_vec(), &end).await?;
    match stream.delete_message(sequence).await {
        Ok(_) => Ok(Some(message)),
        // Someone was faster.
        Err(_) if stream.get_raw_message(sequence).await.is_err() => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("dead letters: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_a_place_and_every_error_one_line() {
        assert_eq!(place("lethe.jobs.r-1.concept.ab12", b""), "lethe.dead.r-1.ab12");
        assert!(place("lethe.jobs.r", b"x").starts_with("lethe.dead.~."));
        assert!(place("lethe.jobs.a.b.c.d", b"x").starts_with("lethe.dead.~."));
        assert_eq!(one_line(" a\r\nb\0 "), "a  b");
        assert!(one_line(&"ä".repeat(5000)).len() <= MAX_ERROR + 3);
    }
}
