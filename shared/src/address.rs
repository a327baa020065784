//! Addresses: absolute paths on this machine, `s3://`, `gs://` and `az://` URLs of object stores,
//! `hf://` addresses of a model hub, and `https://` URLs of single files.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hub::{self, HubAddress};
use crate::printable::printable;

/// Longest accepted address, in bytes.
const MAX_LENGTH: usize = 4096;

/// Where a file or folder is. Always absolute: relative paths are resolved where they are read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An absolute path on this machine, without `.` and `..`.
    Local(PathBuf),
    /// A URL without a trailing slash. `s3://bucket/key`, `gs://bucket/key` and
    /// `az://container/key` can be read and written; `hf://org/name/path` ([`HubAddress`]) and
    /// `https://host/path` can only be read.
    Remote(String),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: {problem}")]
pub struct NotAnAddress {
    text: String,
    problem: String,
}

impl Address {
    /// Reads absolute paths and URLs with one of the schemes `file`, `s3`, `gs`, `az`, `hf`, `https`
    /// and `http`.
    ///
    /// # Errors
    /// When the text is not an address.
    pub fn parse(text: &str) -> Result<Self, NotAnAddress> {
        Self::resolve(text, None)
    }

    /// Like [`parse`](Self::parse), and relative paths are taken from `base`, a local folder.
    ///
    /// # Errors
    /// When the text is not an address, or is relative without a base.
    pub fn resolve(text: &str, base: Option<&Path>) -> Result<Self, NotAnAddress> {
        let wrong =
            |problem: &str| NotAnAddress { text: printable(text), problem: problem.to_owned() };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > MAX_LENGTH || text.contains('\0') {
            return Err(wrong("it is longer than 4096 bytes or holds a zero byte"));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return match scheme {
                "file" => match rest.strip_prefix('/') {
                    Some(path) => Ok(Self::Local(normalise(&Path::new("/").join(path)))),
                    None => Err(wrong(
                        "a file URL has three slashes and an absolute path: file:///data/store",
                    )),
                },
                "s3" | "gs" | "az" | "https" | "http" => {
                    let root = if scheme.starts_with("http") { "host" } else { "bucket" };
                    remote(scheme, rest, root).map_err(|problem| wrong(&problem))
                }
                hub::SCHEME => HubAddress::parse(rest)
                    .map(|address| Self::Remote(address.to_string()))
                    .map_err(|problem| wrong(&problem)),
                _ => Err(wrong("the scheme must be file, s3, gs, az, hf or https")),
            };
        }
        let path = Path::new(text);
        if path.is_absolute() {
            return Ok(Self::Local(normalise(path)));
        }
        match base {
            Some(base) if base.is_absolute() && base.to_str().is_some() => {
                Ok(Self::Local(normalise(&base.join(path))))
            }
            Some(base) if base.is_absolute() && base.to_str().is_none() => {
                Err(wrong("the folder it starts from has a name that is not UTF-8"))
            }
            _ => Err(wrong("a relative path has no meaning here")),
        }
    }

    /// Returns the path of a local address.
    pub fn as_local(&self) -> Option<&Path> {
        match self {
            Self::Local(path) => Some(path),
            Self::Remote(_) => None,
        }
    }

    /// Returns the parts of an address on a model hub; `None` for any other address.
    pub fn as_hub(&self) -> Option<HubAddress> {
        let Self::Remote(url) = self else { return None };
        let (scheme, rest) = url.split_once("://")?;
        // It was checked when the address was parsed.
        (scheme == hub::SCHEME).then(|| HubAddress::parse(rest).ok()).flatten()
    }

    /// Returns whether this is the URL of a file on a web server.
    pub fn is_web(&self) -> bool {
        matches!(self, Self::Remote(url) if url.starts_with("https://") || url.starts_with("http://"))
    }

    /// Returns the address of `name`, a relative path without `..`, below this folder.
    ///
    /// # Errors
    /// When `name` leaves the folder.
    pub fn join(&self, name: &str) -> Result<Self, NotAnAddress> {
        let inside = !name.is_empty()
            && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(NotAnAddress {
                text: printable(name),
                problem: "it must be a relative path without `..`".into(),
            });
        }
        match self {
            Self::Local(path) => Ok(Self::Local(path.join(name))),
            Self::Remote(url) => Self::parse(&format!("{url}/{name}")),
        }
    }

    /// Returns the last part of the path.
    pub fn file_name(&self) -> String {
        match self {
            Self::Local(path) => {
                path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            Self::Remote(url) => url.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Reads the URL of an object store or of a file on a web server. `root` says what its first part
/// is.
fn remote(scheme: &str, rest: &str, root: &str) -> Result<Address, String> {
    let rest = rest.trim_end_matches('/');
    let first = rest.split('/').next().unwrap_or_default();
    if first.is_empty() {
        return Err(format!("the {root} is missing"));
    }
    if rest.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("empty, `.` and `..` path parts are not allowed".to_owned());
    }
    if rest.contains(['?', '#']) || first.contains('@') {
        return Err("queries, fragments and credentials do not belong in an address".to_owned());
    }
    Ok(Address::Remote(format!("{scheme}://{rest}")))
}

/// Removes `.` and `..` from an absolute path lexically.
fn normalise(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Remote(url) => f.write_str(url),
        }
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Local(path) => serializer.serialize_str(
                path.to_str().ok_or_else(|| serde::ser::Error::custom("the path is not UTF-8"))?,
            ),
            Self::Remote(url) => serializer.serialize_str(url),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_and_urls() {
        for (text, shown) in [
            ("/a/./b/../c", "/a/c"),
            ("file:///a/b", "/a/b"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("gs://bucket", "gs://bucket"),
            ("hf://org/clip@v1/", "hf://org/clip@v1"),
            ("https://host:8080/a/classes.txt", "https://host:8080/a/classes.txt"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(
            Address::resolve("../x.tar", Some(Path::new("/jobs/emoji"))).unwrap().to_string(),
            "/jobs/x.tar"
        );
    }

    #[test]
    fn refuses_what_has_no_clear_meaning() {
        for text in [
            "",
            "a/b",
            "ftp://host/a",
            "https://",
            "https://user:secret@host/a",
            "https://host/a?token=secret",
            "https://host/a/../b",
            "hf://org",
            "hf://org/name/../x",
            "s3://",
            "s3:///key",
            "s3://b/../c",
            "s3://b//c",
            "s3://user@b/c",
            "s3://b/c?x=1",
            "file://a",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn joining_stays_inside() {
        let folder = Address::parse("/store").unwrap();
        assert_eq!(folder.join("a/b").unwrap().to_string(), "/store/a/b");
        for name in ["", "..", "../a", "/etc", "a/../../b"] {
            assert!(folder.join(name).is_err(), "{name}");
        }
        assert_eq!(
            Address::parse("s3://b/k").unwrap().join("x").unwrap().to_string(),
            "s3://b/k/x"
        );
        let model = Address::parse("hf://org/clip@v1").unwrap();
        assert_eq!(model.join("x").unwrap().to_string(), "hf://org/clip@v1/x");
        assert_eq!(model.as_hub().unwrap().revision(), "v1");
        assert!(!model.is_web() && Address::parse("https://h/a").unwrap().is_web());
        assert_eq!(Address::parse("s3://b/k").unwrap().as_hub(), None);
    }
}
