//! The probe `words`: recognition by other words.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lethe_shared::reference::ClassTexts;
use lethe_shared::words::normal_name;

use super::subject::{Found, Subject};
use crate::compose::wording::Wording;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};
use crate::run::context::Run;
use crate::run::judgement::counted;

/// The name of the wording that writes a concept's own aliases.
const ALIASES: &str = "aliases";

/// The class list with the names of some concepts in other words.
struct Rewritten<'a> {
    /// Name of the wording. Several lists have the wording `aliases`, one for the first alias of each
    /// concept, one for the second, and so on.
    wording: &'static str,
    texts: ClassTexts,
    /// The concepts whose names are written in other words.
    concepts: Vec<&'a PlannedConcept>,
}

/// Returns the class lists to measure with. All names of other classes stay.
fn rewritten<'a>(plan: &Plan, removed: &[&'a PlannedConcept]) -> Vec<Rewritten<'a>> {
    let names = plan.class_texts.names.iter();
    let taken: BTreeSet<_> = names.map(|name| normal_name(name).into_owned()).collect();
    let list = |wording, other: &dyn Fn(&PlannedConcept, &str) -> Option<String>| {
        let mut list = Rewritten { wording, texts: plan.class_texts.clone(), concepts: Vec::new() };
        for &planned in removed {
            let place = planned.concept.class_index as usize;
            let Some(name) = list.texts.names.get_mut(place) else { continue };
            // A text that names another class says nothing about this one.
            let other = other(planned, name).filter(|text| !taken.contains(&*normal_name(text)));
            if let Some(text) = other {
                *name = text;
                list.concepts.push(planned);
            }
        }
        list
    };
    let wordings = Wording::ALL.map(|wording| list(wording.name(), &|_, name| wording.of(name)));
    let most = removed.iter().map(|planned| planned.concept.aliases.len()).max().unwrap_or(0);
    let aliases = (0..most)
        .map(|place| list(ALIASES, &|planned, _| planned.concept.aliases.get(place).cloned()));
    wordings.into_iter().chain(aliases).filter(|list| !list.concepts.is_empty()).collect()
}

/// Returns the number of jobs that measure these concepts.
pub(super) fn job_count(plan: &Plan, removed: &[&PlannedConcept]) -> usize {
    let slices = |list: Rewritten<'_>| list.concepts.len().div_ceil(jobs::CONCEPTS_PER_JOB);
    2 * rewritten(plan, removed).into_iter().map(slices).sum::<usize>()
}

/// Accuracies on the forget images of concepts, FA@5 and FA@1, by id: of several texts of a concept,
/// those of the one that finds most.
type Most = BTreeMap<String, (f64, f64)>;

impl Run<'_> {
    /// Evaluates on the forget sets, with the removed names written in other ways.
    pub(super) async fn words(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let removed = subject.removed();
        let mut found = Found::default();
        let mut most: BTreeMap<(&str, &str), Most> = BTreeMap::new();
        for list in rewritten(plan, &removed) {
            let names = found.numbers.entry(format!("{}.names", list.wording)).or_default();
            *names += list.concepts.len() as f64;
            let texts = serde_json::to_vec(&list.texts).map_err(Failure::input)?;
            let classes = self.dispatcher.store.put_artifact(Bytes::from(texts)).await?;
            for (when, plan, change) in [("before.", subject.base_plan, None), ("", plan, change)] {
                let jobs = jobs::forget_evaluation(plan, &list.concepts, change, classes, None);
                let mut hits = BTreeMap::new();
                for output in self.all("probe", jobs).await? {
                    hits.extend(output.items);
                }
                let most = most.entry((list.wording, when)).or_default();
                for planned in &list.concepts {
                    let hits = counted(&hits, planned)?;
                    let own = |class: u32| class == planned.concept.class_index;
                    let now = (hits.mean_top5(own), hits.mean_top1(own));
                    let most = most.entry(planned.concept.id.clone()).or_insert(now);
                    if now > *most {
                        *most = now;
                    }
                }
            }
        }
        for ((wording, when), concepts) in most {
            let mean = |share: fn(&(f64, f64)) -> f64| {
                concepts.values().map(share).sum::<f64>() / concepts.len().max(1) as f64
            };
            found.numbers.insert(format!("{wording}.{when}fa1"), mean(|(_, fa1)| *fa1));
            found.numbers.insert(format!("{wording}.{when}fa5"), mean(|(fa5, _)| *fa5));
        }
        Ok(found)
    }
}
