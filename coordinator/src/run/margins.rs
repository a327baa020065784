//! Edits by margin constraints (`docs/composition.md`, "`margins`").
//!
//! The phases are:
//! 1. Collect the second moments of retained data, and survey the layers.
//! 2. Take the gradient of each forget image's margin at the candidate layers, and compute the
//!    effect of each image's edit on each margin.
//! 3. Select the layers: all candidates, or the one that keeps most.
//! 4. Solve the coefficients of all images together, and adjust the targets over some rounds of
//!    measuring the margins in the composed model.
//! 5. Condense each concept's images to one direction per layer, and solve the coefficients of the
//!    concepts.

use std::collections::BTreeSet;

use lethe_shared::edit::{self, Edit};
use lethe_shared::manifest::Spread;
use lethe_shared::measurement::RankedLayer;
use lethe_shared::record::Missing;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{
    CondenseOutput, ConstraintsOutput, ImageEffectsPart, SurveyOutput, WeightedConstraints,
};
use lethe_shared::vocabulary::{Tower, Towers};
use safetensors::SafeTensors;

use super::context::{Run, concept_results};
use super::edits::{ConceptEdit, EditedConcept, Edits, Stored, unsolved};
use super::judgement::{HeldOut, held_out};
use super::statistics::{Surveyed, protect, survey};
use crate::compose::effect_matrix::ImageRows;
use crate::compose::margins::{Kernel, Rounds, Solved, Targets};
use crate::compose::measure;
use crate::compose::recipe::Recipe;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::PlannedConcept;

/// Rounds of a trial composition of one layer.
const TRIAL_ROUNDS: usize = 2;
/// Rounds without improvement after which no more are made.
const PATIENCE: usize = 3;
/// Most adjustments with condensed directions after the first measurement. They differ little from the sums, so few are enough.
const FINAL_ROUNDS: usize = 8;

/// A concept with constraints.
struct Constrained<'a> {
    planned: &'a PlannedConcept,
    survey: SurveyOutput,
    output: ConstraintsOutput,
}

/// The problem of one run: its constraints, and what their edits may change.
struct MarginProblem<'a> {
    concepts: Vec<Constrained<'a>>,
    candidates: Vec<Candidate>,
    inverses: Vec<ArtifactRef>,
    /// σ.
    margin: f64,
    /// Margins of the unedited model.
    base: Vec<f64>,
    /// The kernel of each candidate layer. They are read when they are needed, because one has as
    /// many values as there are pairs of images.
    kernels: Vec<ArtifactRef>,
}

/// What is solved on some layers.
struct Solution {
    layers: Vec<Candidate>,
    solved: Solved,
    /// The kernel's mean diagonal, by which costs are scaled.
    scale: f64,
}

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let composition = &plan.manifest.composition;
    let Surveyed { base, moments, concepts: surveyed, mut missing } = survey(run).await?;
    let candidates = surveyed.first().map_or_else(Vec::new, |(_, survey)| {
        candidates(&survey.ranking, &moments.layers, plan.layers.as_ref())
    });
    let names: Vec<String> = candidates.iter().map(|candidate| candidate.layer.clone()).collect();

    let mut inverses = moments.inverses;
    let text_layers = candidates
        .iter()
        .filter(|candidate| candidate.tower == Tower::Text)
        .map(|candidate| candidate.layer.clone());
    let protected = protect(run, text_layers.collect(), &mut inverses).await?;
    let concepts = constrain(run, surveyed, &names, &inverses, &mut missing).await?;
    if concepts.is_empty() {
        let recipe = unsolved(&[])?;
        let edits = Edits { found: Vec::new(), missing, recipe, moments: inverses, protected };
        return Ok((edits, base));
    }
    let margin = composition.margin.unwrap_or(match composition.towers {
        Towers::Text | Towers::Both => 0.02,
        Towers::Vision => 0.05,
    });
    let (base_margins, kernels) = (Vec::new(), Vec::new());
    let mut problem =
        MarginProblem { concepts, candidates, inverses, margin, base: base_margins, kernels };
    problem.base = problem.margins(run, None).await?;
    problem.kernels = problem.kernels(run).await?;
    let mut layers = Vec::new();
    for tower in [Tower::Text, Tower::Vision] {
        let own: Vec<usize> = (0..problem.candidates.len())
            .filter(|&place| problem.candidates[place].tower == tower)
            .collect();
        match composition.spread.unwrap_or(Spread::of(tower)) {
            Spread::All => layers.extend(own),
            Spread::One => layers.extend(problem.best_layer(run, &own, &base).await?),
        }
    }
    let solution = problem.solve(run, &layers).await?;
    let (found, recipe) = problem.condensed(run, &solution).await?;
    Ok((Edits { found, missing, recipe, moments: problem.inverses, protected }, base))
}

