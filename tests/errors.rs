//! Invalid input gives a sentence with the problem, its location and the remedy, and the documented
//! exit code.

use std::process::{Command, Output};

use lethe_tests::{SmallJob, binary, demo, last_line, shard_of, stderr};

/// Runs the job, which must fail with this exit code and these messages.
fn fails(job: &SmallJob, code: i32, says: &[&str]) -> Output {
    let output = job.output("store");
    check(&output, code, says);
    assert!(!job.path("store/releases").is_dir() || code == 3, "nothing was released");
    output
}

fn check(output: &Output, code: i32, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in says {
        assert!(text.contains(part), "{text}\n  does not say: {part}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// Copies the demo model into the job's folder, where tests damage it.
fn own_model(job: &SmallJob) {
    std::fs::create_dir(job.path("model")).unwrap();
    for entry in std::fs::read_dir(demo().join("model")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), job.path("model").join(entry.file_name())).unwrap();
    }
    job.replace(
        "job.toml",
        &format!("uri = \"{}\"", demo().join("model").display()),
        "uri = \"model\"",
    );
}

#[test]
fn a_missing_file_is_named() {
    let job = SmallJob::new();
    std::fs::remove_file(job.path("rocket.tar")).unwrap();
    fails(&job, 2, &["concepts.csv:4", "concept `rocket`", "rocket.tar does not exist"]);
    job.replace("job.toml", "retain-*.tar", "keep-*.tar");
    fails(&job, 2, &["job.toml: data.retain", "keep-*.tar", "no file matches"]);
    job.replace("job.toml", "uri = \"/", "uri = \"/nowhere/");
    fails(&job, 2, &["job.toml: model.uri", "no such folder"]);
}

#[test]
fn a_truncated_checkpoint_is_refused() {
    let job = SmallJob::new();
    own_model(&job);
    let bytes = std::fs::read(job.path("model/model.safetensors")).unwrap();
    job.write("model/model.safetensors", &bytes[..bytes.len() - 1000]);
    fails(&job, 2, &["model.safetensors", "download it again"]);
}

#[test]
fn a_pickled_checkpoint_is_refused_with_a_way_out() {
    let job = SmallJob::new();
    own_model(&job);
    std::fs::rename(job.path("model/model.safetensors"), job.path("model/pytorch_model.bin"))
        .unwrap();
    fails(&job, 2, &["pytorch_model.bin", "opening a pickle runs code", "safe_serialization=True"]);
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let job = SmallJob::new();
    own_model(&job);
    let path = job.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    fails(&job, 2, &["holds NaN or infinite values"]);
}

#[test]
fn a_broken_image_costs_its_concept_and_is_named() {
    let job = SmallJob::new();
    let broken = b"\x89PNG\r\n\x1a\nthis is no image".to_vec();
    job.write(
        "rocket.tar",
        &shard_of([
            ("rocket-7.png".to_owned(), broken.clone()),
            ("rocket-7.txt".to_owned(), b"rocket".to_vec()),
        ]),
    );
    let output = fails(&job, 3, &["1 concepts are missing", "policy.required"]);
    let report = last_line(&output);
    assert_eq!(report["status"], "incomplete");
    let missing = &report["summary"]["missing"][0];
    assert_eq!(missing["id"], "rocket");
    let reason = missing["reason"].as_str().unwrap();
    assert!(
        reason.contains("rocket.tar")
            && reason.contains("`rocket-7`")
            && reason.contains("cannot be decoded"),
        "{reason}"
    );

    // If the manifest permits it, the same run is complete.
    let text = std::fs::read_to_string(job.path("job.toml")).unwrap();
    job.write("job.toml", format!("{text}\n[policy]\nrequired = 0.6\n").as_bytes());
    let report = job.run("store");
    assert_eq!(
        (&report["status"], report["summary"]["edited"].as_u64()),
        (&"complete".into(), Some(2))
    );

    // In the retain set, the same fault ends the run.
    job.write(
        "retain-1.tar",
        &shard_of((0..40).flat_map(|i| {
            [(format!("{i}.png"), broken.clone()), (format!("{i}.txt"), b"x".to_vec())]
        })),
    );
    let output = job.output("other");
    check(&output, 2, &["retain-1.tar", "`0`", "cannot be decoded"]);
}

#[test]
fn a_caption_without_an_image_is_refused() {
    let job = SmallJob::new();
    job.write("rocket.tar", &shard_of([("rocket-7.txt".to_owned(), b"rocket".to_vec())]));
    fails(
        &job,
        2,
        &["concept `rocket`", "rocket.tar", "sample `rocket-7` has a caption and no image"],
    );
}

#[test]
fn an_unknown_field_is_refused_with_its_line() {
    let job = SmallJob::new();
    job.replace("job.toml", "search_evaluations", "search_evaluation");
    fails(&job, 2, &["job.toml:18", "unknown field `search_evaluation`"]);
}

#[test]
fn a_concept_without_pairs_is_refused() {
    let job = SmallJob::new();
    job.write("rocket.tar", &shard_of([]));
    fails(&job, 2, &["concept `rocket`", "rocket.tar holds no image-text pair"]);
    job.replace("concepts.csv", ",rocket.tar,", ",,");
    fails(&job, 2, &["concepts.csv:4", "concept `rocket` has no forget shard"]);
}

#[test]
fn concepts_must_make_sense_together() {
    let job = SmallJob::new();
    job.replace("concepts.csv", "rocket,rocket,rocket,", "rocket,rocket,rockett,");
    fails(
        &job,
        2,
        &[
            "concepts.csv:4",
            "class `rockett` of concept `rocket` is not in",
            "did you mean `rocket`?",
        ],
    );
    job.replace("concepts.csv", "rocket,rocket,rockett,", "pizza,rocket,rocket,");
    fails(&job, 2, &["concepts.csv:4", "id `pizza` is already on line 2"]);
}

#[test]
fn a_policy_must_name_concepts_of_the_manifest() {
    let job = SmallJob::new();
    let text = std::fs::read_to_string(job.path("job.toml")).unwrap();
    job.write(
        "job.toml",
        format!("{text}\n[policy]\nrequired = [\"pizza\", \"piza\"]\n").as_bytes(),
    );
    fails(&job, 2, &["job.toml: policy.required", "`piza` is no concept"]);
}

#[test]
fn retain_texts_must_be_lines_of_text() {
    let job = SmallJob::new();
    job.replace("job.toml", "validation = [", "retain_texts = [\"texts-*.txt\"]\nvalidation = [");
    fails(&job, 2, &["job.toml: data.retain_texts", "texts-*.txt", "no file matches"]);
    job.write("texts-1.txt", b"a tree\n\na h\xf6rse\n");
    fails(&job, 2, &["texts-1.txt:3: the line is not UTF-8"]);
    job.write("texts-1.txt", &[b"a tree\n".as_slice(), &[b'x'; 1 << 17]].concat());
    fails(
        &job,
        2,
        &["texts-1.txt:2: the line has 131072 bytes, at most 64 KiB", "one text on a line"],
    );
    job.write("texts-1.txt", b"\n \n");
    fails(&job, 2, &["texts-1.txt: contains no text"]);
    // The file is sparse, so it takes no space on the disk.
    std::fs::File::create(job.path("texts-1.txt")).unwrap().set_len((256 << 20) + 1).unwrap();
    fails(
        &job,
        2,
        &[
            "job.toml: data.retain_texts",
            "texts-1.txt has 268435457 bytes, at most 268435456 are read",
        ],
    );
    job.replace("job.toml", "[\"texts-*.txt\"]", "\"texts.txt\"");
    fails(&job, 2, &["job.toml:9", "invalid type"]);
}

#[test]
fn captions_of_held_out_sets_must_be_classes() {
    let job = SmallJob::new();
    job.replace("classes.txt", "rocket", "rakete");
    fails(&job, 2, &["not in", "classes.txt"]);
}

#[test]
fn a_store_that_cannot_be_written_says_why() {
    let job = SmallJob::new();
    // No user, not even root, can create a folder there.
    let output = job.command("run", &["--store", "/proc/self/lethe"]).output().unwrap();
    assert!(matches!(output.status.code(), Some(2 | 5)), "{}", stderr(&output));
    assert!(stderr(&output).contains("/proc/self/lethe"), "{}", stderr(&output));
    let output = job.command("run", &["--store", "/sys/lethe"]).output().unwrap();
    check(
        &output,
        5,
        &["/sys/lethe: permission denied", "check the credentials or the folder's owner"],
    );
    job.write("file", b"x");
    let output =
        job.command("run", &["--store", job.path("file").to_str().unwrap()]).output().unwrap();
    assert!(matches!(output.status.code(), Some(2 | 5)), "{}", stderr(&output));
}

#[test]
fn a_full_disk_ends_the_run_and_loses_nothing() {
    let job = SmallJob::new();
    std::fs::create_dir(job.path("disk")).unwrap();
    // A disk of half a megabyte in a mount namespace, which ends with the process.
    let script =
        "mount -t tmpfs -o size=512k tmpfs \"$1\" && exec \"$2\" run \"$3\" --store \"$1/store\"";
    let namespace = if is_root() { "-m" } else { "-Urm" };
    let output = Command::new("unshare")
        .args([namespace, "sh", "-c", script, "sh"])
        .args([job.path("disk"), binary("lethe"), job.path("job.toml")])
        .output()
        .unwrap();
    check(&output, 5, &["no space left on the device", "free some and run again"]);
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let code =
        |args: &[&str]| Command::new(binary("lethe")).args(args).output().unwrap().status.code();
    assert_eq!(code(&["run"]), Some(2));
    assert_eq!(code(&["fly"]), Some(2));
    assert_eq!(code(&["run", "/nowhere/job.toml"]), Some(2));
    assert_eq!(code(&["--help"]), Some(0));
    let job = SmallJob::new();
    let output = job.command("run", &["--store", "http://somewhere/x"]).output().unwrap();
    check(&output, 2, &["--store", "the scheme must be file, s3, gs or az"]);
}
