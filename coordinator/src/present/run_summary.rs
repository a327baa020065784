//! The summary of a run: one JSON object for programs, a table for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use lethe_shared::digest::Digest;
use lethe_shared::record::verdict::{ConceptStatus, JudgedConcept};
use lethe_shared::record::{
    Composition, Measured, Missing, ProbeRecord, Recognition, Retained, Utility, UtilityOn,
};
use serde::{Deserialize, Serialize};

use super::card::short;
use crate::compose::measure::{Judgement, Spread};
use crate::compose::protected;
use crate::progress::{human, human_bytes, title};

/// Final status of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// All required concepts are removed.
    Complete,
    /// A required concept has no edit or is still recognised.
    Incomplete,
    /// The release misses a gate; it is stored, and no channel points to it.
    GatesMissed,
}

/// The last line of `lethe run --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the run.
    pub run: String,
    /// Address of the release.
    pub release: String,
    /// Its number among the releases of its name.
    pub number: u64,
    /// SHA-256 over the released checkpoint's tensor bytes in name order.
    pub digest: Digest,
    /// Final status.
    pub status: Status,
    /// Missed gates, one sentence each.
    pub missed: Vec<String>,
    /// A sentence with the reason why `latest` does not point to the release of a complete run: it
    /// points to a later one, or a person has decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmoved: Option<String>,
    /// Warnings for users of the release, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
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
    /// Concepts that the base model knew, and that are forgotten within their tolerance with their
    /// edit alone; absent when edits are found together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten_alone: Option<usize>,
    /// Concepts that the base model knew, and that are forgotten within their tolerance in the
    /// composed model.
    pub forgotten_composed: usize,
    /// Concepts that have an edit and are not removed (still recognised, weakened, unknown before,
    /// not applied), with the reasons.
    #[serde(default)]
    pub not_removed: Vec<JudgedConcept>,
    /// Concepts that have no edit, with the reasons.
    pub missing: Vec<Missing>,
    /// Loss of TA@1 over all other classes with one concept removed, in points, on the validation
    /// set.
    pub utility_drop_alone: Option<Spread>,
    /// Concepts whose removal alone costs most, with the loss in points.
    pub costliest: Vec<(String, f64)>,
    /// Accuracy on retained classes, before and after.
    pub utility: Utility,
    /// Edits per tower.
    pub towers: BTreeMap<String, usize>,
    /// Wall-clock seconds of each phase of this invocation, in order.
    pub phases: Vec<Phase>,
    /// Seconds per concept job, from the outcomes, including reused ones.
    pub seconds_per_concept: Option<Spread>,
    /// Seconds of all concept jobs, by stage.
    pub stages: BTreeMap<String, f64>,
    /// Largest resident set of a worker process, bytes.
    pub peak_memory_bytes: u64,
    /// Jobs whose stored outcome was reused.
    pub jobs_found: usize,
    /// Jobs executed by this invocation.
    pub jobs_done: usize,
    /// Arithmetic classes of the jobs.
    #[serde(default)]
    pub arithmetic: Vec<String>,
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

