//! Why an attempt at a job failed, as data: from the engine through notices and dead letters to the
//! record.
//!
//! Nothing is ever parsed out of a message. The [`Class`] determines the consequence, and only
//! [`decide`] turns a fault into an answer to the queue:
//!
//! | class | means | what follows |
//! |---|---|---|
//! | [`Input`](Class::Input) | proved: the bytes have the digest that the plan recorded and are unusable | a dead letter |
//! | [`Environment`](Class::Environment), by its [`Origin`]: `Surroundings` | access, credentials, disk, memory, and everything else | the job is released for redelivery and not counted; the worker pauses until its self-check passes |
//! | [`Computation`](Origin::Computation) | an error of libtorch, a panic | the same |
//! | [`Device`](Origin::Device) | a GPU that no longer answers | the job is released, and the worker's process exits |
//! | [`Transient`](Class::Transient) | store or queue cannot be reached at the moment | redelivery after a back-off, counted |
//! | [`Foreign`](Class::Foreign) | the job belongs to another version or requires another arithmetic class | released for other workers, not counted |
//! | [`Corrupt`](Class::Corrupt) | a stored object is not what its name says | released; the coordinator quarantines the object and runs the job that produced it again |
//!
//! A computation that fails in the same way on two machines is a fault of the input as well: the
//! second machine is the proof.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::printable::printable_excerpt;
use crate::reference::JobId;
use crate::retry::{GiveUp, RetryPolicy};

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The class; it determines the consequence.
    pub class: Class,
    /// What happened, where, and what to do about it; one or a few sentences.
    pub message: String,
}

/// The class of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The job's input is unusable, and this is proved. Another attempt would end in the same way.
    Input,
    /// The environment of the job. Another worker, or this one after a repair, can execute the job.
    Environment(Origin),
    /// The store or the queue cannot be reached at the moment.
    Transient,
    /// The job is of a version or kind that this program does not know.
    Foreign,
    /// An object in the store is damaged or gone.
    Corrupt(StoredObject),
}

/// Where a fault of the environment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Files, credentials, disk, memory.
    Surroundings,
    /// libtorch or Lethe itself. Only a second machine tells whether the worker or the job is at
    /// fault.
    Computation,
    /// A device that stops working until the process is restarted.
    Device,
}

/// An object in the store whose name determines its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredObject {
    /// Bytes under their digest.
    Artifact(Digest),
    /// The outcome of a job.
    Outcome(JobId),
}

impl fmt::Display for StoredObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact(digest) => write!(f, "artifact {digest}"),
            Self::Outcome(job) => write!(f, "outcome {job}"),
        }
    }
}

impl Class {
    /// Its name in logs, metrics and dead letters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Environment(Origin::Surroundings) => "environment",
            Self::Environment(Origin::Computation) => "computation",
            Self::Environment(Origin::Device) => "device",
            Self::Transient => "transient",
            Self::Foreign => "foreign",
            Self::Corrupt(_) => "corrupt",
        }
    }
}

impl Fault {
    /// Creates a fault; a long message is truncated, and its control and invisible
    /// characters are escaped.
    pub fn new(class: Class, message: impl ToString) -> Self {
        Self { class, message: printable_excerpt(&message.to_string()) }
    }

    /// The input is unusable, and this is proved.
    pub fn input(message: impl ToString) -> Self {
        Self::new(Class::Input, message)
    }

    /// Files, credentials, disk or memory.
    pub fn environment(message: impl ToString) -> Self {
        Self::new(Class::Environment(Origin::Surroundings), message)
    }

    /// libtorch or Lethe itself.
    pub fn computation(message: impl ToString) -> Self {
        Self::new(Class::Environment(Origin::Computation), message)
    }

    /// Store or queue, for the moment.
    pub fn transient(message: impl ToString) -> Self {
        Self::new(Class::Transient, message)
    }

    /// The job is of another version.
    pub fn foreign(message: impl ToString) -> Self {
        Self::new(Class::Foreign, message)
    }

    /// Returns whether the fault lies with the worker and not with the job, as far as one machine
    /// can tell.
    pub fn is_environment(&self) -> bool {
        matches!(self.class, Class::Environment(_))
    }

