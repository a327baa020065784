//! Addresses on a model hub: `hf://org/name[@revision][/path]` for models, and
//! `hf://datasets/org/name[@revision][/path]` for data sets, as `huggingface_hub` writes them.

use std::fmt;

/// Scheme of these addresses.
pub const SCHEME: &str = "hf";
/// Revision of an address that names none.
pub const DEFAULT_REVISION: &str = "main";
/// Longest name of an owner, a repository or a revision, bytes.
const MAX_NAME: usize = 200;
/// Kinds of repositories on the hub that hold neither models nor shards.
const OTHER_KINDS: [&str; 3] = ["spaces", "buckets", "kernels"];

/// A kind of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepositoryKind {
    /// A model: `hf://org/name`.
    Model,
    /// A data set: `hf://datasets/org/name`.
    Dataset,
}

impl RepositoryKind {
    /// Returns the name of the kind in the hub's API and in the names of cache folders.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// An address on a model hub.
///
/// The owner and the name consist of letters, digits, `.`, `_` and `-`; the revision is a branch, a
/// tag or a commit; the path has no empty, `.` or `..` part, and may be a pattern.
///
/// # Example
/// ```
/// use lethe_shared::hub::HubAddress;
///
/// let address = HubAddress::parse("org/clip@refs/pr/1/sub/config.json").unwrap();
/// assert_eq!(address.to_string(), "hf://org/clip@refs%2Fpr%2F1/sub/config.json");
/// assert_eq!(address.revision(), "refs/pr/1");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubAddress {
    kind: RepositoryKind,
    owner: String,
    name: String,
    revision: Option<String>,
    path: String,
}

impl HubAddress {
    /// Parses an address without its `hf://`.
    ///
    /// # Errors
    /// A sentence without a subject.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.trim_end_matches('/').split('/').collect();
        let (kind, parts) = match parts.as_slice() {
            ["datasets", rest @ ..] => (RepositoryKind::Dataset, rest),
            ["models", rest @ ..] => (RepositoryKind::Model, rest),
            [kind, ..] if OTHER_KINDS.contains(kind) => {
                return Err(format!(
                    "`{kind}` hold no models and no shards; give hf://ORG/NAME or hf://datasets/ORG/NAME"
                ));
            }
            all => (RepositoryKind::Model, all),
        };
        let [owner, name, path @ ..] = parts else {
            return Err(
                "owner or name of the repository is missing: hf://ORG/NAME, or hf://datasets/ORG/NAME for a data set"
                    .to_owned(),
            );
        };
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (*name, None),
        };
        if let Some(odd) = [*owner, name].into_iter().find(|name| !is_name(name)) {
            return Err(format!("`{}` is no name on the hub", odd.escape_debug()));
        }
        // The references of pull requests and conversions are the only ones with unescaped slashes.
        let (revision, path) = match (revision, path) {
            (Some("refs"), [kind @ ("pr" | "convert"), number, path @ ..]) => {
                (Some(format!("refs/{kind}/{number}")), path)
            }
            (revision, path) => {
                (revision.map(|text| text.replace("%2F", "/").replace("%2f", "/")), path)
            }
        };
        if let Some(odd) = revision.as_deref().filter(|revision| !is_revision(revision)) {
            return Err(format!("`{}` is no branch, tag or commit", odd.escape_debug()));
        }
        if path.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
            return Err("empty, `.` and `..` path parts are not allowed".to_owned());
        }
        if path.iter().any(|part| part.contains(['?', '#'])) {
            return Err("queries and fragments do not belong in an address".to_owned());
        }
        let (owner, name) = ((*owner).to_owned(), name.to_owned());
        Ok(Self { kind, owner, name, revision, path: path.join("/") })
    }

    /// Returns the kind of the repository.
    pub fn kind(&self) -> RepositoryKind {
        self.kind
    }

    /// Returns the owner of the repository.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns the name of the repository, without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id of the repository: `org/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Returns the branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// Returns the commit, when the address names one by all of its digits.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }

    /// Returns the path in the repository; empty for the repository itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the same path at another revision.
    #[must_use]
    pub fn at(&self, revision: &str) -> Self {
        Self { revision: Some(revision.to_owned()), ..self.clone() }
    }

    /// Returns another path at the same revision; empty for the repository itself. The caller has
    /// checked that the path stays in the repository.
    #[must_use]
    pub fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// Returns the repository without path and revision, for messages: `hf://org/name`.
    pub fn repository(&self) -> String {
        Self { revision: None, path: String::new(), ..self.clone() }.to_string()
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hf://")?;
        if self.kind == RepositoryKind::Dataset {
            f.write_str("datasets/")?;
        }
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{}", revision.replace('/', "%2F"))?;
        }
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        Ok(())
    }
}

/// Returns whether a text is the full id of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Returns whether a text can be an owner or the name of a repository. `--` separates them in the
/// names of cache folders, and is refused by the hub.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME
        && !text.starts_with(['.', '-'])
        && !text.contains("--")
        && !text.contains("..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Returns whether a text can be a branch, a tag or a commit; it becomes a path in the cache.
fn is_revision(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && !text.contains("..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+/".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_models_data_sets_revisions_and_paths() {
        let of = |text: &str| {
            let address = HubAddress::parse(text).unwrap();
            (address.kind, address.id(), address.revision().to_owned(), address.path)
        };
        let (model, dataset) = (RepositoryKind::Model, RepositoryKind::Dataset);
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, kind, id, revision, path) in [
            ("openai/clip-vit-base-patch32", model, "openai/clip-vit-base-patch32", "main", ""),
            ("models/a/b/", model, "a/b", "main", ""),
            ("a/b@v1.0/x/y.json", model, "a/b", "v1.0", "x/y.json"),
            ("datasets/a/b@dev/t-{000..009}.tar", dataset, "a/b", "dev", "t-{000..009}.tar"),
            ("a/b@refs/pr/12/c.json", model, "a/b", "refs/pr/12", "c.json"),
            ("a/b@feature%2Fx/c@d.json", model, "a/b", "feature/x", "c@d.json"),
        ] {
            assert_eq!(of(text), (kind, id.into(), revision.into(), path.into()), "{text}");
        }
        let pinned = HubAddress::parse("a/b/c").unwrap().at(commit);
        assert_eq!(pinned.to_string(), format!("hf://a/b@{commit}/c"));
        assert_eq!((pinned.commit(), pinned.repository()), (Some(commit), "hf://a/b".into()));
        assert_eq!(HubAddress::parse("a/b@main").unwrap().commit(), None);
    }

    #[test]
    fn refuses_what_is_no_repository_or_leaves_it() {
        for text in [
            "",
            "a",
            "datasets/a",
            "spaces/a/b",
            "buckets/a/b",
            "a//b",
            "a/..",
            "a/b/../c",
            "a/b/./c",
            "a/b//c",
            "a/b@",
            "a/b@../c",
            "a/b@x%2F..%2Fy",
            "a/b@a b/c",
            "a/b@refs/pr/../c",
            "a/-b",
            "a--b/c",
            ".a/b",
            "a/b\\c",
            "ä/b",
            "a/b/c?x=1",
            "user:secret@a/b",
        ] {
            assert!(HubAddress::parse(text).is_err(), "{text}");
        }
    }
}
