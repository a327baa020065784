//! Whether a release keeps its gates: pure, from bounds and a record to what is missed. What nobody measured keeps no bound.
//! Signatures are no part of a record; [`unsigned`] looks for them.

use std::path::Path;

use lethe_shared::manifest::Gates;
use lethe_shared::record::{Composition, Measured};

use crate::attest;
use crate::attest::key::PublicKey;
use crate::failure::Failure;
use crate::protected;
use crate::release::read::Release;

/// Reads a gate file, and the key that it names: a mistake should not wait for a run's end.
///
/// # Errors
/// [`Failure::BadInput`] when one of them is none.
pub fn read(path: &Path) -> Result<Gates, Failure> {
    let gates = Gates::read(path)?;
    gates.signed_by.as_deref().map(PublicKey::read).transpose()?;
    Ok(gates)
}

/// What a release lacks of the signatures that gates ask for, a sentence for each.
///
/// # Errors
/// When a key or the store cannot be read.
pub async fn unsigned(gates: impl IntoIterator<Item = &Gates>, release: &Release) -> Result<Vec<String>, Failure> {
    let mut missed = Vec::new();
    for path in gates.into_iter().filter_map(|gates| gates.signed_by.as_ref()) {
        let problems = attest::check(release, &PublicKey::read(path)?).await?;
        missed.extend(problems.first().map(|problem| format!("signed_by {}: {problem}", path.display())));
    }
    Ok(missed)
}

