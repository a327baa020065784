//! `report.html`: a release as a page that needs nothing but itself, offline too.
//!
//! What is to be read is in the page's HTML, and stays readable where scripts do not run. Charts are drawn by Apache ECharts from
//! JSON in the page; search, sort and filter act on the tables that are there. The same release gives the same bytes: times come
//! in only where `lethe report` is given a run.
//!
//! | file | what |
//! |---|---|
//! | `escape.rs` | text from outside, safe in HTML, attributes and scripts |
//! | `notes.rs` | what a reader should know before relying on the release, in words |
//! | `summary.rs` | headline, what must stay, missing concepts, times |
//! | `concepts.rs` | the table of concepts |
//! | `agreement.rs` | what was predicted beside what happened |
//! | `matrix.rs` | the interference matrix, near-duplicates side by side |
//! | `data.rs` | what charts are drawn from |
//! | `report.css`, `report.js` | how the page looks and what it does |
//! | `charts.min.js` | the parts of Apache ECharts that it uses, made by `deploy/report-charts.sh` |

mod agreement;
mod concepts;
mod data;
mod escape;
mod matrix;
mod notes;
mod summary;

use lethe_shared::record::Composition;

use crate::dosing::Interference;
use crate::release::Thumbnails;
use crate::summary::Report;
use escape::escape;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
const CHARTS: &str = include_str!("charts.min.js");
/// Nothing is loaded, from anywhere.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; \
                      form-action 'none'";

/// What a report is about.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The release.
    pub record: &'a Composition,
    /// What its edits do to its concepts, in the record's order, where doses are solved.
    pub interference: Option<&'a Interference>,
    /// Pictures of its concepts, where there are any.
    pub thumbnails: &'a Thumbnails,
    /// The run that made it, for its times; not in what is stored with a release.
    pub run: Option<&'a Report>,
}

/// The page.
pub fn render(source: &Source<'_>) -> String {
    let record = source.record;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name}: removal report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        name = escape(&record.name),
    );
    summary::headline(&mut page, source);
    notes::write(&mut page, record);
    summary::utility(&mut page, record);
    concepts::write(&mut page, source);
    data::layers(&mut page, record);
    matrix::write(&mut page, source);
    agreement::write(&mut page, source);
    summary::targets(&mut page, record);
    summary::missing(&mut page, record);
    summary::times(&mut page, source.run);
    summary::glossary(&mut page, record);
    page += "</main>\n<script type=\"application/json\" id=\"data\">";
    page += &escape::script(&data::of(source));
    page += "</script>\n<script>\n";
    page += CHARTS;
    page += "</script>\n<script>\n";
    page += SCRIPT;
    page += "</script>\n</body>\n</html>\n";
    page
}

#[cfg(test)]
mod tests;
