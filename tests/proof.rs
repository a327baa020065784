//! The proofs of a release: signatures, provenance, receipts, names that only their owner can read.
//! `tests/ecosystem/` checks the same with OpenSSF's own tool.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_tests::{CONCEPTS, SmallJob, binary, last_line, stderr};
use serde_json::Value;

fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe"))
        .env_remove("LETHE_LOG")
        .env_remove("LETHE_SIGN_KEY")
        .args(arguments)
        .output()
        .unwrap()
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
fn problems(arguments: &[&str]) -> Vec<String> {
    let said = ends(4, &[&["verify"], arguments].concat());
    said["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem["file"].as_str().unwrap().to_owned())
        .collect()
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl starts");
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
}

/// Makes a key pair with openssl, and returns the paths of its private and public half.
fn key(job: &SmallJob, name: &str, curve: &str) -> (String, String) {
    let path = |end: &str| job.path(&format!("{name}.{end}")).to_str().unwrap().to_owned();
    openssl(&["ecparam", "-name", curve, "-genkey", "-out", &path("pem")]);
    openssl(&["ec", "-in", &path("pem"), "-pubout", "-out", &path("pub")]);
    (path("pem"), path("pub"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_signature_covers_everything_and_holds_by_its_own_key_alone() {
    let job = SmallJob::summed();
    let (private, public) = key(&job, "owner", "prime256v1");
    let (other, other_public) = key(&job, "other", "secp384r1");
    let report = job.run("store");
    let (store, release) = (job.path("store"), report["release"].as_str().unwrap());
    let (store, folder) = (store.to_str().unwrap(), Path::new(release));

    // The release is not signed.
    assert_eq!(problems(&[release, "--public-key", &public]), ["model.sig"]);
    assert_eq!(ends(0, &["verify", release])["signed_by"], Value::Null);

    // A gate requires a signature.
    job.write("gates.toml", b"[gates]\nsigned_by = \"owner.pub\"\n");
    let gates = job.path("gates.toml");
    let promote = [
        "release",
        "promote",
        "small:1",
        "production",
        "--store",
        store,
        "--gates",
        gates.to_str().unwrap(),
    ];
    assert!(
        ends(4, &promote)["missed"][0].as_str().unwrap().contains("nobody has signed this release")
    );
    ends(0, &["release", "sign", "small:1", "--store", store, "--key", &private]);
    assert!(ends(0, &promote)["missed"].as_array().unwrap().is_empty());
    job.write("gates.toml", b"[gates]\nsigned_by = \"other.pub\"\n");
    assert!(ends(4, &promote)["missed"][0].as_str().unwrap().contains("was made with another key"));

    let signed = ends(0, &["verify", release, "--public-key", &public, "--recompute"]);
    assert_eq!(signed["signed_by"].as_str().map(str::len), Some(64));
    let (untouched, composed) = (
        signed["tensors"]["untouched"].as_u64().unwrap(),
        signed["tensors"]["composed"].as_u64().unwrap(),
    );
    assert!(untouched > 10 && (1..=CONCEPTS.len() as u64).contains(&composed), "{signed}");
    assert_eq!(
        problems(&[release, "--public-key", &other_public]),
        ["model.sig", "attestations.intoto.jsonl"]
    );
    // Signed once: signing again with the same key changes nothing, and another key is rejected.
    let before: Vec<Vec<u8>> =
        files(folder).iter().map(|path| std::fs::read(path).unwrap()).collect();
    ends(0, &["release", "sign", "small:1", "--store", store, "--key", &private]);
    refused(
        &["release", "sign", "small:1", "--store", store, "--key", &other],
        "is not signed by this key",
    );
    assert_eq!(
        before,
        files(folder).iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
    );

    // One bit of any file.
    for path in files(folder) {
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(
                problems(&[release, "--public-key", &public]).contains(&name.to_owned()),
                "bit 0 of byte {at} of {name}"
            );
        }
        std::fs::write(&path, &whole).unwrap();
    }
    // Added and removed files.
    std::fs::remove_file(folder.join("attestations.intoto.jsonl")).unwrap();
    assert_eq!(problems(&[release, "--public-key", &public]), ["attestations.intoto.jsonl"]);
    std::fs::remove_file(folder.join("model.sig")).unwrap();
    // Only an intact release is signed.
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    assert_eq!(
        ends(4, &["release", "sign", "small:1", "--store", store, "--key", &private])["signed"],
        false
    );
    assert!(!folder.join("model.sig").is_file());

    for (arguments, says) in [
        (
            ["release", "sign", "small:1", "--store", store, "--key", public.as_str()],
            "holds no private key in PEM",
        ),
        (
            ["release", "sign", "small:1", "--store", store, "--key", "nowhere.pem"],
            "cannot be read",
        ),
    ] {
        refused(&arguments, says);
    }
    refused(&["verify", release, "--public-key", &private], "holds no public key in PEM");
    openssl(&["ec", "-in", &private, "-aes256", "-passout", "pass:x", "-out", &private]);
    refused(&["release", "sign", "small:1", "--store", store, "--key", &private], "is encrypted");
}

#[test]
fn a_run_signs_what_it_releases_and_says_where_it_comes_from() {
    let job = SmallJob::new();
    let (private, public) = key(&job, "owner", "secp521r1");
    job.write("gates.toml", b"[gates]\nsigned_by = \"owner.pub\"\n");
    let (store, gates) = (job.path("store"), job.path("gates.toml"));
    let (store, gates) = (store.to_str().unwrap(), gates.to_str().unwrap());
    let run = |more: &[&str]| {
        let output = job
            .command("run", &[&["--store", store, "--gates", gates], more].concat())
            .output()
            .unwrap();
        (output.status.code(), last_line(&output))
    };
    let (code, unsigned) = run(&[]);
    assert_eq!((code, unsigned["status"].as_str()), (Some(4), Some("gates-missed")));
    let (code, report) = run(&["--sign-key", &private]);
    assert_eq!(
        (code, &report["release"], &report["number"]),
        (Some(0), &unsigned["release"], &unsigned["number"])
    );
    let release = report["release"].as_str().unwrap();
    ends(0, &["verify", release, "--public-key", &public]);

    let folder = Path::new(release);
    let (provenance, record) =
        (json(&folder.join("provenance.json")), json(&folder.join("composition.json")));
    let build = &provenance["predicate"]["buildDefinition"];
    assert_eq!(provenance["predicateType"], "https://slsa.dev/provenance/v1");
    let manifest = build["externalParameters"]["manifest"]["sha256"].as_str().unwrap();
    assert!(report["run"].as_str().unwrap().ends_with(&manifest[..12]));
    let digest = |name: &str| {
        lethe_shared::digest::Digest::of(&std::fs::read(job.path(name)).unwrap()).to_string()
    };
    let named: Vec<&str> = build["resolvedDependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["digest"]["sha256"].as_str())
        .collect();
    for shard in [
        "retain-0.tar",
        "retain-1.tar",
        "validation.tar",
        "test.tar",
        "pizza.tar",
        "red-heart.tar",
        "rocket.tar",
    ] {
        assert!(named.contains(&digest(shard).as_str()), "{shard}");
    }
    assert_eq!(
        build["resolvedDependencies"][0]["digest"]["tensorsSha256"],
        record["base"]["digest"]
    );
    // The provenance names the libtorch that is set up.
    let setup =
        std::fs::read_to_string(lethe_tests::repository().join("deploy/libtorch.sh")).unwrap();
    let libtorch = build["internalParameters"]["libtorch"].as_str().unwrap();
    assert!(
        setup.contains(&format!("VERSION={libtorch}"))
            || setup.contains(&format!("VERSION=\"{libtorch}\"")),
        "{libtorch}"
    );
    // The provenance contains no time or place: the same run in another store gives the same bytes.
    let elsewhere = job.run("elsewhere");
    for name in ["provenance.json", "receipts.jsonl", "README.md", "composition.json"] {
        let other = Path::new(elsewhere["release"].as_str().unwrap()).join(name);
        assert_eq!(
            std::fs::read(folder.join(name)).unwrap(),
            std::fs::read(other).unwrap(),
            "{name}"
        );
    }

    // A receipt is about its concept alone, and is signed alone.
    let store = ["--store", store];
    let receipt = |id: &str| lethe(&[&["release", "receipt", "small:1", id], &store[..]].concat());
    let envelope: Value = serde_json::from_slice(&receipt("pizza").stdout).unwrap();
    let payload =
        data_encoding::BASE64.decode(envelope["payload"].as_str().unwrap().as_bytes()).unwrap();
    let text = String::from_utf8(payload).unwrap();
    assert!(
        text.contains("pizza") && !text.contains("rocket") && !text.contains("heart"),
        "{text}"
    );
    let statement: Value = serde_json::from_str(&text).unwrap();
    let concept = record["concepts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|concept| concept["id"] == "pizza")
        .unwrap();
    assert_eq!(statement["predicate"]["evidence"]["composed"], concept["composed"]);
    assert_eq!(statement["predicate"]["edit"]["layer"], concept["layer"]);
    assert_eq!(
        statement["subject"][0]["digest"]["sha256"],
        record["files"]["model.safetensors"]["digest"]
    );
    assert_eq!(receipt("unicorn").status.code(), Some(2));
    // A composed release names its parent, and is signed on request.
    let composed = ends(0, &["compose", release, "--remove", "rocket", "--sign-key", &private]);
    let address = composed["release"].as_str().unwrap();
    ends(0, &["verify", address, "--public-key", &public, "--recompute"]);
    let receipts = std::fs::read_to_string(Path::new(address).join("receipts.jsonl")).unwrap();
    assert_eq!(receipts.lines().count(), CONCEPTS.len() - 1);
    for line in receipts.lines() {
        let statement: Value = serde_json::from_str(line).unwrap();
        assert_eq!(statement["predicateType"], "urn:lethe:not-measured:v1");
        assert_eq!(statement["predicate"]["evidence"]["composed"], Value::Null);
    }
    let provenance = std::fs::read_to_string(Path::new(address).join("provenance.json")).unwrap();
    assert!(
        provenance.contains("rocket left out") && provenance.contains(&digest("retain-0.tar")),
        "{provenance}"
    );
}

#[test]
fn hashed_names_are_nowhere_in_the_release() {
    let job = SmallJob::new();
    let plain = job.run("plain");
    job.write("names.salt", b"0f1e2d3c4b5a69788796a5b4c3d2e1f0\n");
    job.replace(
        "job.toml",
        "[execution]",
        "[release]\nnames = \"hashed\"\nsalt = \"names.salt\"\n\n[execution]",
    );
    let report = job.run("store");
    let folder = Path::new(report["release"].as_str().unwrap());
    let hidden = |text: &str| {
        CONCEPTS.iter().all(|id| !text.contains(id) && !text.contains(&id.replace('-', " ")))
    };
    for path in files(folder) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // The model's own vocabulary contains every word.
        if !["tokenizer.json", "vocab.json", "merges.txt"].contains(&name.as_str()) {
            assert!(hidden(&String::from_utf8_lossy(&std::fs::read(&path).unwrap())), "{name}");
        }
    }
    assert!(hidden(&report.to_string().replace(folder.to_str().unwrap(), "")), "{report}");
    ends(0, &["verify", report["release"].as_str().unwrap(), "--recompute"]);
    // The holder of the salt can find the same removals.
    assert_eq!(plain["summary"]["forgotten_composed"], report["summary"]["forgotten_composed"]);
    let (store, salt) = (job.path("store"), job.path("names.salt"));
    let asked = ["release", "receipt", "small:1", "pizza", "--store", store.to_str().unwrap()];
    let receipt = lethe(&[&asked[..], &["--salt", salt.to_str().unwrap()]].concat());
    assert_eq!(receipt.status.code(), Some(0), "{}", stderr(&receipt));
    assert!(String::from_utf8(receipt.stdout).unwrap().contains("HMAC-SHA-256"));
    refused(&asked, "does not remove a concept `pizza`");
    job.write("names.salt", b"short");
    let output = job.output("store");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("release.salt")
            && stderr(&output).contains("a salt has 16 at least"),
        "{}",
        stderr(&output)
    );
}
