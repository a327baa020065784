//! Checks whether a NATS server and account provide everything that a role needs. Nothing is
//! changed, except that a trial stream is created and deleted at once to check for storage.
//!
//! The server reports a request without permission as a permissions violation on its subject; an
//! invalid request with permission gets an error reply. So the requests here are invalid JSON, and
//! messages expect a stream that does not exist.

use std::time::Duration;

use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap};
use lethe_shared::fault::Limits;
use lethe_shared::finding::{ANSWER_TIMEOUT, Finding, State};
use tokio::sync::mpsc;

use super::connect::{Options, connect_hearing, without_secrets};
use super::role::Role;
use super::storage::{self, NO_ROOM};
use super::{names, setup};
use crate::error::Error;

/// The oldest server that Lethe is tested with.
const OLDEST: [u32; 3] = [2, 9, 10];
/// Older servers have known vulnerabilities.
const CURRENT: [u32; 3] = [2, 12, 7];
/// Longest wait for a reply. A permitted request is answered at once, unless nothing answers its
/// subject.
const ANSWER: Duration = Duration::from_secs(2);
/// Time for permissions violations to arrive; the server sends them separately.
const SETTLED: Duration = Duration::from_millis(300);
/// An incomplete JSON document, so that no request is carried out. (JetStream gives a meaning to
/// other payloads: an empty pull request takes a job.)
const NOTHING: &str = "{";
/// JetStream rejects a message that expects another stream than the one that would store it.
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const NO_STREAM: &str = "LETHE_DOCTOR";
/// The trial stream of the storage check.
const TRIAL: &str = "LETHE_DOCTOR_ROOM";
const NAME: &str = "queue";

/// Checks servers (`nats://host:4222`, several separated by commas) for a role.
///
/// # Cancel safety
/// A cancelled call may leave the trial stream `LETHE_DOCTOR_ROOM` behind.
pub async fn examine(url: &str, role: Role, options: &Options) -> Vec<Finding> {
    let shown = without_secrets(url);
    let options =
        Options { give_up: options.give_up.min(ANSWER_TIMEOUT.as_secs() / 2), ..options.clone() };
    let (hears, complaints) = mpsc::unbounded_channel();
    let client =
        match connect_hearing(url, role.inbox(), "lethe-doctor", &options, Some(hears)).await {
            Ok((client, _)) => client,
            Err(Error::Refused(problem)) => {
                return vec![Finding::failed(
                    NAME,
                    problem,
                    "docs/security.md describes the accounts that Lethe needs",
                )];
            }
            Err(error) => {
                return vec![Finding::failed(
                    NAME,
                    error.problem(),
                    "start it (nats-server -js), or check address, firewall and TLS",
                )];
            }
        };
    let version = client.server_info().version;
    let mut findings = vec![of_version(&format!("{shown}, nats-server {version}"), &version)];
    let answering = answering(&client, role).await;
    let has_jetstream = answering.state != State::Failed;
    findings.push(answering);
    if has_jetstream {
        findings.push(permissions(&client, role, complaints).await);
    }
    if has_jetstream && role == Role::Coordinator {
        findings.push(free_storage(&client, usize::from(options.replicas.max(1))).await);
    }
    // The connection ends with the process at the latest.
    let _ = tokio::time::timeout(ANSWER, client.drain()).await;
    findings
}

fn of_version(found: &str, version: &str) -> Finding {
    let number = |part: &str| {
        part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
    };
    let mut numbers = version.split('.').map(number);
    let version = [(); 3].map(|()| numbers.next().unwrap_or(0));
    if version < OLDEST {
        Finding::failed(NAME, found, "2.9.10 or newer is required, 2.12.7 or newer is recommended")
    } else if version < CURRENT {
        Finding::warning(
            NAME,
            found,
            "it works; use 2.12.7 or newer in production, older versions have known vulnerabilities",
        )
    } else {
        Finding::ok(NAME, found)
    }
}

