//! Three questions about a release, answered from its record: is it gone, can it come back, and
//! what did it cost? Pure.

use lethe_shared::manifest::BuiltInProbe;
use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{Composition, Group, ProbeRecord, UtilityOn};

/// A question, and sentences that answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The question.
    pub question: &'static str,
    /// The answer. A sentence says what was not measured.
    pub sentences: Vec<String>,
}

/// Returns the questions and their answers; none for a release that was not measured.
pub fn answers(record: &Composition) -> Vec<Answer> {
    if !record.is_measured() || record.concepts.is_empty() {
        return Vec::new();
    }
    vec![
        Answer { question: "Is it gone?", sentences: gone(record) },
        Answer { question: "Can it come back?", sentences: back(record) },
        Answer { question: "What did it cost?", sentences: cost(record) },
    ]
}

fn percent(share: f64) -> String {
    format!("{:.0}\u{a0}%", 100.0 * share)
}

fn probe(record: &Composition, probe: BuiltInProbe) -> Option<&ProbeRecord> {
    record.probe(probe.name())
}

/// Says that a built-in probe would measure something.
fn not_measured(what: &str, probe: BuiltInProbe) -> String {
    format!("{what} was not measured (`lethe evaluate RELEASE --probe {}` does).", probe.name())
}

/// Returns the accuracy on a group of classes: on the test set, or without one on the validation
/// set.
fn group(record: &Composition, of: impl Fn(&UtilityOn) -> Option<Group>) -> Option<Group> {
    let utility = &record.utility;
    utility.test.as_ref().or(utility.validation.as_ref()).and_then(of)
}

fn gone(record: &Composition) -> Vec<String> {
    let removed = record.of_status(ConceptStatus::Removed).len();
    let all = record.concepts.len() + record.missing.len();
    let mut said =
        vec![format!("{removed} of {all} concepts are forgotten on their own forget images.")];
    if let Some(of) = group(record, |on| on.removed) {
        said.push(format!(
            "On images that no forget set has, top-1 accuracy on the removed classes is {} ({} before).",
            percent(of.after.ta1),
            percent(of.before.ta1)
        ));
    }
    let mut spread = Vec::new();
    for (measure, name) in
        [("fa5", "FA@5"), ("unseen-ta5", "top-5 accuracy on images that no forget set has")]
    {
        let number = |what: &str| record.probe_number(&format!("forgetting.{measure}.{what}"));
        if let [Some(mean), Some(low), Some(high), Some(p95), Some(worst)] =
            ["mean", "low", "high", "p95", "worst"].map(number)
        {
            spread.push(format!(
                "Over concepts, {name} is {} on average (95\u{a0}% interval {} to {}), {} at the 95th percentile and {} for the worst concept.",
                percent(mean),
                percent(low),
                percent(high),
                percent(p95),
                percent(worst)
            ));
        }
    }
    if spread.is_empty() {
        spread.push(not_measured("The spread over concepts", BuiltInProbe::Forgetting));
    }
    said.append(&mut spread);
    let candidates = record.recognition.iter().flat_map(|recognition| &recognition.candidates);
    let few: Vec<String> = candidates
        .filter(|of| [1, 19].contains(&of.others))
        .map(|of| {
            format!(
                "beside {} for {} ({} before, {} by chance)",
                match of.others {
                    1 => "one retained name".to_owned(),
                    others => format!("{others}"),
                },
                percent(of.after),
                percent(of.before),
                percent(1.0 / (1.0 + f64::from(of.others)))
            )
        })
        .collect();
    if !few.is_empty() {
        said.push(format!(
            "The removed name is still the best match of a forget image {}.",
            few.join(", ")
        ));
    }
    if let (Some(before), Some(now)) = (
        record.probe_number("features.class-means.before.removed-ta1"),
        record.probe_number("features.class-means.removed-ta1"),
    ) {
        said.push(format!(
            "A classifier fitted to image embeddings still finds the removed classes on {} of unseen images ({} before).",
            percent(now),
            percent(before)
        ));
    }
    said.push(match probe(record, BuiltInProbe::Words) {
        Some(words) => {
            let worst = |name: &&String| name.ends_with(".fa5") && !name.contains(".before.");
            let worst = words.numbers.iter().filter(|(name, _)| worst(name));
            let worst = worst.max_by(|a, b| a.1.total_cmp(b.1));
            match worst {
                Some((name, fa5)) => format!(
                    "Of other ways to write the names, `{}` finds most: FA@5 {}.",
                    name.trim_end_matches(".fa5"),
                    percent(*fa5)
                ),
                None => "There is no other way to write the names.".to_owned(),
            }
        }
        None => not_measured("Recognition by other words", BuiltInProbe::Words),
    });
    said
}

