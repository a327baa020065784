//! Single files of web servers, read only.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::http::HttpBuilder;
use reqwest::Url;

use crate::answers::Connector;
use crate::client::{options, retries};
use crate::error::Error;
use crate::hub::is_loopback;

/// Opens the folder of a web server at a URL. Plain HTTP is for this machine, or with `allow_http`.
///
/// # Errors
/// [`Error::Invalid`] when it is no URL, or without TLS.
pub(crate) fn open(url: &str, allow_http: bool) -> Result<Arc<dyn ObjectStore>, Error> {
    let wrong = |problem: String| Error::Invalid { what: url.to_owned(), problem };
    let parsed = Url::parse(url).map_err(|error| wrong(format!("is no URL ({error})")))?;
    let allow_http = allow_http || parsed.scheme() == "http" && is_loopback(&parsed);
    if parsed.scheme() == "http" && !allow_http {
        return Err(wrong(
            "is without TLS, which only a server on this machine may be; use https://, or set AWS_ALLOW_HTTP=true"
                .to_owned(),
        ));
    }
    let built = HttpBuilder::new()
        .with_url(url)
        .with_client_options(options(allow_http))
        .with_retry(retries())
        .with_http_connector(Connector)
        .build();
    Ok(Arc::new(built.map_err(|error| wrong(error.to_string()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine() {
        for url in
            ["https://host/a", "http://127.0.0.1:1/a", "http://localhost", "http://[::1]:80/a"]
        {
            assert!(open(url, false).is_ok(), "{url}");
        }
        let error = open("http://host/a", false).unwrap_err().to_string();
        assert!(error.contains("without TLS"), "{error}");
        assert!(open("http://host/a", true).is_ok());
        assert!(open("https://ho st/a", false).is_err());
    }
}