/// Checks that JetStream is enabled, with a request that the role is permitted to make.
async fn answering(client: &Client, role: Role) -> Finding {
    const NAME: &str = "jetstream";
    let subject = match role {
        Role::Worker => format!("$JS.API.CONSUMER.INFO.{}.{}", names::JOBS, names::CONSUMER),
        Role::Coordinator | Role::Client => format!("$JS.API.STREAM.INFO.{}", names::JOBS),
    };
    let on = "enable JetStream: nats-server -js, or `jetstream {}` in its configuration and for this account";
    let asked = tokio::time::timeout(ANSWER, client.request(subject, "".into())).await;
    let answer = match asked {
        Ok(Ok(message)) => String::from_utf8_lossy(&message.payload).into_owned(),
        Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
            return Finding::failed(NAME, "is not available on this server", on);
        }
        // No permission: the permissions check reports it.
        _ => return Finding::warning(NAME, "does not answer this account", "see permissions"),
    };
    let code = serde_json::from_str::<serde_json::Value>(&answer)
        .ok()
        .and_then(|answer| answer["error"]["err_code"].as_u64());
    match code {
        None => Finding::ok(NAME, format!("enabled; stream {} exists", names::JOBS)),
        // JetStream is not enabled, for the account or at all.
        Some(10039 | 10076) => Finding::failed(NAME, "is not enabled for this account", on),
        Some(10014 | 10059) if role == Role::Worker => {
            Finding::ok(NAME, "enabled; the first coordinator creates the streams")
        }
        Some(10014 | 10059) => Finding::ok(NAME, "enabled; the streams will be created"),
        Some(code) => {
            Finding::warning(NAME, format!("answers with error {code}"), "check the server's log")
        }
    }
}

/// Checks for storage for the streams that do not exist. Only creating a stream reports what the
/// server itself has left, so a trial stream with the same reservation is created and deleted at
/// once, where the account allows it; otherwise the account's limits decide.
async fn free_storage(client: &Client, replicas: usize) -> Finding {
    const NAME: &str = "storage";
    let context = jetstream::new(client.clone());
    let wanted = storage::missing(&context, &setup::streams(&Limits::default(), replicas)).await;
    if wanted.bytes() == 0 {
        return Finding::ok(NAME, "the streams exist");
    }
    if let Err(error) = storage::check(&context, &wanted).await {
        return Finding::failed(NAME, error.problem(), "see docs/operations.md");
    }
    let trial = stream::Config {
        name: TRIAL.to_owned(),
        subjects: vec!["lethe.doctor".to_owned()],
        max_bytes: i64::try_from(wanted.bytes()).unwrap_or(i64::MAX),
        num_replicas: replicas,
        ..stream::Config::default()
    };
    let made = tokio::time::timeout(ANSWER, context.create_stream(trial)).await;
    // The stream may exist even when the answer was lost.
    let removed = tokio::time::timeout(ANSWER, context.delete_stream(TRIAL));
    match made {
        Ok(Ok(_)) => match removed.await {
            Ok(Ok(_)) => {
                Finding::ok(NAME, format!("{}: there is enough storage", wanted.describe()))
            }
            _ => Finding::warning(
                NAME,
                format!(
                    "there is enough storage, but the trial stream {TRIAL} could not be deleted"
                ),
                "delete the stream",
            ),
        },
        Ok(Err(error)) => match error.kind() {
            CreateStreamErrorKind::JetStream(inner) if NO_ROOM.contains(&inner.error_code()) => {
                let error =
                    storage::no_room(&format!("{}; the server says: {inner}", wanted.describe()));
                Finding::failed(NAME, error.problem(), "see docs/operations.md")
            }
            CreateStreamErrorKind::JetStream(inner) => Finding::warning(
                NAME,
                format!("{}; the trial stream cannot be created: {inner}", wanted.describe()),
                "check the server's log",
            ),
            _ => Finding::ok(
                NAME,
                format!("{}; this account may not create a trial stream", wanted.describe()),
            ),
        },
        Err(_) => {
            let _ = removed.await;
            Finding::ok(
                NAME,
                format!("{}; this account may not create a trial stream", wanted.describe()),
            )
        }
    }
}

/// A subject that a role uses, and how its permission is tested.
enum Try {
    /// A request to JetStream.
    Request(String),
    /// A request to JetStream to purge messages that do not exist.
    Purge(String),
    /// A message that a stream would store.
    Message(String),
    /// A message that no stream stores.
    Notice(String),
    /// A subject to subscribe to.
    Listen(String),
}

