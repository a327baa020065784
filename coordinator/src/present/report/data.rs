//! The data of the page's charts as compact JSON: each layer is named once, and values have five
//! digits.

use std::collections::BTreeMap;

use lethe_shared::record::{Composition, UtilityOn};
use lethe_shared::vocabulary::Tower;
use maud::{Markup, html};
use serde::Serialize;

use super::agreement::{self, Point};
use super::matrix::Matrix;
use super::source::Source;
use super::text::{count, short};

/// The data of all charts.
#[derive(Debug, Serialize)]
pub(super) struct Data<'a> {
    /// Names of layers; other fields use indices into this list.
    layers: Vec<&'a str>,
    concepts: Vec<Concept<'a>>,
    /// Changed layers: index, number of edits, and ‖Δ‖/‖θ‖.
    edited: Vec<(usize, usize, f64)>,
    matrix: Option<Matrix>,
    raises: Vec<Point>,
    costs: Vec<Point>,
    /// Retained classes that lost most, by set: name, images, images ranked first before and after.
    worst: BTreeMap<&'static str, Vec<(&'a str, u32, u32, u32)>>,
}

#[derive(Debug, Serialize)]
struct Concept<'a> {
    id: &'a str,
    name: &'a str,
    layer: usize,
    /// Per candidate: layer, importance, alignment, 1 if on its tower's front, 1 if of the text
    /// tower.
    ranking: Vec<(usize, f64, f64, u8, u8)>,
    /// Per search step: layer, λ, FA@1, FA@5.
    search: Vec<(usize, f64, f64, f64)>,
    /// Names and values of other recorded facts.
    facts: Vec<(&'static str, String)>,
}

/// Returns the data of a page.
pub(super) fn of<'a>(source: &Source<'a>) -> Data<'a> {
    let record = source.record;
    let mut layers = Layers::default();
    let concepts = record.concepts.iter().map(|concept| {
        let ranked = concept.ranking.iter().map(|ranked| {
            let at = layers.place(&ranked.layer);
            (
                at,
                short(ranked.importance),
                short(ranked.alignment),
                u8::from(ranked.pareto),
                u8::from(ranked.tower == Tower::Text),
            )
        });
        let ranking = ranked.collect();
        let search = concept.search.iter().map(|trial| {
            (layers.place(&trial.layer), short(trial.step), short(trial.fa1), short(trial.fa5))
        });
        let search = search.collect();
        let mut facts = vec![
            ("id", concept.id.clone()),
            ("status", record.verdict(concept).status.name().to_owned()),
            ("forget pairs", concept.pairs.to_string()),
            ("step λ", format!("{:.4}", concept.step)),
            ("strength α", concept.strength.to_string()),
            ("coefficient", format!("{:.3}", concept.coefficient)),
        ];
        if !concept.ranking.is_empty() {
            facts.push(("importance", format!("{:.4}", concept.importance)));
            facts.push(("alignment", format!("{:.4}", concept.alignment)));
        }
        facts.extend(concept.by_others.map(|share| {
            ("share of its forgetting by other edits", format!("{:.0} %", 100.0 * share))
        }));
        let held_out =
            concept.before.held_out.zip(concept.composed.and_then(|composed| composed.held_out));
        facts.extend(held_out.map(|(before, after)| {
            (
                "ranked first on validation images",
                format!("{} → {} of {}", before.top1, after.top1, before.n),
            )
        }));
        Concept {
            id: &concept.id,
            name: &concept.name,
            layer: layers.place(&concept.layer),
            ranking,
            search,
            facts,
        }
    });
    let concepts: Vec<Concept<'_>> = concepts.collect();
    let edited = edited(record)
        .into_iter()
        .map(|(layer, edits, size)| (layers.place(layer), edits, short(size)))
        .collect();
    let worst = |on: &'a Option<UtilityOn>| {
        let classes = on.iter().flat_map(|on| &on.worst);
        classes
            .map(|class| {
                (class.class.as_str(), class.before.n, class.before.top1, class.after.top1)
            })
            .collect()
    };
    let rounded =
        |points: Vec<Point>| points.into_iter().map(|(i, a, b)| (i, short(a), short(b))).collect();
    Data {
        concepts,
        edited,
        matrix: source
            .effect_matrix
            .filter(|effect_matrix| effect_matrix.len() > 1)
            .map(Matrix::of),
        raises: rounded(agreement::raises(source)),
        costs: rounded(agreement::costs(source)),
        worst: BTreeMap::from([
            ("test", worst(&record.utility.test)),
            ("validation", worst(&record.utility.validation)),
        ]),
        layers: layers.names,
    }
}

/// Assigns an index to each distinct name.
#[derive(Default)]
struct Layers<'a> {
    names: Vec<&'a str>,
    places: BTreeMap<&'a str, usize>,
}

impl<'a> Layers<'a> {
    fn place(&mut self, name: &'a str) -> usize {
        *self.places.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }
}

/// Returns the edited layers in descending order of edits: name, edits, ‖Δ‖/‖θ‖.
fn edited(record: &Composition) -> Vec<(&str, usize, f64)> {
    let mut edits: BTreeMap<&str, usize> = BTreeMap::new();
    for concept in &record.concepts {
        for layer in concept.layers() {
            *edits.entry(layer).or_default() += 1;
        }
    }
    let size = |layer: &str| record.layers.get(layer).copied().unwrap_or(0.0);
    let mut edited: Vec<_> =
        edits.into_iter().map(|(layer, edits)| (layer, edits, size(layer))).collect();
    edited.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    edited
}

/// Returns the section about layers: the number of edits of each, and every concept's candidates.
pub(super) fn layers(record: &Composition) -> Markup {
    let edited = edited(record);
    html! {
        section id="layers" { h2 { "Layers" } "\n"
            div.two { "\n"
                div { h3 { (count(edited.len(), "layer")) " changed" } "\n"
                    div.wide {
                        table.plain {
                            thead { tr { th { "layer" } th.n { "edits" } th.n { "‖Δ‖/‖θ‖" } } }
                            tbody { "\n"
                                @for (layer, edits, size) in &edited {
                                    tr { td { code { (layer) } } td.n { (edits) } td.n { (format!("{size:.4}")) } } "\n"
                                }
                            }
                        }
                    } "\n"
                    @if edited.len() > 1 { div.chart data-chart="edited" role="img" aria-label="edits by layer" {} }
                } "\n"
                @if record.concepts.iter().any(|concept| !concept.ranking.is_empty()) {
                    div.scripted hidden { h3 { "Pareto fronts" } "\n"
                        p.soft {
                            "Every candidate layer of a concept. A layer is on its tower's front if no other layer of that tower is both more important "
                            "and less aligned. Scroll to zoom, drag to move."
                        } "\n"
                        label { "Concept " select id="pareto" {} } "\n"
                        div.chart data-chart="pareto" role="img" aria-label="importance and alignment of a concept's candidate layers" {}
                    } "\n"
                }
            }
        } "\n"
    }
}
