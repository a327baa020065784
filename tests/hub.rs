//! Models, data and targets on a model hub, releases laid out for it, and files of web servers.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_tests::hub::{Access, Fault, Files, HubServer, TOKEN};
use lethe_tests::releases::{folder, record};
use lethe_tests::targets::{stable_diffusion, text_tower};
use lethe_tests::{SmallJob, base_model, binary, files, last_line, shard_of, stderr};
use serde_json::Value;

const MODEL: &str = "models/org/clip";
const DATA: &str = "datasets/org/emoji";
/// Files of a release that name the base model's address, or the digest of one that does.
const PLACED: [&str; 5] =
    ["composition.json", "provenance.json", "receipts.jsonl", "README.md", "report.html"];

/// A hub, and a home for its cache.
struct Hub {
    server: HubServer,
    home: tempfile::TempDir,
}

impl Hub {
    fn start() -> Self {
        Self { server: HubServer::start(), home: tempfile::tempdir().unwrap() }
    }

    /// Lets a command read the hub.
    fn reached_by<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command
            .env_remove("LETHE_LOG")
            .env("HF_ENDPOINT", self.server.endpoint())
            .env("HF_HOME", self.home.path())
            .env("LETHE_CACHE", self.home.path().join("lethe"))
    }

    fn lethe(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("lethe"));
        self.reached_by(&mut command).envs(variables.iter().copied()).args(arguments);
        command.output().unwrap()
    }

    /// Runs a command with `--json` that must end with this exit code, and returns its last line.
    fn ends(&self, code: i32, variables: &[(&str, &str)], arguments: &[&str]) -> Value {
        let output = self.lethe(variables, &[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        last_line(&output)
    }

    /// Runs `lethe inspect`, which must fail with this exit code and say this.
    fn refuses(&self, code: i32, variables: &[(&str, &str)], address: &str, says: &[&str]) {
        let output = self.lethe(variables, &["inspect", address]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{address}: {text}");
        for said in says {
            assert!(text.contains(said), "{address}: {text}\n  does not say: {said}");
        }
        assert!(!text.contains("panicked") && !text.contains("signature=secret"), "{text}");
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub")
    }

    /// Returns the paths of all files in the cache that have their final name.
    fn cached(&self) -> Vec<String> {
        let there = if self.cache().is_dir() { files(&self.cache()) } else { Files::new() };
        there
            .into_keys()
            .filter(|name| !name.starts_with(".locks/") && !name.ends_with(".incomplete"))
            .collect()
    }
}

fn model_files() -> Files {
    files(&base_model())
}

/// Returns a small job with a pipeline as target, and the same job on a hub.
fn jobs(hub: &Hub) -> (SmallJob, SmallJob) {
    let (here, there) = (SmallJob::new().lenient(), SmallJob::new().lenient());
    let target = |uri: &str| {
        format!(
            "\n[[release.target]]\nname = \"sd15\"\nkind = \"stable-diffusion\"\nuri = \"{uri}\"\n"
        )
    };
    let pipeline = here.path("sd15");
    stable_diffusion(&pipeline, &text_tower(&base_model().join("model.safetensors"), 4), 4);
    for (job, uri) in [(&here, "sd15"), (&there, "hf://org/sd15@v1")] {
        job.replace(
            "job.toml",
            "[execution]",
            "[composition]\nmethod = \"preconditioned\"\nrounds = 1\n\n[execution]",
        );
        let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
        job.write("job.toml", (manifest + &target(uri)).as_bytes());
    }
    let mut model = model_files();
    // What a repository has besides: none of it is read.
    model.insert("pytorch_model.bin".to_owned(), b"a pickle".to_vec());
    model.insert(".gitattributes".to_owned(), b"*.bin filter=lfs".to_vec());
    hub.server.push(MODEL, "main", model);
    hub.server.push_folder("models/org/sd15", "v1", &pipeline);
    let mut data = Files::new();
    for (name, bytes) in files(here.path("").as_path()) {
        if name.starts_with("sd15/") {
            continue;
        }
        let folder = if name.starts_with("retain-") || name == "test.tar" { "data/" } else { "" };
        data.insert(format!("{folder}{name}"), bytes);
    }
    hub.server.push(DATA, "main", data);
    let model = format!("uri = \"{}\"", base_model().display());
    there.replace("job.toml", &model, "uri = \"hf://org/clip\"");
    for (from, to) in [
        ("\"retain-*.tar\"", "\"hf://datasets/org/emoji/data/retain-*.tar\""),
        ("\"validation.tar\"", "\"hf://datasets/org/emoji@main/validation.tar\""),
        ("\"test.tar\"", "\"hf://datasets/org/emoji/data/tes[t].tar\""),
        ("\"concepts.csv\"", "\"hf://datasets/org/emoji/concepts.csv\""),
    ] {
        there.replace("job.toml", from, to);
    }
    (here, there)
}

#[test]
fn a_run_from_the_hub_is_the_run_from_local_folders() {
    let hub = Hub::start();
    let (here, there) = jobs(&hub);
    let local = here.run("store");

    let planned = hub.reached_by(&mut there.command("plan", &[])).output().unwrap();
    assert_eq!(planned.status.code(), Some(0), "{}", stderr(&planned));
    let planned = last_line(&planned);
    let address = planned["model"]["address"].as_str().unwrap().to_owned();
    let (model, commit) = address.split_once('@').unwrap();
    assert!(model == "hf://org/clip" && commit.len() == 40, "{address}");
    let run = || {
        let store = there.path("store");
        let mut command = there.command("run", &["--store", store.to_str().unwrap()]);
        let output = hub.reached_by(&mut command).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        last_line(&output)
    };
    let said = run();
    assert_eq!(
        (&said["run"], &said["run"]),
        (&local["run"], &planned["run"]),
        "content names a run"
    );

    // The releases differ in the addresses of models, and in nothing else.
    let (a, b) = (files(&folder(&local)), files(&folder(&said)));
    assert!(a.keys().eq(b.keys()));
    for (name, bytes) in &a {
        assert!(PLACED.contains(&name.as_str()) || b[name] == *bytes, "{name}");
    }
    let kept = record(&said);
    assert_eq!(kept.base.address, address);
    assert!(
        kept.targets[0].address.starts_with("hf://org/sd15@")
            && !kept.targets[0].address.contains("@v1")
    );
    assert_eq!(kept.origin.as_ref().unwrap().base_model.as_deref(), Some("org/clip"));
    let run_folder = there.path("store").join("runs").join(said["run"].as_str().unwrap());
    let manifest = std::fs::read_to_string(run_folder.join("manifest.json")).unwrap();
    assert!(manifest.contains(&address), "{manifest}");
    for text in manifest.split('"').filter(|text| text.starts_with("hf://")) {
        let pinned = text.split_once('@').is_some_and(|(_, rest)| rest.len() >= 40);
        assert!(pinned && !text.contains("@main") && !text.contains("@v1"), "{text}");
    }

    // The cache has the layout that huggingface_hub writes and reads.
    let cached = hub.cached();
    let has = |name: &str| cached.iter().any(|path| path == name);
    let refs = std::fs::read_to_string(hub.cache().join("models--org--clip/refs/main")).unwrap();
    assert_eq!(refs, commit);
    assert!(has(&format!("models--org--clip/snapshots/{commit}/model.safetensors")), "{cached:?}");
    assert!(!cached.iter().any(|path| path.ends_with(".bin") && path.contains("org--clip")));
    let snapshot = hub.cache().join(format!("models--org--clip/snapshots/{commit}"));
    let link = std::fs::read_link(snapshot.join("config.json")).unwrap();
    assert_eq!(link.to_str().unwrap().len(), "../../blobs/".len() + 40, "{}", link.display());
    assert!(cached.iter().any(|path| path.starts_with("datasets--org--emoji/snapshots/")
        && path.ends_with("/data/retain-1.tar")));

    // The branches move on. The release is still made from the same bytes.
    let mut other = model_files();
    other.insert("config.json".to_owned(), b"{}".to_vec());
    hub.server.push(MODEL, "main", other);
    hub.server.push("models/org/sd15", "v1", Files::from([("x".to_owned(), vec![1])]));
    hub.server.push(DATA, "main", Files::from([("x".to_owned(), vec![1])]));
    let release = said["release"].as_str().unwrap();
    hub.ends(0, &[], &["verify", release, "--recompute"]);
    let without = hub.ends(0, &[], &["compose", release, "--remove", "pizza"]);
    let without = without["release"].as_str().unwrap();
    let measured = hub.ends(0, &[], &["evaluate", without]);
    assert!(measured["concepts"]["rocket"]["fa5"].is_number(), "{measured}");

    // Offline, what the cache has is used: nothing is asked for.
    hub.server.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    hub.ends(0, &offline, &["verify", release, "--recompute"]);
    let again = hub
        .reached_by(&mut there.command("plan", &[]))
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert_eq!(last_line(&again)["run"], said["run"], "{}", stderr(&again));
    assert_eq!(hub.server.requests(), [""; 0]);

    // Online, the branch is another model now.
    let moved = hub.reached_by(&mut there.command("plan", &[])).output().unwrap();
    assert_eq!(moved.status.code(), Some(2), "{}", stderr(&moved));
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let hub = Hub::start();
    hub.server.push(MODEL, "main", model_files());
    hub.server.push("models/org/gated", "main", model_files());
    hub.server.protect("models/org/gated", Access::Gated);
    hub.server.push("models/org/private", "main", model_files());
    hub.server.protect("models/org/private", Access::Private);
    let (none, wrong, right): (&[_], _, _) =
        (&[], [("HF_TOKEN", "hf_wrong")], [("HF_TOKEN", TOKEN)]);
    for (variables, address, says) in [
        (none, "hf://org/none", "there is no such model"),
        (none, "hf://org/none", "or set HF_TOKEN"),
        (none, "hf://datasets/org/clip", "there is no such data set"),
        (none, "hf://org/private", "or it is private"),
        (&wrong, "hf://org/private", "the token may not read it"),
        (none, "hf://org/gated", "accept its terms on the hub's page of org/gated"),
        (&wrong, "hf://org/gated", "use a token of that account"),
        (none, "hf://org/clip@v9", "no branch, tag or commit `v9`"),
        (none, "hf://org/clip/none", "is empty, or not there"),
        (none, "hf://org/clip/none.txt", "does not exist"),
        (none, "hf://spaces/org/clip", "hold no models"),
        (none, "hf://clip", "owner or name of the repository is missing"),
        (none, "hf://org/clip/../x", "`..`"),
        (&[("HF_ENDPOINT", "http://hub.example")], "hf://org/clip", "without TLS"),
        (&[("HF_HUB_OFFLINE", "1")], "hf://org/clip", "HF_HUB_OFFLINE is set"),
    ] {
        hub.refuses(2, variables, address, &[says]);
    }
    assert_eq!(hub.cached().iter().filter(|path| path.contains("/snapshots/")).count(), 0);
    for address in ["hf://org/private", "hf://org/gated"] {
        hub.ends(0, &right, &["inspect", address]);
    }
    // A token on file, as `hf auth login` leaves it.
    let fresh = tempfile::tempdir().unwrap();
    std::fs::write(fresh.path().join("token"), TOKEN).unwrap();
    let home = [("HF_HOME", fresh.path().to_str().unwrap())];
    hub.ends(0, &home, &["inspect", "hf://org/private"]);
}

#[test]
fn lists_and_downloads_are_checked() {
    let hub = Hub::start();
    hub.server.push(MODEL, "main", model_files());
    let address = "hf://org/clip";
    for path in ["../../../../evil", "/etc/evil", "a\\..\\evil", "x/../../evil", "evil\u{1b}[2J"] {
        hub.server.set(Some(Fault::Lists(path.to_owned())));
        hub.refuses(2, &[], address, &["leaves the repository"]);
    }
    assert_eq!(hub.cached().len(), 1, "only the commit of the branch is known");

    hub.server.set(Some(Fault::Corrupt));
    hub.refuses(5, &[], address, &["SHA-256", "the hub lists", "nothing was kept"]);
    let left = |hub: &Hub| {
        files(&hub.cache()).into_keys().filter(|name| name.contains("incomplete")).count()
    };
    assert!(!hub.cached().iter().any(|path| path.ends_with(".safetensors")) && left(&hub) == 0);

    // A download that breaks off is continued where it ended.
    hub.server.set(Some(Fault::Truncated(2)));
    hub.server.requests();
    hub.ends(0, &[], &["inspect", address]);
    let tries = hub.server.requests().iter().filter(|path| path.starts_with("/storage/")).count();
    assert_eq!((tries, left(&hub)), (3, 0));

    // A limit on requests is waited for.
    let limited = Hub::start();
    limited.server.push(MODEL, "main", model_files());
    limited.server.set(Some(Fault::Limited(2)));
    let began = std::time::Instant::now();
    limited.ends(0, &[], &["inspect", address]);
    assert!(began.elapsed().as_secs() >= 2);
    limited.server.set(Some(Fault::Limited(usize::MAX)));
    limited.refuses(5, &[], "hf://org/clip@main", &["too many requests", "retry after 1 s"]);
    limited.server.set(Some(Fault::Down));
    limited.refuses(5, &[], address, &["the hub answers 503"]);
}

#[test]
fn what_the_cache_has_is_not_downloaded_again() {
    let hub = Hub::start();
    let (_, job) = jobs(&hub);
    let plan = || {
        let output = hub.reached_by(&mut job.command("plan", &[])).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        last_line(&output)["run"].clone()
    };
    let run = plan();
    hub.server.requests();
    assert_eq!(plan(), run);
    let again = hub.server.requests();
    assert!(!again.iter().any(|path| path.contains("/resolve/")), "{again:?}");
}

#[test]
fn odd_names_are_read_as_they_are() {
    let hub = Hub::start();
    let job = SmallJob::new();
    let pizza = std::fs::read(job.path("pizza.tar")).unwrap();
    let names = ["a b/größe [1] 100%20 {x}.tar", "a b/+&=@.tar"];
    hub.server.push(DATA, "dev/x", names.map(|name| (name.to_owned(), pizza.clone())).into());
    for name in names {
        let address = format!("hf://datasets/org/emoji@dev%2Fx/{name}");
        let said = hub.ends(0, &[], &["inspect", &address]);
        let shown = said["inspections"][0].to_string();
        assert!(shown.contains("hf://datasets/org/emoji@"), "{shown}");
    }
}

#[test]
fn what_can_only_be_read_is_no_store() {
    let hub = Hub::start();
    let job = SmallJob::new();
    for (store, says) in [
        ("hf://org/store", "can only be read; a store is a path"),
        ("https://host/store", "can only be read; a store is a path"),
    ] {
        let output = hub.reached_by(&mut job.command("run", &["--store", store])).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
        let examined = hub.lethe(&[], &["doctor", "--store", store]);
        let shown = String::from_utf8_lossy(&examined.stdout).into_owned();
        assert!(shown.contains(says), "{shown}");
    }
}

#[test]
fn single_files_come_from_web_servers() {
    let hub = Hub::start();
    let job = SmallJob::new();
    let all: Files = ["classes.txt", "concepts.csv", "pizza.tar", "red-heart.tar", "rocket.tar"]
        .map(|name| (name.to_owned(), std::fs::read(job.path(name)).unwrap()))
        .into();
    let commit = hub.server.push("models/web/files", "main", all);
    let at = |name: &str| format!("{}/web/files/resolve/{commit}/{name}", hub.server.endpoint());
    let local = last_line(&job.command("plan", &[]).output().unwrap());
    job.replace("job.toml", "\"classes.txt\"", &format!("\"{}\"", at("classes.txt")));
    job.replace("job.toml", "\"concepts.csv\"", &format!("\"{}\"", at("concepts.csv")));
    let output = job.command("plan", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["run"], local["run"]);
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    for (from, to, says) in [
        (at("classes.txt"), at("none.txt"), "does not exist"),
        (at("classes.txt"), "http://host.example/c.txt".to_owned(), "without TLS"),
        (base_model().display().to_string(), at("model"), "lists no folders"),
        ("retain-*.tar".to_owned(), at("retain-*.tar"), "web servers list no folders"),
    ] {
        job.write("job.toml", manifest.replace(&from, &to).as_bytes());
        let output = job.command("plan", &[]).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}\n  does not say: {says}");
    }
}

#[test]
fn an_exported_release_comes_back_from_the_hub() {
    let hub = Hub::start();
    let job = SmallJob::new().lenient();
    let said = job.run("store");
    let [store, to, key, public] = ["store", "out/forgetful", "key.pem", "key.pub"]
        .map(|name| job.path(name).to_str().unwrap().to_owned());
    let made = format!(
        "openssl ecparam -name prime256v1 -genkey -noout -out {key} && openssl ec -in {key} -pubout -out {public}"
    );
    assert!(Command::new("sh").args(["-c", &made]).output().unwrap().status.success());
    hub.ends(0, &[], &["release", "sign", "small:1", "--store", &store, "--key", &key]);
    let export = ["release", "export", "small@latest", "--store", &store, "--to", &to];
    let exported = hub.ends(0, &[], &export);

    let (released, laid_out) = (files(&folder(&said)), files(Path::new(&to)));
    assert_eq!(exported["files"].as_u64().unwrap() as usize, laid_out.len());
    for (name, bytes) in &released {
        assert_eq!(laid_out.get(name), Some(bytes), "{name}");
    }
    assert_eq!(laid_out.len(), released.len() + 1);
    let attributes = String::from_utf8(laid_out[".gitattributes"].clone()).unwrap();
    assert!(attributes.starts_with("*.safetensors filter=lfs diff=lfs merge=lfs -text\n"));
    assert!(laid_out["README.md"].starts_with(b"---\n") && laid_out.contains_key("model.sig"));
    hub.ends(0, &[], &["verify", &to, "--public-key", &public]);

    // A folder is never overwritten, and none is left half-written.
    let again = hub.lethe(&[], &export);
    assert!(again.status.code() == Some(2) && stderr(&again).contains("is not empty"));
    let model = folder(&said).join("model.safetensors");
    std::fs::write(&model, b"other").unwrap();
    let other = job.path("out/other");
    let broken = hub.lethe(
        &[],
        &["release", "export", "small", "--store", &store, "--to", other.to_str().unwrap()],
    );
    assert!(
        broken.status.code() == Some(2) && stderr(&broken).contains("is not what was released")
    );
    let left: Vec<_> = std::fs::read_dir(job.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["forgetful"]);

    // Uploaded, it is verified where it is.
    hub.server.push_folder("models/org/forgetful", "main", Path::new(&to));
    let address = "hf://org/forgetful";
    let verified = hub.ends(0, &[], &["verify", address, "--public-key", &public, "--recompute"]);
    assert_eq!(verified["problems"], serde_json::json!([]));
    let mut changed = laid_out.clone();
    changed.get_mut("config.json").unwrap().push(b' ');
    changed.insert("more.txt".to_owned(), vec![1]);
    hub.server.push("models/org/forgetful", "dev", changed);
    let problems = hub.ends(4, &[], &["verify", "hf://org/forgetful@dev"])["problems"].to_string();
    assert!(problems.contains("config.json") && problems.contains("more.txt"), "{problems}");
}

#[test]
fn a_listing_of_shards_has_pages() {
    let hub = Hub::start();
    let job = SmallJob::new();
    let member = ("a.txt".to_owned(), b"x".to_vec());
    let mut data: Files =
        (0..10).map(|n| (format!("d/s-{n}.tar"), shard_of([member.clone()]))).collect();
    for name in ["retain-0.tar", "retain-1.tar"] {
        data.insert(format!("d/{name}"), std::fs::read(job.path(name)).unwrap());
    }
    hub.server.push(DATA, "main", data);
    job.replace("job.toml", "\"retain-*.tar\"", "\"hf://datasets/org/emoji/d/retain-{0..1}.tar\", \"hf://datasets/org/emoji/d/retain-[01].tar\"");
    let output = hub.reached_by(&mut job.command("plan", &[])).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let requests = hub.server.requests();
    let count = |part: &str| requests.iter().filter(|path| path.contains(part)).count();
    assert_eq!(
        (count("/revision/"), count("/tree/"), count("/resolve/")),
        (1, 4, 2),
        "{requests:?}"
    );
}
