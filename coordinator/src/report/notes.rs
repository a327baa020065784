//! What a reader should know before relying on a release, in words.

use std::fmt::Write;

use lethe_shared::record::{Composition, ConceptRecord};

use super::escape::{count, escape, percent};
use crate::card::standing;
use crate::gates;

/// Names listed in one sentence.
const NAMED: usize = 12;
/// Forget pairs below which a share of them says little.
const FEW_PAIRS: u64 = 5;
/// Points of TA@1 from which on one removal alone is costly.
const COSTLY: f64 = 1.0;
/// Part of a concept's forgetting that others do, from which on it depends on them.
const BY_OTHERS: f64 = 0.5;
/// Points by which classes that nothing protects may lose more than others before it is said.
const UNPROTECTED: f64 = 0.03;

fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(NAMED).map(|name| escape(name)).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{shown} and {} more", names.len() - NAMED) } else { shown }
}

/// A sentence about the concepts that something is true of.
fn about(notes: &mut Vec<String>, record: &Composition, which: impl Fn(&ConceptRecord) -> bool, sentence: impl Fn(&str) -> String) {
    let found: Vec<&ConceptRecord> = record.concepts.iter().filter(|concept| which(concept)).collect();
    if !found.is_empty() {
        notes.push(format!("{}: {}.", sentence(&count(found.len(), "concept")), named(found.iter().map(|c| c.name.as_str()))));
    }
}

/// The sentences, as HTML.
pub(super) fn of(record: &Composition) -> Vec<String> {
    let mut notes = Vec::new();
    if record.parent.is_some() {
        notes.push(standing(record).to_owned());
    }
    if let Some(gates) = &record.gates {
        notes.extend(gates::missed(gates, record).iter().map(|gate| format!("A gate is missed: {}.", escape(gate))));
    }
    if !record.missing.is_empty() {
        let names = named(record.missing.iter().map(|missing| missing.id.as_str()));
        notes.push(format!("{} not removed: {names}. <a href=\"#missing\">Why</a>.", verb(record.missing.len(), "concept", "is", "are")));
    }
    about(
        &mut notes,
        record,
        |c| c.composed.is_some_and(|m| m.fa5 > 0.0),
        |n| format!("Among its first five answers the released model still names {n} on some forget images"),
    );
    about(
        &mut notes,
        record,
        |c| c.composed.is_some() && held_out(c) > 0,
        |n| {
            format!(
                "Ranked first on some validation images, which were not looked at for forgetting, though forgotten on forget images: {n}"
            )
        },
    );
    about(&mut notes, record, |c| c.strength < 1.0, |n| format!("Removed at less than full strength: {n}"));
    about(
        &mut notes,
        record,
        |c| c.pairs < FEW_PAIRS,
        |n| format!("Judged on fewer than {FEW_PAIRS} forget images, so that shares of them say little: {n}"),
    );
    about(
        &mut notes,
        record,
        |c| cost(c).is_some_and(|cost| cost >= COSTLY),
        |n| format!("Costs {COSTLY:.0} point of TA@1 or more when removed alone: {n}"),
    );
    about(
        &mut notes,
        record,
        |c| c.by_others.is_some_and(|share| share >= BY_OTHERS),
        |n| format!("Forgotten by half or more through other concepts' edits, so that leaving those out brings it back: {n}"),
    );
    for (set, on) in [("test", &record.utility.test), ("validation", &record.utility.validation)] {
        let Some(on) = on else { continue };
        if let (Some(covered), Some(never)) = (&on.covered, &on.never_seen) {
            let (ours, theirs) = (covered.before.ta1 - covered.after.ta1, never.before.ta1 - never.after.ta1);
            if theirs > ours + UNPROTECTED {
                notes.push(format!(
                    "Classes that nothing the run looked at names lost {} of TA@1 ({set}), named ones {}: texts that name them, in \
                     <code>data.retain_texts</code>, would protect them.",
                    percent(theirs),
                    percent(ours)
                ));
            }
        }
        let gone: Vec<&str> =
            on.worst.iter().filter(|class| class.before.top1 > 0 && class.after.top1 == 0).map(|class| class.class.as_str()).collect();
        if !gone.is_empty() {
            let all = if gone.len() == on.worst.len() { ", and maybe more beyond the ten worst" } else { "" };
            notes.push(format!(
                "{} no longer ranked first on any image ({set}){all}: {}.",
                verb(gone.len(), "retained class", "is", "are"),
                named(gone.into_iter())
            ));
        }
        break;
    }
    if record.utility.validation.is_none() && record.utility.test.is_none() && record.is_measured() {
        notes.push("There was neither a validation nor a test set: what the removals cost is not known.".to_owned());
    }
    if !record.near_duplicates.is_empty() {
        let groups = if record.near_duplicates.len() == 1 { "group" } else { "groups" };
        notes.push(format!(
            "{} {groups} of concepts that the model hardly tells apart: removing one goes far towards removing the others. \
             <a href=\"#interference\">Which</a>.",
            record.near_duplicates.len()
        ));
    }
    notes
}

fn verb(number: usize, of: &str, one: &str, many: &str) -> String {
    let plural = if of.ends_with('s') { format!("{of}es") } else { format!("{of}s") };
    if number == 1 { format!("1 {of} {one}") } else { format!("{number} {plural} {many}") }
}

/// Points of TA@1 over all other classes that one removal costs alone.
pub(super) fn cost(concept: &ConceptRecord) -> Option<f64> {
    concept.before.utility.zip(concept.alone.utility).map(|(before, after)| 100.0 * (before - after))
}

/// Validation images of the class that the released model still ranks first.
fn held_out(concept: &ConceptRecord) -> u32 {
    concept.composed.and_then(|composed| composed.held_out).map_or(0, |hits| hits.top1)
}

/// The section.
pub(super) fn write(page: &mut String, record: &Composition) {
    let notes = of(record);
    if notes.is_empty() {
        return;
    }
    *page += "<section class=\"notes\"><h2>Worth knowing</h2>\n<ul>\n";
    for note in notes {
        let _ = writeln!(page, "<li>{note}</li>");
    }
    *page += "</ul></section>\n";
}
