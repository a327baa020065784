//! The command `lethe plan`.

use lethe_operations::log::say;
use lethe_shared::exit;
use lethe_shared::manifest::{CompositionMethod, Spread, TargetKind};
use lethe_shared::record::targets::UneditedEncoder;
use lethe_shared::vocabulary::{TextTokens, Tower};
use serde::Serialize;

use super::common::{Common, print};
use crate::downstream::layers::candidates;
use crate::downstream::{Target, TowerSummary};
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, groups};
use crate::progress::human_bytes;
use crate::run;

/// The last line of `lethe plan --json`.
#[derive(Debug, Serialize)]
struct Planned {
    run: String,
    model: lethe_shared::reference::ModelRef,
    store: String,
    classes: usize,
    concepts: usize,
    forget_pairs: u64,
    retain_pairs: u64,
    retain_batches: u64,
    retain_texts: usize,
    retain_text_slices: usize,
    retain_images: u64,
    covered_classes: usize,
    never_seen_classes: usize,
    validation_pairs: u64,
    test_pairs: u64,
    /// The composition method, and of `least-squares` the tokens whose states change.
    method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<TextTokens>,
    jobs: usize,
    dose_jobs: usize,
    /// The jobs of the probes, when every concept gets an edit.
    probe_jobs: usize,
    shard_bytes: u64,
    model_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<PlannedTarget>,
    /// Layers that may be edited, so that edits have an effect in all targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<String>>,
    warnings: Vec<String>,
}

/// A target of a planned run.
#[derive(Debug, Serialize)]
struct PlannedTarget {
    name: String,
    kind: TargetKind,
    /// The class of a pipeline, or `model_type` of a vision-language model.
    architecture: String,
    tower: Tower,
    /// Its towers that are the model's, and what it reads of each.
    reads: Vec<PlannedTower>,
    /// Text encoders in it that are not edited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unedited: Vec<UneditedEncoder>,
    bytes: u64,
}

/// A tower of a target that edits act in.
#[derive(Debug, Serialize)]
struct PlannedTower {
    /// Its folder in the target; empty for the target's own.
    folder: String,
    blocks: usize,
    blocks_used: usize,
    reads: String,
}

pub(super) async fn main(options: &Common) -> Result<u8, Failure> {
    let plan = Plan::make(&options.manifest, &options.cache()).await?;
    let store = options.store(&plan.manifest)?;
    let pairs = |shards: &[lethe_shared::reference::ShardRef]| {
        shards.iter().map(|shard| shard.pairs).sum::<u64>()
    };
    let held_out =
        [&plan.validation, &plan.test].into_iter().filter(|shards| !shards.is_empty()).count();
    let slices = plan.concepts.len().div_ceil(jobs::CONCEPTS_PER_JOB);
    let (composition, probes) = (&plan.manifest.composition, &plan.manifest.evaluation.probes);
    let planned = Planned {
        run: plan.run.clone(),
        model: plan.model.clone(),
        store: store.to_string(),
        classes: plan.classes.names().len(),
        concepts: plan.concepts.len(),
        forget_pairs: plan.concepts.iter().map(crate::intake::plan::PlannedConcept::pairs).sum(),
        retain_pairs: pairs(&plan.retain),
        retain_batches: plan.retain_batches(),
        retain_texts: plan.retain_texts.iter().map(Vec::len).sum(),
        retain_text_slices: plan.retain_texts.len(),
        retain_images: pairs(&plan.retain_images),
        covered_classes: plan.covered.len(),
        // Every concept has a class of its own.
        never_seen_classes: plan.classes.names().len() - plan.concepts.len() - plan.covered.len(),
        validation_pairs: pairs(&plan.validation),
        test_pairs: pairs(&plan.test),
        method: composition.method().name(),
        tokens: composition.tokens,
        jobs: plan.retain.len()
            + 1
            + 2 * held_out
            + plan.concepts.len()
            // The forget sets, by the composed and by the unedited model.
            + 2 * slices
            + corrections(&plan)?,
        dose_jobs: match composition.method() {
            CompositionMethod::Margins => margin_rounds(&plan, slices)?,
            // The last layer's solution, and the forget sets.
            CompositionMethod::LeastSquares => composition.rounds as usize * (1 + slices),
            method if method.corrects() => composition.rounds as usize * slices,
            _ => 0,
        },
        probe_jobs: probes.iter().map(|&probe| run::probe_job_count(&plan, probe)).sum(),
        shard_bytes: plan.shard_bytes(),
        model_bytes: plan.checkpoint.tensor_bytes(),
        targets: plan.targets.iter().map(target).collect(),
        layers: plan.layers.as_ref().map(|layers| layers.iter().cloned().collect()),
        warnings: plan.warnings.clone(),
    };
    for warning in &planned.warnings {
        say("warning", warning);
    }
    if options.json {
        print(&serde_json::to_string(&planned).map_err(Failure::input)?)?;
        return Ok(exit::DONE);
    }
    print(&table(&planned, &plan))?;
    Ok(exit::DONE)
}

