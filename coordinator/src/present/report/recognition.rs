//! What can still be told of removed concepts: among few names, and by searching for images.

use lethe_shared::record::{Composition, Recall};
use maud::{Markup, html};

use super::text::percent;

/// Returns the section; nothing when it was not measured.
pub(super) fn section(record: &Composition) -> Markup {
    let Some(recognition) = &record.recognition else { return html! {} };
    let change = |before: f64, after: f64| html! { td.n { (format!("{:.1} → {}", 100.0 * before, percent(after))) } };
    let recall = |before: Recall, after: Recall| html! { (change(before.r1, after.r1)) (change(before.r5, after.r5)) (change(before.r20, after.r20)) };
    html! {
        section id="recognition" { h2 { "What can still be told" } "\n"
            p.soft {
                "A concept counts as forgotten by the rank of its class among all classes. These numbers ask less of the model: to tell "
                "the removed name from a few others, and to find an image of the concept by its name."
            } "\n"
            div.two { "\n"
                @if !recognition.candidates.is_empty() {
                    div.wide {
                        table.plain {
                            thead { tr { th { "removed name against retained names drawn at random" } th.n { "is the best, before → after" } } }
                            tbody { "\n"
                                @for candidates in &recognition.candidates {
                                    tr { td { (candidates.others) } (change(candidates.before, candidates.after)) } "\n"
                                }
                            }
                        }
                    } "\n"
                }
                @if !recognition.searches.is_empty() {
                    div.wide {
                        table.plain {
                            thead { tr {
                                th { "search by removed names in" } th.n { "names" } th.n { "found first, before → after" } th.n { "in the first 5" } th.n { "in the first 20" }
                            } }
                            tbody { "\n"
                                @for search in &recognition.searches {
                                    tr { td { (search.set) " images" } td.n { (search.names) } (recall(search.before, search.after)) } "\n"
                                }
                            }
                        }
                    } "\n"
                }
            } "\n"
        } "\n"
    }
}
