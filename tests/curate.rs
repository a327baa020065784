//! `lethe curate`: its results, `lethe plan` on its output, resumption after a kill, and input from
//! S3.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use lethe_tests::ports::LONGEST_WAIT;
use lethe_tests::proxy::BadLine;
use lethe_tests::s3::S3Server;
use lethe_tests::{Member, base_model, binary, demo, files, last_line, shard_of, stderr};
use serde_json::Value;

fn curate(table: &Path, pairs: &[&str], into: &Path, more: &[&str]) -> Command {
    let mut lethe = Command::new(binary("lethe"));
    lethe
        .env_remove("LETHE_LOG")
        .arg("curate")
        .arg(table)
        .arg("--pairs")
        .args(pairs)
        .arg("--into")
        .arg(into)
        .arg("--json")
        .args(more);
    lethe
}

/// Runs a command, which must end with this exit code, and returns its last line.
fn ends(code: i32, mut command: Command) -> Value {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    last_line(&output)
}

fn refused(output: &Output, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in says {
        assert!(text.contains(part), "{text}\n  does not say: {part}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// Returns the pairs of shards: caption and image, by key.
fn pairs(shards: &[PathBuf]) -> BTreeMap<String, (String, Vec<u8>)> {
    let mut pairs: BTreeMap<String, (String, Vec<u8>)> = BTreeMap::new();
    for shard in shards {
        for entry in tar::Archive::new(std::fs::File::open(shard).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let (key, ending) = name.split_once('.').unwrap();
            let pair = pairs.entry(format!("{} {key}", shard.display())).or_default();
            if ending == "txt" {
                pair.0 = String::from_utf8(bytes).unwrap()
            } else {
                pair.1 = bytes
            }
        }
    }
    pairs
}

fn shards(folder: &Path, set: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut shards: Vec<PathBuf> =
        all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(set)).collect();
    shards.sort();
    shards
}

fn assert_same(one: &Path, other: &Path, but: &[&str]) {
    let (mut one, mut other) = (files(one), files(other));
    for name in but {
        assert!(one.remove(*name).is_some() && other.remove(*name).is_some(), "{name}");
    }
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let differ: Vec<_> =
        one.iter().filter(|(name, bytes)| other[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

/// Returns whether a caption of the demo, which is ASCII, contains a name as whole words.
fn mentions(caption: &str, name: &str) -> bool {
    let words = |text: &str| {
        format!(
            " {} ",
            text.to_lowercase()
                .split(|c: char| !c.is_ascii_alphanumeric())
                .collect::<Vec<_>>()
                .join(" ")
        )
    };
    words(caption).contains(&words(name))
}

#[test]
fn what_is_curated_from_the_demo_is_what_plan_takes() {
    let folder = tempfile::tempdir().unwrap();
    let (table, out) = (folder.path().join("concepts.csv"), folder.path().join("out"));
    let rows = "id,name,aliases,strength,group\npizza,Pizza,margherita,0.5,Food\nheart,red heart,blue heart|green heart,,\n\
                rocket,rocket,,,\nzeppelin,Zeppelin,airship,,\n";
    std::fs::write(&table, rows).unwrap();
    let at = |pattern: &str| demo().join(pattern).to_str().unwrap().to_owned();
    let (retain, forget, validation, classes) =
        (at("retain-*.tar"), at("forget/*.tar"), at("validation.tar"), at("classes.txt"));
    let command = || {
        curate(
            &table,
            &[&retain, &forget, &validation],
            &out,
            &["--classes", &classes, "--forget-pairs", "10"],
        )
    };
    let curated = ends(3, command());

    let sources: Vec<PathBuf> = [
        shards(&demo(), "retain-"),
        shards(&demo().join("forget"), ""),
        vec![demo().join("validation.tar")],
    ]
    .concat();
    let sources: Vec<PathBuf> = sources
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "tar"))
        .collect();
    let input: Vec<(String, Vec<u8>)> = pairs(&sources).into_values().collect();
    assert_eq!(curated["pairs"], input.len());
    assert_eq!(curated["missing"], serde_json::json!(["zeppelin"]));

    // Each concept's pairs are found by any of its names, and none remains in the retained sets.
    let names = [
        ("heart", vec!["red heart", "blue heart", "green heart"]),
        ("pizza", vec!["pizza"]),
        ("rocket", vec!["rocket"]),
    ];
    let is_of = |caption: &str, names: &[&str]| names.iter().any(|name| mentions(caption, name));
    let counts = std::fs::read_to_string(out.join("counts.csv")).unwrap();
    for (id, names) in &names {
        let found = input.iter().filter(|pair| is_of(&pair.0, names)).count();
        let row: Vec<&str> =
            counts.lines().find(|line| line.starts_with(id)).unwrap().split(',').collect();
        assert_eq!(row[2], found.to_string(), "{counts}");
        let taken = pairs(&[out.join(format!("forget/{id}.tar"))]);
        assert!(taken.values().all(|pair| is_of(&pair.0, names) && input.contains(pair)));
        assert!(
            !taken.is_empty() && taken.len() == found.min(10) && row[5] == taken.len().to_string(),
            "{counts}"
        );
    }
    assert!(counts.lines().any(|line| line == "zeppelin,Zeppelin,0,0,0,0,none"), "{counts}");
    let clean = |caption: &str| names.iter().all(|(_, names)| !is_of(caption, names));
    let retain = pairs(&shards(&out, "retain-"));
    let validation = pairs(&shards(&out, "validation-"));
    assert!(retain.values().all(|pair| clean(&pair.0) && input.contains(pair)));
    // Every pair without a concept is in exactly one of the sets.
    let images: BTreeSet<(&str, &[u8])> = input
        .iter()
        .filter(|pair| clean(&pair.0))
        .map(|pair| (pair.0.as_str(), &pair.1[..]))
        .collect();
    assert_eq!(retain.len() + validation.len(), images.len());
    let classes: BTreeSet<String> = std::fs::read_to_string(demo().join("classes.txt"))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(validation.len() > 500);
    for (class, image) in validation.values() {
        assert!(classes.contains(class) && clean(class));
        assert!(input.iter().any(|pair| pair.1 == *image && mentions(&pair.0, class)), "{class}");
    }

    let plan = || {
        let mut lethe = Command::new(binary("lethe"));
        lethe
            .env_remove("LETHE_LOG")
            .arg("plan")
            .arg(out.join("manifest.toml"))
            .arg("--json")
            .output()
            .unwrap()
    };
    refused(&plan(), &["manifest.toml:6: model.uri is empty"]);
    let manifest = std::fs::read_to_string(out.join("manifest.toml")).unwrap();
    let filled = manifest.replace("uri = \"\"", &format!("uri = \"{}\"", base_model().display()));
    std::fs::write(out.join("manifest.toml"), &filled).unwrap();
    let planned = plan();
    assert_eq!(planned.status.code(), Some(0), "{}", stderr(&planned));
    let planned = last_line(&planned);
    assert_eq!(
        (&planned["concepts"], &planned["retain_pairs"]),
        (&Value::from(3), &Value::from(retain.len()))
    );
    assert_eq!(planned["validation_pairs"], validation.len());
    assert!(!planned["warnings"].to_string().contains("named"), "{}", planned["warnings"]);
    let table = std::fs::read_to_string(out.join("concepts.csv")).unwrap();
    assert!(
        table.lines().any(|row| row == "pizza,Pizza,margherita,pizza,forget/pizza.tar,0.5,Food,,"),
        "{table}"
    );

    // The same command again reads nothing, and does not overwrite the manifest.
    assert_eq!(ends(3, command())["read"], 0);
    assert_eq!(std::fs::read_to_string(out.join("manifest.toml")).unwrap(), filled);
    refused(
        &curate(&table_at(&folder), &[&forget], &out, &[]).output().unwrap(),
        &["was curated with another table"],
    );
    std::fs::remove_file(out.join("forget/pizza.tar")).unwrap();
    refused(&command().output().unwrap(), &["forget/pizza.tar", "is not as it was written"]);
}

fn table_at(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("concepts.csv")
}

/// Writes synthetic pairs into a folder.
fn synthetic(folder: &Path, pairs: usize, concepts: usize, shards: usize) {
    let numbers = [pairs, concepts, shards].map(|number| number.to_string());
    assert!(
        Command::new(binary("synthetic-pairs"))
            .arg(folder)
            .args(numbers)
            .status()
            .unwrap()
            .success()
    );
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONGEST_WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    synthetic(folder.path(), 16_000, 60, 16);
    let (table, classes) = (at("concepts.csv"), at("classes.txt"));
    let more =
        ["--classes", classes.to_str().unwrap(), "--forget-pairs", "20", "--retain-pairs", "3000"];
    let all = at("pairs-*.tar").to_str().unwrap().to_owned();
    let run = |into: &Path, workers: &str| {
        curate(&table, &[&all], into, &[&more[..], &["--workers", workers]].concat())
    };
    let whole = ends(0, run(&at("whole"), "1"));
    assert_eq!(
        (&whole["read"], &whole["pairs"], &whole["retain_pairs"]),
        (&16.into(), &16_000.into(), &3000.into())
    );
    assert!(
        whole["overlaps"].as_u64().unwrap() > 0 && whole["validation_pairs"].as_u64().unwrap() > 0
    );

    let out = at("killed");
    let records = || {
        let there = std::fs::read_dir(out.join(".curating")).into_iter().flatten().flatten();
        there.filter(|entry| entry.path().extension().is_some_and(|end| end == "json")).count()
    };
    let outputs = || std::fs::read_dir(out.join("forget")).map_or(0, Iterator::count);
    let kill_when = |what: &str, workers: &str, is_so: &dyn Fn() -> bool| {
        let mut child =
            run(&out, workers).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(what, || is_so() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.join("curation.json").try_exists().unwrap(), "killed too late: {what}");
    };
    // `job.json` is one of the files.
    kill_when("the work is begun", "1", &|| records() >= 1);
    kill_when("some shards are read", "2", &|| records() >= 4);
    let before = records();
    kill_when("more shards are read", "1", &|| records() >= before + 3);
    kill_when("results are written", "3", &|| outputs() >= 3);
    assert!(!out.join("manifest.toml").try_exists().unwrap());
    let last = ends(0, run(&out, "1"));
    assert_eq!(last["read"], 0, "all shards were read before the last kill");
    assert_same(&at("whole"), &out, &["manifest.toml"]);

    // The result depends neither on the order of shards nor on the number of workers.
    let names: Vec<String> = (0..16)
        .rev()
        .map(|n| at(&format!("pairs-{n:05}.tar")).to_str().unwrap().to_owned())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain([all.as_str()]).collect();
    ends(0, curate(&table, &names, &at("turned"), &[&more[..], &["--workers", "5"]].concat()));
    assert_same(&at("whole"), &at("turned"), &["manifest.toml"]);
    // It depends on the seed.
    ends(0, curate(&table, &[&all], &at("seeded"), &[&more[..], &["--seed", "1"]].concat()));
    assert_ne!(files(&at("seeded"))["retain-00000.tar"], files(&at("whole"))["retain-00000.tar"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_bucket_over_a_bad_line_it_finds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    synthetic(folder.path(), 1500, 20, 1);
    synthetic(&at("small"), 60, 20, 2);
    for number in 0..2 {
        std::fs::rename(
            at(&format!("small/pairs-{number:05}.tar")),
            at(&format!("pairs-1000{number}.tar")),
        )
        .unwrap();
    }
    let (table, server) = (at("concepts.csv"), S3Server::start());
    let bucket = server.bucket("pairs");
    let all = at("pairs-*.tar").to_str().unwrap().to_owned();
    ends(0, curate(&table, &[&all], &at("out/curated"), &["--few", "1"]));
    for shard in shards(folder.path(), "pairs-") {
        bucket
            .put_file(&format!("data/{}", shard.file_name().unwrap().to_str().unwrap()), &shard)
            .await
            .unwrap();
    }
    bucket.put_file("concepts.csv", &table).await.unwrap();
    // The largest shard is downloaded in several parts.
    assert!(bucket.size("data/pairs-00000.tar").await.unwrap().unwrap() > 2 * (8 << 20));
    let from = |endpoint: &str, into: &Path| {
        let mut command = curate(
            Path::new("s3://pairs/concepts.csv"),
            &["s3://pairs/data/pairs-*.tar"],
            into,
            &["--few", "1"],
        );
        command.current_dir(folder.path()).env("LETHE_CACHE", at("cache"));
        S3Server::environment(endpoint, &mut command);
        command
    };
    let line = BadLine::to(server.port());
    ends(0, from(&line.endpoint(), &at("bucket/curated")));
    let faults = line.faults();
    assert!(faults.refused > 3 && faults.cut > 0, "{faults:?}");
    assert_same(&at("out/curated"), &at("bucket/curated"), &["curation.json", "pairs.csv"]);

    bucket.remove("data/pairs-10001.tar").await.unwrap();
    refused(
        &from(&server.endpoint(), &at("bucket/curated")).output().unwrap(),
        &["was curated with other shards"],
    );
    let mut command = curate(&table, &["s3://nowhere/pairs.tar"], &at("none"), &[]);
    S3Server::environment(&server.endpoint(), &mut command);
    refused(&command.output().unwrap(), &["--pairs: s3://nowhere"]);
}

fn member(name: &str, bytes: &[u8]) -> Member {
    (name.to_owned(), bytes.to_vec())
}

/// Returns the images of the demo's first retain shard.
fn images() -> Vec<Vec<u8>> {
    pairs(&[demo().join("retain-00000.tar")]).into_values().map(|pair| pair.1).collect()
}

/// Writes a shard with these captions, each with an image of its own.
fn captioned(path: &Path, captions: &[String], images: &[Vec<u8>]) {
    assert!(captions.len() <= images.len());
    let members = (0..).zip(captions).flat_map(|(n, caption): (usize, _)| {
        [member(&format!("{n}.png"), &images[n]), member(&format!("{n}.txt"), caption.as_bytes())]
    });
    std::fs::write(path, shard_of(members)).unwrap();
}

#[test]
fn curate_and_plan_have_one_rule_for_mentions() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let table = "id,name,class\natt,AT&T,\nmouse,mouse,\nmonkey-face,monkey face,\ncafe,café,\n";
    std::fs::write(at("t.csv"), table).unwrap();
    std::fs::write(at("classes.txt"), "mouse face\nmonkey\nface\ncafé\ntram\n").unwrap();
    let forget = [
        "the AT&amp;T building",
        "AT&amp;amp;T logo",
        "a cafe\u{301} at night",
        "Caf&eacute;&nbsp;Central",
        "a mouse, drawn",
        "a monkey face",
    ];
    let retain =
        ["a mouse face", "monkey, face, drawn", "a tram", "a monkey; a face", "mouse-face"];
    let repeated = |captions: &[&str], times: usize| -> Vec<String> {
        (0..times).flat_map(|n| captions.iter().map(move |text| format!("{text} {n}"))).collect()
    };
    let captions = [repeated(&forget, 4), repeated(&retain, 40)].concat();
    captioned(&at("pairs.tar"), &captions, &images());
    let (all, classes) = (at("pairs.tar"), at("classes.txt"));
    let more = ["--classes", classes.to_str().unwrap(), "--few", "1"];
    ends(0, curate(&at("t.csv"), &[all.to_str().unwrap()], &at("out"), &more));
    let texts = |shards: &[PathBuf]| -> BTreeSet<String> {
        pairs(shards).into_values().map(|pair| pair.0).collect()
    };
    let starts = |captions: BTreeSet<String>| -> BTreeSet<String> {
        captions.iter().filter_map(|text| Some(text.rsplit_once(' ')?.0.to_owned())).collect()
    };
    for (id, expected) in [("att", &forget[..2]), ("cafe", &forget[2..4]), ("mouse", &forget[4..5])]
    {
        let found = starts(texts(&[at(&format!("out/forget/{id}.tar"))]));
        assert_eq!(found, expected.iter().map(|text| (*text).to_owned()).collect(), "{id}");
    }
    let retained = starts(texts(&shards(&at("out"), "retain-")));
    assert_eq!(retained, retain.map(str::to_owned).into_iter().collect());

    // The plan of the written manifest finds no concept in the retained data, and reads a validation
    // caption in another Unicode form.
    let labels = ["cafe\u{301}", "tram", "mouse face"].map(str::to_owned);
    captioned(&at("out/validation-00001.tar"), &labels, &images());
    let manifest = std::fs::read_to_string(at("out/manifest.toml")).unwrap();
    let uri = format!("uri = \"{}\"", base_model().display());
    let manifest = manifest.replace("uri = \"\"", &uri);
    std::fs::write(at("out/manifest.toml"), manifest + "\n[method]\nbatch_size = 16\n").unwrap();
    let mut plan = Command::new(binary("lethe"));
    plan.env_remove("LETHE_LOG").arg("plan").arg(at("out/manifest.toml")).arg("--json");
    let planned = ends(0, plan);
    let warnings = planned["warnings"].to_string();
    assert!(!warnings.contains("named in"), "{warnings}");

    // It warns of a caption that does mention one.
    captioned(&at("out/retain-00001.tar"), &repeated(&["an AT&amp;T sign"], 20), &images());
    let mut plan = Command::new(binary("lethe"));
    plan.env_remove("LETHE_LOG").arg("plan").arg(at("out/manifest.toml")).arg("--json");
    let warnings = ends(0, plan)["warnings"].to_string();
    assert!(warnings.contains("`AT&T` is named in 20 retain captions"), "{warnings}");
}

#[test]
fn the_retain_set_comes_before_the_validation_set() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let names: Vec<String> = (0..60).map(|n| format!("thing{n}")).collect();
    std::fs::write(at("classes.txt"), names.join("\n")).unwrap();
    std::fs::write(at("t.csv"), "id,name\ncat,cat\ndog,dog\n").unwrap();
    // Every caption names one class, and no class has more than --validation-pairs.
    let named = (0..400).map(|n| format!("a {} {n}", names[n % 60]));
    let captions: Vec<String> =
        named.chain((0..20).map(|n| format!("a {} {n}", ["cat", "dog"][n % 2]))).collect();
    captioned(&at("pairs.tar"), &captions, &images());
    let (all, classes) = (at("pairs.tar"), at("classes.txt"));
    let more = ["--classes", classes.to_str().unwrap(), "--few", "1"];
    let output =
        curate(&at("t.csv"), &[all.to_str().unwrap()], &at("out"), &more).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let curated = last_line(&output);
    assert_eq!(
        (&curated["retain_pairs"], &curated["validation_pairs"]),
        (&300.into(), &100.into())
    );
    assert!(stderr(&output).contains("300 more went to the retain set"), "{}", stderr(&output));
    // Every class keeps pairs.
    let labels: BTreeSet<String> =
        pairs(&shards(&at("out"), "validation-")).into_values().map(|pair| pair.0).collect();
    assert_eq!(labels.len(), 60);
}

#[test]
fn tables_of_spreadsheets_are_read_or_the_column_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    captioned(&at("pairs.tar"), &["a cat".into(), "a dog".into(), "x".into()], &images());
    let all = at("pairs.tar").to_str().unwrap().to_owned();
    for (into, table) in [
        ("semicolons", "id;name;strength\r\nx;cat;0.5\r\ny;dog;\r\n"),
        ("tabs", "id\tname\tstrength\nx\tcat\t0.5\ny\tdog\t\n"),
    ] {
        std::fs::write(at("t.csv"), table).unwrap();
        ends(0, curate(&at("t.csv"), &[&all], &at(into), &["--few", "1"]));
        let written = std::fs::read_to_string(at(into).join("concepts.csv")).unwrap();
        assert!(written.contains("x,cat,,cat,forget/x.tar,0.5,"), "{written}");
    }
    for (table, says) in [
        ("id;name;strength\nx;cat;0,5\ny;dog;\n", "t.csv:2: strength is `0,5`, expected a decimal"),
        ("id,name,tolerance\nx,cat,50%\ny,dog,\n", "t.csv:2: tolerance is `50%`, expected a share"),
        ("id|name\nx|cat\ny|dog\n", "t.csv:1: column `id` is missing"),
    ] {
        std::fs::write(at("t.csv"), table).unwrap();
        refused(&curate(&at("t.csv"), &[&all], &at("bad"), &[]).output().unwrap(), &[says]);
    }
}

#[test]
fn bad_input_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and the rest";
    let members = |from: usize| {
        (from..from + 4).flat_map(|n| {
            [
                member(&format!("{n}.png"), &[PNG, &n.to_le_bytes()].concat()),
                member(&format!("{n}.txt"), b"a cat or a dog"),
            ]
        })
    };
    let good = shard_of(members(0));
    // Everything that is missing is named at once.
    std::fs::write(at("t.csv"), "id,name\nx,cat\ny,dog\n").unwrap();
    let gone = ["gone-1.tar", "gone-*.tar"].map(|name| at(name).to_str().unwrap().to_owned());
    let missing = curate(&at("t.csv"), &[&gone[0], &gone[1]], &at("none"), &[]).output().unwrap();
    refused(&missing, &["gone-1.tar does not exist", "gone-*.tar (no file matches)"]);
    std::fs::write(at("a.tar"), &good).unwrap();
    let table = |text: &str| std::fs::write(at("t.csv"), text).unwrap();
    let all = at("*.tar").to_str().unwrap().to_owned();
    let run = |into: &str| curate(&at("t.csv"), &[&all], &at(into), &[]).output().unwrap();

    for (text, says) in [
        ("id,name\n../x,cat\ny,dog\n", "t.csv:2: id `../x`"),
        ("id,name\nx,cat\ny,dog,animal\n", "t.csv:3: has 3 fields"),
        (
            "id,name,aliases\nx,cat,dog\ny,Dog,\n",
            "t.csv:3: concept `y` has the name `Dog`, which concept `x` on line 2 has too",
        ),
    ] {
        table(text);
        refused(&run("bad"), &[says]);
    }
    assert!(!at("bad").try_exists().unwrap(), "nothing is begun");
    table("id,name\nx,cat\ny,dog\n");
    std::fs::create_dir(at("full")).unwrap();
    std::fs::write(at("full/concepts.csv"), "mine").unwrap();
    refused(&run("full"), &["--into", "is not empty"]);
    assert_eq!(std::fs::read(at("full/concepts.csv")).unwrap(), b"mine");
    refused(
        &curate(&at("t.csv"), &[at("none-*.tar").to_str().unwrap()], &at("out"), &[])
            .output()
            .unwrap(),
        &["--pairs", "no file matches"],
    );

    // All damaged shards are reported at once, intact ones keep their records, and a repaired one
    // is read again.
    let mut damaged = shard_of(members(10));
    damaged[2048 + 5] ^= 1;
    std::fs::write(at("b.tar"), &damaged).unwrap();
    std::fs::write(at("c.tar"), &shard_of(members(20))[..1024 + 20]).unwrap();
    std::fs::write(at("d.tar"), [0x1f, 0x8b, 8, 0]).unwrap();
    refused(
        &run("out"),
        &[
            "b.tar: is damaged at byte 2048",
            "c.tar: is damaged at byte 1024",
            "d.tar: is compressed with gzip",
        ],
    );
    assert!(
        !at("out/curation.json").try_exists().unwrap()
            && !at("out/manifest.toml").try_exists().unwrap()
    );
    std::fs::write(at("b.tar"), shard_of(members(10))).unwrap();
    // Unusable samples are skipped and reported.
    let odd = [
        member("1.png", PNG),
        member("2.txt", b"a dog"),
        member("3.gif", b"GIF89a"),
        member("4.png", PNG),
        member("4.txt", b"\xff"),
    ];
    std::fs::write(at("c.tar"), shard_of(odd)).unwrap();
    std::fs::remove_file(at("d.tar")).unwrap();
    let output = run("out");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let curated = last_line(&output);
    assert_eq!(
        (&curated["read"], &curated["shards"], &curated["pairs"], &curated["unusable"]),
        (&2.into(), &3.into(), &8.into(), &3.into())
    );
    assert!(
        stderr(&output).contains("1 samples passed over (no-caption), such as"),
        "{}",
        stderr(&output)
    );
    let overlaps = std::fs::read_to_string(at("out/overlaps.csv")).unwrap();
    assert_eq!(overlaps, "first,second,pairs\nx,y,8\n");
    assert!(stderr(&output).contains("0 retain pairs"));

    // The selection from other shards may depend on a shard that changes, or is no longer named,
    // after it was read.
    std::fs::write(at("d.tar"), [0x1f, 0x8b, 8, 0]).unwrap();
    refused(&run("again"), &["d.tar"]);
    std::fs::write(at("a.tar"), [&good[..], &[0; 512]].concat()).unwrap();
    refused(&run("again"), &["a.tar: has changed since it was read"]);
    std::fs::remove_file(at("a.tar")).unwrap();
    refused(&run("again"), &["no longer named"]);
    refused(
        &curate(&at("t.csv"), &[&all], &at("again"), &["--seed", "3"]).output().unwrap(),
        &["another seed"],
    );
}
