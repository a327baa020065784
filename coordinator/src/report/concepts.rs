//! The table of concepts: a picture, what the model said and says, what became of it. Scripts search, sort and open its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use bytes::Bytes;
use data_encoding::BASE64;
use lethe_shared::record::{ConceptRecord, Said};

use super::Source;
use super::escape::{count, escape, percent};
use super::notes::cost;

/// Bytes of pictures in a page, as files.
const PICTURES: usize = 3 << 20;
/// Largest picture of one concept, bytes.
const PICTURE: usize = 32 << 10;

pub(super) fn write(page: &mut String, source: &Source<'_>) {
    let record = source.record;
    *page += "<section id=\"concepts\"><h2>Removed concepts</h2>\n";
    if record.concepts.is_empty() {
        *page += "<p>None.</p></section>\n";
        return;
    }
    controls(page, source);
    *page += "<div class=\"wide\"><table class=\"concepts\"><thead><tr>";
    let columns = [
        ("", "concept"),
        ("", "said before"),
        ("", "says after"),
        ("n", "FA@5 before"),
        ("n", "alone"),
        ("n", "released"),
        ("n", "cost, points"),
        ("", "layer"),
        ("n", "λ/R"),
    ];
    for (class, name) in columns {
        let _ = write!(page, "<th class=\"{class}\" scope=\"col\">{name}</th>");
    }
    *page += "</tr></thead>\n<tbody>\n";
    let twins: BTreeSet<&str> = record.near_duplicates.iter().flatten().map(String::as_str).collect();
    let mut room = PICTURES;
    for (number, concept) in record.concepts.iter().enumerate() {
        let picture = source.thumbnails.get(&concept.id).filter(|picture| is_shown(picture, &mut room));
        row(page, number, concept, picture, twins.contains(concept.id.as_str()));
    }
    *page += "</tbody></table></div>\n";
    let there = source.thumbnails.len().min(record.concepts.len());
    if there > 0 && room == 0 {
        *page += "<p class=\"soft\">There are pictures of more concepts in <code>thumbnails.safetensors</code> than this page has room for.</p>\n";
    }
    *page += "</section>\n";
}

/// Whether a picture is one, and there is room for it.
fn is_shown(picture: &Bytes, room: &mut usize) -> bool {
    if !picture.starts_with(&[0xff, 0xd8, 0xff]) || picture.len() > PICTURE {
        return false;
    }
    *room = room.checked_sub(picture.len()).unwrap_or(0);
    *room > 0
}

fn controls(page: &mut String, source: &Source<'_>) {
    let record = source.record;
    *page += "<form class=\"controls\" hidden>\n<label>Search <input type=\"search\" id=\"search\" placeholder=\"name, class, answer, layer\"></label>\n\
              <label>Show <select id=\"show\"><option value=\"\">all</option><option value=\"found\">still among five answers</option>\
              <option value=\"unseen\">not measured together</option><option value=\"costly\">cost of 0.5 points or more</option>\
              <option value=\"twin\">hardly told apart from another</option><option value=\"partial\">strength other than 1</option></select></label>\n";
    let layers: BTreeMap<&str, usize> = record.concepts.iter().fold(BTreeMap::new(), |mut layers, concept| {
        *layers.entry(concept.layer.as_str()).or_default() += 1;
        layers
    });
    select(page, "layer", "Layer", &layers);
    let groups: BTreeMap<&str, usize> =
        record.concepts.iter().filter_map(|c| c.group.as_deref()).fold(BTreeMap::new(), |mut groups, group| {
            *groups.entry(group).or_default() += 1;
            groups
        });
    if !groups.is_empty() {
        select(page, "group", "Group", &groups);
    }
    let _ = writeln!(
        page,
        "<output id=\"count\">{}</output>\n<p class=\"soft\">Column heads sort; a row opens to its search and its layers.</p></form>",
        count(record.concepts.len(), "concept")
    );
}

fn select(page: &mut String, id: &str, label: &str, values: &BTreeMap<&str, usize>) {
    let _ = write!(page, "<label>{label} <select id=\"{id}\"><option value=\"\">all</option>");
    for (value, number) in values {
        let _ = write!(page, "<option value=\"{0}\">{0} ({number})</option>", escape(value));
    }
    *page += "</select></label>\n";
}

