//! The input of a report.

use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::record::Composition;

use crate::compose::effect_matrix::EffectMatrix;
use crate::present::run_summary::Report;

/// Thumbnails by concept, as JPEG files.
pub type Thumbnails = BTreeMap<String, Bytes>;

/// Pictures of probes by digest: PNG, JPEG or WebP files.
pub type ProbePictures = BTreeMap<Digest, Bytes>;

/// The input of a report.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The release's record.
    pub record: &'a Composition,
    /// The effect matrix in the record's order, if coefficients are solved.
    pub effect_matrix: Option<&'a EffectMatrix>,
    /// Thumbnails of its concepts, if there are any.
    pub thumbnails: &'a Thumbnails,
    /// Pictures of its probes, if there are any.
    pub pictures: &'a ProbePictures,
    /// The run that made it, for its times; `None` in the report that is stored with a release.
    pub run: Option<&'a Report>,
}
