//! What can go wrong with a store, sorted by what a caller can do about it.

use std::error::Error as _;
use std::io::ErrorKind;

/// What went wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("{object} does not exist")]
    NotFound {
        /// Its address.
        object: String,
    },
    /// The object is not what was written.
    #[error("{object} {problem}; delete it and run again: what it holds will be computed anew")]
    Corrupt {
        /// Its address.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// Something else is where this was to be created.
    #[error("{object} exists with other contents; nothing published is ever overwritten")]
    Conflict {
        /// Its address.
        object: String,
    },
    /// The store does not allow it.
    #[error("{object}: permission denied ({cause}); check the credentials or the folder's owner")]
    Permission {
        /// Its address.
        object: String,
        /// The store's own words.
        cause: String,
    },
    /// The disk is full.
    #[error("{object}: no space left on the device; free some and run again, what is finished stays")]
    NoSpace {
        /// Its address.
        object: String,
    },
    /// The store cannot be reached, or gave up.
    #[error("{object}: {cause}")]
    Unavailable {
        /// Its address.
        object: String,
        /// Why.
        cause: String,
    },
    /// An address or key makes no sense.
    #[error("{what}: {problem}")]
    Invalid {
        /// What was given.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NoSpace { .. })
    }

    pub(super) fn from_store(object: &str, error: object_store::Error) -> Self {
        let object = object.to_owned();
        if let Some(found) = error.source().and_then(io_error).and_then(|io| known(&object, io)) {
            return found;
        }
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound { object },
            object_store::Error::AlreadyExists { .. } => Self::Conflict { object },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Permission { object, cause: chain(&error) }
            }
            object_store::Error::InvalidPath { .. } => Self::Invalid { what: object, problem: chain(&error) },
            _ => Self::Unavailable { object, cause: chain(&error) },
        }
    }

    pub(super) fn from_io(object: &str, error: std::io::Error) -> Self {
        // Writers through object_store wrap the cause once more.
        let inner = error.get_ref().and_then(|inner| io_error(inner)).and_then(|io| known(object, io));
        let found = known(object, &error).or(inner);
        found.unwrap_or_else(|| Self::Unavailable { object: object.to_owned(), cause: chain(&error) })
    }
}

/// The kinds of IO error that mean the same everywhere.
fn known(object: &str, error: &std::io::Error) -> Option<Error> {
    let object = object.to_owned();
    match error.kind() {
        ErrorKind::NotFound => Some(Error::NotFound { object }),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Some(Error::Permission { object, cause: error.to_string() }),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(Error::NoSpace { object }),
        ErrorKind::NotADirectory => Some(Error::Invalid { what: object, problem: "a file is where a folder is needed".to_owned() }),
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

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
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
        let generic = |io: std::io::Error| object_store::Error::Generic { store: "local", source: Box::new(io) };
        let full = Error::from_store("s/k", generic(ErrorKind::StorageFull.into()));
        assert!(matches!(full, Error::NoSpace { .. }) && full.is_transient());
        assert!(matches!(Error::from_store("s/k", generic(ErrorKind::PermissionDenied.into())), Error::Permission { .. }));
        assert!(Error::from_store("s/k", generic(ErrorKind::ConnectionReset.into())).is_transient());
        let wrapped = std::io::Error::other(generic(ErrorKind::StorageFull.into()));
        assert!(matches!(Error::from_io("s/k", wrapped), Error::NoSpace { .. }));
        assert!(!Error::NotFound { object: "x".into() }.is_transient());
    }
}
