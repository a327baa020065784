//! Removal receipts: one in-toto statement per concept, with the removed concept, the edited layer,
//! the coefficient and the evidence. A receipt does not mention any other concept, so it can be
//! handed out alone.
//!
//! Only a concept that was measured as removed gets a receipt. A concept that the model still
//! recognises, or whose edit is not applied, gets a statement of another type, which says that the
//! concept is not removed. A concept of a composed release, which has not been measured, gets a
//! statement of a third type. A concept that the base model did not know gets no statement, unless
//! the record asks for receipts of such concepts.

use lethe_shared::record::verdict::{ConceptStatus, Verdict};
use lethe_shared::record::{Composition, ConceptRecord};
use serde_json::{Value, json};

use super::statement::{LETHE_VERSION, STATEMENT_TYPE, subjects};

/// The predicate type of a receipt. `docs/proof.md` describes it.
pub const PREDICATE_TYPE: &str = "urn:lethe:removal-receipt:v1";
/// The predicate type of a statement that a concept is not removed. The fields are the same.
pub const NOT_REMOVED_TYPE: &str = "urn:lethe:not-removed:v1";
/// The predicate type of a statement that an edit was applied, and its effect in this release not
/// measured. The fields are the same.
pub const NOT_MEASURED_TYPE: &str = "urn:lethe:not-measured:v1";

/// Returns the receipts of a release, one per line, in the record's order. `weights` are the names
/// of the weight files.
pub fn lines(record: &Composition, weights: &[String]) -> String {
    let receipts = record.concepts.iter().filter_map(|concept| receipt(record, concept, weights));
    receipts.map(|receipt| receipt.to_string() + "\n").collect()
}

/// Returns the predicate type for a concept of this status, or `None` if the concept gets no
/// statement.
fn predicate_type(status: ConceptStatus, receipts_for_unknown: bool) -> Option<&'static str> {
    match status {
        ConceptStatus::Removed => Some(PREDICATE_TYPE),
        ConceptStatus::NotMeasured => Some(NOT_MEASURED_TYPE),
        ConceptStatus::UnknownBefore => receipts_for_unknown.then_some(PREDICATE_TYPE),
        ConceptStatus::Showing | ConceptStatus::Weakened | ConceptStatus::NotApplied => {
            Some(NOT_REMOVED_TYPE)
        }
    }
}

fn receipt(record: &Composition, concept: &ConceptRecord, weights: &[String]) -> Option<Value> {
    let Verdict { status, reason } = record.verdict(concept);
    let predicate_type = predicate_type(status, record.receipts_for_unknown)?;
    let criterion = record.criterion(concept);
    let mut called = json!({ "id": concept.id, "name": concept.name, "class": concept.class });
    if record.origin.as_ref().is_some_and(|origin| origin.hashed_names) {
        called["hashed"] = json!("HMAC-SHA-256, 80 bits; the salt is its owner's");
    }
    let mut receipt = json!({
        "_type": STATEMENT_TYPE,
        "subject": subjects(record, |name| weights.iter().any(|weights| weights == name)),
        "predicateType": predicate_type,
        "predicate": {
            "concept": called,
            "status": status,
            "reason": reason,
            "release": { "name": record.name, "run": record.run, "tensorsSha256": record.digest },
            "base": { "tensorsSha256": record.base.digest },
            "edit": {
                "method": record.method,
                "tower": concept.tower.name(),
                "layer": concept.layer,
                "step": concept.step,
                "dose": concept.coefficient,
                "strength": concept.strength,
                "applied": concept.strength * concept.coefficient * concept.step,
                "directionSha256": concept.direction.digest,
            },
            "evidence": {
                "criterion": criterion,
                "forgetPairs": concept.pairs,
                "forgetData": concept.forget.iter().map(|file| json!({ "sha256": file.digest, "pairs": file.items })).collect::<Vec<_>>(),
                "before": concept.before,
                "alone": concept.alone,
                "composed": concept.composed,
            },
            "lethe": LETHE_VERSION,
        },
    });
    let layers = concept.layers();
    if layers.len() > 1 {
        receipt["predicate"]["edit"]["layers"] = json!(layers);
    }
    Some(receipt)
}

