//! What can go wrong with a store, sorted by what a caller can do about it.

use std::error::Error as _;
use std::io::ErrorKind;

use lethe_shared::fault::{Class, Fault, Origin, StoredObject};
use lethe_shared::retry::Transient;

use crate::answers;

/// What went wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("{object} does not exist")]
    NotFound {
        /// Its address.
        object: String,
        /// The artifact or outcome that it should be.
        stored: Option<StoredObject>,
    },
    /// The object differs from what was written.
    #[error("{object} {problem}; delete it and run again to have it recomputed")]
    Corrupt {
        /// Its address.
        object: String,
        /// What is wrong.
        problem: String,
        /// The artifact or outcome that it should be.
        stored: Option<StoredObject>,
    },
    /// The object exists with other contents.
    #[error("{object} exists with other contents; published objects are never overwritten")]
    Conflict {
        /// Its address.
        object: String,
    },
    /// The store does not allow it.
    #[error("{object}: permission denied ({cause}); check the credentials or the folder's owner")]
    Permission {
        /// Its address.
        object: String,
        /// The message of the store.
        cause: String,
    },
    /// The disk is full.
    #[error(
        "{object}: no space left on the device; free some and run again, finished work is kept"
    )]
    NoSpace {
        /// Its address.
        object: String,
    },
    /// The store does not support the operation; a retry cannot help.
    #[error("{object}: {problem}")]
    Unsupported {
        /// Its address, or the store's.
        object: String,
        /// What is not supported, and what to do.
        problem: String,
    },
    /// A server refuses the request, or what it lists is not accepted; a retry cannot help.
    #[error("{object}: {problem}")]
    Refused {
        /// Its address, or the repository's.
        object: String,
        /// Why, and what to do.
        problem: String,
    },
    /// The store stays unreachable, or its requests fail after all retries.
    #[error("{object}: {cause}")]
    Unavailable {
        /// Its address.
        object: String,
        /// Why.
        cause: String,
    },
    /// An address or key is invalid.
    #[error("{what}: {problem}")]
    Invalid {
        /// What was given.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Transient for Error {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NoSpace { .. })
    }
}

impl Error {
    /// Returns the artifact or outcome that is corrupt or missing.
    pub fn corrupt_object(&self) -> Option<StoredObject> {
        match self {
            Self::NotFound { stored, .. } | Self::Corrupt { stored, .. } => *stored,
            _ => None,
        }
    }

    /// Returns the fault of a job that met this error, see [`fault`](lethe_shared::fault).
    pub fn fault(&self) -> Fault {
        let class = match self {
            Self::Unavailable { .. } => Class::Transient,
            _ => self
                .corrupt_object()
                .map_or(Class::Environment(Origin::Surroundings), Class::Corrupt),
        };
        Fault::new(class, self)
    }

    pub(crate) fn from_store(object: &str, error: object_store::Error) -> Self {
        // An error of the hub's reader is carried through the interface of object stores.
        let error = match error {
            object_store::Error::Generic { store, source } => match source.downcast::<Self>() {
                Ok(own) => return *own,
                Err(source) => object_store::Error::Generic { store, source },
            },
            error => error,
        };
        let object = object.to_owned();
        if let Some(found) = error.source().and_then(io_error).and_then(|io| known(&object, io)) {
            return found;
        }
        if let Some(missing) = answers::no_credentials(&error) {
            return Self::Unavailable { object, cause: missing.to_string() };
        }
        match answers::find(&error) {
            Some(answer) if answer.is_unsupported() => {
                return Self::Unsupported { object, problem: answer.to_string() };
            }
            Some(answer) if answer.is_denied() => {
                return Self::Permission { object, cause: answer.to_string() };
            }
            Some(answer) if answer.is_elsewhere() => {
                let problem = format!(
                    "{answer}; the bucket is in another region or at another endpoint: check AWS_REGION and the address"
                );
                return Self::Unsupported { object, problem };
            }
            _ => {}
        }
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound { object, stored: None },
            object_store::Error::NotImplemented { .. }
            | object_store::Error::NotSupported { .. } => {
                Self::Unsupported { object, problem: chain(&error) }
            }
            // Creation handles this case before; for any other request it is a conflict with a
            // concurrent one.
            object_store::Error::AlreadyExists { .. } => {
                Self::Unavailable { object, cause: chain(&error) }
            }
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                Self::Permission { object, cause: chain(&error) }
            }
            object_store::Error::InvalidPath { .. } => {
                Self::Invalid { what: object, problem: chain(&error) }
            }
            _ => Self::Unavailable { object, cause: chain(&error) },
        }
    }

    pub(crate) fn from_io(object: &str, error: std::io::Error) -> Self {
        // Writers of object_store wrap its errors; the wrapped error decides, for example a denied
        // permission.
        let error = match error.downcast::<object_store::Error>() {
            Ok(error) => return Self::from_store(object, error),
            Err(error) => error,
        };
        let inner =
            error.get_ref().and_then(|inner| io_error(inner)).and_then(|io| known(object, io));
        let found = known(object, &error).or(inner);
        found.unwrap_or_else(|| Self::Unavailable {
            object: object.to_owned(),
            cause: chain(&error),
        })
    }

    /// Returns the kind of the IO error in the chain of sources, if there is one.
    pub(crate) fn io_kind(error: &object_store::Error) -> Option<ErrorKind> {
        error.source().and_then(io_error).map(std::io::Error::kind)
    }
}

