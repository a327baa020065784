//! Requests to the hub's API. Each function makes one attempt; callers retry.

use std::sync::OnceLock;
use std::time::Duration;

use lethe_shared::hub::{HubAddress, RepositoryKind, is_commit};
use lethe_shared::json;
use reqwest::header::{AUTHORIZATION, LINK, RANGE};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::answer::Answer;
use super::listing::{Entry, File};
use super::settings::Settings;
use crate::error::{Error, chain};

/// Largest answer of the API that is read, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 8;

/// A client of one hub.
#[derive(Debug, Clone)]
pub(super) struct Client {
    settings: Settings,
    http: reqwest::Client,
}

/// A page of a list of files.
#[derive(Debug)]
pub(super) struct Page {
    /// Its files.
    pub(super) files: Vec<File>,
    /// The query of the next page.
    pub(super) next: Option<String>,
}

impl Client {
    /// Creates a client. All clients of a process share one pool of connections.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the TLS library finds no certificates.
    pub(super) fn new(settings: Settings) -> Result<Self, Error> {
        static POOL: OnceLock<reqwest::Client> = OnceLock::new();
        let http = match POOL.get() {
            Some(http) => http.clone(),
            None => {
                let built = reqwest::Client::builder()
                    .user_agent(concat!("lethe/", env!("CARGO_PKG_VERSION")))
                    .connect_timeout(Duration::from_secs(10))
                    // Detects a silent server. A whole download has no time limit.
                    .read_timeout(Duration::from_secs(30))
                    .redirect(Policy::custom(redirect))
                    .build()
                    .map_err(|error| Error::Invalid {
                        what: settings.endpoint.to_string(),
                        problem: chain(&error),
                    })?;
                POOL.get_or_init(|| built).clone()
            }
        };
        Ok(Self { settings, http })
    }

    /// Asks for the commit of an address's revision.
    pub(super) async fn commit(&self, address: &HubAddress) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        let mut url = self.api(address, "revision", address.revision());
        // Without it, the answer lists all files of the repository.
        url.query_pairs_mut().append_pair("expand", "sha");
        let body = read(self.get(url, None, address).await?, address).await?;
        let info: Info =
            json::parse(&body).map_err(|error| self.strange(address, &error.to_string()))?;
        if is_commit(&info.sha) {
            Ok(info.sha)
        } else {
            Err(self.strange(address, "it names no commit"))
        }
    }

    /// Asks for a page of the files in the folder at an address, which names a commit. `query` is
    /// that of the page before.
    pub(super) async fn page(
        &self,
        address: &HubAddress,
        recursive: bool,
        query: Option<&str>,
    ) -> Result<Page, Error> {
        let mut url = self.api(address, "tree", address.revision());
        extend(&mut url, address.path().split('/').filter(|part| !part.is_empty()));
        match query {
            Some(query) => url.set_query(Some(query)),
            None if recursive => url.set_query(Some("recursive=true")),
            None => {}
        }
        let response = self.get(url, None, address).await?;
        let next = response
            .headers()
            .get_all(LINK)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(next_query);
        let body = read(response, address).await?;
        let entries: Vec<Entry> =
            json::parse(&body).map_err(|error| self.strange(address, &error.to_string()))?;
        let refused = |problem: String| Error::Refused {
            object: address.to_string(),
            problem: format!("the hub {problem}; nothing of this folder is read"),
        };
        let files = entries
            .into_iter()
            .filter_map(|entry| entry.check(address.path()).transpose())
            .collect::<Result<_, _>>()
            .map_err(refused)?;
        Ok(Page { files, next })
    }

    /// Requests the bytes of the file at an address, which names a commit; only those of `range`, a
    /// value of the header of that name, if it is given.
    pub(super) async fn file(
        &self,
        address: &HubAddress,
        range: Option<&str>,
    ) -> Result<Response, Error> {
        let mut url = self.settings.endpoint.clone();
        if address.kind() == RepositoryKind::Dataset {
            extend(&mut url, [address.kind().plural()]);
        }
        let repository = [address.owner(), address.name(), "resolve", address.revision()];
        extend(&mut url, repository.into_iter().chain(address.path().split('/')));
        self.get(url, range, address).await
    }

    /// Returns the URL of a method of the API for a repository.
    fn api(&self, address: &HubAddress, method: &str, revision: &str) -> Url {
        let mut url = self.settings.endpoint.clone();
        let kind = address.kind().plural();
        extend(&mut url, ["api", kind, address.owner(), address.name(), method, revision]);
        url
    }

    async fn get(
        &self,
        url: Url,
        range: Option<&str>,
        address: &HubAddress,
    ) -> Result<Response, Error> {
        let mut request = self.http.get(url);
        if let Some(token) = &self.settings.authorization {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = request.send().await.map_err(|error| unreachable(address, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let answer = Answer::of(response.status().as_u16(), response.headers());
        if let Some(pause) = answer.pause() {
            tokio::time::sleep(pause).await;
        }
        Err(answer.error(address, self.settings.authorization.is_some()))
    }

    fn strange(&self, address: &HubAddress, problem: &str) -> Error {
        Error::Refused {
            object: address.to_string(),
            problem: format!(
                "{} does not answer as a model hub does ({problem}); check HF_ENDPOINT",
                self.settings.endpoint
            ),
        }
    }
}

/// Returns the error of a request that got no answer, or no whole one.
pub(super) fn unreachable(address: &HubAddress, error: reqwest::Error) -> Error {
    // The URL may be a signed one of the hub's storage.
    let cause = chain(&error.without_url());
    Error::Unavailable {
        object: address.to_string(),
        cause: format!(
            "{cause}; check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what the cache has"
        ),
    }
}

/// Follows a redirect, but none from TLS to plain text.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if was_secure && attempt.url().scheme() != "https" {
        attempt.error("a redirect to an address without TLS")
    } else {
        attempt.follow()
    }
}

/// Appends segments to the path of a URL, percent-encoded.
fn extend<'a>(url: &mut Url, segments: impl IntoIterator<Item = &'a str>) {
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
}

/// Returns the query of the next page in a `Link` header. Only the query is used, so that the token
/// goes to no other host.
fn next_query(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    let (url, _) = rest.split_once('>')?;
    url.split_once('?').map(|(_, query)| query.to_owned())
}

/// Reads the body of an answer of the API.
async fn read(mut response: Response, address: &HubAddress) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| unreachable(address, error))? {
        if body.len() + piece.len() > MAX_ANSWER {
            return Err(Error::Refused {
                object: address.to_string(),
                problem: "the hub's answer is larger than 64 MiB; give a smaller folder".to_owned(),
            });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_the_link() {
        let next = |text: &str| next_query(text);
        let link =
            "<https://hub/api/models/a/b/tree/main?cursor=x%3D&recursive=true>; rel=\"next\"";
        assert_eq!(next(link).as_deref(), Some("cursor=x%3D&recursive=true"));
        let both = format!("<https://hub/first>; rel=\"first\", {link}");
        assert_eq!(next(&both).as_deref(), Some("cursor=x%3D&recursive=true"));
        for none in ["", "<https://hub/a?b>; rel=\"prev\"", "rel=\"next\"", "<a>; rel=\"next\""] {
            assert_eq!(next(none), None, "{none}");
        }
    }
}
