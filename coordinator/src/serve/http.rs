//! The status page and its JSON API. Both are read-only: runs are submitted and cancelled over
//! NATS, which has access control.
//!
//! | path | response |
//! |---|---|
//! | `/` | the page: runs, phases, workers, dead letters; live |
//! | `/runs/{run}/report.html`, `…/composition.json`, `…/README.md` | report, record and card of a run's release ([`files`]) |
//! | `/api/v1/runs` | all runs |
//! | `/api/v1/runs/{run}` | one run |
//! | `/api/v1/dead-letters` | dead letters |
//! | `/api/v1/events` | the content of the page as server-sent events, after each change |
//! | `/openapi.json` | a description of the API for programs ([`openapi`]) |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use futures::Stream;

use super::api::{Everything, Problem};
use super::state::Shared;
use super::{files, openapi};

/// Shortest time between two events.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Longest time between two events, so that clocks on the page advance without changes.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// Returns the routes of the page and the API.
pub(super) fn routes(shared: Arc<Shared>) -> Router {
    let file = |content: &'static str, body: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, content)], body) })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/status.js", file("text/javascript; charset=utf-8", include_str!("page/status.js")))
        .route("/status.css", file("text/css; charset=utf-8", include_str!("page/status.css")))
        .route("/runs/{run}/{file}", get(files::of_run))
        .route(
            "/api/v1/runs",
            get(|State(shared): State<Arc<Shared>>| async move { Json(shared.overview()) }),
        )
        .route("/api/v1/runs/{run}", get(one_run))
        .route(
            "/api/v1/dead-letters",
            get(|State(shared): State<Arc<Shared>>| async move { Json(shared.letters()) }),
        )
        .route(
            "/api/v1/events",
            get(|State(shared): State<Arc<Shared>>| async move {
                Sse::new(events(shared)).keep_alive(KeepAlive::default())
            }),
        )
        .route("/openapi.json", get(|| async { Json(openapi::document()) }))
        .layer(middleware::map_response(only_from_here))
        .with_state(shared)
}

/// Adds headers: the page loads nothing from other origins, runs no inline script, and cannot be
/// framed. A report sets its own policy.
async fn only_from_here(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn one_run(State(shared): State<Arc<Shared>>, Path(run): Path<String>) -> Response {
    match shared.view(&run) {
        Some(view) => Json(view).into_response(),
        None => (StatusCode::NOT_FOUND, Json(Problem { problem: "no such run".to_owned() }))
            .into_response(),
    }
}

fn events(shared: Arc<Shared>) -> impl Stream<Item = Result<Event, Infallible>> {
    let changes = shared.changed.subscribe();
    futures::stream::unfold((shared, changes, true), |(shared, mut changes, is_first)| async move {
        if !is_first {
            tokio::time::sleep(AT_MOST_EVERY).await;
            // A closed channel means that the process is ending.
            if let Ok(Err(_)) = tokio::time::timeout(AT_LEAST_EVERY, changes.changed()).await {
                return None;
            }
        }
        changes.mark_unchanged();
        let everything = Everything { overview: shared.overview(), dead_letters: shared.letters() };
        let event = Event::default().json_data(everything).unwrap_or_default();
        Some((Ok(event), (shared, changes, false)))
    })
}
