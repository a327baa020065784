//! What is written of the concepts: class list, splits, concept lists, shards and the model's
//! tokenizer.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Concept;
use crate::data_captions::forms;
use crate::data_icons::{FAMILIES, Role};
use crate::data_output::{Shard, csv_line, remove_stale, write_file, write_folder};
use crate::data_render::{Encoded, encode};
use crate::data_split::{Part, batches, parts, pick};
use crate::{data_texts, data_tokenizer};

/// Concepts that can be forgotten; the longest concept list.
const REMOVABLE: usize = 300;
/// The middle concept list.
const MIDDLE: usize = 100;
/// The shortest concept list: one well-known thing of each group.
const KNOWN: [&str; 8] = [
    "cat-face",
    "guitar",
    "pizza",
    "recycling-symbol",
    "red-heart",
    "rocket",
    "soccer-ball",
    "thumbs-up",
];
/// Pairs of a retain batch; no batch holds two of one concept.
const BATCH: usize = 128;
/// Pairs of a retain shard.
const SHARD_PAIRS: usize = 512;
/// Most pairs of all retain shards, which keeps the demo small.
const RETAIN_PAIRS: usize = 1536;

/// A drawing with what the shards need of it.
struct Drawing {
    concept: usize,
    family: usize,
    key: String,
    encoded: Encoded,
    captions: Vec<String>,
    /// Which caption form the forget and retain shards give it.
    form: usize,
}

impl Drawing {
    fn add(&self, shard: &mut Shard, text: &str) -> Result<()> {
        shard.add(&format!("{}.{}", self.key, self.encoded.extension), &self.encoded.bytes)?;
        shard.add(&format!("{}.txt", self.key), text.as_bytes())
    }

    fn caption(&self) -> &str {
        &self.captions[self.form % self.captions.len()]
    }
}

/// Writes everything but the licences.
pub(crate) fn write(out: &Path, train_out: &Path, concepts: &[Concept]) -> Result<()> {
    let drawings = drawings(concepts)?;
    let classes: Vec<String> = concepts.iter().map(|concept| concept.class.clone()).collect();
    write_file(&out.join("classes.txt"), (classes.join("\n") + "\n").as_bytes())?;
    let words = write_model(&out.join("model"), &classes, &drawings)?;
    write_train(train_out, concepts, &drawings)?;
    for (role, name) in [(Role::Validation, "validation.tar"), (Role::Test, "test.tar")] {
        let mut shard = Shard::new();
        for drawing in of_role(&drawings, role) {
            drawing.add(&mut shard, &concepts[drawing.concept].class)?;
        }
        write_file(&out.join(name), &shard.finish()?)?;
    }
    let parts = write_lists(out, concepts)?;
    write_forget(out, concepts, &drawings, &parts)?;
    write_retain(out, &drawings, &parts)?;
    write_retain_texts(out, concepts, &words, &parts)
}

/// Encodes every drawing; in the order of the concepts, then of the families.
fn drawings(concepts: &[Concept]) -> Result<Vec<Drawing>> {
    let mut drawings = Vec::new();
    for (index, concept) in concepts.iter().enumerate() {
        for (form, (family, pixels)) in concept.drawings.iter().enumerate() {
            let captions =
                forms(&concept.class, FAMILIES[*family].style, &concept.keywords, &concept.group);
            let key = format!("{}_{}", concept.id, FAMILIES[*family].name);
            drawings.push(Drawing {
                concept: index,
                family: *family,
                key,
                encoded: encode(pixels)?,
                captions,
                form,
            });
        }
    }
    Ok(drawings)
}

fn of_role(drawings: &[Drawing], role: Role) -> impl Iterator<Item = &Drawing> {
    drawings.iter().filter(move |drawing| FAMILIES[drawing.family].role == role)
}

fn write_train(folder: &Path, concepts: &[Concept], drawings: &[Drawing]) -> Result<()> {
    let mut shard = Shard::new();
    for drawing in of_role(drawings, Role::Train) {
        let class = &concepts[drawing.concept].class;
        drawing.add(&mut shard, class)?;
        let sidecar = json!({ "class": class, "family": FAMILIES[drawing.family].name, "captions": drawing.captions });
        shard.add(&format!("{}.json", drawing.key), sidecar.to_string().as_bytes())?;
    }
    write_file(&folder.join("train.tar"), &shard.finish()?)
}

/// Writes tokenizer and preprocessing files; returns the words of the vocabulary.
fn write_model(folder: &Path, classes: &[String], drawings: &[Drawing]) -> Result<Vec<String>> {
    let captions: Vec<(usize, String)> = of_role(drawings, Role::Train)
        .flat_map(|drawing| {
            drawing.captions.iter().map(|caption| (drawing.concept, caption.clone()))
        })
        .collect();
    let words = data_tokenizer::words(classes, &captions);
    println!("{:>6} words and marks in the vocabulary, besides 4 special tokens", words.len());
    let files: [(&str, Value); 4] = [
        ("tokenizer.json", data_tokenizer::tokenizer(&words)?),
        ("tokenizer_config.json", data_tokenizer::tokenizer_config()),
        ("special_tokens_map.json", data_tokenizer::special_tokens()),
        ("preprocessor_config.json", data_tokenizer::preprocessor()),
    ];
    for (name, value) in files {
        write_file(&folder.join(name), (serde_json::to_string_pretty(&value)? + "\n").as_bytes())?;
    }
    Ok(words)
}

