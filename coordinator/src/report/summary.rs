//! Headline, what must stay, missing concepts, times.

use std::fmt::Write;

use lethe_shared::record::{Composition, ConceptRecord, UtilityOn};

use super::Source;
use super::escape::{escape, percent};
use crate::measure::Spread;
use crate::progress::human_bytes;
use crate::protected;
use crate::summary::Report;

/// Name, facts about the whole, and where it comes from.
pub(super) fn headline(page: &mut String, source: &Source<'_>) {
    let record = source.record;
    let _ = write!(
        page,
        "<header>\n<h1>{}</h1>\n<p class=\"lead\">{} by single-layer edits of a CLIP model, composed by <code>{}</code>.</p>\n\
         <nav><a href=\"#stay\">What must stay</a> <a href=\"#concepts\">Concepts</a> <a href=\"#layers\">Layers</a> \
         <a href=\"#interference\">Interference</a>{}</nav>\n</header>\n<main>\n",
        escape(&record.name),
        if record.concepts.len() == 1 { "1 concept removed".to_owned() } else { format!("{} concepts removed", record.concepts.len()) },
        escape(&record.method),
        if source.run.is_some() { " <a href=\"#times\">Times</a>" } else { "" },
    );
    *page += "<div class=\"facts\">\n";
    for (value, name) in facts(record) {
        let _ = writeln!(page, "<div class=\"fact\"><b>{value}</b><span>{name}</span></div>");
    }
    *page += "</div>\n<dl class=\"origin\">";
    let mut row = |name: &str, value: &str| {
        let _ = write!(page, "<div><dt>{name}</dt><dd><code>{}</code></dd></div>", escape(value));
    };
    row("run", &record.run);
    row("base", &record.base.address);
    row("base digest", &record.base.digest.to_string());
    row("this digest", &record.digest.to_string());
    if let Some(parent) = &record.parent {
        row("composed from", &parent.release.to_string());
        for change in &parent.changes {
            row("change", &change.to_string());
        }
    }
    *page += "</dl>\n";
}

fn facts(record: &Composition) -> Vec<(String, String)> {
    let zero = |of: fn(&ConceptRecord) -> Option<f64>| record.concepts.iter().filter(|c| of(c) == Some(0.0)).count();
    let total = record.concepts.len() + record.missing.len();
    let of = |number: usize| format!("{number}<small> of {total}</small>");
    let mut facts = Vec::new();
    if record.concepts.iter().all(|concept| concept.composed.is_some()) {
        facts.push((of(zero(|c| c.composed.map(|m| m.fa5))), "concepts forgotten in the released model (FA@5 = 0)".to_owned()));
    }
    facts.push((of(zero(|c| Some(c.alone.fa5))), "forgotten with their own edit alone".to_owned()));
    for (set, on) in [("test", &record.utility.test), ("validation", &record.utility.validation)] {
        let Some(on) = on else { continue };
        let classes = record.utility.retained_classes.unwrap_or_default();
        facts.push((
            format!("{}<small> of {}</small>", percent(on.after.ta1), percent(on.before.ta1)),
            format!("TA@1 kept on {classes} retained classes ({set})"),
        ));
        break;
    }
    if let Some(spread) = Spread::of(record.concepts.iter().filter_map(super::notes::cost).collect()) {
        facts.push((
            format!("{:.2}<small> points</small>", spread.median),
            format!("of TA@1 is what one removal costs alone, median; the worst costs {:.2}", spread.max),
        ));
    }
    facts
}

/// Other models that got the edits.
pub(super) fn targets(page: &mut String, record: &Composition) {
    if record.targets.is_empty() {
        return;
    }
    *page += "<section id=\"targets\"><h2>Targets</h2>\n<p>Other models with these edits; each stands at <code>targets/NAME/</code>.</p>\n\
              <div class=\"wide\"><table class=\"plain\"><thead><tr><th>target</th><th>kind</th><th>made from</th><th>changed files</th>\
              <th>edits that cannot act in it</th></tr></thead><tbody>";
    for target in &record.targets {
        let changed: Vec<String> = target.changed.keys().map(|name| format!("<code>{}</code>", escape(name))).collect();
        let without = if target.without.is_empty() { "none".to_owned() } else { escape(&target.without.join(", ")).to_string() };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td><code>{}</code></td><td>{}</td><td>{without}</td></tr>",
            escape(&target.name),
            target.kind.name(),
            escape(&target.address),
            changed.join(", ")
        );
    }
    *page += "</tbody></table></div>\n</section>\n";
}

