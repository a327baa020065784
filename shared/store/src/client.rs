//! Options of the HTTP clients of stores.

use std::time::Duration;

use object_store::{ClientOptions, RetryConfig};

/// Returns whether endpoints without TLS are allowed.
pub(crate) fn allows_http() -> bool {
    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1")
}

/// Returns the options of a client. The request timeout covers the whole body, and large objects
/// need minutes. The read timeout detects a silent server.
pub(crate) fn options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(600))
        .with_read_timeout(Duration::from_secs(30))
        .with_allow_http(allow_http)
}

/// Returns how a client retries.
pub(crate) fn retries() -> RetryConfig {
    RetryConfig {
        max_retries: 10,
        retry_timeout: Duration::from_secs(180),
        ..RetryConfig::default()
    }
}
