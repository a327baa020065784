//! What a failed response of the hub means, and what to do about it.

use std::time::Duration;

use lethe_shared::hub::HubAddress;
use reqwest::header::HeaderMap;

use crate::error::Error;

/// Longest pause that the hub's `Retry-After` is followed for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Characters of the hub's message that an error shows at most.
const SHOWN: usize = 200;

/// A response that is no success.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    /// The hub's code of the error, such as `GatedRepo`.
    code: String,
    /// The hub's message.
    message: String,
    retry_after: Option<Duration>,
}

impl Answer {
    /// Reads status and headers of a response.
    pub(super) fn of(status: u16, headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            value.escape_debug().to_string().chars().take(SHOWN).collect::<String>()
        };
        let seconds = text("retry-after").parse().ok().map(Duration::from_secs);
        Self {
            status,
            code: text("x-error-code"),
            message: text("x-error-message"),
            retry_after: seconds,
        }
    }

    /// Returns the pause before the next request that the hub asks for, bounded.
    pub(super) fn pause(&self) -> Option<Duration> {
        let asked = self.retry_after.filter(|_| matches!(self.status, 429 | 503))?;
        Some(asked.min(LONGEST_PAUSE))
    }

    /// Returns the error for a request about `address`.
    pub(super) fn error(&self, address: &HubAddress, has_token: bool) -> Error {
        let (id, repository) = (address.id(), address.repository());
        let refused = |object: String, problem: String| Error::Refused { object, problem };
        match (self.status, self.code.as_str()) {
            (401 | 403 | 404, "GatedRepo") => refused(
                repository,
                format!(
                    "the repository is gated: accept its terms on the hub's page of {id}, and {}",
                    if has_token {
                        "use a token of that account"
                    } else {
                        "set HF_TOKEN to a token of that account"
                    }
                ),
            ),
            (404, "RevisionNotFound") => refused(
                repository,
                format!(
                    "has no branch, tag or commit `{}`; check the part behind `@`",
                    address.revision()
                ),
            ),
            (404, "EntryNotFound") => Error::NotFound { object: address.to_string(), stored: None },
            (401 | 404, "RepoNotFound" | "") | (403, "RepoNotFound") => refused(
                repository,
                if has_token {
                    format!(
                        "there is no such {}, or the token may not read it{}; check the name, and HF_TOKEN",
                        kind(address),
                        self.said()
                    )
                } else {
                    format!(
                        "there is no such {}, or it is private{}; check the name, or set HF_TOKEN",
                        kind(address),
                        self.said()
                    )
                },
            ),
            (401 | 403, _) => refused(
                repository,
                format!(
                    "the hub answers {}{}; check HF_TOKEN and what the token may read",
                    self.status,
                    self.said()
                ),
            ),
            (429, _) => Error::Unavailable {
                object: address.to_string(),
                cause: format!(
                    "the hub answers 429: too many requests{}; run again later{}",
                    self.retry_after.map_or_else(String::new, |pause| format!(
                        " (retry after {} s)",
                        pause.as_secs()
                    )),
                    if has_token { "" } else { ", or set HF_TOKEN, with which more are allowed" }
                ),
            },
            (408 | 500.., _) => Error::Unavailable {
                object: address.to_string(),
                cause: format!("the hub answers {}{}", self.status, self.said()),
            },
            _ => refused(
                address.to_string(),
                format!("the hub answers {}{}", self.status, self.said()),
            ),
        }
    }

    fn said(&self) -> String {
        if self.message.is_empty() { String::new() } else { format!(" ({})", self.message) }
    }
}

/// Returns what a repository is called in messages.
fn kind(address: &HubAddress) -> &'static str {
    match address.kind() {
        lethe_shared::hub::RepositoryKind::Model => {
            "model (a data set stands at hf://datasets/ORG/NAME)"
        }
        lethe_shared::hub::RepositoryKind::Dataset => "data set",
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::retry::Transient;

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        Answer::of(status, &map)
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let address = HubAddress::parse("org/clip@v9/a.json").unwrap();
        for (status, code, token, says) in [
            (401, "GatedRepo", false, "accept its terms"),
            (403, "GatedRepo", true, "use a token of that account"),
            (401, "RepoNotFound", false, "or set HF_TOKEN"),
            (404, "RepoNotFound", true, "the token may not read it"),
            (401, "", true, "check the name, and HF_TOKEN"),
            (403, "", true, "what the token may read"),
            (404, "RevisionNotFound", false, "no branch, tag or commit `v9`"),
            (404, "EntryNotFound", false, "hf://org/clip@v9/a.json does not exist"),
            (416, "", false, "answers 416"),
        ] {
            let error = answer(status, &[("x-error-code", code)]).error(&address, token);
            assert!(error.to_string().contains(says) && !error.is_transient(), "{error}");
        }
    }

    #[test]
    fn limits_and_failures_of_the_hub_are_transient() {
        let address = HubAddress::parse("org/clip").unwrap();
        let limited = answer(429, &[("retry-after", "7")]);
        assert_eq!(limited.pause(), Some(Duration::from_secs(7)));
        assert!(limited.error(&address, false).to_string().contains("retry after 7 s"));
        assert_eq!(answer(429, &[("retry-after", "99999")]).pause(), Some(LONGEST_PAUSE));
        assert_eq!(answer(500, &[("retry-after", "7")]).pause(), None);
        for status in [408, 429, 500, 502, 503] {
            assert!(answer(status, &[]).error(&address, true).is_transient(), "{status}");
        }
    }
}
