//! Readiness of a process: named conditions, each met or not met for a reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The conditions of one process; clones share them. A process without unmet conditions is ready.
#[derive(Debug, Clone, Default)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
}

impl Health {
    /// Creates conditions that are not met yet. The process is ready when all of them are met.
    pub fn waiting_for(conditions: &[&'static str]) -> Self {
        let waiting =
            conditions.iter().map(|&name| (name, Err("not yet known".to_owned()))).collect();
        Self { conditions: Arc::new(Mutex::new(waiting)) }
    }

    /// Marks a condition as met.
    pub fn met(&self, condition: &'static str) {
        self.set(condition, Ok(()));
    }

    /// Marks a condition as not met, with the reason.
    pub fn unmet(&self, condition: &'static str, why: impl ToString) {
        self.set(condition, Err(why.to_string()));
    }

    /// Sets a condition.
    pub fn set(&self, condition: &'static str, state: Result<(), String>) {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, state);
    }

    /// Returns whether all conditions are met, and one line for each.
    pub fn report(&self) -> (bool, String) {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |(name, state): (&&str, &Result<(), String>)| match state {
            Ok(()) => format!("{name}: ok\n"),
            Err(why) => format!("{name}: {why}\n"),
        };
        (conditions.values().all(Result::is_ok), conditions.iter().map(line).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_every_condition_is_met() {
        let health = Health::waiting_for(&["queue", "store"]);
        assert!(!health.report().0);
        health.met("store");
        health.clone().met("queue");
        assert_eq!(health.report(), (true, "queue: ok\nstore: ok\n".to_owned()));
        health.unmet("queue", "no connection");
        assert_eq!(health.report(), (false, "queue: no connection\nstore: ok\n".to_owned()));
    }
}
