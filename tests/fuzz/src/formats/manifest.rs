//! Manifests in TOML and JSON, gate files, and submissions of runs.

use std::path::Path;

use lethe::serve::submission::Submission;
use lethe_shared::manifest::{Error, Gates, Manifest};

use crate::draw::Draw;
use crate::harness::{Harness, Outcome, hold, refused, same, usual_memory};
use crate::json::{Node, almost, documents, unique_keys};
use crate::scratch;

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "manifest-json",
            memory: usual_memory,
            seeds: || MANIFESTS.iter().map(|text| text.as_bytes().to_vec()).collect(),
            generate: |draw| {
                almost(&documents(MANIFESTS), KEYS, draw).write(Some(draw)).into_bytes()
            },
            check: |bytes| check_manifest("m.json", bytes),
        },
        Harness {
            name: "manifest-toml",
            memory: usual_memory,
            seeds: || {
                documents(MANIFESTS).iter().map(|seed| toml(seed, None).into_bytes()).collect()
            },
            generate: |draw| {
                let manifest = almost(&documents(MANIFESTS), KEYS, draw);
                toml(&manifest, Some(draw)).into_bytes()
            },
            check: |bytes| check_manifest("m.toml", bytes),
        },
        Harness {
            name: "gates",
            memory: usual_memory,
            seeds: || documents([GATES]).iter().map(|seed| toml(seed, None).into_bytes()).collect(),
            generate: |draw| {
                let gates = almost(&documents([GATES]), GATE_KEYS, draw);
                toml(&gates, Some(draw)).into_bytes()
            },
            check: check_gates,
        },
        Harness {
            name: "submission",
            memory: usual_memory,
            seeds: || submissions().iter().map(|seed| seed.write(None).into_bytes()).collect(),
            generate: |draw| almost(&submissions(), KEYS, draw).write(Some(draw)).into_bytes(),
            check: check_submission,
        },
    ]
}

const MANIFESTS: [&str; 3] = [
    r#"{"version":1,"name":"two","model":{"uri":"model"},"data":{"retain":["retain-*.tar"],"classes":"classes.txt"},"concepts":{"table":"concepts.csv"}}"#,
    r#"{"version":1,"name":"all","model":{"uri":"s3://b/model"},
      "data":{"retain":["r.tar"],"retain_texts":["t.txt"],"retain_images":["i.tar"],"protect":"p.txt","validation":["v.tar"],"test":["t.tar"],"classes":"c.txt","template":"a photo of a {}"},
      "concepts":{"list":[{"id":"a","name":"cat","class":"cat face","forget":"a.tar;b.tar","strength":0.5,"group":"g","stop":"fa1","tolerance":0.25}],"groups":{"g":0.5}},
      "method":{"batch_size":64,"search_evaluations":5,"search_tolerance":0.125,"stop":"fa5","normalisation_gains":true,"precision":"float32"},
      "composition":{"method":"preconditioned","towers":"both","layers":2,"images":8,"ridge":0.5,"output_ridge":0.25,"null_energy":0.5,"density":0.5,"drop":0.5,"unlabelled_weight":0.5,"tolerance":0.5,"rounds":3},
      "policy":{"required":["a"],"receipts_for_unknown":true},"gates":{"fa5_mean":0.5,"missing":3,"change":1.5},
      "execution":{"workers":2,"device":"cuda:1","arithmetic":"same"},
      "release":{"uri":"store","target":[{"name":"sd","kind":"stable-diffusion","uri":"sd","pass_through":"reference","tolerance":0.25}],"names":"hashed","salt":"salt.txt","license":"mit","base_model":"a/b"}}"#,
    r#"{"version":1,"name":"m","model":{"uri":"/m"},"data":{"retain":["/r.tar"],"classes":"/c.txt"},"concepts":{"table":"/c.csv","groups":{"café":2}},
      "composition":{"method":"margins","towers":"both","spread":"all","margin":0.125,"vision_cost":16,"rank":4,"change":50},"policy":{"required":0.5}}"#,
];
const KEYS: &[&str] = &[
    "version",
    "name",
    "model",
    "data",
    "concepts",
    "method",
    "composition",
    "policy",
    "gates",
    "execution",
    "release",
    "uri",
    "retain",
    "classes",
    "template",
    "table",
    "list",
    "groups",
    "id",
    "class",
    "forget",
    "strength",
    "group",
    "stop",
    "tolerance",
    "margin",
    "rank",
    "required",
    "workers",
    "device",
    "target",
    "salt",
    "names",
    "signed_by",
    "fa1_mean",
    "missing",
    "file",
];
const GATES: &str = r#"{"gates":{"fa1_mean":0.5,"fa5_worst":1,"utility_drop":0,"missing":2,"showing":0,"utility_kept":0.5,"change":1.5,"protected":0.25,"signed_by":"keys/owner.pub"}}"#;
const GATE_KEYS: &[&str] =
    &["gates", "fa1_mean", "fa5_mean", "missing", "change", "signed_by", "covered_kept"];

/// Writes a document as TOML; `null` has no form there, and is left out.
fn toml(document: &Node, mut draw: Option<&mut Draw<'_>>) -> String {
    let mut text = String::new();
    let Node::Object(fields) = document else { return document.write(None) };
    let in_sections = draw.as_mut().is_none_or(|draw| !draw.one_in(4));
    let (sections, plain): (Vec<_>, Vec<_>) =
        fields.iter().partition(|(_, value)| in_sections && matches!(value, Node::Object(_)));
    for (key, value) in plain {
        toml_field(&mut text, key, value, &mut draw);
    }
    for (key, value) in sections {
        text.push_str(&format!("[{}]\n", toml_key(key)));
        if let Node::Object(fields) = value {
            for (key, value) in fields {
                toml_field(&mut text, key, value, &mut draw);
            }
        }
    }
    text
}

