//! The kinds of task that workers execute, one file each.
//!
//! The file of a kind contains its *spec* (everything that determines the result), its *output*,
//! its version and its label. The id of a job is the digest of the whole spec, so that no field can
//! be missing from it. The addresses of inputs are not part of the spec ([`Locations`]).
//!
//! To add a kind: write its file here, implement the worker's `Perform` for it in a file of the
//! engine, and add one line to the registry below. To change a spec or the computation behind it:
//! raise its version. A program that does not know a kind or version leaves its jobs to others
//! ([`DecodeError::Foreign`]).

pub(crate) mod kind;

pub use self::kind::Task;
use crate::binary;
use crate::digest::Digest;
use crate::fault::StoredObject;
use crate::outcome::Outcome;
use crate::printable::printable;
use crate::reference::{ArtifactRef, FileSpec, JobId, Locations, ModelSpec};

/// Why a task cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another version of Lethe wrote the task.
    #[error(
        "the job is of kind `{kind}`, version {version}, which this program does not know; run the same release of lethe and lethe-worker"
    )]
    Foreign {
        /// Name of the kind.
        kind: String,
        /// Its version.
        version: u32,
    },
    /// The bytes are not a valid spec of this kind and version.
    #[error("the task of a message is invalid: {0}")]
    Invalid(String),
}

/// Declares the kinds: modules, the sum type, and [`match_task`](crate::match_task) over it.
macro_rules! registry {
    ($d:tt $($module:ident: $Kind:ident),+ $(,)?) => {
        $(
            mod $module;
            pub use $module::*;

            impl From<$Kind> for AnyTask {
                fn from(spec: $Kind) -> Self {
                    Self::$Kind(Box::new(spec))
                }
            }
        )+

        /// A task of any kind.
        #[derive(Debug, Clone, PartialEq)]
        pub enum AnyTask {
            $(
                #[doc = concat!("A task of kind [`", stringify!($Kind), "`].")]
                $Kind(Box<$Kind>),
            )+
        }

        /// Evaluates an expression for a task of any kind, with its spec under the given name.
        #[macro_export]
        macro_rules! match_task {
            ($d task:expr, $d spec:ident => $d body:expr) => {
                match $d task { $($crate::task::AnyTask::$Kind($d spec) => $d body,)+ }
            };
        }

        /// The largest version of any kind, for records: it differs between releases of Lethe whose
        /// edits differ.
        pub const ALGORITHM_VERSION: u32 = {
            let (versions, mut largest, mut i) = ([$($Kind::VERSION),+], 0, 0);
            while i < versions.len() {
                if versions[i] > largest {
                    largest = versions[i];
                }
                i += 1;
            }
            largest
        };

        impl AnyTask {
            /// All kinds that this program knows, with their versions.
            pub const KINDS: &'static [(&'static str, u32)] = &[$(($Kind::KIND, $Kind::VERSION)),+];

            /// Decodes the spec of a kind.
            ///
            /// # Errors
            /// [`DecodeError::Foreign`] for an unknown kind or version, [`DecodeError::Invalid`]
            /// for bytes that are no such spec.
            pub fn decode(kind: &str, version: u32, spec: &[u8]) -> Result<Self, DecodeError> {
                match (kind, version) {
                    $(($Kind::KIND, $Kind::VERSION) => checked::<$Kind>(spec).map(Self::from).map_err(DecodeError::Invalid),)+
                    _ => Err(DecodeError::Foreign { kind: printable(kind), version }),
                }
            }
        }
    };
}

registry! { $
    retain_gradient: RetainGradient,
    retain_reduce: RetainReduce,
    search: Search,
    evaluate: Evaluate,
    moments: Moments,
    moments_reduce: MomentsReduce,
    survey: Survey,
    direction: Direction,
    protect: Protect,
    effects: Effects,
    constraints: Constraints,
    kernel: Kernel,
    weighted_change: WeightedChange,
    margins: Margins,
    condense: Condense,
    image_effects: ImageEffects,
    key_moments: KeyMoments,
    keys: Keys,
    least_squares: LeastSquares,
    relearn: Relearn,
    features: Features,
    soft_prompt: SoftPrompt,
}

fn checked<T: Task>(spec: &[u8]) -> Result<T, String> {
    let spec: T = binary::decode(spec)?;
    spec.check()?;
    Ok(spec)
}

fn kind_of<T: Task>(_: &T) -> (&'static str, u32) {
    (T::KIND, T::VERSION)
}

fn artifacts_of<T: Task>(_: &T, outcome: &Outcome) -> Result<Vec<ArtifactRef>, serde_json::Error> {
    Ok(T::artifacts(&outcome.output::<T>()?))
}

impl AnyTask {
    /// Returns the name of its kind.
    pub fn kind(&self) -> &'static str {
        match_task!(self, spec => kind_of(&**spec).0)
    }

    /// Returns the version of its kind.
    pub fn version(&self) -> u32 {
        match_task!(self, spec => kind_of(&**spec).1)
    }

    /// Returns its display name, see [`Task::label`].
    pub fn label(&self, concept: Option<&str>, locations: &Locations) -> String {
        match_task!(self, spec => spec.label(concept, locations))
    }

    /// Returns the files outside the store that it reads, except for the model.
    pub fn files(&self) -> Vec<FileSpec> {
        match_task!(self, spec => spec.files())
    }

    /// Returns the id of a job with this task and a model: the digest of kind, version, model and
    /// spec.
    pub fn id(&self, model: &ModelSpec) -> JobId {
        let (kind, version) = (self.kind(), self.version());
        match_task!(self, spec => JobId::from(Digest::of_json(&("lethe job", kind, version, model, &**spec))))
    }

    /// Returns the objects of the store that an outcome of this task names.
    ///
    /// # Errors
    /// When the outcome is not one of this kind.
    pub fn objects(&self, outcome: &Outcome) -> Result<Vec<StoredObject>, serde_json::Error> {
        let artifacts = match_task!(self, spec => artifacts_of(&**spec, outcome))?;
        Ok(artifacts.into_iter().map(|artifact| StoredObject::Artifact(artifact.digest)).collect())
    }

    /// Encodes the spec for messages.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        match_task!(self, spec => binary::encode(&**spec))
    }
}

#[cfg(test)]
pub(crate) mod tests;
