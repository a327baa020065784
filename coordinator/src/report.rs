//! `report.html`: the record of a release as a page that needs nothing but itself.

use std::fmt::Write;

use lethe_shared::record::{Composition, ConceptRecord, UtilityOn};

use crate::card::standing;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #1a7f37; --bad: #cf222e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
.fact { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.fact b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: Canvas; }
td.n, th.n { text-align: right; } .good { color: var(--good); } .bad { color: var(--bad); }
code { font-size: .85em; } .soft { opacity: .75; } svg { max-width: 100%; height: auto; }
rect.bar { fill: currentColor; opacity: .55; } text { fill: currentColor; font-size: 11px; }
";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The page.
pub fn render(record: &Composition) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name}: removal report</title><style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n\
         <p class=\"soft\">run <code>{run}</code> · digest <code>{digest}</code> · base <code>{base}</code></p>\n",
        name = escape(&record.name),
        run = escape(&record.run),
        digest = record.digest,
        base = escape(&record.base.address),
    );
    origin(&mut page, record);
    facts(&mut page, record);
    utility(&mut page, record);
    cost(&mut page, record);
    concepts(&mut page, record);
    targets(&mut page, record);
    near_duplicates(&mut page, record);
    missing(&mut page, record);
    page += "</body></html>\n";
    page
}

/// Where a release comes from that no run made.
fn origin(page: &mut String, record: &Composition) {
    let Some(parent) = &record.parent else { return };
    let _ = write!(page, "<p>Composed from release <code>{}</code>. {}</p><ul>", escape(&parent.release.to_string()), standing(record));
    for change in &parent.changes {
        let _ = write!(page, "<li>{}</li>", escape(&change.to_string()));
    }
    *page += "</ul>\n";
}

fn facts(page: &mut String, record: &Composition) {
    let zero = |of: fn(&ConceptRecord) -> f64| record.concepts.iter().filter(|c| of(c) == 0.0).count();
    let total = record.concepts.len() + record.missing.len();
    let mut facts = vec![
        (total.to_string(), "concepts asked for".to_owned()),
        (zero(|c| c.alone.fa5).to_string(), "forgotten with their own edit alone (FA@5 = 0)".to_owned()),
    ];
    if record.is_measured() {
        let composed = zero(|c| c.composed.map_or(1.0, |composed| composed.fa5));
        facts.push((composed.to_string(), format!("forgotten in the released model ({})", escape(&record.method))));
    }
    if let Some(on) = record.utility.test.as_ref().or(record.utility.validation.as_ref()) {
        facts.push((
            format!("{} → {}", percent(on.before.ta1), percent(on.after.ta1)),
            format!("TA@1 on {} retained classes", record.utility.retained_classes.unwrap_or_default()),
        ));
    }
    *page += "<div class=\"facts\">";
    for (value, name) in facts {
        let _ = write!(page, "<div class=\"fact\"><b>{value}</b>{name}</div>");
    }
    *page += "</div>\n";
}

fn utility(page: &mut String, record: &Composition) {
    let sets =
        [("validation (the step search looked at it)", &record.utility.validation), ("test (nothing looked at it)", &record.utility.test)];
    if !record.is_measured() {
        return;
    }
    *page += "<h2>What must stay</h2>\n";
    if record.utility.validation.is_some() || record.utility.test.is_some() {
        let _ = writeln!(page, "<p class=\"soft\">{}</p>", UtilityOn::GROUPS);
    }
    for (name, on) in sets {
        let Some(on) = on else { continue };
        let UtilityOn { images, before, after, worst, .. } = on;
        let _ = write!(
            page,
            "<h3>{name}</h3><p>{images} images of retained classes: TA@1 {} → <b>{}</b>, TA@5 {} → <b>{}</b>.</p>",
            percent(before.ta1),
            percent(after.ta1),
            percent(before.ta5),
            percent(after.ta5)
        );
        groups(page, on);
        if worst.is_empty() {
            *page += "<p>No retained class lost anything.</p>\n";
            continue;
        }
        *page += "<div class=\"wide\"><table><tr><th>class that lost most</th><th class=n>images</th>\
              <th class=n>top-1 before</th><th class=n>after</th><th class=n>top-5 before</th><th class=n>after</th></tr>";
        for class in worst {
            let _ = write!(
                page,
                "<tr><td>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>",
                escape(&class.class),
                class.before.n,
                class.before.top1,
                class.after.top1,
                class.before.top5,
                class.after.top5
            );
        }
        *page += "</table></div>\n";
    }
}

/// Accuracy by group of classes.
fn groups(page: &mut String, on: &UtilityOn) {
    let _ = write!(
        page,
        "<div class=\"wide\"><table><tr><th>classes</th><th class=n>number</th><th class=n>images</th>\
         <th class=n>TA@1 before</th><th class=n>after</th><th class=n>TA@5 before</th><th class=n>after</th></tr>"
    );
    for (name, group) in on.groups() {
        let _ = write!(
            page,
            "<tr><td>{name}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            group.classes,
            group.images,
            percent(group.before.ta1),
            percent(group.after.ta1),
            percent(group.before.ta5),
            percent(group.after.ta5)
        );
    }
    *page += "</table></div>\n";
}

