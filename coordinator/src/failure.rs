//! Failures of commands, by exit code.

use std::io::ErrorKind;
use std::path::Path;

use lethe_queue as queue;
use lethe_shared::printable::printable_excerpt;
use lethe_shared::retry::Cancelled;
use lethe_shared::{checkpoint, edit, exit, manifest};
use lethe_store as store;

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The manifest, or a file that it names, is invalid.
    #[error("{}", .0.join("\nerror: "))]
    BadInput(Vec<String>),
    /// A queue, store, disk or network call failed past the retry policy.
    #[error("{0}")]
    Infrastructure(String),
    /// The command was cancelled.
    #[error("cancelled; finished jobs stay in the store, and the same command resumes from there")]
    Cancelled,
}

impl Failure {
    /// Returns a failure with one problem of the input. What is quoted of the input is escaped, and
    /// cut where it is long.
    pub fn input(problem: impl ToString) -> Self {
        Self::BadInput(vec![printable_excerpt(&problem.to_string())])
    }

    /// Returns a failure for a file or folder of this machine that cannot be read or written.
    pub fn local(path: &Path, error: std::io::Error) -> Self {
        Self::Infrastructure(format!("{}: {error}", path.display()))
    }

    /// Returns the documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput(_) => exit::BAD_INPUT,
            Self::Infrastructure(_) => exit::INFRASTRUCTURE,
            Self::Cancelled => exit::CANCELLED,
        }
    }
}

/// Most problems of the input that a command names.
const MAX_PROBLEMS: usize = 20;

/// Collects problems of the input, so that a command names all of them at once.
///
/// Problems come in groups, such as those of one file. When there are more than are named, every
/// group has some that are.
#[derive(Debug, Default)]
pub struct Problems {
    groups: Vec<Vec<String>>,
    count: u64,
    /// A sentence after the problems.
    advice: Option<&'static str>,
}

impl Problems {
    /// Takes the value of a result; `None` when the input is at fault, which is collected.
    ///
    /// # Errors
    /// Every other failure.
    pub fn take<T>(&mut self, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Failure::BadInput(problems)) => {
                let count = problems.len() as u64;
                self.add(problems, count);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Adds a group of `count` problems, of which some are named.
    pub fn add(&mut self, named: Vec<String>, count: u64) {
        self.count += count;
        self.groups.push(named);
    }

    /// Adds a sentence after the problems; the first one stays.
    pub fn advise(&mut self, sentence: &'static str) {
        self.advice.get_or_insert(sentence);
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with up to twenty problems, when there are any.
    pub fn finish(self) -> Result<(), Failure> {
        if self.count == 0 {
            return Ok(());
        }
        let mut places: Vec<(usize, usize)> = self
            .groups
            .iter()
            .enumerate()
            .flat_map(|(group, named)| (0..named.len()).map(move |rank| (rank, group)))
            .collect();
        places.sort_unstable();
        places.truncate(MAX_PROBLEMS);
        let mut shown = vec![0; self.groups.len()];
        places.iter().for_each(|&(_, group)| shown[group] += 1);
        let hidden = self.count.saturating_sub(places.len() as u64);
        let mut problems: Vec<String> = self
            .groups
            .into_iter()
            .zip(shown)
            .flat_map(|(named, shown)| named.into_iter().take(shown))
            .collect();
        if hidden > 0 {
            problems.push(format!("{hidden} more problems are not named here"));
        }
        problems.extend(self.advice.map(str::to_owned));
        Err(Failure::BadInput(problems))
    }
}

impl From<Cancelled> for Failure {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<manifest::Error> for Failure {
    fn from(error: manifest::Error) -> Self {
        Self::input(error)
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Self {
        match &error {
            // The disk for the release is full; the model is not at fault.
            checkpoint::Error::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                Self::Infrastructure(format!(
                    "{error}; free some space and run again, finished jobs stay"
                ))
            }
            _ => Self::input(error),
        }
    }
}

impl From<edit::Error> for Failure {
    fn from(error: edit::Error) -> Self {
        Self::input(error)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Invalid { .. } | store::Error::Refused { .. } => Self::input(error),
            other => Self::Infrastructure(other.to_string()),
        }
    }
}

impl From<queue::Error> for Failure {
    fn from(error: queue::Error) -> Self {
        match error {
            queue::Error::Refused(_) => Self::input(error),
            other => Self::Infrastructure(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_problems_are_named_and_some_of_every_group() {
        let mut problems = Problems::default();
        let many = (0..20).map(|number| format!("a{number}")).collect();
        problems.add(many, 45);
        assert!(problems.take::<()>(Err(Failure::input("b"))).unwrap().is_none());
        assert_eq!(problems.take(Ok(7)).unwrap(), Some(7));
        problems.advise("advice");
        let Err(Failure::BadInput(named)) = problems.finish() else { panic!("no problem") };
        assert_eq!(named.len(), 22);
        assert_eq!(named[18..], ["a18", "b", "26 more problems are not named here", "advice"]);
        assert!(Problems::default().finish().is_ok());
        let mut other = Problems::default();
        assert!(other.take::<()>(Err(Failure::Cancelled)).is_err());
    }
}
