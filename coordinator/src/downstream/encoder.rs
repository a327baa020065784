//! One tower of a target, and the parts of it that the target uses.

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::checkpoint::tower::{TowerMap, Weight};
use lethe_shared::record::targets::UneditedEncoder;

use super::settings::Settings;

/// The part of a tower that a target uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Number of blocks, from the first one on.
    pub blocks: usize,
    /// Whether the norm after the last block is used.
    pub last_norm: bool,
    /// Whether the projection into the shared space is used.
    pub projection: bool,
    /// Whether the target takes one vector for a text or an image, and no states of single tokens.
    pub is_pooled: bool,
}

impl Reach {
    /// Returns whether a change of this weight changes the target's output.
    pub fn acts(&self, weight: Weight) -> bool {
        match weight {
            Weight::Block(block, ..) => block < self.blocks,
            Weight::LastNorm(_) => self.last_norm,
            Weight::Projection => self.projection,
            Weight::Input | Weight::Class | Weight::Position | Weight::FirstNorm(_) => true,
        }
    }
}

/// What the configuration of a target says.
pub(super) struct Found {
    /// Its class, or its `model_type`.
    pub(super) architecture: String,
    /// Towers that may be the base's.
    pub(super) expected: Vec<Expected>,
    /// Text encoders that are not CLIP's.
    pub(super) unedited: Vec<UneditedEncoder>,
}

/// A tower that targets of some kind contain.
pub(super) struct Expected {
    pub(super) folder: String,
    /// Its class.
    pub(super) class: String,
    /// Returns the used part of a tower with this number of blocks.
    pub(super) reach: Box<dyn Fn(usize) -> Result<Reach, String> + Send + Sync>,
    /// What the target reads of the tower, for a person.
    pub(super) reads: String,
    /// Number of blocks by the configuration, which may differ from the number stored.
    pub(super) blocks: Option<usize>,
    /// Message with the tower's source if the target need not contain the tower.
    pub(super) elsewhere: Option<String>,
    /// What its configuration says of the computation, where there is one.
    pub(super) settings: Option<Settings>,
}

/// A tower of a target that equals the base's.
#[derive(Debug)]
pub struct Encoder {
    /// Its folder in the target; empty for the root.
    pub(super) folder: String,
    /// Number of blocks by its configuration.
    pub(super) blocks: usize,
    pub(super) reach: Reach,
    /// What the target reads of it, for a person.
    pub(super) reads: String,
    /// Whether the target reads it. A copy that the target does not read is edited too, and has no
    /// say in which layers may be edited.
    pub(super) is_used: bool,
    /// Its weights, one set per stored precision.
    pub(super) sets: Vec<WeightSet>,
    /// Largest relative distance of a tensor from the base's.
    pub(super) distance: f64,
}

impl Encoder {
    /// Returns the files that hold its weights, by their path in the target.
    pub(super) fn files(&self) -> impl Iterator<Item = String> {
        let below = |name: &str| match self.folder.as_str() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        };
        self.sets.iter().flat_map(|set| set.checkpoint.file_names()).map(below)
    }

    /// Returns whether an edit of this weight has an effect here.
    pub(super) fn acts(&self, weight: Weight) -> bool {
        self.reach.acts(weight)
            && self.sets.iter().all(|set| set.map.places().contains_key(&weight))
    }
}

/// The tower's weights in one file, or in the files of one index.
#[derive(Debug)]
pub(super) struct WeightSet {
    /// File or index, by its path in the target.
    pub(super) name: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) map: TowerMap,
}
