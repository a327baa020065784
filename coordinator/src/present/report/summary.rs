//! Headline, three questions, retained classes, concepts without an edit, times, glossary.

use lethe_shared::record::targets::TargetRecord;
use lethe_shared::record::verdict::{ConceptStatus, Criterion};
use lethe_shared::record::{Composition, Retained, UtilityOn};
use maud::{Markup, html};

use super::source::Source;
use super::text::{count, percent};
use crate::compose::measure::Spread;
use crate::compose::protected;
use crate::present::answers;
use crate::present::card::claimed;
use crate::present::run_summary::Report;
use crate::progress::human_bytes;

/// Returns the headline: name, summary, and links into the page.
pub(super) fn headline(source: &Source<'_>) -> Markup {
    let record = source.record;
    html! {
        header { "\n"
            h1 { (record.name) } "\n"
            p.lead {
                (count(claimed(record), "concept")) " removed by " (record.kind_of_edits()) " of the model, composed by " code { (record.method) } "."
            } "\n"
            nav {
                a href="#use" { "Use" } " " a href="#retained" { "Retained classes" } " "
                @if record.recognition.is_some() { a href="#recognition" { "What can still be told" } " " }
                @if !record.towers.is_empty() { a href="#towers" { "Each tower alone" } " " }
                @if !record.probes.is_empty() { a href="#probes" { "Probes" } " " }
                a href="#concepts" { "Concepts" } " "
                a href="#layers" { "Layers" } " " a href="#effect-matrix" { "Effect matrix" }
                @if source.run.is_some() { " " a href="#times" { "Times" } }
            } "\n"
        } "\n"
    }
}

/// Returns facts about the whole release.
pub(super) fn facts(record: &Composition) -> Markup {
    html! {
        div.facts { "\n"
            @for (value, unit, name) in numbers(record) { div.fact { b { (value) small { " " (unit) } } span { (name) } } "\n" }
        } "\n"
    }
}

/// Returns three questions about the release with their answers.
pub(super) fn questions(record: &Composition) -> Markup {
    let answers = answers::answers(record);
    html! {
        @if !answers.is_empty() {
            section.questions id="questions" { "\n"
                @for answer in answers {
                    div { h3 { (answer.question) }
                        @for sentence in answer.sentences { p { (in_code(&sentence)) } }
                    } "\n"
                }
            } "\n"
        }
    }
}

