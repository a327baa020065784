//! The origin of a release: SLSA provenance (<https://slsa.dev/spec/v1.0/provenance>) as an in-toto
//! statement.
//!
//! The statement is a function of the record, so it does not depend on when and where the release
//! is made. The run's summary holds times and machines.

use lethe_shared::job::LIBTORCH_VERSION;
use lethe_shared::record::{Amendment, Composition, DataFile};
use lethe_shared::task::ALGORITHM_VERSION;
use serde_json::{Value, json};

use super::statement::{LETHE_VERSION, STATEMENT_TYPE, subjects};

/// The predicate's type.
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// The build type, which defines the parameters. `docs/proof.md` describes it.
const BUILD_TYPE: &str = "urn:lethe:composition:v1";
/// The builder's id.
const BUILDER: &str = "urn:lethe:coordinator";

/// Returns the statement about a release. The record must list every other file already.
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

/// Returns the inputs of the release with their digests.
fn dependencies(record: &Composition) -> Vec<Value> {
    // The digest covers the tensors of the weights, as docs/proof.md says, and is not a file's
    // digest.
    let place = &record.base.address;
    let uri = if place.starts_with('/') { format!("file://{place}") } else { place.clone() };
    let mut all = vec![
        json!({ "name": "base", "uri": uri, "digest": { "tensorsSha256": record.base.digest } }),
    ];
    if let Some(parent) = &record.parent {
        let releases = parent.changes.iter().filter_map(|change| match change {
            Amendment::Add { from, .. } => Some(from),
            _ => None,
        });
        for release in [&parent.release].into_iter().chain(releases) {
            all.push(json!({ "name": format!("release/{}", release.name), "digest": { "sha256": release.record } }));
        }
    }
    let mut add = |name: String, file: &DataFile| {
        all.push(json!({ "name": name, "digest": { "sha256": file.digest } }))
    };
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
            files
                .iter()
                .enumerate()
                .for_each(|(number, file)| add(format!("data/{set}/{number}"), file));
        }
    }
    for concept in &record.concepts {
        concept
            .forget
            .iter()
            .enumerate()
            .for_each(|(number, file)| add(format!("data/forget/{}/{number}", concept.id), file));
    }
    if let Some(origin) = &record.origin {
        all.push(json!({ "name": "data/classes", "digest": { "sha256": origin.class_texts } }));
    }
    all
}
