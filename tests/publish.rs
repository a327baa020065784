//! Publishing: a publisher or a `lethe release gc` that dies at any step, and publishers that race.
//! Most tests call the library in this process, over a store that fails after a number of writes.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use lethe::compose::apply::{Change, Directions};
use lethe::failure::Failure;
use lethe::layout::RECORD;
use lethe::lease::fence::Fence;
use lethe::present::report::Thumbnails;
use lethe::release::channels::{self, LATEST};
use lethe::release::leftovers;
use lethe::release::lookup::{self, Wanted};
use lethe::release::publish::{self, Published};
use lethe::release::read::Place;
use lethe::release::verify::verify;
use lethe::release::write::{self, Contents};
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::edit::{Direction, Edit};
use lethe_shared::record::Composition;
use lethe_store::Store;
use lethe_tests::mortal::Mortal;
use lethe_tests::ports::LONGEST_WAIT;
use lethe_tests::processes::Process;
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, binary, last_line, stderr};
use object_store::ObjectStore;

/// Returns the record of a release.
fn record() -> Composition {
    let job = SmallJob::summed();
    let report = job.run("store");
    serde_json::from_slice(
        &std::fs::read(Path::new(report["release"].as_str().unwrap()).join(RECORD)).unwrap(),
    )
    .unwrap()
}

/// A release of a small model with an individual step.
struct Candidate {
    model: tempfile::TempDir,
    record: Composition,
}

/// Returns the contents of a release without concepts, so no direction is requested.
fn contents<'a>(change: &'a Change, thumbnails: &'a Thumbnails) -> Contents<'a, impl Directions> {
    Contents {
        change,
        edits: &[],
        directions: &nothing,
        effect_matrix: None,
        protected: None,
        thumbnails,
        targets: Vec::new(),
    }
}

fn nothing(edit: &Edit, _: &[usize]) -> Result<Direction, Failure> {
    Err(Failure::BadInput(vec![format!("no edit of `{}` was expected", edit.concept)]))
}

impl Candidate {
    fn new(record: &Composition, value: f32) -> Self {
        let model = tempfile::tempdir().unwrap();
        let bytes = value.to_le_bytes();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes).unwrap();
        std::fs::write(
            model.path().join("model.safetensors"),
            safetensors::serialize([("w", view)], None).unwrap(),
        )
        .unwrap();
        std::fs::write(model.path().join("config.json"), "{}").unwrap();
        let digest = Checkpoint::open(model.path()).unwrap().digest().unwrap();
        Self { model, record: Composition { digest, concepts: Vec::new(), ..record.clone() } }
    }

    /// Publishes like the end of a run.
    async fn publish(&self, store: &Store) -> Result<Published, Failure> {
        let (checkpoint, fence) = (Checkpoint::open(self.model.path()).unwrap(), Fence::open());
        let (_, _, published) = write::write(
            store,
            &fence,
            &checkpoint,
            contents(&Change::new(), &Thumbnails::new()),
            self.record.clone(),
        )
        .await?;
        channels::advance(store, &fence, &published).await?;
        channels::promote(store, &published, "production").await?;
        Ok(published)
    }
}

/// Checks that every published release and every channel is complete, and returns the number of
/// releases.
async fn sound(store: &Store, address: &Address) -> usize {
    let there = publish::published(store, "small").await.unwrap();
    for one in there.values() {
        let release = publish::open(store, one).await.unwrap();
        for name in release.record.files.keys() {
            release.file(name).await.unwrap();
        }
        let folder = Address::parse(&format!("{address}/{}", one.prefix())).unwrap();
        // Only this test has credentials of the remote store.
        if folder.as_local().is_some() {
            assert_eq!(verify(&folder).await.unwrap().problems, []);
        }
    }
    for (channel, (_, last)) in channels::channels(store, "small").await.unwrap() {
        assert!(there.contains_key(&last.number), "{channel} points to {}", last.number);
    }
    there.len()
}

