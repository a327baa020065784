//! The table of concepts: a picture, the model's top predictions before and after, and the outcome.
//! Scripts search, sort and expand its rows.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use data_encoding::BASE64;
use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{Composition, ConceptRecord, TopPredictions};
use maud::{Markup, html};

use super::notes::cost;
use super::source::Source;
use super::text::{count, percent};

/// Largest total size of the pictures in a page, bytes before encoding.
const PICTURES: usize = 3 << 20;
/// Largest picture of one concept, bytes.
const PICTURE: usize = 32 << 10;

/// Columns that a page has where one of its concepts has a value.
#[derive(Debug, Clone, Copy)]
struct Shown {
    /// FA@5 with the concept's own edit alone.
    alone: bool,
    /// What the edit alone costs.
    cost: bool,
}

impl Shown {
    fn of(record: &Composition) -> Self {
        Self {
            alone: record.concepts.iter().any(|concept| concept.alone.is_some()),
            cost: record.concepts.iter().any(|concept| cost(concept).is_some()),
        }
    }

    /// Returns the columns: CSS class and heading.
    fn columns(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let columns = [
            ("", "concept", true),
            ("", "top prediction before", true),
            ("", "top prediction after", true),
            ("n", "FA@5 before", true),
            ("n", "alone", self.alone),
            ("n", "released", true),
            ("n", "cost, points", self.cost),
            ("", "layer", true),
            ("n", "λ/R", true),
        ];
        columns
            .into_iter()
            .filter(|(_, _, is_shown)| *is_shown)
            .map(|(class, name, _)| (class, name))
    }
}

/// Returns the section.
pub(super) fn section(source: &Source<'_>) -> Markup {
    let record = source.record;
    let twins: BTreeSet<&str> =
        record.near_duplicates.iter().flatten().map(String::as_str).collect();
    let (mut room, shown) = (PICTURES, Shown::of(record));
    let mut rows = Vec::with_capacity(record.concepts.len());
    for (number, concept) in record.concepts.iter().enumerate() {
        let picture =
            source.thumbnails.get(&concept.id).filter(|picture| is_shown(picture, &mut room));
        rows.push(row(
            number,
            (concept, record.verdict(concept).status),
            picture,
            twins.contains(concept.id.as_str()),
            shown,
        ));
    }
    let pictures = source.thumbnails.len().min(record.concepts.len());
    html! {
        section id="concepts" { h2 { "Removed concepts" } "\n"
            @if rows.is_empty() {
                p { "None." }
            } @else {
                (controls(source, shown))
                div.wide {
                    table.concepts {
                        thead { tr { @for (class, name) in shown.columns() { th class=(class) scope="col" { (name) } } } } "\n"
                        tbody { "\n" @for row in rows { (row) "\n" } }
                    }
                } "\n"
                @if pictures > 0 && room == 0 {
                    p.soft { "There are pictures of more concepts in " code { "thumbnails.safetensors" } " than this page has room for." }
                }
            }
        } "\n"
    }
}

/// Returns whether a picture is valid and fits into the remaining `room`, in bytes.
fn is_shown(picture: &Bytes, room: &mut usize) -> bool {
    if !picture.starts_with(&[0xff, 0xd8, 0xff]) || picture.len() > PICTURE {
        return false;
    }
    *room = room.checked_sub(picture.len()).unwrap_or(0);
    *room > 0
}

fn controls(source: &Source<'_>, shown: Shown) -> Markup {
    let record = source.record;
    let numbers = |values: &mut dyn Iterator<Item = &'_ str>| {
        values.fold(BTreeMap::<String, usize>::new(), |mut numbers, value| {
            *numbers.entry(value.to_owned()).or_default() += 1;
            numbers
        })
    };
    let layers = numbers(&mut record.concepts.iter().map(|concept| concept.layer.as_str()));
    let groups =
        numbers(&mut record.concepts.iter().filter_map(|concept| concept.group.as_deref()));
    html! {
        form.controls hidden { "\n"
            label { "Search " input type="search" id="search" placeholder="name, class, prediction, layer"; } "\n"
            label { "Show "
                select id="show" {
                    option value="" { "all" }
                    option value="found" { "still in the top five" }
                    option value="unseen" { "not measured together" }
                    @if shown.cost { option value="costly" { "cost of 0.5 points or more" } }
                    option value="twin" { "near-duplicate of another" }
                    option value="partial" { "strength other than 1" }
                }
            } "\n"
            (select("layer", "Layer", &layers))
            @if !groups.is_empty() { (select("group", "Group", &groups)) }
            output id="count" { (count(record.concepts.len(), "concept")) } "\n"
            p.soft { "Click a column head to sort. Click a concept to see more of it." }
        } "\n"
    }
}

