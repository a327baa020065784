//! The hub's lists of files, checked: a list comes from outside, and its paths become paths in the
//! cache.

use std::fmt;
use std::path::Path;

use lethe_shared::digest::Digest;
use serde::Deserialize;

/// Longest path of a file in a repository, bytes.
const MAX_PATH: usize = 1024;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Its path in the repository.
    pub(super) path: String,
    /// Its size.
    pub(super) bytes: u64,
    /// The digest of its content.
    pub(super) content: Content,
}

/// The digest of a file's content. It names the file in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// SHA-256 of a file in large file storage.
    Sha256(Digest),
    /// SHA-1 of any other file, as Git computes it, in hexadecimal digits.
    Git(String),
}

impl Content {
    /// Parses a digest by its length.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.len() {
            64 => text.parse().ok().map(Self::Sha256),
            40 => lethe_shared::hub::is_commit(text).then(|| Self::Git(text.to_owned())),
            _ => None,
        }
    }

    /// Returns the digest of a file's content, computed like this one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn of_file(&self, path: &Path) -> std::io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        match self {
            Self::Sha256(_) => Digest::of_reader(file).map(Self::Sha256),
            Self::Git(_) => {
                use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
                let mut hasher = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                hasher.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
                let mut buffer = vec![0; 1 << 16];
                loop {
                    match std::io::Read::read(&mut file, &mut buffer)? {
                        0 => break,
                        n => hasher.update(&buffer[..n]),
                    }
                }
                let hex = hasher.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
                Ok(Self::Git(hex))
            }
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Git(hex) => f.write_str(hex),
        }
    }
}

/// An entry of the hub's list, unchecked.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LargeFile>,
}

#[derive(Debug, Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

impl Entry {
    /// Checks an entry of the list of `folder`; `None` for a folder.
    ///
    /// # Errors
    /// A sentence about the list.
    pub(super) fn check(self, folder: &str) -> Result<Option<File>, String> {
        let shown = || self.path.escape_debug().to_string().chars().take(200).collect::<String>();
        if !is_safe(&self.path) {
            return Err(format!("lists `{}`, which leaves the repository or is no path", shown()));
        }
        let below = self
            .path
            .strip_prefix(folder)
            .filter(|rest| folder.is_empty() || rest.starts_with('/'));
        if below.is_none() {
            return Err(format!("lists `{}` in the folder `{folder}`", shown()));
        }
        if self.kind != "file" {
            return Ok(None);
        }
        let (text, bytes) = match &self.lfs {
            Some(file) => (file.oid.strip_prefix("sha256:").unwrap_or(&file.oid), file.size),
            None => (self.oid.as_str(), self.size),
        };
        let Some(content) = Content::parse(text) else {
            return Err(format!("lists `{}` without a digest", shown()));
        };
        Ok(Some(File { path: self.path, bytes, content }))
    }
}

/// Returns whether a path stays in its folder: relative, with `/` as its only separator, and without
/// control characters.
pub(super) fn is_safe(path: &str) -> bool {
    path.len() <= MAX_PATH
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.chars().any(|letter| letter == '\\' || letter.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        let (kind, oid) = ("file".to_owned(), "0".repeat(40));
        Entry { kind, path: path.to_owned(), oid, size: 1, lfs: None }
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["a/b.json", "a/müller [1].txt", "a/b/c"] {
            assert_eq!(entry(path).check("a").unwrap().unwrap().path, path);
        }
        for path in [
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a\\..\\x",
            "a/\u{1b}[2J",
            "",
            "a//b",
            "./a",
            "a/\0",
            "ab/c",
            "b/a",
            "a",
        ] {
            assert!(entry(path).check("a").is_err(), "{path:?}");
        }
        assert!(entry(&"x".repeat(2000)).check("").is_err());
        assert!(entry("x").check("").is_ok());
    }

    #[test]
    fn digests_name_contents_and_nothing_else() {
        let with = |oid: &str, lfs: Option<&str>| {
            let lfs = lfs.map(|oid| LargeFile { oid: oid.to_owned(), size: 7 });
            Entry { oid: oid.to_owned(), lfs, ..entry("x") }.check("")
        };
        let (git, sha256) = ("a".repeat(40), "b".repeat(64));
        assert_eq!(with(&git, None).unwrap().unwrap().content.to_string(), git);
        for oid in [sha256.clone(), format!("sha256:{sha256}")] {
            let file = with(&git, Some(&oid)).unwrap().unwrap();
            assert_eq!((file.content.to_string(), file.bytes), (sha256.clone(), 7));
        }
        for oid in ["", "../../x", "A", &"g".repeat(40), &"/".repeat(64)] {
            assert!(with(oid, None).is_err() && with(&git, Some(oid)).is_err(), "{oid}");
        }
        let folder = Entry { kind: "directory".to_owned(), ..entry("x") };
        assert_eq!(folder.check("").unwrap(), None);
    }

    #[test]
    fn contents_are_digested_as_git_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        // `echo hello | git hash-object --stdin`
        let git = Content::Git("ce013625030ba8dba906f756967f9e9ca394464a".to_owned());
        assert_eq!(git.of_file(file.path()).unwrap(), git);
        let sha256 = Content::Sha256(Digest::of(b"hello\n"));
        assert_eq!(sha256.of_file(file.path()).unwrap(), sha256);
    }
}
