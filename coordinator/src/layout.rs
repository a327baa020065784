//! File names in a release's folder.

/// The record.
pub const RECORD: &str = "composition.json";
/// The edits.
pub const EDITS: &str = "edits.safetensors";
/// The effect matrix, if coefficients are solved: the float64 matrix [`EFFECT`]. Row i and column j
/// are in the order of the ids in the header's [`CONCEPTS`], a JSON list.
pub const INTERFERENCE: &str = "interference.safetensors";
/// Name of the matrix in [`INTERFERENCE`].
pub const EFFECT: &str = "effect";
/// Names of the tensors in [`INTERFERENCE`] that hold margin constraints
/// ([`ImageRows`](crate::compose::effect_matrix::ImageRows)): effects, concepts (int64), weights, targets
/// and penalty `[1]`. The others are float64.
pub const IMAGE_ROWS: [&str; 5] =
    ["image_effect", "image_concept", "image_weight", "image_target", "image_penalty"];
/// Name of the header field with the order of concepts in [`INTERFERENCE`].
pub const CONCEPTS: &str = "concepts";

/// The inputs of the edited layers for protected texts, if there are any, in the format of
/// [`ProtectOutput::inputs`](lethe_shared::task::ProtectOutput::inputs).
pub const PROTECTED: &str = "protected.safetensors";

/// Returns the folder of what was measured on a release after it was written. `record` is the
/// beginning of the digest of its record.
pub fn evaluations(name: &str, record: &str) -> String {
    format!("releases/{name}/evaluations/{record}")
}

/// The model card.
pub const CARD: &str = "README.md";
/// The report.
pub const REPORT: &str = "report.html";

/// The thumbnails: by concept id, the bytes of a JPEG in the format of
/// [`SearchOutput::thumbnails`](lethe_shared::task::SearchOutput::thumbnails).
pub const THUMBNAILS: &str = "thumbnails.safetensors";

/// The SLSA provenance.
pub const PROVENANCE: &str = "provenance.json";
/// The removal receipts.
pub const RECEIPTS: &str = "receipts.jsonl";
/// The signed statements, beside a release's files.
pub const ATTESTATIONS: &str = "attestations.intoto.jsonl";
/// The signature, beside a release's files.
pub const SIGNATURE: &str = "model.sig";
/// Files in a release's folder that its record does not list, because they are created after it.
pub const BESIDE: [&str; 2] = [ATTESTATIONS, SIGNATURE];
