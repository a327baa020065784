//! The model card of a release.

use std::fmt::Write;

use lethe_shared::record::{Composition, Retained, UtilityOn};

/// Said of a release that no run made.
pub const NOT_MEASURED: &str =
    "Nothing was measured on this checkpoint; what is said of single concepts was measured with their edits alone.";

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn change(before: Retained, after: Retained) -> String {
    format!("TA@1 {} → {}, TA@5 {} → {}", percent(before.ta1), percent(after.ta1), percent(before.ta5), percent(after.ta5))
}

/// Text from a manifest, safe in Markdown tables.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().replace('|', "\\|").replace('<', "&lt;")
}

/// `README.md` of a release, as model hubs show it.
pub fn render(record: &Composition) -> String {
    let mut page = String::new();
    let of = record.concepts.len();
    let alone = record.concepts.iter().filter(|c| c.alone.fa5 == 0.0).count();
    let composed = match record.concepts.iter().filter_map(|c| c.composed).collect::<Vec<_>>() {
        measured if measured.len() == of => format!("{} of {of}", measured.iter().filter(|c| c.fa5 == 0.0).count()),
        _ => "not measured".to_owned(),
    };
    let _ = write!(
        page,
        "---\ntags:\n- machine-unlearning\n- clip\n- lethe\n---\n\n# {}\n\n\
         A CLIP checkpoint from which {} concepts were removed by single-layer edits (SLUG, arXiv 2407.11867), made with Lethe.\n\n\
         | | |\n|---|---|\n| base | `{}` |\n| base digest | `{}` |\n| this digest | `{}` |\n| composition | {} |\n\
         | forgotten (FA@5 = 0), each alone | {alone} of {of} |\n| forgotten (FA@5 = 0), all together | {composed} |\n",
        record.name,
        record.concepts.len(),
        plain(&record.base.address),
        record.base.digest,
        record.digest,
        record.method,
    );
    let sets = [("validation", &record.utility.validation), ("test", &record.utility.test)];
    for (name, on) in sets {
        let Some(on) = on else { continue };
        let retained = record.utility.retained_classes.unwrap_or_default();
        let _ = writeln!(page, "| {name}: {} images of {retained} retained classes | {} |", on.images, change(on.before, on.after));
        for (group, of) in on.groups() {
            let (images, classes) = (of.images, of.classes);
            let _ = writeln!(page, "| {name}, {group}: {images} images of {classes} classes | {} |", change(of.before, of.after));
        }
    }
    if record.utility.validation.is_some() || record.utility.test.is_some() {
        let _ = writeln!(page, "\n{}", UtilityOn::GROUPS);
    }
    if let Some(parent) = &record.parent {
        let changes: Vec<String> = parent.changes.iter().map(ToString::to_string).collect();
        let changes = if changes.is_empty() { "nothing changed".to_owned() } else { changes.join(", ") };
        let _ = writeln!(page, "\nComposed from release `{}`: {changes}. {NOT_MEASURED}", parent.release);
    }
    page += "\nThe digest is SHA-256 over the checkpoint's tensor bytes in name order. `composition.json` is the full record, \
             `edits.safetensors` holds each edit's direction, `report.html` shows both.\n\n## Removed\n\n\
             | concept | layer | step λ | strength | FA@5 before | alone | composed |\n|---|---|---|---|---|---|---|\n";
    for concept in &record.concepts {
        let _ = writeln!(
            page,
            "| {} | `{}` | {:.4} | {} | {} | {} | {} |",
            plain(&concept.name),
            concept.layer,
            concept.step,
            concept.strength,
            percent(concept.before.fa5),
            percent(concept.alone.fa5),
            concept.composed.map_or_else(|| "-".to_owned(), |composed| percent(composed.fa5))
        );
    }
    if !record.targets.is_empty() {
        page += "\n## Targets\n\nOther models with these edits: each stands at `targets/NAME/`.\n\n\
                 | target | kind | made from | changed files | edits that cannot act in it |\n|---|---|---|---|---|\n";
        for target in &record.targets {
            let changed = target.changed.keys().map(|name| format!("`{}`", plain(name))).collect::<Vec<_>>().join(", ");
            let without = if target.without.is_empty() { "none".to_owned() } else { plain(&target.without.join(", ")) };
            let (name, kind, from) = (&target.name, target.kind.name(), plain(&target.address));
            let _ = writeln!(page, "| {name} | {kind} | `{from}` | {changed} | {without} |");
        }
    }
    if !record.near_duplicates.is_empty() {
        page += "\n## Hardly told apart\n\nWhat removes one of these goes far towards removing the others of its line.\n\n";
        for group in &record.near_duplicates {
            let _ = writeln!(page, "- {}", group.iter().map(|id| plain(id)).collect::<Vec<_>>().join(", "));
        }
    }
    if !record.missing.is_empty() {
        page += "\n## Not removed\n\n| concept | why |\n|---|---|\n";
        for missing in &record.missing {
            let _ = writeln!(page, "| {} | {} |", plain(&missing.id), plain(&missing.reason));
        }
    }
    page
}
