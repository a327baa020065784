//! The conformance suite: what every queue must do. It runs against the in-memory queue and real
//! servers.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::fault::{Class, Decision, Fault, Limits, Origin, StoredObject};
use lethe_shared::job::{Job, TypedJob};
use lethe_shared::message::{Event, Notice};
use lethe_shared::reference::{ArtifactRef, Locations, ModelSpec};
use lethe_shared::task::{AnyTask, Protect};
use lethe_shared::vocabulary::Precision;

use crate::queue::{Delivery, Queue};
use crate::trace::traceparent;

/// Timeout for everything that must happen.
pub const SOON: Duration = Duration::from_secs(120);
const NOW: Duration = Duration::ZERO;
/// How long to wait before concluding that nothing happens.
const A_WHILE: Duration = Duration::from_millis(300);

/// Makes a job that is distinguished by a number.
///
/// # Panics
/// Never.
pub fn job(run: &str, number: u32) -> Job {
    let model = Address::parse("/m").expect("an absolute path");
    let spec = ModelSpec {
        weights: Digest::of(b"w"),
        settings: Digest::of(b"s"),
        precision: Precision::Float32,
    };
    let texts = ArtifactRef { digest: Digest::of(b"texts"), bytes: u64::from(number) };
    let task = Protect { texts, layers: Vec::new(), inverses: Vec::new() };
    TypedJob::new(run, None, spec, task, Locations { model, files: BTreeMap::new() }).job().clone()
}

/// Returns the number of such a job.
///
/// # Panics
/// When it is another job.
pub fn number(job: &Job) -> u32 {
    match &job.task {
        AnyTask::Protect(spec) => u32::try_from(spec.texts.bytes).expect("a number"),
        other => panic!("{other:?}"),
    }
}

/// The machine of workers here.
const MACHINE: &str = "machine";

/// Runs every check; `make` gives an empty queue with these limits each time.
///
/// # Panics
/// When the queue does not conform.
pub async fn check<F, Made>(make: F)
where
    F: Fn(Limits) -> Made,
    Made: Future<Output = Arc<dyn Queue>>,
{
    let patient = Limits {
        ack_wait: Duration::from_secs(30),
        failures: 3,
        missed_heartbeats: 10,
        deliveries: 1000,
    };
    let hasty = |ms| Limits { ack_wait: Duration::from_millis(ms), ..patient };
    order(&*make(patient).await).await;
    missed_heartbeats(&*make(Limits { missed_heartbeats: 2, ..hasty(1000) }).await).await;
    exhaustion(&*make(Limits { deliveries: 2, ..hasty(1000) }).await).await;
    heartbeats(&*make(hasty(1500)).await).await;
    failures(&*make(patient).await).await;
    dead_letters(&*make(patient).await).await;
    releasing(&*make(Limits { missed_heartbeats: 1, ..patient }).await).await;
    agreement(&*make(patient).await).await;
    purging(&*make(patient).await).await;
    notices(&*make(patient).await).await;
    dropped_pulls(make(patient).await).await;
    late_answers(&*make(hasty(1000)).await).await;
    sharing(make(patient).await).await;
}

async fn take(queue: &dyn Queue) -> Delivery {
    queue.pull(SOON).await.expect("pull").expect("a job")
}

async fn nothing(queue: &dyn Queue) {
    let found = queue.pull(A_WHILE).await.expect("pull");
    assert!(found.is_none(), "{found:?}");
}

async fn order(queue: &dyn Queue) {
    assert!(queue.pull(NOW).await.expect("pull").is_none());
    for number in [1, 2, 1, 3, 2] {
        queue.publish(&job("order", number)).await.expect("publish");
    }
    for number in [1, 2, 3] {
        let delivery = take(queue).await;
        assert_eq!((&delivery.job, delivery.attempt), (&job("order", number), 1));
        assert_eq!(delivery.traceparent, traceparent("order", delivery.job.id()));
        // A delivered job is not added again.
        queue.publish(&delivery.job).await.expect("publish");
        assert_eq!(queue.backlog().await.expect("ask").in_hand, 1);
        delivery.done().await.expect("answer");
    }
    nothing(queue).await;
    // A completed job can be published again at once.
    queue.publish(&job("order", 1)).await.expect("publish");
    queue.publish(&job("another run", 1)).await.expect("publish");
    for run in ["order", "another run"] {
        let delivery = take(queue).await;
        assert_eq!(delivery.job.run, run);
        delivery.done().await.expect("answer");
    }
}

