//! Follows `docs/walk.md`: runs every command block as written, in order, in one shell and a folder
//! like a fresh clone, and compares the output with the page.

use std::net::TcpStream;

use lethe_tests::http::{get, get_json};
use lethe_tests::page::{Shell, steps};
use lethe_tests::ports::{free_port, wait_until};
use lethe_tests::repository;

#[test]
fn a_stranger_gets_from_a_clone_to_production_and_back() {
    let page = std::fs::read_to_string(repository().join("docs/walk.md")).unwrap();
    let steps = steps(&page);
    assert!(steps.len() > 30, "{}", steps.len());
    let killed = "$ kill -9 \"$worker_1\"";
    assert!(page.contains(&format!("```console\n{killed}\n```")), "the kill has its own block");
    let (nats, http) = (free_port(), free_port());
    let ports = [("NATS_PORT", nats.to_string()), ("PAGE_PORT", http.to_string())];
    let mut shell = Shell::new(&ports);
    let address = format!("127.0.0.1:{http}");
    let live = |run: &str, field: &str| {
        get_json(&address, &format!("/api/v1/runs/{run}"))["live"][field].to_string()
    };
    let mut waits = 0;
    for step in &steps {
        let command = step.command.as_str();
        // A reader waits for this state before the next command.
        if command == "lethe status \"$run\"" {
            let (run, worker) = (shell.ask("$run"), shell.ask("$worker_1"));
            wait_until("the first worker has a job", || {
                live(&run, "workers").contains(&format!("-{worker}/0\""))
            });
            assert_eq!(get(&address, "/").0, 200);
            waits += 1;
        } else if command.contains("grep redelivered") {
            let (run, worker) = (shell.ask("$run"), shell.ask("$worker_1"));
            wait_until("another one has its job", || {
                live(&run, "problems").contains(&format!("-{worker}/0; redelivered to "))
            });
            assert!(
                !live(&run, "workers").contains(&format!("-{worker}/0\"")),
                "a dead worker is shown as one that works"
            );
            waits += 1;
        }
        shell.follow("docs/walk.md", step);
    }
    assert_eq!(waits, 2, "the page has a worker killed");
    // The walk leaves no files behind.
    assert!(!shell.folder().join("walk").is_dir());
    for port in [nats, http] {
        assert!(
            TcpStream::connect(("127.0.0.1", port)).is_err(),
            "somebody still listens on {port}"
        );
    }
    assert_eq!(shell.ask("$(jobs -r | wc -l)"), "0");
}