fn back(record: &Composition) -> Vec<String> {
    let mut said = Vec::new();
    match probe(record, BuiltInProbe::Relearn) {
        Some(relearn) => {
            let before = group(record, |on| on.removed).map(|of| of.before.ta5);
            let number = |name: &str| relearn.numbers.get(name).copied();
            for (lesson, data) in [
                ("retained", "retained pairs alone"),
                ("1-pair", "one pair of each removed concept"),
                ("5-pairs", "five pairs of each"),
            ] {
                let unseen = number(&format!("{lesson}.unseen-ta5"));
                let forget = number(&format!("{lesson}.fa5"));
                said.extend(match (unseen, before, forget) {
                    (Some(now), Some(before), _) => Some(format!(
                        "After fine-tuning on {data}, top-5 accuracy on the removed classes' unseen images is {} ({} before removal).",
                        percent(now),
                        percent(before)
                    )),
                    (_, _, Some(now)) => {
                        Some(format!("After fine-tuning on {data}, FA@5 is {}.", percent(now)))
                    }
                    _ => None,
                });
            }
        }
        None => said.push(not_measured("Relearning", BuiltInProbe::Relearn)),
    }
    match probe(record, BuiltInProbe::SoftPrompt) {
        Some(soft_prompt) => {
            let number = |name: &str| soft_prompt.numbers.get(name).copied();
            for (measure, name) in [
                ("unseen-ta5", "top-5 accuracy on the removed classes' unseen images"),
                ("fa5", "FA@5"),
            ] {
                let before = number(&format!("before.{measure}"));
                if let Some((now, before)) = number(measure).zip(before) {
                    said.push(format!(
                        "With four learned tokens in place of a name, {name} is {} ({} with such tokens in the base model).",
                        percent(now),
                        percent(before)
                    ));
                }
            }
        }
        None => said.push(not_measured("Recognition by learned tokens", BuiltInProbe::SoftPrompt)),
    }
    match probe(record, BuiltInProbe::Rounded) {
        Some(rounded) => {
            let of = |name: &str| {
                let fa5 = rounded.numbers.get(&format!("{name}.fa5"))?;
                Some(format!("{} in {name}", percent(*fa5)))
            };
            let all: Vec<String> = ["float16", "bfloat16", "int8", "int8-tensor", "int4"]
                .into_iter()
                .filter_map(of)
                .collect();
            said.push(format!("Rounded, FA@5 is {}.", all.join(", ")));
        }
        None => said.push(not_measured("Rounding", BuiltInProbe::Rounded)),
    }
    if let Some(fa5) = record.probe_number("halfway.fa5") {
        said.push(format!("Merged half and half with the base model, FA@5 is {}.", percent(fa5)));
    }
    said
}

fn cost(record: &Composition) -> Vec<String> {
    let mut said = Vec::new();
    for (name, of) in [
        ("classes that the retained data names", group(record, |on| on.covered)),
        ("classes that it does not name", group(record, |on| on.never_seen)),
    ] {
        if let Some(of) = of.filter(|of| of.before.ta1 > 0.0) {
            said.push(format!(
                "Retained {name} keep {} of their top-1 accuracy ({} to {}).",
                percent(of.after.ta1 / of.before.ta1),
                percent(of.before.ta1),
                percent(of.after.ta1)
            ));
        }
    }
    if let Some(kept) = record.probe_number("features.neighbours.kept") {
        said.push(format!("The retained classes nearest to removed ones keep {}.", percent(kept)));
    }
    if said.is_empty() {
        said.push("There was no set to measure retained classes on.".to_owned());
    }
    if let Some((layer, size)) = record.largest_change() {
        said.push(format!(
            "The layer that changes most, `{layer}`, changes by {} its own weights.",
            times(size)
        ));
    }
    if let (Some(fa5), Some(kept)) =
        (record.probe_number("random.fa5"), record.probe_number("random.covered-kept"))
    {
        said.push(format!(
            "A random change of that size gives FA@5 {}, and retained classes keep {}.",
            percent(fa5),
            percent(kept)
        ));
    }
    said
}

fn times(size: f64) -> String {
    if size < 1.0 { format!("{size:.2} times") } else { format!("{size:.0} times") }
}
