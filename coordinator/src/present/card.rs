//! The model card of a release: tables for auditors.

use std::collections::BTreeSet;
use std::fmt::Write;

use lethe_shared::manifest::BuiltInProbe;
use lethe_shared::printable::printable_message;
use lethe_shared::record::targets::TargetRecord;
use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{
    Composition, ConceptRecord, DataFile, Origin, Recall, Retained, UtilityOn,
};
use lethe_shared::vocabulary::Tower;

use super::answers;
use super::front_matter::{composed, metadata};
use crate::compose::gate_rules;
use crate::compose::protected::{by_movement, percent as share};
use crate::layout::{PROVENANCE, RECEIPTS};

/// Status of a release that was not measured.
const NOT_MEASURED: &str = "This checkpoint was not measured; the numbers of single concepts were measured with their own edits alone.";
/// Status of a release that was measured after it was composed.
const MEASURED_LATER: &str = "It was measured later, on its run's data.";

/// Returns the status of a release that no run made.
pub fn standing(record: &Composition) -> &'static str {
    if record.is_measured() { MEASURED_LATER } else { NOT_MEASURED }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn change(before: Retained, after: Retained) -> String {
    format!(
        "TA@1 {} → {}, TA@5 {} → {}",
        percent(before.ta1),
        percent(after.ta1),
        percent(before.ta5),
        percent(after.ta5)
    )
}

/// Returns text from a manifest, escaped for Markdown tables.
fn plain(text: &str) -> String {
    printable_message(&text.replace(['\n', '\r', '\t'], " "))
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

/// Returns `README.md` of a release in the format of model hubs. `files` are the release's other
/// files.
pub fn render(record: &Composition, files: &[String]) -> String {
    let mut page = metadata(record, files);
    let _ = write!(
        page,
        "\n# {}\n\nA CLIP checkpoint from which {} concepts were removed by {} ({}), made with Lethe.\n\n\
         | | |\n|---|---|\n| base | `{}` |\n| base digest | `{}` |\n| this digest | `{}` |\n| composition | {} |\n",
        record.name,
        claimed(record),
        record.kind_of_edits(),
        source(record),
        plain(&record.base.address),
        record.base.digest,
        record.digest,
        record.method,
    );
    if let Some(origin) = record.origin.as_ref().filter(|origin| !origin.precision.is_float32()) {
        let _ = writeln!(page, "| computed in | {} |", origin.precision.name());
    }
    if let Some(parent) = &record.parent {
        let changes: Vec<String> = parent.changes.iter().map(ToString::to_string).collect();
        let changes =
            if changes.is_empty() { "nothing changed".to_owned() } else { changes.join(", ") };
        let _ = writeln!(
            page,
            "\nComposed from release `{}`: {changes}. {}",
            parent.release,
            standing(record)
        );
    }
    let _ = writeln!(
        page,
        "\nThe digests are SHA-256 over the checkpoint's tensor bytes in name order. `composition.json` is the full record, `report.html` the \
         same for people. `{RECEIPTS}` has a receipt of each removal, `{PROVENANCE}` lists the inputs, `edits.safetensors` has each \
         edit's direction."
    );
    questions(&mut page, record);
    removed(&mut page, record);
    targets(&mut page, record);
    tested(&mut page, record);
    cost(&mut page, record);
    recognition(&mut page, record);
    towers_alone(&mut page, record);
    probes(&mut page, record);
    protected(&mut page, record);
    not_shown(&mut page, record);
    page
}

/// Returns the paper that the edits of this checkpoint follow.
fn source(record: &Composition) -> &'static str {
    if record.is_by_least_squares() {
        "least squares, after MEMIT, arXiv 2210.07229"
    } else {
        "SLUG, arXiv 2407.11867"
    }
}

/// Returns the number of concepts that this checkpoint claims to have removed: those measured as
/// removed, and those not measured.
pub fn claimed(record: &Composition) -> usize {
    [ConceptStatus::Removed, ConceptStatus::NotMeasured]
        .map(|status| record.of_status(status).len())
        .iter()
        .sum()
}

