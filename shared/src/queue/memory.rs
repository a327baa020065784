//! A queue in this process, with the semantics of a JetStream work queue.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use super::{Cause, DeadLetter, Delivery, Error, Event, Notice, Notices, Queue, Receipt};
use crate::codec;
use crate::job::JobId;

/// Notices that a slow listener may fall behind.
const NOTICES_KEPT: usize = 4096;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A delivery without a sign of life for this long is delivered again.
    pub patience: Duration,
    /// Deliveries of a job at most.
    pub max_deliveries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { patience: Duration::from_secs(60), max_deliveries: 5 }
    }
}

/// A queue in this process. Jobs and notices go through the same bytes as on a network.
#[derive(Debug, Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    state: Mutex<State>,
    /// Wakes those who wait for a job.
    changed: Notify,
    notices: broadcast::Sender<Vec<u8>>,
}

/// A job of one run.
type Key = (String, JobId);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Message>,
    /// Deliveries by their number.
    delivered: BTreeMap<u64, (Message, Instant)>,
    /// Messages that wait for their time.
    delayed: Vec<(Instant, Message)>,
    known: HashSet<Key>,
    dead: Vec<(Key, DeadLetter)>,
    next_delivery: u64,
}

#[derive(Debug, Clone)]
struct Message {
    key: Key,
    bytes: Vec<u8>,
    attempts: u32,
    last_error: String,
}