/// Publishes a second release beside a first, with a crash after every possible number of writes,
/// and then a second time.
async fn dies_at_every_step(inner: Arc<dyn ObjectStore>, address: &Address, record: &Composition) {
    let whole = Store::over(Arc::clone(&inner), &address.to_string());
    let first = Candidate::new(record, 0.0).publish(&whole).await.unwrap();
    let mut steps = 0;
    for writes in 1.. {
        let candidate = Candidate::new(record, writes as f32);
        let mortal = Store::over(Arc::new(Mortal::over(Arc::clone(&inner), writes)), "mortal");
        let before = sound(&whole, address).await;
        let died = candidate.publish(&mortal).await.is_err();
        let after = sound(&whole, address).await;
        assert!(after - before <= 1);
        let published = candidate.publish(&whole).await.unwrap();
        assert_eq!(sound(&whole, address).await, before + 1, "after {writes} writes");
        assert_eq!(published.number, first.number + writes as u64);
        for channel in [LATEST, "production"] {
            let wanted: Wanted = format!("small@{channel}").parse().unwrap();
            assert_eq!(
                lookup::find(&whole, &wanted).await.unwrap(),
                published,
                "after {writes} writes"
            );
        }
        // No leftovers: the second attempt resumed from the first one.
        assert_eq!(leftovers::leftovers(&whole, "small", i64::MAX).await.unwrap(), []);
        steps = writes;
        if !died {
            break;
        }
        assert!(writes < 50, "a publish ends");
    }
    // Weights, configuration, edits, card, report; record, number, two channels.
    assert!(steps >= 9, "{steps}");
    // Without a second attempt, its files are only leftovers for gc.
    let candidate = Candidate::new(record, -1.0);
    let mortal = Store::over(Arc::new(Mortal::over(inner, 3)), "mortal");
    assert!(candidate.publish(&mortal).await.is_err());
    let left = leftovers::leftovers(&whole, "small", i64::MAX).await.unwrap();
    assert_eq!(left.len(), 1);
    assert!(Place::stored(whole.clone(), left[0].folder.clone()).open().await.is_err());
    for object in &left[0].objects {
        whole.remove(object).await.unwrap();
    }
    assert_eq!(leftovers::leftovers(&whole, "small", i64::MAX).await.unwrap(), []);
    sound(&whole, address).await;
}

/// Returns the progress of a publication into a local store: one for each created file, and one for
/// each rename.
fn progress(store: &Path) -> usize {
    fn count(folder: &Path) -> usize {
        // An entry may be renamed during the iteration.
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    count(&entry.path())
                } else {
                    1
                }
            })
            .sum()
    }
    count(&store.join("staging")) + 2 * count(&store.join("releases"))
}

/// SIGKILL during the writing of a release to a disk, after its first file, its third, and so on up
/// to its number: no channel points to an incomplete release, and the same command again completes
/// it.
#[tokio::test]
async fn a_publisher_that_is_killed_breaks_nothing() {
    let job = SmallJob::summed();
    let report = job.run("store");
    let folder = job.path("store");
    let (address, store) =
        (Address::Local(folder.clone()), Store::open(&Address::Local(folder.clone())).unwrap());
    let files = std::fs::read_dir(report["release"].as_str().unwrap()).unwrap().count();
    let (mut releases, mut killed) = (sound(&store, &address).await, 0);
    for step in (1..=2 * files).step_by(2) {
        let compose = || {
            let mut command = Command::new(binary("lethe"));
            command.env_remove("LETHE_LOG").args([
                "compose",
                report["release"].as_str().unwrap(),
                "--json",
            ]);
            command.args(["--strength", &format!("pizza={}", 1.0 + step as f64 / 100.0)]);
            command
        };
        let (before, deadline) = (progress(&folder), Instant::now() + LONGEST_WAIT);
        let mut publisher = Process::start(compose(), &job.path("compose.log"));
        // Steps are a millisecond apart, so the loop does not sleep.
        while progress(&folder) < before + step && publisher.ended().is_none() {
            assert!(Instant::now() < deadline, "{}", publisher.said());
        }
        killed += usize::from(publisher.ended().is_none());
        publisher.kill();
        assert!(sound(&store, &address).await - releases <= 1, "killed at step {step}");
        let output = compose().output().unwrap();
        assert_eq!(output.status.code(), Some(0), "killed at step {step}: {}", stderr(&output));
        releases += 1;
        assert_eq!(
            (sound(&store, &address).await, last_line(&output)["number"].as_u64()),
            (releases, Some(releases as u64)),
            "step {step}"
        );
        assert_eq!(leftovers::leftovers(&store, "small", i64::MAX).await.unwrap(), []);
    }
    // On a busy machine, some publishers end before the kill.
    assert!(killed >= 3, "killed {killed} times of {files}");
}

