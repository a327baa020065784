//! The command `lethe verify`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use lethe_operations::log::say;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::exit;
use serde::Serialize;

use super::common::{cache, here, print};
use super::compose::{places, target};
use super::find;
use crate::attest::key::PublicKey;
use crate::failure::Failure;
use crate::release::signing;
use crate::release::verify::{Problem, verify};
use crate::run::recompose::{Compared, Request, amend};

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The release: its folder, STORE/releases/NAME/DIGEST, a copy of it, or NAME, NAME:NUMBER or
    /// NAME@CHANNEL in --store.
    release: String,
    /// The store of a release that is given by name; without this option LETHE_STORE, or else
    /// ./store.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Recompute the weights from the base model and the release's edits, and compare: every tensor
    /// without an edit must equal the base's, and every other must equal the recomputed one.
    #[arg(long)]
    recompute: bool,
    /// Also require a signature over every file by this key: a PEM file. `model_signing verify key`
    /// checks the same.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Where the base model is now, if it has moved since the release.
    #[arg(long, value_name = "ADDRESS", requires = "recompute")]
    base: Option<String>,
    /// Where a target's model is now, if it has moved since the release.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = target, requires = "recompute")]
    target: Vec<(String, String)>,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

/// The last line of `lethe verify --json`.
#[derive(Debug, Serialize)]
struct Verified {
    release: String,
    /// SHA-256 of the record, if it could be read.
    record: Option<Digest>,
    /// Number of files checked besides the record.
    files: usize,
    /// SHA-256 of the public key's PEM text, if a key was given and has signed the release.
    signed_by: Option<Digest>,
    /// Comparison with the recomputed weights, with `--recompute`.
    tensors: Option<Compared>,
    problems: Vec<Problem>,
}

/// Returns the release's address. The checks find out whether it can be opened.
async fn address(options: &Verify) -> Result<Address, Failure> {
    if find::is_folder(&options.release) {
        return here("RELEASE", &options.release);
    }
    let (store, found) = find::published(&options.release, options.store.as_deref()).await?;
    Address::parse(&format!("{}/{}", store.name(), found.prefix())).map_err(Failure::input)
}

pub(super) async fn main(options: &Verify) -> Result<u8, Failure> {
    let address = address(options).await?;
    let key = options.public_key.as_deref().map(PublicKey::read).transpose()?;
    let mut checked = verify(&address).await?;
    let release = checked.release.take();
    let (record, files) = release.as_ref().map_or((None, 0), |release| {
        let of_targets: usize =
            release.record.targets.iter().map(|target| target.files().len()).sum();
        (Some(release.digest), release.record.files.len() + of_targets)
    });
    // Signatures and weights are checked only if every file is intact.
    let sound = release.filter(|_| checked.problems.is_empty());
    let mut signed_by = None;
    if let Some((release, key)) = sound.as_ref().zip(key.as_ref()) {
        checked.problems.extend(signing::check(release, key).await?);
        signed_by = Some(key.hint()).filter(|_| checked.problems.is_empty());
    }
    let mut tensors = None;
    if let Some(release) = sound.filter(|_| options.recompute) {
        let (store, recorded) = (release.store.clone(), release.record.targets.clone());
        let amended = amend(release, Request::default()).await?;
        let base = options.base.as_deref().map(|text| here("--base", text)).transpose()?;
        let cache = cache(options.cache.as_ref());
        let checkpoint = amended.base(base.as_ref(), &cache).await?;
        let compared = amended.compare(&checkpoint, &checked.weights()?).await?;
        checked.problems.extend(
            compared
                .other
                .iter()
                .map(|(tensor, problem)| Problem::new("weights", format!("`{tensor}` {problem}"))),
        );
        tensors = Some(compared);
        let targets = amended
            .targets(&places(&options.target)?, &BTreeSet::new(), &checkpoint, &cache)
            .await?;
        for (again, recorded) in
            amended.staged(&targets, &checkpoint, &store).await?.iter().zip(&recorded)
        {
            for name in
                recorded.changed.keys().chain(again.record.changed.keys()).collect::<BTreeSet<_>>()
            {
                if recorded.changed.get(name) != again.record.changed.get(name) {
                    let file = format!("{}/{name}", recorded.folder());
                    checked.problems.push(Problem::new(
                        &file,
                        "differs from the one recomputed from the target's model and the edits",
                    ));
                }
            }
        }
    }
    let problems = checked.problems;
    for problem in &problems {
        say("error", &format!("{address}/{problem}"));
    }
    let good = problems.is_empty();
    if options.json {
        let verified =
            Verified { release: address.to_string(), record, files, signed_by, tensors, problems };
        print(&serde_json::to_string(&verified).map_err(Failure::input)?)?;
    } else if good {
        let mut said = format!("{address}: {files} files, all unchanged");
        if let Some(key) = signed_by {
            said += &format!("; signed by the key with SHA-256 {key}");
        }
        if let Some(Compared { untouched, composed, .. }) = tensors {
            said += &format!(
                "; {untouched} tensors equal the base's, {composed} recomputed from base and edits, byte for byte"
            );
        }
        print(&said)?;
    }
    Ok(if good { exit::DONE } else { exit::NOT_PASSED })
}
