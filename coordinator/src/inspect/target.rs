//! Pipelines and vision-language models: the towers in them that are CLIP's, and what a release would
//! leave out.

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::manifest::{PassThrough, ReleaseTarget, TargetKind};
use lethe_store as store;

use super::inspection::{Inspection, Options, accepted, number};
use crate::downstream::Target;
use crate::failure::Failure;
use crate::progress::human_bytes;

/// Inspects a target. Without a base model, its first tower stands for it.
pub(super) async fn inspect(
    address: &Address,
    kind: TargetKind,
    options: Options<'_>,
) -> Result<Inspection, Failure> {
    let is = match kind {
        TargetKind::StableDiffusion => "a pipeline of diffusers, for kind = \"stable-diffusion\"",
        TargetKind::Llava => "a vision-language model, for kind = \"llava\"",
    };
    let mut inspection = Inspection::of(address, is);
    let request = ReleaseTarget {
        name: "inspected".to_owned(),
        kind,
        uri: address.to_string(),
        pass_through: PassThrough::default(),
        tolerance: None,
    };
    let base = match options.base {
        None => None,
        Some(base) => {
            let folder = store::fetch_folder(base, options.cache).await?;
            Some(Checkpoint::open(&folder)?)
        }
    };
    let opened = match &base {
        Some(base) => Target::open(&request, address.clone(), base, options.cache).await,
        None => Target::alone(&request, address.clone(), options.cache).await,
    };
    let target = match accepted(opened)? {
        Ok(target) => target,
        Err(problems) => return Ok(Inspection { problems, ..inspection }),
    };
    inspection.row(
        "compared with",
        match options.base {
            Some(base) => base.to_string(),
            None => "its own first tower".to_owned(),
        },
    );
    if options.base.is_none() {
        inspection.next =
            Some("--base MODEL compares its tower with that of the model to be edited".into());
    }
    if !target.architecture.is_empty() {
        inspection.row("architecture", target.architecture.clone());
    }
    for tower in target.towers() {
        inspection.row(
            if tower.is_used { "tower" } else { "copy of it" },
            format!(
                "{}: {} tower, {} blocks, of which {} act{}{}; {}",
                if tower.folder.is_empty() { "the checkpoint" } else { tower.folder },
                target.tower().name(),
                tower.blocks,
                tower.reach.blocks.min(tower.blocks),
                if tower.reach.last_norm { ", last norm" } else { "" },
                if tower.reach.projection { ", projection" } else { "" },
                tower.weights.join(", ")
            ),
        );
    }
    for tower in target.towers().filter(|tower| tower.is_used) {
        inspection.row("reads", tower.reads.to_owned());
    }
    for encoder in &target.unedited {
        inspection.row("not edited", format!("{} ({})", encoder.folder, encoder.class));
    }
    inspection.row(
        "files",
        format!(
            "{} ({}) go into a release",
            number(target.files() as u64),
            human_bytes(target.bytes())
        ),
    );
    let prefix = format!("target `{}`: ", request.name);
    inspection.odd = target
        .warnings
        .iter()
        .map(|warning| warning.strip_prefix(&prefix).unwrap_or(warning).to_owned())
        .collect();
    Ok(inspection)
}