/// Returns a sentence in which words between backquotes are code.
fn in_code(sentence: &str) -> Markup {
    html! {
        @for (number, part) in sentence.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Returns where the release comes from.
pub(super) fn origin(record: &Composition) -> Markup {
    let row = |name: &str, value: &str| html! { div { dt { (name) } dd { code { (value) } } } };
    html! {
        dl.origin {
            (row("run", &record.run))
            (row("base", &record.base.address))
            (row("base digest", &record.base.digest.to_string()))
            (row("this digest", &record.digest.to_string()))
            @if let Some(parent) = &record.parent {
                (row("composed from", &parent.release.to_string()))
                @for change in &parent.changes { (row("change", &change.to_string())) }
            }
        } "\n"
    }
}

/// Returns value, unit and meaning of each fact.
fn numbers(record: &Composition) -> Vec<(String, String, String)> {
    let total = record.concepts.len() + record.missing.len();
    let mut facts = Vec::new();
    if record.concepts.iter().all(|concept| concept.composed.is_some()) {
        let removed = record.of_status(ConceptStatus::Removed).len();
        let name = "concepts forgotten in the released model, within their tolerance";
        facts.push((removed.to_string(), format!("of {total}"), name.to_owned()));
    }
    if let Some(alone) = record.forgotten_alone() {
        let name = "concepts forgotten with their own edit alone";
        facts.push((alone.to_string(), format!("of {total}"), name.to_owned()));
    }
    let sets = [("test", &record.utility.test), ("validation", &record.utility.validation)];
    if let Some((set, on)) = sets.into_iter().find_map(|(set, on)| Some((set, on.as_ref()?))) {
        let classes = record.utility.retained_classes.unwrap_or_default();
        let name = format!("TA@1 kept on {classes} retained classes ({set})");
        facts.push((percent(on.after.ta1), format!("of {}", percent(on.before.ta1)), name));
    }
    if let Some(spread) =
        Spread::of(record.concepts.iter().filter_map(super::notes::cost).collect())
    {
        let name =
            format!("of TA@1 lost by the median removal alone, {:.2} by the worst", spread.max);
        facts.push((format!("{:.2}", spread.median), "points".to_owned(), name));
    }
    facts
}

/// Returns the section about targets, the other models that got the edits.
pub(super) fn targets(record: &Composition) -> Markup {
    html! {
        @if !record.targets.is_empty() {
            section id="targets" { h2 { "Targets" } "\n"
                p { "Other models with these edits, each in the folder " code { "targets/NAME/" } "." } "\n"
                div.wide {
                    table.plain {
                        thead { tr {
                            th { "target" } th { "kind" } th { "made from" } th { "what it reads of CLIP" } th { "changed files" }
                            th { "edits that cannot act in it" }
                        } }
                        tbody { "\n"
                            @for target in &record.targets {
                                tr {
                                    td { (target.name) }
                                    td { (target.shown_kind()) }
                                    td { code { (target.address) } }
                                    td { (target.reads()) }
                                    td { @for (i, name) in target.changed.keys().enumerate() { @if i > 0 { ", " } code { (name) } } }
                                    td { @if target.without.is_empty() { "none" } @else { (target.without.join(", ")) } }
                                } "\n"
                            }
                        }
                    }
                }
                @for sentence in record.targets.iter().filter_map(TargetRecord::unedited_sentence) {
                    p { (sentence) } "\n"
                }
            } "\n"
        }
    }
}

/// Returns the accuracy on retained classes before and after, the classes that lost most first.
pub(super) fn retained(record: &Composition) -> Markup {
    let sets = [
        ("Test", "used for nothing else", "test", &record.utility.test),
        ("Validation", record.use_of_validation(), "validation", &record.utility.validation),
    ];
    let is_on_a_set = record.utility.validation.is_some() || record.utility.test.is_some();
    html! {
        section id="retained" { h2 { "Retained classes" } "\n"
            @if !record.is_measured() {
                p { "This release was not measured on the retained classes." }
            } @else {
                @if is_on_a_set {
                    p.soft { (UtilityOn::GROUPS) } "\n"
                } @else {
                    p { "There was neither a validation nor a test set to measure them on." } "\n"
                }
                @for (name, use_of_it, id, on) in sets {
                    @if let Some(on) = on {
                        h3 { (name) " " span.soft { "(" (use_of_it) ")" } } "\n"
                        div.two { "\n"
                            (groups(on))
                            @if on.worst.is_empty() { p { "No retained class lost anything." } } @else { (worst(on, id)) }
                        } "\n"
                    }
                }
                (protected(record))
            }
        } "\n"
    }
}

/// Returns the protected texts in descending order of movement.
fn protected(record: &Composition) -> Markup {
    html! {
        @if let Some(summary) = protected::said(&record.protected) {
            h3 { "Protected names" } "\n"
            p.soft {
                "By how much the outputs of the edited layers move for these texts, relative to those outputs, at the token that moves most."
            } "\n"
            details open {
                summary { (summary) }
                div.wide {
                    table.plain {
                        thead { tr { th { "text" } th.n { "moved" } } }
                        tbody { "\n"
                            @for text in protected::by_movement(&record.protected) {
                                tr { td { (text.name) } td.n { (protected::percent(text.moved)) } } "\n"
                            }
                        }
                    }
                }
            } "\n"
        }
    }
}

fn groups(on: &UtilityOn) -> Markup {
    let row = |name: &str, classes: &str, images: u64, before: Retained, after: Retained| {
        let change = |before: f64, after: f64| html! { td.n { (format!("{:.1} → {}", 100.0 * before, percent(after))) } };
        html! {
            tr {
                td { (name) } td.n { (classes) } td.n { (images) } (change(before.ta1, after.ta1)) (change(before.ta5, after.ta5))
            } "\n"
        }
    };
    html! {
        div.wide {
            table.plain {
                thead { tr {
                    th { "classes" } th.n { "number" } th.n { "images" } th.n { "TA@1 before → after" } th.n { "TA@5 before → after" }
                } }
                tbody { "\n"
                    (row("all retained", "", on.images, on.before, on.after))
                    @for (name, group) in on.groups() { (row(name, &group.classes.to_string(), group.images, group.before, group.after)) }
                }
            }
        } "\n"
    }
}

fn worst(on: &UtilityOn, id: &str) -> Markup {
    html! {
        div {
            div.chart.worst data-chart="worst" data-set=(id) role="img" aria-label="the classes that lost most, before and after" {} "\n"
            details {
                summary { "The ten that lost most, as numbers" }
                div.wide {
                    table.plain {
                        thead { tr {
                            th { "class" } th.n { "images" } th.n { "first before" } th.n { "after" } th.n { "in top five before" } th.n { "after" }
                        } }
                        tbody { "\n"
                            @for class in &on.worst {
                                tr {
                                    td { (class.class) } td.n { (class.before.n) }
                                    td.n { (class.before.top1) } td.n { (class.after.top1) }
                                    td.n { (class.before.top5) } td.n { (class.after.top5) }
                                } "\n"
                            }
                        }
                    }
                }
            }
        } "\n"
    }
}

/// Returns the concepts that are not removed, with the reasons.
pub(super) fn not_removed(record: &Composition) -> Markup {
    let edited = record.not_removed();
    let missing = record.missing.iter().map(|missing| (&missing.id, "no edit", &missing.reason));
    let edited = edited.iter().map(|concept| (&concept.id, concept.status.name(), &concept.reason));
    let rows: Vec<_> = missing.chain(edited).collect();
    html! {
        @if !rows.is_empty() {
            section id="missing" { h2 { "Not removed" } "\n"
                table.plain {
                    thead { tr { th { "concept" } th { "status" } th { "why" } } }
                    tbody { "\n" @for (id, status, reason) in rows { tr { td { (id) } td { (status) } td { (reason) } } "\n" } }
                }
            } "\n"
        }
    }
}

/// Returns the duration of a run and its phases.
pub(super) fn times(run: Option<&Report>) -> Markup {
    let table = |head: &str, rows: &mut dyn Iterator<Item = (&str, f64)>| {
        html! {
            div.wide {
                table.plain {
                    thead { tr { th { (head) } th.n { "seconds" } } }
                    tbody { "\n" @for (name, seconds) in rows { tr { td { (name) } td.n { (format!("{seconds:.1}")) } } "\n" } }
                }
            } "\n"
        }
    };
    html! {
        @if let Some(Report { summary, .. }) = run {
            section id="times" { h2 { "Times" } "\n"
                div.two { "\n"
                    (table("phase", &mut summary.phases.iter().map(|phase| (phase.name.as_str(), phase.seconds))))
                    (table("stage, summed over the jobs of all concepts", &mut summary.stages.iter().map(|(name, seconds)| (name.as_str(), *seconds))))
                } "\n"
                p.soft {
                    @if let Some(seconds) = &summary.seconds_per_concept {
                        "Seconds per concept: median " (format!("{:.1}", seconds.median)) ", 90th percentile " (format!("{:.1}", seconds.p90))
                        ", longest " (format!("{:.1}", seconds.max)) ". "
                    }
                    (summary.jobs_done) " jobs executed by this run, " (summary.jobs_found) " reused from earlier ones. Peak memory of a worker "
                    (human_bytes(summary.peak_memory_bytes)) "."
                }
            } "\n"
        }
    }
}

/// Returns a sentence on when concepts count as forgotten.
fn forgotten_when(record: &Composition) -> String {
    let mut criteria: Vec<Criterion> = Vec::new();
    for criterion in record.concepts.iter().map(|concept| record.criterion(concept)) {
        if !criteria.contains(&criterion) {
            criteria.push(criterion);
        }
    }
    match criteria.as_slice() {
        [] => String::new(),
        [one] if one.tolerance == 0.0 => {
            format!("A concept counts as forgotten when {} is 0.", one.stop.measure())
        }
        [one] => format!(
            "A concept counts as forgotten when {} is at most {}.",
            one.stop.measure(),
            percent(one.tolerance)
        ),
        several => format!(
            "Each concept counts as forgotten by its own criterion, of {} different ones.",
            several.len()
        ),
    }
}

/// Returns the glossary of the page's terms.
pub(super) fn glossary(record: &Composition) -> Markup {
    let search = &record.search;
    let terms = [
        (
            "FA@1, FA@5",
            "share of a concept's own forget images on which its class is the model's top prediction, or in its top five",
        ),
        (
            "FA@rank S",
            "share of a concept's own forget images on which fewer than the share S of the other classes rank above its class",
        ),
        ("TA@1, TA@5", "the same on images of the retained classes"),
        ("alone", "with this concept's edit and no other"),
        ("released", "in this release, with all edits together"),
        (
            "cost",
            "points of TA@1 over all other classes' validation images that this edit alone loses",
        ),
        ("λ/R", "size of the edit relative to the layer that it changes"),
        ("strength α", "how much of the removal was requested: 1 all of it, 0 none"),
        (
            "coefficient",
            "factor on the edit's step λ; all coefficients are solved together, so that overlapping edits do not add up to too much",
        ),
        (
            "importance, alignment",
            "‖g_f‖/‖θ‖ and |cos(g_f, g_r)| of a layer: SLUG (arXiv 2407.11867) prefers high importance and low alignment",
        ),
    ];
    html! {
        footer { h2 { "Terms" } "\n"
            dl.words { "\n" @for (term, meaning) in terms { dt { (term) } dd { (meaning) } "\n" } } "\n"
            p.soft {
                "Gradients over batches of " (search.batch_size) ", " (search.search_evaluations) " evaluations per search. "
                (forgotten_when(record)) " " code { "composition.json" } " in the release is the full record."
            } "\n"
        } "\n"
    }
}
