//! Accuracy on retained classes, before and after.

use serde::{Deserialize, Serialize};

use crate::measurement::ClassHits;

/// Accuracy on retained classes: those that are not the class of a concept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Utility {
    /// Number of retained classes in the class list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained_classes: Option<u64>,
    /// On the validation set, which the step search and the choice of a layer used.
    pub validation: Option<UtilityOn>,
    /// On the test set, which was used for evaluation only.
    pub test: Option<UtilityOn>,
}

/// Zero-shot accuracy on one set: over all retained classes, and over groups of classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UtilityOn {
    /// Images of retained classes.
    pub images: u64,
    /// TA@1 and TA@5 of the base model.
    pub before: Retained,
    /// TA@1 and TA@5 of the composed model.
    pub after: Retained,
    /// The ten retained classes that lost most, worst first.
    pub worst: Vec<WorstClass>,
    /// Retained classes that are named in a retain caption or an unlabelled text, and so are part
    /// of the retain statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covered: Option<Group>,
    /// Retained classes that are not named there: they show how far protection generalises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub never_seen: Option<Group>,
    /// Classes of the removed concepts, on images outside their forget sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Group>,
}

impl UtilityOn {
    /// Explanation of the groups, for reports.
    pub const GROUPS: &str = "Covered are retained classes that a retain caption or an unlabelled text names, so that what protects \
                              them has seen something of them; never seen are those that none names; removed are the classes of the \
                              removed concepts, here on images outside their forget sets.";

    /// Returns the groups that have images, with their names.
    pub fn groups(&self) -> impl Iterator<Item = (&'static str, &Group)> {
        let groups = [
            ("covered", &self.covered),
            ("never seen", &self.never_seen),
            ("removed", &self.removed),
        ];
        groups.into_iter().filter_map(|(name, group)| Some((name, group.as_ref()?)))
    }
}

/// Zero-shot accuracy over the images of some classes; there is at least one image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Classes that have images in the set.
    pub classes: u64,
    /// Their images.
    pub images: u64,
    /// Of the base model.
    pub before: Retained,
    /// Of the composed model.
    pub after: Retained,
}

/// Zero-shot accuracy over all images of some classes, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retained {
    /// Top-1.
    pub ta1: f64,
    /// Top-5.
    pub ta5: f64,
}

/// A retained class and what it lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorstClass {
    /// Class name.
    pub class: String,
    /// Hits of the base model.
    pub before: ClassHits,
    /// Hits of the composed model.
    pub after: ClassHits,
}
