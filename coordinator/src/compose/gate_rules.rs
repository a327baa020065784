//! Release gates: a pure function from bounds and a record to the missed gates. A bound on a value
//! that was not measured is missed. Signatures are not part of a record;
//! [`unsigned`](crate::release::gates::unsigned) checks them.

use std::fmt;

use lethe_shared::manifest::{Gates, ProbeBound};
use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{Composition, Measured, UtilityOn};

use crate::compose::protected;

/// Smallest share of retained TA@1 to keep when no gate sets a bound.
pub const UTILITY_KEPT: f64 = 0.8;
/// Share of TA@1 over covered classes below which a warning is given when no gate sets a bound.
pub const COVERED_KEPT: f64 = 0.95;

/// Returns the misses of several gates and of the default gate, one sentence each; empty when the
/// release passes.
pub fn all_missed<'a>(
    gates: impl IntoIterator<Item = &'a Gates>,
    record: &Composition,
) -> Vec<String> {
    let gates: Vec<&Gates> = gates.into_iter().collect();
    let mut missing: Vec<String> = gates.iter().flat_map(|gates| missed(gates, record)).collect();
    if gates.iter().all(|gates| gates.utility_kept.is_none()) {
        let lost = Kept::retained(record).filter(|kept| kept.share() < UTILITY_KEPT);
        missing.extend(lost.map(|kept| {
            format!(
                "utility_kept is {kept}, and has to be {UTILITY_KEPT} at least; `utility_kept` under [gates] in the manifest or in a gate file \
                 sets another bound"
            )
        }));
    }
    missing
}

/// Returns warnings for users of the release, which do not fail a gate.
pub fn warnings<'a>(
    gates: impl IntoIterator<Item = &'a Gates>,
    record: &Composition,
) -> Vec<String> {
    if gates.into_iter().any(|gates| gates.covered_kept.is_some()) {
        return Vec::new();
    }
    let lost = Kept::covered(record).filter(|kept| kept.share() < COVERED_KEPT);
    let warning = lost.map(|kept| {
        format!(
            "of the retained classes that retain data names, the share of TA@1 kept is {kept}, less than {COVERED_KEPT}: remove fewer concepts \
             or remove them at a lower strength, raise composition.tolerance, or add retain data; `covered_kept` under [gates] sets a bound"
        )
    });
    warning.into_iter().collect()
}

/// TA@1 over the images of some classes, before and after.
#[derive(Debug, Clone, Copy)]
struct Kept {
    set: &'static str,
    before: f64,
    after: f64,
}

impl Kept {
    /// Returns the accuracy on retained classes, of the validation set or else of the test set.
    fn retained(record: &Composition) -> Option<Self> {
        let of = |set, on: &Option<UtilityOn>| {
            on.as_ref().map(|on| Self { set, before: on.before.ta1, after: on.after.ta1 })
        };
        of("validation", &record.utility.validation).or_else(|| of("test", &record.utility.test))
    }

    /// Returns the accuracy on covered classes of the same set.
    fn covered(record: &Composition) -> Option<Self> {
        let (set, on) = match (&record.utility.validation, &record.utility.test) {
            (Some(on), _) => ("validation", on),
            (None, Some(on)) => ("test", on),
            (None, None) => return None,
        };
        on.covered.as_ref().map(|group| Self {
            set,
            before: group.before.ta1,
            after: group.after.ta1,
        })
    }

    /// Returns the share that is kept; 1 if the accuracy was 0 before.
    fn share(self) -> f64 {
        if self.before > 0.0 { self.after / self.before } else { 1.0 }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}: TA@1 {:.1} % → {:.1} %)",
            shown(self.share()),
            self.set,
            100.0 * self.before,
            100.0 * self.after
        )
    }
}