fn toml_field(text: &mut String, key: &str, value: &Node, draw: &mut Option<&mut Draw<'_>>) {
    if let Some(value) = toml_value(value, draw) {
        text.push_str(&format!("{} = {value}\n", toml_key(key)));
    }
}

fn toml_key(key: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if !key.is_empty() && key.chars().all(plain) { key.to_owned() } else { toml_text(key) }
}

fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => quoted.push_str(&format!("\\u{:04x}", letter as u32)),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

fn toml_value(value: &Node, draw: &mut Option<&mut Draw<'_>>) -> Option<String> {
    Some(match value {
        Node::Null => return None,
        Node::Bool(value) => value.to_string(),
        Node::Number(number) => {
            let odd = ["nan", "inf", "-inf", "+nan", "0x10", "1_000", "1979-05-27"];
            let drawn = draw.as_mut().and_then(|draw| draw.one_in(40).then(|| *draw.pick(&odd)));
            drawn.unwrap_or(number).to_owned()
        }
        Node::Text(text) => toml_text(text),
        Node::List(values) => {
            let values: Vec<String> =
                values.iter().filter_map(|value| toml_value(value, draw)).collect();
            format!("[{}]", values.join(", "))
        }
        Node::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .filter_map(|(key, value)| {
                    Some(format!("{} = {}", toml_key(key), toml_value(value, draw)?))
                })
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
    })
}

fn read(name: &str, bytes: &[u8]) -> Result<Manifest, Error> {
    scratch::with_file(name, bytes, |_, path| Manifest::read(path))
}

/// The fields of a manifest, without the place of its file.
fn fields(manifest: &Manifest) -> Result<String, String> {
    serde_json::to_string(manifest).map_err(|error| error.to_string())
}

fn check_manifest(name: &str, bytes: &[u8]) -> Result<Outcome, String> {
    let manifest = match read(name, bytes) {
        Ok(manifest) => manifest,
        Err(error) => return refused(error),
    };
    if name.ends_with(".json") {
        unique_keys(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))?;
    }
    let written = fields(&manifest)?;
    let from_json = read("again.json", written.as_bytes())
        .map_err(|error| format!("was accepted, but not as JSON: {error}"))?;
    same("manifests read and written as JSON", &fields(&from_json)?, &written)?;
    let parsed = Manifest::from_json(&written, Path::new("/x/again.json"))
        .map_err(|error| format!("was accepted, but not as a text: {error}"))?;
    same("manifests of a file and of a text", &fields(&parsed)?, &written)?;
    // TOML has no integers beyond 63 bits.
    if let Ok(text) = toml::to_string(&manifest) {
        let from_toml = read("again.toml", text.as_bytes())
            .map_err(|error| format!("was accepted, but not as TOML: {error}\n{text}"))?;
        same("manifests in TOML and JSON", &fields(&from_toml)?, &written)?;
    }
    match Submission::new(manifest) {
        Ok(submission) => {
            let json = submission.to_json();
            let sent = Submission::from_json(&json).map_err(|error| {
                format!("was accepted, but not once submitted: {error}\n{json}")
            })?;
            same("submissions sent and received", &sent.to_json(), &json)?;
        }
        Err(error) => drop(refused(error)?),
    }
    Ok(Outcome::Accepted)
}

fn check_gates(bytes: &[u8]) -> Result<Outcome, String> {
    let read = |bytes: &[u8]| scratch::with_file("gates.toml", bytes, |_, path| Gates::read(path));
    let gates = match read(bytes) {
        Ok(gates) => gates,
        Err(error) => return refused(error),
    };
    let section = toml::to_string(&gates).map_err(|error| error.to_string())?;
    let again = read(format!("[gates]\n{section}").as_bytes())
        .map_err(|error| format!("written again: {error}"))?;
    same("gates read and written", &gates, &again)?;
    Ok(Outcome::Accepted)
}

/// Returns submissions as `lethe submit` makes them.
fn submissions() -> Vec<Node> {
    let submit = |text: &str| {
        let manifest = Manifest::from_json(text, Path::new("/data/manifest.json"));
        let submission = Submission::new(manifest.expect("the seed is a manifest"));
        submission.expect("the seed can be submitted").to_json()
    };
    let texts: Vec<String> = MANIFESTS.iter().map(|text| submit(text)).collect();
    documents(texts.iter().map(String::as_str))
}

fn check_submission(bytes: &[u8]) -> Result<Outcome, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Outcome::Refused) };
    let submission = match Submission::from_json(text) {
        Ok(submission) => submission,
        Err(error) => return refused(error),
    };
    unique_keys(bytes)?;
    let again = Submission::from_json(&submission.to_json())
        .map_err(|error| format!("written again: {error}"))?;
    same("submissions read and written", &submission.to_json(), &again.to_json())?;
    same("names of submissions", &submission.id(), &again.id())?;
    let name = &submission.clone().into_manifest().name;
    hold(submission.id().starts_with(name), || format!("{} is not of {name}", submission.id()))?;
    Ok(Outcome::Accepted)
}
