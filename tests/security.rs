//! Accounts with least permissions, TLS, and errors of accounts without permission.

use std::path::Path;
use std::process::Command;

use data_encoding::BASE64URL_NOPAD;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::processes::{Process, worker};
use lethe_tests::{SmallJob, last_line, repository, stderr};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// The permissions of a role in `docs/security.md`.
struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Permissions {
    fn of(role: &str) -> Self {
        let text = std::fs::read_to_string(repository().join("docs/security.md")).unwrap();
        let lists = text
            .split(&format!("A {role} may\n\n```\n"))
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap()
            .to_owned();
        let list = |name: &str| {
            let list =
                lists.split(&format!("{name} = [")).nth(1).unwrap().split(']').next().unwrap();
            let quoted = list.lines().flat_map(|line| {
                line.split('#').next().unwrap().split('"').skip(1).step_by(2).map(str::to_owned)
            });
            quoted.flat_map(each_stream).collect::<Vec<_>>()
        };
        let permissions = Self { publish: list("publish"), subscribe: list("subscribe") };
        assert!(permissions.publish.len() > 5 && !permissions.subscribe.is_empty());
        permissions
    }

    /// Returns the permissions in the server's configuration format.
    fn configured(&self) -> String {
        format!("permissions: {{ publish: {:?}, subscribe: {:?} }}", self.publish, self.subscribe)
    }
}

/// Expands `LETHE_*` in the document to every stream.
fn each_stream(subject: String) -> Vec<String> {
    if !subject.contains("LETHE_*") {
        return vec![subject];
    }
    ["JOBS", "DEAD", "LEDGER", "LEASES"]
        .map(|stream| subject.replace("LETHE_*", &format!("LETHE_{stream}")))
        .to_vec()
}

fn accounts() -> String {
    let user = |name: &str, role: &str| {
        format!(
            "{{ user: {name}, password: \"{name}-secret\", {} }}",
            Permissions::of(role).configured()
        )
    };
    format!("authorization {{ users: [ {}, {} ] }}", user("w", "worker"), user("c", "coordinator"))
}

fn run(job: &SmallJob, url: &str, store: &Path) -> Command {
    job.command("run", &["--store", store.to_str().unwrap(), "--nats", url])
}

fn least_permissions(version: Version) {
    let (server, job) = (NatsServer::with(version, &accounts()), SmallJob::new());
    let store = job.path("store");
    let mut command = worker(&server.url(), store.to_str().unwrap(), &job.path("cache"));
    command
        .env("LETHE_NATS_USER", "w")
        .env("LETHE_NATS_PASSWORD", "w-secret")
        .env("LETHE_LOG", "debug");
    let worker = Process::start(command, &job.path("worker.log"));
    let output = run(&job, &server.url(), &store)
        .env("LETHE_NATS_USER", "c")
        .env("LETHE_NATS_PASSWORD", "c-secret")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["status"], "complete");
    // The server stores the stream's settings as requested: there is no warning, and no repeated
    // update.
    assert!(!stderr(&output).contains("stream"), "{}", stderr(&output));
    for said in [stderr(&output), worker.said()] {
        assert!(!said.to_lowercase().contains("permissions violation"), "{said}");
        assert!(!said.contains("-secret"), "{said}");
    }
    assert!(!server.log().to_lowercase().contains("violation"), "{}", server.log());
    drop(worker);

    // A worker's account is not sufficient for a coordinator: the error appears before the end of
    // the wait, and there is no release.
    let other = job.path("other");
    let mut command = run(&job, &server.url(), &other);
    command
        .args(["--give-up", "1"])
        .env("LETHE_NATS_USER", "w")
        .env("LETHE_NATS_PASSWORD", "w-secret");
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(2 | 5)), "{}", stderr(&output));
    assert!(!other.join("releases").is_dir());

    let wrong = run(&job, &server.url(), &other)
        .env("LETHE_NATS_USER", "c")
        .env("LETHE_NATS_PASSWORD", "guess")
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
    assert!(
        stderr(&wrong).contains("check the credentials") && !stderr(&wrong).contains("guess"),
        "{}",
        stderr(&wrong)
    );
}

#[test]
fn the_documented_permissions_suffice_on_the_oldest_server() {
    least_permissions(Version::Oldest);
}

#[test]
fn the_documented_permissions_suffice_on_a_current_server() {
    least_permissions(Version::Current);
}

/// Executes a run in which worker and coordinator log in with a credentials file each, and checks
/// the error for another file.
fn logs_in_by_files(
    server: &NatsServer,
    option: &str,
    files: [&Path; 2],
    wrong: &Path,
    secrets: &[String],
) {
    let job = SmallJob::new();
    let store = job.path("store");
    let mut command = worker(&server.url(), store.to_str().unwrap(), &job.path("cache"));
    command.arg(option).arg(files[0]).env("LETHE_LOG", "trace");
    let worker = Process::start(command, &job.path("worker.log"));
    let mut command = run(&job, &server.url(), &store);
    let output = command.arg(option).arg(files[1]).env("LETHE_LOG", "trace").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["status"], "complete");
    assert!(!server.log().to_lowercase().contains("violation"), "{}", server.log());

    std::fs::write(job.path("garbage"), "SUA no seed").unwrap();
    let mut said = vec![stderr(&output), worker.said()];
    for file in [wrong, &job.path("garbage"), &job.path("missing")] {
        let output = run(&job, &server.url(), &job.path("other"))
            .args(["--give-up", "1", option])
            .arg(file)
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("check the credentials") || text.contains(file.to_str().unwrap()),
            "{text}"
        );
        assert!(!text.contains("SUA no"), "{text}");
        said.push(text);
    }
    for text in said {
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "a secret is in {text}");
    }
}

