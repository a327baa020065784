//! Whether a NATS server and an account there are fit for a role: asked for everything that the role needs, in ways that change nothing.
//!
//! A request that the server reads and refuses is permitted; one that it does not let through is answered by a complaint about its
//! subject. So requests here are no JSON, and messages name a stream that is not there.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use tokio::sync::mpsc;

use super::super::Error;
use super::connect::{Options, connect_hearing, without_secrets};
use super::{Role, names};
use crate::doctor::{Finding, PATIENCE, State};

/// The oldest server that Lethe is tested with.
const OLDEST: [u32; 3] = [2, 9, 10];
/// Older servers have known holes.
const CURRENT: [u32; 3] = [2, 12, 7];
/// Longest wait for an answer, or for a complaint. One that is let through is answered at once, or nobody is there.
const ANSWER: Duration = Duration::from_secs(2);
/// Complaints come on their own way.
const SETTLED: Duration = Duration::from_millis(300);
/// The beginning of a JSON document that never ends: no request is carried out. (One that does not begin like JSON, or is empty,
/// means something to JetStream: a pull of it takes a job.)
const NOTHING: &str = "{";
/// JetStream refuses a message for another stream than the one that would keep it.
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const NO_STREAM: &str = "LETHE_DOCTOR";
const NAME: &str = "queue";

/// Looks at servers (`nats://host:4222`, several separated by commas) with the eyes of a role.
pub async fn examine(url: &str, role: Role, options: &Options) -> Vec<Finding> {
    let shown = without_secrets(url);
    let options = Options { give_up: options.give_up.min(PATIENCE.as_secs() / 2), ..options.clone() };
    let (hears, complaints) = mpsc::unbounded_channel();
    let client = match connect_hearing(url, role.inbox(), "lethe-doctor", &options, Some(hears)).await {
        Ok((client, _)) => client,
        Err(Error::Refused(problem)) => {
            return vec![Finding::failed(NAME, problem, "docs/security.md says how accounts for Lethe are made")];
        }
        Err(error) => {
            return vec![Finding::failed(NAME, error.problem(), "start it (nats-server -js), or check address, firewall and TLS")];
        }
    };
    let version = client.server_info().version;
    let mut findings = vec![of_version(&format!("{shown}, nats-server {version}"), &version)];
    let jetstream = jetstream(&client, role).await;
    let has_jetstream = jetstream.state != State::Failed;
    findings.push(jetstream);
    if has_jetstream {
        findings.push(permissions(&client, role, complaints).await);
    }
    // It is gone with the process at the latest.
    let _ = tokio::time::timeout(ANSWER, client.drain()).await;
    findings
}

fn of_version(found: &str, version: &str) -> Finding {
    let number = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    let mut numbers = version.split('.').map(number);
    let version = [(); 3].map(|()| numbers.next().unwrap_or(0));
    if version < OLDEST {
        Finding::failed(NAME, found, "2.9.10 or newer is needed, 2.12.7 or newer is better")
    } else if version < CURRENT {
        Finding::warning(NAME, found, "it works; in production take 2.12.7 or newer, older ones have known holes")
    } else {
        Finding::ok(NAME, found)
    }
}

/// Whether there is JetStream, by what the role may ask about it.
async fn jetstream(client: &Client, role: Role) -> Finding {
    const NAME: &str = "jetstream";
    let subject = match role {
        Role::Worker => format!("$JS.API.CONSUMER.INFO.{}.{}", names::JOBS, names::CONSUMER),
        Role::Coordinator | Role::Person => format!("$JS.API.STREAM.INFO.{}", names::JOBS),
    };
    let on = "turn JetStream on: nats-server -js, or `jetstream {}` in its configuration and for this account";
    let asked = tokio::time::timeout(ANSWER, client.request(subject, "".into())).await;
    let answer = match asked {
        Ok(Ok(message)) => String::from_utf8_lossy(&message.payload).into_owned(),
        Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
            return Finding::failed(NAME, "nobody answers for it", on);
        }
        // Not let through: what is wrong with the account is said below.
        _ => return Finding::warning(NAME, "does not answer this account", "see permissions"),
    };
    let code = serde_json::from_str::<serde_json::Value>(&answer).ok().and_then(|answer| answer["error"]["err_code"].as_u64());
    match code {
        None => Finding::ok(NAME, format!("on; {} is there", names::JOBS)),
        // JetStream is not enabled, for the account or at all.
        Some(10039 | 10076) => Finding::failed(NAME, "is off for this account", on),
        Some(10014 | 10059) if role == Role::Worker => Finding::ok(NAME, "on; streams are made by the first coordinator that comes"),
        Some(10014 | 10059) => Finding::ok(NAME, "on; streams will be made"),
        Some(code) => Finding::warning(NAME, format!("answers with error {code}"), "look into the server's log"),
    }
}

/// What a role publishes, and how it is tried.
enum Try {
    /// A request to JetStream.
    Request(String),
    /// A request to JetStream to take away what was never there.
    Purge(String),
    /// A message that a stream would keep.
    Message(String),
    /// A message that nobody keeps.
    Notice(String),
    /// A subject to listen on.
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
        // Only a coordinator's answer tells, and `lethe status` asks for it.
        Role::Person => Vec::new(),
    }
}

/// Tries everything that a role needs; the server says what of it this account may not do.
async fn permissions(client: &Client, role: Role, mut complaints: mpsc::UnboundedReceiver<String>) -> Finding {
    const NAME: &str = "permissions";
    let who = match role {
        Role::Coordinator => "coordinator",
        Role::Worker => "worker",
        Role::Person => "person",
    };
    let needs = needs(role);
    let count = needs.len();
    let attempts = needs.iter().map(|need| attempt(client, need));
    let problems: Vec<Option<String>> = futures::future::join_all(attempts).await;
    // What was sent is heard by the server now; its complaints are on their way.
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
    let fix = format!("give the account what a {who} may do: docs/security.md, deploy/nats/setup.sh");
    if !denied.is_empty() {
        return Finding::failed(NAME, format!("a {who} may not use {}", denied.join(", ")), fix);
    }
    match problems.into_iter().flatten().next() {
        Some(problem) => Finding::failed(NAME, problem, fix),
        None => Finding::ok(NAME, format!("a {who} may do all that it must ({count} subjects)")),
    }
}

/// What is wrong with one of a role's needs, where the server does not complain about it by name.
async fn attempt(client: &Client, need: &Try) -> Option<String> {
    let failed = |subject: &str, error: &dyn std::fmt::Display| Some(format!("{subject}: {error}"));
    match need {
        // An answer of any kind is one; none at all is either a complaint's sign or a stream that is not there yet.
        Try::Request(subject) => {
            let _ = tokio::time::timeout(ANSWER, client.request(subject.clone(), NOTHING.into())).await;
            None
        }
        Try::Purge(subject) => {
            let nobody_s = format!("{{\"filter\":\"{}\"}}", names::dead_of("doctor"));
            let _ = tokio::time::timeout(ANSWER, client.request(subject.clone(), nobody_s.into())).await;
            None
        }
        Try::Message(subject) => {
            let mut headers = HeaderMap::new();
            headers.insert(EXPECTED_STREAM, NO_STREAM);
            let _ = tokio::time::timeout(ANSWER, client.request_with_headers(subject.clone(), headers, NOTHING.into())).await;
            None
        }
        Try::Notice(subject) => client.publish(subject.clone(), NOTHING.into()).await.err().and_then(|error| failed(subject, &error)),
        Try::Listen(subject) => match client.subscribe(subject.clone()).await {
            // Dropped at once; the server has been asked.
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
