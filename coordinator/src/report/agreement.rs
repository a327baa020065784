//! What was predicted to first order beside what happened, and how far the two agree.

use std::fmt::Write;

use super::Source;
use super::notes::cost;

/// Pairs of values below which a correlation says nothing.
const LEAST: usize = 5;

/// A concept's number with what was predicted of it and what happened.
pub(super) type Point = (usize, f64, f64);

/// By how much all edits together should raise each concept's forget loss, and by how much the similarity of its forget images with
/// its class's text fell.
pub(super) fn raises(source: &Source<'_>) -> Vec<Point> {
    let concepts = &source.record.concepts;
    let Some(interference) = source.interference.filter(|interference| interference.len() == concepts.len()) else { return Vec::new() };
    let steps: Vec<f64> = concepts.iter().map(|concept| concept.strength * concept.dose * concept.step).collect();
    let predicted = interference.predicted_raise(&steps);
    let point = |i: usize| {
        let (before, after) = concepts[i].said_before.as_ref().zip(concepts[i].said_composed.as_ref())?;
        Some((i, predicted[i], before.similarity - after.similarity))
    };
    (0..concepts.len()).filter_map(point).collect()
}

/// What each edit alone should cost what must stay, λ²·K_jj, and the points of TA@1 that it did cost.
pub(super) fn costs(source: &Source<'_>) -> Vec<Point> {
    let concepts = &source.record.concepts;
    let Some(interference) = source.interference.filter(|interference| interference.len() == concepts.len()) else { return Vec::new() };
    let point = |i: usize| Some((i, concepts[i].step * concepts[i].step * interference.effect(i, i), cost(&concepts[i])?));
    (0..concepts.len()).filter_map(point).collect()
}

/// What all edits together should cost what must stay, aᵀQa, and the sum of what each alone should.
fn together(source: &Source<'_>) -> Option<(f64, f64)> {
    let concepts = &source.record.concepts;
    let interference = source.interference.filter(|interference| interference.len() == concepts.len() && !concepts.is_empty())?;
    let steps: Vec<f64> = concepts.iter().map(|concept| concept.strength * concept.dose * concept.step).collect();
    let alone = (0..concepts.len()).map(|i| concepts[i].step * concepts[i].step * interference.effect(i, i)).sum();
    Some((interference.predicted_cost(&steps), alone))
}

/// Spearman's rank correlation of the two values, ties at their mean rank; `None` when one of them does not vary.
pub(super) fn rank_correlation(points: &[Point]) -> Option<f64> {
    let first = ranks(&points.iter().map(|point| point.1).collect::<Vec<_>>());
    let second = ranks(&points.iter().map(|point| point.2).collect::<Vec<_>>());
    let mean = (points.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let spread = (product(&first, &first) * product(&second, &second)).sqrt();
    (spread > 0.0).then(|| product(&first, &second) / spread)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let before = order.iter().position(|i| *i == tied[0]).unwrap_or(0);
        tied.iter().for_each(|&i| ranks[i] = before as f64 + (tied.len() as f64 - 1.0) / 2.0);
    }
    ranks
}

/// A correlation in words.
fn words(points: &[Point]) -> String {
    if points.len() < LEAST {
        return "There are too few concepts to say how far the two agree.".to_owned();
    }
    let Some(correlation) = rank_correlation(points) else {
        return "One of the two is the same for all concepts, so that there is nothing to compare.".to_owned();
    };
    let how = match correlation {
        c if c >= 0.8 => "they agree well",
        c if c >= 0.5 => "they agree in the main",
        c if c >= 0.2 => "they agree a little",
        c if c > -0.2 => "they do not agree: the prediction says nothing about what happens here",
        _ => "they contradict each other",
    };
    format!("Rank correlation {correlation:.2} over {} concepts: {how}.", points.len()).replace('-', "\u{2212}")
}

/// The section's second part; it ends the section.
pub(super) fn write(page: &mut String, source: &Source<'_>) {
    let (raises, costs) = (raises(source), costs(source));
    if !raises.is_empty() || !costs.is_empty() {
        *page += "<h3>Predicted, and what happened</h3>\n<div class=\"two\">\n";
        let mut chart = |id: &str, what: &str, points: &[Point]| {
            if points.is_empty() {
                return;
            }
            let _ = writeln!(
                page,
                "<div><p>{what} <b>{}</b></p>\n<div class=\"chart\" data-chart=\"{id}\" role=\"img\" aria-label=\"scatter of predicted and measured values\"></div></div>",
                words(points)
            );
        };
        chart(
            "raises",
            "Of each concept: by how much all edits together should raise its forget loss, (Ka)<sub>i</sub>, and by how much the cosine \
             between its forget images and its class's text fell.",
            &raises,
        );
        chart(
            "costs",
            "Of each edit alone: what it should cost what must stay, λ²K<sub>jj</sub>, and the points of TA@1 over all other classes \
             that it did cost on the validation set.",
            &costs,
        );
        *page += "</div>\n";
    }
    if let Some((whole, alone)) = together(source) {
        let _ = write!(
            page,
            "<p>All edits together should cost what must stay aᵀQa = {whole:.3}; the same edits, each as strong as it had to be alone, \
             {alone:.3} in sum."
        );
        if let Some(on) = source.record.utility.test.as_ref().or(source.record.utility.validation.as_ref()) {
            let _ = write!(page, " What happened to retained classes: TA@1 fell by {:.1} points.", 100.0 * (on.before.ta1 - on.after.ta1));
        }
        *page += "</p>\n";
    }
    *page += "</section>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(f64, f64)]) -> Vec<Point> {
        values.iter().enumerate().map(|(i, &(a, b))| (i, a, b)).collect()
    }

    #[test]
    fn ranks_are_correlated() {
        assert_eq!(rank_correlation(&points(&[(1.0, 10.0), (2.0, 100.0), (3.0, 1000.0)])), Some(1.0));
        assert_eq!(rank_correlation(&points(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])), Some(-1.0));
        assert_eq!(rank_correlation(&points(&[(1.0, 3.0), (2.0, 3.0)])), None);
        // Ranks 0, 1.5, 1.5, 3, 4 and 1, 0, 2.5, 2.5, 4: 7.25 / 9.5.
        let found = rank_correlation(&points(&[(1.0, 2.0), (2.0, 1.0), (2.0, 3.0), (4.0, 3.0), (5.0, 9.0)])).unwrap();
        assert!((found - 0.763_157_894_736_842).abs() < 1e-12, "{found}");
    }

    #[test]
    fn correlations_are_put_into_words() {
        let rising: Vec<(f64, f64)> = (0..6).map(|i| (f64::from(i), f64::from(i))).collect();
        assert!(words(&points(&rising)).contains("1.00 over 6 concepts: they agree well"));
        assert!(words(&points(&rising[..3])).contains("too few"));
        assert!(words(&points(&[(1.0, 1.0); 6])).contains("nothing to compare"));
    }
}