fn select(id: &str, label: &str, values: &BTreeMap<String, usize>) -> Markup {
    html! {
        label { (label) " "
            select id=(id) {
                option value="" { "all" }
                @for (value, number) in values { option value=(value) { (value) " (" (number) ")" } }
            }
        } "\n"
    }
}

fn row(
    number: usize,
    (concept, status): (&ConceptRecord, ConceptStatus),
    picture: Option<&Bytes>,
    twin: bool,
    shown: Shown,
) -> Markup {
    let points = cost(concept);
    let layer = &concept.layer;
    html! {
        tr data-concept=(number) data-layer=(layer) data-group=(concept.group.as_deref().unwrap_or_default())
            data-strength=(concept.strength) data-twin[twin] {
            td.name data-v=(concept.name.to_lowercase()) {
                div {
                    @if let Some(picture) = picture {
                        // The number of images in the strip determines its width.
                        img alt="" loading="lazy" src={ "data:image/jpeg;base64," (BASE64.encode(picture)) };
                    }
                    span.title { (concept.name) }
                    @if concept.name != concept.class { small { "class " (concept.class) } }
                    @if let Some(group) = &concept.group { small { (group) } }
                    @if !matches!(status, ConceptStatus::Removed | ConceptStatus::NotMeasured) { small { b { (status.name()) } } }
                }
            }
            (said("top prediction before", concept, concept.predictions_before.as_ref()))
            (said("top prediction after", concept, concept.predictions_composed.as_ref()))
            (share("FA@5 before", Some(concept.before.fa5), false))
            @if shown.alone { (share("FA@5 alone", concept.alone.map(|alone| alone.fa5), true)) }
            (share("FA@5 released", concept.composed.map(|composed| composed.fa5), true))
            @if shown.cost {
                td.n data-label="cost, points" data-v=(points.map_or_else(String::new, |points| format!("{points:.4}"))) {
                    (points.map_or_else(|| "–".to_owned(), minus))
                }
            }
            td.layer data-label="layer" data-v=(layer) {
                // Lines may break at the dots of a tensor's name.
                code { @for (i, part) in layer.split('.').enumerate() { @if i > 0 { "." wbr; } (part) } }
                @if concept.layers.len() > 1 { br; small { "most, of " (concept.layers.len()) " layers" } }
            }
            @let step = format!("{:.3}", concept.relative_step);
            td.n data-label="λ/R" data-v=(step) { (step) }
        }
    }
}

fn share(label: &str, value: Option<f64>, is_judged: bool) -> Markup {
    let class = match value {
        Some(0.0) if is_judged => "n good",
        Some(_) if is_judged => "n bad",
        _ => "n",
    };
    let (key, text) = value
        .map_or((String::new(), "–".to_owned()), |value| (value.to_string(), percent(value)));
    html! { td class=(class) data-label=(label) data-v=(key) { (text) } }
}

/// Formats a value with two decimals and a minus sign as wide as a plus sign.
fn minus(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = if text == "-0.00" { "0.00".to_owned() } else { text };
    text.replace('-', "\u{2212}")
}

/// Returns the classes that the model predicts most often on a concept's forget images.
fn said(label: &str, concept: &ConceptRecord, said: Option<&TopPredictions>) -> Markup {
    let Some((first, others)) = said.and_then(|said| said.first.split_first()) else {
        return html! { td.said data-label=(label) data-v="" { "–" } };
    };
    let share = |images: u32| {
        format!("{:.0}\u{a0}%", 100.0 * f64::from(images) / concept.pairs.max(1) as f64)
    };
    let class = if first.class == concept.class { "said own" } else { "said" };
    let others: Vec<String> =
        others.iter().map(|other| format!("{} {}", other.class, share(other.images))).collect();
    html! {
        td class=(class) data-label=(label) data-v=(first.class) {
            span { (first.class) } " " small { (share(first.images)) }
            @if !others.is_empty() { small.more { (others.join(", ")) } }
        }
    }
}