/// Splits the concepts and writes `split.csv` and the three nested concept lists.
fn write_lists(out: &Path, concepts: &[Concept]) -> Result<Vec<Part>> {
    let groups: Vec<String> = concepts.iter().map(|concept| concept.group.clone()).collect();
    let mut known = Vec::new();
    for id in KNOWN {
        known.push(
            concepts
                .iter()
                .position(|concept| concept.id == id)
                .with_context(|| format!("concept {id} is missing"))?,
        );
    }
    known.sort_unstable();
    let known_groups: HashSet<&String> = known.iter().map(|index| &groups[*index]).collect();
    ensure!(known_groups.len() == known.len(), "the well-known concepts are not of one group each");
    let all: Vec<usize> = (0..concepts.len()).collect();
    let removable = pick(&groups, &all, &known, REMOVABLE, "removable")?;
    let middle = pick(&groups, &removable, &known, MIDDLE, "middle")?;
    let parts = parts(&groups, &removable)?;
    let mut split = csv_line(&["class", "group", "role"]);
    for (concept, part) in concepts.iter().zip(&parts) {
        split += &csv_line(&[&concept.class, &concept.group, part.word()]);
    }
    write_file(&out.join("split.csv"), split.as_bytes())?;
    for list in [&known, &middle, &removable] {
        let mut csv = csv_line(&["id", "name", "class", "forget", "strength", "group"]);
        for concept in list.iter().map(|index| &concepts[*index]) {
            let forget = format!("forget/{}.tar", concept.id);
            csv += &csv_line(&[
                &concept.id,
                &concept.class,
                &concept.class,
                &forget,
                "1",
                &concept.group,
            ]);
        }
        write_file(&out.join(format!("concepts-{}.csv", list.len())), csv.as_bytes())?;
    }
    for part in [Part::Removable, Part::Covered, Part::Unseen] {
        println!(
            "{:>6} concepts {}",
            parts.iter().filter(|other| **other == part).count(),
            part.word()
        );
    }
    Ok(parts)
}

fn write_forget(
    out: &Path,
    concepts: &[Concept],
    drawings: &[Drawing],
    parts: &[Part],
) -> Result<()> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let training: Vec<&Drawing> = of_role(drawings, Role::Train)
        .filter(|drawing| parts[drawing.concept] == Part::Removable)
        .collect();
    for of_concept in training.chunk_by(|a, b| a.concept == b.concept) {
        let mut shard = Shard::new();
        for drawing in of_concept {
            drawing.add(&mut shard, drawing.caption())?;
        }
        files.push((format!("{}.tar", concepts[of_concept[0].concept].id), shard.finish()?));
    }
    ensure!(
        files.len() == REMOVABLE,
        "{} of {REMOVABLE} removable concepts have training drawings",
        files.len()
    );
    println!("{:>6} forget shards with {} pairs", files.len(), training.len());
    write_folder(&out.join("forget"), &files)
}

fn write_retain(out: &Path, drawings: &[Drawing], parts: &[Part]) -> Result<()> {
    let covered: Vec<&Drawing> = of_role(drawings, Role::Train)
        .filter(|drawing| parts[drawing.concept] == Part::Covered)
        .collect();
    let owners: Vec<usize> = covered.iter().map(|drawing| drawing.concept).collect();
    let order = batches(&owners, BATCH, RETAIN_PAIRS)?;
    ensure!(order.len() == RETAIN_PAIRS, "only {} pairs for the retain shards", order.len());
    let mut names = Vec::new();
    for (number, members) in order.chunks(SHARD_PAIRS).enumerate() {
        let mut shard = Shard::new();
        for (position, index) in members.iter().enumerate() {
            let drawing = covered[*index];
            // Readers may sort a shard by key; the position in front keeps the batches as they are.
            let key = format!("{position:03}_{}", drawing.key);
            shard.add(&format!("{key}.{}", drawing.encoded.extension), &drawing.encoded.bytes)?;
            shard.add(&format!("{key}.txt"), drawing.caption().as_bytes())?;
        }
        let name = format!("retain-{number:05}.tar");
        write_file(&out.join(&name), &shard.finish()?)?;
        names.push(name);
    }
    println!("{:>6} retain shards with {} pairs of {} concepts", names.len(), order.len(), {
        order.iter().map(|index| owners[*index]).collect::<HashSet<_>>().len()
    });
    remove_stale(out, &names, |name| name.starts_with("retain-") && name.ends_with(".tar"))
}

/// Texts that name neither what may be forgotten nor what must stay unseen.
fn write_retain_texts(
    out: &Path,
    concepts: &[Concept],
    words: &[String],
    parts: &[Part],
) -> Result<()> {
    let unnamed = concepts
        .iter()
        .zip(parts)
        .filter(|(_, part)| **part != Part::Covered)
        .map(|(concept, _)| concept.class.as_str());
    let texts = data_texts::texts(words, &unnamed.collect::<Vec<_>>(), data_texts::COUNT)?;
    println!("{:>6} retain texts", texts.len());
    write_file(&out.join("retain-texts.txt"), (texts.join("\n") + "\n").as_bytes())
}
