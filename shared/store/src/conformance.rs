//! The conformance suite: what every store must do. It runs against memory, local folders and real
//! servers.

use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::outcome::{Execution, Outcome};
use lethe_shared::reference::{ArtifactRef, JobId};
use lethe_shared::task::{Evaluate, EvaluateOutput};

use crate::error::Error;
use crate::store::Store;

/// Runs every check on an empty store.
///
/// # Panics
/// When the store does not conform.
pub async fn check(store: &Store) {
    store.probe().await.expect("a store can be written and read");
    artifacts(store).await;
    outcomes(store).await;
    creation(store).await;
    files(store).await;
    refusals(store).await;
}

async fn artifacts(store: &Store) {
    for bytes in [Bytes::new(), Bytes::from_static(b"x"), Bytes::from(vec![7u8; 3 << 20])] {
        let artifact = store.put_artifact(bytes.clone()).await.expect("write");
        assert_eq!(artifact, ArtifactRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 });
        assert_eq!(store.put_artifact(bytes.clone()).await.expect("write again"), artifact);
        assert_eq!(store.get_artifact(&artifact).await.expect("read"), bytes);
    }
    let unknown = ArtifactRef { digest: Digest::of(b"never written"), bytes: 13 };
    assert!(matches!(store.get_artifact(&unknown).await, Err(Error::NotFound { .. })));
}

fn outcome(worker: &str) -> Outcome {
    let execution = Execution {
        worker: worker.into(),
        seconds: 1.5,
        stages: BTreeMap::new(),
        peak_memory_bytes: 1,
        device: "cpu".into(),
        arithmetic: "test".into(),
    };
    let job = JobId::from(Digest::of(b"job"));
    Outcome::of::<Evaluate>(job, &EvaluateOutput::default(), execution).expect("plain data")
}

async fn outcomes(store: &Store) {
    let job = outcome("a").job;
    assert_eq!(store.get_outcome(job).await.expect("ask"), None);
    let written = futures::future::join_all(
        ["a", "b", "c"].map(|worker| async move { store.put_outcome(&outcome(worker)).await }),
    )
    .await;
    let first = store.get_outcome(job).await.expect("read").expect("there");
    for outcome in written {
        assert_eq!(outcome.expect("write"), first, "the first outcome stays");
    }
}

async fn creation(store: &Store) {
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
    assert!(store.create("releases/a/record.json", one.clone()).await.expect("create"));
    assert!(!store.create("releases/a/record.json", one.clone()).await.expect("the same again"));
    assert!(matches!(
        store.create("releases/a/record.json", two).await,
        Err(Error::Conflict { .. })
    ));
    assert_eq!(store.get("releases/a/record.json").await.expect("read"), Some(one));
}

async fn files(store: &Store) {
    let folder = tempfile::tempdir().expect("a folder");
    // Larger than one part of an upload.
    for (name, size) in [("small", 10), ("large", 35 << 20)] {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).expect("write");
        let stored = store.put_file(&format!("files/{name}"), &path).await.expect("upload");
        assert_eq!(stored, ArtifactRef { digest: Digest::of(&bytes), bytes: size });
        assert_eq!(store.get(&format!("files/{name}")).await.expect("read").expect("there"), bytes);
        let back = folder.path().join("back");
        assert_eq!(
            store.get_file(&format!("files/{name}"), &back).await.expect("download"),
            stored
        );
        assert_eq!(std::fs::read(&back).expect("read"), bytes);
    }
    assert_eq!(store.list("files").await.expect("list"), ["files/large", "files/small"]);
    let listed = store.list_objects("files").await.expect("list");
    assert!(
        listed.iter().map(|object| object.bytes).eq([35 << 20, 10])
            && listed.iter().all(|object| object.modified > 1_700_000_000)
    );
    store.put("files/odd", Bytes::new()).await.expect("write");
    for _ in 0..2 {
        store.remove("files/odd").await.expect("remove");
    }
    assert_eq!(store.list("files").await.expect("list").len(), 2);
    assert_eq!(store.size("files/small").await.expect("ask"), Some(10));
    assert_eq!(store.size("files/none").await.expect("ask"), None);
}

async fn refusals(store: &Store) {
    for key in ["", "/", "a//b", "../a", "a/..", "a b", "ä", "a\\b"] {
        assert!(matches!(store.get(key).await, Err(Error::Invalid { .. })), "{key}");
    }
    store.put("documents/odd.json", Bytes::from_static(b"{ no json")).await.expect("write");
    assert!(matches!(
        store.get_json::<Vec<u32>>("documents/odd.json").await,
        Err(Error::Corrupt { .. })
    ));
    assert_eq!(store.get_json::<Vec<u32>>("documents/none.json").await.expect("ask"), None);
}
