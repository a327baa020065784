//! Whether fit workers are left for a run's jobs, as known from notices and the queue. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lethe_queue::{Backlog, Event, Notice};
use lethe_shared::fault::Class;

/// A worker counts as fit for this long after its last notice, unless it has paused. Workers send a
/// notice with every heartbeat.
const HEARD: Duration = Duration::from_secs(120);
/// Time for which a refusal by a worker of another version counts.
const REFUSED: Duration = Duration::from_secs(60);
/// Time without a fit worker before the first message.
const SAY_AFTER: Duration = Duration::from_secs(15);
/// Time between two messages.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Known workers of one run.
#[derive(Debug, Default)]
pub struct Workforce {
    workers: BTreeMap<String, Heard>,
    refused: Option<(Instant, String)>,
    /// Start of the current period without a fit worker.
    stalled: Option<Instant>,
    said: Option<Instant>,
}

#[derive(Debug)]
enum Heard {
    AtWork(Instant),
    Paused(String),
}

/// The state of a run without fit workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stalled {
    /// Length of the period without a fit worker.
    pub time: Duration,
    /// The reason, if one is known; `None` if no worker is known.
    pub reason: Option<String>,
    /// Whether a message is due.
    pub say: bool,
}

/// Returns the name of a worker's process: the name without its slot.
fn process(worker: &str) -> &str {
    worker.rsplit_once('/').map_or(worker, |(process, _)| process)
}

impl Workforce {
    /// Records a notice of a worker.
    pub fn hear(&mut self, notice: &Notice, now: Instant) {
        let worker = process(&notice.worker).to_owned();
        match &notice.event {
            Event::Started | Event::Finished { .. } => {
                self.refused = None;
                self.workers.insert(worker, Heard::AtWork(now));
            }
            Event::Paused { reason } => {
                _ = self.workers.insert(worker, Heard::Paused(reason.clone()))
            }
            Event::Resumed => _ = self.workers.remove(&worker),
            Event::Failed { fault, .. } if fault.class == Class::Foreign => {
                self.refused = Some((now, format!("{worker}: {fault}")))
            }
            Event::Failed { fault, .. } if fault.is_environment() => {
                self.workers.insert(worker, Heard::Paused(fault.message.clone()));
            }
            Event::Failed { .. } | Event::DeadLettered { .. } => {}
        }
    }

    /// Records that a job has succeeded, so that some worker is fit.
    pub fn progress(&mut self) {
        (self.stalled, self.said) = (None, None);
    }

    /// Returns `None` if some worker may be able to execute the jobs on the queue, and the state of
    /// the stall otherwise.
    pub fn look(&mut self, backlog: &Backlog, now: Instant) -> Option<Stalled> {
        let at_work =
            |heard: &Heard| matches!(heard, Heard::AtWork(at) if now.duration_since(*at) < HEARD);
        let refused = self.refused.as_ref().filter(|(at, _)| now.duration_since(*at) < REFUSED);
        let somebody =
            self.workers.values().any(at_work) || (backlog.asking > 0 && refused.is_none());
        if somebody {
            self.progress();
            return None;
        }
        let since = *self.stalled.get_or_insert(now);
        let paused = self.workers.iter().filter_map(|(worker, heard)| match heard {
            Heard::Paused(reason) => Some(format!("{worker}: {reason}")),
            Heard::AtWork(_) => None,
        });
        let reasons: Vec<String> =
            refused.map(|(_, reason)| reason.clone()).into_iter().chain(paused).take(5).collect();
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        let time = now.duration_since(since);
        let say =
            time >= SAY_AFTER && self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
        if say {
            self.said = Some(now);
        }
        Some(Stalled { time, reason, say })
    }
}

#[cfg(test)]
mod tests {
    use lethe_queue::conformance::job;
    use lethe_shared::fault::Fault;

    use super::*;

    const IDLE: Backlog = Backlog { waiting: 3, in_hand: 0, asking: 0 };

    fn notice(worker: &str, event: Event) -> Notice {
        Notice { run: "r".into(), job: job("r", 1).id(), attempt: 1, worker: worker.into(), event }
    }

    #[test]
    fn a_run_without_fit_workers_is_noticed_and_said_now_and_then() {
        let (mut workforce, began) = (Workforce::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        workforce.hear(&notice("gpu-7/0", Event::Started), at(0));
        workforce
            .hear(&notice("gpu-7", Event::Paused { reason: "permission denied".into() }), at(1));
        assert!(!workforce.look(&IDLE, at(5)).unwrap().say);
        let stalled = workforce.look(&IDLE, at(25)).unwrap();
        assert_eq!(
            stalled,
            Stalled {
                time: Duration::from_secs(20),
                reason: Some("gpu-7: permission denied".into()),
                say: true
            }
        );
        assert!(!workforce.look(&IDLE, at(30)).unwrap().say);
        assert!(workforce.look(&IDLE, at(90)).unwrap().say);
        // After a resume, the next request for a job shows whether the worker is fit.
        workforce.hear(&notice("gpu-7", Event::Resumed), at(91));
        assert_eq!(workforce.look(&Backlog { asking: 1, ..IDLE }, at(95)), None);
        assert_eq!(workforce.look(&IDLE, at(100)).unwrap().time, Duration::ZERO);
    }

    #[test]
    fn one_fit_worker_is_enough_while_it_is_heard_of() {
        let (mut workforce, now) = (Workforce::default(), Instant::now());
        let failed = Event::Failed { fault: Fault::environment("no such file"), will_retry: true };
        workforce.hear(&notice("broken/0", failed), now);
        workforce.hear(&notice("sound/0", Event::Started), now);
        let busy = Backlog { waiting: 0, in_hand: 1, asking: 0 };
        assert_eq!(workforce.look(&busy, now + HEARD / 2), None);
        assert!(workforce.look(&busy, now + 2 * HEARD).is_some());
    }

    #[test]
    fn workers_of_another_version_are_no_help() {
        let (mut workforce, now) = (Workforce::default(), Instant::now());
        let refusal =
            Event::Failed { fault: Fault::foreign("run the same release"), will_retry: true };
        workforce.hear(&notice("old", refusal), now);
        let asking = Backlog { waiting: 1, in_hand: 0, asking: 4 };
        assert_eq!(
            workforce.look(&asking, now).unwrap().reason.as_deref(),
            Some("old: run the same release")
        );
        workforce.hear(&notice("new/0", Event::Started), now);
        assert_eq!(workforce.look(&asking, now), None);
    }

    #[test]
    fn a_queue_that_nobody_serves_has_no_reason() {
        let stalled = Workforce::default().look(&IDLE, Instant::now()).unwrap();
        assert_eq!((stalled.reason, stalled.say), (None, false));
    }
}
