//! An in-memory queue with the semantics of a JetStream work queue.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use lethe_shared::codec;
use lethe_shared::fault::{Fault, History, Limits};
use lethe_shared::message::{Backlog, DeadLetter, Event, Notice};
use lethe_shared::reference::JobId;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::error::Error;
use crate::queue::{Delivery, Notices, Queue, Receipt};
use crate::trace::traceparent;

/// Notices that a slow subscriber may lag behind.
const NOTICES_KEPT: usize = 4096;

/// An in-memory queue; clones share it. Jobs and notices are encoded as on a network.
#[derive(Debug, Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    /// Wakes calls that wait for a job.
    changed: Notify,
    notices: broadcast::Sender<Vec<u8>>,
}

/// A job of one run.
type Key = (String, JobId);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Message>,
    /// Delivered messages by number of the delivery, with the end of their ack wait.
    delivered: BTreeMap<u64, (Message, Instant)>,
    /// Messages that wait for their redelivery.
    delayed: Vec<(Instant, Message)>,
    known: HashSet<Key>,
    dead: Vec<(Key, DeadLetter)>,
    next_delivery: u64,
    /// Calls that wait for a job.
    asking: usize,
}

#[derive(Debug, Clone)]
struct Message {
    key: Key,
    bytes: Vec<u8>,
    attempts: u32,
    missed_heartbeats: u32,
    history: History,
}

