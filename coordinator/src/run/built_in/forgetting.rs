//! The probe `forgetting`: how forgetting is spread over concepts, and how certain its means are.

use std::collections::BTreeMap;

use lethe_shared::measurement::Hits;

use super::subject::{Found, Subject};
use crate::compose::bootstrap::Estimate;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::run::context::Run;
use crate::run::judgement::counted;

impl Run<'_> {
    /// Estimates accuracies on forget images and on unseen images of removed classes, from
    /// the jobs of the evaluation.
    pub(super) async fn forgetting(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let (classes, lists) = (self.classes, self.removed);
        let removed = subject.removed();
        let mut found = Found::default();
        for (when, plan, change) in [("before.", subject.base_plan, None), ("", plan, change)] {
            let (jobs, _) = jobs::composed_evaluation(plan, subject.edited, change, classes, lists);
            let mut hits: BTreeMap<String, Hits> = BTreeMap::new();
            for output in self.all("evaluate", jobs).await? {
                hits.extend(output.items);
            }
            let unseen = [jobs::TEST, jobs::VALIDATION].into_iter().find_map(|set| hits.get(set));
            let mut measures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            let mut add = |measure, share| measures.entry(measure).or_default().push(share);
            for planned in &removed {
                let class = planned.concept.class_index;
                let own = |other: u32| other == class;
                let forget = counted(&hits, planned)?;
                add("fa1", forget.mean_top1(own));
                add("fa5", forget.mean_top5(own));
                if let Some(unseen) = unseen.filter(|hits| hits.classes.contains_key(&class)) {
                    add("unseen-ta1", unseen.mean_top1(own));
                    add("unseen-ta5", unseen.mean_top5(own));
                }
            }
            for (measure, shares) in measures {
                let Some(estimate) = Estimate::of(&shares) else { continue };
                let mut add = |what: &str, value: f64| {
                    found.numbers.insert(format!("{measure}.{when}{what}"), value)
                };
                add("mean", estimate.mean);
                add("low", estimate.low);
                add("high", estimate.high);
                if when.is_empty() {
                    add("p95", estimate.p95);
                    add("worst", estimate.worst);
                    add("concepts", shares.len() as f64);
                }
            }
        }
        Ok(found)
    }
}
