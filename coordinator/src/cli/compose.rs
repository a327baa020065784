//! The command `lethe compose`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::exit;
use lethe_shared::record::Parent;
use lethe_store::Store;
use serde::Serialize;

use super::common::{Signing, cache, here, print};
use super::find;
use crate::failure::Failure;
use crate::lease::fence::Fence;
use crate::release::read::Release;
use crate::release::{publish, signing};
use crate::run::recompose::{Preview, Request, amend};

#[derive(Debug, Args)]
pub(super) struct Compose {
    /// The release to start from: its folder, STORE/releases/NAME/DIGEST, or NAME, NAME:NUMBER or
    /// NAME@CHANNEL in --store.
    release: String,
    /// Scale a concept's removal: 1 removes it in full, 0 restores it, values above 1 remove more.
    /// May be repeated.
    #[arg(long, value_name = "ID=A", value_parser = strength)]
    strength: Vec<(String, f64)>,
    /// Scale the removal of every concept of a group, except those that --strength or --restore
    /// names.
    #[arg(long, value_name = "GROUP=A", value_parser = strength)]
    group_strength: Vec<(String, f64)>,
    /// Restore a concept: leave its edit out of the new release, so that the model recognises it
    /// again. May be repeated.
    #[arg(long = "restore", visible_alias = "remove", value_name = "ID")]
    remove: Vec<String>,
    /// Add a concept's edit from another release, which is given like RELEASE, as in
    /// `other:2:pizza`. That release must have the same base model and the same retain data.
    #[arg(long, value_name = "RELEASE:ID", value_parser = addition)]
    add: Vec<(String, String)>,
    /// Where the base model is now, if it has moved since the release.
    #[arg(long, value_name = "ADDRESS")]
    base: Option<String>,
    /// Where a target's model is now, if it has moved since the release.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = target)]
    target: Vec<(String, String)>,
    /// Leave a target out.
    #[arg(long, value_name = "NAME")]
    drop_target: Vec<String>,
    /// The store for the new release, by default the store of the old one. If the old release is
    /// given by name, it is looked up here; without this option in LETHE_STORE, or else in ./store.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    #[command(flatten)]
    signing: Signing,
    /// Only predict the effect of the change; write nothing.
    #[arg(long)]
    preview: bool,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

/// The last line of `lethe compose --json`.
#[derive(Debug, Serialize)]
struct Composed {
    release: String,
    number: u64,
    digest: Digest,
    parent: Option<Parent>,
    preview: Preview,
}

fn strength(text: &str) -> Result<(String, f64), String> {
    let (id, strength) = text.split_once('=').ok_or("expected ID=A, as in pizza=0.5")?;
    Ok((id.to_owned(), strength.parse().map_err(|_| format!("`{strength}` is not a number"))?))
}

/// Parses a target and its address.
pub(super) fn target(text: &str) -> Result<(String, String), String> {
    let (name, address) = text
        .split_once('=')
        .ok_or("expected NAME=ADDRESS, as in sd15=/models/stable-diffusion-v1-5")?;
    Ok((name.to_owned(), address.to_owned()))
}

/// Returns the addresses of targets, by name.
pub(super) fn places(targets: &[(String, String)]) -> Result<BTreeMap<String, Address>, Failure> {
    targets.iter().map(|(name, address)| Ok((name.clone(), here("--target", address)?))).collect()
}

fn addition(text: &str) -> Result<(String, String), String> {
    let (release, id) = text.rsplit_once(':').ok_or("expected RELEASE:ID, as in other:2:pizza")?;
    Ok((release.to_owned(), id.to_owned()))
}

pub(super) async fn main(options: &Compose) -> Result<u8, Failure> {
    let signer = options.signing.key()?;
    let parent = find::release(&options.release, options.store.as_deref()).await?;
    let mut request = Request {
        remove: options.remove.clone(),
        strength: options.strength.clone(),
        ..Request::default()
    };
    for (group, strength) in &options.group_strength {
        request.strength.extend(of_group(&parent, group, *strength, &request)?);
    }
    for (release, id) in &options.add {
        let other = find::release(release, options.store.as_deref()).await?;
        request.add.push((other, id.clone()));
    }
    let store = match &options.store {
        Some(text) => Some(here("--store", text)?),
        None if parent.stored => None,
        None => {
            return Err(Failure::input(format!(
                "{} is not in a store; give the store for the new release with --store",
                parent.address()
            )));
        }
    };
    let own = parent.store.clone();
    let amended = amend(parent, request).await?;
    let preview = amended.preview();
    if options.preview {
        print(&if options.json {
            serde_json::to_string(&preview).map_err(Failure::input)?
        } else {
            table(&preview)
        })?;
        return Ok(exit::DONE);
    }
    let base: Option<Address> =
        options.base.as_deref().map(|text| here("--base", text)).transpose()?;
    let cache = cache(options.cache.as_ref());
    let checkpoint = amended.base(base.as_ref(), &cache).await?;
    let dropped = options.drop_target.iter().cloned().collect();
    let targets = amended.targets(&places(&options.target)?, &dropped, &checkpoint, &cache).await?;
    let into = store.map_or(Ok(own), |address| Store::open(&address))?;
    into.probe().await?;
    let (release, record, published) = amended.write(&into, &checkpoint, &targets).await?;
    if let Some(key) = &signer {
        signing::sign(&publish::open(&into, &published).await?, key, &Fence::open()).await?;
    }
    if options.json {
        let composed = Composed {
            release,
            number: published.number,
            digest: record.digest,
            parent: record.parent,
            preview,
        };
        print(&serde_json::to_string(&composed).map_err(Failure::input)?)?;
    } else {
        let (digest, name, number) = (record.digest, &record.name, published.number);
        let predictions = match preview.cost {
            Some(_) => ", and the numbers above are predictions",
            None => "",
        };
        print(&format!(
            "{}\n  digest   {digest}\n  release  {release}\n  name     {name}:{number}\n  this release is not measured yet{predictions}; `lethe evaluate` measures it",
            table(&preview)
        ))?;
    }
    Ok(exit::DONE)
}

/// Returns the strengths of a group's concepts, except those that other options name.
fn of_group(
    parent: &Release,
    group: &str,
    strength: f64,
    request: &Request,
) -> Result<Vec<(String, f64)>, Failure> {
    let members =
        parent.record.concepts.iter().filter(|concept| concept.group.as_deref() == Some(group));
    let ids: Vec<&String> = members.map(|concept| &concept.id).collect();
    if ids.is_empty() {
        let known: BTreeSet<&str> =
            parent.record.concepts.iter().filter_map(|concept| concept.group.as_deref()).collect();
        let known = Vec::from_iter(known).join(", ");
        return Err(Failure::input(format!(
            "{} removes no concept of group `{group}`; its groups: {known}",
            parent.address()
        )));
    }
    let named = |id: &String| {
        request.remove.contains(id) || request.strength.iter().any(|(named, _)| named == id)
    };
    Ok(ids.into_iter().filter(|id| !named(id)).map(|id| (id.clone(), strength)).collect())
}

fn table(preview: &Preview) -> String {
    let pair = |(before, after): (f64, f64)| {
        if before == after { format!("{before:.4}") } else { format!("{before:.4} → {after:.4}") }
    };
    let optional = |values: Option<(f64, f64)>| values.map(pair).unwrap_or_default();
    let Some(cost) = preview.cost else {
        // Edits that are added up as they are: nothing is solved again that could be predicted.
        let mut lines = vec![format!("  {:<24}strength", "concept")];
        lines.extend(
            preview
                .concepts
                .iter()
                .map(|concept| format!("  {:<24}{}", concept.id, pair(concept.strength))),
        );
        lines.push("  edits are scaled and added up; their effect is not predicted".to_owned());
        return lines.join("\n");
    };
    let mut lines = vec![format!(
        "  {:<24}{:<20}{:<22}{:<22}{}",
        "concept", "strength", "step", "loss rise wanted", "predicted"
    )];
    for concept in &preview.concepts {
        let (strength, step) = (pair(concept.strength), pair(concept.step));
        let (wanted, raise) = (optional(concept.wanted), optional(concept.raise));
        lines.push(format!("  {:<24}{strength:<20}{step:<22}{wanted:<22}{raise}", concept.id));
    }
    lines.push(format!("  predicted cost on retained data: {}", pair(cost)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_a_concept() {
        assert_eq!(strength("a.b=0.5"), Ok(("a.b".into(), 0.5)));
        assert!(strength("a").is_err() && strength("a=much").is_err());
        assert_eq!(
            addition("s3://b/releases/n/d:id"),
            Ok(("s3://b/releases/n/d".into(), "id".into()))
        );
        assert_eq!(addition("other:2:pizza"), Ok(("other:2".into(), "pizza".into())));
        assert!(addition("id").is_err());
        assert_eq!(target("sd15=s3://b/sd"), Ok(("sd15".into(), "s3://b/sd".into())));
        assert!(target("sd15").is_err());
    }
}