fn needs(role: Role) -> Vec<Try> {
    use Try::{Listen, Message, Notice, Request};
    let api = |what: &str| Request(format!("$JS.API.{what}"));
    let (jobs, dead, consumer) = (names::JOBS, names::DEAD, names::CONSUMER);
    let message = |kind: &str| Message(format!("lethe.{kind}.doctor.none.none"));
    let notice = || Notice(names::notices("doctor"));
    match role {
        Role::Worker => vec![
            api(&format!("CONSUMER.INFO.{jobs}.{consumer}")),
            api(&format!("CONSUMER.MSG.NEXT.{jobs}.{consumer}")),
            Notice(format!("$JS.ACK.{jobs}.{consumer}.0.0.0.0.0")),
            api(&format!("DIRECT.GET.{}.lethe.ledger.doctor.none", names::LEDGER)),
            message("ledger"),
            message("dead"),
            notice(),
        ],
        Role::Coordinator => {
            let streams = [jobs, dead, names::LEDGER, names::LEASES];
            let each = streams.iter().flat_map(|stream| {
                let of = |what: &str| api(&format!("STREAM.{what}.{stream}"));
                [of("CREATE"), of("UPDATE"), of("INFO"), of("MSG.GET"), of("MSG.DELETE")]
            });
            let more = [
                Try::Purge(format!("$JS.API.STREAM.PURGE.{dead}")),
                api(&format!("CONSUMER.CREATE.{jobs}.{consumer}")),
                api(&format!("CONSUMER.DURABLE.CREATE.{jobs}.{consumer}")),
                api(&format!("CONSUMER.DELETE.{jobs}.{consumer}")),
                api(&format!("STREAM.PURGE.{jobs}")),
                api(&format!("CONSUMER.INFO.{jobs}.{consumer}")),
                api(&format!("DIRECT.GET.{dead}.lethe.dead.doctor.none")),
                message("jobs"),
                message("dead"),
                Message(names::lease("doctor")),
                notice(),
                Listen("lethe.notices.*".to_owned()),
                Listen(format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{jobs}.{consumer}")),
            ];
            each.chain(more).collect()
        }
        // Only the reply of a coordinator would show it; `lethe status` requests one.
        Role::Client => Vec::new(),
    }
}

/// Tests everything that a role needs, and reports which permissions this account lacks.
async fn permissions(
    client: &Client,
    role: Role,
    mut complaints: mpsc::UnboundedReceiver<String>,
) -> Finding {
    const NAME: &str = "permissions";
    let who = match role {
        Role::Coordinator => "coordinator",
        Role::Worker => "worker",
        Role::Client => "client",
    };
    let needs = needs(role);
    let count = needs.len();
    let attempts = needs.iter().map(|need| attempt(client, need));
    let problems: Vec<Option<String>> = futures::future::join_all(attempts).await;
    // After the flush, the server has processed all messages; violations may still be on their way.
    let _ = client.flush().await;
    tokio::time::sleep(SETTLED).await;
    let mut denied = Vec::new();
    while let Ok(complaint) = complaints.try_recv() {
        if complaint.to_lowercase().contains("permissions violation") {
            let subject = complaint.split('"').nth(1).unwrap_or(&complaint).to_owned();
            if !denied.contains(&subject) {
                denied.push(subject);
            }
        }
    }
    let fix = format!(
        "give the account the permissions of a {who}: docs/security.md, deploy/nats/setup.sh"
    );
    if !denied.is_empty() {
        return Finding::failed(
            NAME,
            format!("a {who} has no permission for {}", denied.join(", ")),
            fix,
        );
    }
    match problems.into_iter().flatten().next() {
        Some(problem) => Finding::failed(NAME, problem, fix),
        None => Finding::ok(
            NAME,
            format!("a {who} has all permissions that it needs ({count} subjects)"),
        ),
    }
}

/// Tests one subject. Returns a problem when there is one that the server does not report as a
/// violation.
async fn attempt(client: &Client, need: &Try) -> Option<String> {
    let failed = |subject: &str, error: &dyn std::fmt::Display| Some(format!("{subject}: {error}"));
    match need {
        // Any reply is a success. No reply means either a violation, which is reported separately,
        // or a stream that does not exist yet.
        Try::Request(subject) => {
            let _ =
                tokio::time::timeout(ANSWER, client.request(subject.clone(), NOTHING.into())).await;
            None
        }
        Try::Purge(subject) => {
            let nobody_s = format!("{{\"filter\":\"{}\"}}", names::dead_of("doctor"));
            let _ = tokio::time::timeout(ANSWER, client.request(subject.clone(), nobody_s.into()))
                .await;
            None
        }
        Try::Message(subject) => {
            let mut headers = HeaderMap::new();
            headers.insert(EXPECTED_STREAM, NO_STREAM);
            let _ = tokio::time::timeout(
                ANSWER,
                client.request_with_headers(subject.clone(), headers, NOTHING.into()),
            )
            .await;
            None
        }
        Try::Notice(subject) => client
            .publish(subject.clone(), NOTHING.into())
            .await
            .err()
            .and_then(|error| failed(subject, &error)),
        Try::Listen(subject) => match client.subscribe(subject.clone()).await {
            // The subscription is dropped at once; the server has checked the permission.
            Ok(_) => None,
            Err(error) => failed(subject, &error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let state = |version: &str| of_version("", version).state;
        assert_eq!(["2.9.9", "1.4.1", "rubbish", ""].map(state), [State::Failed; 4]);
        assert_eq!(["2.9.10", "2.11.0-beta.1", "2.12.6"].map(state), [State::Warning; 3]);
        assert_eq!(["2.12.7", "2.14.0-preview", "3.0.0"].map(state), [State::Ok; 3]);
    }
}