impl MemoryQueue {
    /// An empty queue.
    pub fn new(options: Options) -> Self {
        let shared = Shared { options, state: Mutex::default(), changed: Notify::new(), notices: broadcast::Sender::new(NOTICES_KEPT) };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code under this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts messages whose time has come back in line; returns when the next one's comes.
    fn wake(&self, state: &mut State, now: Instant) -> Option<Instant> {
        let expired: Vec<u64> = state.delivered.iter().filter(|(_, (_, until))| *until <= now).map(|(&number, _)| number).collect();
        for number in expired {
            if let Some((message, _)) = state.delivered.remove(&number) {
                let error = format!("no sign of life for {:?}", self.options.patience);
                self.again(state, message, error, now);
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = state.delayed.drain(..).partition(|(at, _)| *at <= now);
        state.delayed = later;
        state.waiting.extend(due.into_iter().map(|(_, message)| message));
        state.delivered.values().map(|(_, until)| *until).chain(state.delayed.iter().map(|(at, _)| *at)).min()
    }

    /// Lines a message up for another delivery at `at`, or makes it a dead letter.
    fn again(&self, state: &mut State, mut message: Message, error: String, at: Instant) {
        message.last_error = error;
        if message.attempts >= self.options.max_deliveries {
            self.bury(state, message, Cause::Circumstances);
        } else {
            state.delayed.push((at, message));
        }
    }

    fn bury(&self, state: &mut State, message: Message, cause: Cause) {
        let Ok(job) = codec::decode_job(&message.bytes) else { return };
        let (run, id) = message.key.clone();
        let error = message.last_error.clone();
        state.dead.push((message.key, DeadLetter { job, attempts: message.attempts, error: message.last_error, cause }));
        let notice = Notice { run, job: id, attempt: message.attempts, worker: "queue".into(), event: Event::Buried { error, cause } };
        if let Ok(bytes) = codec::encode_notice(&notice) {
            // Nobody listening is no fault.
            let _ = self.notices.send(bytes);
        }
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn publish(&self, job: &crate::job::Job) -> Result<(), Error> {
        let bytes = codec::encode_job(job)?;
        let key = (job.run.clone(), job.id());
        let mut state = self.shared.state();
        if state.known.insert(key.clone()) {
            state.waiting.push_back(Message { key, bytes, attempts: 0, last_error: String::new() });
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn pull(&self, wait: Duration) -> Result<Option<Delivery>, Error> {
        let deadline = Instant::now() + wait;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change goes unseen, whatever happens before the wait.
            changed.as_mut().enable();
            let next = {
                let mut state = self.shared.state();
                let now = Instant::now();
                let next = self.shared.wake(&mut state, now);
                if let Some(mut message) = state.waiting.pop_front() {
                    message.attempts += 1;
                    let job = codec::decode_job(&message.bytes)?;
                    let (attempt, patience) = (message.attempts, self.shared.options.patience);
                    let number = state.next_delivery;
                    state.next_delivery += 1;
                    state.delivered.insert(number, (message, now + patience));
                    // Those who wait have one more moment to wake at.
                    self.shared.changed.notify_waiters();
                    let receipt = Box::new(MemoryReceipt { shared: Arc::clone(&self.shared), number });
                    let is_last = attempt >= self.shared.options.max_deliveries;
                    return Ok(Some(Delivery { job, attempt, is_last, patience, receipt }));
                }
                next
            };
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let until = next.map_or(deadline, |next| next.min(deadline));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn announce(&self, notice: &Notice) -> Result<(), Error> {
        // Nobody listening is no fault.
        let _ = self.shared.notices.send(codec::encode_notice(notice)?);
        Ok(())
    }

    async fn notices(&self, run: &str) -> Result<Notices, Error> {
        let run = run.to_owned();
        let receiver = self.shared.notices.subscribe();
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(bytes) => return Some((bytes, receiver)),
                    // Notices are for people; one who listens too slowly misses some.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        let wanted = stream.filter_map(move |bytes| {
            let notice = codec::decode_notice(&bytes).ok().filter(|notice| notice.run == run);
            async move { notice }
        });
        Ok(Box::pin(wanted))
    }

    async fn purge(&self, run: &str) -> Result<(), Error> {
        let mut state = self.shared.state();
        let mut gone: Vec<Key> = Vec::new();
        state.waiting.retain(|message| {
            let keep = message.key.0 != run;
            if !keep {
                gone.push(message.key.clone());
            }
            keep
        });
        state.delayed.retain(|(_, message)| {
            let keep = message.key.0 != run;
            if !keep {
                gone.push(message.key.clone());
            }
            keep
        });
        for key in gone {
            state.known.remove(&key);
        }
        Ok(())
    }

    async fn dead_letters(&self, run: &str) -> Result<Vec<DeadLetter>, Error> {
        let mut state = self.shared.state();
        self.shared.wake(&mut state, Instant::now());
        Ok(state.dead.iter().filter(|((of, _), _)| of == run).map(|(_, letter)| letter.clone()).collect())
    }
}

#[derive(Debug)]
struct MemoryReceipt {
    shared: Arc<Shared>,
    number: u64,
}

#[async_trait]
impl Receipt for MemoryReceipt {
    async fn heartbeat(&self) -> Result<(), Error> {
        let patience = self.shared.options.patience;
        match self.shared.state().delivered.get_mut(&self.number) {
            Some((_, until)) => {
                *until = Instant::now() + patience;
                Ok(())
            }
            None => Err(Error::Unavailable("the job was given to another worker".into())),
        }
    }

    async fn done(self: Box<Self>) -> Result<(), Error> {
        // An answer that comes too late finds nothing, and does no harm.
        self.shared.state().delivered.remove(&self.number);
        Ok(())
    }

    async fn retry(self: Box<Self>, after: Duration, error: &str) -> Result<(), Error> {
        let mut state = self.shared.state();
        if let Some((message, _)) = state.delivered.remove(&self.number) {
            self.shared.again(&mut state, message, error.to_owned(), Instant::now() + after);
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn bury(self: Box<Self>, error: &str) -> Result<(), Error> {
        let mut state = self.shared.state();
        if let Some((mut message, _)) = state.delivered.remove(&self.number) {
            error.clone_into(&mut message.last_error);
            self.shared.bury(&mut state, message, Cause::Input);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::digest::Digest;
    use crate::job::{Job, ModelRef, Task};

    const SOON: Duration = Duration::from_secs(5);
    const NOW: Duration = Duration::ZERO;

    fn queue(patience_ms: u64, max_deliveries: u32) -> MemoryQueue {
        MemoryQueue::new(Options { patience: Duration::from_millis(patience_ms), max_deliveries })
    }

    fn job(run: &str, number: u32) -> Job {
        let model = ModelRef { weights: Digest::of(b"w"), settings: Digest::of(b"s"), address: Address::parse("/m").unwrap() };
        Job { run: run.into(), algorithm: number, model, task: Task::RetainReduce { parts: Vec::new() } }
    }

    #[tokio::test]
    async fn jobs_come_in_order_and_once() {
        let queue = queue(60_000, 5);
        for number in [1, 2, 1, 3, 2] {
            queue.publish(&job("r", number)).await.unwrap();
        }
        for number in [1, 2, 3] {
            let delivery = queue.pull(SOON).await.unwrap().unwrap();
            assert_eq!((delivery.job, delivery.attempt), (job("r", number), 1));
            delivery.receipt.done().await.unwrap();
        }
        queue.publish(&job("r", 1)).await.unwrap();
        assert!(queue.pull(NOW).await.unwrap().is_none());
        queue.publish(&job("another run", 1)).await.unwrap();
        assert!(queue.pull(NOW).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn silence_means_another_delivery_and_in_the_end_a_dead_letter() {
        let queue = queue(30, 2);
        queue.publish(&job("r", 1)).await.unwrap();
        let mut notices = queue.notices("r").await.unwrap();
        let lost = queue.pull(SOON).await.unwrap().unwrap();
        let again = queue.pull(SOON).await.unwrap().unwrap();
        assert_eq!((again.attempt, again.is_last), (2, true));
        // The first worker was slow, not dead: its answer does no harm.
        assert!(lost.receipt.heartbeat().await.is_err());
        lost.receipt.done().await.unwrap();
        assert!(queue.pull(Duration::from_millis(100)).await.unwrap().is_none());
        let letters = queue.dead_letters("r").await.unwrap();
        assert_eq!((letters.len(), letters[0].attempts), (1, 2));
        assert!(letters[0].error.contains("no sign of life") && letters[0].cause == Cause::Circumstances);
        assert!(matches!(notices.next().await.unwrap().event, Event::Buried { .. }));
    }

    #[tokio::test]
    async fn one_who_waits_already_gets_what_another_lets_go() {
        let queue = queue(100, 5);
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { (queue.pull(SOON).await.unwrap().unwrap(), queue.pull(SOON).await.unwrap().unwrap()) }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let began = Instant::now();
        queue.publish(&job("r", 1)).await.unwrap();
        // Both deliveries of the one job go to the same waiting worker, which drops the first without an answer.
        let (first, second) = waiting.await.unwrap();
        assert_eq!((first.attempt, second.attempt), (1, 2));
        assert!(began.elapsed() < SOON);
    }

    #[tokio::test]
    async fn a_heartbeat_keeps_a_job() {
        let queue = queue(200, 5);
        queue.publish(&job("r", 1)).await.unwrap();
        let delivery = queue.pull(SOON).await.unwrap().unwrap();
        for _ in 0..10 {
            assert!(queue.pull(Duration::from_millis(50)).await.unwrap().is_none());
            delivery.receipt.heartbeat().await.unwrap();
        }
        delivery.receipt.done().await.unwrap();
    }

    #[tokio::test]
    async fn a_retry_waits_and_a_burial_is_final() {
        let queue = queue(60_000, 3);
        queue.publish(&job("r", 1)).await.unwrap();
        let began = Instant::now();
        let delivery = queue.pull(SOON).await.unwrap().unwrap();
        delivery.receipt.retry(Duration::from_millis(80), "disk full").await.unwrap();
        let delivery = queue.pull(SOON).await.unwrap().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(80));
        delivery.receipt.bury("no such file").await.unwrap();
        assert!(queue.pull(NOW).await.unwrap().is_none());
        let letters = queue.dead_letters("r").await.unwrap();
        assert_eq!((letters[0].error.as_str(), letters[0].cause), ("no such file", Cause::Input));
        assert!(queue.dead_letters("other").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_purge_takes_back_what_nobody_has_begun() {
        let queue = queue(60_000, 3);
        for number in 0..4 {
            queue.publish(&job("r", number)).await.unwrap();
        }
        queue.publish(&job("s", 0)).await.unwrap();
        let begun = queue.pull(SOON).await.unwrap().unwrap();
        queue.purge("r").await.unwrap();
        assert_eq!(queue.pull(NOW).await.unwrap().unwrap().job.run, "s");
        assert!(queue.pull(NOW).await.unwrap().is_none());
        begun.receipt.done().await.unwrap();
        let again = job("r", 9);
        queue.publish(&again).await.unwrap();
        let delivery = queue.pull(SOON).await.unwrap().unwrap();
        delivery.receipt.retry(Duration::from_secs(60), "disk full").await.unwrap();
        queue.purge("r").await.unwrap();
        queue.publish(&again).await.unwrap();
        assert_eq!(queue.pull(NOW).await.unwrap().unwrap().job, again);
        // What was taken back can be asked for again.
        queue.publish(&job("r", 2)).await.unwrap();
        assert!(queue.pull(NOW).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn notices_reach_those_who_listen_to_the_run() {
        let queue = queue(60_000, 3);
        let mut notices = queue.notices("r").await.unwrap();
        for run in ["s", "r"] {
            let notice = Notice { run: run.into(), job: job("r", 1).id(), attempt: 1, worker: "w".into(), event: Event::Started };
            queue.announce(&notice).await.unwrap();
        }
        assert_eq!(notices.next().await.unwrap().run, "r");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_workers_get_each_job_once() {
        let queue = queue(60_000, 3);
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let mut taken = Vec::new();
                    while let Some(delivery) = queue.pull(Duration::from_millis(500)).await.unwrap() {
                        taken.push(delivery.job.algorithm);
                        delivery.receipt.done().await.unwrap();
                    }
                    taken
                })
            })
            .collect();
        for number in 0..200 {
            queue.publish(&job("r", number)).await.unwrap();
        }
        let mut taken: Vec<u32> = Vec::new();
        for worker in workers {
            taken.extend(worker.await.unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, (0..200).collect::<Vec<_>>());
    }
}