/// Retained classes before and after, the worst first.
pub(super) fn utility(page: &mut String, record: &Composition) {
    if !record.is_measured() {
        *page +=
            "<section id=\"stay\"><h2>What must stay</h2>\n<p>Nobody measured this release on the classes that must stay.</p></section>\n";
        return;
    }
    *page += "<section id=\"stay\"><h2>What must stay</h2>\n";
    if record.utility.validation.is_some() || record.utility.test.is_some() {
        let _ = writeln!(page, "<p class=\"soft\">{}</p>", UtilityOn::GROUPS);
    } else {
        *page += "<p>There was neither a validation nor a test set to measure it on.</p>\n";
    }
    let sets = [
        ("Test", "nothing looked at it", "test", &record.utility.test),
        ("Validation", "the step search looked at it", "validation", &record.utility.validation),
    ];
    for (name, looked, id, on) in sets {
        let Some(on) = on else { continue };
        let _ = writeln!(page, "<h3>{name} <span class=\"soft\">({looked})</span></h3>\n<div class=\"two\">");
        groups(page, on);
        if on.worst.is_empty() {
            *page += "<p>No retained class lost anything.</p>\n";
        } else {
            worst(page, on, id);
        }
        *page += "</div>\n";
    }
    protected(page, record);
    *page += "</section>\n";
}

/// Texts that must not change, those that move most first.
fn protected(page: &mut String, record: &Composition) {
    if record.protected.is_empty() {
        return;
    }
    *page += "<h3>What must not change</h3>\n<p class=\"soft\">By how much the outputs of the edited layers move for these texts, against \
              those outputs, at the token that moves most.</p>\n<details open><summary>";
    let _ = write!(page, "{}</summary>", escape(&protected::said(&record.protected).unwrap_or_default()));
    *page += "<div class=\"wide\"><table class=\"plain\"><thead><tr><th>text</th><th class=n>moved</th></tr></thead><tbody>\n";
    for text in protected::by_movement(&record.protected) {
        let _ = writeln!(page, "<tr><td>{}</td><td class=n>{}</td></tr>", escape(&text.name), protected::percent(text.moved));
    }
    *page += "</tbody></table></div></details>\n";
}

fn groups(page: &mut String, on: &UtilityOn) {
    *page += "<div class=\"wide\"><table class=\"plain\"><thead><tr><th>classes</th><th class=n>number</th><th class=n>images</th>\
              <th class=n>TA@1 before → after</th><th class=n>TA@5 before → after</th></tr></thead><tbody>\n";
    let mut row = |name: &str, classes: &str, images: u64, numbers: [(f64, f64); 2]| {
        let _ = write!(page, "<tr><td>{name}</td><td class=n>{classes}</td><td class=n>{images}</td>");
        for (before, after) in numbers {
            let _ = write!(page, "<td class=n>{:.1} → {}</td>", 100.0 * before, percent(after));
        }
        *page += "</tr>\n";
    };
    row("all retained", "", on.images, [(on.before.ta1, on.after.ta1), (on.before.ta5, on.after.ta5)]);
    for (name, group) in on.groups() {
        let numbers = [(group.before.ta1, group.after.ta1), (group.before.ta5, group.after.ta5)];
        row(name, &group.classes.to_string(), group.images, numbers);
    }
    *page += "</tbody></table></div>\n";
}