/// The kinds of IO error that mean the same everywhere.
fn known(object: &str, error: &std::io::Error) -> Option<Error> {
    let object = object.to_owned();
    match error.kind() {
        ErrorKind::NotFound => Some(Error::NotFound { object, stored: None }),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some(Error::Permission { object, cause: error.to_string() })
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(Error::NoSpace { object }),
        ErrorKind::Unsupported => Some(Error::Unsupported { object, problem: error.to_string() }),
        ErrorKind::NotADirectory => Some(Error::Invalid {
            what: object,
            problem: "a file exists where a folder is needed".to_owned(),
        }),
        _ => None,
    }
}

/// The first IO error of a chain.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        source = cause.source();
    }
    None
}

/// Formats an error with its causes, each of them once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_decide_what_can_be_done() {
        let generic = |io: std::io::Error| object_store::Error::Generic {
            store: "local",
            source: Box::new(io),
        };
        let full = Error::from_store("s/k", generic(ErrorKind::StorageFull.into()));
        assert!(matches!(full, Error::NoSpace { .. }) && full.is_transient());
        assert!(matches!(
            Error::from_store("s/k", generic(ErrorKind::PermissionDenied.into())),
            Error::Permission { .. }
        ));
        assert!(
            Error::from_store("s/k", generic(ErrorKind::ConnectionReset.into())).is_transient()
        );
        let wrapped = std::io::Error::other(generic(ErrorKind::StorageFull.into()));
        assert!(matches!(Error::from_io("s/k", wrapped), Error::NoSpace { .. }));
        assert!(!Error::NotFound { object: "x".into(), stored: None }.is_transient());
    }

    #[test]
    fn own_errors_come_back_as_they_are() {
        let own = Error::Refused { object: "hf://a/b".into(), problem: "is gated".into() };
        let carried = object_store::Error::Generic { store: "hub", source: Box::new(own) };
        let error = Error::from_io("s/k", std::io::Error::other(carried));
        assert_eq!(error.to_string(), "hf://a/b: is gated");
        assert!(matches!(error, Error::Refused { .. }) && !error.is_transient());
    }

    #[test]
    fn responses_of_remote_stores_are_classified() {
        let answered = |status| object_store::Error::Generic {
            store: "S3",
            source: Box::new(answers::FinalAnswer {
                status,
                method: "PUT".into(),
                text: String::new(),
            }),
        };
        for status in [501, 405, 301] {
            let error = Error::from_store("s/k", answered(status));
            assert!(matches!(error, Error::Unsupported { .. }) && !error.is_transient(), "{error}");
        }
        // Stores send 400 for interrupted uploads too.
        assert!(Error::from_store("s/k", answered(400)).is_transient());
        let source = || Box::new(std::io::Error::other("an answer"));
        let denied = object_store::Error::PermissionDenied { path: "k".into(), source: source() };
        assert!(matches!(Error::from_io("s/k", denied.into()), Error::Permission { .. }));
        let conflict = object_store::Error::AlreadyExists { path: "k".into(), source: source() };
        assert!(Error::from_store("s/k", conflict).is_transient());
    }
}