fn row(page: &mut String, number: usize, concept: &ConceptRecord, picture: Option<&Bytes>, twin: bool) {
    let attribute = |value: &str| escape(value);
    let _ = write!(
        page,
        "<tr data-concept=\"{number}\" data-layer=\"{}\" data-group=\"{}\" data-strength=\"{}\"{}>",
        attribute(&concept.layer),
        attribute(concept.group.as_deref().unwrap_or("")),
        concept.strength,
        if twin { " data-twin" } else { "" }
    );
    let _ = write!(page, "<td class=\"name\" data-v=\"{}\"><div>", attribute(&concept.name.to_lowercase()));
    if let Some(picture) = picture {
        // Its width follows from how many images are in it.
        let _ = write!(page, "<img alt=\"\" loading=\"lazy\" src=\"data:image/jpeg;base64,{}\">", BASE64.encode(picture));
    }
    let _ = write!(page, "<span class=\"title\">{}</span>", escape(&concept.name));
    if concept.name != concept.class {
        let _ = write!(page, "<small>class {}</small>", escape(&concept.class));
    }
    if let Some(group) = &concept.group {
        let _ = write!(page, "<small>{}</small>", escape(group));
    }
    *page += "</div></td>";
    said(page, "said before", concept, concept.said_before.as_ref());
    said(page, "says after", concept, concept.said_composed.as_ref());
    let share = |page: &mut String, label: &str, value: Option<f64>, judged: bool| {
        let mark = match value {
            Some(0.0) if judged => " good",
            Some(_) if judged => " bad",
            _ => "",
        };
        let (key, text) = value.map_or((String::new(), "–".to_owned()), |value| (value.to_string(), percent(value)));
        let _ = write!(page, "<td class=\"n{mark}\" data-label=\"{label}\" data-v=\"{key}\">{text}</td>");
    };
    share(page, "FA@5 before", Some(concept.before.fa5), false);
    share(page, "FA@5 alone", Some(concept.alone.fa5), true);
    share(page, "FA@5 released", concept.composed.map(|composed| composed.fa5), true);
    let points = cost(concept);
    let _ = write!(
        page,
        "<td class=\"n\" data-label=\"cost, points\" data-v=\"{}\">{}</td>",
        points.map_or_else(String::new, |points| format!("{points:.4}")),
        points.map_or_else(|| "–".to_owned(), minus)
    );
    let _ = writeln!(
        page,
        "<td class=\"layer\" data-label=\"layer\" data-v=\"{0}\"><code>{1}</code></td><td class=\"n\" data-label=\"λ/R\" data-v=\"{2}\">{2:.3}</td></tr>",
        attribute(&concept.layer),
        breakable(&concept.layer),
        concept.relative_step
    );
}

/// Two decimals, with a minus sign that is as wide as a plus sign.
fn minus(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = if text == "-0.00" { "0.00".to_owned() } else { text };
    text.replace('-', "\u{2212}")
}

/// A tensor's name that may be broken at its dots.
fn breakable(name: &str) -> String {
    escape(name).replace('.', ".<wbr>")
}

fn said(page: &mut String, label: &str, concept: &ConceptRecord, said: Option<&Said>) {
    let Some(first) = said.and_then(|said| said.first.first()) else {
        let _ = write!(page, "<td class=\"said\" data-label=\"{label}\" data-v=\"\">–</td>");
        return;
    };
    let share = |images: u32| f64::from(images) / concept.pairs.max(1) as f64;
    let own = if first.class == concept.class { " own" } else { "" };
    let _ = write!(
        page,
        "<td class=\"said{own}\" data-label=\"{label}\" data-v=\"{0}\"><span>{0}</span> <small>{1:.0}\u{a0}%</small>",
        escape(&first.class),
        100.0 * share(first.images)
    );
    let others = said.map_or(&[][..], |said| &said.first[1..]);
    if !others.is_empty() {
        let others: Vec<String> =
            others.iter().map(|other| format!("{} {:.0}\u{a0}%", escape(&other.class), 100.0 * share(other.images))).collect();
        let _ = write!(page, "<small class=\"more\">{}</small>", others.join(", "));
    }
    *page += "</td>";
}