fn worst(page: &mut String, on: &UtilityOn, id: &str) {
    let _ = write!(
        page,
        "<div><div class=\"chart worst\" data-chart=\"worst\" data-set=\"{id}\" role=\"img\" aria-label=\"the classes that lost most, before and \
         after\"></div>\n<details><summary>The ten that lost most, as numbers</summary><div class=\"wide\"><table class=\"plain\"><thead><tr><th>class</th>\
         <th class=n>images</th><th class=n>first before</th><th class=n>after</th><th class=n>in five before</th><th class=n>after</th></tr></thead><tbody>\n"
    );
    for class in &on.worst {
        let (before, after) = (class.before, class.after);
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            escape(&class.class),
            before.n,
            before.top1,
            after.top1,
            before.top5,
            after.top5
        );
    }
    *page += "</tbody></table></div></details></div>\n";
}

/// Concepts that are not removed, and why.
pub(super) fn missing(page: &mut String, record: &Composition) {
    if record.missing.is_empty() {
        return;
    }
    *page += "<section id=\"missing\"><h2>Not removed</h2>\n<table class=\"plain\"><thead><tr><th>concept</th><th>why</th></tr></thead><tbody>\n";
    for missing in &record.missing {
        let _ = writeln!(page, "<tr><td>{}</td><td>{}</td></tr>", escape(&missing.id), escape(&missing.reason));
    }
    *page += "</tbody></table></section>\n";
}

/// How long a run took.
pub(super) fn times(page: &mut String, run: Option<&Report>) {
    let Some(run) = run else { return };
    let summary = &run.summary;
    *page += "<section id=\"times\"><h2>Times</h2>\n<div class=\"two\">\n<div class=\"wide\"><table class=\"plain\"><thead><tr><th>phase</th>\
              <th class=n>seconds</th></tr></thead><tbody>\n";
    for phase in &summary.phases {
        let _ = writeln!(page, "<tr><td>{}</td><td class=n>{:.1}</td></tr>", escape(&phase.name), phase.seconds);
    }
    *page += "</tbody></table></div>\n<div class=\"wide\"><table class=\"plain\"><thead><tr><th>stage of concepts' jobs, all together</th>\
              <th class=n>seconds</th></tr></thead><tbody>\n";
    for (stage, seconds) in &summary.stages {
        let _ = writeln!(page, "<tr><td>{}</td><td class=n>{seconds:.1}</td></tr>", escape(stage));
    }
    *page += "</tbody></table></div>\n</div>\n<p class=\"soft\">";
    if let Some(seconds) = &summary.seconds_per_concept {
        let _ = write!(
            page,
            "Seconds per concept: median {:.1}, 90th percentile {:.1}, longest {:.1}. ",
            seconds.median, seconds.p90, seconds.max
        );
    }
    let _ = writeln!(
        page,
        "{} jobs done by this run, {} found done. Peak memory of a worker {}.</p></section>",
        summary.jobs_done,
        summary.jobs_found,
        human_bytes(summary.peak_memory_bytes)
    );
}

/// The words of the page.
pub(super) fn glossary(page: &mut String, record: &Composition) {
    let search = &record.search;
    let _ = write!(
        page,
        "<footer><h2>Words</h2>\n<dl class=\"words\">\n\
         <dt>FA@1, FA@5</dt><dd>share of a concept's own forget images on which its class is the model's first answer, or among its first five</dd>\n\
         <dt>TA@1, TA@5</dt><dd>the same on images of the classes that must stay</dd>\n\
         <dt>alone</dt><dd>with this concept's edit and no other</dd>\n\
         <dt>cost</dt><dd>points of TA@1 over all other classes' validation images that are lost with this edit alone</dd>\n\
         <dt>λ/R</dt><dd>size of the edit relative to the layer it changes</dd>\n\
         <dt>importance, alignment</dt><dd>‖g_f‖/‖θ‖ and |cos(g_f, g_r)| of a layer: SLUG (arXiv 2407.11867) prefers high importance and low alignment</dd>\n\
         </dl>\n<p class=\"soft\">Gradients over batches of {}, {} evaluations a search, forgotten when {} is 0. \
         <code>composition.json</code> beside this page is the full record.</p>\n</footer>\n",
        search.batch_size,
        search.search_evaluations,
        match search.stop {
            lethe_shared::manifest::Stop::Fa1 => "FA@1",
            lethe_shared::manifest::Stop::Fa5 => "FA@5",
        }
    );
}