fn nkey_logins(version: Version) {
    let [worker, coordinator, stranger] =
        [KeyPair::new_user(), KeyPair::new_user(), KeyPair::new_user()];
    let user = |key: &KeyPair, role: &str| {
        format!("{{ nkey: {}, {} }}", key.public_key(), Permissions::of(role).configured())
    };
    let users = format!(
        "authorization {{ users: [ {}, {} ] }}",
        user(&worker, "worker"),
        user(&coordinator, "coordinator")
    );
    let server = NatsServer::with(version, &users);
    let folder = tempfile::tempdir().unwrap();
    let seeds = [&worker, &coordinator, &stranger].map(|key| key.seed().unwrap());
    let [worker, coordinator, stranger] = [0, 1, 2].map(|number| {
        let path = folder.path().join(format!("{number}.nk"));
        std::fs::write(&path, format!("{}\n", seeds[number])).unwrap();
        path
    });
    logs_in_by_files(&server, "--nats-nkey", [&worker, &coordinator], &stranger, &seeds);
}

#[test]
fn nkeys_on_the_oldest_server() {
    nkey_logins(Version::Oldest);
}

#[test]
fn nkeys_on_a_current_server() {
    nkey_logins(Version::Current);
}

/// Returns a JWT by `issuer` about `subject`.
fn token(issuer: &KeyPair, subject: &str, name: &str, claims: Value) -> String {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({ "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject, "name": name, "nats": claims });
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = BASE64URL_NOPAD.encode(&issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// Returns the claims of an account without limits, with JetStream.
fn account_claims() -> Value {
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1
    });
    json!({ "type": "account", "version": 2, "limits": limits })
}

/// Returns a credentials file for a user of an account, and the secrets in it.
fn credentials(account: &KeyPair, role: &str) -> (String, [String; 2]) {
    let user = KeyPair::new_user();
    let Permissions { publish, subscribe } = Permissions::of(role);
    let claims = json!({
        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        "pub": { "allow": publish }, "sub": { "allow": subscribe }
    });
    let (jwt, seed) = (token(account, &user.public_key(), role, claims), user.seed().unwrap());
    let file = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    (file, [jwt, seed])
}

fn credentials_logins(version: Version) {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let [account, other] = [KeyPair::new_account(), KeyPair::new_account()];
    let trusted = token(
        &operator,
        &operator.public_key(),
        "operator",
        json!({ "type": "operator", "version": 2 }),
    );
    let accounts = [(&system, "system"), (&account, "lethe")].map(|(account, name)| {
        let claims = if name == "system" {
            json!({ "type": "account", "version": 2 })
        } else {
            account_claims()
        };
        format!(
            "{}: {}",
            account.public_key(),
            token(&operator, &account.public_key(), name, claims)
        )
    });
    let server = NatsServer::with(
        version,
        &format!(
            "operator: {trusted}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}\n}}",
            system.public_key(),
            accounts.join("\n")
        ),
    );
    let folder = tempfile::tempdir().unwrap();
    let (mut secrets, mut files) = (Vec::new(), Vec::new());
    // The last account is unknown to the server.
    for (number, (account, role)) in
        [(&account, "worker"), (&account, "coordinator"), (&other, "worker")]
            .into_iter()
            .enumerate()
    {
        let (file, secret) = credentials(account, role);
        let path = folder.path().join(format!("{number}.creds"));
        std::fs::write(&path, file).unwrap();
        secrets.extend(secret);
        files.push(path);
    }
    logs_in_by_files(&server, "--nats-creds", [&files[0], &files[1]], &files[2], &secrets);
}

#[test]
fn credentials_files_on_the_oldest_server() {
    credentials_logins(Version::Oldest);
}

#[test]
fn credentials_files_on_a_current_server() {
    credentials_logins(Version::Current);
}

/// Makes a certificate authority, and a server certificate for 127.0.0.1, with openssl.
fn certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(folder)
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{}", stderr(&output));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = [
        "-x509",
        "-days",
        "2",
        "-subj",
        "/CN=test authority",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    ];
    openssl(&[&["req"], &key[..], &authority[..]].concat());
    openssl(
        &[
            &["req"],
            &key[..],
            &["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"],
        ]
        .concat(),
    );
    std::fs::write(
        folder.join("names"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    let sign = [
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
    ];
    openssl(&[&sign[..], &["-extfile", "names", "-out", "server.pem"]].concat());
}

#[test]
fn tls_with_a_token_and_only_the_authority_that_was_named() {
    let keys = tempfile::tempdir().unwrap();
    certificates(keys.path());
    let at = keys.path().display();
    let tls = format!(
        "tls {{ cert_file: \"{at}/server.pem\", key_file: \"{at}/server.key\" }}\nauthorization {{ token: \"t0ken\" }}"
    );
    let (server, job) = (NatsServer::with(Version::Oldest, &tls), SmallJob::new());
    let url = format!("tls://127.0.0.1:{}", server.port());
    let (store, authority) = (job.path("store"), keys.path().join("ca.pem"));
    let mut command = worker(&url, store.to_str().unwrap(), &job.path("cache"));
    command.arg("--nats-ca").arg(&authority).env("LETHE_NATS_TOKEN", "t0ken");
    let worker = Process::start(command, &job.path("worker.log"));
    let output = run(&job, &url, &store)
        .arg("--nats-ca")
        .arg(&authority)
        .env("LETHE_NATS_TOKEN", "t0ken")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("t0ken") && !worker.said().contains("t0ken"));

    // The system does not trust this authority.
    let mut command = run(&job, &url, &store);
    command.args(["--give-up", "1"]).env("LETHE_NATS_TOKEN", "t0ken");
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(2 | 5)), "{}", stderr(&output));
}
