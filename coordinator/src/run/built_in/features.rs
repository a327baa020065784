//! The probe `features`: what image embeddings still show, and what moves besides.

use std::collections::BTreeSet;

use super::subject::{Found, Subject};
use crate::exec::{jobs, probe_jobs};
use crate::failure::Failure;
use crate::run::context::Run;
use crate::run::judgement::held_out;

/// Number of retained classes nearest to each removed one.
const NEIGHBOURS: u32 = 3;

impl Run<'_> {
    /// Compares embeddings, fits a classifier to them, and looks at the nearest retained classes.
    pub(super) async fn features(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let (classes, lists) = (self.classes, self.removed);
        let removed: BTreeSet<u32> =
            plan.concepts.iter().map(|planned| planned.concept.class_index).collect();
        let of_removed = |class: u32| removed.contains(&class);
        let of_retained = |class: u32| !of_removed(class);
        let jobs = [(subject.base_plan, None), (plan, change)].map(|(plan, change)| {
            probe_jobs::features(plan, subject.edited, change, classes, lists, NEIGHBOURS)
        });
        let mut found = Found::default();
        for (when, output) in ["before.", ""].into_iter().zip(self.all("probe", jobs.into()).await?)
        {
            let hits = &output.class_means;
            let mut add = |name: String, value: f64| found.numbers.insert(name, value);
            for (group, chosen) in
                [("removed", &of_removed as &dyn Fn(u32) -> bool), ("retained", &of_retained)]
            {
                if hits.classes.keys().any(|&class| chosen(class)) {
                    add(format!("class-means.{when}{group}-ta1"), hits.mean_top1(chosen));
                    add(format!("class-means.{when}{group}-ta5"), hits.mean_top5(chosen));
                }
            }
            if when.is_empty() {
                // Of another model, they would be its similarity to itself.
                let similarities =
                    change.map_or([None; 2], |_| [output.text_similarity, output.image_similarity]);
                for (name, similarity) in ["texts", "images"].into_iter().zip(similarities) {
                    if let Some(similarity) = similarity {
                        add(format!("similarity.{name}"), similarity);
                    }
                }
                let near: BTreeSet<u32> = output.neighbours.into_iter().flatten().collect();
                let is_near = |class: u32| near.contains(&class);
                let set = jobs::held_out_evaluation(plan, change, classes, lists);
                let after = held_out(self.all("evaluate", set).await?);
                if let Some((before, after)) = subject.base.on_a_set().zip(after.on_a_set())
                    && before.mean_top1(is_near) > 0.0
                {
                    let kept = after.mean_top1(is_near) / before.mean_top1(is_near);
                    found.numbers.insert("neighbours.kept".to_owned(), kept);
                    found.numbers.insert("neighbours.classes".to_owned(), near.len() as f64);
                }
            }
        }
        Ok(found)
    }
}
