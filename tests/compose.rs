//! `lethe compose`: composes a release again from the stored edits of another one. The bytes equal
//! those of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::record::{Amendment, Composition};
use lethe_tests::{CONCEPTS, SmallJob, base_model, binary, demo, last_line, releases, stderr};
use safetensors::SafeTensors;
use serde_json::Value;

fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe")).env_remove("LETHE_LOG").args(arguments).output().unwrap()
}

/// Runs `lethe compose RELEASE … --json`, which must succeed, and returns its last line.
fn compose(release: &str, arguments: &[&str]) -> Value {
    let output = lethe(&[&["compose", release, "--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    last_line(&output)
}

/// Runs `lethe compose`, which must fail with this message.
fn refused(release: &str, arguments: &[&str], says: &str) {
    let output = lethe(&[&["compose", release], arguments].concat());
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(says) && !text.contains("panicked"), "{text}\n  does not say: {says}");
}

fn address(said: &Value) -> &str {
    said["release"].as_str().unwrap()
}

/// Returns the digest of a release's weight file.
fn model(said: &Value) -> Digest {
    digest(Path::new(address(said)), "model.safetensors").unwrap()
}

/// Returns the digest of a file, if it exists.
fn digest(folder: &Path, name: &str) -> Option<Digest> {
    std::fs::read(folder.join(name)).ok().map(|bytes| Digest::of(&bytes))
}

fn record(said: &Value) -> Composition {
    serde_json::from_slice(
        &std::fs::read(Path::new(address(said)).join("composition.json")).unwrap(),
    )
    .unwrap()
}

/// Returns the effect matrix of a release, row by row.
fn effects(said: &Value) -> Vec<f64> {
    let file = std::fs::read(Path::new(address(said)).join("interference.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&file).unwrap();
    parsed
        .tensor("effect")
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|word| f64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// Returns the small job with these concepts, and these lines under `[composition]`.
fn job(concepts: &[&str], composition: &str) -> SmallJob {
    only(SmallJob::new(), concepts, composition)
}

/// Returns a job with these of its concepts; the others stay in the class list.
fn only(job: SmallJob, concepts: &[&str], composition: &str) -> SmallJob {
    // The test compares bytes, whatever the quality of the edits.
    let job = job.lenient();
    job.replace("job.toml", "[execution]", &format!("[composition]\n{composition}\n\n[execution]"));
    let table = std::fs::read_to_string(job.path("concepts.csv")).unwrap();
    let rows = table
        .lines()
        .filter(|row| row.starts_with("id,") || concepts.contains(&row.split(',').next().unwrap()));
    job.write("concepts.csv", (rows.collect::<Vec<_>>().join("\n") + "\n").as_bytes());
    job
}

#[test]
fn the_demo_s_release_is_composed_again_without_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let manifest = folder.path().join("preconditioned.toml");
    let mut text = std::fs::read_to_string(demo().join("small.toml")).unwrap();
    for name in
        ["model", "retain-*.tar", "validation.tar", "test.tar", "classes.txt", "concepts-8.csv"]
    {
        text = text.replace(&format!("\"{name}\""), &format!("\"{}/{name}\"", demo().display()));
    }
    std::fs::write(&manifest, text + "\n[composition]\nmethod = \"preconditioned\"\n").unwrap();
    let output =
        lethe(&["run", manifest.to_str().unwrap(), "--store", store.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = last_line(&output);
    let parent = record(&run);
    let ids: Vec<&str> = parent.concepts.iter().map(|concept| concept.id.as_str()).collect();
    assert_eq!(ids.len(), 8);

    // Without changes: the same model, and a new record that claims no measurement.
    let same = compose(address(&run), &[]);
    assert_eq!((&same["digest"], model(&same)), (&run["digest"], model(&run)));
    let again = record(&same);
    let origin = again.parent.clone().unwrap();
    assert_eq!(
        (origin.release.to_string(), origin.changes),
        (address(&run).rsplit_once("releases/").unwrap().1.to_owned(), vec![])
    );
    assert!(again.concepts.iter().all(|concept| concept.composed.is_none()));
    assert_eq!(
        (again.utility.validation, again.utility.test, again.utility.retained_classes),
        (None, None, None)
    );
    for (before, after) in parent.concepts.iter().zip(&again.concepts) {
        assert_eq!(
            (before.coefficient, before.target, &before.alone),
            (after.coefficient, after.target, &after.alone)
        );
    }
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(Path::new(address(&same)).join(page)).unwrap();
        let has_accuracy =
            text.contains("TA@1 kept on") || text.contains("| images of | before → after |");
        assert!(text.contains("This checkpoint was not measured") && !has_accuracy, "{page}");
    }
    assert_eq!(
        address(&compose(address(&run), &[])),
        address(&same),
        "the same change is the same release"
    );

    // Leaving a concept out equals strength 0, and the coefficients of the others are solved anew.
    let without = compose(address(&run), &["--remove", ids[3]]);
    let silent = compose(address(&run), &["--strength", &format!("{}=0", ids[3])]);
    assert_eq!(model(&without), model(&silent));
    assert_ne!(model(&without), model(&run));
    assert_eq!(record(&without).concepts.len(), 7);
    assert_eq!(
        record(&without).parent.unwrap().changes,
        [Amendment::Remove { id: ids[3].to_owned() }]
    );
    // Two removals at once equal one after the other.
    let both = compose(address(&run), &["--remove", ids[3], "--remove", ids[5]]);
    assert_eq!(model(&both), model(&compose(address(&without), &["--remove", ids[5]])));
    // A change and its inverse.
    let half = compose(address(&run), &["--strength", &format!("{}=0.5", ids[0])]);
    assert_ne!(model(&half), model(&run));
    assert_eq!(
        model(&compose(address(&half), &["--strength", &format!("{}=1", ids[0])])),
        model(&run)
    );
    assert_eq!(
        model(&compose(address(&without), &["--add", &format!("{}:{}", address(&run), ids[3])])),
        model(&run)
    );

    // Strength 0 for all concepts gives the base.
    let zeros: Vec<String> = ids.iter().map(|id| format!("--strength={id}=0")).collect();
    let none = compose(address(&run), &zeros.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(model(&none), digest(&demo().join("model"), "model.safetensors").unwrap());

    // A preview prints predictions and writes nothing.
    let count = releases(&store);
    let preview = compose(address(&run), &["--preview", "--strength", &format!("{}=0.25", ids[1])]);
    assert_eq!(releases(&store), count);
    let cost: Vec<f64> = serde_json::from_value(preview["cost"].clone()).unwrap();
    assert!(cost[0] > cost[1] && cost[1] > 0.0, "{cost:?}");
    for concept in preview["concepts"].as_array().unwrap() {
        let pair =
            |field: &str| serde_json::from_value::<(f64, f64)>(concept[field].clone()).unwrap();
        let (wanted, raise, strength) = (pair("wanted"), pair("raise"), pair("strength"));
        let factor = if concept["id"] == ids[1] { 0.25 } else { 1.0 };
        assert_eq!((strength, wanted.1), ((1.0, factor), wanted.0 * factor));
        // Targets are soft, and another concept's edit may raise the loss beyond the target.
        assert!(raise.1 > 0.9 * wanted.1, "{concept}");
    }
}

#[test]
fn a_concept_left_out_is_byte_for_byte_a_run_without_it() {
    let kept: Vec<&str> = CONCEPTS.iter().copied().filter(|id| *id != "red-heart").collect();
    // With enough layers, each concept gets its own best layer, independent of the other concepts.
    for composition in ["rounds = 0\nlayers = 64", "method = \"sum\""] {
        let (all, fewer) = (
            job(&CONCEPTS, composition).run_kept("store"),
            job(&kept, composition).run_kept("store"),
        );
        let composed = compose(address(&all.1), &["--remove", "red-heart"]);
        assert_eq!(
            (&composed["digest"], model(&composed)),
            (&fewer.1["digest"], model(&fewer.1)),
            "{composition}"
        );
        for name in ["edits.safetensors", "interference.safetensors"] {
            let of = |said: &Value| digest(Path::new(address(said)), name);
            assert_eq!(of(&composed), of(&fewer.1), "{composition}: {name}");
        }
    }
}

#[test]
fn a_concept_of_another_release_is_added() {
    // With enough layers, each concept gets its own best one; of nine concepts, some share a layer
    // of the text tower.
    let free = "rounds = 0\nlayers = 64";
    let nine = SmallJob::with_concepts(9);
    let table = std::fs::read_to_string(nine.path("concepts.csv")).unwrap();
    let ids: Vec<&str> = table.lines().skip(1).map(|row| row.split(',').next().unwrap()).collect();
    let surveyed = record(&only(nine, &ids, free).run_kept("store").1);
    let mut by_layer: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    surveyed
        .concepts
        .iter()
        .for_each(|concept| by_layer.entry(&concept.layer).or_default().push(&concept.id));
    let [a, b, c] =
        *by_layer.values().max_by_key(|ids| ids.len()).unwrap().first_chunk::<3>().unwrap();
    let of = |ids: &[&str], composition: &str| {
        only(SmallJob::with_concepts(9), ids, composition).run_kept("store")
    };
    let ((_whole, whole), (ours, part), (_rest, rest)) =
        (of(&[a, b, c], free), of(&[a, c], free), of(&[b], free));
    let from = format!("{}:{b}", address(&rest));
    let composed = compose(address(&part), &["--add", &from]);
    // Effects across releases are summed here and not in libtorch, so the last bits may differ.
    for (found, expected) in effects(&composed).iter().zip(effects(&whole)) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-6), "{found} {expected}");
    }
    for (found, expected) in record(&composed).concepts.iter().zip(&record(&whole).concepts) {
        assert_eq!(
            (&found.id, found.direction, found.step),
            (&expected.id, expected.direction, expected.step)
        );
        assert!(
            (found.coefficient - expected.coefficient).abs() <= 1e-6 * expected.coefficient,
            "{}: {} {}",
            found.id,
            found.coefficient,
            expected.coefficient
        );
    }
    let edits = |said: &Value| digest(Path::new(address(said)), "edits.safetensors");
    assert_eq!(edits(&composed), edits(&whole));
    // The artifacts it refers to were copied, so that it can be composed again from its own store.
    let again = compose(address(&composed), &["--remove", a]);
    let record = record(&composed);
    let artifact =
        |digest: &str| ours.path("store").join("artifacts").join(&digest[..2]).join(digest);
    let gradients = record
        .concepts
        .iter()
        .map(|concept| artifact(&concept.gradients.unwrap().digest.to_string()));
    assert!(
        gradients
            .chain(record.concepts.iter().map(|c| artifact(&c.direction.digest.to_string())))
            .all(|path| path.is_file())
    );
    compose(address(&again), &["--add", &format!("{}:{a}", address(&part))]);

    // Incompatible edits are rejected.
    refused(address(&whole), &["--add", &from], "there is a concept of this id already");
    refused(
        address(&part),
        &["--add", &format!("{}:none", address(&rest))],
        &format!("removes no concept `none`; it removes {b}"),
    );
    let (_summed, summed) = of(&[b], "method = \"sum\"");
    refused(address(&part), &["--add", &format!("{}:{b}", address(&summed))], "found for `sum`");
    let (_ridged, ridged) = of(&[b], &format!("{free}\nridge = 0.01"));
    refused(
        address(&part),
        &["--add", &format!("{}:{b}", address(&ridged))],
        "other second moments",
    );
    // An edit on another layer, by a run that edits no other: its effects here are unknown.
    let elsewhere =
        surveyed.concepts.iter().find(|concept| concept.layer != record.concepts[0].layer).unwrap();
    let (_other, other) = of(&[&elsewhere.id], "rounds = 0");
    let other = format!("{}:{}", address(&other), elsewhere.id);
    refused(
        address(&part),
        &["--add", &other],
        "its run kept gradients of the layers that it edits",
    );

    let gone = artifact(&record.concepts[0].gradients.unwrap().digest.to_string());
    std::fs::remove_file(&gone).unwrap();
    refused(
        address(&part),
        &["--add", &from],
        "is no longer there; the run that found it makes them again",
    );
}

#[test]
fn what_cannot_be_composed_is_refused() {
    let job = job(&["pizza", "rocket"], "method = \"sum\"");
    let said = job.run("store");
    let (release, count) = (address(&said), releases(&job.path("store")));
    refused(release, &["--remove", "none"], "removes no concept `none`; it removes pizza, rocket");
    refused(release, &["--remove", "pizza", "--strength", "pizza=1"], "removes no concept `pizza`");
    refused(release, &["--strength", "pizza=-1"], "expected 0 to 100");
    refused(release, &["--strength", "pizza=1", "--strength", "pizza=2"], "two strengths");
    refused(release, &["--strength", "pizza"], "expected ID=A");
    refused(job.path("store").to_str().unwrap(), &[], "holds no release");

    // Another model at the base's address, and its files.
    let other = job.path("other");
    copy(&base_model(), &other);
    std::fs::write(other.join("config.json"), "{}").unwrap();
    refused(
        release,
        &["--base", other.to_str().unwrap()],
        "`config.json` is not the file that was released with",
    );
    copy(Path::new(release), &other);
    refused(release, &["--base", other.to_str().unwrap()], "its weights are");
    refused(
        release,
        &["--base", job.path("nowhere").to_str().unwrap()],
        "--base says where the model is",
    );

    // A copy of a release works as well, but needs an explicit store for the new one.
    let copied = job.path("copied");
    copy(Path::new(release), &copied);
    refused(
        copied.to_str().unwrap(),
        &["--remove", "pizza"],
        "give the store for the new release with --store",
    );
    let elsewhere = compose(
        copied.to_str().unwrap(),
        &["--remove", "pizza", "--store", job.path("elsewhere").to_str().unwrap()],
    );
    assert_eq!(model(&elsewhere), model(&compose(release, &["--remove", "pizza"])));
    let edits = copied.join("edits.safetensors");
    let mut bytes = std::fs::read(&edits).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&edits, bytes).unwrap();
    refused(
        copied.to_str().unwrap(),
        &["--store", job.path("elsewhere").to_str().unwrap()],
        "is not what was released",
    );
    assert_eq!(releases(&job.path("store")), count + 1);
    assert_eq!(
        Checkpoint::open(Path::new(address(&elsewhere))).unwrap().digest().unwrap(),
        record(&elsewhere).digest
    );
}

fn copy(from: &Path, to: &PathBuf) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

trait Kept {
    /// Runs the job, and keeps its folder.
    fn run_kept(self, store: &str) -> (SmallJob, Value);
}

impl Kept for SmallJob {
    fn run_kept(self, store: &str) -> (SmallJob, Value) {
        let said = self.run(store);
        (self, said)
    }
}
