//! The API as OpenAPI 3.1, generated from the types of its responses.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::api::{Everything, LetterView, Overview, Problem, RunView};
use super::files;

/// Returns the document. The API has no authentication and is read-only: every operation is a GET.
pub(super) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let runs = answer::<Overview>(
        &mut schemas,
        "Runs in progress first, then the newest that have ended, at most 200 of them.",
    );
    let run = answer::<RunView>(&mut schemas, "The run.");
    let unknown = answer::<Problem>(&mut schemas, "There is no such run.");
    let letters = answer::<Vec<LetterView>>(&mut schemas, "The newest 200 dead letters.");
    let everything = schemas.subschema_for::<Everything>();
    let text = |description: &str, media: &str| json!({ "description": description, "content": { media: { "schema": { "type": "string" } } } });
    let plain = |description: &str| text(description, "text/plain");
    let get = |id: &str, summary: &str, answers: Value| json!({ "get": { "operationId": id, "summary": summary, "responses": answers } });
    let mut one_run =
        get("run", "One run, by either of its names.", json!({ "200": run, "404": unknown }));
    let run_name = json!([{
        "name": "run", "in": "path", "required": true, "schema": { "type": "string" },
        "description": "The run's name as `lethe submit` printed it, or as its jobs have it (`plan`).",
    }]);
    one_run["parameters"] = run_name.clone();
    let mut paths = Vec::new();
    for (name, media) in files::SERVED {
        let media = media.split(';').next().unwrap_or(media);
        let schema =
            json!({ "type": if media == "application/json" { "object" } else { "string" } });
        let problem = |description: &str, schemas: &mut SchemaGenerator| {
            answer::<Problem>(schemas, description)
        };
        let mut path = get(
            &format!("runFile{}", name.split('.').next().unwrap_or(name)),
            &format!("`{name}` of a run's release."),
            json!({
                "200": { "description": "The file as it was released.", "content": { media: { "schema": schema } } },
                "404": problem("There is no such run, it has no release, or the file is missing, damaged or larger than 64 MiB.", &mut schemas),
                "503": problem("The store does not answer.", &mut schemas),
            }),
        );
        path["parameters"] = run_name.clone();
        paths.push((format!("/runs/{{run}}/{name}"), path));
    }
    // Each event's data is a JSON document. OpenAPI 3.1 cannot express that, so an extension field
    // names its type.
    let mut events = text(
        "Server-sent events, at most one a second; the data of each is an `Everything`.",
        "text/event-stream",
    );
    events["x-event-data"] = everything.to_value();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lethe's long-lived coordinator",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "The state of runs. Read-only: runs are submitted and cancelled over the queue's network.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [],
        "paths": {
            "/api/v1/runs": get("runs", "All runs.", json!({ "200": runs })),
            "/api/v1/runs/{run}": one_run,
            "/api/v1/dead-letters": get("deadLetters", "Jobs that failed for good.", json!({ "200": letters })),
            "/api/v1/events": get("events", "Runs and dead letters, after every change.", json!({ "200": events })),
            "/healthz": get("health", "Whether the process answers.", json!({ "200": plain("The process answers.") })),
            "/readyz": get("readiness", "Whether the process is ready, one line per condition.", json!({
                "200": plain("All conditions are met."), "503": plain("A condition is not met."),
            })),
            "/metrics": get("metrics", "Metrics.", json!({
                "200": text("OpenMetrics text.", "application/openmetrics-text"),
            })),
        },
        "components": { "schemas": schemas.take_definitions(true) },
    });
    for (path, item) in paths {
        document["paths"][path] = item;
    }
    document
}

fn answer<T: JsonSchema>(schemas: &mut SchemaGenerator, description: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schemas.subschema_for::<T>() } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_nothing_can_be_changed() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for name in [
            "Run",
            "Runs",
            "DeadLetter",
            "Everything",
            "Live",
            "Phase",
            "Worker",
            "State",
            "Problem",
        ] {
            assert!(document["components"]["schemas"][name].is_object(), "{name}: {text}");
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            assert!(
                item.as_object()
                    .unwrap()
                    .keys()
                    .all(|method| method == "get" || method == "parameters"),
                "{path}"
            );
        }
    }

    #[test]
    fn fields_that_may_be_empty_are_there_all_the_same() {
        let run = &document()["components"]["schemas"]["Run"];
        let required: Vec<&str> =
            run["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(required.len(), 11, "{run}");
        assert_eq!(run["properties"]["exit_code"]["type"], json!(["integer", "null"]));
    }
}
