//! Where a release comes from: SLSA provenance (<https://slsa.dev/spec/v1.0/provenance>) as an in-toto statement.
//!
//! It follows from the record, so it is the same whenever and wherever the release is made; when and where is in the run's summary.

use lethe_shared::job::{ALGORITHM_VERSION, LIBTORCH_VERSION};
use lethe_shared::record::{Amendment, Composition, DataFile};
use serde_json::{Value, json};

use super::{LETHE_VERSION, STATEMENT_TYPE, subjects};

/// The predicate's type.
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// How releases are made: what the parameters mean. Described in docs/proof.md.
const BUILD_TYPE: &str = "urn:lethe:composition:v1";
/// Who makes them.
const BUILDER: &str = "urn:lethe:coordinator";

/// The statement about a release whose record names every other file.
pub fn statement(record: &Composition) -> Value {
    let parent = record.parent.as_ref().map(|parent| {
        json!({ "release": parent.release.to_string(), "changes": parent.changes.iter().map(Amendment::to_string).collect::<Vec<_>>() })
    });
    let mut external = json!({ "name": record.name, "method": record.method });
    if let Some(origin) = &record.origin {
        external["manifest"] = json!({ "sha256": origin.manifest });
    }
    if let Some(parent) = parent {
        external["composedFrom"] = parent;
    }
    json!({
        "_type": STATEMENT_TYPE,
        "subject": subjects(record, |_| true),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": external,
                "internalParameters": {
                    "algorithm": record.origin.as_ref().map_or(ALGORITHM_VERSION, |origin| origin.algorithm),
                    "libtorch": LIBTORCH_VERSION,
                },
                "resolvedDependencies": dependencies(record),
            },
            "runDetails": {
                "builder": { "id": BUILDER, "version": { "lethe": LETHE_VERSION, "libtorch": LIBTORCH_VERSION } },
                "metadata": { "invocationId": record.run },
            },
        },
    })
}

/// Everything that went into it, by its digest.
fn dependencies(record: &Composition) -> Vec<Value> {
    // The weights' digest is over tensors, as docs/proof.md says, and no file's.
    let place = &record.base.address;
    let uri = if place.starts_with('/') { format!("file://{place}") } else { place.clone() };
    let mut all = vec![json!({ "name": "base", "uri": uri, "digest": { "tensorsSha256": record.base.digest } })];
    if let Some(parent) = &record.parent {
        let releases = parent.changes.iter().filter_map(|change| match change {
            Amendment::Add { from, .. } => Some(from),
            _ => None,
        });
        for release in [&parent.release].into_iter().chain(releases) {
            all.push(json!({ "name": format!("release/{}", release.name), "digest": { "sha256": release.record } }));
        }
    }
    let mut add = |name: String, file: &DataFile| all.push(json!({ "name": name, "digest": { "sha256": file.digest } }));
    if let Some(origin) = &record.origin {
        let sets = [
            ("retain", &origin.retain),
            ("retain-texts", &origin.retain_texts),
            ("retain-images", &origin.retain_images),
            ("validation", &origin.validation),
            ("test", &origin.test),
        ];
        origin.protect.iter().for_each(|file| add("data/protect".to_owned(), file));
        for (set, files) in sets {
            files.iter().enumerate().for_each(|(number, file)| add(format!("data/{set}/{number}"), file));
        }
    }
    for concept in &record.concepts {
        concept.forget.iter().enumerate().for_each(|(number, file)| add(format!("data/forget/{}/{number}", concept.id), file));
    }
    if let Some(origin) = &record.origin {
        all.push(json!({ "name": "data/classes", "digest": { "sha256": origin.class_texts } }));
    }
    all
}