    /// Returns the stored object that is damaged or missing.
    pub fn corrupt_object(&self) -> Option<StoredObject> {
        match self.class {
            Class::Corrupt(object) => Some(object),
            _ => None,
        }
    }

    /// Two faults of computations are the same when the first lines of their messages are equal.
    fn fingerprint(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }
}

/// How the earlier deliveries of a job ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Attempts that failed and count.
    pub failures: u32,
    /// Deliveries that were released and do not count.
    pub released: u32,
    /// Deliveries that met a corrupt object; they are among the released ones.
    pub corrupt: u32,
    /// Deliveries to workers that the job is not for; they are among the released ones.
    pub foreign: u32,
    /// Faults of computations, for comparison between machines.
    pub computations: Vec<FailedComputation>,
    /// The last fault.
    pub last: Option<Fault>,
}

/// A computation that failed on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedComputation {
    /// The machine.
    pub machine: String,
    /// The first line of its message.
    pub fault: String,
    /// How often.
    pub times: u32,
}

/// Limits after which a job becomes a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time after which a delivery without a heartbeat is delivered again (JetStream's ack wait).
    pub ack_wait: Duration,
    /// Counted failures after which a job becomes a dead letter.
    pub failures: u32,
    /// Missed heartbeats after which a job becomes a dead letter: the worker died, or its machine
    /// did.
    pub missed_heartbeats: u32,
    /// Deliveries at most, however they end.
    pub deliveries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ack_wait: Duration::from_secs(60),
            failures: 5,
            missed_heartbeats: 10,
            deliveries: 1000,
        }
    }
}

/// The answer to a delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The job is delivered again after this time.
    Redeliver(Duration),
    /// The job becomes a dead letter with this fault.
    DeadLetter(Fault),
}

/// Back-off between counted failures of a job.
pub const FAILURE_BACKOFF: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(500),
    most: Duration::from_secs(30),
    give_up: GiveUp::Never,
};
/// Time until a released job is delivered again.
const RELEASED: Duration = Duration::from_secs(2);
/// Back-off of jobs that wait until an object is produced again.
const REBUILT: RetryPolicy = RetryPolicy {
    first: Duration::from_secs(2),
    most: Duration::from_secs(60),
    give_up: GiveUp::Never,
};
/// Back-off of jobs that wait for a worker of another version, or of another arithmetic class.
const FOREIGN: RetryPolicy = RetryPolicy {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
    give_up: GiveUp::Never,
};
/// Failed computations that a history keeps.
const COMPUTATIONS: usize = 16;

/// Decides what happens to a job whose attempt on `machine` failed, and adds the attempt to its
/// history.
pub fn decide(fault: &Fault, history: &mut History, limits: &Limits, machine: &str) -> Decision {
    history.last = Some(fault.clone());
    match fault.class {
        Class::Input => Decision::DeadLetter(fault.clone()),
        Class::Transient => {
            history.failures += 1;
            if history.failures >= limits.failures {
                Decision::DeadLetter(fault.clone())
            } else {
                Decision::Redeliver(FAILURE_BACKOFF.pause(history.failures))
            }
        }
        Class::Environment(Origin::Computation) => {
            history.released += 1;
            failed_computation(fault, history, limits, machine)
                .map_or(Decision::Redeliver(RELEASED), Decision::DeadLetter)
        }
        Class::Environment(_) => {
            history.released += 1;
            Decision::Redeliver(RELEASED)
        }
        Class::Foreign => {
            history.released += 1;
            history.foreign += 1;
            Decision::Redeliver(FOREIGN.pause(history.foreign))
        }
        Class::Corrupt(_) => {
            history.released += 1;
            history.corrupt += 1;
            Decision::Redeliver(REBUILT.pause(history.corrupt))
        }
    }
}

