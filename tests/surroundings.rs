//! Stores, queues and files that do not meet the requirements: every command that depends on them
//! stops early and names the remedy.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lethe_tests::faulty_s3::{Condition, FaultyS3};
use lethe_tests::http::{get, get_json};
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::{LONGEST_WAIT, wait_until};
use lethe_tests::processes::{Process, worker};
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, base_model, binary, last_line, stderr};
use serde_json::Value;

/// Longest time for a command to give up, far below its default of ten minutes.
const SOON: Duration = Duration::from_secs(240);

fn serve(nats: &str, store: &str, cache: &Path) -> Command {
    let mut command = Command::new(binary("lethe"));
    for name in
        ["LETHE_LOG", "LETHE_NATS_CREDS", "LETHE_NATS_NKEY", "LETHE_NATS_USER", "LETHE_SIGN_KEY"]
    {
        command.env_remove(name);
    }
    command
        .args(["serve", "--http", "0", "--nats", nats, "--store", store])
        .env("LETHE_CACHE", cache);
    command
}

/// Runs a command that must end soon with exit code 5 and these words.
fn gives_up(mut command: Command, words: &[&str]) -> Output {
    let began = Instant::now();
    let output = command.output().unwrap();
    let said = format!("{}{}", stderr(&output), String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(5), "{command:?}: {said}");
    assert!(began.elapsed() < SOON, "{command:?} took {:?}: {said}", began.elapsed());
    for word in words {
        assert!(said.contains(word), "{command:?} does not say `{word}`: {said}");
    }
    output
}

#[test]
fn every_command_rejects_a_store_without_create_if_absent() {
    let (s3, nats, job) = (S3Server::start(), NatsServer::start(Version::Oldest), SmallJob::new());
    let _bucket = s3.bucket("lethe");
    for (number, (condition, words)) in [
        (Condition::Dropped, "was created a second time"),
        (Condition::Refused(501), "answers 501 to PUT with If-None-Match"),
        (Condition::Refused(405), "answers 405 to PUT with If-None-Match"),
        (Condition::Refused(400), "can be written but not created conditionally"),
    ]
    .into_iter()
    .enumerate()
    {
        let proxy = FaultyS3::with(s3.port(), condition);
        let store = format!("s3://lethe/store-{number}");
        let alone = job.command("run", &["--store", &store]);
        let with_workers = job.command("run", &["--store", &store, "--nats", &nats.url()]);
        let mut doctor = Command::new(binary("lethe"));
        doctor
            .args(["doctor", "--device", "cpu", "--store", &store])
            .env("LETHE_CACHE", job.path("cache"))
            .env_remove("LETHE_NATS");
        let mut check = Command::new(binary("lethe-worker"));
        check
            .args(["check", "--device", "cpu", "--store", &store])
            .env("LETHE_CACHE", job.path("cache"))
            .env_remove("LETHE_NATS");
        let commands = [
            alone,
            with_workers,
            serve(&nats.url(), &store, &job.path("cache")),
            worker(&nats.url(), &store, &job.path("cache")),
            doctor,
            check,
        ];
        for mut command in commands {
            S3Server::environment(&proxy.endpoint(), &mut command);
            gives_up(command, &[words, "If-None-Match on PUT"]);
        }
        if condition != Condition::Dropped {
            // Each command sends the conditional request once, without retries.
            assert!(proxy.refused() <= 6, "{} requests with a condition", proxy.refused());
        }
    }
}

#[test]
fn a_missing_bucket_is_reported() {
    let (s3, job) = (S3Server::start(), SmallJob::new());
    let mut command = job.command("run", &["--store", "s3://nowhere/store"]);
    S3Server::environment(&s3.endpoint(), &mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("there is no such bucket"), "{}", stderr(&output));
}

