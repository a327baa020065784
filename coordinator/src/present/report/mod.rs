//! `report.html`: one page about a release that works offline and loads nothing.
//!
//! All text is in the page's HTML, and stays readable without scripts. Apache ECharts draws charts
//! from JSON in the page; search, sort and filter act on the existing tables. The same release
//! gives the same bytes: times appear only if `lethe report` is given a run.
//!
//! maud escapes every value in the HTML; `text.rs` handles the cases that maud does not.
//!
//! | file | content |
//! |---|---|
//! | `text.rs` | hidden characters, JSON in scripts, words of a command line, numbers |
//! | `source.rs` | the input of a report |
//! | `notes.rs` | warnings for readers who rely on the release |
//! | `summary.rs` | headline, three questions, retained classes, concepts without an edit, times, glossary |
//! | `recognition.rs` | what can still be told of removed concepts |
//! | `towers.rs` | what the change of each tower does by itself |
//! | `probes.rs` | what probes measured and drew |
//! | `concepts.rs` | the table of concepts |
//! | `agreement.rs` | predictions beside measurements |
//! | `matrix.rs` | the effect matrix, near-duplicates side by side |
//! | `commands.rs` | the commands that verify, change and roll back the release |
//! | `data.rs` | the data of the charts |
//! | `report.css`, `report.js` | the page's style and behaviour |
//! | `charts.min.js` | the parts of Apache ECharts that it uses, made by `deploy/report-charts.sh` |

mod agreement;
mod commands;
mod concepts;
mod data;
mod matrix;
mod notes;
mod probes;
mod recognition;
mod source;
mod summary;
mod text;
mod towers;

use maud::{DOCTYPE, PreEscaped, html};

pub use self::source::{ProbePictures, Source, Thumbnails};

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
const CHARTS: &str = include_str!("charts.min.js");
/// Content security policy: the page loads nothing. The coordinator's HTTP server sends this policy
/// with the page too.
pub const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; \
                          form-action 'none'";

/// Returns the page.
pub fn render(source: &Source<'_>) -> String {
    let record = source.record;
    let body = html! {
        (summary::headline(source))
        main { "\n"
            (summary::facts(record))
            (summary::questions(record))
            (summary::origin(record))
            (notes::section(record))
            (commands::section(record))
            (summary::retained(record))
            (recognition::section(record))
            (towers::section(record))
            (probes::section(source))
            (concepts::section(source))
            (data::layers(record))
            (matrix::section(source))
            (summary::targets(record))
            (summary::not_removed(record))
            (summary::times(source.run))
            (summary::glossary(record))
        }
    };
    let page = html! {
        (DOCTYPE) "\n"
        html lang="en" { "\n"
            head { "\n"
                meta charset="utf-8"; "\n"
                meta http-equiv="Content-Security-Policy" content=(POLICY); "\n"
                meta name="viewport" content="width=device-width, initial-scale=1"; "\n"
                meta name="color-scheme" content="light dark"; "\n"
                title { (text::visible(&record.name)) ": removal report" } "\n"
                style { "\n" (PreEscaped(STYLE)) }
            } "\n"
            body { "\n"
                (PreEscaped(text::visible(&body.into_string()))) "\n"
                script type="application/json" id="data" { (PreEscaped(text::script(&data::of(source)))) } "\n"
                script { "\n" (PreEscaped(CHARTS)) } "\n"
                script { "\n" (PreEscaped(SCRIPT)) } "\n"
            } "\n"
        } "\n"
    };
    page.into_string()
}

#[cfg(test)]
mod tests;