async fn missed_heartbeats(queue: &dyn Queue) {
    queue.publish(&job("silence", 1)).await.expect("publish");
    let mut notices = queue.notices("silence").await.expect("listen");
    let lost = take(queue).await;
    let again = take(queue).await;
    assert_eq!((lost.attempt, again.attempt), (1, 2));
    // The second delivery is the last one. The next pull makes the dead letter.
    let letter = loop {
        assert!(queue.pull(A_WHILE).await.expect("pull").is_none());
        if let Some(letter) = queue.dead_letters("silence").await.expect("ask").pop() {
            break letter;
        }
    };
    assert_eq!(
        (&letter.job, letter.attempts, letter.fault.class),
        (&job("silence", 1), 2, Class::Transient)
    );
    assert!(letter.fault.message.contains("no heartbeat"), "{}", letter.fault);
    let heard =
        tokio::time::timeout(SOON, notices.next()).await.expect("a notice").expect("a notice");
    assert!(matches!(
        heard.event,
        Event::DeadLettered { fault: Fault { class: Class::Transient, .. } }
    ));
    nothing(queue).await;
}

async fn exhaustion(queue: &dyn Queue) {
    queue.publish(&job("exhaustion", 1)).await.expect("publish");
    for _ in 0..2 {
        drop(take(queue).await);
    }
    let deadline = Instant::now() + SOON;
    while queue.dead_letters("exhaustion").await.expect("ask").is_empty() {
        assert!(Instant::now() < deadline, "a job that nobody can finish becomes a dead letter");
        nothing(queue).await;
    }
    queue.drop_dead_letter("exhaustion", job("exhaustion", 1).id()).await.expect("drop");
    assert!(queue.dead_letters("exhaustion").await.expect("ask").is_empty());
    queue.publish(&job("exhaustion", 1)).await.expect("publish");
    let fresh = take(queue).await;
    assert_eq!((fresh.attempt, fresh.history.failures), (1, 0));
    fresh.done().await.expect("answer");
}

async fn heartbeats(queue: &dyn Queue) {
    queue.publish(&job("heartbeats", 1)).await.expect("publish");
    let delivery = take(queue).await;
    let began = Instant::now();
    while began.elapsed() < 2 * delivery.limits.ack_wait {
        nothing(queue).await;
        delivery.heartbeat().await.expect("heartbeat");
    }
    delivery.done().await.expect("answer");
    nothing(queue).await;
}

async fn failures(queue: &dyn Queue) {
    queue.publish(&job("failures", 1)).await.expect("publish");
    for attempt in 1..=3 {
        let began = Instant::now();
        let delivery = take(queue).await;
        assert_eq!((delivery.attempt, delivery.history.failures), (attempt, attempt - 1));
        assert!(attempt == 1 || began.elapsed() >= Duration::from_millis(300), "a retry waits");
        let fault = Fault::transient(format!("the store answers 503\nat attempt {attempt}"));
        let decision = delivery.failed(&fault, MACHINE).await.expect("answer");
        assert_eq!(matches!(decision, Decision::DeadLetter(_)), attempt == 3);
    }
    nothing(queue).await;
    let letters = queue.dead_letters("failures").await.expect("ask");
    assert_eq!(
        (letters.len(), letters[0].attempts, letters[0].fault.class),
        (1, 3, Class::Transient)
    );
    let message = &letters[0].fault.message;
    assert!(message.contains("answers 503") && message.contains("at attempt 3"), "{message}");
}

async fn dead_letters(queue: &dyn Queue) {
    queue.publish(&job("burial", 1)).await.expect("publish");
    let mut heard = queue.notices("burial").await.expect("listen");
    let fault = Fault::input("Bild »ä« ist kaputt");
    take(queue).await.failed(&fault, MACHINE).await.expect("answer");
    nothing(queue).await;
    let letters = queue.dead_letters("burial").await.expect("ask");
    assert_eq!((&letters[0].fault, letters[0].attempts), (&fault, 1));
    let notice =
        tokio::time::timeout(SOON, heard.next()).await.expect("a notice").expect("a notice");
    assert_eq!(
        (notice.job, notice.event),
        (job("burial", 1).id(), Event::DeadLettered { fault: fault.clone() })
    );
    assert!(queue.dead_letters("buria").await.expect("ask").is_empty());
    // Names of runs may contain characters that have a meaning in subjects.
    queue.publish(&job("burial.v2_b-c", 1)).await.expect("publish");
    take(queue).await.failed(&fault, MACHINE).await.expect("answer");
    assert_eq!(queue.dead_letters("burial.v2_b-c").await.expect("ask").len(), 1);
    assert_eq!(queue.dead_letters("burial").await.expect("ask").len(), 1);
}

/// Releases never make a dead letter, however many: of a worker that stops, of one that lacks
/// something, of another version's.
async fn releasing(queue: &dyn Queue) {
    queue.publish(&job("releasing", 1)).await.expect("publish");
    for attempt in 1..=6 {
        let delivery = take(queue).await;
        assert_eq!((delivery.attempt, delivery.history.released), (attempt, attempt - 1));
        delivery.release().await.expect("answer");
    }
    let object = StoredObject::Artifact(Digest::of(b"x"));
    for fault in
        [Fault::environment("permission denied"), Fault::new(Class::Corrupt(object), "damaged")]
    {
        let delivery = take(queue).await;
        assert!(matches!(
            delivery.failed(&fault, MACHINE).await.expect("answer"),
            Decision::Redeliver(_)
        ));
        nothing(queue).await;
    }
    let delivery = take(queue).await;
    assert_eq!((delivery.history.failures, delivery.history.released), (0, 8));
    assert_eq!(delivery.history.last.as_ref().and_then(Fault::corrupt_object), Some(object));
    delivery.done().await.expect("answer");
    assert!(queue.dead_letters("releasing").await.expect("ask").is_empty());
}

