//! The effect matrix: the effect of each edit on each concept, with near-duplicates side by side.

use data_encoding::BASE64;
use lethe_shared::record::Composition;
use maud::{Markup, html};
use serde::Serialize;

use super::agreement;
use super::source::Source;
use super::text::count;
use crate::compose::effect_matrix::EffectMatrix;
use crate::compose::near_duplicates::similarity;

/// Largest number of concepts in the heat map: 600² values take 1.9 MB of a page.
const MOST: usize = 600;
/// Pairs named in the text.
const PAIRS: usize = 10;

/// The matrix in the format of the charts.
#[derive(Debug, Serialize)]
pub(super) struct Matrix {
    /// Order of rows and columns: indices of concepts in the record.
    order: Vec<usize>,
    /// K_ij / K_jj row by row: float32, little-endian, base64.
    values: String,
}

/// Returns an order of concepts in which similar ones are adjacent: starts at the most similar
/// pair, then repeatedly adds the concept that is most similar to an added one (Prim's order of the
/// maximum spanning tree).
pub(super) fn order(effect_matrix: &EffectMatrix) -> Vec<usize> {
    let n = effect_matrix.len();
    let near = |i: usize, j: usize| similarity(effect_matrix, i, j);
    let mut start = (f64::NEG_INFINITY, 0);
    for i in 0..n {
        for j in i + 1..n {
            if near(i, j) > start.0 {
                start = (near(i, j), i);
            }
        }
    }
    let (mut order, mut nearest, mut standing) =
        (Vec::with_capacity(n), vec![f64::NEG_INFINITY; n], vec![false; n]);
    let mut next = (n > 0).then_some(start.1);
    while let Some(i) = next {
        order.push(i);
        standing[i] = true;
        next = None;
        for j in (0..n).filter(|&j| !standing[j]) {
            nearest[j] = nearest[j].max(near(i, j));
            if next.is_none_or(|best: usize| nearest[j] > nearest[best]) {
                next = Some(j);
            }
        }
    }
    order
}

/// Returns K_ij / K_jj: the effect of edit j on concept i, as a share of its effect on its own
/// concept.
fn share(effect_matrix: &EffectMatrix, i: usize, j: usize) -> f64 {
    let own = effect_matrix.effect(j, j);
    if own > 0.0 { effect_matrix.effect(i, j) / own } else { 0.0 }
}

impl Matrix {
    pub(super) fn of(effect_matrix: &EffectMatrix) -> Self {
        let mut order = order(effect_matrix);
        order.truncate(MOST);
        let values: Vec<u8> = order
            .iter()
            .flat_map(|&i| {
                order.iter().flat_map(move |&j| (share(effect_matrix, i, j) as f32).to_le_bytes())
            })
            .collect();
        Self { order, values: BASE64.encode(&values) }
    }
}

/// Returns the section, with predictions and measurements at its end.
pub(super) fn section(source: &Source<'_>) -> Markup {
    html! {
        section id="effect-matrix" { h2 { "Effect matrix" } "\n"
            @match source.effect_matrix.filter(|effect_matrix| effect_matrix.len() > 1) {
                Some(effect_matrix) => { (effects(source.record, effect_matrix)) }
                None => p { "The effects of edits on other concepts were not computed: edits were added unchanged, or there is only one." }
            }
            (agreement::predictions(source))
        } "\n"
    }
}

fn effects(record: &Composition, effect_matrix: &EffectMatrix) -> Markup {
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for i in 0..effect_matrix.len() {
        pairs.extend(
            (0..effect_matrix.len())
                .filter(|&j| j != i)
                .map(|j| (share(effect_matrix, i, j), i, j)),
        );
    }
    pairs.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()).then((a.1, a.2).cmp(&(b.1, b.2))));
    let name = |i: usize| record.concepts.get(i).map_or("", |concept| &concept.name);
    html! {
        p {
            "A column is one concept's edit, a row its effect on one concept, to first order: K" sub { "ij" } " = ⟨g" sub { "i" } ", D" sub { "j" }
            "⟩ as a share of the edit's effect on its own concept, K" sub { "jj" }
            ". Blue removes the row's concept too, red works against its removal; cells below 2 % are blank. Related concepts are adjacent."
            @if effect_matrix.len() > MOST { " Shown are the " (MOST) " concepts with the largest effects on others." }
        } "\n"
        div.chart.square data-chart="matrix" role="img" aria-label="heat map of the effect of each edit on each concept" {} "\n"
        div.two { "\n"
            div { h3 { "Strongest" } "\n"
                div.wide {
                    table.plain {
                        thead { tr { th { "edit of" } th { "effect on" } th.n { "share of its own" } } }
                        tbody { "\n"
                            @for (value, i, j) in pairs.into_iter().take(PAIRS) {
                                tr {
                                    td { (name(j)) } td { (name(i)) }
                                    td.n { (format!("{:.0}\u{a0}%", 100.0 * value).replace('-', "\u{2212}")) }
                                } "\n"
                            }
                        }
                    }
                }
            } "\n"
            div { h3 { "Near-duplicates" } "\n" (near_duplicates(record)) } "\n"
        } "\n"
    }
}

fn near_duplicates(record: &Composition) -> Markup {
    let name = |id: &String| {
        record
            .concepts
            .iter()
            .find(|concept| concept.id == *id)
            .map_or(id.clone(), |concept| concept.name.clone())
    };
    html! {
        @if record.near_duplicates.is_empty() {
            p { "None among these concepts." } "\n"
        } @else {
            p {
                (count(record.near_duplicates.len(), "group")) ". Removing one concept of a group largely removes the others: "
                "remove the whole group, or none of it."
            }
            ul { @for group in &record.near_duplicates { li { (group.iter().map(name).collect::<Vec<_>>().join(", ")) } } } "\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_meet_stand_together() {
        // 0 and 3 are similar, and so are 3 and 1; 2 and 4 are slightly similar.
        let n = 5;
        let mut effect = vec![0.0; n * n];
        (0..n).for_each(|i| effect[i * n + i] = 2.0);
        for (i, j, value) in [(0, 3, 1.0), (1, 3, 0.8), (2, 4, 0.4)] {
            effect[i * n + j] = value;
            effect[j * n + i] = value;
        }
        let effect_matrix = EffectMatrix::new(effect, vec!["l".to_owned(); n]).unwrap();
        assert_eq!(order(&effect_matrix), [0, 3, 1, 2, 4]);
        let matrix = Matrix::of(&effect_matrix);
        let bytes = BASE64.decode(matrix.values.as_bytes()).unwrap();
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_eq!(values[..5], [1.0, 0.5, 0.0, 0.0, 0.0]);
        assert!(order(&EffectMatrix::new(Vec::new(), Vec::new()).unwrap()).is_empty());
    }
}