/// Returns the closing table.
pub fn table(report: &Report, record: &Composition) -> String {
    let summary = &report.summary;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<26}{value}");
    };
    row("run", report.run.clone());
    row(
        "concepts",
        format!("{} ({} edited: {})", summary.concepts, summary.edited, towers(&summary.towers)),
    );
    if let Some(alone) = summary.forgotten_alone {
        row("forgotten, each alone", format!("{alone} of {}", summary.concepts));
    }
    row(
        "forgotten, composed",
        format!("{} of {} ({})", summary.forgotten_composed, summary.concepts, record.method),
    );
    if let Some(drop) = &summary.utility_drop_alone {
        let spread = format!(
            "mean {:.2}, median {:.2}, 90th percentile {:.2}, worst {:.2} points of TA@1",
            drop.mean, drop.median, drop.p90, drop.max
        );
        row("cost of one removal", spread);
    }
    utility(&summary.utility, &mut row);
    recognition(record.recognition.as_ref(), &mut row);
    towers_alone(record, &mut row);
    if let Some((layer, change)) = record.largest_change() {
        let scaled = record.change_bound.map_or_else(String::new, |bound| format!("; {bound}"));
        row("largest change", format!("{change:.1} times the weights of {layer}{scaled}"));
    }
    if let Some(said) = protected::said(&record.protected) {
        row("protected", said);
    }
    if !record.near_duplicates.is_empty() {
        let groups: Vec<String> =
            record.near_duplicates.iter().take(10).map(|group| group.join(" = ")).collect();
        row("near-duplicates", groups.join(", "));
    }
    not_removed(&summary.not_removed, &mut row);
    first_ten(
        "missing",
        summary.missing.iter().map(|missing| format!("{}: {}", missing.id, missing.reason)),
        &mut row,
    );
    let phases: Vec<String> = summary
        .phases
        .iter()
        .map(|phase| {
            format!("{} {}", title(&phase.name), human(Duration::from_secs_f64(phase.seconds)))
        })
        .collect();
    row("time", phases.join(" · "));
    if let Some(seconds) = &summary.seconds_per_concept {
        row(
            "seconds per concept",
            format!(
                "median {:.1}, 90th percentile {:.1}, longest {:.1}",
                seconds.median, seconds.p90, seconds.max
            ),
        );
    }
    row("peak memory", human_bytes(summary.peak_memory_bytes));
    row("jobs", format!("{} executed, {} reused", summary.jobs_done, summary.jobs_found));
    row("arithmetic", summary.arithmetic.join(" / "));
    row("digest", report.digest.to_string());
    for gate in &report.missed {
        row("gate not met", gate.clone());
    }
    for warning in &report.warnings {
        row("warning", warning.clone());
    }
    for target in &record.targets {
        let changed = target.changed.keys().cloned().collect::<Vec<_>>().join(", ");
        row(
            "target",
            format!(
                "{} ({}): changed {}",
                target.folder(),
                target.kind.name(),
                if changed.is_empty() { "nothing" } else { &changed }
            ),
        );
    }
    row("release", report.release.clone());
    row("name", format!("{}:{}", record.name, report.number));
    if let Some(unmoved) = &report.unmoved {
        row("channel", unmoved.clone());
    }
    row("report", format!("{}/report.html", report.release));
    text
}

/// Returns the table of `lethe evaluate`. `jobs` describes the executed and reused jobs, `folder`
/// is the folder of the measurements if they are not in the record, `rounded` the type that the
/// weights were rounded to if they were.
pub fn evaluation_table(
    record: &Composition,
    release: &str,
    jobs: &str,
    folder: Option<&str>,
    rounded: Option<&str>,
    warnings: &[String],
) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<26}{value}");
    };
    let composed: Vec<Measured> =
        record.concepts.iter().filter_map(|concept| concept.composed).collect();
    let gone =
        |top: fn(&Measured) -> f64| composed.iter().filter(|measured| top(measured) == 0.0).count();
    let (first, fifth) = (gone(|measured| measured.fa1), gone(|measured| measured.fa5));
    let removed = record.of_status(ConceptStatus::Removed).len();
    let numbers = format!(
        "{removed} of {n} ({}; FA@5 is 0 of {fifth}, FA@1 of {first})",
        record.method,
        n = record.concepts.len()
    );
    row("forgotten, composed", numbers);
    not_removed(&record.not_removed(), &mut row);
    utility(&record.utility, &mut row);
    recognition(record.recognition.as_ref(), &mut row);
    probes(&record.probes, &mut row);
    row("jobs", jobs.to_owned());
    row("digest", record.digest.to_string());
    if let Some(rounded) = rounded {
        row("rounded to", format!("{rounded}; these measurements are stored nowhere"));
    }
    for warning in warnings {
        row("warning", warning.clone());
    }
    row("release", release.to_owned());
    if rounded.is_none() {
        row("report", format!("{}/report.html", folder.unwrap_or(release)));
    }
    text.trim_end().to_owned()
}

/// Returns the table of `lethe evaluate --model`. `known` is the number of concepts that the base
/// model recognises, `forgotten` how many of them the model does not.
pub fn model_table(
    model: &str,
    digest: Digest,
    (known, forgotten): (usize, usize),
    judgement: &Judgement,
    measured: &[ProbeRecord],
) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<26}{value}");
    };
    row("forgotten", format!("{forgotten} of {known} that the base model recognises"));
    utility(&judgement.utility, &mut row);
    recognition(judgement.recognition.as_ref(), &mut row);
    probes(measured, &mut row);
    let Judgement { jobs_done, jobs_found, .. } = judgement;
    row("jobs", format!("{jobs_done} executed, {jobs_found} reused"));
    row("digest", digest.to_string());
    row("model", format!("{model}; these measurements are stored nowhere"));
    text.trim_end().to_owned()
}

