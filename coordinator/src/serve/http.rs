//! The status page and its JSON API. Everything is read-only: runs are submitted and cancelled over the queue's network, where there are credentials.
//!
//! | path | answers |
//! |---|---|
//! | `/` | the page: runs, phases, workers, dead letters; live |
//! | `/api/v1/runs` | all runs |
//! | `/api/v1/runs/{run}` | one run |
//! | `/api/v1/dead-letters` | dead letters |
//! | `/api/v1/events` | the same as server-sent events, whenever something changes |
//! | `/openapi.json` | what this says, for programs ([`openapi`]) |

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
use schemars::JsonSchema;
use serde::Serialize;

use super::view::{LetterView, Overview};
use super::{Service, Shared, openapi};

/// Events are at least this far apart.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Clocks on the page go on even when nothing happens.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// What the page shows.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Everything {
    #[serde(flatten)]
    overview: Overview,
    /// Dead letters of all runs, the newest last.
    dead_letters: Vec<LetterView>,
}

impl Service {
    /// The page and the API.
    pub fn routes(&self) -> Router {
        let file = |content: &'static str, body: &'static str| get(move || async move { ([(header::CONTENT_TYPE, content)], body) });
        Router::new()
            .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
            .route("/status.js", file("text/javascript; charset=utf-8", include_str!("page/status.js")))
            .route("/status.css", file("text/css; charset=utf-8", include_str!("page/status.css")))
            .route("/api/v1/runs", get(|State(shared): State<Arc<Shared>>| async move { Json(shared.overview()) }))
            .route("/api/v1/runs/{run}", get(one_run))
            .route("/api/v1/dead-letters", get(|State(shared): State<Arc<Shared>>| async move { Json(shared.letters()) }))
            .route(
                "/api/v1/events",
                get(|State(shared): State<Arc<Shared>>| async move { Sse::new(events(shared)).keep_alive(KeepAlive::default()) }),
            )
            .route("/openapi.json", get(|| async { Json(openapi::document()) }))
            .layer(middleware::map_response(only_from_here))
            .with_state(Arc::clone(&self.shared))
    }
}

/// The page loads nothing from elsewhere, runs nothing that stands in data, and is shown inside no other page.
async fn only_from_here(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Why there is no answer.
#[derive(Serialize, JsonSchema)]
pub(super) struct Problem {
    /// A sentence.
    problem: String,
}

async fn one_run(State(shared): State<Arc<Shared>>, Path(run): Path<String>) -> Response {
    match shared.view(&run) {
        Some(view) => Json(view).into_response(),
        None => (StatusCode::NOT_FOUND, Json(Problem { problem: "no such run".to_owned() })).into_response(),
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
