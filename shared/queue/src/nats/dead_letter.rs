//! Dead letters. Workers write one for a job that must not be retried, coordinators for a job that
//! reached the delivery limit.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use lethe_shared::codec;
use lethe_shared::digest::Digest;
use lethe_shared::fault::{Class, Fault};
use lethe_shared::job::Job;
use lethe_shared::message::DeadLetter;

use super::names;
use super::publish::{Message, publish};
use crate::error::Error;

/// Longest error message in a dead letter, in bytes.
const MAX_ERROR: usize = 4096;

const SUBJECT: &str = "Lethe-Subject";
const ATTEMPTS: &str = "Lethe-Attempts";
const CLASS: &str = "Lethe-Fault";
const ERROR: &str = "Lethe-Error";
const WORKER: &str = "Lethe-Worker";

/// A dead letter as it is stored: the original message, whether or not it can be read, and its last
/// fault.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDeadLetter {
    /// Its name: [`JetStreamQueue::replay`](super::queue::JetStreamQueue::replay) and
    /// [`drop_stored_dead_letter`](super::queue::JetStreamQueue::drop_stored_dead_letter) take
    /// this.
    pub name: String,
    /// The job, when this program can read the message.
    pub job: Option<Job>,
    /// Number of deliveries.
    pub attempts: u32,
    /// The last fault.
    pub fault: Fault,
    /// The worker that wrote the dead letter, or `queue`.
    pub worker: String,
    /// When it was written, in seconds since 1970.
    pub time: i64,
    pub(super) subject: String,
    pub(super) body: Vec<u8>,
}

/// How a message ended.
#[derive(Debug, Clone)]
pub(super) struct End<'a> {
    pub(super) attempts: u32,
    pub(super) fault: &'a Fault,
    pub(super) worker: &'a str,
}

/// Returns the subject for the dead letter of a message: with run and job, when the subject of the
/// message names them.
fn place(subject: &str, body: &[u8]) -> String {
    let parts: Vec<&str> = subject.split('.').collect();
    match parts[..] {
        ["lethe", "jobs", run, _, job] if !run.is_empty() && !job.is_empty() && job.len() <= 64 => {
            format!("lethe.dead.{run}.{job}")
        }
        _ => format!("lethe.dead.{}.{}", names::NOBODY, Digest::of(body)),
    }
}

/// Writes a dead letter. `sequence` is the sequence of the message in its stream: when several
/// processes write a dead letter for one message, one remains.
pub(super) async fn write(
    context: &Context,
    subject: &str,
    sequence: u64,
    body: Vec<u8>,
    end: &End<'_>,
) -> Result<(), Error> {
    let class = serde_json::to_string(&end.fault.class).map_err(|error| failed(&error))?;
    let mut headers = HeaderMap::new();
    headers.insert(SUBJECT, one_line(subject).as_str());
    headers.insert(ATTEMPTS, end.attempts.to_string().as_str());
    headers.insert(CLASS, class.as_str());
    headers.insert(ERROR, one_line(&end.fault.message).as_str());
    headers.insert(WORKER, one_line(end.worker).as_str());
    let place = place(subject, &body);
    let id = Some(format!("{place}/{sequence}/{}", Digest::of(&body).short()));
    publish(context, Message { subject: place, headers, body, id, after: None }).await.map(drop)
}

/// Makes a text fit into a header.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line.trim().to_owned()
}

/// Returns the dead letters under a subject, oldest first.
pub(super) async fn read(context: &Context, subject: &str) -> Result<Vec<StoredDeadLetter>, Error> {
    let stream = context.get_stream_no_info(names::DEAD).await.map_err(|error| failed(&error))?;
    let (mut letters, mut sequence) = (Vec::new(), 1);
    loop {
        let found =
            stream.direct_get_builder().next_by_subject(subject).sequence(sequence).send().await;
        let message = match found {
            Ok(message) => message,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(letters),
            Err(error) => return Err(failed(&error)),
        };
        sequence = message.sequence + 1;
        letters.push(letter(message));
    }
}

/// Returns one dead letter by its name.
pub(super) async fn get(context: &Context, name: &str) -> Result<Option<StoredDeadLetter>, Error> {
    let stream = context.get_stream_no_info(names::DEAD).await.map_err(|error| failed(&error))?;
    match stream.direct_get_last_for_subject(format!("lethe.dead.{name}")).await {
        Ok(message) => Ok(Some(letter(message))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

/// Removes the dead letters under a subject, and returns how many there were.
pub(super) async fn forget(context: &Context, subject: &str) -> Result<u64, Error> {
    let stream = context.get_stream_no_info(names::DEAD).await.map_err(|error| failed(&error))?;
    stream.purge().filter(subject).await.map(|purged| purged.purged).map_err(|error| failed(&error))
}

fn letter(message: StreamMessage) -> StoredDeadLetter {
    let header = |name: &str| {
        message.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default()
    };
    StoredDeadLetter {
        name: message.subject.as_str().trim_start_matches("lethe.dead.").to_owned(),
        job: codec::decode_job(&message.payload).ok(),
        attempts: header(ATTEMPTS).parse().unwrap_or(0),
        // A class of another version proves nothing about the input.
        fault: Fault::new(
            serde_json::from_str(&header(CLASS)).unwrap_or(Class::Transient),
            header(ERROR),
        ),
        worker: header(WORKER),
        time: message.time.unix_timestamp(),
        subject: header(SUBJECT),
        body: message.payload.to_vec(),
    }
}

impl StoredDeadLetter {
    /// Converts it for users of the queue; `None` when the message is not a readable job.
    pub(super) fn into_dead_letter(self) -> Option<DeadLetter> {
        let Self { job, attempts, fault, .. } = self;
        job.map(|job| DeadLetter { job, attempts, fault })
    }
}

/// Makes a dead letter of a message that reached the delivery limit: the server keeps such a
/// message, but delivers it no more.
pub(super) async fn give_up(
    context: &Context,
    sequence: u64,
    attempts: u32,
) -> Result<Option<StreamMessage>, Error> {
    let stream = context.get_stream_no_info(names::JOBS).await.map_err(|error| failed(&error))?;
    let message = match stream.get_raw_message(sequence).await {
        Ok(message) => message,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let fault = Fault::transient(format!(
        "not finished after {attempts} deliveries, the most that a job may have"
    ));
    let end = End { attempts, fault: &fault, worker: "queue" };
    write(context, &message.subject, sequence, message.payload.to_vec(), &end).await?;
    match stream.delete_message(sequence).await {
        Ok(_) => Ok(Some(message)),
        // Another coordinator was faster.
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