/// Adds rows about concepts that have an edit and are not removed.
fn not_removed(concepts: &[JudgedConcept], row: &mut impl FnMut(&str, String)) {
    let statuses: BTreeSet<ConceptStatus> = concepts.iter().map(|concept| concept.status).collect();
    for status in statuses {
        let those = concepts.iter().filter(|concept| concept.status == status);
        first_ten(
            status.name(),
            those.map(|concept| format!("{}: {}", concept.id, concept.reason)),
            row,
        );
    }
}

/// Adds a row for each of the first ten lines, and one with the number of the others.
fn first_ten(name: &str, lines: impl Iterator<Item = String>, row: &mut impl FnMut(&str, String)) {
    let lines: Vec<String> = lines.collect();
    let more = lines.len().saturating_sub(10);
    lines.into_iter().take(10).for_each(|line| row(name, line));
    if more > 0 {
        row("", format!("and {more} more"));
    }
}

/// Adds rows about retained classes.
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
        row("lost most", if names.is_empty() { "none".into() } else { names.join(", ") });
    }
}

/// Adds a row for each tower whose change was measured by itself.
fn towers_alone(record: &Composition, row: &mut impl FnMut(&str, String)) {
    for alone in &record.towers {
        let forgotten = format!("FA@1 {}, FA@5 {}", percent(alone.fa1), percent(alone.fa5));
        let on = alone.utility.test.as_ref().or(alone.utility.validation.as_ref());
        let groups = on.into_iter().flat_map(UtilityOn::groups);
        let kept = groups.map(|(name, group)| {
            format!("{name} {} → {}", percent(group.before.ta1), percent(group.after.ta1))
        });
        let kept: Vec<String> = kept.collect();
        let kept =
            if kept.is_empty() { String::new() } else { format!("; TA@1 {}", kept.join(", ")) };
        row(&format!("{} tower alone", alone.tower.name()), format!("{forgotten}{kept}"));
    }
}

/// Adds rows for each probe: one for the numbers whose names differ in the last part alone.
fn probes(probes: &[ProbeRecord], row: &mut impl FnMut(&str, String)) {
    for probe in probes {
        let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, value) in &probe.numbers {
            let (group, last) = name.rsplit_once('.').unwrap_or(("", name));
            groups.entry(group).or_default().push(format!("{last} {}", short(*value)));
        }
        for (group, numbers) in groups {
            let name = [probe.name.as_str(), group].join(" ");
            row(&format!("probe {}", name.trim_end()), numbers.join(", "));
        }
    }
}

/// Adds rows about what can still be told of removed concepts.
fn recognition(recognition: Option<&Recognition>, row: &mut impl FnMut(&str, String)) {
    let Some(recognition) = recognition else { return };
    let change = |before: f64, after: f64| format!("{} → {}", percent(before), percent(after));
    for candidates in &recognition.candidates {
        let name = format!("name against {} kept", candidates.others);
        row(&name, format!("right {}", change(candidates.before, candidates.after)));
    }
    for search in &recognition.searches {
        let (before, after) = (search.before, search.after);
        row(
            &format!("name search, {}", search.set),
            format!(
                "R@1 {}, R@5 {}, R@20 {}",
                change(before.r1, after.r1),
                change(before.r5, after.r5),
                change(before.r20, after.r20)
            ),
        );
    }
}

fn towers(towers: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> =
        towers.iter().map(|(tower, count)| format!("{count} {tower}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ten_still_recognised_are_named_and_the_others_counted() {
        let concept = |number: usize, status| JudgedConcept {
            id: format!("c{number:02}"),
            status,
            reason: "why".into(),
        };
        let mut concepts: Vec<JudgedConcept> =
            (0..13).map(|number| concept(number, ConceptStatus::Showing)).collect();
        concepts.push(concept(20, ConceptStatus::UnknownBefore));
        let mut rows = Vec::new();
        not_removed(&concepts, &mut |name: &str, value: String| {
            rows.push((name.to_owned(), value))
        });
        assert_eq!(rows.len(), 12);
        assert_eq!((rows[0].0.as_str(), rows[0].1.as_str()), ("still recognised", "c00: why"));
        assert_eq!((rows[10].0.as_str(), rows[10].1.as_str()), ("", "and 3 more"));
        assert_eq!((rows[11].0.as_str(), rows[11].1.as_str()), ("unknown before", "c20: why"));
    }
}
