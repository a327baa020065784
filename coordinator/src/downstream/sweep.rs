//! A target's files outside of its encoders: further copies of the tower are edited too, wherever
//! they lie; files that may contain the tower and cannot be edited are left out and named, like
//! files of unknown kinds.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::checkpoint::is_safetensors_index;
use lethe_shared::checkpoint::tower::{TowerMap, has_part};
use lethe_shared::vocabulary::Tower;

use super::encoder::{Encoder, Expected, Reach};
use super::folder::Folder;
use super::kinds::{Component, Kind, is_component, is_packed, is_without_tower, kind};
use super::locate::{encoder, weight_sets};
use crate::failure::Failure;

/// Most files that a warning names.
const NAMED: usize = 20;

/// A look at all files of a target.
pub(super) struct Sweep<'a> {
    pub(super) folder: &'a Folder,
    pub(super) tower: Tower,
    pub(super) base: (&'a Checkpoint, &'a TowerMap),
    pub(super) tolerance: Option<f64>,
    /// Folders of encoders that are not the base's, and stay as they are.
    pub(super) kept: BTreeSet<String>,
    /// Components of a pipeline that may be pickled.
    pub(super) components: Vec<Component>,
    /// Whether the target is a pipeline, which does not read weights in its root folder.
    pub(super) is_pipeline: bool,
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Sweep<'_> {
    /// Adds further copies of the tower to the encoders, and returns the files to leave out.
    ///
    /// # Errors
    /// [`Failure`] when a file cannot be read.
    pub(super) async fn run(
        self,
        encoders: &mut Vec<Encoder>,
        warnings: &mut Vec<String>,
    ) -> Result<BTreeSet<String>, Failure> {
        let (mut carrying, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        // Safetensors with a part of the tower, by folder.
        let mut holding: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, bytes) in self.folder.files() {
            match kind(name, bytes) {
                Kind::Plain if is_packed(&self.folder.start(name).await?) => {
                    unknown.insert(name.to_owned());
                }
                Kind::Plain => {}
                Kind::Safetensors if self.is_pipeline && folder_of(name).is_empty() => {
                    carrying.insert(name.to_owned());
                }
                Kind::Safetensors => {
                    let tensors = self.folder.tensor_names(name).await?;
                    if has_part(tensors.iter().map(String::as_str), self.tower) {
                        holding.entry(folder_of(name)).or_default().insert(name);
                    }
                }
                Kind::OtherWeights => {
                    let passes = is_component(name, &self.components)
                        || (!self.is_pipeline && is_without_tower(name));
                    if !passes {
                        carrying.insert(name.to_owned());
                    }
                }
                Kind::Unknown => {
                    unknown.insert(name.to_owned());
                }
            }
        }
        for (at, files) in holding.into_iter().filter(|(at, _)| !self.kept.contains(*at)) {
            if !encoders.iter().any(|encoder| encoder.folder == at) {
                match self.copy_in(at).await? {
                    Ok(copy) => encoders.push(copy),
                    Err(reason) => {
                        warnings.push(format!("a copy of the tower cannot be edited: {reason}"));
                        let indexes =
                            self.folder.directly_in(at).filter(|name| is_safetensors_index(name));
                        carrying.extend(indexes.map(str::to_owned));
                    }
                }
            }
            let edited: BTreeSet<String> = encoders.iter().flat_map(Encoder::files).collect();
            carrying.extend(
                files.into_iter().filter(|name| !edited.contains(*name)).map(str::to_owned),
            );
        }
        if !carrying.is_empty() {
            warnings.push(format!(
                "{} may hold what is removed, and cannot be edited: left out",
                list(&carrying)
            ));
        }
        if !unknown.is_empty() {
            warnings.push(format!(
                "{}: an archive, a pickle or an unknown kind of file, which may contain weights: left out",
                list(&unknown)
            ));
        }
        carrying.extend(unknown);
        Ok(carrying)
    }

    /// Returns the tower in a folder that the target does not read, or why it cannot be edited.
    async fn copy_in(&self, at: &str) -> Result<Result<Encoder, String>, Failure> {
        let whole = |blocks| {
            Ok::<Reach, String>(Reach {
                blocks,
                last_norm: true,
                projection: true,
                is_pooled: false,
            })
        };
        let expected = Expected {
            folder: at.to_owned(),
            class: String::new(),
            reach: Box::new(whole),
            reads: String::new(),
            blocks: None,
            elsewhere: Some("only parts of it are there".to_owned()),
            settings: None,
        };
        let sets = match weight_sets(self.folder, &expected, self.tower).await {
            Ok(sets) => sets,
            Err(Failure::BadInput(problems)) => return Ok(Err(problems.join("; "))),
            Err(other) => return Err(other),
        };
        Ok(encoder(expected, sets, self.base, self.tolerance, false).and_then(|found| found))
    }
}

/// Joins names for a sentence.
fn list(names: &BTreeSet<String>) -> String {
    let named: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
