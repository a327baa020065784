//! What is read of the object store: outcomes of jobs, records of releases.

use std::sync::LazyLock;

use lethe::attest::{provenance, receipts};
use lethe_shared::codec;
use lethe_shared::digest::Digest;
use lethe_shared::json;
use lethe_shared::outcome::Outcome as JobOutcome;
use lethe_shared::record::{Composition, targets};
use lethe_shared::task::AnyTask;

use super::message;
use crate::harness::{Harness, Outcome, as_shown, refused, same, usual_memory};
use crate::json::{Node, almost, documents, unique_keys};

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "outcome",
            memory: usual_memory,
            seeds: || written(&OUTCOMES),
            generate: |draw| almost(&OUTCOMES, OUTCOME_KEYS, draw).write(Some(draw)).into_bytes(),
            check: check_outcome,
        },
        Harness {
            name: "record",
            // Provenance and receipts are made of it, and name every file for every concept.
            memory: |input| (8 << 20) + 512 * input.len(),
            seeds: || written(&RECORDS),
            generate: |draw| almost(&RECORDS, RECORD_KEYS, draw).write(Some(draw)).into_bytes(),
            check: check_record,
        },
    ]
}

fn written(seeds: &[Node]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.write(None).into_bytes()).collect()
}

/// Fills digests into a document: `#1` and `#2` stand for two of them.
fn with_digests(text: &str) -> String {
    let digest = |of: &[u8]| Digest::of(of).to_string();
    text.replace("#1", &digest(b"1")).replace("#2", &digest(b"2"))
}

fn parsed(texts: &[&str]) -> Vec<Node> {
    let texts: Vec<String> = texts.iter().map(|text| with_digests(text)).collect();
    documents(texts.iter().map(String::as_str))
}

static OUTCOMES: LazyLock<Vec<Node>> = LazyLock::new(|| {
    parsed(&[
        r##"{"job":"#1","kind":"retain-gradient","output":{"gradient":{"digest":"#2","bytes":12}},
          "execution":{"worker":"w/0","seconds":1.5,"stages":{"load":0.5,"compute":1.0},"peak_memory_bytes":1000000,"device":"cpu","arithmetic":"x"}}"##,
        r##"{"job":"#1","kind":"evaluate","output":{"items":{"x":{"1":{"n":4,"top1":2,"top5":3}}},"best":{"a":1},"answers":{"a":{"similarity":0.5,"first":[[1,2]]}}},
          "execution":{"worker":"w/0","seconds":1.5,"stages":{},"peak_memory_bytes":1,"device":"cpu","arithmetic":"x"}}"##,
    ])
});
const OUTCOME_KEYS: &[&str] = &[
    "job",
    "kind",
    "output",
    "execution",
    "worker",
    "seconds",
    "stages",
    "peak_memory_bytes",
    "device",
    "arithmetic",
    "gradient",
    "digest",
    "bytes",
    "items",
    "load",
];