/// Returns the fault for a dead letter when a computation has failed often enough: on two machines,
/// which proves that the input is at fault, or repeatedly on the only machine, which proves
/// nothing.
fn failed_computation(
    fault: &Fault,
    history: &mut History,
    limits: &Limits,
    machine: &str,
) -> Option<Fault> {
    let same = |failed: &&mut FailedComputation| failed.fault == fault.fingerprint();
    if let Some(elsewhere) =
        history.computations.iter_mut().filter(same).find(|failed| failed.machine != machine)
    {
        let message = format!(
            "{} (the same on two machines, {} and {machine})",
            fault.message, elsewhere.machine
        );
        return Some(Fault::input(message));
    }
    let times =
        match history.computations.iter_mut().filter(same).find(|failed| failed.machine == machine)
        {
            Some(failed) => {
                failed.times += 1;
                failed.times
            }
            None => {
                if history.computations.len() == COMPUTATIONS {
                    history.computations.remove(0);
                }
                let failed = FailedComputation {
                    machine: machine.to_owned(),
                    fault: fault.fingerprint().to_owned(),
                    times: 1,
                };
                history.computations.push(failed);
                1
            }
        };
    let again = |fault: &Fault| {
        let message = format!(
            "{} ({times} times on {machine}, whose self-check passes; a worker on another machine would tell whether the input is at fault)",
            fault.message
        );
        Fault { class: fault.class, message }
    };
    (times >= limits.failures).then(|| again(fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        ack_wait: Duration::from_secs(60),
        failures: 3,
        missed_heartbeats: 10,
        deliveries: 1000,
    };

    #[test]
    fn no_fault_of_surroundings_ever_counts_against_a_job() {
        let mut history = History::default();
        for fault in [Fault::environment("permission denied"), Fault::foreign("version 9")] {
            for machine in ["a", "b"].repeat(50) {
                assert!(matches!(
                    decide(&fault, &mut history, &LIMITS, machine),
                    Decision::Redeliver(_)
                ));
            }
        }
        let corrupt =
            Fault::new(Class::Corrupt(StoredObject::Artifact(Digest::of(b"x"))), "damaged");
        for _ in 0..50 {
            assert!(matches!(decide(&corrupt, &mut history, &LIMITS, "a"), Decision::Redeliver(_)));
        }
        assert_eq!((history.failures, history.released), (0, 250));
    }

    #[test]
    fn input_ends_at_once_and_transient_faults_after_so_many() {
        let mut history = History::default();
        let input = Fault::input("half a JPEG");
        assert_eq!(decide(&input, &mut history, &LIMITS, "a"), Decision::DeadLetter(input.clone()));
        let transient = Fault::transient("the store answers 503");
        for _ in 0..2 {
            assert!(matches!(
                decide(&transient, &mut history, &LIMITS, "a"),
                Decision::Redeliver(_)
            ));
        }
        assert_eq!(decide(&transient, &mut history, &LIMITS, "a"), Decision::DeadLetter(transient));
    }

    #[test]
    fn the_same_failed_computation_on_two_machines_proves_the_input_s_fault() {
        let mut history = History::default();
        let panic = Fault::computation("a fault in lethe-worker: index out of bounds\nat engine");
        assert!(matches!(decide(&panic, &mut history, &LIMITS, "a"), Decision::Redeliver(_)));
        let other = Fault::computation("libtorch: illegal memory access");
        assert!(matches!(decide(&other, &mut history, &LIMITS, "b"), Decision::Redeliver(_)));
        let Decision::DeadLetter(proved) = decide(&panic, &mut history, &LIMITS, "b") else {
            panic!("two machines agree")
        };
        assert_eq!(proved.class, Class::Input);
        assert!(
            proved.message.contains("index out of bounds") && proved.message.contains("a and b"),
            "{proved}"
        );
    }

    #[test]
    fn a_single_machine_proves_nothing() {
        let mut history = History::default();
        let panic = Fault::computation("a fault in lethe-worker: index out of bounds");
        for _ in 0..2 {
            assert!(matches!(decide(&panic, &mut history, &LIMITS, "a"), Decision::Redeliver(_)));
        }
        let Decision::DeadLetter(last) = decide(&panic, &mut history, &LIMITS, "a") else {
            panic!("three times are enough")
        };
        assert_eq!(last.class, Class::Environment(Origin::Computation));
        assert_eq!(history.failures, 0);
    }

    #[test]
    fn histories_of_many_machines_stay_small_and_messages_too() {
        let mut history = History::default();
        for number in 0..100 {
            let fault = Fault::computation(format!("fault {number}"));
            assert!(matches!(decide(&fault, &mut history, &LIMITS, "a"), Decision::Redeliver(_)));
        }
        assert_eq!(history.computations.len(), COMPUTATIONS);
        assert!(Fault::input("ä".repeat(5000)).message.len() <= crate::printable::MAX_MESSAGE + 3);
    }
}
