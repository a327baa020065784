//! What the change of each tower does by itself.

use lethe_shared::record::{Composition, Group, UtilityOn};
use maud::{Markup, html};

use super::text::percent;

/// Returns the section; nothing when towers were not measured apart.
pub(super) fn section(record: &Composition) -> Markup {
    let set =
        |name: &'static str, of: fn(&Composition) -> Option<&UtilityOn>| Some((name, of(record)?));
    let whole = set("test", |record| record.utility.test.as_ref())
        .or_else(|| set("validation", |record| record.utility.validation.as_ref()));
    let groups: Vec<&str> =
        whole.iter().flat_map(|(_, on)| on.groups().map(|(name, _)| name)).collect();
    let kept = |on: Option<&UtilityOn>, name: &str| {
        let group = on.into_iter().flat_map(UtilityOn::groups).find(|(other, _)| *other == name);
        let change = |group: &Group| {
            format!("{:.1} → {}", 100.0 * group.before.ta1, percent(group.after.ta1))
        };
        html! { td.n { @if let Some((_, group)) = group { (change(group)) } } }
    };
    html! {
        @if !record.towers.is_empty() {
            section id="towers" { h2 { "Each tower alone" } "\n"
                p.soft {
                    "Both towers share each removal. A model that takes over one of them, such as a diffusion pipeline with this text tower "
                    "or a language model with this vision tower, gets the change of that tower only."
                } "\n"
                div.wide {
                    table.plain {
                        thead { tr {
                            th { "changed" } th.n { "forget images: FA@1" } th.n { "FA@5" }
                            @if let Some((set, _)) = whole { @for name in &groups { th.n { (name) ", TA@1 (" (set) ")" } } }
                        } }
                        tbody { "\n"
                            @for alone in &record.towers {
                                tr {
                                    td { (alone.tower.name()) " tower" } td.n { (percent(alone.fa1)) } td.n { (percent(alone.fa5)) }
                                    @for name in &groups { (kept(alone.utility.test.as_ref().or(alone.utility.validation.as_ref()), name)) }
                                } "\n"
                            }
                        }
                    }
                } "\n"
            } "\n"
        }
    }
}
