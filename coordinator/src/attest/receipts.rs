//! Removal receipts: what was removed, where, at which dose, and the evidence; one in-toto statement a concept. Each can be handed out
//! alone: it says nothing of any other concept.

use lethe_shared::record::{Composition, ConceptRecord};
use serde_json::{Value, json};

use super::{LETHE_VERSION, STATEMENT_TYPE, subjects};

/// The predicate's type, described in docs/proof.md.
pub const PREDICATE_TYPE: &str = "urn:lethe:removal-receipt:v1";

/// The receipts of a release, one a line, in the record's order; `record` names the weights' files.
pub fn lines(record: &Composition, weights: &[String]) -> String {
    record.concepts.iter().map(|concept| receipt(record, concept, weights).to_string() + "\n").collect()
}

fn receipt(record: &Composition, concept: &ConceptRecord, weights: &[String]) -> Value {
    let mut called = json!({ "id": concept.id, "name": concept.name, "class": concept.class });
    if record.origin.as_ref().is_some_and(|origin| origin.hashed_names) {
        called["hashed"] = json!("HMAC-SHA-256, 80 bits; the salt is its owner's");
    }
    json!({
        "_type": STATEMENT_TYPE,
        "subject": subjects(record, |name| weights.iter().any(|weights| weights == name)),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "concept": called,
            "release": { "name": record.name, "run": record.run, "tensorsSha256": record.digest },
            "base": { "tensorsSha256": record.base.digest },
            "edit": {
                "method": record.method,
                "tower": concept.tower.name(),
                "layer": concept.layer,
                "step": concept.step,
                "dose": concept.dose,
                "strength": concept.strength,
                "applied": concept.strength * concept.dose * concept.step,
                "directionSha256": concept.direction.digest,
            },
            "evidence": {
                "forgetPairs": concept.pairs,
                "forgetData": concept.forget.iter().map(|file| json!({ "sha256": file.digest, "pairs": file.items })).collect::<Vec<_>>(),
                "before": concept.before,
                "alone": concept.alone,
                "composed": concept.composed,
            },
            "lethe": LETHE_VERSION,
        },
    })
}

/// The id of the concept that a receipt is about, when it is one.
pub fn about(line: &[u8]) -> Option<String> {
    let statement: Value = serde_json::from_slice(line).ok()?;
    if statement.get("predicateType")? != PREDICATE_TYPE {
        return None;
    }
    Some(statement.pointer("/predicate/concept/id")?.as_str()?.to_owned())
}
