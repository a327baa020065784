//! What a run says when it ends: one JSON object for machines, a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use lethe_shared::digest::Digest;
use lethe_shared::record::{Composition, Measured, Missing, Retained, Utility};
use serde::{Deserialize, Serialize};

use crate::measure::Spread;
use crate::progress::{human, human_bytes};
use crate::protected;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Every required concept is removed.
    Complete,
    /// Some required concepts are missing.
    Incomplete,
    /// The release misses a gate; it is stored, and no channel leads to it.
    GatesMissed,
}

/// The last line of `lethe run --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run.
    pub run: String,
    /// Address of the release.
    pub release: String,
    /// Its number among the releases of its name.
    pub number: u64,
    /// SHA-256 over the released checkpoint's tensor bytes in name order.
    pub digest: Digest,
    /// How it ended.
    pub status: Status,
    /// Gates that the release misses, a sentence each.
    pub missed: Vec<String>,
    /// The numbers.
    pub summary: Summary,
}

/// The numbers of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Concepts in the manifest.
    pub concepts: usize,
    /// Concepts with an edit.
    pub edited: usize,
    /// Concepts whose stop measure is 0 with their edit alone.
    pub forgotten_alone: usize,
    /// Concepts whose stop measure is 0 in the composed model.
    pub forgotten_composed: usize,
    /// Concepts that are not removed, and why.
    pub missing: Vec<Missing>,
    /// Loss of TA@1 over all other classes with one concept removed, in points, on the validation set.
    pub utility_drop_alone: Option<Spread>,
    /// Concepts whose removal alone costs most, in points.
    pub costliest: Vec<(String, f64)>,
    /// What must stay, before and after.
    pub utility: Utility,
    /// Edits per tower.
    pub towers: BTreeMap<String, usize>,
    /// Wall-clock seconds of each phase of this invocation, in order.
    pub phases: Vec<Phase>,
    /// Seconds per concept job, from the outcomes, whenever they were made.
    pub seconds_per_concept: Option<Spread>,
    /// Seconds of all concept jobs by stage.
    pub stages: BTreeMap<String, f64>,
    /// Largest resident set of a worker process, bytes.
    pub peak_memory_bytes: u64,
    /// Jobs whose outcome was there already.
    pub jobs_found: usize,
    /// Jobs done by this invocation.
    pub jobs_done: usize,
}

/// One phase of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Wall-clock seconds.
    pub seconds: f64,
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The closing table.
pub fn table(report: &Report, record: &Composition) -> String {
    let summary = &report.summary;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<26}{value}");
    };
    row("run", report.run.clone());
    row("concepts", format!("{} ({} edited: {})", summary.concepts, summary.edited, towers(&summary.towers)));
    row("forgotten, each alone", format!("{} of {}", summary.forgotten_alone, summary.concepts));
    row("forgotten, composed", format!("{} of {} ({})", summary.forgotten_composed, summary.concepts, record.method));
    if let Some(drop) = &summary.utility_drop_alone {
        let spread = format!(
            "mean {:.2}, median {:.2}, 90th percentile {:.2}, worst {:.2} points of TA@1",
            drop.mean, drop.median, drop.p90, drop.max
        );
        row("cost of one removal", spread);
    }
    utility(&summary.utility, &mut row);
    if let Some(said) = protected::said(&record.protected) {
        row("protected", said);
    }
    if !record.near_duplicates.is_empty() {
        let groups: Vec<String> = record.near_duplicates.iter().take(10).map(|group| group.join(" = ")).collect();
        row("hardly told apart", groups.join(", "));
    }
    for missing in summary.missing.iter().take(10) {
        row("missing", format!("{}: {}", missing.id, missing.reason));
    }
    if summary.missing.len() > 10 {
        row("", format!("and {} more", summary.missing.len() - 10));
    }
    let phases: Vec<String> =
        summary.phases.iter().map(|phase| format!("{} {}", phase.name, human(Duration::from_secs_f64(phase.seconds)))).collect();
    row("time", phases.join(" · "));
    if let Some(seconds) = &summary.seconds_per_concept {
        row("seconds per concept", format!("median {:.1}, 90th percentile {:.1}, longest {:.1}", seconds.median, seconds.p90, seconds.max));
    }
    row("peak memory", human_bytes(summary.peak_memory_bytes));
    row("jobs", format!("{} done, {} found done", summary.jobs_done, summary.jobs_found));
    row("digest", report.digest.to_string());
    for gate in &report.missed {
        row("misses", gate.clone());
    }
    for target in &record.targets {
        let changed = target.changed.keys().cloned().collect::<Vec<_>>().join(", ");
        row(
            "target",
            format!("{} ({}): changed {}", target.folder(), target.kind.name(), if changed.is_empty() { "nothing" } else { &changed }),
        );
    }
    row("release", report.release.clone());
    row("name", format!("{}:{}", record.name, report.number));
    row("report", format!("{}/report.html", report.release));
    text
}

/// What `lethe evaluate` says. `jobs` are how many were done, `folder` is where the numbers are, when that is not the record.
pub fn evaluation_table(record: &Composition, release: &str, jobs: &str, folder: Option<&str>) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<26}{value}");
    };
    let composed: Vec<Measured> = record.concepts.iter().filter_map(|concept| concept.composed).collect();
    let gone = |top: fn(&Measured) -> f64| composed.iter().filter(|measured| top(measured) == 0.0).count();
    let (first, fifth) = (gone(|measured| measured.fa1), gone(|measured| measured.fa5));
    row("forgotten, composed", format!("FA@5 {fifth} of {n}, FA@1 {first} of {n} ({})", record.method, n = record.concepts.len()));
    utility(&record.utility, &mut row);
    row("jobs", jobs.to_owned());
    row("digest", record.digest.to_string());
    row("release", release.to_owned());
    row("report", format!("{}/report.html", folder.unwrap_or(release)));
    text.trim_end().to_owned()
}

/// Rows about what must stay.
fn utility(utility: &Utility, row: &mut impl FnMut(&str, String)) {
    let change = |before: Retained, after: Retained| {
        let one = |before: f64, after: f64| format!("{} → {}", percent(before), percent(after));
        format!("TA@1 {}, TA@5 {}", one(before.ta1, after.ta1), one(before.ta5, after.ta5))
    };
    for (name, on) in [("validation", &utility.validation), ("test", &utility.test)] {
        let Some(on) = on else { continue };
        row(&format!("utility, {name}"), change(on.before, on.after));
        for (group, of) in on.groups() {
            row(&format!("{group}, {name}"), change(of.before, of.after));
        }
    }
    if let Some(on) = utility.test.as_ref().or(utility.validation.as_ref()) {
        let names: Vec<&str> = on.worst.iter().map(|worst| worst.class.as_str()).collect();
        row("worst neighbours", if names.is_empty() { "none lost".into() } else { names.join(", ") });
    }
}

fn towers(towers: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = towers.iter().map(|(tower, count)| format!("{count} {tower}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}