/// Returns the id of the concept that a receipt, a not-removed or a not-measured statement is about,
/// and `None` for any other statement.
pub fn about(line: &[u8]) -> Option<String> {
    let statement: Value = serde_json::from_slice(line).ok()?;
    let predicate_type = statement.get("predicateType")?.as_str()?;
    if ![PREDICATE_TYPE, NOT_REMOVED_TYPE, NOT_MEASURED_TYPE].contains(&predicate_type) {
        return None;
    }
    Some(statement.pointer("/predicate/concept/id")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use lethe_shared::record::Measured;

    use super::*;
    use crate::compose::gate_rules::tests::{concept, record};

    /// Returns the statements of a release with these concepts: id, strength, FA@5 of the base and
    /// of the composed model.
    fn statements(
        concepts: &[(&str, f64, f64, Option<f64>)],
        receipts_for_unknown: bool,
    ) -> Vec<Value> {
        let measured =
            |fa5| Measured { fa1: 0.0, fa5, within: None, held_out: None, utility: None };
        let of = |&(id, strength, before, after): &(&str, f64, f64, Option<f64>)| ConceptRecord {
            strength,
            before: measured(before),
            composed: after.map(measured),
            ..concept(id, 0.0, 0.0)
        };
        let record = Composition {
            concepts: concepts.iter().map(of).collect(),
            receipts_for_unknown,
            ..record()
        };
        let text = lines(&record, &[]);
        let all: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(text.lines().zip(&all).all(|(line, value)| about(line.as_bytes()).as_deref()
            == value["predicate"]["concept"]["id"].as_str()));
        all
    }

    #[test]
    fn only_what_is_removed_gets_a_receipt() {
        let concepts = [
            ("removed", 1.0, 1.0, Some(0.0)),
            ("shows", 1.0, 1.0, Some(0.5)),
            ("weak", 0.5, 1.0, Some(0.5)),
            ("off", 0.0, 1.0, Some(1.0)),
            ("unmeasured", 1.0, 1.0, None),
            ("unknown", 1.0, 0.0, Some(0.0)),
        ];
        let said = |receipts_for_unknown| -> Vec<(String, String, String)> {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let all = statements(&concepts, receipts_for_unknown);
            let of = |statement: &Value| {
                let predicate = &statement["predicate"];
                (
                    text(&predicate["concept"]["id"]),
                    text(&statement["predicateType"]),
                    text(&predicate["status"]),
                )
            };
            all.iter().map(of).collect()
        };
        let expected = [
            ("removed", PREDICATE_TYPE, "removed"),
            ("shows", NOT_REMOVED_TYPE, "showing"),
            ("weak", NOT_REMOVED_TYPE, "weakened"),
            ("off", NOT_REMOVED_TYPE, "not-applied"),
            ("unmeasured", NOT_MEASURED_TYPE, "not-measured"),
            ("unknown", PREDICATE_TYPE, "unknown-before"),
        ]
        .map(|(id, kind, status)| (id.to_owned(), kind.to_owned(), status.to_owned()));
        assert_eq!(said(false), expected[..5]);
        assert_eq!(said(true), expected);
        let statement = &statements(&concepts[1..2], false)[0]["predicate"];
        assert_eq!(
            statement["reason"],
            "FA@5 is 50.0 % on its forget images in the composed model, and may be 0.0 % at most"
        );
        assert_eq!(statement["evidence"]["criterion"], json!({ "stop": "fa5", "tolerance": 0.0 }));
    }

    #[test]
    fn all_layers_of_an_edit_are_listed() {
        let edit = |layers: &[&str]| {
            let layers = layers.iter().map(|&layer| layer.to_owned()).collect();
            let before =
                Measured { fa1: 1.0, fa5: 1.0, within: None, held_out: None, utility: None };
            let concept = ConceptRecord { layers, before, ..concept("c", 0.0, 0.0) };
            let record = Composition { concepts: vec![concept], ..record() };
            let statement: Value = serde_json::from_str(lines(&record, &[]).trim_end()).unwrap();
            statement["predicate"]["edit"].clone()
        };
        assert_eq!(edit(&["a", "b"])["layers"], json!(["a", "b"]));
        assert_eq!(edit(&[]).get("layers"), None);
    }
}
