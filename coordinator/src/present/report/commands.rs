//! The commands that verify, change and roll back the release, to be copied from the page.

use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{Composition, ConceptRecord};
use maud::{Markup, html};

use super::text::shell_word;

/// Returns the section. The page is a file of the release, so it contains neither the release's
/// number nor its address: the commands run in the release's folder.
pub(super) fn section(record: &Composition) -> Markup {
    let name = shell_word(&record.name);
    html! {
        section id="use" { h2 { "Use this release" } "\n"
            p {
                "Run these commands in the release's folder, " code { "STORE/releases/" (name) "/…" } ". Elsewhere, replace " code { "." }
                " by that folder's address, or by " code { (name) ":NUMBER --store STORE" } "; "
                code { "lethe release list " (name) " --store STORE" } " prints the number."
            } "\n"
            dl.commands { "\n"
                (command("Verify that every file is unchanged", "lethe verify ."))
                (command("Recompute the weights from the base model and the edits, and compare", "lethe verify . --recompute"))
                @if let Some(concept) = example(record) {
                    @let id = shell_word(&concept.id);
                    (command("Undo one removal, here the first", &format!("lethe compose . --strength {id}=0")))
                    (command("Scale a removal (1: in full, 0: restored, above 1: more)", &format!("lethe compose . --strength {id}=0.5")))
                    (command("Restore a concept: leave its edit out of the new release", &format!("lethe compose . --restore {id}")))
                }
                (command("Measure a release that lethe compose made", &format!("lethe evaluate {name}:NUMBER --store ../../..")))
                (command(
                    "Point a channel, here latest, back to the previous release",
                    &format!("lethe release rollback {name} latest --store ../../.."),
                ))
            }
            p.soft {
                code { "lethe compose" } " writes a new release with a new number and leaves this one as it is; "
                code { "--preview" } " shows the change without writing. A concept's id is in its row below."
            }
        } "\n"
    }
}

fn command(purpose: &str, line: &str) -> Markup {
    html! { div { dt { (purpose) } dd { code { (line) } } } "\n" }
}

/// Returns the concept in the example commands: the first removed one, or else the first.
fn example(record: &Composition) -> Option<&ConceptRecord> {
    let removed = record
        .concepts
        .iter()
        .find(|concept| record.verdict(concept).status == ConceptStatus::Removed);
    removed.or_else(|| record.concepts.first())
}
