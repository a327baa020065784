//! `bench-compose [ROUNDS]`: composes 300 edits on 12 layers into a checkpoint of 1.7 GB
//! (ViT-L/14's shapes, random weights), and compares the time with that of `cp`. All files are
//! below the temporary folder (TMPDIR). Each release is written by a new process, whose memory is
//! measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use lethe::compose::apply::{self, Directions};
use lethe::failure::Failure;
use lethe::lease::fence::Fence;
use lethe::present::report::Thumbnails;
use lethe::release::write::{self, Contents};
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::edit::{self, Direction, Edit};
use lethe_shared::record::{self, Base, Composition, Merge, Utility};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::vocabulary::{MethodSettings, Stop};
use lethe_store::Store;
use serde_json::{Value, json};

const EDITS: usize = 300;
const LAYERS: usize = 12;
/// A text gradient has at most as many ranks as its prompt has tokens.
const RANK: usize = 8;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--write", folder] => tokio::runtime::Runtime::new()?.block_on(write(Path::new(folder))),
        [] => bench(3),
        [rounds] => bench(rounds.parse().context("ROUNDS is a number")?),
        _ => anyhow::bail!("usage: bench-compose [ROUNDS]"),
    }
}

fn bench(rounds: usize) -> Result<()> {
    let work = tempfile::tempdir()?;
    let (model, copy) = (work.path().join("model"), work.path().join("copy.safetensors"));
    std::fs::create_dir(&model)?;
    let weights = model.join("model.safetensors");
    make_checkpoint(&weights)?;
    tokio::runtime::Runtime::new()?.block_on(make_edits(work.path()))?;
    let bytes = weights.metadata()?.len();
    println!(
        "{EDITS} edits of rank {RANK} on {LAYERS} layers into {:.2} GB; the disk has everything at the end of each.\n",
        bytes as f64 / 1e9
    );
    println!(
        "| cp s | cp and sync s | compose s | write s | both, of cp and sync | peak memory MB |\n|---|---|---|---|---|---|"
    );
    for _ in 0..rounds {
        settle()?;
        let began = Instant::now();
        run(Command::new("cp").arg(&weights).arg(&copy))?;
        let copied = began.elapsed().as_secs_f64();
        run(Command::new("sync").arg(&copy))?;
        let synced = began.elapsed().as_secs_f64();
        std::fs::remove_file(&copy)?;
        settle()?;
        let output =
            Command::new(std::env::current_exe()?).arg("--write").arg(work.path()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout)?;
        let number = |key: &str| said[key].as_f64().context("a number is missing");
        let (composed, written) = (number("compose")?, number("write")?);
        let ratio = (composed + written) / synced;
        println!(
            "| {copied:.2} | {synced:.2} | {composed:.2} | {written:.2} | {ratio:.2} | {:.0} |",
            number("peak")? / 1e6
        );
        std::fs::remove_dir_all(work.path().join("store/releases"))?;
    }
    Ok(())
}

/// Waits until earlier writes are on the disk, so that they do not affect measured times.
fn settle() -> Result<()> {
    run(&mut Command::new("sync"))
}

fn run(command: &mut Command) -> Result<()> {
    ensure!(command.status()?.success(), "{command:?} failed");
    Ok(())
}

/// Returns names and shapes of a ViT-L/14 in the layout of transformers.
fn shapes() -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::from([
        ("logit_scale".to_owned(), vec![]),
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![49408, 768]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![77, 768]),
        ("text_projection.weight".to_owned(), vec![768, 768]),
        ("vision_model.embeddings.class_embedding".to_owned(), vec![1024]),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), vec![1024, 3, 14, 14]),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), vec![257, 1024]),
        ("visual_projection.weight".to_owned(), vec![768, 1024]),
    ]);
    let mut linear = |name: String, outputs: usize, inputs: usize| {
        shapes.insert(format!("{name}.weight"), vec![outputs, inputs]);
        shapes.insert(format!("{name}.bias"), vec![outputs]);
    };
    for (tower, blocks, width) in [("text_model", 12, 768), ("vision_model", 24, 1024)] {
        for block in 0..blocks {
            let prefix = format!("{tower}.encoder.layers.{block}");
            for part in ["q", "k", "v", "out"] {
                linear(format!("{prefix}.self_attn.{part}_proj"), width, width);
            }
            linear(format!("{prefix}.mlp.fc1"), 4 * width, width);
            linear(format!("{prefix}.mlp.fc2"), width, 4 * width);
        }
    }
    for (tower, blocks, width) in [("text_model", 12, 768), ("vision_model", 24, 1024)] {
        let norms = (0..blocks).flat_map(|block| {
            [1, 2].map(|norm| format!("{tower}.encoder.layers.{block}.layer_norm{norm}"))
        });
        let ends = if width == 768 {
            vec!["final_layer_norm"]
        } else {
            vec!["pre_layrnorm", "post_layernorm"]
        };
        for norm in norms.chain(ends.into_iter().map(|end| format!("{tower}.{end}"))) {
            shapes.insert(format!("{norm}.weight"), vec![width]);
            shapes.insert(format!("{norm}.bias"), vec![width]);
        }
    }
    shapes
}

