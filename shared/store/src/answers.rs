//! Final answers: HTTP responses of a remote store that stay the same however often the request is
//! repeated, such as 501 or a redirect. `object_store` alone would retry every 5xx, 501 included,
//! for minutes.
//!
//! This layer sits below the retries of `object_store`. It turns a final response into an error
//! that is not retried, and `Error::from_store` finds that error in the chain of sources.

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

/// Bytes of a response's body that an error message shows at most.
const SHOWN: usize = 300;

/// A response that is the same for every retry of the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store answers {status} to {method}{}{text}", if .text.is_empty() { "" } else { ": " })]
pub(crate) struct FinalAnswer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The request's method.
    pub(crate) method: String,
    /// The beginning of the response's body.
    pub(crate) text: String,
}

/// The service that gives credentials to programs on this machine cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error(
    "the environment has no credentials, and this machine's metadata service at {host} gives none: set AWS_ACCESS_KEY_ID and \
     AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY \
     (profiles of the cloud's tools are not read)"
)]
pub(crate) struct NoCredentials {
    host: String,
    source: HttpError,
}

/// Hosts of metadata services: of AWS (both protocols) and Azure, and of Google.
const METADATA: [&str; 4] =
    ["169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "metadata"];

/// Returns the explanation of a failed request for credentials in a chain of sources.
pub(crate) fn no_credentials<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a NoCredentials> {
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref::<NoCredentials>() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}

impl FinalAnswer {
    /// Returns whether the store does not implement the request. 400 does not count: stores also
    /// send it for interrupted uploads and expired tokens.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self.status, 405 | 501)
    }

    /// Returns whether the store redirects to another region or endpoint.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.status, 301 | 307 | 308)
    }

    /// Returns whether the store rejects the request as malformed.
    pub(crate) fn is_bad_request(&self) -> bool {
        self.status == 400
    }

    /// Returns whether the store denies the request. Only responses to listings get here:
    /// `object_store` tells a denied listing no better than a failed one, and a denied read by
    /// itself.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self.status, 401 | 403)
    }

    fn is_final(status: u16, has_location: bool, is_listing: bool) -> bool {
        match status {
            400 | 405 | 501 => true,
            401 | 403 => is_listing,
            // The HTTP client follows a redirect that has a location.
            301 | 307 | 308 => !has_location,
            _ => false,
        }
    }
}

/// Connects like the default connector of `object_store`, with this layer added.
#[derive(Debug)]
pub(crate) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Service(HttpClient);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = request.method().to_string();
        let conditional = if request.headers().contains_key("if-none-match") {
            " with If-None-Match"
        } else {
            ""
        };
        let is_listing = request.uri().query().is_some_and(is_listing);
        let host = request.uri().host().unwrap_or_default().to_owned();
        let response = self.0.execute(request).await.map_err(|error| {
            if METADATA.contains(&host.as_str()) {
                HttpError::new(error.kind(), NoCredentials { host, source: error })
            } else {
                error
            }
        })?;
        let status = response.status().as_u16();
        if !FinalAnswer::is_final(status, response.headers().contains_key("location"), is_listing) {
            return Ok(response);
        }
        let body = response.into_body().bytes().await?;
        let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)])
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        Err(HttpError::new(
            HttpErrorKind::Unknown,
            FinalAnswer { status, method: format!("{method}{conditional}"), text },
        ))
    }
}

/// Returns whether a query asks for a listing: of S3 and GCS, or of Azure.
fn is_listing(query: &str) -> bool {
    query.split('&').any(|part| part.starts_with("list-type=") || part == "comp=list")
}

/// Returns the final response in a chain of sources.
pub(crate) fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a FinalAnswer> {
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(answer) = cause.downcast_ref::<FinalAnswer>() {
            return Some(answer);
        }
        source = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transient_responses_are_left_to_the_retries() {
        for status in [200, 304, 403, 404, 408, 409, 412, 429, 500, 502, 503, 504] {
            assert!(!FinalAnswer::is_final(status, false, false), "{status}");
        }
        assert!(
            [400, 405, 501, 301].iter().all(|&status| FinalAnswer::is_final(status, false, false))
        );
        assert!(!FinalAnswer::is_final(307, true, false));
    }

    #[test]
    fn denied_listings_are_final() {
        assert!(
            is_listing("delimiter=%2F&list-type=2&prefix=model%2F")
                && is_listing("restype=container&comp=list")
        );
        assert!(!is_listing("uploads") && !is_listing("x=list-type"));
        assert!([401, 403].iter().all(|&status| FinalAnswer::is_final(status, false, true)));
        assert!(!FinalAnswer::is_final(503, false, true));
    }
}
