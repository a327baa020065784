//! Shared code of the tests: the real binaries, and small jobs taken from the demo.

pub mod azure;
pub mod broken;
pub mod faulty_s3;
pub mod http;
pub mod hub;
pub mod mortal;
pub mod nats;
pub mod page;
pub mod ports;
pub mod processes;
pub mod proxy;
pub mod releases;
pub mod s3;
pub mod targets;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Returns the repository's folder.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ stands in the repository")
        .to_owned()
}

/// Returns the demo's folder.
pub fn demo() -> PathBuf {
    repository().join("jobs/emoji")
}

/// Returns the CLIP that tests edit: the demo's with a quarter of its hidden units, so that a run
/// takes seconds.
pub fn base_model() -> PathBuf {
    repository().join("tests/model")
}

/// Returns a binary built by `cargo build --release`, which `make test` runs first.
pub fn binary(name: &str) -> PathBuf {
    // Tests are in target/<profile>/deps.
    let here = std::env::current_exe().expect("a test has a path");
    let path = here.ancestors().nth(2).expect("target/<profile>").join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --release` first, as `make test` does",
        path.display()
    );
    path
}

/// A small job with a few concepts, sixty classes and some of the demo's drawings, which takes
/// seconds.
#[derive(Debug)]
pub struct SmallJob {
    folder: tempfile::TempDir,
}

/// Concepts of the small job, all of them in the demo's `concepts-8.csv`.
pub const CONCEPTS: [&str; 3] = ["pizza", "red-heart", "rocket"];

impl SmallJob {
    /// Writes the job into a new folder.
    pub fn new() -> Self {
        Self::of(&CONCEPTS.map(str::to_owned))
    }

    /// Writes the job with this many of the demo's hundred concepts.
    pub fn with_concepts(count: usize) -> Self {
        let table =
            std::fs::read_to_string(demo().join("concepts-100.csv")).expect("concepts-100.csv");
        let ids: Vec<String> = table
            .lines()
            .skip(1)
            .filter_map(|row| Some(row.split(',').next()?.to_owned()))
            .take(count)
            .collect();
        assert_eq!(ids.len(), count);
        Self::of(&ids)
    }

    fn of(ids: &[String]) -> Self {
        let job = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let classes = std::fs::read_to_string(demo().join("classes.txt")).expect("classes.txt");
        let read =
            |table: &str| std::fs::read_to_string(demo().join(table)).expect("a table of concepts");
        let table = read("concepts-8.csv") + &read("concepts-100.csv");
        let removed: Vec<String> = ids.iter().map(|id| class_of(&table, id)).collect();
        let mut names: Vec<&str> = classes.lines().step_by(19).collect();
        names.extend(
            removed
                .iter()
                .map(String::as_str)
                .filter(|name| !names.contains(name))
                .collect::<Vec<_>>(),
        );
        job.write("classes.txt", names.join("\n").as_bytes());
        for name in ["validation.tar", "test.tar"] {
            let shard = cut(&demo().join(name), usize::MAX, |caption| names.contains(&caption));
            job.write(name, &shard);
        }
        job.write("retain-0.tar", &cut(&demo().join("retain-00000.tar"), 96, |_| true));
        job.write("retain-1.tar", &cut(&demo().join("retain-00001.tar"), 70, |_| true));
        let mut rows = "id,name,class,forget,strength,group\n".to_owned();
        for (id, class) in ids.iter().zip(&removed) {
            std::fs::copy(demo().join(format!("forget/{id}.tar")), job.path(&format!("{id}.tar")))
                .expect("copy a forget shard");
            rows += &format!("{id},{class},{class},{id}.tar,1,test\n");
        }
        job.write("concepts.csv", rows.as_bytes());
        job.manifest("workers = 2");
        job
    }

    /// Writes the job with SLUG's full procedure, which sums edits.
    pub fn summed() -> Self {
        let job = Self::new();
        job.replace("job.toml", "[execution]", "[composition]\nmethod = \"sum\"\n\n[execution]");
        job
    }

    /// Makes the job complete and promoted whatever its measurements, for tests of other
    /// properties.
    #[must_use]
    pub fn lenient(self) -> Self {
        self.replace(
            "job.toml",
            "[execution]",
            "[policy]\nrequired = []\n\n[gates]\nutility_kept = 0.0\n\n[execution]",
        );
        self
    }

    /// Writes the manifest with these lines under `[execution]`.
    pub fn manifest(&self, execution: &str) {
        let text = format!(
            "version = 1\nname = \"small\"\n\n[model]\nuri = \"{}\"\n\n[data]\nretain = [\"retain-*.tar\"]\nvalidation = [\"validation.tar\"]\n\
             test = [\"test.tar\"]\nclasses = \"classes.txt\"\n\n[concepts]\ntable = \"concepts.csv\"\n\n[method]\nbatch_size = 32\n\
             search_evaluations = 6\n\n[execution]\n{execution}\n",
            base_model().display()
        );
        self.write("job.toml", text.as_bytes());
    }

    /// Writes a model of the shapes of the base model that knows nothing, because its weights are random,
    /// into the folder `noise`. Returns that folder.
    pub fn noise(&self) -> PathBuf {
        let noise = self.path("noise");
        std::fs::create_dir(&noise).expect("create a folder of the job");
        for entry in std::fs::read_dir(base_model()).expect("read the base model") {
            let entry = entry.expect("read the base model");
            std::fs::copy(entry.path(), noise.join(entry.file_name()))
                .expect("copy the base model");
        }
        let weights = noise.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).expect("read the weights");
        let (length, _) = bytes.split_first_chunk().expect("the length of a header");
        let header = 8 + u64::from_le_bytes(*length) as usize;
        let mut state = 1u32;
        for value in bytes[header..].chunks_exact_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5;
            value.copy_from_slice(&(0.2 * random).to_le_bytes());
        }
        std::fs::write(&weights, bytes).expect("write the weights");
        noise
    }

    /// Returns a path in the job's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the job.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("write a file of the job");
    }

    /// Replaces text in a file of the job.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).expect("read a file of the job");
        assert!(text.contains(from), "{name} does not hold `{from}`");
        self.write(name, text.replace(from, to).as_bytes());
    }

    /// Returns the command `lethe COMMAND job.toml --json …`.
    pub fn command(&self, command: &str, more: &[&str]) -> Command {
        let mut lethe = Command::new(binary("lethe"));
        // Settings of the user must not affect a test.
        lethe
            .env_remove("LETHE_LOG")
            .env_remove("LETHE_SIGN_KEY")
            .env("LETHE_CACHE", self.path("cache"));
        lethe.arg(command).arg(self.path("job.toml")).arg("--json").args(more);
        lethe
    }

    /// Runs the job, which must succeed, with a store of this name in its folder. Returns the last
    /// line.
    pub fn run(&self, store: &str) -> Value {
        let output = self.output(store);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        last_line(&output)
    }

    /// Runs the job with a store of this name in its folder.
    pub fn output(&self, store: &str) -> Output {
        let store = self.path(store);
        self.command("run", &["--store", store.to_str().expect("UTF-8")])
            .output()
            .expect("lethe starts")
    }
}

impl Default for SmallJob {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the number of releases in a store that have a number.
pub fn releases(store: &Path) -> usize {
    let Ok(names) = std::fs::read_dir(store.join("releases")) else { return 0 };
    let entries =
        names.flat_map(|name| std::fs::read_dir(name.expect("a folder").path()).expect("a folder"));
    entries
        .filter(|entry| {
            entry.as_ref().expect("an entry").path().extension().is_some_and(|end| end == "json")
        })
        .count()
}

/// Returns the number of outcomes in a store, without files that are still being written.
pub fn outcomes(store: &Path) -> usize {
    let Ok(folders) = std::fs::read_dir(store.join("outcomes")) else { return 0 };
    let files = folders
        .flat_map(|folder| std::fs::read_dir(folder.expect("a folder").path()).expect("a folder"));
    files
        .filter(|file| {
            file.as_ref().expect("a file").path().extension().is_some_and(|end| end == "json")
        })
        .count()
}

fn class_of(table: &str, id: &str) -> String {
    let row = table
        .lines()
        .find(|line| line.starts_with(&format!("{id},")))
        .expect("the concept is in the table");
    row.split(',').nth(2).expect("a class").to_owned()
}

/// Returns the JSON object on stdout's last line.
pub fn last_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns the text on stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file in a shard: name and bytes.
pub type Member = (String, Vec<u8>);

/// Returns a shard with the first `count` samples of a shard whose caption is wanted.
pub fn cut(shard: &Path, count: usize, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let mut archive = tar::Archive::new(std::fs::File::open(shard).expect("a shard of the demo"));
    let mut samples: Vec<(String, Vec<Member>)> = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("a member");
        let name = entry.path().expect("a name").to_string_lossy().into_owned();
        let key = name.split('.').next().unwrap_or_default().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("a whole member");
        if samples.last().is_none_or(|(last, _)| *last != key) {
            samples.push((key, Vec::new()));
        }
        samples.last_mut().expect("just pushed").1.push((name, bytes));
    }
    let caption = |files: &[Member]| {
        let file = files.iter().find(|(name, _)| name.ends_with(".txt"));
        String::from_utf8_lossy(&file.expect("a caption").1).trim().to_owned()
    };
    let kept = samples
        .into_iter()
        .filter(|(_, files)| wanted(&caption(files)))
        .take(count)
        .flat_map(|(_, files)| files);
    shard_of(kept)
}

/// Returns a shard with these members.
pub fn shard_of(members: impl IntoIterator<Item = Member>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).expect("a tar in memory");
    }
    let mut bytes = tar.into_inner().expect("a tar in memory");
    bytes.flush().expect("memory");
    bytes
}

/// Returns the content of every file of a folder, by relative path.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path
                    .strip_prefix(folder)
                    .expect("below it")
                    .to_str()
                    .expect("UTF-8")
                    .to_owned();
                found.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    found
}
