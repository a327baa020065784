use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::measurement::{ClassHits, RankedLayer, Trial};
use lethe_shared::record::{
    Base, Candidates, Composition, ConceptRecord, FirstClass, Measured, Merge, Missing,
    NameSearches, ProtectedText, Recall, Recognition, Retained, TopPredictions, Utility, UtilityOn,
    VERSION, WorstClass,
};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::vocabulary::{MethodSettings, Stop, Tower};

use super::*;
use crate::compose::effect_matrix::EffectMatrix;

/// A name that would execute a script if it were not escaped.
const NASTY: &str = "</script><img src=x onerror=alert(1)>\u{2028}&\"'";

fn concept(number: usize, still_found: f64) -> ConceptRecord {
    let measured = |fa5| Measured {
        fa1: 0.0,
        fa5,
        within: None,
        held_out: None,
        utility: Some(0.5 - fa5 / 100.0),
    };
    let said = |class: &str, similarity| {
        Some(TopPredictions {
            similarity,
            first: vec![FirstClass { class: class.into(), images: 8 }],
        })
    };
    ConceptRecord {
        id: format!("c{number}"),
        name: format!("{NASTY}{number}"),
        class: NASTY.into(),
        group: Some(NASTY.into()),
        tower: Tower::Text,
        layers: Vec::new(),
        layer: format!("layer.{}", number % 2),
        step: 1.0 + number as f64,
        relative_step: 0.5,
        strength: 1.0,
        coefficient: 1.0,
        target: Some(1.0),
        by_others: Some(0.6),
        importance: 0.1,
        alignment: 0.2,
        direction: ArtifactRef { digest: Digest::of(b""), bytes: 0 },
        rank: None,
        residual: None,
        gradients: None,
        criterion: None,
        verdict: None,
        pairs: 10,
        forget: Vec::new(),
        run: None,
        before: measured(1.0),
        alone: Some(measured(0.0)),
        composed: Some(measured(still_found)),
        predictions_before: said(NASTY, 0.5),
        predictions_composed: said("other", 0.5 - 0.01 * number as f64),
        ranking: vec![RankedLayer {
            layer: "layer.0".into(),
            tower: Tower::Text,
            importance: 0.123_456_789,
            alignment: 0.2,
            cosine: -0.2,
            pareto: true,
            efficiency: None,
        }],
        search: vec![Trial {
            layer: "layer.0".into(),
            step: 1.0,
            fa1: 0.0,
            fa5: 0.0,
            forgotten: true,
            utility: None,
        }],
    }
}

fn record(concepts: usize) -> Composition {
    let retained = |ta1| Retained { ta1, ta5: ta1 };
    let hits = |top1| ClassHits { n: 4, top1, top5: top1 };
    Composition {
        version: VERSION,
        name: "report".into(),
        run: "report-1".into(),
        parent: None,
        base: Base { address: "/model".into(), digest: Digest::of(b"base") },
        digest: Digest::of(b"released"),
        method: "preconditioned".into(),
        merge: Merge::Sum,
        search: MethodSettings {
            batch_size: 8,
            search_evaluations: 10,
            search_tolerance: 0.0,
            stop: Stop::Fa5,
            normalisation_gains: false,
        },
        moments: Vec::new(),
        concepts: (0..concepts)
            .map(|number| concept(number, if number == 1 { 0.25 } else { 0.0 }))
            .collect(),
        missing: vec![Missing { id: "lost".into(), reason: NASTY.into() }],
        protected: vec![ProtectedText { name: NASTY.into(), moved: 0.001 }],
        origin: None,
        targets: Vec::new(),
        near_duplicates: vec![vec!["c0".into(), "c1".into()]],
        recognition: Some(Recognition {
            candidates: vec![Candidates { others: 4, before: 0.97, after: 0.79 }],
            searches: vec![NameSearches {
                set: "test".into(),
                names: 2,
                before: Recall { r1: 0.5, r5: 1.0, r20: 1.0 },
                after: Recall { r1: 0.0, r5: 0.5, r20: 1.0 },
            }],
        }),
        utility: Utility {
            retained_classes: Some(7),
            validation: None,
            test: Some(UtilityOn {
                images: 28,
                before: retained(0.5),
                after: retained(0.4),
                worst: vec![WorstClass { class: NASTY.into(), before: hits(4), after: hits(0) }],
                covered: None,
                never_seen: None,
                removed: None,
            }),
        },
        layers: BTreeMap::from([("layer.0".into(), 0.25)]),
        change_bound: None,
        towers: Vec::new(),
        probes: Vec::new(),
        receipts_for_unknown: false,
        gates: None,
        files: BTreeMap::new(),
    }
}

fn effect_matrix(n: usize) -> EffectMatrix {
    let effect = (0..n * n).map(|cell| if cell / n == cell % n { 1.0 } else { 0.25 }).collect();
    EffectMatrix::new(effect, vec!["l".to_owned(); n]).unwrap()
}

fn page(
    record: &Composition,
    effect_matrix: Option<&EffectMatrix>,
    thumbnails: &Thumbnails,
) -> String {
    let pictures = &ProbePictures::new();
    render(&Source { record, effect_matrix, thumbnails, pictures, run: None })
}

/// Returns the JSON of the charts.
fn data(page: &str) -> serde_json::Value {
    let start = page.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap()
}