fn targets(page: &mut String, record: &Composition) {
    if record.targets.is_empty() {
        return;
    }
    *page += "\n## Targets\n\nOther models with these edits, each in the folder `targets/NAME/`.\n\n\
              | target | kind | made from | what it reads of CLIP | changed files | edits that cannot act in it |\n|---|---|---|---|---|---|\n";
    for target in &record.targets {
        let changed = target
            .changed
            .keys()
            .map(|name| format!("`{}`", plain(name)))
            .collect::<Vec<_>>()
            .join(", ");
        let without = if target.without.is_empty() {
            "none".to_owned()
        } else {
            plain(&target.without.join(", "))
        };
        let (name, kind, from) = (&target.name, plain(target.shown_kind()), plain(&target.address));
        let reads = plain(&target.reads());
        let _ = writeln!(page, "| {name} | {kind} | `{from}` | {reads} | {changed} | {without} |");
    }
    for sentence in record.targets.iter().filter_map(TargetRecord::unedited_sentence) {
        let _ = writeln!(page, "\n{}", plain(&sentence));
    }
}

fn removed(page: &mut String, record: &Composition) {
    let of = record.concepts.len();
    let removed = record.of_status(ConceptStatus::Removed).len();
    let together = composed(record)
        .map_or_else(|| "not measured".to_owned(), |_| format!("{removed} of {of}"));
    *page += "\n## What was removed\n\n";
    if record.origin.as_ref().is_some_and(|origin| origin.hashed_names) {
        *page += "Names are salted hashes; they can be resolved with the salt.\n\n";
    }
    let alone = record
        .forgotten_alone()
        .map_or_else(String::new, |alone| format!("{alone} of {of} with their own edit alone, "));
    let _ = writeln!(
        page,
        "Concepts forgotten within their tolerance, of those that the base model knew: {alone}{together} with all edits.\n"
    );
    // Edits by least squares are added as they are: they have no step, coefficient or result alone.
    let is_searched = !record.is_by_least_squares();
    let (of_search, alone) =
        if is_searched { (" step λ | coefficient |", " alone |") } else { ("", "") };
    let rule = "---|".repeat(if is_searched { 10 } else { 7 });
    let _ = writeln!(
        page,
        "| concept | layer |{of_search} strength | forget pairs | FA@5 before |{alone} composed | status |\n|{rule}"
    );
    let measured = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), percent);
    for concept in &record.concepts {
        let ConceptRecord { name, layer, layers, step, coefficient, strength, pairs, .. } = concept;
        let others = match layers.len() {
            0 | 1 => String::new(),
            number => format!(" most, of {number}"),
        };
        let (mut of_search, mut alone) = (String::new(), String::new());
        if is_searched {
            of_search = format!(" {step:.4} | {coefficient:.3} |");
            alone = format!(" {} |", measured(concept.alone.map(|alone| alone.fa5)));
        }
        let _ = writeln!(
            page,
            "| {} | `{layer}`{others} |{of_search} {strength} | {pairs} | {} |{alone} {} | {} |",
            plain(name),
            percent(concept.before.fa5),
            measured(concept.composed.map(|composed| composed.fa5)),
            record.verdict(concept).status.name()
        );
    }
    if !record.near_duplicates.is_empty() {
        *page += "\n### Near-duplicates\n\nRemoving one concept of a line largely removes the others.\n\n";
        for group in &record.near_duplicates {
            let _ = writeln!(
                page,
                "- {}",
                group.iter().map(|id| plain(id)).collect::<Vec<_>>().join(", ")
            );
        }
    }
    let kept = record.not_removed();
    if !record.missing.is_empty() || !kept.is_empty() {
        *page += "\n### Not removed\n\n| concept | status | why |\n|---|---|---|\n";
        for missing in &record.missing {
            let _ =
                writeln!(page, "| {} | no edit | {} |", plain(&missing.id), plain(&missing.reason));
        }
        for concept in kept {
            let _ = writeln!(
                page,
                "| {} | {} | {} |",
                plain(&concept.id),
                concept.status.name(),
                concept.reason
            );
        }
    }
}

