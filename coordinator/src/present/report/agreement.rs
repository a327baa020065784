//! First-order predictions and measurements, and their agreement.

use maud::{Markup, html};

use super::notes::cost;
use super::source::Source;

/// Smallest number of value pairs for which a correlation is shown.
const LEAST: usize = 5;

/// A concept's number, its predicted and its measured value.
pub(super) type Point = (usize, f64, f64);

/// Returns, for each concept, the predicted rise of its forget loss by all edits together, and the
/// measured fall of the similarity between its forget images and its class's text.
pub(super) fn raises(source: &Source<'_>) -> Vec<Point> {
    let concepts = &source.record.concepts;
    let Some(effect_matrix) =
        source.effect_matrix.filter(|effect_matrix| effect_matrix.len() == concepts.len())
    else {
        return Vec::new();
    };
    let steps: Vec<f64> = concepts
        .iter()
        .map(|concept| concept.strength * concept.coefficient * concept.step)
        .collect();
    let predicted = effect_matrix.predicted_raise(&steps);
    let point = |i: usize| {
        let (before, after) = concepts[i]
            .predictions_before
            .as_ref()
            .zip(concepts[i].predictions_composed.as_ref())?;
        Some((i, predicted[i], before.similarity - after.similarity))
    };
    (0..concepts.len()).filter_map(point).collect()
}

/// Returns, for each edit alone, its predicted cost on retained data, λ²·K_jj, and its loss of TA@1
/// in points.
pub(super) fn costs(source: &Source<'_>) -> Vec<Point> {
    let concepts = &source.record.concepts;
    let Some(effect_matrix) =
        source.effect_matrix.filter(|effect_matrix| effect_matrix.len() == concepts.len())
    else {
        return Vec::new();
    };
    let point = |i: usize| {
        Some((
            i,
            concepts[i].step * concepts[i].step * effect_matrix.effect(i, i),
            cost(&concepts[i])?,
        ))
    };
    (0..concepts.len()).filter_map(point).collect()
}

/// Returns the predicted cost of all edits together on retained data, aᵀQa, and the sum of the
/// predicted costs of each alone.
fn together(source: &Source<'_>) -> Option<(f64, f64)> {
    let concepts = &source.record.concepts;
    let effect_matrix = source
        .effect_matrix
        .filter(|effect_matrix| effect_matrix.len() == concepts.len() && !concepts.is_empty())?;
    let steps: Vec<f64> = concepts
        .iter()
        .map(|concept| concept.strength * concept.coefficient * concept.step)
        .collect();
    let alone = (0..concepts.len())
        .map(|i| concepts[i].step * concepts[i].step * effect_matrix.effect(i, i))
        .sum();
    Some((effect_matrix.predicted_cost(&steps), alone))
}

/// Returns Spearman's rank correlation of the two values, with ties at their mean rank; `None` if
/// one of them is constant.
pub(super) fn rank_correlation(points: &[Point]) -> Option<f64> {
    let first = ranks(&points.iter().map(|point| point.1).collect::<Vec<_>>());
    let second = ranks(&points.iter().map(|point| point.2).collect::<Vec<_>>());
    let mean = (points.len() as f64 - 1.0) / 2.0;
    let product =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
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

/// Describes a correlation in words.
fn words(points: &[Point]) -> String {
    if points.len() < LEAST {
        return "There are too few concepts to compare the two.".to_owned();
    }
    let Some(correlation) = rank_correlation(points) else {
        return "One of the two is the same for all concepts, so there is nothing to compare."
            .to_owned();
    };
    let how = match correlation {
        c if c >= 0.8 => "they agree well",
        c if c >= 0.5 => "they mostly agree",
        c if c >= 0.2 => "they agree a little",
        c if c > -0.2 => {
            "they do not agree: here the prediction says nothing about the measurement"
        }
        _ => "they contradict each other",
    };
    format!("Rank correlation {correlation:.2} over {} concepts: {how}.", points.len())
        .replace('-', "\u{2212}")
}

/// Returns the section of predictions and measurements: two scatter plots with their correlations,
/// and the cost of all edits together.
pub(super) fn predictions(source: &Source<'_>) -> Markup {
    let chart = |id: &str, meaning: Markup, points: &[Point]| {
        html! {
            @if !points.is_empty() {
                div {
                    p { (meaning) " " b { (words(points)) } } "\n"
                    div.chart data-chart=(id) role="img" aria-label="scatter of predicted and measured values" {}
                } "\n"
            }
        }
    };
    let (raises, costs) = (raises(source), costs(source));
    let utility = &source.record.utility;
    html! {
        @if !raises.is_empty() || !costs.is_empty() {
            h3 { "Predicted and measured" } "\n"
            div.two { "\n"
                (chart("raises", html! {
                    "For each concept: the predicted rise of its forget loss by all edits together, (Ka)" sub { "i" }
                    ", and the measured fall of the cosine between its forget images and its class's text."
                }, &raises))
                (chart("costs", html! {
                    "For each edit alone: its predicted cost on retained data, λ²K" sub { "jj" }
                    ", and the points of TA@1 over all other classes that it lost on the validation set."
                }, &costs))
            } "\n"
        }
        @if let Some((whole, alone)) = together(source) {
            p {
                "Predicted cost of all edits together on retained data: aᵀQa = " (format!("{whole:.3}"))
                ". Sum of the costs of the same edits, each as strong as it has to be alone: " (format!("{alone:.3}")) "."
                @if let Some(on) = utility.test.as_ref().or(utility.validation.as_ref()) {
                    " Measured: TA@1 on retained classes fell by " (format!("{:.1}", 100.0 * (on.before.ta1 - on.after.ta1))) " points."
                }
            } "\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(f64, f64)]) -> Vec<Point> {
        values.iter().enumerate().map(|(i, &(a, b))| (i, a, b)).collect()
    }

    #[test]
    fn ranks_are_correlated() {
        assert_eq!(
            rank_correlation(&points(&[(1.0, 10.0), (2.0, 100.0), (3.0, 1000.0)])),
            Some(1.0)
        );
        assert_eq!(rank_correlation(&points(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])), Some(-1.0));
        assert_eq!(rank_correlation(&points(&[(1.0, 3.0), (2.0, 3.0)])), None);
        // Ranks 0, 1.5, 1.5, 3, 4 and 1, 0, 2.5, 2.5, 4: 7.25 / 9.5.
        let found = rank_correlation(&points(&[
            (1.0, 2.0),
            (2.0, 1.0),
            (2.0, 3.0),
            (4.0, 3.0),
            (5.0, 9.0),
        ]))
        .unwrap();
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
