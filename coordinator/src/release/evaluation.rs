//! Measurements of a release that were made after the release.
//!
//! | key | content |
//! |---|---|
//! | `releases/<name>/evaluations/<record digest>/evaluation.json` | [`Evaluation`], created once, after the two pages |
//! | `releases/<name>/evaluations/<record digest>/README.md`, `report.html` | the release's card and report with these numbers |
//!
//! A release never changes, so its measurements are stored beside it. They are the measurements
//! that its run would have made of these weights on the run's own data: a pure function of the
//! record's inputs. A release therefore has one evaluation, and nobody can choose among several.
//! Results of [`probes`] are stored in the same folder.

use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::record::{
    Composition, Measured, Recognition, ReleaseRef, TopPredictions, Utility,
};
use lethe_store as store;
use lethe_store::Store;
use serde::{Deserialize, Serialize};

use super::probes;
use super::read::Release;
use crate::compose::measure::Judgement;
use crate::failure::Failure;
use crate::layout;
use crate::lease::fence::Fence;
use crate::present::report::ProbePictures;
use crate::present::{card, report};

/// Version of the format.
const VERSION: u32 = 1;
const DOCUMENT: &str = "evaluation.json";

/// Measurements of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    version: u32,
    /// The measured release.
    pub release: ReleaseRef,
    /// SHA-256 over the weights' bytes in name order.
    pub digest: Digest,
    /// Accuracy on each of its concepts, by id.
    pub concepts: BTreeMap<String, Measured>,
    /// The model's predictions on each concept's forget images, by id; empty if names are hashed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub said: BTreeMap<String, TopPredictions>,
    /// Accuracy on retained classes, before and after.
    pub utility: Utility,
    /// What can still be told of removed concepts; absent in evaluations of earlier versions of
    /// Lethe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recognition: Option<Recognition>,
}

/// Returns the folder of a release's evaluation.
pub fn folder(release: &ReleaseRef) -> String {
    layout::evaluations(&release.name, &release.record.short().to_string())
}

impl Evaluation {
    /// Creates the evaluation of a release from a judgement.
    pub fn new(release: &Release, judgement: Judgement) -> Self {
        let Judgement { concepts, mut said, utility, recognition, .. } = judgement;
        if release.record.origin.as_ref().is_some_and(|origin| origin.hashed_names) {
            said.clear();
        }
        Self {
            version: VERSION,
            release: release.reference(),
            digest: release.record.digest,
            concepts,
            said,
            utility,
            recognition,
        }
    }

    /// Returns the evaluation of a release, if there is one.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the stored evaluation is of another release.
    pub async fn find(store: &Store, release: &Release) -> Result<Option<Self>, Failure> {
        let key = format!("{}/{DOCUMENT}", folder(&release.reference()));
        let Some(found) = store.get_json::<Self>(&key).await? else { return Ok(None) };
        let record = &release.record;
        let fits = found.version == VERSION
            && found.release == release.reference()
            && found.digest == record.digest
            && found.concepts.keys().eq(record.concepts.iter().map(|concept| &concept.id));
        if fits {
            Ok(Some(found))
        } else {
            Err(Failure::input(format!("{}/{key} is about another release", store.name())))
        }
    }

    /// Returns a release's record with these measurements, equal to the record of a run with the
    /// same result.
    #[must_use]
    pub fn onto(&self, mut record: Composition) -> Composition {
        for concept in &mut record.concepts {
            concept.composed = self.concepts.get(&concept.id).copied();
            concept.predictions_composed = self.said.get(&concept.id).cloned();
        }
        record.utility = self.utility.clone();
        record.recognition = self.recognition.clone();
        record.judge();
        record
    }

    /// Creates the evaluation and returns the stored one. Of two concurrent evaluations, the first
    /// one stays.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when another coordinator has taken the run over, or the store
    /// cannot be written.
    pub async fn write(
        self,
        store: &Store,
        fence: &Fence,
        release: &Release,
    ) -> Result<Self, Failure> {
        let folder = folder(&self.release);
        let record = self.onto(release.record.clone());
        let files: Vec<String> = record.files.keys().cloned().collect();
        let (recipe, thumbnails) = (release.recipe().await?, release.thumbnails().await?);
        let page = report::Source {
            record: &record,
            effect_matrix: recipe.effect_matrix(),
            thumbnails: &thumbnails,
            pictures: &ProbePictures::new(),
            run: None,
        };
        for (name, text) in
            [("README.md", card::render(&record, &files)), ("report.html", report::render(&page))]
        {
            fence.check().await?;
            match store.create(&format!("{folder}/{name}"), Bytes::from(text)).await {
                Ok(_) | Err(store::Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        fence.check().await?;
        match store.create_json(&format!("{folder}/{DOCUMENT}"), &self).await {
            Ok(_) => Ok(self),
            Err(store::Error::Conflict { .. }) => {
                Ok(Self::find(store, release).await?.unwrap_or(self))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns the record of a release with its measurements: those of the run or of its evaluation,
/// and those of probes.
///
/// # Errors
/// As [`Evaluation::find`] and [`probes::all`].
pub async fn measured(store: &Store, release: &Release) -> Result<Composition, Failure> {
    let mut record = release.record.clone();
    if !record.is_measured()
        && let Some(evaluation) = Evaluation::find(store, release).await?
    {
        record = evaluation.onto(record);
    }
    for result in probes::all(store, release).await? {
        // What a run measured is part of the release.
        if record.probe(&result.name).is_none() {
            probes::put(&mut record, result);
        }
    }
    Ok(record)
}