fn tested(page: &mut String, record: &Composition) {
    *page += "\n## How it was tested\n\n\
              - **FA@k**: share of a concept's forget images on which its own class is among the model's top k predictions, of all classes. \
              The edits were found on these images.\n\
              - **Status**: *removed* where the base model knew the concept and this checkpoint does not, by the requested measure \
              and tolerance (`criterion` in `composition.json`).\n\
              - **TA@k**: the same over images of retained classes.\n\
              - *alone*: with this concept's edit and no other. *composed*: in this checkpoint.\n";
    let Some(origin) = &record.origin else { return };
    let _ = writeln!(
        page,
        "- Zero-shot among {} classes, prompt `{}`; SHA-256 of both together `{}`.\n",
        origin.classes,
        plain(&origin.template),
        origin.class_texts
    );
    *page += "| data | files | items | SHA-256 |\n|---|---|---|---|\n";
    let Origin { retain, retain_texts, retain_images, protect, validation, test, .. } = origin;
    let protect: Vec<DataFile> = protect.iter().copied().collect();
    let validation_use = format!("validation: {}", record.use_of_validation());
    let sets = [
        ("retain pairs", retain),
        ("retain texts", retain_texts),
        ("retain images", retain_images),
        ("protected names", &protect),
        (validation_use.as_str(), validation),
        ("test: used for nothing else", test),
    ];
    let items = |files: &[DataFile]| files.iter().map(|file| file.items).sum::<u64>();
    for (name, files) in sets.into_iter().filter(|(_, files)| !files.is_empty()) {
        let digests: Vec<String> = files
            .iter()
            .take(MOST_DIGESTS)
            .map(|file| format!("`{}`", file.digest.short()))
            .collect();
        let more = if files.len() > MOST_DIGESTS {
            format!(", and {} more", files.len() - MOST_DIGESTS)
        } else {
            String::new()
        };
        let _ = writeln!(
            page,
            "| {name} | {} | {} | {}{more} |",
            files.len(),
            items(files),
            digests.join(", ")
        );
    }
    let forget = record.concepts.iter().map(|concept| concept.forget.len()).sum::<usize>();
    let pairs = record.concepts.iter().map(|concept| concept.pairs).sum::<u64>();
    let _ = writeln!(page, "| forget sets | {forget} | {pairs} | in each receipt |");
    let _ = writeln!(page, "\nFull digests are in `{PROVENANCE}`.");
}

/// Writes what can still be told of removed concepts.
fn recognition(page: &mut String, record: &Composition) {
    let Some(recognition) = &record.recognition else { return };
    *page += "\n## What can still be told\n\n\
              *Forgotten* is judged by the rank of a concept's class among all classes. Less is asked here.\n";
    if !recognition.candidates.is_empty() {
        *page += "\n| removed name against retained names drawn at random | is the best, before → after |\n|---|---|\n";
    }
    for candidates in &recognition.candidates {
        let (before, after) = (percent(candidates.before), percent(candidates.after));
        let _ = writeln!(page, "| {} | {before} → {after} |", candidates.others);
    }
    if !recognition.searches.is_empty() {
        *page += "\n| search by removed names in | found first, before → after | in the first 5 | in the first 20 |\n|---|---|---|---|\n";
    }
    for search in &recognition.searches {
        let change = |of: fn(&Recall) -> f64| {
            format!("{} → {}", percent(of(&search.before)), percent(of(&search.after)))
        };
        let _ = writeln!(
            page,
            "| {} images, {} names | {} | {} | {} |",
            search.set,
            search.names,
            change(|recall| recall.r1),
            change(|recall| recall.r5),
            change(|recall| recall.r20)
        );
    }
}

/// Writes three questions about the release with their answers.
fn questions(page: &mut String, record: &Composition) {
    let answers = answers::answers(record);
    if answers.is_empty() {
        return;
    }
    *page += "\n## Three questions\n";
    for answer in answers {
        let _ = writeln!(page, "\n**{}**", answer.question);
        for sentence in answer.sentences {
            let _ = writeln!(page, "{}", plain(&sentence));
        }
    }
}

