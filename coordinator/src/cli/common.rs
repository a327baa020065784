//! Options, addresses and printing that several commands share.

use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use lethe_shared::address::Address;
use lethe_shared::manifest::Manifest;
use lethe_shared::printable::printable_message;
use lethe_store::Store;

use crate::attest::key::SigningKey;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Common {
    /// The manifest: a .toml or .json file.
    pub(super) manifest: PathBuf,
    /// The store for artifacts and releases, instead of the manifest's release.uri: a path,
    /// file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    pub(super) json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

impl Common {
    /// Returns the store's address: the option, relative to the working folder, or else the
    /// manifest's, relative to the manifest.
    pub(super) fn store(&self, manifest: &Manifest) -> Result<Address, Failure> {
        let address = match &self.store {
            None => manifest.address("release.uri", &manifest.release.uri)?,
            Some(text) => here("--store", text)?,
        };
        Store::require_writable(&address)?;
        Ok(address)
    }

    pub(super) fn cache(&self) -> PathBuf {
        cache(self.cache.as_ref())
    }
}

#[derive(Debug, Args)]
pub(super) struct Signing {
    /// Sign the release with this private key: a PEM file, elliptic curve P-256, P-384 or P-521. It
    /// is never part of a manifest.
    #[arg(long, value_name = "FILE", env = "LETHE_SIGN_KEY", hide_env_values = true)]
    sign_key: Option<PathBuf>,
}

impl Signing {
    /// Reads the key. Commands call this before they compute anything, so that a bad key fails at
    /// once.
    pub(super) fn key(&self) -> Result<Option<SigningKey>, Failure> {
        self.sign_key.as_deref().map(SigningKey::read).transpose()
    }
}

/// Parses an address from the command line, relative to the working folder. `what` names the option
/// in messages.
pub(super) fn here(what: &str, text: &str) -> Result<Address, Failure> {
    let folder = std::env::current_dir()
        .map_err(|error| Failure::input(format!("working folder: {error}")))?;
    Address::resolve(text, Some(&folder))
        .map_err(|error| Failure::input(format!("{what}: {error}")))
}

/// Returns the folder for downloads: the option, or else the user's cache folder.
pub(super) fn cache(given: Option<&PathBuf>) -> PathBuf {
    let user = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .map(|cache| cache.join("lethe"))
    };
    given.cloned().or_else(user).unwrap_or_else(|| std::env::temp_dir().join("lethe-cache"))
}

/// Writes a line or JSON to stdout, with hidden characters of lines escaped. A closed pipe is not an
/// error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    // JSON has its own escapes.
    let is_json = text.starts_with(['{', '[']);
    let text = if is_json { Cow::Borrowed(text) } else { Cow::Owned(printable_message(text)) };
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Infrastructure(format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}