#[test]
fn what_is_to_be_read_needs_no_script() {
    let (record, effect_matrix) = (record(6), effect_matrix(6));
    let page = page(&record, Some(&effect_matrix), &Thumbnails::new());
    let text = &page[..page.find("<script").unwrap()];
    for expected in [
        "5 concepts removed",
        "5<small> of 7</small>",
        "Worth knowing",
        "Still recognised: the released model recognises 1 concept in forget images, beyond the tolerance: ",
        "<small><b>still recognised</b></small>",
        "<td>c1</td><td>still recognised</td><td>FA@5 is 25.0 % on its forget images",
        "1 retained class is no longer ranked first",
        "1 concept has no edit and is not removed: lost",
        "40.0\u{a0}%",
        "2 layers changed",
        "top prediction after",
        "Rank correlation 1.00 over 6 concepts",
        "lethe verify . --recompute",
        "lethe compose . --strength c0=0<",
        "lethe release rollback report latest",
    ] {
        assert!(text.contains(expected), "`{expected}` is missing");
    }
}

#[test]
fn what_was_never_known_or_not_applied_is_no_removal() {
    let mut record = record(4);
    record.concepts[0].before.fa5 = 0.0;
    record.concepts[2].strength = 0.0;
    let page = page(&record, None, &Thumbnails::new());
    for expected in [
        "1 concept removed",
        "1<small> of 5</small></b><span>concepts forgotten in the released model",
        "Unknown before: the base model did not recognise 1 concept",
        "Not removed, at strength 0: 1 concept",
        "<td>c0</td><td>unknown before</td><td>FA@5 was 0.0 %",
        "<td>c2</td><td>not applied</td>",
    ] {
        assert!(page.contains(expected), "`{expected}` is missing");
    }
}

#[test]
fn no_name_becomes_markup_and_nothing_is_loaded() {
    let (record, effect_matrix) = (record(2), effect_matrix(2));
    let page = page(&record, Some(&effect_matrix), &Thumbnails::new());
    assert!(!page.contains("<img src=x"));
    // A script would read this character as the end of a line if it were not escaped.
    let script = &page[page.find("id=\"data\">").unwrap()..];
    assert!(!script.contains('\u{2028}'));
    // Three scripts: data, library, script.
    assert_eq!(page.matches("<script").count(), 3);
    assert_eq!(page.matches("</script>").count(), 3);
    for loads in ["src=\"http", "href=\"http", "url(http", "@import", "<link", "fetch("] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert_eq!(data(&page)["concepts"][1]["name"], format!("{NASTY}1"));
}

#[test]
fn charts_get_what_is_on_record() {
    let (record, effect_matrix) = (record(3), effect_matrix(3));
    let data = data(&page(&record, Some(&effect_matrix), &Thumbnails::new()));
    assert_eq!(data["layers"], serde_json::json!(["layer.0", "layer.1"]));
    assert_eq!(data["concepts"][1]["ranking"][0], serde_json::json!([0, 0.12346, 0.2, 1, 1]));
    assert_eq!(data["edited"], serde_json::json!([[0, 2, 0.25], [1, 1, 0.0]]));
    // (Ka)_i with a = 1, 2, 3: 1 + (2 + 3)/4 for the first.
    assert_eq!(data["raises"][0], serde_json::json!([0, 2.25, 0.0]));
    assert_eq!(data["costs"][2][1], 9.0);
    assert_eq!(data["worst"]["test"][0], serde_json::json!([NASTY, 4, 4, 0]));
}

#[test]
fn a_release_without_concepts_or_effects_has_a_report_too() {
    let bare = page(&record(0), None, &Thumbnails::new());
    assert!(bare.contains("0 concepts removed") && bare.contains("were not computed"));
    assert_eq!(data(&bare)["matrix"], serde_json::Value::Null);
    let mut composed = record(2);
    composed
        .concepts
        .iter_mut()
        .for_each(|concept| (concept.composed, concept.predictions_composed) = (None, None));
    composed.utility = Utility::default();
    let page = page(&composed, Some(&effect_matrix(2)), &Thumbnails::new());
    assert!(!page.contains("forgotten in the released model"));
    assert_eq!(data(&page)["raises"], serde_json::json!([]));
}

#[test]
fn pictures_are_pictures_and_there_is_an_end_to_them() {
    let record = record(3);
    let picture = |start: &[u8], length: usize| Bytes::from([start, &vec![7; length]].concat());
    let of = |first: Bytes| page(&record, None, &Thumbnails::from([("c0".into(), first)]));
    assert_eq!(
        of(picture(&[0xff, 0xd8, 0xff], 100)).matches("data:image/jpeg;base64,/9j/").count(),
        1
    );
    assert_eq!(of(picture(b"<svg", 100)).matches("data:image/").count(), 0);
    assert_eq!(of(picture(&[0xff, 0xd8, 0xff], 1 << 20)).matches("data:image/").count(), 0);
    let mut many = record;
    many.concepts = (0..200).map(|number| concept(number, 0.0)).collect();
    let all: Thumbnails = many
        .concepts
        .iter()
        .map(|c| (c.id.clone(), picture(&[0xff, 0xd8, 0xff], 30_000)))
        .collect();
    let page = page(&many, None, &all);
    let shown = page.matches("data:image/").count();
    assert!(
        (50..150).contains(&shown)
            && page.contains("more concepts in <code>thumbnails.safetensors"),
        "{shown}"
    );
}

#[test]
fn the_same_release_gives_the_same_bytes() {
    let (record, effect_matrix) = (record(5), effect_matrix(5));
    let thumbnails = Thumbnails::from([("c0".into(), Bytes::from_static(&[0xff, 0xd8, 0xff, 1]))]);
    assert_eq!(
        page(&record, Some(&effect_matrix), &thumbnails),
        page(&record, Some(&effect_matrix), &thumbnails)
    );
}
