//! `lethe evaluate --model`: measures any CLIP on a manifest's data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lethe_operations::log::say;
use lethe_operations::trace::TraceContext;
use lethe_shared::digest::Digest;
use lethe_shared::exit;
use lethe_shared::manifest::{BuiltInProbe, Manifest};
use lethe_shared::record::verdict::Criterion;
use lethe_shared::record::{Measured, ProbeRecord, Recognition, Utility};
use lethe_shared::retry::RetryPolicy;
use lethe_store::Store;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::common::{cache, here, print};
use super::workers::Workers;
use crate::failure::Failure;
use crate::intake::plan::Plan;
use crate::present::run_summary;
use crate::retry::retry;
use crate::run;

/// The last line of `lethe evaluate --model --json`.
#[derive(Debug, Serialize)]
struct MeasuredModel<'a> {
    model: String,
    /// Over the model's tensors in name order.
    digest: Digest,
    base: String,
    base_digest: Digest,
    concepts: BTreeMap<&'a str, MeasuredConcept>,
    /// Concepts that the base model knew.
    known: usize,
    /// Those of them that the model has forgotten.
    forgotten: usize,
    utility: &'a Utility,
    #[serde(skip_serializing_if = "Option::is_none")]
    recognition: Option<&'a Recognition>,
    /// Results of built-in probes.
    #[serde(skip_serializing_if = "<[ProbeRecord]>::is_empty")]
    probes: &'a [ProbeRecord],
    jobs_found: usize,
    jobs_done: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct MeasuredConcept {
    /// The base model.
    before: Option<Measured>,
    /// The model.
    after: Option<Measured>,
}

/// What is measured, and where.
pub(super) struct Options<'a> {
    /// The manifest with the data and the base model.
    pub(super) manifest: &'a Path,
    /// The model's folder.
    pub(super) model: &'a str,
    /// Built-in probes to measure with.
    pub(super) probes: &'a [BuiltInProbe],
    /// The store for outcomes; the manifest's when there is none.
    pub(super) store: Option<&'a str>,
    pub(super) workers: &'a Workers,
    pub(super) json: bool,
    /// Folder for downloads.
    pub(super) cache: Option<&'a PathBuf>,
}

pub(super) async fn main(options: Options<'_>, cancel: CancellationToken) -> Result<u8, Failure> {
    let cache = cache(options.cache);
    let manifest = Manifest::read(options.manifest)?;
    let store = match options.store {
        Some(text) => here("--store", text)?,
        None => manifest.address("release.uri", &manifest.release.uri)?,
    };
    let address = here("--model", options.model)?;
    let mut of_model = manifest.clone();
    of_model.model.uri = address.to_string();
    // The model takes no edits: neither a layer to edit nor what carries edits is looked for.
    of_model.composition.layer = None;
    of_model.release.target.clear();
    let plan = Plan::of(manifest, &cache).await?;
    let mut other = Plan::of(of_model, &cache).await?;
    // The jobs of both models belong to one run.
    other.run.clone_from(&plan.run);

    let store = Store::open(&store)?;
    retry(&RetryPolicy::service(options.workers.give_up()), "probe the store", &cancel, || {
        store.probe()
    })
    .await?;
    let span =
        info_span!("run", run = %plan.run, trace = TraceContext::of_run(&plan.run).trace_id());
    let judged = options.workers.with(&plan, store, &cache, cancel, async |dispatcher| {
        let mut judged = run::judge_model(&plan, &other, dispatcher).await?;
        let mut results = Vec::new();
        if !options.probes.is_empty() {
            let probed = run::probe_model(&plan, &other, dispatcher, options.probes).await?;
            judged.after.jobs_found += probed.jobs_found;
            judged.after.jobs_done += probed.jobs_done;
            results = probed.results;
        }
        Ok((judged, results))
    });
    let (run::ModelJudgement { before, after }, probes) = judged.instrument(span).await?;

    let (mut known, mut forgotten) = (0, 0);
    let mut concepts = BTreeMap::new();
    for planned in &plan.concepts {
        let id = planned.concept.id.as_str();
        let criterion = Criterion { stop: planned.stop, tolerance: planned.tolerance };
        let measured = MeasuredConcept {
            before: before.get(id).copied(),
            after: after.concepts.get(id).copied(),
        };
        let is_met = |measured: Option<Measured>| measured.is_some_and(|m| criterion.is_met(&m));
        if !is_met(measured.before) {
            known += 1;
            forgotten += usize::from(is_met(measured.after));
        }
        concepts.insert(id, measured);
    }
    if known < plan.concepts.len() {
        let unknown = plan.concepts.len() - known;
        say("warning", &format!("the base model did not recognise {unknown} of the concepts"));
    }
    if options.json {
        let measured = MeasuredModel {
            model: address.to_string(),
            digest: other.model.weights,
            base: plan.model.address.to_string(),
            base_digest: plan.model.weights,
            concepts,
            known,
            forgotten,
            utility: &after.utility,
            recognition: after.recognition.as_ref(),
            probes: &probes,
            jobs_found: after.jobs_found,
            jobs_done: after.jobs_done,
        };
        print(&serde_json::to_string(&measured).map_err(Failure::input)?)?;
    } else {
        print(&run_summary::model_table(
            &address.to_string(),
            other.model.weights,
            (known, forgotten),
            &after,
            &probes,
        ))?;
    }
    Ok(exit::DONE)
}
