//! What probes measured and drew.

use data_encoding::BASE64;
use lethe_shared::record::{ProbePicture, ProbeRecord};
use lethe_shared::reference::ArtifactRef;
use maud::{Markup, html};

use super::source::Source;
use crate::present::card::short;
use crate::probe::media_type;

/// Size of all pictures of a page, bytes.
const ROOM: usize = 8 << 20;

/// Returns the section; nothing without a probe.
pub(super) fn section(source: &Source<'_>) -> Markup {
    let mut room = ROOM;
    html! {
        @if !source.record.probes.is_empty() {
            section id="probes" { h2 { "Probes" } "\n"
                p.soft {
                    "Built-in probes are jobs as those of a run, and give the same numbers again. Other probes are commands of the operator "
                    "with means of their own, and the numbers are the commands'."
                } "\n"
                @for probe in &source.record.probes { (one(probe, source, &mut room)) }
            } "\n"
        }
    }
}

fn one(probe: &ProbeRecord, source: &Source<'_>, room: &mut usize) -> Markup {
    let pictures: Vec<Markup> =
        probe.pictures.iter().filter_map(|of| pictures(of, source, room)).collect();
    let left_out = probe.pictures.len() - pictures.len();
    html! {
        h3 { (probe.name) " " span.soft { "(version " (probe.version) ")" } } "\n"
        p.soft { @if probe.command.is_empty() { "built in" } @else { code { (probe.command.join(" ")) } } } "\n"
        div.wide {
            table.plain {
                thead { tr { th { "measured" } th.n { "value" } } }
                tbody { "\n"
                    @for (name, value) in &probe.numbers { tr { td { (name) } td.n { (short(*value)) } } "\n" }
                }
            }
        } "\n"
        @for note in &probe.notes { p { (note) } "\n" }
        @if !pictures.is_empty() { div.pictures { "\n" @for picture in pictures { (picture) "\n" } } "\n" }
        @if left_out > 0 { p.soft { (left_out) " further pictures are not shown." } "\n" }
    }
}

/// Returns the pictures of one title; `None` when they are missing or do not fit.
fn pictures(of: &ProbePicture, source: &Source<'_>, room: &mut usize) -> Option<Markup> {
    let mut uri = |artifact: &ArtifactRef| {
        let bytes = source.pictures.get(&artifact.digest)?;
        let left = room.checked_sub(bytes.len())?;
        let kind = media_type(bytes)?;
        *room = left;
        Some(format!("data:{kind};base64,{}", BASE64.encode(bytes)))
    };
    let before = match &of.before {
        Some(before) => Some(uri(before)?),
        None => None,
    };
    let after = uri(&of.after)?;
    Some(html! {
        figure {
            @if let Some(before) = before { img src=(before) alt={ (of.title) ", base model" }; " " }
            img src=(after) alt={ (of.title) ", release" };
            figcaption { (of.title) }
        }
    })
}