impl MemoryQueue {
    /// Creates an empty queue.
    pub fn new(limits: Limits) -> Self {
        let shared = Shared {
            limits,
            state: Mutex::default(),
            changed: Notify::new(),
            notices: broadcast::Sender::new(NOTICES_KEPT),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock and a change is incomplete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes messages that are due wait for delivery again; returns when the next one is due.
    fn wake(&self, state: &mut State, now: Instant) -> Option<Instant> {
        let expired: Vec<u64> = state
            .delivered
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(&number, _)| number)
            .collect();
        for number in expired {
            if let Some((mut message, _)) = state.delivered.remove(&number) {
                message.missed_heartbeats += 1;
                message.history.last =
                    Some(Fault::transient(format!("no heartbeat for {:?}", self.limits.ack_wait)));
                self.again(state, message, now);
            }
        }
        let (due, later): (Vec<_>, Vec<_>) =
            state.delayed.drain(..).partition(|(at, _)| *at <= now);
        state.delayed = later;
        state.waiting.extend(due.into_iter().map(|(_, message)| message));
        state
            .delivered
            .values()
            .map(|(_, until)| *until)
            .chain(state.delayed.iter().map(|(at, _)| *at))
            .min()
    }

    /// Schedules a message for redelivery at `at`, or makes a dead letter of it.
    fn again(&self, state: &mut State, message: Message, at: Instant) {
        let Limits { missed_heartbeats, deliveries, .. } = self.limits;
        if message.missed_heartbeats >= missed_heartbeats || message.attempts >= deliveries {
            let never =
                || Fault::transient(format!("not finished after {} deliveries", message.attempts));
            let fault = message.history.last.clone().unwrap_or_else(never);
            self.dead_letter(state, message, fault);
        } else {
            state.delayed.push((at, message));
        }
    }

    fn dead_letter(&self, state: &mut State, message: Message, fault: Fault) {
        state.known.remove(&message.key);
        let Ok(job) = codec::decode_job(&message.bytes) else { return };
        let (run, id) = message.key.clone();
        state.dead.push((
            message.key,
            DeadLetter { job, attempts: message.attempts, fault: fault.clone() },
        ));
        let event = Event::DeadLettered { fault };
        let notice =
            Notice { run, job: id, attempt: message.attempts, worker: "queue".into(), event };
        if let Ok(bytes) = codec::encode_notice(&notice) {
            // There may be no subscriber.
            let _ = self.notices.send(bytes);
        }
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn publish(&self, job: &lethe_shared::job::Job) -> Result<(), Error> {
        let bytes = codec::encode_job(job)?;
        let key = (job.run.clone(), job.id());
        let mut state = self.shared.state();
        if state.known.insert(key.clone()) {
            state.waiting.push_back(Message {
                key,
                bytes,
                attempts: 0,
                missed_heartbeats: 0,
                history: History::default(),
            });
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn pull(&self, wait: Duration) -> Result<Option<Delivery>, Error> {
        let deadline = Instant::now() + wait;
        let _asking = Asking::new(&self.shared);
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Registers before the state is checked, so that no change is missed.
            changed.as_mut().enable();
            let next = {
                let mut state = self.shared.state();
                let now = Instant::now();
                let next = self.shared.wake(&mut state, now);
                if let Some(mut message) = state.waiting.pop_front() {
                    message.attempts += 1;
                    let job = codec::decode_job(&message.bytes)?;
                    let limits = self.shared.limits;
                    let (attempt, history) = (message.attempts, message.history.clone());
                    let number = state.next_delivery;
                    state.next_delivery += 1;
                    state.delivered.insert(number, (message, now + limits.ack_wait));
                    // Waiting calls have an earlier time to wake up at.
                    self.shared.changed.notify_waiters();
                    let traceparent = traceparent(&job.run, job.id());
                    let receipt =
                        Box::new(MemoryReceipt { shared: Arc::clone(&self.shared), number });
                    return Ok(Some(Delivery {
                        job,
                        attempt,
                        history,
                        limits,
                        traceparent,
                        receipt,
                    }));
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
        // There may be no subscriber.
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
                    // Notices are best effort: a slow subscriber misses some.
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
        Ok(state
            .dead
            .iter()
            .filter(|((of, _), _)| of == run)
            .map(|(_, letter)| letter.clone())
            .collect())
    }

    async fn drop_dead_letter(&self, run: &str, job: JobId) -> Result<(), Error> {
        self.shared.state().dead.retain(|((of, id), _)| of != run || *id != job);
        Ok(())
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let state = self.shared.state();
        Ok(Backlog {
            waiting: state.waiting.len() + state.delayed.len(),
            in_hand: state.delivered.len(),
            asking: state.asking,
        })
    }
}

/// Counts a call that waits for a job until it is dropped.
struct Asking<'a>(&'a Shared);

impl<'a> Asking<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state().asking += 1;
        Self(shared)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.state().asking -= 1;
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
        let ack_wait = self.shared.limits.ack_wait;
        match self.shared.state().delivered.get_mut(&self.number) {
            Some((_, until)) => {
                *until = Instant::now() + ack_wait;
                Ok(())
            }
            None => Err(Error::Unavailable("the job was delivered to another worker".into())),
        }
    }

    async fn ack(self: Box<Self>) -> Result<(), Error> {
        // After the ack wait there is nothing to remove: a late answer is harmless.
        let mut state = self.shared.state();
        if let Some((message, _)) = state.delivered.remove(&self.number) {
            state.known.remove(&message.key);
        }
        Ok(())
    }

    async fn redeliver(self: Box<Self>, after: Duration, history: &History) -> Result<(), Error> {
        let mut state = self.shared.state();
        if let Some((mut message, _)) = state.delivered.remove(&self.number) {
            message.history = history.clone();
            self.shared.again(&mut state, message, Instant::now() + after);
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn dead_letter(self: Box<Self>, fault: &Fault) -> Result<(), Error> {
        let mut state = self.shared.state();
        if let Some((message, _)) = state.delivered.remove(&self.number) {
            self.shared.dead_letter(&mut state, message, fault.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, SOON, job};

    #[tokio::test]
    async fn memory_conforms() {
        conformance::check(
            |limits| async move { Arc::new(MemoryQueue::new(limits)) as Arc<dyn Queue> },
        )
        .await;
    }

    #[tokio::test]
    async fn one_who_waits_already_gets_what_another_lets_go() {
        let queue =
            MemoryQueue::new(Limits { ack_wait: Duration::from_millis(100), ..Limits::default() });
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move {
                (queue.pull(SOON).await.unwrap().unwrap(), queue.pull(SOON).await.unwrap().unwrap())
            }
        });
        while queue.backlog().await.unwrap().asking == 0 {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        queue.publish(&job("r", 1)).await.unwrap();
        // Both deliveries of the one job go to the same waiting worker, which drops the first
        // without an answer.
        let (first, second) = waiting.await.unwrap();
        assert_eq!((first.attempt, second.attempt), (1, 2));
        assert!(began.elapsed() < SOON);
    }
}
