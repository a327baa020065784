//! The command `lethe evaluate`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use lethe_operations::log::say;
use lethe_operations::trace::TraceContext;
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::exit;
use lethe_shared::manifest::{BuiltInProbe, Gates};
use lethe_shared::record::verdict::JudgedConcept;
use lethe_shared::record::{Composition, Measured, ProbeRecord, Recognition, Utility};
use lethe_shared::retry::RetryPolicy;
use lethe_store as store;
use lethe_store::Store;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::common::{cache, here, print};
use super::evaluate_model;
use super::find;
use super::probe;
use super::workers::Workers;
use crate::compose::apply::Change;
use crate::compose::gate_rules;
use crate::compose::rounding::{self, Rounding};
use crate::exec::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::intake::plan::Plan;
use crate::present::run_summary;
use crate::release::evaluation::{self, Evaluation};
use crate::release::probes;
use crate::release::read::Release;
use crate::retry::retry;
use crate::run;
use crate::run::evaluate::{self, Basis};

#[derive(Debug, Args)]
pub(super) struct Evaluate {
    /// The release: its folder, STORE/releases/NAME/DIGEST, or NAME, NAME:NUMBER or NAME@CHANNEL in
    /// --store. With --model, the manifest whose data and concepts the model is measured on.
    #[arg(value_name = "RELEASE")]
    release: String,
    /// Measure this CLIP model beside the base model of a manifest, instead of a release: a folder,
    /// here or s3://, gs://, az:// or hf://. Any CLIP that reads the manifest's data can be measured, so
    /// that models made by other tools stand beside releases. The measurements are printed and not
    /// stored.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["manifest", "gates", "rounded"])]
    model: Option<String>,
    /// Measure the release with this probe too: words, rounded, halfway, random, relearn, features,
    /// forgetting or soft-prompt, which are built in, or a file that names a command
    /// (docs/probes.md). Its numbers are stored beside the release, shown in card and report, and
    /// can be gates. Can be given several times.
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = ["rounded"])]
    probe: Vec<PathBuf>,
    /// The manifest of the run that found its edits, if the store has none or the data has moved
    /// since. If concepts were added from other runs, also the manifests of those.
    #[arg(long, value_name = "MANIFEST")]
    manifest: Vec<PathBuf>,
    /// The store for outcomes, the run's manifest and the measurements, by default the store of the
    /// release. If the release is given by name, it is looked up here; without this option in
    /// LETHE_STORE, or else in ./store.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Gates to check in addition to the record's: a file with a `[gates]` section.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    /// Measure the release's weights rounded to a type, as they are before they are served, instead
    /// of the weights themselves. The measurements are printed and not stored.
    #[arg(long, value_name = "TYPE")]
    rounded: Option<Rounding>,
    #[command(flatten)]
    workers: Workers,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

/// The last line of `lethe evaluate --json`.
#[derive(Debug, Serialize)]
struct Evaluated<'a> {
    release: String,
    /// Folder with the measurements, card and report; absent if the release's own record has them.
    evaluation: Option<String>,
    digest: Digest,
    /// The type that the weights were rounded to; `digest` is of the weights before.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounded: Option<&'static str>,
    concepts: BTreeMap<&'a str, Option<Measured>>,
    /// Concepts that have an edit and are not removed, with the reasons.
    not_removed: Vec<JudgedConcept>,
    utility: &'a Utility,
    /// What can still be told of removed concepts.
    #[serde(skip_serializing_if = "Option::is_none")]
    recognition: Option<&'a Recognition>,
    /// Results of probes, also of earlier calls.
    #[serde(skip_serializing_if = "<[ProbeRecord]>::is_empty")]
    probes: &'a [ProbeRecord],
    missed: Vec<String>,
    warnings: Vec<String>,
    jobs_found: usize,
    jobs_done: usize,
}

