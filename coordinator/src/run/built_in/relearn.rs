//! The probe `relearn`: what fine-tuning brings back.

use lethe_shared::task::RelearnOutput;

use super::recovered::Recovered;
use super::subject::{Found, Subject};
use crate::exec::probe_jobs::{self, Training};
use crate::failure::Failure;
use crate::run::context::Run;

/// Numbers of steps after which the model is evaluated.
const STEPS: [u32; 3] = [10, 50, 100];
/// Learning rates.
const RATES: [f64; 2] = [1e-5, 1e-4];
/// Pairs per step.
const BATCH: u32 = 64;
/// The data: a name, and how many pairs of each removed concept; 0 for retained pairs alone.
const LESSONS: [(&str, u32); 3] = [("retained", 0), ("1-pair", 1), ("5-pairs", 5)];
/// Number of fine-tunings, each of which is a job.
pub(super) const JOBS: usize = LESSONS.len() * RATES.len();

impl Run<'_> {
    /// Fine-tunes on every lesson at every rate. Of each lesson, the numbers are those of the rate
    /// and the step at which most of what was removed is back.
    pub(super) async fn relearn(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let removed = subject.removed();
        let mut found = Found::default();
        if removed.is_empty() {
            return Ok(found);
        }
        for (lesson, pairs) in LESSONS {
            let jobs = RATES.map(|rate| {
                let training = Training { batch_size: BATCH, rate, steps: &STEPS };
                probe_jobs::relearn(plan, &removed, pairs, change, self.classes, training)
            });
            let outputs = self.all("probe", jobs.into()).await?;
            let mut most: Option<(Recovered, f64, u32)> = None;
            for (rate, RelearnOutput { hits }) in RATES.into_iter().zip(outputs) {
                for (steps, hits) in STEPS.into_iter().zip(hits) {
                    let now = Recovered::of(&removed, &hits)?;
                    if most.as_ref().is_none_or(|(most, ..)| now.is_more_than(most)) {
                        most = Some((now, rate, steps));
                    }
                }
            }
            if let Some((most, rate, steps)) = most {
                found.numbers.extend(most.numbers(&format!("{lesson}.")));
                found.notes.push(format!(
                    "{lesson}: most is back after {steps} steps at a rate of {rate}"
                ));
            }
        }
        Ok(found)
    }
}
