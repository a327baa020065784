//! Invalid input gives a sentence with the problem, its location and the remedy, and the documented
//! exit code.

use std::io::Cursor;
use std::process::{Command, Output};

use image::{ImageFormat, RgbImage};
use lethe_tests::{Member, SmallJob, base_model, binary, last_line, shard_of, stderr};

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

/// Returns a noisy image.
fn image(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let noise = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, (x ^ y) as u8])
    });
    noise.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Returns a pair with the caption `rocket`.
fn rocket(key: &str, extension: &str, image: &[u8]) -> [Member; 2] {
    [(format!("{key}.{extension}"), image.to_vec()), (format!("{key}.txt"), b"rocket".to_vec())]
}

/// Runs `lethe plan`.
fn plan(job: &SmallJob) -> Output {
    job.command("plan", &[]).output().unwrap()
}

/// Copies the demo model into the job's folder, where tests damage it.
fn own_model(job: &SmallJob) {
    std::fs::create_dir(job.path("model")).unwrap();
    for entry in std::fs::read_dir(base_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), job.path("model").join(entry.file_name())).unwrap();
    }
    job.replace("job.toml", &format!("uri = \"{}\"", base_model().display()), "uri = \"model\"");
}

#[test]
fn a_missing_file_is_named() {
    let job = SmallJob::new();
    std::fs::remove_file(job.path("rocket.tar")).unwrap();
    fails(&job, 2, &["concepts.csv:4", "concept `rocket`", "rocket.tar does not exist"]);
    job.replace("job.toml", "retain-*.tar", "keep-*.tar");
    fails(&job, 2, &["job.toml: data.retain", "keep-*.tar", "no file matches"]);
    job.replace("job.toml", "uri = \"/", "uri = \"/nowhere/");
    // What the manifest names and is missing is said at once.
    fails(&job, 2, &["job.toml: model.uri", "does not exist", "job.toml: data.retain"]);
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
fn a_truncated_image_is_refused_before_anything_is_computed() {
    for (format, extension) in
        [(ImageFormat::Jpeg, "jpg"), (ImageFormat::Png, "png"), (ImageFormat::WebP, "webp")]
    {
        let job = SmallJob::new();
        let whole = image(64, 64, format);
        let members = rocket("r-1", extension, &whole[..whole.len() / 2]);
        job.write("rocket.tar", &shard_of(members));
        let says = ["concept `rocket`", "rocket.tar", "the image of sample `r-1` is truncated"];
        fails(&job, 2, &says);
        check(&plan(&job), 2, &says);
    }
}

#[test]
fn a_wide_image_is_read_and_too_many_pixels_are_refused() {
    let job = SmallJob::new();
    let wide = rocket("wide", "jpg", &image(20_000, 400, ImageFormat::Jpeg));
    job.write("rocket.tar", &shard_of(wide));
    job.run("store");
    // The header of a PNG, which claims a million pixels a side.
    let mut large = image(8, 8, ImageFormat::Png);
    large[16..24].copy_from_slice(&[0, 16, 0, 0, 0, 16, 0, 0]);
    job.write("rocket.tar", &shard_of(rocket("large", "png", &large)));
    check(&plan(&job), 2, &["sample `large` has 1048576 × 1048576 pixels, at most 89478485"]);
}

#[test]
fn every_archive_of_a_file_is_read() {
    let job = SmallJob::new();
    let whole = std::fs::read(job.path("rocket.tar")).unwrap();
    let more = shard_of(rocket("more", "png", &image(8, 8, ImageFormat::Png)));
    job.write("rocket.tar", &[&whole[..], &more].concat());
    let pairs = |job: &SmallJob| {
        let plan = job.command("plan", &[]).output().unwrap();
        check(&plan, 0, &[]);
        last_line(&plan)
    };
    let joined = pairs(&job);
    job.write("rocket.tar", &whole);
    assert_ne!(joined, pairs(&job));
    // A second archive that is damaged is not dropped.
    job.write("rocket.tar", &[&whole[..], &more[..700]].concat());
    check(&plan(&job), 2, &["rocket.tar: is not a complete tar file"]);
}

#[test]
fn members_without_a_pair_are_counted_and_one_is_named() {
    let job = SmallJob::new();
    let picture = image(8, 8, ImageFormat::Png);
    let zoomed = |number: usize| rocket(&format!("zoom1.5x-{number}"), "png", &picture);
    let members = rocket("r", "png", &picture).into_iter().chain((0..3).flat_map(zoomed));
    job.write("rocket.tar", &shard_of(members));
    let planned = plan(&job);
    check(
        &planned,
        0,
        &["6 members belong to no image-text pair", "`zoom1.5x-0.png`", "first dot"],
    );
    job.write("rocket.tar", &shard_of((0..3).flat_map(zoomed)));
    check(&plan(&job), 2, &["rocket.tar holds no image-text pair", "`zoom1.5x-0.png`"]);
}

#[test]
fn texts_from_outside_are_escaped_and_cut() {
    let job = SmallJob::new();
    let held_out = |caption: &[u8]| {
        let [picture, _] = rocket("r", "png", &image(8, 8, ImageFormat::Png));
        job.write("odd\u{1b}[2J.tar", &shard_of([picture, ("r.txt".to_owned(), caption.to_vec())]));
        plan(&job)
    };
    let text = std::fs::read_to_string(job.path("job.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("validation = ")).unwrap().to_owned();
    job.replace("job.toml", &line, "validation = [\"odd*.tar\"]");
    let output = held_out(b"\x1b]0;owned\x07 cat");
    check(&output, 2, &[r"`\u{1b}]0;owned\u{7} cat`, which is not a class", r"odd\u{1b}[2J.tar"]);
    assert!(!output.stderr.contains(&0x1b));
    let output = held_out(&[b'x'; 60_000]);
    check(&output, 2, &["… (60000 bytes)`, which is not a class"]);
    assert!(output.stderr.len() < 2000);
    // A byte-order mark is no part of a caption.
    check(&held_out("\u{feff}rocket".as_bytes()), 0, &[]);
}

#[test]
fn braces_name_several_shards() {
    let job = SmallJob::new();
    let text = std::fs::read_to_string(job.path("job.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("retain = ")).unwrap().to_owned();
    let shard = std::fs::read(job.path("retain-1.tar")).unwrap();
    job.write("kept-000.tar", &shard);
    job.replace("job.toml", &line, "retain = [\"kept-{000..001}.tar\"]");
    check(&plan(&job), 2, &["data.retain", "kept-001.tar does not exist"]);
    job.write("kept-001.tar", &shard);
    check(&plan(&job), 0, &["the same data more than once"]);
}

#[test]
fn all_problems_of_shards_are_named_at_once() {
    let job = SmallJob::new();
    let picture = image(8, 8, ImageFormat::Png);
    let bad = (0..5).map(|number| (format!("alone-{number}.png"), picture.clone()));
    job.write("rocket.tar", &shard_of(rocket("r", "png", b"GIF89a").into_iter().chain(bad)));
    job.write("pizza.tar", b"\x1f\x8b\x08 and so on");
    let [animation, caption] = rocket("g", "gif", b"GIF89a");
    let [other, _] = rocket("j", "png", &picture);
    let table = ("j.json".to_owned(), b"{}".to_vec());
    job.write("retain-1.tar", &shard_of([animation, caption, other, table]));
    let output = plan(&job);
    let says = [
        "sample `r` is a GIF image",
        "sample `alone-0` has an image and no caption",
        "sample `alone-4` has an image and no caption",
        "pizza.tar: is compressed with gzip",
        "sample `g` has a caption and no image; it has `g.gif`, but images are read from .jpg",
        "sample `j` has an image and no caption (j.txt); it has `j.json`, but captions are read from .txt",
        "`lethe curate`",
    ];
    check(&output, 2, &says);
    let many = (0..100).map(|number| (format!("{number}.png"), picture.clone()));
    job.write("rocket.tar", &shard_of(many));
    let output = plan(&job);
    check(&output, 2, &["pizza.tar", "sample `g`", "more problems are not named here"]);
    assert_eq!(stderr(&output).lines().filter(|line| line.starts_with("error: ")).count(), 22);
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
    let script = "mount -t tmpfs -o size=512k tmpfs \"$1\" && exec \"$2\" run \"$3\" --store \"$1/store\" --give-up 10";
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
    let output = job.command("run", &["--store", "ftp://somewhere/x"]).output().unwrap();
    check(&output, 2, &["--store", "the scheme must be file, s3, gs, az, hf or https"]);
}