fn target(target: &Target) -> PlannedTarget {
    PlannedTarget {
        name: target.request.name.clone(),
        kind: target.request.kind,
        architecture: target.architecture.clone(),
        tower: target.tower(),
        reads: target.towers().filter(|tower| tower.is_used).map(planned_tower).collect(),
        unedited: target.unedited.clone(),
        bytes: target.bytes(),
    }
}

fn planned_tower(tower: TowerSummary<'_>) -> PlannedTower {
    PlannedTower {
        folder: tower.folder.to_owned(),
        blocks: tower.blocks,
        blocks_used: tower.reach.blocks.min(tower.blocks),
        reads: tower.reads.to_owned(),
    }
}

/// Returns the lines that show a target.
fn target_rows(target: &PlannedTarget) -> Vec<(&'static str, String)> {
    let (name, architecture) = (&target.name, &target.architecture);
    let (tower, bytes) = (target.tower.name(), human_bytes(target.bytes));
    let mut rows = vec![("target", format!("{name} ({architecture}: {tower} tower, {bytes})"))];
    for one in &target.reads {
        let PlannedTower { folder, blocks, blocks_used, reads } = one;
        let at = if folder.is_empty() { String::new() } else { format!("{folder}: ") };
        rows.push(("  reads", format!("{at}{reads}; {blocks_used} of {blocks} blocks act")));
    }
    for encoder in &target.unedited {
        rows.push(("  not edited", format!("{} ({})", encoder.folder, encoder.class)));
    }
    rows
}

/// Returns the number of jobs that preconditioned directions need in addition to those of summed
/// ones: moments, surveys, the effect matrix.
fn corrections(plan: &Plan) -> Result<usize, Failure> {
    let composition = &plan.manifest.composition;
    if !composition.method().corrects() {
        return Ok(0);
    }
    if composition.method() == CompositionMethod::LeastSquares {
        // In place of the retain gradient there are moments, also of the covered classes' texts and
        // of unlabelled ones; they are reduced by layer. Each layer has a solution, and each but the
        // first has the concepts' jobs again.
        let layers = run::least_squares_layers(plan)?.len();
        return Ok(plan.retain_texts.len() + 2 * layers + (layers - 1) * plan.concepts.len());
    }
    let mut moments = 0;
    for tower in [Tower::Text, Tower::Vision] {
        if composition.towers.include(tower) {
            let unlabelled = match tower {
                Tower::Text => plan.retain_texts.len(),
                Tower::Vision => plan.retain_images.len(),
            };
            moments += plan.retain.len() + unlabelled + candidates(&plan.checkpoint, tower)?;
        }
    }
    Ok(moments + plan.concepts.len() + 1)
}