fn shown(value: f64) -> String {
    format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Returns the misses of the bounds that these gates set, one sentence each. [`all_missed`] adds
/// the default gate.
pub fn missed(gates: &Gates, record: &Composition) -> Vec<String> {
    let forgetting = |of: fn(&Measured) -> f64| -> Option<(f64, f64, &str)> {
        let measured = record
            .concepts
            .iter()
            .map(|concept| Some((of(concept.composed.as_ref()?), concept.name.as_str())));
        let measured = measured.collect::<Option<Vec<_>>>()?;
        let worst =
            measured.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, ""));
        let mean =
            measured.iter().map(|(value, _)| value).sum::<f64>() / measured.len().max(1) as f64;
        Some((mean, worst.0, worst.1))
    };
    let (fa1, fa5) = (forgetting(|measured| measured.fa1), forgetting(|measured| measured.fa5));
    let utility = record.utility.test.as_ref().or(record.utility.validation.as_ref());
    let neighbour = utility.map(|on| {
        let share = |hits: u32, n: u32| f64::from(hits) / f64::from(n.max(1));
        let drops = on.worst.iter().map(|lost| {
            (
                share(lost.before.top1, lost.before.n) - share(lost.after.top1, lost.after.n),
                &*lost.class,
            )
        });
        drops.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, ""))
    });
    let largest = record
        .layers
        .iter()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or((0.0, ""), |(layer, size)| (*size, layer));

    let found = [
        ("fa1_mean", gates.fa1_mean, fa1.map(|(mean, ..)| (mean, ""))),
        ("fa1_worst", gates.fa1_worst, fa1.map(|(_, worst, of)| (worst, of))),
        ("fa5_mean", gates.fa5_mean, fa5.map(|(mean, ..)| (mean, ""))),
        ("fa5_worst", gates.fa5_worst, fa5.map(|(_, worst, of)| (worst, of))),
        ("utility_drop", gates.utility_drop, utility.map(|on| (on.before.ta1 - on.after.ta1, ""))),
        ("neighbour_drop", gates.neighbour_drop, neighbour),
        (
            "missing",
            gates.missing.map(|bound| bound as f64),
            Some((record.missing.len() as f64, "")),
        ),
        (
            "showing",
            gates.showing.map(|bound| bound as f64),
            showing(record).map(|count| (count, "")),
        ),
        ("change", gates.change, Some(largest)),
        (
            "protected",
            gates.protected,
            protected::worst(&record.protected).map(|text| (text.moved, text.name.as_str())),
        ),
    ];
    let judge = |(name, bound, found): (&str, Option<f64>, Option<(f64, &str)>)| {
        let bound = bound?;
        match found {
            None => Some(format!("{name} was not measured, and may be {bound} at most")),
            Some((value, _)) if value <= bound => None,
            Some((value, "")) => {
                Some(format!("{name} is {}, and may be {bound} at most", shown(value)))
            }
            Some((value, of)) => {
                Some(format!("{name} is {} ({of}), and may be {bound} at most", shown(value)))
            }
        }
    };
    let kept = [
        ("utility_kept", gates.utility_kept, Kept::retained(record)),
        ("covered_kept", gates.covered_kept, Kept::covered(record)),
    ];
    let judge_kept = |(name, bound, kept): (&str, Option<f64>, Option<Kept>)| {
        let bound = bound.filter(|bound| *bound > 0.0)?;
        match kept {
            None => Some(format!("{name} was not measured, and has to be {bound} at least")),
            Some(kept) if kept.share() >= bound => None,
            Some(kept) => Some(format!("{name} is {kept}, and has to be {bound} at least")),
        }
    };
    let mut missed: Vec<String> = found.into_iter().filter_map(judge).collect();
    missed.extend(kept.into_iter().filter_map(judge_kept));
    missed.extend(gates.probe.iter().filter_map(|(name, bound)| missed_probe(name, bound, record)));
    missed
}

/// Returns the miss of a bound on a number that a probe measures.
fn missed_probe(name: &str, bound: &ProbeBound, record: &Composition) -> Option<String> {
    let Some(value) = record.probe_number(name) else {
        return Some(format!(
            "probe {name} was not measured; `lethe evaluate --probe` measures it"
        ));
    };
    let missed =
        |expected: String| Some(format!("probe {name} is {}, and {expected}", shown(value)));
    match *bound {
        ProbeBound { min: Some(min), .. } if value < min => {
            missed(format!("has to be {min} at least"))
        }
        ProbeBound { max: Some(max), .. } if value > max => missed(format!("may be {max} at most")),
        ProbeBound { .. } => None,
    }
}

