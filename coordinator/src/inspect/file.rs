//! Single files: weights, images, tables, lists of names, manifests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::image_file::{self, Format};
use lethe_shared::manifest::concepts::{self, MAX_TABLE};
use lethe_shared::manifest::table::{self, Purpose, TableRow};
use lethe_shared::manifest::{Classes, Manifest};
use lethe_shared::printable::printable;
use lethe_shared::texts;
use lethe_shared::vocabulary::Towers;
use lethe_shared::webdataset::MAX_IMAGE;
use lethe_shared::words::normal_name;
use lethe_store as store;

use super::folder;
use super::inspection::{Inspection, Options, accepted, blocking, number};
use crate::failure::Failure;
use crate::intake::files::read_file;
use crate::intake::quick_check;

/// Names that are shown.
const EXAMPLES: usize = 3;

/// Inspects one safetensors file.
pub(super) async fn weights(address: &Address, cache: &Path) -> Result<Inspection, Failure> {
    let path = store::fetch_file(address, cache, None).await?;
    let mut inspection = Inspection::of(address, "a weight file");
    let opened = blocking(move || {
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open_file(&folder, &name)?;
        let broken = checkpoint.non_finite()?;
        Ok((checkpoint, broken))
    })
    .await?;
    match accepted(opened)? {
        Ok((checkpoint, broken)) => {
            inspection.row("weights", folder::weights(&checkpoint));
            inspection.row(
                "layout",
                checkpoint.layout().map_or("not of a CLIP", |layout| layout.library()),
            );
            inspection.problems.extend(
                broken.first().map(|first| format!("`{first}` holds NaN or infinite values")),
            );
            inspection.next = Some(
                "a model is a folder: inspect that of this file, with its configuration".into(),
            );
        }
        Err(problems) => inspection.problems = problems,
    }
    Ok(inspection)
}

/// Inspects an image.
pub(super) async fn image(address: &Address, cache: &Path) -> Result<Inspection, Failure> {
    let bytes = read_file("the image", address, MAX_IMAGE, cache).await?;
    let is = Format::of(&bytes)
        .map_or("an image, by its name".to_owned(), |format| format!("a {} image", name(format)));
    let mut inspection = Inspection::of(address, is);
    match image_file::check(&bytes) {
        Ok(Some((width, height))) => inspection.row("size", format!("{width} × {height} pixels")),
        Ok(None) => inspection.problems.push("its header cannot be read".to_owned()),
        Err(problem) => inspection.problems.push(format!("it {problem}")),
    }
    Ok(inspection)
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Png => "PNG",
        Format::Jpeg => "JPEG",
        Format::WebP => "WebP",
    }
}

/// Inspects a concept table.
pub(super) async fn table(address: &Address, options: Options<'_>) -> Result<Inspection, Failure> {
    let bytes = read_file("the table", address, MAX_TABLE, options.cache).await?;
    let shown = address.to_string();
    let mut inspection = Inspection::of(address, "a concept table for `lethe run`");
    let sentences = |problems: Vec<lethe_shared::manifest::Error>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let rows = match table::read(&bytes, &shown, Purpose::Run) {
        Ok(rows) => {
            // Without a class list, each concept's own class stands for it.
            let own = options.classes.is_none().then(|| own_classes(&rows)).flatten();
            if options.classes.is_none() {
                inspection.next = Some("--classes FILE checks the classes too".into());
            }
            if let Some(classes) = options.classes.or(own.as_ref()) {
                let folder = shown.rsplit_once('/').map_or("/", |(folder, _)| folder);
                let folder = Address::parse(folder).map_err(Failure::input)?;
                let of_run = rows.iter().map(|found| (found.line, found.row.clone())).collect();
                let checked = concepts::check(of_run, &shown, &folder, classes);
                inspection.problems = checked.err().map(sentences).unwrap_or_default();
            }
            rows
        }
        // Tables of names without forget shards are for curation.
        Err(problems) => match table::read(&bytes, &shown, Purpose::Curation) {
            Ok(rows) => {
                inspection.is = "a concept table for `lethe curate`".to_owned();
                inspection
                    .odd
                    .push(format!("not for `lethe run`: {}", sentences(problems).join("; ")));
                rows
            }
            Err(_) => return Ok(Inspection { problems: sentences(problems), ..inspection }),
        },
    };
    describe(&rows, &mut inspection);
    Ok(inspection)
}

