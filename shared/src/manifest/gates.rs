//! Gates: bounds that a release must meet before a channel is moved to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, at_line};
use super::lines::{line_at, line_of};
use crate::printable::printable;

/// Largest gate file, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// `[gates]`: bounds that a release must meet. An absent bound is not checked, except for
/// `utility_kept`, which has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gates {
    /// FA@1 in the composed model, mean over the removed concepts, on their forget sets; 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fa1_mean: Option<f64>,
    /// FA@1 of the concept with the highest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fa1_worst: Option<f64>,
    /// FA@5 in the composed model, mean over the removed concepts, on their forget sets; 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fa5_mean: Option<f64>,
    /// FA@5 of the concept with the highest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fa5_worst: Option<f64>,
    /// Loss of TA@1 over all images of retained classes of the test set, or of the validation set
    /// when there is no test set; 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utility_drop: Option<f64>,
    /// Loss of TA@1 of the retained class that lost most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour_drop: Option<f64>,
    /// Number of concepts of the manifest without an edit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// Number of concepts with strength 1 or more that the composed model still recognises beyond
    /// their tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub showing: Option<u64>,
    /// Smallest share of TA@1 over all images of retained classes that must be kept, on the
    /// validation set, or on the test set when there is no validation set; 0 to 1. The default is
    /// 0.8 where this was measured; 0 turns the gate off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utility_kept: Option<f64>,
    /// The same, over retained classes that are named in a retain caption or an unlabelled text.
    /// Without this gate, a release that keeps less than 0.95 causes a warning but is promoted; 0
    /// turns the warning off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covered_kept: Option<f64>,
    /// Largest relative change of a layer, ‖Δ‖/‖θ‖.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<f64>,
    /// Largest relative change of the output of an edited layer over all texts of `data.protect`
    /// and their tokens: ‖Δx‖/‖Wx + b‖.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected: Option<f64>,
    /// Bounds on numbers that probes measure (`lethe evaluate --probe`), by the name of the probe
    /// and of its number, as in `[gates.probe."sd.ua"]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub probe: BTreeMap<String, ProbeBound>,
    /// Public key (PEM file, relative to this file) that must have signed the release. Allowed only
    /// in a gate file: the operator, and not the submitter, decides whose signature counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub signed_by: Option<PathBuf>,
}

/// Bounds on a number that a probe measures; at least one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeBound {
    /// Smallest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl ProbeBound {
    fn problem(&self) -> Option<&'static str> {
        let bounds = [self.min, self.max];
        if bounds.iter().flatten().any(|bound| !bound.is_finite()) {
            return Some("a bound is not finite");
        }
        match bounds {
            [None, None] => Some("there is neither `min` nor `max`"),
            [Some(min), Some(max)] if min > max => Some("`min` is above `max`"),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GateFile {
    gates: Gates,
}

impl Gates {
    /// Returns whether no bound is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads a gate file: TOML with a `[gates]` section and nothing else.
    ///
    /// # Errors
    /// [`Error`] with file and line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let io =
            |error: std::io::Error| Error::new(shown.clone(), format!("cannot be read: {error}"));
        if std::fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
            return Err(Error::new(shown, "is larger than 1 MiB; gates are a few numbers"));
        }
        let text = String::from_utf8(std::fs::read(path).map_err(io)?)
            .map_err(|_| Error::new(shown.clone(), "is not UTF-8 text"))?;
        let mut file: GateFile = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| line_at(&text, span.start));
            at_line(&shown, line, error.message())
        })?;
        if let Some(key) = &mut file.gates.signed_by {
            *key = path.parent().unwrap_or(Path::new("")).join(&*key);
        }
        match file.gates.problem() {
            None => Ok(file.gates),
            Some((field, problem)) => {
                Err(at_line(&shown, line_of(&text, field), &format!("{field} {problem}")))
            }
        }
    }

    /// Returns the first invalid bound: its field and the problem.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let shares = [
            ("gates.fa1_mean", self.fa1_mean),
            ("gates.fa1_worst", self.fa1_worst),
            ("gates.fa5_mean", self.fa5_mean),
            ("gates.fa5_worst", self.fa5_worst),
            ("gates.utility_drop", self.utility_drop),
            ("gates.neighbour_drop", self.neighbour_drop),
            ("gates.utility_kept", self.utility_kept),
            ("gates.covered_kept", self.covered_kept),
        ];
        let share = shares.iter().find_map(|&(field, bound)| {
            Some((field, bound.filter(|bound| !(0.0..=1.0).contains(bound))?))
        });
        let ratios = [("gates.change", self.change), ("gates.protected", self.protected)];
        let wrong_ratio = |bound: &f64| !(bound.is_finite() && *bound >= 0.0);
        let ratio =
            ratios.iter().find_map(|&(field, bound)| Some((field, bound.filter(wrong_ratio)?)));
        let wrong = |expected: &'static str| {
            move |(field, bound): (_, f64)| (field, format!("is {bound}, expected {expected}"))
        };
        let probe = self.probe.iter().find_map(|(name, bound)| {
            let is_number =
                name.split_once('.').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
            let unnamed = "is no name of a probe and its number, as `sd.ua` is";
            let problem = if is_number { bound.problem()? } else { unnamed };
            Some(("gates.probe", format!("\"{}\": {problem}", printable(name))))
        });
        share.map(wrong("0 to 1")).or_else(|| ratio.map(wrong("0 or more"))).or(probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Gates, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gates.toml");
        std::fs::write(&path, text).unwrap();
        Gates::read(&path)
    }

    #[test]
    fn a_gate_file_holds_bounds_alone() {
        let gates = read("[gates]\nfa5_mean = 0.1\nmissing = 2\nchange = 1.5\n").unwrap();
        assert_eq!(
            gates,
            Gates { fa5_mean: Some(0.1), missing: Some(2), change: Some(1.5), ..Gates::default() }
        );
        assert!(read("[gates]\n").unwrap().is_empty());
        let probe = read("[gates.probe.\"sd.ua\"]\nmin = 0.9\n").unwrap().probe;
        assert_eq!(probe["sd.ua"], ProbeBound { min: Some(0.9), max: None });
        // The path of the key is relative to the gate file.
        let key = read("[gates]\nsigned_by = \"keys/owner.pub\"\n").unwrap().signed_by.unwrap();
        assert!(key.is_absolute() && key.ends_with("keys/owner.pub"), "{}", key.display());
        for (text, says) in [
            ("", "missing field `gates`"),
            ("[gates]\nfa5 = 0.1\n", "gates.toml:2: unknown field `fa5`"),
            ("[gates]\nfa5_mean = 1.5\n", "gates.fa5_mean is 1.5, expected 0 to 1"),
            ("[gates]\nutility_kept = 80\n", "gates.utility_kept is 80, expected 0 to 1"),
            ("[gates]\ncovered_kept = nan\n", "gates.covered_kept is NaN, expected 0 to 1"),
            ("[gates]\nchange = nan\n", "gates.change is NaN, expected 0 or more"),
            ("[gates]\nmissing = -1\n", "gates.toml:2"),
            (
                "[gates.probe.\"sd.ua\"]\n",
                "gates.probe \"sd.ua\": there is neither `min` nor `max`",
            ),
            ("[gates.probe.\"sd.ua\"]\nmin = 1.0\nmax = 0.5\n", "`min` is above `max`"),
            ("[gates.probe.ua]\nmin = 1.0\n", "gates.probe \"ua\": is no name of a probe"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