/// Writes what probes measured.
fn probes(page: &mut String, record: &Composition) {
    for probe in &record.probes {
        let by =
            if probe.command.is_empty() { "Lethe itself" } else { "a command of the operator" };
        let version = plain(&probe.version);
        let _ = writeln!(
            page,
            "\n## Probe `{}`\n\nMeasured by {by}, version {version}.\n\n| measured | value |\n|---|---|",
            probe.name
        );
        for (name, value) in &probe.numbers {
            let _ = writeln!(page, "| `{name}` | {} |", short(*value));
        }
        for note in &probe.notes {
            let _ = writeln!(page, "\n{}", plain(note));
        }
    }
}

/// Writes what the change of each tower does by itself.
fn towers_alone(page: &mut String, record: &Composition) {
    if record.towers.is_empty() {
        return;
    }
    *page += "\n## Each tower alone\n\n\
              A model that takes over one tower gets the change of that tower only.\n\n\
              | changed | forget images: FA@1 | FA@5 | TA@1, before → after |\n|---|---|---|---|\n";
    for alone in &record.towers {
        let on = alone.utility.test.as_ref().or(alone.utility.validation.as_ref());
        let kept = on.into_iter().flat_map(UtilityOn::groups).map(|(name, group)| {
            format!("{name} {} → {}", percent(group.before.ta1), percent(group.after.ta1))
        });
        let kept = kept.collect::<Vec<_>>().join(", ");
        let (fa1, fa5) = (percent(alone.fa1), percent(alone.fa5));
        let _ = writeln!(page, "| {} tower | {fa1} | {fa5} | {kept} |", alone.tower.name());
    }
}

/// Returns a number with four decimals at most.
pub fn short(value: f64) -> String {
    let rounded = (value * 1e4).round() / 1e4;
    if rounded.is_finite() { rounded.to_string() } else { value.to_string() }
}

/// Number of digests listed per set.
const MOST_DIGESTS: usize = 8;

fn cost(page: &mut String, record: &Composition) {
    *page += "\n## What it cost\n\n";
    let sets = [("validation", &record.utility.validation), ("test", &record.utility.test)];
    let sets: Vec<(&str, &UtilityOn)> =
        sets.into_iter().filter_map(|(name, on)| Some((name, on.as_ref()?))).collect();
    if sets.is_empty() {
        *page += "Not measured.\n";
        return;
    }
    *page += "| images of | before → after |\n|---|---|\n";
    for (name, on) in &sets {
        let retained = record.utility.retained_classes.unwrap_or_default();
        let _ = writeln!(
            page,
            "| {name}: {} images of {retained} retained classes | {} |",
            on.images,
            change(on.before, on.after)
        );
        for (group, of) in on.groups() {
            let (images, classes) = (of.images, of.classes);
            let _ = writeln!(
                page,
                "| {name}, {group}: {images} images of {classes} classes | {} |",
                change(of.before, of.after)
            );
        }
    }
    for gate in gate_rules::all_missed(&record.gates, record) {
        let _ = writeln!(page, "\nA gate is not met: {}.", plain(&gate));
    }
    for warning in gate_rules::warnings(&record.gates, record) {
        let _ = writeln!(page, "\nWarning: {warning}.");
    }
    let _ = writeln!(page, "\n{}", UtilityOn::GROUPS);
    for (name, on) in sets.iter().filter(|(_, on)| !on.worst.is_empty()) {
        let _ = writeln!(
            page,
            "\n### Retained classes that lost most ({name})\n\n| class | images | recognised before | recognised after |\n|---|---|---|---|"
        );
        for worst in &on.worst {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} |",
                plain(&worst.class),
                worst.before.n,
                worst.before.top1,
                worst.after.top1
            );
        }
    }
}

/// Writes the protected texts in descending order of movement.
fn protected(page: &mut String, record: &Composition) {
    if record.protected.is_empty() {
        return;
    }
    *page += "\n## Protected names\n\nBy how much the outputs of the edited layers move for each of these texts, relative to those outputs, at the \
              token that moves most.\n\n| text | moved |\n|---|---|\n";
    for text in by_movement(&record.protected) {
        let _ = writeln!(page, "| {} | {} |", plain(&text.name), share(text.moved));
    }
}