fn make_checkpoint(path: &Path) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes() {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header
            .insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut draws = Draws::seeded(Digest::of(b"weights"));
    for _ in 0..end / 4 {
        file.write_all(&(draws.uniform() as f32 / 10.0 - 0.05).to_le_bytes())?;
    }
    file.flush()?;
    Ok(())
}

/// Returns the layer of an edit, and its shape: the last matrices of the text tower's MLPs.
fn layer(edit: usize) -> (String, [usize; 2]) {
    (format!("text_model.encoder.layers.{}.mlp.fc2.weight", edit % LAYERS), [768, 3072])
}

fn random(draws: &mut Draws, count: usize) -> Vec<u8> {
    (0..count).flat_map(|_| (draws.uniform() as f32 - 0.5).to_le_bytes()).collect()
}

fn open(work: &Path) -> Result<Store> {
    Ok(Store::open(&Address::Local(work.join("store")))?)
}

/// Stores every edit's direction as an artifact, like workers; `edits.json` lists the edits.
async fn make_edits(work: &Path) -> Result<()> {
    let store = open(work)?;
    let mut artifacts = Vec::new();
    for edit in 0..EDITS {
        let (layer, [outputs, inputs]) = layer(edit);
        let mut draws = Draws::seeded(Digest::of(format!("edit {edit}").as_bytes()));
        let (up, down) = (random(&mut draws, outputs * RANK), random(&mut draws, RANK * inputs));
        let (up_name, down_name) = edit::factor_names(&layer);
        let (up_shape, down_shape) = ([outputs, RANK], [RANK, inputs]);
        let tensors = [
            (up_name.as_str(), &up_shape[..], up.as_slice()),
            (down_name.as_str(), &down_shape[..], down.as_slice()),
        ];
        let file = edit::encode_tensors(tensors).map_err(anyhow::Error::msg)?;
        artifacts.push(store.put_artifact(Bytes::from(file)).await?);
    }
    std::fs::write(work.join("edits.json"), serde_json::to_vec(&artifacts)?)?;
    Ok(())
}

/// Directions in the store.
struct Stored(Store);

impl Directions for Stored {
    async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
        Ok(edit::decode_direction(
            &edit.layer,
            shape,
            &self.0.get_artifact(&edit.direction).await?,
        )?)
    }
}

/// Composes and writes a release, and prints its time and memory.
async fn write(work: &Path) -> Result<()> {
    let artifacts: Vec<ArtifactRef> =
        serde_json::from_slice(&std::fs::read(work.join("edits.json"))?)?;
    let edit = |(number, direction): (usize, ArtifactRef)| {
        let (concept, layer) = (format!("concept-{number:03}"), layer(number).0);
        Edit {
            concept,
            layer,
            spread: false,
            step: 1e-3,
            strength: 1.0,
            coefficient: 1.0,
            direction,
        }
    };
    let edits: Vec<Edit> = artifacts.into_iter().enumerate().map(edit).collect();
    let store = open(work)?;
    let directions = Stored(store.clone());
    let checkpoint = Checkpoint::open(&work.join("model"))?;
    let began = Instant::now();
    let change = apply::compose(&checkpoint, &edits, Merge::Sum, &directions).await?;
    let composed = began.elapsed().as_secs_f64();
    let base = Base { address: "model".into(), digest: Digest::of(b"not looked at") };
    let search = MethodSettings {
        batch_size: 1,
        search_evaluations: 1,
        search_tolerance: 0.0,
        stop: Stop::Fa5,
        normalisation_gains: false,
    };
    let record = Composition {
        version: record::VERSION,
        name: "bench".into(),
        run: "bench".into(),
        parent: None,
        digest: base.digest,
        base,
        method: "sum".into(),
        merge: Merge::Sum,
        search,
        moments: Vec::new(),
        concepts: Vec::new(),
        missing: Vec::new(),
        near_duplicates: Vec::new(),
        utility: Utility::default(),
        recognition: None,
        protected: Vec::new(),
        layers: BTreeMap::new(),
        change_bound: None,
        towers: Vec::new(),
        probes: Vec::new(),
        receipts_for_unknown: false,
        gates: None,
        origin: None,
        targets: Vec::new(),
        files: BTreeMap::new(),
    };
    let thumbnails = Thumbnails::new();
    let contents = Contents {
        change: &change,
        edits: &edits,
        directions: &directions,
        effect_matrix: None,
        protected: None,
        thumbnails: &thumbnails,
        targets: Vec::new(),
    };
    write::write(&store, &Fence::open(), &checkpoint, contents, record).await?;
    let written = began.elapsed().as_secs_f64() - composed;
    println!("{}", json!({ "compose": composed, "write": written, "peak": peak()? }));
    Ok(())
}

/// Returns the largest resident set of this process so far, bytes.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("/proc/self/status does not say")?;
    Ok(1024 * line.trim().trim_end_matches(" kB").parse::<u64>()?)
}
