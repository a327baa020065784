//! What every queue must do, whatever carries it; run against memory and real servers.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::{Cause, Delivery, Event, Limits, Notice, Queue, traceparent};
use crate::address::Address;
use crate::digest::Digest;
use crate::job::{Job, ModelRef, Task};
use crate::manifest::Precision;

/// Long enough for anything that happens at all.
pub const SOON: Duration = Duration::from_secs(10);
const NOW: Duration = Duration::ZERO;
/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);

/// A job that differs from others by a number.
///
/// # Panics
/// Never.
pub fn job(run: &str, number: u32) -> Job {
    let address = Address::parse("/m").expect("an absolute path");
    let model = ModelRef { weights: Digest::of(b"w"), settings: Digest::of(b"s"), precision: Precision::Float32, address };
    Job { run: run.into(), algorithm: number, model, task: Task::RetainReduce { parts: Vec::new() } }
}

/// Runs every check; `make` gives an empty queue with these limits each time.
///
/// # Panics
/// When the queue does not conform.
pub async fn check<F, Made>(make: F)
where
    F: Fn(Limits) -> Made,
    Made: Future<Output = Arc<dyn Queue>>,
{
    let patient = Limits { patience: Duration::from_secs(30), failures: 3, silences: 10, deliveries: 1000 };
    let hasty = |ms| Limits { patience: Duration::from_millis(ms), ..patient };
    order(&*make(patient).await).await;
    silence(&*make(Limits { silences: 2, ..hasty(1000) }).await).await;
    exhaustion(&*make(Limits { deliveries: 2, ..hasty(1000) }).await).await;
    heartbeats(&*make(hasty(1500)).await).await;
    failures(&*make(patient).await).await;
    burial(&*make(patient).await).await;
    handing_back(&*make(Limits { silences: 1, ..patient }).await).await;
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
        assert_eq!((&delivery.job, delivery.attempt, delivery.is_last), (&job("order", number), 1, false));
        assert_eq!(delivery.traceparent, traceparent("order", delivery.job.id()));
        // A job in hand is not added again.
        queue.publish(&delivery.job).await.expect("publish");
        assert_eq!(queue.backlog().await.expect("ask").in_hand, 1);
        delivery.receipt.done().await.expect("answer");
    }
    nothing(queue).await;
    // One that is done can be asked for again, at once.
    queue.publish(&job("order", 1)).await.expect("publish");
    queue.publish(&job("another run", 1)).await.expect("publish");
    for run in ["order", "another run"] {
        let delivery = take(queue).await;
        assert_eq!(delivery.job.run, run);
        delivery.receipt.done().await.expect("answer");
    }
}

async fn silence(queue: &dyn Queue) {
    queue.publish(&job("silence", 1)).await.expect("publish");
    let mut notices = queue.notices("silence").await.expect("listen");
    let lost = take(queue).await;
    let again = take(queue).await;
    assert_eq!((lost.attempt, again.attempt), (1, 2));
    // The second silence is the last. Who asks next finds out.
    let letter = loop {
        assert!(queue.pull(A_WHILE).await.expect("pull").is_none());
        if let Some(letter) = queue.dead_letters("silence").await.expect("ask").pop() {
            break letter;
        }
    };
    assert_eq!((&letter.job, letter.attempts, letter.cause), (&job("silence", 1), 2, Cause::Circumstances));
    assert!(letter.error.contains("sign of life"), "{}", letter.error);
    let buried = tokio::time::timeout(SOON, notices.next()).await.expect("a notice").expect("a notice");
    assert!(matches!(buried.event, Event::Buried { cause: Cause::Circumstances, .. }));
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
    assert_eq!((fresh.attempt, fresh.is_last), (1, false));
    fresh.receipt.done().await.expect("answer");
}

async fn heartbeats(queue: &dyn Queue) {
    queue.publish(&job("heartbeats", 1)).await.expect("publish");
    let delivery = take(queue).await;
    let began = Instant::now();
    while began.elapsed() < 2 * delivery.patience {
        nothing(queue).await;
        delivery.receipt.heartbeat().await.expect("heartbeat");
    }
    delivery.receipt.done().await.expect("answer");
    nothing(queue).await;
}

