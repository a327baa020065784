use super::*;
use crate::conformance;

#[tokio::test]
async fn memory_conforms() {
    conformance::check(&Store::in_memory()).await;
}

#[tokio::test]
async fn local_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Local(folder.path().join("made/on/the/way"));
    conformance::check(&Store::open(&address).unwrap()).await;
}

#[tokio::test]
async fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Address::Local(folder.path().into())).unwrap();
    let artifact = store.put_artifact(Bytes::from_static(b"some bytes")).await.unwrap();
    let path = folder.path().join(artifact_key(&artifact));
    for damaged in ["some byteS", "some", ""] {
        std::fs::write(&path, damaged).unwrap();
        assert!(
            matches!(store.get_artifact(&artifact).await, Err(Error::Corrupt { .. })),
            "{damaged}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(store.get_artifact(&artifact).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_file_in_the_way_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = Store::open(&Address::Local(file.join("store"))).unwrap_err();
    assert!(error.to_string().contains("file/store"), "{error}");
}