/// What a release misses, a sentence for each gate; empty when it passes.
pub fn missed(gates: &Gates, record: &Composition) -> Vec<String> {
    let forgetting = |of: fn(&Measured) -> f64| -> Option<(f64, f64, &str)> {
        let measured = record.concepts.iter().map(|concept| Some((of(concept.composed.as_ref()?), concept.name.as_str())));
        let measured = measured.collect::<Option<Vec<_>>>()?;
        let worst = measured.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, ""));
        let mean = measured.iter().map(|(value, _)| value).sum::<f64>() / measured.len().max(1) as f64;
        Some((mean, worst.0, worst.1))
    };
    let (fa1, fa5) = (forgetting(|measured| measured.fa1), forgetting(|measured| measured.fa5));
    let utility = record.utility.test.as_ref().or(record.utility.validation.as_ref());
    let neighbour = utility.map(|on| {
        let share = |hits: u32, n: u32| f64::from(hits) / f64::from(n.max(1));
        let drops =
            on.worst.iter().map(|lost| (share(lost.before.top1, lost.before.n) - share(lost.after.top1, lost.after.n), &*lost.class));
        drops.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, ""))
    });
    let largest = record.layers.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or((0.0, ""), |(layer, size)| (*size, layer));

    let found = [
        ("fa1_mean", gates.fa1_mean, fa1.map(|(mean, ..)| (mean, ""))),
        ("fa1_worst", gates.fa1_worst, fa1.map(|(_, worst, of)| (worst, of))),
        ("fa5_mean", gates.fa5_mean, fa5.map(|(mean, ..)| (mean, ""))),
        ("fa5_worst", gates.fa5_worst, fa5.map(|(_, worst, of)| (worst, of))),
        ("utility_drop", gates.utility_drop, utility.map(|on| (on.before.ta1 - on.after.ta1, ""))),
        ("neighbour_drop", gates.neighbour_drop, neighbour),
        ("missing", gates.missing.map(|bound| bound as f64), Some((record.missing.len() as f64, ""))),
        ("change", gates.change, Some(largest)),
        ("protected", gates.protected, protected::worst(&record.protected).map(|text| (text.moved, text.name.as_str()))),
    ];
    let shown = |value: f64| format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned();
    let judge = |(name, bound, found): (&str, Option<f64>, Option<(f64, &str)>)| {
        let bound = bound?;
        match found {
            None => Some(format!("{name} was not measured, and may be {bound} at most")),
            Some((value, _)) if value <= bound => None,
            Some((value, "")) => Some(format!("{name} is {}, and may be {bound} at most", shown(value))),
            Some((value, of)) => Some(format!("{name} is {} ({of}), and may be {bound} at most", shown(value))),
        }
    };
    found.into_iter().filter_map(judge).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use lethe_shared::digest::Digest;
    use lethe_shared::job::{ArtifactRef, MethodSettings};
    use lethe_shared::manifest::Stop;
    use lethe_shared::outcome::{ClassHits, Tower};
    use lethe_shared::record::{Base, ConceptRecord, Merge, Missing, ProtectedText, Retained, Utility, UtilityOn, VERSION, WorstClass};

    use super::*;

    fn concept(id: &str, fa1: f64, fa5: f64) -> ConceptRecord {
        let measured = Measured { fa1, fa5, held_out: None, utility: None };
        ConceptRecord {
            id: id.into(),
            name: id.to_uppercase(),
            class: id.into(),
            group: None,
            run: None,
            tower: Tower::Text,
            layer: "l".into(),
            step: 1.0,
            relative_step: 1.0,
            strength: 1.0,
            dose: 1.0,
            target: None,
            by_others: None,
            importance: 0.0,
            alignment: 0.0,
            direction: ArtifactRef { digest: Digest::of(b""), bytes: 0 },
            gradients: None,
            pairs: 1,
            forget: Vec::new(),
            before: measured,
            alone: measured,
            composed: Some(measured),
            ranking: Vec::new(),
            search: Vec::new(),
            said_before: None,
            said_composed: None,
        }
    }

    /// A record of two concepts, with numbers that are told apart easily.
    pub(crate) fn record() -> Composition {
        let retained = |ta1| Retained { ta1, ta5: ta1 };
        let hits = |top1| ClassHits { n: 4, top1, top5: 4 };
        let worst = [("half", 4, 2), ("some", 2, 1)];
        let worst = worst.map(|(class, before, after)| WorstClass { class: class.into(), before: hits(before), after: hits(after) });
        let on = |before, after| UtilityOn {
            images: 8,
            before: retained(before),
            after: retained(after),
            worst: worst.to_vec(),
            covered: None,
            never_seen: None,
            removed: None,
        };
        let search =
            MethodSettings { batch_size: 1, search_evaluations: 1, search_tolerance: 0.0, stop: Stop::Fa5, normalisation_gains: false };
        Composition {
            version: VERSION,
            name: "n".into(),
            run: "r".into(),
            parent: None,
            base: Base { address: "/m".into(), digest: Digest::of(b"") },
            digest: Digest::of(b""),
            method: "sum".into(),
            merge: Merge::Sum,
            near_duplicates: Vec::new(),
            search,
            moments: Vec::new(),
            concepts: vec![concept("a", 0.0, 0.25), concept("b", 0.0, 0.75)],
            missing: vec![Missing { id: "c".into(), reason: String::new() }],
            utility: Utility { retained_classes: Some(2), validation: Some(on(0.9, 0.1)), test: Some(on(0.75, 0.5)) },
            protected: [("still", 0.0), ("shifted", 0.125)].map(|(name, moved)| ProtectedText { name: name.into(), moved }).to_vec(),
            layers: BTreeMap::from([("k".into(), 0.25), ("l".into(), 0.5)]),
            gates: None,
            origin: None,
            targets: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    #[test]
    fn each_gate_looks_at_its_own_number() {
        let all = |share: f64, missing: u64| Gates {
            fa1_mean: Some(share),
            fa1_worst: Some(share),
            fa5_mean: Some(share),
            fa5_worst: Some(share),
            utility_drop: Some(share),
            neighbour_drop: Some(share),
            missing: Some(missing),
            change: Some(share),
            protected: Some(share),
            signed_by: None,
        };
        assert_eq!(missed(&Gates::default(), &record()), Vec::<String>::new());
        assert_eq!(missed(&all(0.75, 1), &record()), Vec::<String>::new());
        let expected = [
            "fa5_mean is 0.5, and may be 0 at most",
            "fa5_worst is 0.75 (B), and may be 0 at most",
            "utility_drop is 0.25, and may be 0 at most",
            "neighbour_drop is 0.5 (half), and may be 0 at most",
            "missing is 1, and may be 0 at most",
            "change is 0.5 (l), and may be 0 at most",
            "protected is 0.125 (shifted), and may be 0 at most",
        ];
        assert_eq!(missed(&all(0.0, 0), &record()), expected);
        // Each is met at its very value.
        let exact = Gates { fa5_mean: Some(0.5), utility_drop: Some(0.25), neighbour_drop: Some(0.5), change: Some(0.5), ..all(0.75, 1) };
        assert_eq!(missed(&exact, &record()), Vec::<String>::new());
    }

    #[test]
    fn what_was_not_measured_passes_nothing() {
        let mut record = record();
        record.utility = Utility::default();
        record.concepts[0].composed = None;
        let gates = Gates { fa1_worst: Some(1.0), utility_drop: Some(1.0), change: Some(1.0), ..Gates::default() };
        let says = ["fa1_worst was not measured, and may be 1 at most", "utility_drop was not measured, and may be 1 at most"];
        assert_eq!(missed(&gates, &record), says);
    }
}