/// 10 % of requests are throttled, fail, are delayed, or lose all or half of their response: the
/// digest equals that of an undisturbed run.
#[test]
fn transient_store_faults_do_not_change_the_result() {
    let seed =
        std::env::var("LETHE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(19);
    println!("LETHE_TEST_SEED={seed}");
    let (s3, nats, job) = (S3Server::start(), NatsServer::start(Version::Oldest), SmallJob::new());
    let _bucket = s3.bucket("lethe");
    let expected = job.run("store")["digest"].clone();
    let proxy = FaultyS3::faulty(s3.port(), 100, seed);
    let within = |mut command: Command| {
        S3Server::environment(&proxy.endpoint(), &mut command);
        command
    };

    let output = within(job.command("run", &["--store", "s3://lethe/alone"])).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["digest"], expected);

    let store = "s3://lethe/served";
    let mut serve = Process::start(
        within(serve(&nats.url(), store, &job.path("cache"))),
        &job.path("serve.log"),
    );
    let mut worker = Process::start(
        within(worker(&nats.url(), store, &job.path("cache"))),
        &job.path("worker.log"),
    );
    wait_until("serve listens", || {
        assert!(serve.ended().is_none(), "{}", serve.said());
        serve.said().contains("takes runs on")
    });
    let lethe = |arguments: &[&str]| {
        let mut command = within(Command::new(binary("lethe")));
        command
            .args(arguments)
            .env("LETHE_NATS", nats.url())
            .env_remove("LETHE_LOG")
            .output()
            .unwrap()
    };
    let submitted = lethe(&["submit", job.path("job.toml").to_str().unwrap()]);
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    let run = String::from_utf8(submitted.stdout).unwrap().trim().to_owned();
    let mut watch = Command::new(binary("lethe"));
    watch
        .args(["status", &run, "--watch", "--json"])
        .env("LETHE_NATS", nats.url())
        .env_remove("LETHE_LOG");
    let mut watch = Process::start(watch, &job.path("watch.log"));
    let code = watch.wait().code();
    assert!(worker.ended().is_none(), "{}", worker.said());
    assert_eq!(code, Some(0), "{}\n{}\n{}", watch.said(), serve.said(), worker.said());
    assert_eq!(watch.printed()["digest"], expected);

    let faults = proxy.faults();
    println!("{} requests, {faults:?}", proxy.requests());
    assert!(faults.iter().all(|(_, count)| *count > 0), "{faults:?}");
}

/// The limit is the server's or the account's.
#[test]
fn too_little_jetstream_storage_ends_a_command_at_once() {
    let job = SmallJob::new();
    let store = job.path("store");
    let small = "accounts { A { jetstream { max_file: 100MB }, users: [ { user: a, password: p } ] } }\nno_auth_user: a\n";
    for version in [Version::Oldest, Version::Current] {
        let limited = |account: bool| {
            let mut server = NatsServer::with(version, if account { small } else { "" });
            if !account {
                server.kill();
                server.limit_disk(100 << 20);
                server.run();
            }
            server
        };
        for account in [false, true] {
            let server = limited(account);
            let words = [
                "JetStream has too little storage",
                "reserve 580 MiB (LETHE_JOBS 256 MiB",
                "max_file_store",
            ];
            gives_up(
                job.command("run", &["--store", store.to_str().unwrap(), "--nats", &server.url()]),
                &words,
            );
            gives_up(serve(&server.url(), store.to_str().unwrap(), &job.path("cache")), &words);
            let mut doctor = Command::new(binary("lethe"));
            doctor
                .args(["doctor", "--device", "cpu", "--nats", &server.url()])
                .env("LETHE_CACHE", job.path("cache"))
                .env_remove("LETHE_STORE");
            gives_up(doctor, &words);
        }
    }
}

/// Existing streams are used, whatever storage is left.
#[test]
fn existing_streams_need_no_more_storage() {
    let job = SmallJob::new();
    for version in [Version::Oldest, Version::Current] {
        let mut server = NatsServer::start(version);
        server.kill();
        // Enough for the streams once; a 2.9 server refuses to create an existing stream again when
        // it would not fit twice.
        server.limit_disk(600 << 20);
        server.run();
        let listens = |url: &str, log: &str| {
            let mut serve = Process::start(
                serve(url, job.path("store").to_str().unwrap(), &job.path("cache")),
                &job.path(log),
            );
            wait_until("serve listens", || {
                assert!(serve.ended().is_none(), "{}", serve.said());
                serve.said().contains("takes runs on")
            });
        };
        listens(&server.url(), &format!("{version:?}-first.log"));
        server.kill();
        server.run();
        listens(&server.url(), &format!("{version:?}-second.log"));
    }
}