async fn failures(queue: &dyn Queue) {
    queue.publish(&job("failures", 1)).await.expect("publish");
    for attempt in 1..=3 {
        let began = Instant::now();
        let delivery = take(queue).await;
        assert_eq!((delivery.attempt, delivery.is_last), (attempt, attempt == 3));
        assert!(attempt == 1 || began.elapsed() >= Duration::from_millis(350), "a retry waits");
        delivery.receipt.retry(Duration::from_millis(400), &format!("disk full\nat attempt {attempt}")).await.expect("answer");
    }
    nothing(queue).await;
    let letters = queue.dead_letters("failures").await.expect("ask");
    assert_eq!((letters.len(), letters[0].attempts, letters[0].cause), (1, 3, Cause::Circumstances));
    assert!(letters[0].error.contains("disk full") && letters[0].error.contains("at attempt 3"), "{}", letters[0].error);
}

async fn burial(queue: &dyn Queue) {
    queue.publish(&job("burial", 1)).await.expect("publish");
    let mut heard = queue.notices("burial").await.expect("listen");
    let error = "Bild »ä« ist kaputt";
    take(queue).await.receipt.bury(error).await.expect("answer");
    nothing(queue).await;
    let letters = queue.dead_letters("burial").await.expect("ask");
    assert_eq!((letters[0].error.as_str(), letters[0].attempts, letters[0].cause), (error, 1, Cause::Input));
    let buried = tokio::time::timeout(SOON, heard.next()).await.expect("a notice").expect("a notice");
    assert_eq!((buried.job, buried.event), (job("burial", 1).id(), Event::Buried { error: error.into(), cause: Cause::Input }));
    assert!(queue.dead_letters("buria").await.expect("ask").is_empty());
    // Names of runs may hold what subjects give a meaning to.
    queue.publish(&job("burial.v2_b-c", 1)).await.expect("publish");
    take(queue).await.receipt.bury(error).await.expect("answer");
    assert_eq!(queue.dead_letters("burial.v2_b-c").await.expect("ask").len(), 1);
    assert_eq!(queue.dead_letters("burial").await.expect("ask").len(), 1);
}

async fn handing_back(queue: &dyn Queue) {
    queue.publish(&job("handing back", 1)).await.expect("publish");
    // Oftener than it may fail or be met by silence.
    for attempt in 1..=6 {
        let delivery = take(queue).await;
        assert_eq!((delivery.attempt, delivery.is_last), (attempt, false));
        delivery.receipt.hand_back(NOW).await.expect("answer");
    }
    let delivery = take(queue).await;
    delivery.receipt.hand_back(Duration::from_millis(600)).await.expect("answer");
    nothing(queue).await;
    take(queue).await.receipt.done().await.expect("answer");
    assert!(queue.dead_letters("handing back").await.expect("ask").is_empty());
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
    other.receipt.done().await.expect("answer");
    nothing(queue).await;
    // What was begun may end.
    begun.receipt.done().await.expect("answer");
    queue.publish(&job("purging", 9)).await.expect("publish");
    take(queue).await.receipt.retry(Duration::from_secs(60), "disk full").await.expect("answer");
    queue.purge("purging").await.expect("purge");
    // What was taken back can be asked for again.
    for number in [9, 2] {
        queue.publish(&job("purging", number)).await.expect("publish");
        let delivery = take(queue).await;
        assert_eq!(delivery.job, job("purging", number));
        delivery.receipt.done().await.expect("answer");
    }
}

async fn notices(queue: &dyn Queue) {
    let mut heard = queue.notices("notices").await.expect("listen");
    for run in ["notices.2", "notices"] {
        let notice = Notice { run: run.into(), job: job("r", 1).id(), attempt: 1, worker: "w".into(), event: Event::Started };
        queue.announce(&notice).await.expect("announce");
    }
    let notice = tokio::time::timeout(SOON, heard.next()).await.expect("a notice").expect("a notice");
    assert_eq!(notice.run, "notices");
}

/// A call that is given up must not keep a job: others get it long before patience ends.
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
        delivery.receipt.done().await.expect("answer");
    }
    nothing(&*queue).await;
}

async fn late_answers(queue: &dyn Queue) {
    queue.publish(&job("late", 1)).await.expect("publish");
    let late = take(queue).await;
    let second = take(queue).await;
    assert_eq!(second.job, late.job);
    // The first worker was slow, not dead. Whatever its answer does to the queue, it does no harm.
    late.receipt.done().await.expect("a late answer is harmless");
    second.receipt.done().await.expect("answer");
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
                    taken.push(delivery.job.algorithm);
                    delivery.receipt.done().await.expect("answer");
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
    assert!(taken.len() == JOBS as usize && taken.values().all(|&times| times == 1), "each job once: {taken:?}");
}