/// A layer that edits may change.
#[derive(Debug, Clone)]
struct Candidate {
    layer: String,
    tower: Tower,
}

/// Returns the layers that edits may change: those `with_moments`, among `allowed`.
fn candidates(
    ranking: &[RankedLayer],
    with_moments: &BTreeSet<String>,
    allowed: Option<&BTreeSet<String>>,
) -> Vec<Candidate> {
    ranking
        .iter()
        .filter(|layer| with_moments.contains(&layer.layer))
        .filter(|layer| allowed.is_none_or(|allowed| allowed.contains(&layer.layer)))
        .map(|layer| Candidate { layer: layer.layer.clone(), tower: layer.tower })
        .collect()
}

async fn constrain<'a>(
    run: &mut Run<'a>,
    surveyed: Vec<(&'a PlannedConcept, SurveyOutput)>,
    candidates: &[String],
    inverses: &[ArtifactRef],
    missing: &mut Vec<Missing>,
) -> Result<Vec<Constrained<'a>>, Failure> {
    let (mut concepts, mut surveys) = (Vec::new(), Vec::new());
    for (planned, survey) in surveyed {
        if candidates.is_empty() {
            let reason =
                "no layer of the towers that may change has second moments; see composition.towers"
                    .to_owned();
            missing.push(Missing { id: planned.concept.id.clone(), reason });
        } else {
            concepts.push(planned);
            surveys.push((planned, survey));
        }
    }
    let tasks = jobs::constraints(run.plan, &concepts, candidates, inverses, run.classes);
    let ended = run.of_concepts("concepts", tasks).await?;
    let results = concept_results(&concepts, ended, missing)?;
    let mut surveys = surveys.into_iter();
    let mut constrained = Vec::with_capacity(results.len());
    for (planned, output) in results {
        let own =
            |(other, _): &(&PlannedConcept, SurveyOutput)| other.concept.id == planned.concept.id;
        if let Some((_, survey)) = surveys.find(own) {
            constrained.push(Constrained { planned, survey, output });
        }
    }
    Ok(constrained)
}

