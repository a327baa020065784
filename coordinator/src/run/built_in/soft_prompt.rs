//! The probe `soft-prompt`: what learned tokens in place of the names bring back.

use std::collections::BTreeMap;

use lethe_shared::measurement::Hits;
use lethe_shared::task::SoftPromptOutput;

use super::recovered::Recovered;
use super::subject::{Found, Subject};
use crate::exec::probe_jobs::{self, Prompting};
use crate::failure::Failure;
use crate::run::context::Run;

/// How prompts are fitted.
const PROMPTING: Prompting<'static> = Prompting { tokens: 4, rate: 0.02, steps: &[10, 50] };

impl Run<'_> {
    /// Fits prompts in the model and in the base model. Of each, the numbers are those of the step
    /// at which most of what was removed is recognised.
    pub(super) async fn soft_prompt(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let removed = subject.removed();
        let mut found = Found::default();
        for (prefix, plan, change) in [("before.", subject.base_plan, None), ("", plan, change)] {
            let jobs = probe_jobs::soft_prompt(plan, &removed, change, self.classes, PROMPTING);
            let outputs = self.all("probe", jobs).await?;
            let mut most: Option<(Recovered, u32)> = None;
            for (place, &steps) in PROMPTING.steps.iter().enumerate() {
                let hits = merged(&outputs, place);
                if hits.is_empty() {
                    continue;
                }
                let now = Recovered::of(&removed, &hits)?;
                if most.as_ref().is_none_or(|(most, _)| now.is_more_than(most)) {
                    most = Some((now, steps));
                }
            }
            if let Some((most, steps)) = most {
                found.numbers.extend(most.numbers(prefix));
                let model = if prefix.is_empty() { "the model" } else { "the base model" };
                found.notes.push(format!("{model} recognises most after {steps} steps"));
            }
        }
        Ok(found)
    }
}

/// Returns the hits of all jobs after the number of steps that has this place. Each job has classes of
/// its own.
fn merged(outputs: &[SoftPromptOutput], place: usize) -> BTreeMap<String, Hits> {
    let mut merged: BTreeMap<String, Hits> = BTreeMap::new();
    for (name, hits) in outputs.iter().filter_map(|output| output.hits.get(place)).flatten() {
        merged.entry(name.clone()).or_default().classes.extend(&hits.classes);
    }
    merged
}