/// Returns the classes that a table names itself; `None` when they make no class list.
fn own_classes(rows: &[TableRow]) -> Option<Classes> {
    // A class list has two names at least.
    let mut lines = "(none of these)\n".to_owned();
    let mut seen = BTreeSet::new();
    for found in rows {
        let class = found.row.class.as_deref().filter(|class| !class.is_empty());
        let class = normal_name(class.unwrap_or(&found.row.name)).into_owned();
        if seen.insert(class.clone()) {
            lines.push_str(&class);
            lines.push('\n');
        }
    }
    Classes::parse(lines.as_bytes(), "the table").ok()
}

fn describe(rows: &[TableRow], inspection: &mut Inspection) {
    let names: Vec<String> = rows
        .iter()
        .take(EXAMPLES)
        .map(|found| format!("`{}`", printable(&found.row.name)))
        .collect();
    inspection
        .row("concepts", format!("{}, such as {}", number(rows.len() as u64), names.join(", ")));
    let groups: BTreeSet<&str> =
        rows.iter().filter_map(|found| found.row.group.as_deref()).collect();
    if !groups.is_empty() {
        let groups: Vec<String> = groups.iter().take(10).map(|group| printable(group)).collect();
        inspection.row("groups", groups.join(", "));
    }
    let count = |has: fn(&TableRow) -> bool| rows.iter().filter(|found| has(found)).count();
    for (name, with) in [
        ("aliases", count(|found| !found.row.aliases.is_empty())),
        ("strengths", count(|found| found.row.strength.is_some())),
        ("stops", count(|found| found.row.stop.is_some())),
    ] {
        if with > 0 {
            inspection.row(name, format!("given for {with}"));
        }
    }
}

/// Inspects a text file: a class list or texts.
pub(super) async fn names(address: &Address, cache: &Path) -> Result<Inspection, Failure> {
    let bytes = read_file("the text file", address, texts::MAX_FILE, cache).await?;
    let shown = address.to_string();
    let mut inspection = Inspection::of(address, "texts, one a line");
    let texts = match texts::parse(&bytes, &shown) {
        Ok(texts) => texts,
        Err(error) => {
            inspection.problems.push(error.to_string());
            return Ok(inspection);
        }
    };
    let examples: Vec<String> =
        texts.iter().take(EXAMPLES).map(|text| format!("`{}`", printable(text))).collect();
    inspection
        .row("texts", format!("{}, such as {}", number(texts.len() as u64), examples.join(", ")));
    match Classes::parse(&bytes, &shown) {
        Ok(_) => inspection.row("class list", "accepted: every line is another name"),
        Err(error) => inspection.odd.push(format!("not a class list: {error}")),
    }
    Ok(inspection)
}

/// Inspects a manifest, and whether the files that it names exist.
pub(super) async fn manifest(address: &Address, cache: &Path) -> Result<Inspection, Failure> {
    let mut inspection = Inspection::of(address, "a manifest");
    let path: PathBuf = store::fetch_file(address, cache, None).await?;
    let manifest = match accepted(Manifest::read(&path).map_err(Failure::from))? {
        Ok(manifest) => manifest,
        Err(problems) => {
            "no manifest".clone_into(&mut inspection.is);
            inspection.problems = problems;
            inspection.next = Some("a configuration is read with its folder: inspect that".into());
            return Ok(inspection);
        }
    };
    inspection.row("name", manifest.name.clone());
    inspection.row("model", manifest.model.uri.clone());
    inspection.row(
        "concepts",
        manifest
            .concepts
            .table
            .clone()
            .unwrap_or_else(|| format!("{} in the manifest", manifest.concepts.list.len())),
    );
    inspection.row("classes", manifest.data.classes.clone());
    inspection.row("retain", manifest.data.retain.join(", "));
    inspection.row("store", manifest.release.uri.clone());
    let towers = match manifest.composition.towers {
        Towers::Text => "text",
        Towers::Vision => "vision",
        Towers::Both => "both",
    };
    inspection.row(
        "composition",
        format!(
            "{}, towers = {towers:?}",
            manifest.composition.method.map_or("default method", |method| method.name())
        ),
    );
    for target in &manifest.release.target {
        inspection
            .row("target", format!("{} ({}): {}", target.name, target.kind.name(), target.uri));
    }
    match accepted(quick_check(&manifest, cache).await)? {
        Ok(()) => {
            inspection.next = Some("`lethe plan` checks all files that it names".into());
        }
        Err(problems) => inspection.problems = problems,
    }
    Ok(inspection)
}