/// Returns the number of concepts that still show, if every applied concept was measured.
fn showing(record: &Composition) -> Option<f64> {
    let measured =
        record.concepts.iter().all(|concept| concept.composed.is_some() || concept.strength == 0.0);
    measured.then(|| record.of_status(ConceptStatus::Showing).len() as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use lethe_shared::digest::Digest;
    use lethe_shared::measurement::ClassHits;
    use lethe_shared::record::{
        Base, ConceptRecord, Group, Merge, Missing, ProbeRecord, ProtectedText, Retained, Utility,
        VERSION, WorstClass,
    };
    use lethe_shared::reference::ArtifactRef;
    use lethe_shared::vocabulary::{MethodSettings, Stop, Tower};

    use super::*;

    pub(crate) fn concept(id: &str, fa1: f64, fa5: f64) -> ConceptRecord {
        let measured = Measured { fa1, fa5, within: None, held_out: None, utility: None };
        ConceptRecord {
            id: id.into(),
            name: id.to_uppercase(),
            class: id.into(),
            group: None,
            run: None,
            tower: Tower::Text,
            layers: Vec::new(),
            layer: "l".into(),
            step: 1.0,
            relative_step: 1.0,
            strength: 1.0,
            coefficient: 1.0,
            target: None,
            by_others: None,
            importance: 0.0,
            alignment: 0.0,
            direction: ArtifactRef { digest: Digest::of(b""), bytes: 0 },
            rank: None,
            residual: None,
            gradients: None,
            criterion: None,
            verdict: None,
            pairs: 1,
            forget: Vec::new(),
            before: measured,
            alone: Some(measured),
            composed: Some(measured),
            ranking: Vec::new(),
            search: Vec::new(),
            predictions_before: None,
            predictions_composed: None,
        }
    }

    /// Returns a record of two concepts whose numbers are all different.
    pub(crate) fn record() -> Composition {
        let retained = |ta1| Retained { ta1, ta5: ta1 };
        let hits = |top1| ClassHits { n: 4, top1, top5: 4 };
        let worst = [("half", 4, 2), ("some", 2, 1)];
        let worst = worst.map(|(class, before, after)| WorstClass {
            class: class.into(),
            before: hits(before),
            after: hits(after),
        });
        let on = |before, after| UtilityOn {
            images: 8,
            before: retained(before),
            after: retained(after),
            worst: worst.to_vec(),
            covered: None,
            never_seen: None,
            removed: None,
        };
        let search = MethodSettings {
            batch_size: 1,
            search_evaluations: 1,
            search_tolerance: 0.0,
            stop: Stop::Fa5,
            normalisation_gains: false,
        };
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
            recognition: None,
            utility: Utility {
                retained_classes: Some(2),
                validation: Some(on(0.9, 0.1)),
                test: Some(on(0.75, 0.5)),
            },
            protected: [("still", 0.0), ("shifted", 0.125)]
                .map(|(name, moved)| ProtectedText { name: name.into(), moved })
                .to_vec(),
            layers: BTreeMap::from([("k".into(), 0.25), ("l".into(), 0.5)]),
            change_bound: None,
            towers: Vec::new(),
            probes: Vec::new(),
            receipts_for_unknown: false,
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
            showing: Some(2 * missing),
            utility_kept: Some(1.0 - share),
            covered_kept: Some(1.0 - share),
            change: Some(share),
            protected: Some(share),
            probe: BTreeMap::new(),
            signed_by: None,
        };
        let mut record = record();
        let of = |ta1| Retained { ta1, ta5: ta1 };
        if let Some(on) = &mut record.utility.validation {
            on.before = of(0.8);
            on.after = of(0.4);
            on.covered = Some(Group { classes: 1, images: 4, before: of(0.8), after: of(0.6) });
        }
        assert_eq!(missed(&Gates::default(), &record), Vec::<String>::new());
        assert_eq!(missed(&all(0.75, 1), &record), Vec::<String>::new());
        let expected = [
            "fa5_mean is 0.5, and may be 0 at most",
            "fa5_worst is 0.75 (B), and may be 0 at most",
            "utility_drop is 0.25, and may be 0 at most",
            "neighbour_drop is 0.5 (half), and may be 0 at most",
            "missing is 1, and may be 0 at most",
            "showing is 2, and may be 0 at most",
            "change is 0.5 (l), and may be 0 at most",
            "protected is 0.125 (shifted), and may be 0 at most",
            "utility_kept is 0.5 (validation: TA@1 80.0 % → 40.0 %), and has to be 1 at least",
            "covered_kept is 0.75 (validation: TA@1 80.0 % → 60.0 %), and has to be 1 at least",
        ];
        assert_eq!(missed(&all(0.0, 0), &record), expected);
        // A bound is met by an equal value.
        let exact = Gates {
            fa5_mean: Some(0.5),
            utility_drop: Some(0.25),
            neighbour_drop: Some(0.5),
            change: Some(0.5),
            ..all(0.75, 1)
        };
        let exact = Gates { utility_kept: Some(0.5), ..exact };
        assert_eq!(missed(&exact, &record), Vec::<String>::new());
    }

    #[test]
    fn numbers_of_probes_have_bounds_on_both_sides() {
        let mut record = record();
        record.probes = vec![ProbeRecord {
            name: "sd".into(),
            file: Digest::of(b""),
            command: vec!["draw".into()],
            version: "1".into(),
            exit_code: 0,
            numbers: BTreeMap::from([("ua".into(), 0.5)]),
            pictures: Vec::new(),
            notes: Vec::new(),
        }];
        let missed = |name: &str, min: Option<f64>, max: Option<f64>| {
            let probe = BTreeMap::from([(name.to_owned(), ProbeBound { min, max })]);
            super::missed(&Gates { probe, ..Gates::default() }, &record)
        };
        assert_eq!(missed("sd.ua", Some(0.5), Some(0.5)), Vec::<String>::new());
        assert_eq!(
            missed("sd.ua", Some(0.6), None),
            ["probe sd.ua is 0.5, and has to be 0.6 at least"]
        );
        assert_eq!(
            missed("sd.ua", None, Some(0.4)),
            ["probe sd.ua is 0.5, and may be 0.4 at most"]
        );
        for absent in ["sd.ira", "llava.ua"] {
            assert!(missed(absent, Some(0.0), None)[0].contains("was not measured"));
        }
    }

    #[test]
    fn a_release_that_keeps_too_little_misses_a_gate_that_nobody_asked_for() {
        let of = |ta1| Retained { ta1, ta5: ta1 };
        let keeps = |before: f64, after: f64, covered: (f64, f64)| {
            let mut record = record();
            if let Some(on) = &mut record.utility.validation {
                (on.before, on.after) = (of(before), of(after));
                on.covered = Some(Group {
                    classes: 1,
                    images: 4,
                    before: of(covered.0),
                    after: of(covered.1),
                });
            }
            record
        };
        let none: [&Gates; 0] = [];
        let lost = keeps(0.5, 0.399, (0.5, 0.47));
        let said = all_missed(none, &lost);
        assert!(
            said.len() == 1
                && said[0].starts_with(
                    "utility_kept is 0.798 (validation: TA@1 50.0 % → 39.9 %), and has to be 0.8"
                ),
            "{said:?}"
        );
        assert!(said[0].contains("[gates]"), "it says how to ask for something else: {said:?}");
        let said = warnings(none, &lost);
        assert!(
            said.len() == 1
                && said[0].contains("0.94 (validation: TA@1 50.0 % → 47.0 %), less than 0.95"),
            "{said:?}"
        );

        // No warning at exactly the default bounds.
        let kept = keeps(0.5, 0.4, (0.5, 0.475));
        assert_eq!((all_missed(none, &kept), warnings(none, &kept)), (Vec::new(), Vec::new()));
        // Nothing is lost where the accuracy was 0 before.
        let empty = keeps(0.0, 0.0, (0.0, 0.0));
        assert_eq!((all_missed(none, &empty), warnings(none, &empty)), (Vec::new(), Vec::new()));
        // A bound in a manifest or in a gate file replaces the default.
        let (silent, lax) = (
            Gates::default(),
            Gates { utility_kept: Some(0.5), covered_kept: Some(0.0), ..Gates::default() },
        );
        let strict =
            Gates { utility_kept: Some(0.9), covered_kept: Some(0.99), ..Gates::default() };
        assert_eq!(all_missed([&silent], &lost).len(), 1);
        assert_eq!(
            (all_missed([&silent, &lax], &lost), warnings([&silent, &lax], &lost)),
            (Vec::new(), Vec::new())
        );
        let said = all_missed([&lax, &strict], &lost);
        assert!(
            said.len() == 2
                && said[0].contains("has to be 0.9 at least")
                && said[1].starts_with("covered_kept is 0.94"),
            "{said:?}"
        );
        assert_eq!(
            warnings([&lax, &strict], &lost),
            Vec::<String>::new(),
            "what is a gate is no warning too"
        );

        // Without a validation set the test set counts. Without both, or before any measurement,
        // the default gate does not apply.
        let mut tested = lost.clone();
        tested.utility.validation = None;
        assert!(all_missed(none, &tested)[0].contains("(test: TA@1 75.0 % → 50.0 %)"));
        tested.utility = Utility::default();
        assert_eq!((all_missed(none, &tested), warnings(none, &tested)), (Vec::new(), Vec::new()));
        assert_eq!(
            all_missed([&lax, &strict], &tested),
            [0.5, 0.9]
                .map(|bound| format!(
                    "utility_kept was not measured, and has to be {bound} at least"
                ))
                .into_iter()
                .chain(["covered_kept was not measured, and has to be 0.99 at least".to_owned()])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_was_not_measured_passes_nothing() {
        let mut record = record();
        record.utility = Utility::default();
        record.concepts[0].composed = None;
        let gates = Gates {
            fa1_worst: Some(1.0),
            utility_drop: Some(1.0),
            change: Some(1.0),
            ..Gates::default()
        };
        let says = [
            "fa1_worst was not measured, and may be 1 at most",
            "utility_drop was not measured, and may be 1 at most",
        ];
        assert_eq!(missed(&gates, &record), says);
    }
}