impl<'a> MarginProblem<'a> {
    fn planned(&self) -> Vec<&'a PlannedConcept> {
        self.concepts.iter().map(|concept| concept.planned).collect()
    }

    /// Returns the concept of each constraint.
    fn owners(&self) -> Vec<usize> {
        let of = |(number, concept): (usize, &Constrained<'_>)| {
            std::iter::repeat_n(number, concept.output.images as usize)
        };
        self.concepts.iter().enumerate().flat_map(of).collect()
    }

    /// Returns the constraints of each concept with their coefficients.
    fn weighted(&self, coefficients: &[f64]) -> Vec<WeightedConstraints> {
        let mut rest = coefficients;
        let mut weighted = Vec::with_capacity(self.concepts.len());
        for concept in &self.concepts {
            let (own, others) = rest.split_at((concept.output.images as usize).min(rest.len()));
            rest = others;
            weighted.push(WeightedConstraints {
                factors: concept.output.factors,
                coefficients: own.to_vec(),
            });
        }
        weighted
    }

    /// Measures the margins of all constraints, in order.
    async fn margins(
        &self,
        run: &mut Run<'_>,
        change: Option<ArtifactRef>,
    ) -> Result<Vec<f64>, Failure> {
        let planned = self.planned();
        let outputs =
            run.all("margins", jobs::margins(run.plan, &planned, change, run.classes)).await?;
        let measured: Vec<Vec<f64>> =
            outputs.into_iter().flat_map(|output| output.margins).collect();
        let fits = measured.len() == self.concepts.len()
            && measured
                .iter()
                .zip(&self.concepts)
                .all(|(margins, concept)| margins.len() == concept.output.images as usize);
        if !fits {
            return Err(Failure::Infrastructure(
                "the measured margins are not those of the constraints; an outcome is damaged"
                    .to_owned(),
            ));
        }
        Ok(measured.concat())
    }

    async fn kernels(&self, run: &mut Run<'_>) -> Result<Vec<ArtifactRef>, Failure> {
        let layers: Vec<String> =
            self.candidates.iter().map(|candidate| candidate.layer.clone()).collect();
        let factors: Vec<ArtifactRef> =
            self.concepts.iter().map(|concept| concept.output.factors).collect();
        let tasks = jobs::kernels(run.plan, &layers, &factors, &self.inverses);
        let outputs = run.all("kernel", tasks).await?;
        Ok(outputs.into_iter().map(|output| output.kernel).collect())
    }

    /// Begins rounds on some of the candidate layers.
    async fn rounds(&self, run: &Run<'_>, layers: &[usize]) -> Result<Rounds, Failure> {
        let mut sum: Option<Kernel> = None;
        for &layer in layers {
            let values = matrix(run, self.kernels[layer], "kernel").await?;
            let kernel = Kernel::new(values).map_err(Failure::Infrastructure)?;
            match &mut sum {
                None => sum = Some(kernel),
                Some(sum) => sum.add(&kernel).map_err(Failure::Infrastructure)?,
            }
        }
        let sum =
            sum.ok_or_else(|| Failure::Infrastructure("there is no layer to edit".to_owned()))?;
        Rounds::new(sum, &self.base, self.margin).map_err(Failure::input)
    }

    /// Makes one round: solves, composes, measures. Returns the change and the objective.
    async fn round(
        &self,
        run: &mut Run<'_>,
        rounds: &mut Rounds,
        layers: &[String],
    ) -> Result<(ArtifactRef, f64), Failure> {
        let weighted = self.weighted(rounds.solve());
        let task = jobs::weighted_change(run.plan, layers, weighted, &self.inverses);
        let output = run.one("margins", task).await?;
        let measured = self.margins(run, Some(output.change)).await?;
        let (cost, objective) = rounds.measured(&measured);
        let recognised = measured.iter().filter(|&&margin| margin >= 0.0).count();
        tracing::info!(cost, objective, recognised, size = output.size, "margins");
        Ok((output.change, objective))
    }

    /// Returns the layer on which a composition of all concepts keeps most on the validation set;
    /// without one, the layer with the least objective.
    async fn best_layer(
        &self,
        run: &mut Run<'_>,
        among: &[usize],
        base: &HeldOut,
    ) -> Result<Option<usize>, Failure> {
        if among.len() < 2 {
            return Ok(among.first().copied());
        }
        let mut best: Option<(usize, f64, f64)> = None;
        for &place in among {
            let mut rounds = self.rounds(run, &[place]).await?;
            let layer = &self.candidates[place].layer;
            let (mut change, mut objective) = (None, f64::INFINITY);
            for _ in 0..TRIAL_ROUNDS {
                let (made, reached) =
                    self.round(run, &mut rounds, std::slice::from_ref(layer)).await?;
                (change, objective) = (Some(made), reached);
            }
            let mut kept = 0.0;
            if let Some((change, before)) = change.zip(base.validation.as_ref()) {
                let outputs =
                    run.all("margins", jobs::validation(run.plan, change, run.classes)).await?;
                let after = held_out(outputs).validation.unwrap_or_default();
                kept = measure::least_kept(before, &after, run.plan.retains(), &run.plan.covered);
            }
            tracing::info!(layer, kept, objective, "trial composition");
            if best
                .is_none_or(|(_, most, least)| kept > most || (kept == most && objective < least))
            {
                best = Some((place, kept, objective));
            }
        }
        Ok(best.map(|(place, ..)| place))
    }

    async fn solve(&self, run: &mut Run<'_>, chosen: &[usize]) -> Result<Solution, Failure> {
        let layers: Vec<Candidate> =
            chosen.iter().map(|&place| self.candidates[place].clone()).collect();
        let names: Vec<String> = layers.iter().map(|layer| layer.layer.clone()).collect();
        let mut rounds = self.rounds(run, chosen).await?;
        let scale = rounds.scale();
        let (mut least, mut since) = (f64::INFINITY, 0);
        for _ in 0..run.plan.manifest.composition.rounds.max(1) {
            let (_, objective) = self.round(run, &mut rounds, &names).await?;
            since = if objective < least { 0 } else { since + 1 };
            least = least.min(objective);
            if since == PATIENCE {
                break;
            }
        }
        let solved = rounds.best().ok_or_else(|| {
            Failure::Infrastructure("no round of margins was measured".to_owned())
        })?;
        Ok(Solution { layers, solved, scale })
    }

    /// Condenses the images of each concept to one direction per layer, and solves the coefficients
    /// of the concepts.
    async fn condensed(
        &self,
        run: &mut Run<'a>,
        solution: &Solution,
    ) -> Result<(Vec<EditedConcept<'a>>, Recipe), Failure> {
        let Solution { layers, solved, scale } = solution;
        let weighted = self.weighted(&solved.coefficients);
        let names: Vec<String> = layers.iter().map(|layer| layer.layer.clone()).collect();
        let composition = &run.plan.manifest.composition;
        let rank = |layer: &Candidate| composition.rank(layer.tower).unwrap_or(u32::MAX);
        let ranks: Vec<u32> = layers.iter().map(rank).collect();
        let tasks = self.concepts.iter().zip(weighted).map(|(concept, weighted)| {
            jobs::condense(run.plan, concept.planned, &names, weighted, &self.inverses, &ranks)
        });
        let tasks: Vec<_> = tasks.collect();
        let condensed: Vec<CondenseOutput> = run.all("directions", tasks).await?;
        let parts = self.concepts.iter().zip(&condensed).map(|(concept, condensed)| {
            let (factors, direction) = (concept.output.factors, condensed.direction);
            ImageEffectsPart { factors, direction }
        });
        let task = jobs::image_effects(run.plan, &names, parts.collect());
        let output = run.one("directions", task).await?;
        let rows = ImageRows {
            effect: matrix(run, output.effect, "effect").await?,
            concept: self.owners(),
            weight: solved.coefficients.clone(),
            target: solved.targets.clone(),
            penalty: solved.penalty,
        };
        let found: Vec<EditedConcept<'a>> =
            self.concepts.iter().zip(&condensed).map(|(c, d)| self.found(c, d, layers)).collect();
        let parts = found.iter().map(|found| found.part(None)).collect();
        let recipe = Recipe::of_images(parts, rows).map_err(Failure::Infrastructure)?;
        let recipe = self.adjusted(run, recipe, &found, *scale).await?;
        Ok((found, recipe))
    }

    fn found(
        &self,
        concept: &Constrained<'a>,
        condensed: &CondenseOutput,
        layers: &[Candidate],
    ) -> EditedConcept<'a> {
        let (main, relative_step) = condensed
            .sizes
            .iter()
            .enumerate()
            .fold((0, 0.0), |best, (i, &size)| if size > best.1 { (i, size) } else { best });
        let edit = ConceptEdit {
            tower: layers[main].tower,
            layer: layers[main].layer.clone(),
            layers: layers.iter().map(|layer| layer.layer.clone()).collect(),
            step: 1.0,
            relative_step,
            direction: condensed.direction,
            rank: Some(condensed.rank),
            residual: Some(condensed.residual),
        };
        EditedConcept {
            planned: concept.planned,
            pairs: concept.survey.pairs,
            before: concept.output.before,
            ranking: concept.survey.ranking.clone(),
            search: Vec::new(),
            edit,
            alone: None,
            gradients: Some(concept.output.factors),
            said: Some(concept.output.said.clone()),
            thumbnails: concept.output.thumbnails,
        }
    }

    /// Adjusts the targets to the condensed directions and to the strengths of concepts, over a few
    /// rounds. Returns the recipe that leaves the fewest images recognised and, of those, has the
    /// least objective.
    async fn adjusted(
        &self,
        run: &mut Run<'_>,
        mut recipe: Recipe,
        found: &[EditedConcept<'_>],
        scale: f64,
    ) -> Result<Recipe, Failure> {
        let stored = Stored::of(run.plan, run.dispatcher);
        let owners = self.owners();
        // Only concepts with strength 1 are expected to be forgotten.
        let judged = |image: usize| found[owners[image]].planned.concept.strength == 1.0;
        let mut targets = Targets::new(&self.base, self.margin);
        if let Some(rows) = recipe.effect_matrix().and_then(|effect_matrix| effect_matrix.images())
        {
            targets = targets.with_wanted(&rows.target);
        }
        let mut best: Option<(usize, f64, Vec<f64>)> = None;
        let mut since = 0;
        for _ in 0..=FINAL_ROUNDS {
            recipe = recipe.with_image_targets(targets.wanted());
            let edits: Vec<Edit> = recipe.edits();
            let (_, change) = run.compose(&edits, &stored).await?;
            let measured = self.margins(run, Some(change)).await?;
            let cost = recipe
                .effect_matrix()
                .map_or(0.0, |effect_matrix| effect_matrix.predicted_cost(&recipe.steps()));
            let objective = targets.objective(cost, scale, &measured, judged);
            let recognised =
                (0..measured.len()).filter(|&i| judged(i) && measured[i] >= 0.0).count();
            tracing::info!(cost, objective, recognised, "margins of condensed directions");
            since += 1;
            if best
                .as_ref()
                .is_none_or(|(fewest, least, _)| (recognised, objective) < (*fewest, *least))
            {
                best = Some((recognised, objective, targets.wanted().to_vec()));
                since = 0;
            }
            if since == PATIENCE {
                break;
            }
            // Shrinking targets here would make other images recognised again.
            targets.raise(&measured, judged);
        }
        Ok(match best {
            Some((_, _, targets)) => recipe.with_image_targets(&targets),
            None => recipe,
        })
    }
}

/// Reads a float64 matrix from an artifact.
async fn matrix(run: &Run<'_>, artifact: ArtifactRef, name: &str) -> Result<Vec<f64>, Failure> {
    let file = run.dispatcher.artifact(&run.plan.run, &artifact).await?;
    let damaged = |problem: String| {
        Failure::Infrastructure(format!("artifact {}: {problem}", artifact.digest))
    };
    let parsed = SafeTensors::deserialize(&file).map_err(|error| damaged(error.to_string()))?;
    let view = parsed.tensor(name).map_err(|error| damaged(error.to_string()))?;
    Ok(edit::widen(name, view.data(), view.dtype())?)
}
