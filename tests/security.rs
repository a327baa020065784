//! Accounts that may do no more than they must, TLS, and what happens to those who may not.

use std::path::Path;
use std::process::Command;

use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::processes::{Process, worker};
use lethe_tests::{SmallJob, last_line, repository, stderr};

/// The permission lists of a role as `docs/security.md` has them, as the server's configuration writes them.
fn permissions(role: &str) -> String {
    let text = std::fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let list = text.split(&format!("A {role} may\n\n```\n")).nth(1).unwrap().split("```").next().unwrap().to_owned();
    let mut lines = Vec::new();
    for line in list.lines() {
        let mut line = line.split('#').next().unwrap().trim_end().to_owned();
        while let Some(start) = line.find("LETHE_*") {
            let from = line[..start].rfind('"').unwrap();
            let to = from + 1 + line[from + 1..].find('"').unwrap() + 1;
            let pattern = line[from..to].to_owned();
            let each = ["JOBS", "DEAD", "LEDGER", "LEASES"].map(|stream| pattern.replace("LETHE_*", &format!("LETHE_{stream}")));
            line.replace_range(from..to, &each.join(", "));
        }
        lines.push(line);
    }
    lines.join("\n").replace("publish =", "publish:").replace("subscribe =", "subscribe:")
}

fn accounts() -> String {
    let user = |name: &str, role: &str| {
        let password = format!("{name}-secret");
        format!("{{ user: {name}, password: \"{password}\", permissions: {{ {} }} }}", permissions(role))
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
    command.env("LETHE_NATS_USER", "w").env("LETHE_NATS_PASSWORD", "w-secret").env("LETHE_LOG", "debug");
    let worker = Process::start(command, &job.path("worker.log"));
    let output = run(&job, &server.url(), &store).env("LETHE_NATS_USER", "c").env("LETHE_NATS_PASSWORD", "c-secret").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["status"], "complete");
    for said in [stderr(&output), worker.said()] {
        assert!(!said.to_lowercase().contains("permissions violation"), "{said}");
        assert!(!said.contains("-secret"), "{said}");
    }
    assert!(!server.log().to_lowercase().contains("violation"), "{}", server.log());
    drop(worker);

    // A worker's account is none for a coordinator: it is told so by the wait's end, and no release comes of it.
    let other = job.path("other");
    let mut command = run(&job, &server.url(), &other);
    command.args(["--give-up", "1"]).env("LETHE_NATS_USER", "w").env("LETHE_NATS_PASSWORD", "w-secret");
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(2 | 5)), "{}", stderr(&output));
    assert!(!other.join("releases").is_dir());

    let wrong = run(&job, &server.url(), &other).env("LETHE_NATS_USER", "c").env("LETHE_NATS_PASSWORD", "guess").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("check the credentials") && !stderr(&wrong).contains("guess"), "{}", stderr(&wrong));
}

#[test]
fn the_documented_permissions_suffice_on_the_oldest_server() {
    least_permissions(Version::Oldest);
}

#[test]
fn the_documented_permissions_suffice_on_a_current_server() {
    least_permissions(Version::Current);
}

/// A certificate authority, and a server's certificate for 127.0.0.1 by it, made by openssl.
fn certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl is installed");
        assert!(output.status.success(), "{}", stderr(&output));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&["req"], &key[..], &authority[..]].concat());
    openssl(&[&["req"], &key[..], &["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"]].concat());
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
    openssl(&[&sign[..], &["-extfile", "names", "-out", "server.pem"]].concat());
}

#[test]
fn tls_with_a_token_and_only_the_authority_that_was_named() {
    let keys = tempfile::tempdir().unwrap();
    certificates(keys.path());
    let at = keys.path().display();
    let tls = format!("tls {{ cert_file: \"{at}/server.pem\", key_file: \"{at}/server.key\" }}\nauthorization {{ token: \"t0ken\" }}");
    let (server, job) = (NatsServer::with(Version::Oldest, &tls), SmallJob::new());
    let url = format!("tls://127.0.0.1:{}", server.port());
    let (store, authority) = (job.path("store"), keys.path().join("ca.pem"));
    let mut command = worker(&url, store.to_str().unwrap(), &job.path("cache"));
    command.arg("--nats-ca").arg(&authority).env("LETHE_NATS_TOKEN", "t0ken");
    let worker = Process::start(command, &job.path("worker.log"));
    let output = run(&job, &url, &store).arg("--nats-ca").arg(&authority).env("LETHE_NATS_TOKEN", "t0ken").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("t0ken") && !worker.said().contains("t0ken"));

    // The system's authorities know nothing of this one.
    let mut command = run(&job, &url, &store);
    command.args(["--give-up", "1"]).env("LETHE_NATS_TOKEN", "t0ken");
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(2 | 5)), "{}", stderr(&output));
}