/// A failed computation on one machine proves nothing about the job; the same fault on two machines
/// does.
async fn agreement(queue: &dyn Queue) {
    queue.publish(&job("agreement", 1)).await.expect("publish");
    let fault = Fault::computation("a fault in lethe-worker: index out of bounds");
    let decision = take(queue).await.failed(&fault, "a").await.expect("answer");
    assert!(matches!(decision, Decision::Redeliver(_)));
    let decision = take(queue).await.failed(&fault, "b").await.expect("answer");
    assert!(matches!(decision, Decision::DeadLetter(Fault { class: Class::Input, .. })));
    // With one machine, the job becomes a dead letter after the failure limit, and its class stays
    // `computation`.
    queue.publish(&job("agreement", 2)).await.expect("publish");
    for _ in 0..3 {
        take(queue).await.failed(&fault, "a").await.expect("answer");
    }
    nothing(queue).await;
    let letters = queue.dead_letters("agreement").await.expect("ask");
    let class = |number| {
        letters
            .iter()
            .find(|letter| letter.job == job("agreement", number))
            .map(|letter| letter.fault.class)
    };
    assert_eq!(
        (class(1), class(2)),
        (Some(Class::Input), Some(Class::Environment(Origin::Computation)))
    );
}

async fn purging(queue: &dyn Queue) {
    for number in 0..4 {
        queue.publish(&job("purging", number)).await.expect("publish");
    }
    queue.publish(&job("purging.2", 0)).await.expect("publish");
    let begun = take(queue).await;
    queue.purge("purging").await.expect("purge");
    let other = take(queue).await;
    assert_eq!(other.job.run, "purging.2");
    other.done().await.expect("answer");
    nothing(queue).await;
    // Delivered jobs can be completed.
    begun.done().await.expect("answer");
    queue.publish(&job("purging", 9)).await.expect("publish");
    take(queue).await.failed(&Fault::foreign("another version"), MACHINE).await.expect("answer");
    queue.purge("purging").await.expect("purge");
    // Removed jobs can be published again.
    for number in [9, 2] {
        queue.publish(&job("purging", number)).await.expect("publish");
        let delivery = take(queue).await;
        assert_eq!(delivery.job, job("purging", number));
        delivery.done().await.expect("answer");
    }
}

async fn notices(queue: &dyn Queue) {
    let mut heard = queue.notices("notices").await.expect("listen");
    for run in ["notices.2", "notices"] {
        let notice = Notice {
            run: run.into(),
            job: job("r", 1).id(),
            attempt: 1,
            worker: "w".into(),
            event: Event::Started,
        };
        queue.announce(&notice).await.expect("announce");
    }
    let notice =
        tokio::time::timeout(SOON, heard.next()).await.expect("a notice").expect("a notice");
    assert_eq!(notice.run, "notices");
}

/// A cancelled call must not keep a job: others get it long before the ack wait ends.
async fn dropped_pulls(queue: Arc<dyn Queue>) {
    for number in 0..10 {
        let pulling = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.pull(SOON).await }
        });
        tokio::time::sleep(Duration::from_millis(10 * number)).await;
        queue.publish(&job("dropped", number as u32)).await.expect("publish");
        pulling.abort();
        let delivery = match pulling.await {
            Ok(taken) => taken.expect("pull").expect("a job"),
            Err(_) => take(&*queue).await,
        };
        assert_eq!(delivery.job, job("dropped", number as u32));
        delivery.done().await.expect("answer");
    }
    nothing(&*queue).await;
}

async fn late_answers(queue: &dyn Queue) {
    queue.publish(&job("late", 1)).await.expect("publish");
    let late = take(queue).await;
    let second = take(queue).await;
    assert_eq!(second.job, late.job);
    // The first worker was slow, not dead. Its late answer must be harmless.
    late.done().await.expect("a late answer is harmless");
    second.done().await.expect("answer");
    nothing(queue).await;
}

async fn sharing(queue: Arc<dyn Queue>) {
    const JOBS: u32 = 100;
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while let Some(delivery) = queue.pull(Duration::from_secs(2)).await.expect("pull") {
                    taken.push(number(&delivery.job));
                    delivery.done().await.expect("answer");
                }
                taken
            })
        })
        .collect();
    for number in 0..JOBS {
        queue.publish(&job("sharing", number)).await.expect("publish");
    }
    let mut taken: BTreeMap<u32, u32> = BTreeMap::new();
    for worker in workers {
        for number in worker.await.expect("a worker") {
            *taken.entry(number).or_default() += 1;
        }
    }
    assert!(
        taken.len() == JOBS as usize && taken.values().all(|&times| times == 1),
        "each job once: {taken:?}"
    );
}
