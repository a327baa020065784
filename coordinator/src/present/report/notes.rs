//! Warnings for readers who rely on a release.

use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{Composition, ConceptRecord, UtilityOn};
use maud::{Markup, html};

use super::text::count;
use crate::compose::gate_rules;
use crate::present::card::standing;

/// Names listed in one sentence.
const NAMED: usize = 12;
/// Number of forget pairs below which a share of them is unreliable.
const FEW_PAIRS: u64 = 5;
/// Loss of TA@1 in points from which on a single removal is costly.
const COSTLY: f64 = 1.0;
/// Share of a concept's forgetting caused by other edits, from which on a note is added.
const BY_OTHERS: f64 = 0.5;
/// Additional loss of TA@1, as a fraction, of unprotected classes from which on a note is added.
const UNPROTECTED: f64 = 0.03;

fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{shown} and {} more", names.len() - NAMED) } else { shown }
}

/// Adds a sentence about the concepts for which a condition holds, if there are any.
fn about(
    notes: &mut Vec<Markup>,
    record: &Composition,
    which: impl Fn(&ConceptRecord) -> bool,
    sentence: impl Fn(&str) -> String,
) {
    let found: Vec<&ConceptRecord> =
        record.concepts.iter().filter(|concept| which(concept)).collect();
    if !found.is_empty() {
        let names = named(found.iter().map(|concept| concept.name.as_str()));
        notes.push(html! { (sentence(&count(found.len(), "concept"))) ": " (names) "." });
    }
}

/// Returns the sentences.
pub(super) fn of(record: &Composition) -> Vec<Markup> {
    let mut notes = Vec::new();
    if record.parent.is_some() {
        notes.push(html! { (standing(record)) });
    }
    notes.extend(
        gate_rules::all_missed(&record.gates, record)
            .iter()
            .map(|gate| html! { "A gate is not met: " (gate) "." }),
    );
    notes.extend(
        gate_rules::warnings(&record.gates, record)
            .iter()
            .map(|warning| html! { "Warning: " (warning) "." }),
    );
    if let Some(bound) = &record.change_bound {
        notes.push(html! { "The change is bounded: " (bound) "." });
    }
    if !record.missing.is_empty() {
        let names = named(record.missing.iter().map(|missing| missing.id.as_str()));
        let number =
            verb(record.missing.len(), "concept", "has no edit and is", "have no edit and are");
        notes
            .push(html! { (number) " not removed: " (names) ". " a href="#missing" { "Why" } "." });
    }
    of_concepts(&mut notes, record);
    let sets = [("test", &record.utility.test), ("validation", &record.utility.validation)];
    match sets.into_iter().find_map(|(set, on)| Some((set, on.as_ref()?))) {
        Some((set, on)) => of_retained_classes(&mut notes, set, on),
        None if record.is_measured() => {
            notes.push(html! { "There was neither a validation nor a test set, so the cost of the removals is not known." });
        }
        None => {}
    }
    if !record.near_duplicates.is_empty() {
        let groups = count(record.near_duplicates.len(), "group");
        notes.push(html! {
            (groups) " of near-duplicates, concepts that the model barely distinguishes: removing one largely removes the others. "
            a href="#effect-matrix" { "Which" } "."
        });
    }
    notes
}

fn of_concepts(notes: &mut Vec<Markup>, record: &Composition) {
    let is = |c: &ConceptRecord, status| record.verdict(c).status == status;
    about(
        notes,
        record,
        |c| is(c, ConceptStatus::Showing),
        |n| {
            format!(
                "Still recognised: the released model recognises {n} in forget images, beyond the tolerance"
            )
        },
    );
    about(
        notes,
        record,
        |c| is(c, ConceptStatus::UnknownBefore),
        |n| {
            format!(
                "Unknown before: the base model did not recognise {n} in the forget images either, so no removal can be shown"
            )
        },
    );
    about(
        notes,
        record,
        |c| c.composed.is_some() && held_out(c) > 0,
        |n| {
            format!(
                "Forgotten on the forget images, but still ranked first on some held-out validation images: {n}"
            )
        },
    );
    about(
        notes,
        record,
        |c| is(c, ConceptStatus::NotApplied),
        |n| format!("Not removed, at strength 0: {n}"),
    );
    about(
        notes,
        record,
        |c| c.strength > 0.0 && c.strength < 1.0,
        |n| format!("Edited at less than full strength: {n}"),
    );
    about(
        notes,
        record,
        |c| c.pairs < FEW_PAIRS,
        |n| {
            format!(
                "Evaluated on fewer than {FEW_PAIRS} forget images, so the percentages mean little: {n}"
            )
        },
    );
    about(
        notes,
        record,
        |c| cost(c).is_some_and(|cost| cost >= COSTLY),
        |n| format!("Removal alone costs {COSTLY:.0} point of TA@1 or more: {n}"),
    );
    about(
        notes,
        record,
        |c| c.by_others.is_some_and(|share| share >= BY_OTHERS),
        |n| {
            format!(
                "Half or more of the forgetting comes from other concepts' edits, so leaving those out restores it: {n}"
            )
        },
    );
}

fn of_retained_classes(notes: &mut Vec<Markup>, set: &str, on: &UtilityOn) {
    if let (Some(covered), Some(never)) = (&on.covered, &on.never_seen) {
        let (ours, theirs) =
            (covered.before.ta1 - covered.after.ta1, never.before.ta1 - never.after.ta1);
        if theirs > ours + UNPROTECTED {
            let points = |share: f64| format!("{:.1} points", 100.0 * share);
            let others = match ours {
                ours if ours < 0.0 => format!("gained {}", points(-ours)),
                _ => format!("lost {}", points(ours)),
            };
            notes.push(html! {
                "Retained classes that no retain caption or text names lost " (points(theirs)) " of TA@1 (" (set) "), the others "
                (others) ": texts in " code { "data.retain_texts" } " that name them would protect them."
            });
        }
    }
    let gone: Vec<&str> = on
        .worst
        .iter()
        .filter(|class| class.before.top1 > 0 && class.after.top1 == 0)
        .map(|class| class.class.as_str())
        .collect();
    if !gone.is_empty() {
        let all = if gone.len() == on.worst.len() {
            ", and possibly more beyond the ten worst"
        } else {
            ""
        };
        let number = verb(gone.len(), "retained class", "is", "are");
        notes.push(html! { (number) " no longer ranked first on any image (" (set) ")" (all) ": " (named(gone.into_iter())) "." });
    }
}

fn verb(number: usize, of: &str, one: &str, many: &str) -> String {
    let plural = if of.ends_with('s') { format!("{of}es") } else { format!("{of}s") };
    if number == 1 { format!("1 {of} {one}") } else { format!("{number} {plural} {many}") }
}

/// Returns the loss of TA@1 over all other classes, in points, caused by one removal alone.
pub(super) fn cost(concept: &ConceptRecord) -> Option<f64> {
    concept
        .before
        .utility
        .zip(concept.alone.and_then(|alone| alone.utility))
        .map(|(before, after)| 100.0 * (before - after))
}

/// Returns the number of validation images of the class that the released model still ranks first.
fn held_out(concept: &ConceptRecord) -> u32 {
    concept.composed.and_then(|composed| composed.held_out).map_or(0, |hits| hits.top1)
}

/// Returns the section.
pub(super) fn section(record: &Composition) -> Markup {
    let notes = of(record);
    html! {
        @if !notes.is_empty() {
            section.notes { h2 { "Worth knowing" } "\n"
                ul { "\n" @for note in notes { li { (note) } "\n" } }
            } "\n"
        }
    }
}
