//! Release engineering: verifies a release, and points channels to it and back. `publish.rs` has the
//! faults of publishing.

use std::path::Path;
use std::process::{Command, Output};

use lethe::layout::RECORD;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::record::Composition;
use lethe_shared::reference::ArtifactRef;
use lethe_tests::targets::{read, write};
use lethe_tests::{SmallJob, binary, last_line, repository, stderr};
use serde_json::Value;

fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe")).env_remove("LETHE_LOG").args(arguments).output().unwrap()
}

/// Runs a command, which must end with this exit code, and returns its last line.
fn ends(code: i32, arguments: &[&str]) -> Value {
    let output = lethe(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"));
    last_line(&output)
}

fn refused(arguments: &[&str], says: &str) {
    let output = lethe(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(text.contains(says) && !text.contains("panicked"), "{text}\n  does not say: {says}");
}

/// Returns the files with problems in a verification.
fn problems(release: &str) -> Vec<String> {
    let said = ends(4, &["verify", release]);
    said["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem["file"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_flipped_bit_is_found_in_every_file() {
    let job = SmallJob::summed();
    let report = job.run("store");
    let release = report["release"].as_str().unwrap();
    let folder = Path::new(release);
    let said = ends(0, &["verify", release, "--recompute"]);
    let names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(said["files"].as_u64().unwrap() as usize + 1, names.len());
    assert!(names.len() >= 8, "{names:?}");

    for (number, name) in names.iter().enumerate() {
        let path = folder.join(name);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (number % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(problems(release), [name.as_str()], "bit {} of byte {at}", number % 8);
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(problems(release), [name.as_str()]);
        std::fs::remove_file(&path).unwrap();
        if name == RECORD {
            refused(&["verify", release], "holds no release");
        } else {
            assert_eq!(problems(release), [name.as_str()]);
        }
        std::fs::write(&path, &whole).unwrap();
    }
    std::fs::write(folder.join("more.bin"), "x").unwrap();
    assert_eq!(problems(release), ["more.bin"]);
    std::fs::remove_file(folder.join("more.bin")).unwrap();
    // Hubs add hidden files to what is downloaded.
    for name in [".gitattributes", ".cache/huggingface/download/model.safetensors.metadata"] {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    ends(0, &["verify", release]);
    std::fs::remove_dir_all(folder.join(".cache")).unwrap();
    std::fs::remove_file(folder.join(".gitattributes")).unwrap();

    // A changed record, in a copy whose folder is not named after the record.
    let copy = job.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in &names {
        std::fs::copy(folder.join(name), copy.join(name)).unwrap();
    }
    let copied = copy.to_str().unwrap();
    ends(0, &["verify", copied]);
    let record = std::fs::read_to_string(copy.join(RECORD)).unwrap();
    let mut other: Composition = serde_json::from_str(&record).unwrap();
    other.digest = Digest::of(b"other");
    std::fs::write(copy.join(RECORD), serde_json::to_vec(&other).unwrap()).unwrap();
    assert_eq!(problems(copied), [RECORD]);
    // Edits that do not give the weights.
    let mut other: Composition = serde_json::from_str(&record).unwrap();
    other.concepts[0].step *= 2.0;
    std::fs::write(copy.join(RECORD), serde_json::to_vec(&other).unwrap()).unwrap();
    ends(0, &["verify", copied]);
    assert_eq!(ends(4, &["verify", copied, "--recompute"])["problems"][0]["file"], "weights");

    // A tensor without an edit that differs from the base's, with a record that agrees with it.
    let mut forged: Composition = serde_json::from_str(&record).unwrap();
    let weights = copy.join("model.safetensors");
    let mut tensors = read(&weights);
    let name = tensors.keys().find(|name| !forged.layers.contains_key(*name)).unwrap().clone();
    tensors.get_mut(&name).unwrap().2[0] ^= 1;
    write(&weights, &tensors);
    let bytes = std::fs::read(&weights).unwrap();
    forged.files.insert(
        "model.safetensors".to_owned(),
        ArtifactRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 },
    );
    forged.digest = Checkpoint::open(&copy).unwrap().digest().unwrap();
    std::fs::write(copy.join(RECORD), serde_json::to_vec(&forged).unwrap()).unwrap();
    ends(0, &["verify", copied]);
    let problems = ends(4, &["verify", copied, "--recompute"])["problems"].clone();
    let expected = serde_json::json!([{"file": "weights", "problem": format!("`{name}` is touched by no edit, and is not the base's")}]);
    assert_eq!(problems, expected);
}

#[test]
fn channels_lead_to_releases_and_back() {
    let job = SmallJob::summed();
    let report = job.run("store");
    let store = job.path("store");
    let store = ["--store", store.to_str().unwrap()];
    let release = |arguments: &[&str]| ends(0, &[&["release"], arguments, &store].concat());
    assert_eq!(
        (report["number"].as_u64(), report["missed"].as_array().map(Vec::len)),
        (Some(1), Some(0))
    );
    let composed = ends(0, &["compose", report["release"].as_str().unwrap(), "--remove", "rocket"]);
    assert_eq!(composed["number"], 2);

    // A run's release is `latest`; a release without measurements is not.
    let listed = release(&["list"]);
    let channels = |listed: &Value| {
        listed["releases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["channels"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(channels(&listed), [serde_json::json!(["latest"]), serde_json::json!([])]);
    assert_eq!(listed["releases"][1]["address"], composed["release"]);
    assert_eq!(release(&["promote", "small:1", "production"])["before"], Value::Null);
    assert_eq!(release(&["promote", "small:2", "production"])["before"], 1);
    assert_eq!(release(&["promote", "small:2", "production"])["before"], 2, "nothing to do");
    assert_eq!(release(&["show", "small@production"])["release"]["number"], 2);
    assert_eq!(
        channels(&release(&["list", "small"])),
        [serde_json::json!(["latest"]), serde_json::json!(["production"])]
    );
    let output =
        lethe(&[&["release", "show", "small@production", "--address"], &store[..]].concat());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        composed["release"].as_str().unwrap()
    );
    let back = release(&["rollback", "small", "production"]);
    assert_eq!((&back["number"], &back["before"]), (&1.into(), &2.into()));
    assert_eq!(release(&["show", "small@production"])["release"]["number"], 1);
    refused(
        &[&["release", "rollback", "small", "production"], &store[..]].concat(),
        "leads nowhere else to go back to",
    );

    // A repeated run publishes nothing.
    let again = job.run("store");
    assert_eq!((&again["number"], &again["release"]), (&report["number"], &report["release"]));
    assert_eq!(release(&["list"])["releases"].as_array().unwrap().len(), 2);
    assert_eq!(release(&["gc", "--dry-run"])["leftovers"].as_array().unwrap().len(), 0);

    for (arguments, says) in [
        (&["show", "none"][..], "has no release none"),
        (&["show", "small:9"], "there is no release small:9"),
        (&["show", "small@beta"], "there is no small@beta"),
        (&["show", "../small"], "is no name"),
        (&["promote", "small:1", "../x"], "is no name"),
        (&["rollback", "small", "beta"], "leads nowhere else"),
    ] {
        refused(&[&["release"], arguments, &store].concat(), says);
    }
    refused(
        &["release", "list", "--store", job.path("nowhere").to_str().unwrap()],
        "is not a store",
    );
    assert!(!job.path("nowhere").is_dir(), "looking makes nothing");
}

#[test]
fn a_release_that_misses_a_gate_is_stored_and_not_promoted() {
    let job = SmallJob::summed();
    let store = job.path("store");
    let store = store.to_str().unwrap();
    let missed = |said: &Value| {
        said["missed"]
            .as_array()
            .unwrap()
            .iter()
            .map(|gate| gate.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    job.write("gates.toml", b"[gates]\nchange = 0.000001\nmissing = 0\n");
    let (manifest, gates) = (job.path("job.toml"), job.path("gates.toml"));
    let (manifest, gates) = (manifest.to_str().unwrap(), gates.to_str().unwrap());

    // The owner of the pipeline requires more than the manifest.
    let said = ends(4, &["run", manifest, "--store", store, "--gates", gates]);
    assert_eq!((said["status"].as_str(), said["number"].as_u64()), (Some("gates-missed"), Some(1)));
    assert!(missed(&said).len() == 1 && missed(&said)[0].starts_with("change is "), "{said}");
    let listed = ends(0, &["release", "list", "--store", store]);
    assert_eq!(listed["releases"][0]["channels"], serde_json::json!([]));
    ends(0, &["verify", said["release"].as_str().unwrap()]);
    let refusal = ends(
        4,
        &["release", "promote", "small:1", "production", "--gates", gates, "--store", store],
    );
    assert_eq!(missed(&refusal), missed(&said));
    // Without those gates it is promoted, and nothing is computed again.
    let said = ends(0, &["run", manifest, "--store", store]);
    assert_eq!(
        (said["number"].as_u64(), said["summary"]["jobs_done"].as_u64()),
        (Some(1), Some(0))
    );
    assert_eq!(
        ends(0, &["release", "list", "--store", store])["releases"][0]["channels"],
        serde_json::json!(["latest"])
    );

    // The manifest's own gates are on record, and apply to every promotion.
    job.replace(
        "job.toml",
        "[execution]",
        "[gates]\nfa5_worst = 1.0\nutility_drop = 1.0\n\n[execution]",
    );
    let said = ends(0, &["run", manifest, "--store", store]);
    assert_eq!(said["number"], 2);
    let composed = ends(0, &["compose", said["release"].as_str().unwrap()]);
    let refusal = ends(
        4,
        &[
            "release",
            "promote",
            &format!("small:{}", composed["number"]),
            "production",
            "--store",
            store,
        ],
    );
    assert!(
        missed(&refusal).iter().all(|gate| gate.contains("was not measured"))
            && missed(&refusal).len() == 2,
        "{refusal}"
    );
    ends(0, &["release", "promote", "small:2", "production", "--store", store]);
    job.write("gates.toml", b"[gates]\nutility = 1\n");
    refused(
        &["run", manifest, "--store", store, "--gates", gates],
        "gates.toml:2: unknown field `utility`",
    );
    job.replace("job.toml", "fa5_worst = 1.0", "fa5_worst = 2.0");
    refused(&["run", manifest, "--store", store], "gates.fa5_worst is 2, expected 0 to 1");
}

#[test]
fn the_readme_s_way_to_production_works_as_written() {
    let job = SmallJob::summed();
    job.replace("job.toml", "name = \"small\"", "name = \"my-release\"");
    job.run("store");
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, section) = readme.split_once("## From a run to production").unwrap();
    let (_, block) = section.split_once("```console\n").unwrap();
    let script: String = block
        .split_once("```")
        .unwrap()
        .0
        .lines()
        .map(|line| line.strip_prefix("$ ").unwrap().to_owned() + "\n")
        .collect();
    let lethe = binary("lethe");
    let path = format!("{}:{}", lethe.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(job.path(""))
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{said}{}", stderr(&output));
    assert!(said.contains("all unchanged") && said.contains("my-release:2"), "{said}");
    assert_eq!(
        said.trim().lines().last(),
        Some("my-release@production points to my-release:1 (was 2)")
    );
}

/// A decision by hand survives a repeated run, for example one started by a scheduler.
#[test]
fn a_run_that_is_repeated_undoes_no_decision() {
    let job = SmallJob::summed();
    let (manifest, store) = (job.path("job.toml"), job.path("store"));
    let store = ["--store", store.to_str().unwrap()];
    let release = |arguments: &[&str]| ends(0, &[&["release"], arguments, &store].concat());
    let latest = || release(&["show", "small@latest"])["release"]["number"].as_u64().unwrap();
    let run = || {
        let said = job.run("store");
        (said["number"].as_u64().unwrap(), said["unmoved"].as_str().map(str::to_owned))
    };
    let evaluations = |from: &str, to: &str| {
        job.replace(
            "job.toml",
            &format!("search_evaluations = {from}"),
            &format!("search_evaluations = {to}"),
        )
    };
    assert_eq!((run(), latest()), ((1, None), 1));
    evaluations("6", "7");
    assert_eq!((run(), latest()), ((2, None), 2));

    release(&["rollback", "small", "latest"]);
    let unmoved = "latest stays at small:1 (rolled back by hand); `lethe release promote small:2 latest` changes that";
    for _ in 0..2 {
        assert_eq!((run(), latest()), ((2, Some(unmoved.to_owned())), 1));
    }
    // The table for people contains it too.
    let output = lethe(&[&["run", manifest.to_str().unwrap()], &store[..]].concat());
    assert!(String::from_utf8_lossy(&output.stdout).contains(unmoved), "{}", stderr(&output));
    // A new release becomes `latest`.
    evaluations("7", "8");
    assert_eq!((run(), latest()), ((3, None), 3));
    release(&["promote", "small:2", "latest"]);
    let unmoved = "latest stays at small:2 (promoted by hand); `lethe release promote small:3 latest` changes that";
    assert_eq!((run(), latest()), ((3, Some(unmoved.to_owned())), 2));
    release(&["promote", "small:3", "latest"]);
    assert_eq!((run(), latest()), ((3, None), 3));
}