/// A `lethe release gc` that crashes after any number of deletions leaves no files that a publisher
/// takes for its complete release.
#[tokio::test]
async fn what_a_broken_off_removal_leaves_is_written_again() {
    let (inner, record): (Arc<dyn ObjectStore>, _) =
        (Arc::new(object_store::memory::InMemory::new()), record());
    let whole = Store::over(Arc::clone(&inner), "whole");
    let published = Candidate::new(&record, 0.0).publish(&whole).await.unwrap();
    let files = publish::open(&whole, &published).await.unwrap().record.files.len() + 1;
    for deletions in 0..=files {
        // A publisher that crashed between record and number, a long time ago.
        let candidate = Candidate::new(&record, 1.0 + deletions as f32);
        let mortal = Store::over(Arc::new(Mortal::over(Arc::clone(&inner), files)), "mortal");
        assert!(candidate.publish(&mortal).await.is_err());
        let left = leftovers::leftovers(&whole, "small", i64::MAX).await.unwrap();
        assert_eq!(left.iter().map(|left| left.objects.len()).collect::<Vec<_>>(), [files]);
        let mortal = Store::over(Arc::new(Mortal::over(Arc::clone(&inner), deletions)), "mortal");
        let removed = leftovers::remove(&mortal, "small", &left[0], i64::MAX).await;
        assert_eq!(removed.is_ok(), deletions == files);
        candidate.publish(&whole).await.unwrap();
        assert_eq!(
            sound(&whole, &Address::parse("s3://none").unwrap()).await,
            deletions + 2,
            "after {deletions} deletions"
        );
    }
}

#[tokio::test]
async fn a_publisher_that_dies_at_any_step_breaks_nothing() {
    let record = record();
    let folder = tempfile::tempdir().unwrap();
    let local = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    dies_at_every_step(Arc::new(local), &Address::Local(folder.path().to_owned()), &record).await;
    let server = S3Server::start();
    dies_at_every_step(
        server.raw_bucket("releases"),
        &Address::parse("s3://releases").unwrap(),
        &record,
    )
    .await;
}

#[tokio::test]
async fn of_many_publishers_each_gets_a_number_and_the_last_is_the_latest() {
    let record = record();
    let server = S3Server::start();
    let store = server.bucket("releases");
    let candidates: Vec<Candidate> =
        (0..6).map(|number| Candidate::new(&record, number as f32)).collect();
    let published = futures::future::join_all(candidates.iter().map(|candidate| async {
        let checkpoint = Checkpoint::open(candidate.model.path()).unwrap();
        let (fence, change, none) = (Fence::open(), Change::new(), Thumbnails::new());
        let written = write::write(
            &store,
            &fence,
            &checkpoint,
            contents(&change, &none),
            candidate.record.clone(),
        );
        let (_, _, published) = written.await.unwrap();
        channels::advance(&store, &fence, &published).await.unwrap();
        published.number
    }));
    let mut numbers = published.await;
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    let wanted: Wanted = "small@latest".parse().unwrap();
    assert_eq!(lookup::find(&store, &wanted).await.unwrap().number, 6);
    assert_eq!(sound(&store, &Address::parse("s3://releases").unwrap()).await, 6);
}
