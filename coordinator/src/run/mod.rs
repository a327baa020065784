//! One run, phase by phase: statistics, edits, composition, evaluation, release.
//!
//! | file | content |
//! |---|---|
//! | `preconditioned.rs` | edits along preconditioned directions, coefficients solved together: `composition.method` `"preconditioned"` and `"null-space"` |
//! | `margins.rs` | edits by margin constraints: `composition.method = "margins"` |
//! | `least_squares.rs` | edits by least squares: `composition.method = "least-squares"` |
//! | `statistics.rs` | the statistics of retained data that the first two need |
//! | `slug_search.rs` | edits by SLUG's full search: `composition.method` `"sum"`, `"mean"`, `"ties"`, `"dare"` |
//! | `context.rs` | a run in progress: its phases, and the results of its jobs |
//! | `not_forgotten.rs` | why no edit was found for a concept |
//! | `edits.rs` | the edits of a run |
//! | `judgement.rs` | evaluates a composed model on removed concepts and retained classes |
//! | `built_in/` | the built-in probes |
//! | `record.rs` | makes the record and the summary |
//! | [`evaluate`] | measures a release that no run has measured |
//! | [`recompose`] | a new release from the stored edits of an old one |

mod built_in;
mod context;
mod directions;
mod edits;
pub mod evaluate;
mod judgement;
mod least_squares;
mod margins;
mod not_forgotten;
mod preconditioned;
pub mod recompose;
mod record;
mod slug_search;
mod statistics;

use std::time::Instant;

use lethe_shared::edit::Edit;
use lethe_shared::manifest::{CompositionMethod, Gates, Names};
use lethe_shared::record::{ChangeBound, Composition, ProbeRecord, TowerAlone};
use lethe_store::Store;

use self::built_in::Subject;
pub use self::built_in::{
    Probed, digest as probe_digest, job_count as probe_job_count, probe_change, probe_model,
};
use self::context::Run;
use self::edits::{EditedConcept, Edits, Stored};
use self::judgement::HeldOut;
pub use self::judgement::{ModelJudgement, judge_change, judge_model};
pub use self::least_squares::layers as least_squares_layers;
use crate::attest::key::SigningKey;
use crate::compose::apply::{self, Change, Directions};
use crate::compose::measure::Judgement;
use crate::compose::{gate_rules, merge, protected};
use crate::downstream::{self, Staged};
use crate::exec::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};
use crate::intake::run_manifest;
use crate::present::report::Thumbnails;
use crate::present::run_summary::{Report, Status};
use crate::release::channels;
use crate::release::publish::{self, Published};
use crate::release::write::{self, Contents};
use crate::release::{gates, policy, signing};

/// Options of a run that change neither edits nor weights.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Gates that the release has to pass in addition to its manifest's, before `latest` points to
    /// it.
    pub gates: Option<Gates>,
    /// Key that signs the release.
    pub signer: Option<SigningKey>,
    /// Hides progress.
    pub quiet: bool,
}

/// Executes a plan: computes the edits, composes and evaluates them, and publishes the release.
/// Returns the run's summary and the release's record.
///
/// # Errors
/// [`Failure::BadInput`] when a required input is invalid, [`Failure::Infrastructure`] when queue,
/// store or workers fail, [`Failure::Cancelled`]. A run that ends incomplete, or whose release
/// misses a gate, is not an error; see [`Report::status`].
///
/// # Cancel safety
/// The future can be dropped at any point. Stored outcomes and files stay, and a new call with the
/// same plan resumes from them. A release becomes visible only once it is complete.
pub async fn run(
    plan: &Plan,
    options: &Options,
    dispatcher: &Dispatcher,
) -> Result<(Report, Composition), Failure> {
    let mut run = Run::new(plan, dispatcher, options.quiet).await?;
    let (mut edits, base) = match plan.manifest.composition.method() {
        CompositionMethod::Margins => margins::edits(&mut run).await?,
        CompositionMethod::LeastSquares => least_squares::edits(&mut run).await?,
        method if method.corrects() => preconditioned::edits(&mut run).await?,
        _ => slug_search::edits(&mut run).await?,
    };
    edits.missing.sort_by(|a, b| a.id.cmp(&b.id));

    let directions = Stored::of(plan, dispatcher);
    let mut applied = edits.recipe.edits();
    let (mut change, mut encoded) = run.compose(&applied, &directions).await?;
    let bound = bounded(plan, &change)?;
    if let Some(bound) = &bound {
        edits.recipe = edits.recipe.scaled(bound.scale);
        applied = edits.recipe.edits();
        (change, encoded) = run.compose(&applied, &directions).await?;
    }
    let edited: Vec<&PlannedConcept> = edits.found.iter().map(|found| found.planned).collect();
    let towers = run.judge_towers(&edits.found, &base, &change).await?;
    let judgement = run.judge(&edited, &base, Some(encoded)).await?;
    let asked = &plan.manifest.evaluation.probes;
    let subject = Subject { base_plan: plan, change: &change, edited: &edited, base: &base };
    let probes = run.probes(asked, &subject).await?;
    run.tell();

    let began = Instant::now();
    let composed = Composed {
        edits: &edits,
        applied: &applied,
        directions: &directions,
        change: &change,
        bound,
        towers,
        probes,
    };
    let (address, record, published) = release(&run, composed, &base, judgement).await?;
    if let Some(key) = &options.signer {
        let released = publish::open(&dispatcher.store, &published).await?;
        signing::sign(&released, key, &dispatcher.fence).await?;
    }
    run.took("release", began);

    let report = conclude(&run, options, address, &record, &published).await?;
    Ok((report, record))
}

