//! What the page's charts are drawn from, as compact JSON: layers are named once, values have five digits.

use std::collections::BTreeMap;
use std::fmt::Write;

use lethe_shared::outcome::Tower;
use lethe_shared::record::{Composition, UtilityOn};
use serde::Serialize;

use super::Source;
use super::agreement::{self, Point};
use super::escape::{count, escape, short};
use super::matrix::Matrix;

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Data<'a> {
    /// Names of layers; elsewhere a layer is its place here.
    layers: Vec<&'a str>,
    concepts: Vec<Concept<'a>>,
    /// Layers that are changed: edits, and ‖Δ‖/‖θ‖.
    edited: Vec<(usize, usize, f64)>,
    matrix: Option<Matrix>,
    raises: Vec<Point>,
    costs: Vec<Point>,
    /// Retained classes that lost most by set: name, images, ranked first before and after.
    worst: BTreeMap<&'static str, Vec<(&'a str, u32, u32, u32)>>,
}

#[derive(Debug, Serialize)]
struct Concept<'a> {
    id: &'a str,
    name: &'a str,
    layer: usize,
    /// Layer, importance, alignment, whether on its tower's front, whether of the text tower.
    ranking: Vec<(usize, f64, f64, u8, u8)>,
    /// Layer, λ, FA@1, FA@5.
    search: Vec<(usize, f64, f64, f64)>,
    /// Name and value of what else is on record.
    facts: Vec<(&'static str, String)>,
}

/// The data of a page.
pub(super) fn of<'a>(source: &Source<'a>) -> Data<'a> {
    let record = source.record;
    let mut layers = Layers::default();
    let concepts = record.concepts.iter().map(|concept| {
        let ranked = concept.ranking.iter().map(|ranked| {
            let at = layers.place(&ranked.layer);
            (at, short(ranked.importance), short(ranked.alignment), u8::from(ranked.pareto), u8::from(ranked.tower == Tower::Text))
        });
        let ranking = ranked.collect();
        let search = concept.search.iter().map(|trial| (layers.place(&trial.layer), short(trial.step), short(trial.fa1), short(trial.fa5)));
        let search = search.collect();
        let mut facts = vec![
            ("id", concept.id.clone()),
            ("forget pairs", concept.pairs.to_string()),
            ("step λ", format!("{:.4}", concept.step)),
            ("strength α", concept.strength.to_string()),
            ("dose", format!("{:.3}", concept.dose)),
            ("importance", format!("{:.4}", concept.importance)),
            ("alignment", format!("{:.4}", concept.alignment)),
        ];
        facts.extend(concept.by_others.map(|share| ("of its forgetting, by others' edits", format!("{:.0} %", 100.0 * share))));
        let held_out = concept.before.held_out.zip(concept.composed.and_then(|composed| composed.held_out));
        facts.extend(
            held_out.map(|(before, after)| ("validation images ranked first", format!("{} → {} of {}", before.top1, after.top1, before.n))),
        );
        Concept { id: &concept.id, name: &concept.name, layer: layers.place(&concept.layer), ranking, search, facts }
    });
    let concepts: Vec<Concept<'_>> = concepts.collect();
    let edited = edited(record).into_iter().map(|(layer, edits, size)| (layers.place(layer), edits, short(size))).collect();
    let worst = |on: &'a Option<UtilityOn>| {
        let classes = on.iter().flat_map(|on| &on.worst);
        classes.map(|class| (class.class.as_str(), class.before.n, class.before.top1, class.after.top1)).collect()
    };
    let rounded = |points: Vec<Point>| points.into_iter().map(|(i, a, b)| (i, short(a), short(b))).collect();
    Data {
        concepts,
        edited,
        matrix: source.interference.filter(|interference| interference.len() > 1).map(Matrix::of),
        raises: rounded(agreement::raises(source)),
        costs: rounded(agreement::costs(source)),
        worst: BTreeMap::from([("test", worst(&record.utility.test)), ("validation", worst(&record.utility.validation))]),
        layers: layers.names,
    }
}

/// Names, each once.
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

/// Layers that carry edits, most first: name, edits, ‖Δ‖/‖θ‖.
fn edited(record: &Composition) -> Vec<(&str, usize, f64)> {
    let mut edits: BTreeMap<&str, usize> = BTreeMap::new();
    for concept in &record.concepts {
        *edits.entry(&concept.layer).or_default() += 1;
    }
    let size = |layer: &str| record.layers.get(layer).copied().unwrap_or(0.0);
    let mut edited: Vec<_> = edits.into_iter().map(|(layer, edits)| (layer, edits, size(layer))).collect();
    edited.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    edited
}

/// The section about layers: which carry how many edits, and every concept's candidates.
pub(super) fn layers(page: &mut String, record: &Composition) {
    *page += "<section id=\"layers\"><h2>Layers</h2>\n";
    let edited = edited(record);
    let _ = writeln!(
        page,
        "<div class=\"two\">\n<div><h3>{} changed</h3>\n<div class=\"wide\"><table class=\"plain\"><thead><tr><th>layer</th><th class=n>edits</th>\
         <th class=n>‖Δ‖/‖θ‖</th></tr></thead><tbody>",
        count(edited.len(), "layer")
    );
    for (layer, edits, size) in &edited {
        let _ = writeln!(page, "<tr><td><code>{}</code></td><td class=n>{edits}</td><td class=n>{size:.4}</td></tr>", escape(layer));
    }
    *page += "</tbody></table></div>\n";
    if edited.len() > 1 {
        *page += "<div class=\"chart\" data-chart=\"edited\" role=\"img\" aria-label=\"edits by layer\"></div>\n";
    }
    *page += "</div>\n";
    if !record.concepts.is_empty() {
        *page += "<div class=\"scripted\" hidden><h3>Pareto fronts</h3>\n<p class=\"soft\">Every candidate layer of a concept. On a tower's front no \
                  other layer is more important and less aligned. Scroll to zoom, drag to move.</p>\n<label>Concept <select id=\"pareto\"></select></label>\n\
                  <div class=\"chart\" data-chart=\"pareto\" role=\"img\" aria-label=\"importance and alignment of a concept's candidate layers\"></div></div>\n";
    }
    *page += "</div></section>\n";
}
