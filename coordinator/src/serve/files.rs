//! Files of a run's release over HTTP, read from the store: report, record and card.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use lethe_shared::manifest::is_id;
use lethe_store::Store;

use super::api::Problem;
use super::state::Shared;
use crate::failure::Failure;
use crate::layout::{CARD, RECORD, REPORT};
use crate::present::report;
use crate::release::read::Place;

/// Largest file that is served, bytes.
const MAX: u64 = 64 << 20;

/// Files that are served, with their media types. The card is Markdown, which browsers show as
/// plain text.
pub(super) const SERVED: [(&str, &str); 3] = [
    (REPORT, "text/html; charset=utf-8"),
    (RECORD, "application/json"),
    (CARD, "text/plain; charset=utf-8"),
];

/// Returns a file of the release of a run that this coordinator lists.
pub(super) async fn of_run(
    State(shared): State<Arc<Shared>>,
    Path((run, name)): Path<(String, String)>,
) -> Response {
    let Some((name, media)) = SERVED.into_iter().find(|(served, _)| *served == name) else {
        return problem(StatusCode::NOT_FOUND, "no such file");
    };
    let entry = shared.find(&run).and_then(|run| shared.known(&run)).map(|known| known.entry);
    let Some(prefix) = entry.and_then(|entry| prefix(&entry.release?)) else {
        return problem(StatusCode::NOT_FOUND, "no such run, or it has no release");
    };
    match read(&shared.store, prefix, name).await {
        Ok(bytes) => answer(media, bytes),
        Err(failure @ Failure::BadInput(_)) => problem(StatusCode::NOT_FOUND, &failure.to_string()),
        Err(failure) => problem(StatusCode::SERVICE_UNAVAILABLE, &failure.to_string()),
    }
}

/// Returns the release's folder in the store. Another coordinator may know the store by another
/// address, so only the end of the address counts.
fn prefix(release: &str) -> Option<String> {
    let parts: Vec<&str> = release.rsplitn(4, '/').collect();
    match parts[..] {
        [record, name, "releases", _] if is_id(record) && is_id(name) => {
            Some(format!("releases/{name}/{record}"))
        }
        _ => None,
    }
}

/// Reads a file. All files except the record are checked against the record.
async fn read(store: &Store, prefix: String, name: &str) -> Result<Bytes, Failure> {
    let key = format!("{prefix}/{name}");
    let size = store.size(&key).await?;
    if let Some(size) = size.filter(|size| *size > MAX) {
        return Err(Failure::input(format!(
            "{}/{key} has {size} bytes; files of at most {MAX} are served, read it in the store",
            store.name()
        )));
    }
    let place = Place::stored(store.clone(), prefix);
    if name == RECORD { place.record_bytes().await } else { place.open().await?.file(name).await }
}

/// Returns a file with headers that allow only the report to run scripts, without access to this
/// server's other pages.
fn answer(media: &'static str, bytes: Bytes) -> Response {
    let policy = format!("{}; frame-ancestors 'none'; sandbox allow-scripts", report::POLICY);
    let mut response = ([(header::CONTENT_TYPE, media)], bytes).into_response();
    if media.starts_with("text/html")
        && let Ok(policy) = HeaderValue::from_str(&policy)
    {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn problem(status: StatusCode, problem: &str) -> Response {
    (status, Json(Problem { problem: problem.to_owned() })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_release_in_the_store_has_a_folder() {
        assert_eq!(
            prefix("s3://b/x/releases/emoji-8/0123456789ab").as_deref(),
            Some("releases/emoji-8/0123456789ab")
        );
        for odd in [
            "",
            "releases/a/b",
            "/s/releases/../b",
            "/s/releases/a/..",
            "/s/release/a/b",
            "/s/releases/a/",
            "/s/releases/a/.b",
        ] {
            assert_eq!(prefix(odd), None, "{odd}");
        }
    }

    #[tokio::test]
    async fn what_is_too_large_or_absent_is_not_read() {
        let store = Store::in_memory();
        let folder = "releases/a/b";
        store.put(&format!("{folder}/{RECORD}"), Bytes::from_static(b"{}")).await.unwrap();
        assert_eq!(read(&store, folder.to_owned(), RECORD).await.unwrap().as_ref(), b"{}");
        // Its record is invalid.
        assert!(matches!(read(&store, folder.to_owned(), REPORT).await, Err(Failure::BadInput(_))));
        assert!(matches!(
            read(&store, "releases/a/c".to_owned(), RECORD).await,
            Err(Failure::BadInput(_))
        ));
        let large = Bytes::from(vec![0; usize::try_from(MAX).unwrap() + 1]);
        store.put(&format!("{folder}/{REPORT}"), large).await.unwrap();
        let refused = read(&store, folder.to_owned(), REPORT).await.unwrap_err().to_string();
        assert!(refused.contains("at most"), "{refused}");
    }

    #[test]
    fn the_report_may_run_its_own_scripts_and_nothing_else() {
        let policy = |media| {
            answer(media, Bytes::new()).headers().get(header::CONTENT_SECURITY_POLICY).cloned()
        };
        let report = policy(SERVED[0].1).unwrap();
        let report = report.to_str().unwrap();
        assert!(
            report.starts_with("default-src 'none'") && report.ends_with("sandbox allow-scripts"),
            "{report}"
        );
        // The other files get the policy of every response.
        assert_eq!((policy(SERVED[1].1), policy(SERVED[2].1)), (None, None));
    }
}
