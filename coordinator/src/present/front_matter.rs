//! The front matter of a model card: what model hubs read of it. Pure.

use lethe_shared::record::{Composition, Measured};
use serde_json::{Value, json};

/// Returns the Hub's front matter. Values are JSON, which is valid YAML, so that no name can break
/// the syntax.
pub(super) fn metadata(record: &Composition, files: &[String]) -> String {
    let license_file = files.iter().find(|name| name.starts_with("LICEN"));
    let origin = record.origin.as_ref();
    let mut fields: Vec<(&str, Value)> = Vec::new();
    match (origin.and_then(|origin| origin.license.as_ref()), license_file) {
        (Some(license), _) => fields.push(("license", json!(license))),
        (None, Some(file)) => {
            fields.extend([
                ("license", json!("other")),
                ("license_name", json!("as-the-base-model")),
                ("license_link", json!(file)),
            ]);
        }
        (None, None) => {}
    }
    if let Some(base) = origin.and_then(|origin| origin.base_model.as_ref()) {
        fields.extend([("base_model", json!(base)), ("base_model_relation", json!("finetune"))]);
    }
    let open_clip = files.iter().any(|name| name == "open_clip_config.json");
    fields.push(("library_name", json!(if open_clip { "open_clip" } else { "transformers" })));
    fields.push(("pipeline_tag", json!("zero-shot-image-classification")));
    fields.push(("tags", json!(["clip", "lethe", "machine-unlearning"])));
    let results = results(record);
    if !results.is_empty() {
        fields.push(("metrics", json!(["accuracy"])));
        fields.push(("model-index", json!([{ "name": record.name, "results": results }])));
    }
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("---\n{lines}---\n")
}

/// Returns the measurements in the Hub's model index: one entry per set of images.
fn results(record: &Composition) -> Vec<Value> {
    let entry = |name: String, split: &str, metrics: Value| {
        json!({
            "task": { "type": "zero-shot-image-classification", "name": "zero-shot image classification" },
            "dataset": { "type": "webdataset", "name": name, "split": split },
            "metrics": metrics,
        })
    };
    // Four decimals: YAML parsers read them as a number, and JSON writers do not use an exponent
    // such as `1e-5`.
    let metric = |name: &str, value: f64| json!({ "type": "accuracy", "name": name, "value": (value * 1e4).round() / 1e4 });
    let sets = [("validation", &record.utility.validation), ("test", &record.utility.test)];
    let sets = sets.into_iter().filter_map(|(name, on)| Some((name, on.as_ref()?)));
    let retained = sets.map(|(name, on)| {
        let metrics = json!([
            metric("TA@1, retained classes", on.after.ta1),
            metric("TA@5, retained classes", on.after.ta5)
        ]);
        entry(format!("{name} images"), name, metrics)
    });
    let mut all: Vec<Value> = retained.collect();
    if let Some(measured) = composed(record) {
        let mean = |of: fn(&Measured) -> f64| {
            measured.iter().map(of).sum::<f64>() / measured.len().max(1) as f64
        };
        let metrics = json!([
            metric("FA@1, removed concepts", mean(|m| m.fa1)),
            metric("FA@5, removed concepts", mean(|m| m.fa5))
        ]);
        all.push(entry("forget images".to_owned(), "forget", metrics));
    }
    all
}

/// Returns the measurements of all concepts in the composed model, if every concept was measured.
pub(super) fn composed(record: &Composition) -> Option<Vec<Measured>> {
    let all: Option<Vec<Measured>> =
        record.concepts.iter().map(|concept| concept.composed).collect();
    all.filter(|all| !all.is_empty())
}
