//! Builds the emoji demo: drawings of eight open emoji families become concepts, shards and a
//! tokenizer.
//!
//! Two families are held out whole, so that validation and test measure whether the model knows the
//! thing, not the drawing. Every file is the same byte for byte on every run.

mod data_captions;
mod data_fxemoji;
mod data_icons;
mod data_licences;
mod data_names;
mod data_output;
mod data_render;
mod data_shards;
mod data_split;
mod data_texts;
mod data_tokenizer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::data_icons::{FAMILIES, IconSet, Role};
use crate::data_names::Candidate;

/// Families that must draw an emoji for it to become a concept.
const MIN_FAMILIES: usize = 6;

/// Build the demo's drawings, shards, splits and tokenizer.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Folder `node_modules` that holds @iconify-json/*, unicode-emoji-json and emojilib.
    #[arg(long, default_value = ".tools/emoji/node_modules")]
    npm: PathBuf,
    /// Folder of the demo.
    #[arg(long, default_value = "jobs/emoji")]
    out: PathBuf,
    /// Folder of the training shard, which only `emoji-train` reads.
    #[arg(long, default_value = "target/emoji")]
    train_out: PathBuf,
}

/// One concept with its drawings.
pub(crate) struct Concept {
    pub(crate) id: String,
    pub(crate) class: String,
    pub(crate) group: String,
    pub(crate) keywords: Vec<String>,
    /// By index into [`FAMILIES`].
    pub(crate) drawings: BTreeMap<usize, Vec<u8>>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let sets = FAMILIES
        .iter()
        .map(|family| IconSet::read(&options.npm, family.name))
        .collect::<Result<Vec<_>>>()?;
    let candidates = data_names::candidates(&options.npm, &FAMILIES, &sets)?;
    let mut concepts = concepts(&options, candidates, &sets)?;
    let dropped = drop_held_out_copies(&mut concepts);
    println!(
        "{} concepts; {dropped} training drawings dropped as copies of held-out ones",
        concepts.len()
    );
    for (index, family) in FAMILIES.iter().enumerate() {
        let count = concepts.iter().filter(|concept| concept.drawings.contains_key(&index)).count();
        println!("{:>6} {} ({})", count, family.name, family.role.word());
    }
    data_shards::write(&options.out, &options.train_out, &concepts)?;
    let (csv, text) = data_licences::files(&options.npm, &sets)?;
    data_output::write_file(&options.out.join("licences.csv"), csv.as_bytes())?;
    data_output::write_file(&options.out.join("LICENCES.md"), text.as_bytes())
}

/// Draws every candidate in every family and keeps those that enough families show; sorted by class
/// name.
fn concepts(
    options: &Options,
    candidates: Vec<Candidate>,
    sets: &[IconSet],
) -> Result<Vec<Concept>> {
    let listed: HashMap<String, Vec<String>> =
        data_icons::read_json(&options.npm.join("emojilib/dist/emoji-en-US.json"))?;
    let icons = FAMILIES
        .iter()
        .zip(sets)
        .map(|(family, set)| data_names::match_icons(&candidates, family, set))
        .collect::<Result<Vec<_>>>()?;
    let mut concepts = Vec::new();
    for (index, candidate) in candidates.into_iter().enumerate() {
        if icons.iter().filter(|icons| icons.contains_key(&index)).count() < MIN_FAMILIES {
            continue;
        }
        let mut drawings = BTreeMap::new();
        for (family, (icons, set)) in icons.iter().zip(sets).enumerate() {
            let Some(icon) = icons.get(&index) else { continue };
            match data_render::render(&set.svg(icon)?) {
                Ok(pixels) if !data_render::is_blank(&pixels) => {
                    drawings.insert(family, pixels);
                }
                Ok(_) => eprintln!("{}: `{}` is blank, left out", FAMILIES[family].name, icon.icon),
                Err(error) => {
                    eprintln!("{}: `{}` left out: {error:#}", FAMILIES[family].name, icon.icon)
                }
            }
        }
        if drawings.len() >= MIN_FAMILIES {
            let listed = listed.get(&candidate.emoji).map_or(&[][..], Vec::as_slice);
            let keywords = data_captions::keywords(&candidate.class, listed);
            concepts.push(Concept {
                id: candidate.id,
                class: candidate.class,
                group: candidate.group,
                keywords,
                drawings,
            });
        }
    }
    concepts.sort_by(|a, b| a.class.cmp(&b.class));
    let long = concepts
        .iter()
        .find(|concept| data_captions::tokens(&concept.class).len() > data_captions::MAX_TOKENS);
    ensure!(
        long.is_none(),
        "class name `{}` is too long for the model",
        long.map_or("", |concept| &concept.class)
    );
    Ok(concepts)
}

/// Drops every training drawing that a held-out family draws pixel by pixel the same; returns how
/// many.
fn drop_held_out_copies(concepts: &mut [Concept]) -> usize {
    let held_out: HashSet<Vec<u8>> = concepts
        .iter()
        .flat_map(|concept| &concept.drawings)
        .filter(|(family, _)| FAMILIES[**family].role != Role::Train)
        .map(|(_, pixels)| pixels.clone())
        .collect();
    let mut dropped = 0;
    for concept in concepts {
        let before = concept.drawings.len();
        concept.drawings.retain(|family, pixels| {
            FAMILIES[*family].role != Role::Train || !held_out.contains(pixels)
        });
        dropped += before - concept.drawings.len();
    }
    dropped
}