/// Histogram of what each removal costs when it is the only one.
fn cost(page: &mut String, record: &Composition) {
    let drops: Vec<f64> = record.concepts.iter().filter_map(|c| Some(100.0 * (c.before.utility? - c.alone.utility?))).collect();
    if drops.is_empty() {
        return;
    }
    let mean = drops.iter().sum::<f64>() / drops.len() as f64;
    let low = drops.iter().copied().fold(0.0, f64::min).floor();
    let high = drops.iter().copied().fold(2.0, f64::max).ceil();
    let bins = 40;
    let mut counts = vec![0usize; bins];
    for drop in &drops {
        let bin = ((drop - low) / (high - low) * bins as f64) as usize;
        counts[bin.min(bins - 1)] += 1;
    }
    let most = counts.iter().max().copied().unwrap_or(1).max(1);
    let _ = write!(
        page,
        "<h2>What one removal costs</h2><p>Loss of TA@1 over all other classes on the validation set with one concept removed: mean \
         {mean:.2} points over {} concepts.</p><svg viewBox=\"0 0 840 190\" width=\"840\" role=\"img\" aria-label=\"histogram\">",
        drops.len()
    );
    for (bin, count) in counts.iter().enumerate() {
        let height = 140.0 * *count as f64 / most as f64;
        let _ = write!(
            page,
            "<rect class=\"bar\" x=\"{}\" y=\"{:.1}\" width=\"18\" height=\"{height:.1}\"><title>{count} concepts</title></rect>",
            20 + bin * 20,
            150.0 - height
        );
    }
    let _ = writeln!(
        page,
        "<text x=\"20\" y=\"170\">{low:.1}</text><text x=\"800\" y=\"170\">{high:.1}</text><text x=\"360\" y=\"186\">points of TA@1 lost</text></svg>"
    );
}

fn concepts(page: &mut String, record: &Composition) {
    // What became of a concept first: a layer's name is long, and pushes what follows out of sight.
    *page += "<h2>Removed concepts</h2>\n<div class=\"wide\"><table><tr><th>concept</th><th>group</th><th class=n>FA@5 before</th><th class=n>alone</th><th class=n>composed</th>\
              <th class=n>cost, points</th><th class=n>strength</th><th>tower</th><th>layer</th><th class=n>λ</th><th class=n>λ/R</th></tr>\n";
    for c in &record.concepts {
        let mark = |value: f64| if value == 0.0 { "good" } else { "bad" };
        let cost =
            c.before.utility.zip(c.alone.utility).map(|(before, after)| format!("{:.2}", 100.0 * (before - after))).unwrap_or_default();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=n>{}</td><td class=\"n {}\">{}</td><td class=\"n {}\">{}</td><td class=n>{cost}</td>\
             <td class=n>{}</td><td>{}</td><td><code>{}</code></td><td class=n>{:.4}</td><td class=n>{:.3}</td></tr>",
            escape(&c.name),
            escape(c.group.as_deref().unwrap_or("")),
            percent(c.before.fa5),
            mark(c.alone.fa5),
            percent(c.alone.fa5),
            c.composed.map_or("", |composed| mark(composed.fa5)),
            c.composed.map(|composed| percent(composed.fa5)).unwrap_or_default(),
            c.strength,
            c.tower.name(),
            escape(&c.layer),
            c.step,
            c.relative_step,
        );
    }
    *page += "</table></div>\n";
}

/// Other models that got the edits.
fn targets(page: &mut String, record: &Composition) {
    if record.targets.is_empty() {
        return;
    }
    *page += "<h2>Targets</h2><div class=\"wide\"><table><tr><th>target</th><th>kind</th><th>made from</th><th>changed files</th>\
              <th>edits that cannot act in it</th></tr>";
    for target in &record.targets {
        let changed: Vec<String> = target.changed.keys().map(|name| format!("<code>{}</code>", escape(name))).collect();
        let without = if target.without.is_empty() { "none".to_owned() } else { escape(&target.without.join(", ")) };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td><code>{}</code></td><td>{}</td><td style=\"white-space:normal\">{without}</td></tr>",
            escape(&target.name),
            target.kind.name(),
            escape(&target.address),
            changed.join(", ")
        );
    }
    *page += "</table></div>\n";
}

fn near_duplicates(page: &mut String, record: &Composition) {
    if record.near_duplicates.is_empty() {
        return;
    }
    *page += "<h2>Hardly told apart</h2><p>What removes one of these concepts goes far towards removing the others of its line.</p><ul>";
    for group in &record.near_duplicates {
        let _ = write!(page, "<li>{}</li>", group.iter().map(|id| escape(id)).collect::<Vec<_>>().join(", "));
    }
    *page += "</ul>\n";
}

fn missing(page: &mut String, record: &Composition) {
    if record.missing.is_empty() {
        return;
    }
    *page += "<h2>Not removed</h2><table><tr><th>concept</th><th>why</th></tr>";
    for missing in &record.missing {
        let _ = write!(page, "<tr><td>{}</td><td style=\"white-space:normal\">{}</td></tr>", escape(&missing.id), escape(&missing.reason));
    }
    *page += "</table>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
