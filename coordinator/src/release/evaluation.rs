//! What was measured on a release after it was made.
//!
//! | key | what |
//! |---|---|
//! | `releases/<name>/evaluations/<record digest>/evaluation.json` | [`Evaluation`], created once, after the two pages |
//! | `releases/<name>/evaluations/<record digest>/README.md`, `report.html` | the release's card and report with these numbers |
//!
//! A release itself never changes, so its numbers stand beside it. They are what its run would have measured on these weights with the
//! run's own data, and so a pure function of what the record names; there is one evaluation of a release, and no choice among several.

use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::record::{Composition, Measured, ReleaseRef, Said, Utility};
use lethe_shared::store::{self, Store};
use serde::{Deserialize, Serialize};

use super::read::Release;
use crate::failure::Failure;
use crate::run::Judgement;
use crate::{card, report};

/// Version of the format.
const VERSION: u32 = 1;
const DOCUMENT: &str = "evaluation.json";

/// Numbers of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    version: u32,
    /// Which one.
    pub release: ReleaseRef,
    /// SHA-256 over the weights' bytes in name order.
    pub digest: Digest,
    /// How well each of its concepts is still known, by id.
    pub concepts: BTreeMap<String, Measured>,
    /// What the model says of each concept's forget images, by id; nothing where names are hashed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub said: BTreeMap<String, Said>,
    /// What must stay, before and after.
    pub utility: Utility,
}

/// Where the evaluation of a release is.
pub fn folder(release: &ReleaseRef) -> String {
    format!("releases/{}/evaluations/{}", release.name, release.record.short())
}

impl Evaluation {
    /// What was judged on a release.
    pub fn new(release: &Release, judgement: Judgement) -> Self {
        let Judgement { concepts, mut said, utility, .. } = judgement;
        if release.record.origin.as_ref().is_some_and(|origin| origin.hashed_names) {
            said.clear();
        }
        Self { version: VERSION, release: release.reference(), digest: release.record.digest, concepts, said, utility }
    }

    /// The evaluation of a release, when there is one.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when it is about something else.
    pub async fn find(store: &Store, release: &Release) -> Result<Option<Self>, Failure> {
        let key = format!("{}/{DOCUMENT}", folder(&release.reference()));
        let Some(found) = store.get_json::<Self>(&key).await? else { return Ok(None) };
        let record = &release.record;
        let fits = found.version == VERSION
            && found.release == release.reference()
            && found.digest == record.digest
            && found.concepts.keys().eq(record.concepts.iter().map(|concept| &concept.id));
        if fits { Ok(Some(found)) } else { Err(Failure::input(format!("{}/{key} is about another release", store.name()))) }
    }

    /// A release's record with these numbers in it, as its run would have written it.
    #[must_use]
    pub fn onto(&self, mut record: Composition) -> Composition {
        for concept in &mut record.concepts {
            concept.composed = self.concepts.get(&concept.id).copied();
            concept.said_composed = self.said.get(&concept.id).cloned();
        }
        record.utility = self.utility.clone();
        record
    }

    /// Writes it where nothing is, and returns what is there then: of two who measured at one moment, the first one counts.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn write(self, store: &Store, release: &Release) -> Result<Self, Failure> {
        let folder = folder(&self.release);
        let record = self.onto(release.record.clone());
        let files: Vec<String> = record.files.keys().cloned().collect();
        let (recipe, thumbnails) = (release.recipe().await?, release.thumbnails().await?);
        let page = report::Source { record: &record, interference: recipe.interference(), thumbnails: &thumbnails, run: None };
        for (name, text) in [("README.md", card::render(&record, &files)), ("report.html", report::render(&page))] {
            match store.create(&format!("{folder}/{name}"), Bytes::from(text)).await {
                Ok(_) | Err(store::Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match store.create_json(&format!("{folder}/{DOCUMENT}"), &self).await {
            Ok(_) => Ok(self),
            Err(store::Error::Conflict { .. }) => Ok(Self::find(store, release).await?.unwrap_or(self)),
            Err(error) => Err(error.into()),
        }
    }
}

/// The record of a release with every number that there is of it: the run's, or those of its evaluation.
///
/// # Errors
/// As [`Evaluation::find`].
pub async fn measured(store: &Store, release: &Release) -> Result<Composition, Failure> {
    let record = release.record.clone();
    if record.is_measured() {
        return Ok(record);
    }
    Ok(match Evaluation::find(store, release).await? {
        Some(evaluation) => evaluation.onto(record),
        None => record,
    })
}
