//! The interference matrix: what each edit does to each concept, with near-duplicates side by side.

use std::fmt::Write;

use data_encoding::BASE64;
use serde::Serialize;

use super::Source;
use super::escape::{count, escape};
use crate::clusters::similarity;
use crate::dosing::Interference;

/// Concepts in the heat map at most: 600² values are 1.9 MB of a page.
const MOST: usize = 600;
/// Pairs named in the text.
const PAIRS: usize = 10;

/// The matrix as charts take it.
#[derive(Debug, Serialize)]
pub(super) struct Matrix {
    /// Concepts in the order of rows and columns, by their place in the record.
    order: Vec<usize>,
    /// K_ij / K_jj row by row, float32 little-endian, base64.
    values: String,
}

/// Concepts so that those that meet stand together: each next one is the most similar to any that stands, from the most similar pair
/// on (Prim's order of the maximum spanning tree).
pub(super) fn order(interference: &Interference) -> Vec<usize> {
    let n = interference.len();
    let near = |i: usize, j: usize| similarity(interference, i, j);
    let mut start = (f64::NEG_INFINITY, 0);
    for i in 0..n {
        for j in i + 1..n {
            if near(i, j) > start.0 {
                start = (near(i, j), i);
            }
        }
    }
    let (mut order, mut nearest, mut standing) = (Vec::with_capacity(n), vec![f64::NEG_INFINITY; n], vec![false; n]);
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

/// K_ij / K_jj: of what edit j does to its own concept, the share that it does to concept i.
fn share(interference: &Interference, i: usize, j: usize) -> f64 {
    let own = interference.effect(j, j);
    if own > 0.0 { interference.effect(i, j) / own } else { 0.0 }
}

impl Matrix {
    pub(super) fn of(interference: &Interference) -> Self {
        let mut order = order(interference);
        order.truncate(MOST);
        let values: Vec<u8> =
            order.iter().flat_map(|&i| order.iter().flat_map(move |&j| (share(interference, i, j) as f32).to_le_bytes())).collect();
        Self { order, values: BASE64.encode(&values) }
    }
}

/// The section's first part.
pub(super) fn write(page: &mut String, source: &Source<'_>) {
    let record = source.record;
    *page += "<section id=\"interference\"><h2>Interference</h2>\n";
    let Some(interference) = source.interference.filter(|interference| interference.len() > 1) else {
        *page += "<p>What edits do to other concepts was not worked out: edits were added as they are, or there is only one.</p>\n";
        return;
    };
    let _ = writeln!(
        page,
        "<p>Each column is one concept's edit, each row what it does to one concept, to first order: K<sub>ij</sub> = ⟨g<sub>i</sub>, D<sub>j</sub>⟩ as a \
         share of what the edit does to its own concept, K<sub>jj</sub>. Blue forgets the row's concept too, red works against its removal; \
         below 2 % is left blank. Concepts that meet stand together.{}</p>",
        if interference.len() > MOST { format!(" Shown are the {MOST} that meet most.") } else { String::new() }
    );
    *page += "<div class=\"chart square\" data-chart=\"matrix\" role=\"img\" aria-label=\"heat map of what each edit does to each concept\"></div>\n";
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for i in 0..interference.len() {
        pairs.extend((0..interference.len()).filter(|&j| j != i).map(|j| (share(interference, i, j), i, j)));
    }
    pairs.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()).then((a.1, a.2).cmp(&(b.1, b.2))));
    let name = |i: usize| record.concepts.get(i).map_or_else(String::new, |concept| escape(&concept.name));
    *page += "<div class=\"two\">\n<div><h3>Strongest</h3>\n<div class=\"wide\"><table class=\"plain\"><thead><tr><th>the edit of</th><th>does to</th>\
              <th class=n>share of its own</th></tr></thead><tbody>\n";
    for (value, i, j) in pairs.into_iter().take(PAIRS) {
        let value = format!("{:.0}\u{a0}%", 100.0 * value).replace('-', "\u{2212}");
        let _ = writeln!(page, "<tr><td>{}</td><td>{}</td><td class=n>{value}</td></tr>", name(j), name(i));
    }
    *page += "</tbody></table></div></div>\n<div><h3>Hardly told apart</h3>\n";
    if record.near_duplicates.is_empty() {
        *page += "<p>No two of these concepts.</p>\n";
    } else {
        let _ = write!(
            page,
            "<p>{}. What removes one concept of a line goes far towards removing the others: they go together, or not at all.</p><ul>",
            count(record.near_duplicates.len(), "group")
        );
        for group in &record.near_duplicates {
            let names: Vec<String> = group
                .iter()
                .map(|id| escape(record.concepts.iter().find(|concept| concept.id == *id).map_or(id, |concept| &concept.name)))
                .collect();
            let _ = write!(page, "<li>{}</li>", names.join(", "));
        }
        *page += "</ul>\n";
    }
    *page += "</div>\n</div>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_meet_stand_together() {
        // 0 and 3 are alike, 3 and 1 too; 2 and 4 are alike a little.
        let n = 5;
        let mut effect = vec![0.0; n * n];
        (0..n).for_each(|i| effect[i * n + i] = 2.0);
        for (i, j, value) in [(0, 3, 1.0), (1, 3, 0.8), (2, 4, 0.4)] {
            effect[i * n + j] = value;
            effect[j * n + i] = value;
        }
        let interference = Interference::new(effect, vec!["l".to_owned(); n]).unwrap();
        assert_eq!(order(&interference), [0, 3, 1, 2, 4]);
        let matrix = Matrix::of(&interference);
        let bytes = BASE64.decode(matrix.values.as_bytes()).unwrap();
        let values: Vec<f32> = bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(values[..5], [1.0, 0.5, 0.0, 0.0, 0.0]);
        assert!(order(&Interference::new(Vec::new(), Vec::new()).unwrap()).is_empty());
    }
}