pub(super) async fn main(options: &Evaluate, cancel: CancellationToken) -> Result<u8, Failure> {
    let (built_in, probes) = probe::read(&options.probe)?;
    if let Some(model) = &options.model {
        if let Some(probe) = probes.first() {
            return Err(Failure::input(format!(
                "the probe {} is a command, which measures releases; with --model, give built-in probes",
                probe.name
            )));
        }
        let options = evaluate_model::Options {
            probes: &built_in,
            manifest: Path::new(&options.release),
            model,
            store: options.store.as_deref(),
            workers: &options.workers,
            json: options.json,
            cache: options.cache.as_ref(),
        };
        return evaluate_model::main(options, cancel).await;
    }
    let more = options.gates.as_deref().map(Gates::read).transpose()?;
    let (release, store) = open(options).await?;
    let there = evaluation::measured(&store, &release).await?;
    let wanted = probe::wanted(&built_in, &there)?;
    let is_complete = there.is_measured() && options.rounded.is_none() && wanted.is_empty();
    let (record, jobs_found, jobs_done) = if is_complete {
        (there, 0, 0)
    } else {
        judge(options, &release, store.clone(), there, &wanted, cancel.clone()).await?
    };
    let cache = cache(options.cache.as_ref());
    let record = probe::measure(&probes, &release, &store, record, &cache, &cancel).await?;
    let asked = || record.gates.iter().chain(&more);
    let (missed, warnings) =
        (gate_rules::all_missed(asked(), &record), gate_rules::warnings(asked(), &record));
    let apart = !release.record.is_measured() && options.rounded.is_none();
    let folder =
        apart.then(|| format!("{}/{}", store.name(), evaluation::folder(&release.reference())));
    for gate in &missed {
        say("error", &format!("a gate is not met: {gate}"));
    }
    for warning in &warnings {
        say("warning", warning);
    }
    let code = if missed.is_empty() { exit::DONE } else { exit::NOT_PASSED };
    if options.json {
        let evaluated = Evaluated {
            release: release.address(),
            evaluation: folder,
            digest: record.digest,
            rounded: options.rounded.map(Rounding::name),
            concepts: record
                .concepts
                .iter()
                .map(|concept| (concept.id.as_str(), concept.composed))
                .collect(),
            not_removed: record.not_removed(),
            utility: &record.utility,
            recognition: record.recognition.as_ref(),
            probes: &record.probes,
            missed,
            warnings,
            jobs_found,
            jobs_done,
        };
        print(&serde_json::to_string(&evaluated).map_err(Failure::input)?)?;
    } else {
        let jobs = format!("{jobs_done} executed, {jobs_found} reused");
        print(&run_summary::evaluation_table(
            &record,
            &release.address(),
            &jobs,
            folder.as_deref(),
            options.rounded.map(Rounding::name),
            &warnings,
        ))?;
    }
    Ok(code)
}

/// Returns the release, and the store with its run's outcomes.
async fn open(options: &Evaluate) -> Result<(Release, Store), Failure> {
    let release = find::release(&options.release, options.store.as_deref()).await?;
    let store = match options.store.as_deref().map(|text| here("--store", text)).transpose()? {
        Some(address) => Store::open(&address)?,
        None if release.stored => release.store.clone(),
        None => {
            return Err(Failure::input(format!(
                "{} is not in a store; give the store for its measurements with --store",
                release.address()
            )));
        }
    };
    Ok((release, store))
}

/// Measures a release, and with some built-in probes. `there` is its record with the measurements
/// that are stored. Returns the record with all measurements, and the numbers of reused and
/// executed jobs.
async fn judge(
    options: &Evaluate,
    release: &Release,
    store: Store,
    there: Composition,
    probes: &[BuiltInProbe],
    cancel: CancellationToken,
) -> Result<(Composition, usize, usize), Failure> {
    let cache = cache(options.cache.as_ref());
    let mut given = Vec::new();
    for manifest in &options.manifest {
        given.push(Plan::make(manifest, &cache).await?);
    }
    let basis = Basis::find(release, &store, given, &cache).await?;
    let plan = &basis.plan;
    let folder =
        store::fetch_folder(&Address::parse(&release.address()).map_err(Failure::input)?, &cache)
            .await?;
    let released = tokio::task::spawn_blocking(move || Checkpoint::open(&folder));
    let released = released.await.map_err(|error| Failure::Infrastructure(error.to_string()))??;
    let mut change = evaluate::change(&plan.checkpoint, &released, &release.record)?;
    if let Some(rounding) = options.rounded {
        let rounded = tokio::task::spawn_blocking(move || {
            rounding::rounded(&released, &Change::new(), rounding)
        });
        let rounded =
            rounded.await.map_err(|error| Failure::Infrastructure(error.to_string()))??;
        change.extend(rounded);
    }
    retry(&RetryPolicy::service(options.workers.give_up()), "probe the store", &cancel, || {
        store.probe()
    })
    .await?;
    let span =
        info_span!("run", run = %plan.run, trace = TraceContext::of_run(&plan.run).trace_id());
    let judged = options.workers.with(plan, store.clone(), &cache, cancel, async |dispatcher| {
        let Dispatcher { store, fence, .. } = dispatcher;
        let (mut record, mut found, mut done) = (there, 0, 0);
        if !record.is_measured() || options.rounded.is_some() {
            let judgement = run::judge_change(plan, dispatcher, &change, &basis.edited()).await?;
            (found, done) = (judgement.jobs_found, judgement.jobs_done);
            let mut evaluation = Evaluation::new(release, judgement);
            if options.rounded.is_none() {
                evaluation = evaluation.write(store, fence, release).await?;
            }
            record = evaluation.onto(record);
            if options.rounded.is_some() {
                // They are of the weights before rounding.
                record.probes.clear();
            }
        }
        if !probes.is_empty() {
            let measured =
                run::probe_change(plan, dispatcher, &change, &basis.edited(), probes).await?;
            found += measured.jobs_found;
            done += measured.jobs_done;
            for result in measured.results {
                fence.check().await?;
                let kept = probes::keep_result(store, release, &record, result).await?;
                probes::put(&mut record, kept);
            }
        }
        Ok((record, found, done))
    });
    judged.instrument(span).await
}