static RECORDS: LazyLock<Vec<Node>> = LazyLock::new(|| {
    parsed(&[
        r##"{"version":1,"name":"r","run":"r-1","base":{"address":"/model","digest":"#1"},"digest":"#2","method":"preconditioned",
          "search":{"batch_size":8,"search_evaluations":10,"search_tolerance":0.0,"stop":"fa5","normalisation_gains":false},
          "concepts":[],"missing":[{"id":"lost","reason":"no pairs"}],"utility":{"validation":null,"test":null},"files":{"model.safetensors":{"digest":"#1","bytes":4}}}"##,
        r##"{"version":1,"name":"r","run":"r-1",
          "parent":{"release":{"name":"p","record":"#1"},"changes":[{"add":{"id":"a","from":{"name":"q","record":"#2"}}},{"remove":{"id":"b"}},{"strength":{"id":"c","before":1.0,"after":0.5}}]},
          "base":{"address":"s3://b/model","digest":"#1"},"digest":"#2","method":"ties","merge":{"ties":{"density":0.2}},
          "search":{"batch_size":8,"search_evaluations":10,"search_tolerance":0.0,"stop":"fa1","normalisation_gains":true},
          "moments":[{"digest":"#1","bytes":3}],
          "concepts":[{"id":"a","name":"cat","class":"cat face","group":"g","tower":"text","layer":"l.0","layers":["l.0","l.1"],"step":1.0,"relative_step":0.5,"strength":1.0,"dose":1.5,"target":2.0,"by_others":-0.25,
            "importance":0.5,"alignment":0.25,"direction":{"digest":"#2","bytes":4},"criterion":{"stop":"fa5","tolerance":0.25},"pairs":4,"forget":[{"digest":"#1","bytes":5,"items":4}],
            "before":{"fa1":0.5,"fa5":1.0},"alone":{"fa1":0.0,"fa5":0.0},"composed":{"fa1":0.0,"fa5":0.25},
            "said_before":{"similarity":0.5,"first":[{"class":"cat face","images":4}]},
            "ranking":[{"layer":"l.0","tower":"text","importance":0.5,"alignment":0.25,"cosine":-0.5,"pareto":true}],
            "search":[{"layer":"l.0","step":1.0,"fa1":0.0,"fa5":0.0,"forgotten":true}]}],
          "missing":[],"near_duplicates":[["a","b"]],
          "utility":{"retained_classes":2,"validation":null,"test":{"images":8,"before":{"ta1":0.5,"ta5":0.75},"after":{"ta1":0.5,"ta5":0.5},
            "worst":[{"class":"dog","before":{"n":4,"top1":2,"top5":3},"after":{"n":4,"top1":1,"top5":2}}],"covered":{"classes":1,"images":4,"before":{"ta1":0.5,"ta5":0.5},"after":{"ta1":0.5,"ta5":0.5}}}},
          "protected":[{"name":"dog","moved":0.125}],"layers":{"l.0":0.125,"l.1":0.25},"receipts_for_unknown":true,"gates":{"fa5_mean":0.5},
          "origin":{"manifest":"#1","algorithm":3,"arithmetic":["x"],"hashed_names":true,"classes":3,"class_texts":"#2","template":"a {}","retain":[{"digest":"#1","bytes":5,"items":4}],"protect":{"digest":"#2","bytes":1,"items":1}},
          "targets":[{"name":"sd","kind":"stable-diffusion","address":"/sd","pass_through":"copy","towers":[{"folder":"text_encoder","tower":"text","blocks":2,"blocks_used":1,"distance":0.0,"tensors":{"model.safetensors":{"w":{"change":0.5,"rounding":0.25}}}}],
            "source":{"model.safetensors":{"digest":"#1","bytes":4},"config.json":{"digest":"#2","bytes":2}},"changed":{"model.safetensors":{"digest":"#2","bytes":4}}}],
          "files":{"model.safetensors":{"digest":"#1","bytes":4},"edits.safetensors":{"digest":"#2","bytes":4}}}"##,
    ])
});
const RECORD_KEYS: &[&str] = &[
    "version",
    "name",
    "run",
    "parent",
    "base",
    "digest",
    "method",
    "merge",
    "search",
    "concepts",
    "missing",
    "utility",
    "files",
    "layers",
    "targets",
    "source",
    "changed",
    "tensors",
    "model.safetensors",
    "config.json",
    "id",
    "class",
    "tower",
    "layer",
    "strength",
    "dose",
    "before",
    "alone",
    "composed",
    "verdict",
    "criterion",
    "origin",
    "gates",
    "l.0",
    "l.1",
    "../x",
];

fn check_outcome(bytes: &[u8]) -> Result<Outcome, String> {
    /// One task of each kind.
    static TASKS: LazyLock<Vec<AnyTask>> = LazyLock::new(|| {
        let jobs = message::messages().iter().filter_map(|bytes| codec::decode_job(bytes).ok());
        jobs.map(|job| job.task).collect()
    });
    let outcome: JobOutcome = match serde_json::from_slice(bytes) {
        Ok(outcome) => outcome,
        Err(error) => return refused(as_shown(error)),
    };
    let json = serde_json::to_vec(&outcome).map_err(|error| error.to_string())?;
    let again = serde_json::from_slice(&json).map_err(|error| format!("written again: {error}"))?;
    same("outcomes read and written", &outcome, &again)?;
    for task in TASKS.iter() {
        if let Err(error) = task.objects(&outcome) {
            refused(as_shown(error))?;
        }
    }
    Ok(Outcome::Accepted)
}

fn check_record(bytes: &[u8]) -> Result<Outcome, String> {
    let record: Composition = match json::parse(bytes) {
        Ok(record) => record,
        Err(error) => return refused(as_shown(error)),
    };
    unique_keys(bytes)?;
    if let Some(problem) = targets::problem(&record.targets) {
        return refused(problem);
    }
    let json = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
    let again: Composition =
        serde_json::from_slice(&json).map_err(|error| format!("written again: {error}"))?;
    same("records read and written", &record, &again)?;
    let weights = ["model.safetensors".to_owned()];
    same("provenance", &provenance::statement(&record), &provenance::statement(&again))?;
    let lines = receipts::lines(&record, &weights);
    for line in lines.lines() {
        let id = receipts::about(line.as_bytes()).ok_or("a receipt is about no concept")?;
        if !record.concepts.iter().any(|concept| concept.id == id) {
            return Err(format!("a receipt is about `{id}`, which is not in the record"));
        }
    }
    for concept in &record.concepts {
        let _ = (record.verdict(concept), concept.towers());
    }
    let _ = (record.forgotten_alone(), record.kind_of_edits(), record.is_measured());
    Ok(Outcome::Accepted)
}