/// Truncating a local base checkpoint during a run fails that run with a message; the service keeps
/// running.
#[test]
fn a_truncated_base_fails_the_run_and_not_the_service() {
    let (nats, job) = (NatsServer::start(Version::Oldest), SmallJob::new());
    let model = job.path("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(base_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    job.replace("job.toml", &base_model().display().to_string(), &model.display().to_string());
    let store = job.path("served");
    let mut serve = Process::start(
        serve(&nats.url(), store.to_str().unwrap(), &job.path("cache")),
        &job.path("serve.log"),
    );
    wait_until("serve listens", || serve.said().contains("takes runs on"));
    let lethe = |arguments: &[&str]| {
        Command::new(binary("lethe"))
            .args(arguments)
            .env("LETHE_NATS", nats.url())
            .output()
            .unwrap()
    };
    let submitted = lethe(&["submit", job.path("job.toml").to_str().unwrap()]);
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    let run = String::from_utf8(submitted.stdout).unwrap().trim().to_owned();
    // The run is planned and waits for workers; its base is open.
    let state = |run: &str| {
        last_line(&lethe(&["status", run, "--json"]))["state"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    wait_until("the run is planned", || state(&run) == "running");
    // The worker loads the model before the truncation, so that only the coordinator reads the
    // truncated file.
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let worker = Process::start(
        worker(&nats.url(), store.to_str().unwrap(), &job.path("cache")),
        &job.path("worker.log"),
    );
    wait_until("the worker has the model", || lethe_tests::outcomes(&store) > 2);
    File::options().write(true).open(&weights).unwrap().set_len(whole.len() as u64 / 3).unwrap();

    let ended = lethe(&["status", &run, "--watch", "--json"]);
    let said = last_line(&ended);
    assert!(serve.ended().is_none(), "{}", serve.said());
    assert_eq!(said["state"], "failed", "{said}");
    assert!(said["problem"].as_str().unwrap().contains("restore the file and run again"), "{said}");
    // With the file restored, the same submission completes on the same service.
    std::fs::write(&weights, &whole).unwrap();
    let submitted = lethe(&["submit", job.path("job.toml").to_str().unwrap()]);
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    let run = String::from_utf8(submitted.stdout).unwrap().trim().to_owned();
    let ended = lethe(&["status", &run, "--watch", "--json"]);
    assert_eq!(
        ended.status.code(),
        Some(0),
        "{}{}\n{}",
        stderr(&ended),
        serve.said(),
        worker.said()
    );
    assert_eq!(last_line(&ended)["state"], "complete");
}

/// Writes the demo's model with one more tensor of this size: a constant of older checkpoints, which
/// no layer uses and every release contains.
fn model_with_padding(folder: &Path, bytes: u64) {
    std::fs::create_dir(folder).unwrap();
    for entry in std::fs::read_dir(base_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&whole[8..end]).unwrap();
    let data = (whole.len() - end) as u64;
    header["attn_mask"] = serde_json::json!({ "dtype": "F32", "shape": [bytes / 4], "data_offsets": [data, data + bytes / 4 * 4] });
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let file = File::create(&path).unwrap();
    file.write_all_at(
        &[&(text.len() as u64).to_le_bytes(), text.as_slice(), &whole[end..]].concat(),
        0,
    )
    .unwrap();
    file.set_len(8 + text.len() as u64 + data + bytes / 4 * 4).unwrap();
}

/// Four concurrent runs write 1.6 GB; the health probe is answered on time meanwhile.
#[test]
fn probes_are_answered_while_runs_write_gigabytes() {
    const RUNS: usize = 4;
    const PADDING: u64 = 400 << 20;
    const LATEST: Duration = Duration::from_millis(1500);
    let (nats, job) = (NatsServer::start(Version::Oldest), SmallJob::new());
    model_with_padding(&job.path("model"), PADDING);
    job.replace(
        "job.toml",
        &base_model().display().to_string(),
        &job.path("model").display().to_string(),
    );
    let store = job.path("served");
    let mut command = serve(&nats.url(), store.to_str().unwrap(), &job.path("cache"));
    // Fewer worker threads than runs, as on a small machine.
    command.env("TOKIO_WORKER_THREADS", "2");
    let mut serve = Process::start(command, &job.path("serve.log"));
    wait_until("serve listens", || {
        assert!(serve.ended().is_none(), "{}", serve.said());
        serve.said().contains("takes runs on")
    });
    let said = serve.said();
    let address = said
        .split("http://")
        .nth(1)
        .and_then(|rest| rest.split(": ").next())
        .unwrap()
        .trim()
        .to_owned();
    let worker = Process::start(
        worker(&nats.url(), store.to_str().unwrap(), &job.path("cache")),
        &job.path("worker.log"),
    );
    let lethe = |arguments: &[&str]| {
        Command::new(binary("lethe"))
            .args(arguments)
            .env("LETHE_NATS", nats.url())
            .output()
            .unwrap()
    };
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    for number in 0..RUNS {
        let name = format!("job-{number}.toml");
        job.write(
            &name,
            manifest.replace("name = \"small\"", &format!("name = \"small-{number}\"")).as_bytes(),
        );
        let submitted = lethe(&["submit", job.path(&name).to_str().unwrap()]);
        assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    }
    let mut answers = Vec::new();
    let deadline = Instant::now() + LONGEST_WAIT;
    let runs = loop {
        let asked = Instant::now();
        assert_eq!(get(&address, "/healthz").0, 200);
        answers.push(asked.elapsed());
        let runs = get_json(&address, "/api/v1/runs")["runs"].as_array().unwrap().clone();
        if runs.iter().all(|run| run["exit_code"].is_number()) {
            break runs;
        }
        assert!(Instant::now() < deadline, "{runs:?}: {}\n{}", serve.said(), worker.said());
        std::thread::sleep(Duration::from_millis(20));
    };
    answers.sort_unstable();
    let usual = answers[answers.len() / 2];
    println!("{} answers, median {usual:?}, slowest {:?}", answers.len(), answers.last());
    assert_eq!(runs.len(), RUNS);
    assert!(runs.iter().all(|run| run["exit_code"] == 0), "{runs:?}: {}", serve.said());
    assert_eq!(lethe_tests::releases(&store), RUNS);
    // A blocked runtime answers nothing for seconds; single delays are the machine's.
    assert!(usual < LATEST, "the median answer took {usual:?}");
}