/// A composed change, and its edits.
struct Composed<'a> {
    edits: &'a Edits<'a>,
    applied: &'a [Edit],
    directions: &'a Stored<'a>,
    change: &'a Change,
    /// How the edits were scaled, if they were.
    bound: Option<ChangeBound>,
    /// What the change of each tower does by itself.
    towers: Vec<TowerAlone>,
    /// What built-in probes measured.
    probes: Vec<ProbeRecord>,
}

/// Returns how the edits of a change have to be scaled so that no layer changes by more than
/// `composition.change`; `None` if they need not be.
fn bounded(plan: &Plan, change: &Change) -> Result<Option<ChangeBound>, Failure> {
    let Some(most) = plan.manifest.composition.change else { return Ok(None) };
    let sizes = apply::sizes(&plan.checkpoint, change)?;
    let found = sizes.into_values().fold(0.0, f64::max);
    Ok((found > most).then(|| ChangeBound { most, found, scale: most / found }))
}

/// Writes the release of a composed change. Returns its address, its record, and its number.
async fn release(
    run: &Run<'_>,
    composed: Composed<'_>,
    base: &HeldOut,
    judgement: Judgement,
) -> Result<(String, Composition, Published), Failure> {
    let (plan, dispatcher) = (run.plan, run.dispatcher);
    let Composed { edits, applied, directions, change, bound, towers, probes } = composed;
    let mut record = record::make_record(plan, change, edits, base, judgement)?;
    (record.change_bound, record.towers, record.probes) = (bound, towers, probes);
    if let Some(origin) = &mut record.origin {
        origin.arithmetic = run.arithmetic.iter().cloned().collect();
    }
    let protected = match &edits.protected {
        Some(artifact) => Some(dispatcher.artifact(&plan.run, artifact).await?),
        None => None,
    };
    if let Some(texts) = &plan.protected {
        record.protected =
            protected::moved(&plan.checkpoint, change, protected.as_deref(), &texts.names)?;
    }
    let thumbnails = match plan.manifest.release.names {
        Names::Plain => fetch_thumbnails(plan, dispatcher, &edits.found).await?,
        // A picture identifies a concept as a name does.
        Names::Hashed => Thumbnails::new(),
    };
    let contents = Contents {
        change,
        edits: applied,
        directions,
        effect_matrix: edits.recipe.effect_matrix(),
        protected: protected.as_ref(),
        thumbnails: &thumbnails,
        targets: staged(plan, applied, directions, &dispatcher.store).await?,
    };
    write::write(&dispatcher.store, &dispatcher.fence, &plan.checkpoint, contents, record).await
}

/// Checks a release against its gates and its manifest's policy, points `latest` to it if it
/// passes, and stores the run's summary.
async fn conclude(
    run: &Run<'_>,
    options: &Options,
    address: String,
    record: &Composition,
    published: &Published,
) -> Result<Report, Failure> {
    let (plan, store, fence) = (run.plan, &run.dispatcher.store, &run.dispatcher.fence);
    let summary = record::summarise(run, record);
    let bounds: Vec<&Gates> = [&plan.manifest.gates].into_iter().chain(&options.gates).collect();
    let mut warnings = gate_rules::warnings(bounds.iter().copied(), record);
    warnings.extend(record::mixed_arithmetic(&run.arithmetic));
    for warning in &warnings {
        tracing::warn!("{warning}");
        run.dispatcher.show.problem(warning);
    }
    let mut missed = gate_rules::all_missed(bounds.iter().copied(), record);
    missed.extend(gates::unsigned(bounds, &publish::open(store, published).await?).await?);
    let status = match policy::is_satisfied(&plan.manifest.policy.required, record) {
        _ if !missed.is_empty() => Status::GatesMissed,
        true => Status::Complete,
        false => Status::Incomplete,
    };
    let unmoved = match status {
        Status::Complete => {
            channels::advance(store, fence, published).await?.map(|unmoved| unmoved.to_string())
        }
        Status::Incomplete | Status::GatesMissed => None,
    };
    let (number, digest) = (published.number, record.digest);
    let report = Report {
        run: plan.run.clone(),
        release: address,
        number,
        digest,
        status,
        missed,
        unmoved,
        warnings,
        summary,
    };
    run_manifest::keep(store, fence, plan).await?;
    fence.check().await?;
    store.put_json(&format!("runs/{}/summary.json", plan.run), &report).await?;
    Ok(report)
}

/// Returns the manifest's targets with the edits applied, ready to be written.
async fn staged<'a>(
    plan: &'a Plan,
    edits: &[Edit],
    directions: &impl Directions,
    store: &Store,
) -> Result<Vec<Staged<'a>>, Failure> {
    let mut staged = Vec::with_capacity(plan.targets.len());
    for one in &plan.targets {
        let edited = one
            .edited(&plan.checkpoint, edits, merge::rule(&plan.manifest.composition), directions)
            .await?;
        let one = downstream::stage(one, edited, store).await?;
        one.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        staged.push(one);
    }
    Ok(staged)
}

/// Fetches the thumbnails of all concepts. Corrupt ones are produced again.
async fn fetch_thumbnails(
    plan: &Plan,
    dispatcher: &Dispatcher,
    found: &[EditedConcept<'_>],
) -> Result<Thumbnails, Failure> {
    let mut thumbnails = Thumbnails::new();
    for found in found {
        if let Some(strip) = &found.thumbnails {
            thumbnails.insert(
                found.planned.concept.id.clone(),
                dispatcher.artifact(&plan.run, strip).await?,
            );
        }
    }
    Ok(thumbnails)
}