/// Returns the number of jobs that composition by margins needs for its kernels and rounds: at most
/// those of all trial compositions and of all rounds.
fn margin_rounds(plan: &Plan, slices: usize) -> Result<usize, Failure> {
    let composition = &plan.manifest.composition;
    let (mut layers, mut trials) = (0, 0);
    for tower in [Tower::Text, Tower::Vision] {
        if !composition.towers.include(tower) {
            continue;
        }
        let own = candidates(&plan.checkpoint, tower)?;
        layers += own;
        if composition.spread.unwrap_or(Spread::of(tower)) == Spread::One {
            trials += own * (2 * (1 + slices) + 1);
        }
    }
    let rounds = composition.rounds.max(1) as usize * (1 + slices) + 9 * slices;
    Ok(slices + layers + trials + rounds + plan.concepts.len())
}

fn table(planned: &Planned, plan: &Plan) -> String {
    let groups: Vec<String> =
        groups(plan).into_iter().map(|(group, count)| format!("{group} {count}")).collect();
    let gradients = planned.retain_batches
        + plan
            .concepts
            .iter()
            .map(|c| c.pairs().div_ceil(u64::from(plan.settings.batch_size)))
            .sum::<u64>();
    let rows = [
        ("run", planned.run.clone()),
        (
            "model",
            format!(
                "{} ({} of weights, digest {})",
                planned.model.address,
                human_bytes(planned.model_bytes),
                planned.model.weights.short()
            ),
        ),
        ("concepts", format!("{} ({})", planned.concepts, groups.join(", "))),
        ("classes", planned.classes.to_string()),
        ("forget pairs", planned.forget_pairs.to_string()),
        (
            "retain pairs",
            format!(
                "{} in {} full batches of {}",
                planned.retain_pairs, planned.retain_batches, plan.settings.batch_size
            ),
        ),
        (
            "retain texts",
            format!("{} in {} slices", planned.retain_texts, planned.retain_text_slices),
        ),
        (
            "retain images",
            format!("{} in {} shards", planned.retain_images, plan.retain_images.len()),
        ),
        (
            "retained classes",
            format!(
                "{} covered by retain captions and texts, {} never seen",
                planned.covered_classes, planned.never_seen_classes
            ),
        ),
        ("validation, test pairs", format!("{}, {}", planned.validation_pairs, planned.test_pairs)),
        ("data", human_bytes(planned.shard_bytes)),
        (
            "method",
            match planned.tokens {
                None => planned.method.to_owned(),
                Some(TextTokens::All) => format!("{}, of every token of a text", planned.method),
                Some(TextTokens::Read) => {
                    format!("{}, of the token that CLIP reads", planned.method)
                }
            },
        ),
        (
            "jobs",
            match planned.dose_jobs {
                0 => planned.jobs.to_string(),
                most => format!("{}, and at most {most} more to adjust coefficients", planned.jobs),
            },
        ),
        (
            "work",
            format!(
                "{}{}",
                match plan.manifest.composition.method() {
                    CompositionMethod::LeastSquares => String::new(),
                    _ => format!("{gradients} gradient batches; "),
                },
                match plan.manifest.composition.method() {
                    CompositionMethod::Margins => format!(
                        "at most {} constraints a concept, no search",
                        plan.manifest.composition.images
                    ),
                    CompositionMethod::LeastSquares => format!(
                        "at most {} texts a concept; no gradient, no search",
                        plan.manifest.composition.images
                    ),
                    method => format!(
                        "at most {} evaluations on {} of each concept",
                        plan.settings.search_evaluations,
                        if method.corrects() { "one layer" } else { "each front layer" }
                    ),
                }
            ),
        ),
        ("store", planned.store.clone()),
    ];
    let targets = planned.targets.iter().flat_map(target_rows);
    let layers =
        planned.layers.iter().map(|layers| ("layers in all targets", layers.len().to_string()));
    let probes: Vec<&str> =
        plan.manifest.evaluation.probes.iter().map(|probe| probe.name()).collect();
    let probes = (!probes.is_empty())
        .then(|| ("probes", format!("{}: {} more jobs", probes.join(", "), planned.probe_jobs)));
    let rows: Vec<_> = rows.into_iter().chain(probes).chain(targets).chain(layers).collect();
    let lines: Vec<String> =
        rows.iter().map(|(name, value)| format!("  {name:<26}{value}")).collect();
    format!("everything the manifest names exists and is valid\n{}", lines.join("\n"))
}