/// Writes the limits of the numbers above. Each sentence holds for the given record.
fn not_shown(page: &mut String, record: &Composition) {
    *page += "\n## What was not shown\n\n";
    let towers: BTreeSet<Tower> = record.concepts.iter().flat_map(ConceptRecord::towers).collect();
    let is_probed = |probe: BuiltInProbe| record.probe(probe.name()).is_some();
    let mut said = vec![
        if is_probed(BuiltInProbe::Relearn) {
            "Whether a concept can be relearned by other means than those of the probe `relearn`."
        } else {
            "Whether a concept can be relearned. It was not attempted from a few images."
        }
        .to_owned(),
        if record.probe_number("words.aliases.names").is_some() {
            "Removal under other names. The probe `words` writes the names in other ways and tries the aliases of the manifest, and no other \
             synonyms, descriptions or languages. Generation with these embeddings was not tried."
        } else if is_probed(BuiltInProbe::Words) {
            "Removal under other names. The probe `words` writes the names in other ways, and tries no synonyms, descriptions or other \
             languages. Generation with these embeddings was not tried."
        } else {
            "Removal under other names. Concepts were probed with the prompt above only, not with synonyms, descriptions or other languages, \
             and not in generation with these embeddings."
        }
        .to_owned(),
        "Removal on other images. FA@k is measured on the images that the edits were found on.".to_owned(),
    ];
    match (towers.contains(&Tower::Text), towers.contains(&Tower::Vision)) {
        (true, false) => said.push(
            "Removal from image features. Edits touch the text tower alone, and image embeddings are the base model's, byte for byte: \
             a classifier trained on them recognises every concept as before."
                .to_owned(),
        ),
        (false, true) => said.push(
            "Removal from text features. Edits touch the vision tower alone, and text embeddings are the base model's, byte for byte."
                .to_owned(),
        ),
        _ => {}
    }
    let unseen = record
        .utility
        .test
        .as_ref()
        .or(record.utility.validation.as_ref())
        .and_then(|on| on.never_seen.as_ref());
    said.push(match unseen {
        Some(group) => format!(
            "Retention beyond the retain data. On classes that no retain caption or text names, TA@1 went {} → {}: expect the same of \
             classes outside the class list.",
            percent(group.before.ta1),
            percent(group.after.ta1)
        ),
        None => "Retention beyond the measurements: classes outside the class list, other tasks, other data.".to_owned(),
    });
    if !record.is_measured() {
        said.push("This checkpoint as a whole. It was composed from a measured one, and was not measured itself.".to_owned());
    }
    said.iter().for_each(|sentence| {
        let _ = writeln!(page, "- {sentence}");
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::gate_rules::tests::record;

    #[test]
    fn no_name_breaks_out_of_its_place() {
        let mut record = record();
        record.name = "n".into();
        record.concepts[0].name = "a | b\n---\n<script>".into();
        record.utility.test.as_mut().unwrap().worst[0].class = "x|y\n# z".into();
        let page = render(&record, &[]);
        assert!(
            page.contains("| a \\| b --- &lt;script> |") && page.contains("| x\\|y # z |"),
            "{page}"
        );
        assert_eq!(page.lines().filter(|line| *line == "---").count(), 2, "{page}");
    }

    #[test]
    fn what_is_said_is_of_the_record_at_hand() {
        let mut record = record();
        let page = render(&record, &["LICENSE".to_owned()]);
        // Two concepts that this model knows as well as before, and one without an edit.
        assert!(
            page.contains("from which 0 concepts were removed") && page.contains("| c | no edit |"),
            "{page}"
        );
        assert!(
            page.contains("| a | still recognised | FA@5 is 25.0 %")
                && page.contains("| 25.0 % | still recognised |"),
            "{page}"
        );
        // Of 90 % on validation images, 10 % is left.
        assert!(page.contains("\nA gate is not met: utility_kept is 0.1111 "), "{page}");
        assert!(
            page.contains("license_link: \"LICENSE\"")
                && page.contains("Edits touch the text tower alone"),
            "{page}"
        );
        record.concepts.iter_mut().for_each(|concept| concept.composed = None);
        record.utility = lethe_shared::record::Utility::default();
        let page = render(&record, &[]);
        assert!(
            page.contains("not measured with all edits") && page.contains("\nNot measured.\n"),
            "{page}"
        );
        assert!(!page.contains("model-index") && !page.contains("license"), "{page}");
    }
}
