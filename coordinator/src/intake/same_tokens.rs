//! Classes that the model cannot tell apart, because their prompts have the same tokens.

use std::path::PathBuf;

use lethe_shared::manifest::Concept;
use lethe_shared::printable::printable;
use lethe_shared::reference::ClassTexts;

/// Groups of classes that a warning names.
const GROUPS: usize = 5;
/// Classes of a group that a warning names.
const NAMED: usize = 5;

/// Returns warnings about classes with the same tokens: first about concepts, then about others.
/// Nothing is returned without the worker library, which has the tokenizer, or where the tokenizer
/// cannot be read: workers report that.
///
/// # Errors
/// A sentence when all classes have the same tokens.
pub(super) async fn warnings(
    folder: PathBuf,
    texts: ClassTexts,
    concepts: &[Concept],
) -> Result<Vec<String>, String> {
    let (names, template) = (texts.names.clone(), printable(&texts.template));
    let found = tokio::task::spawn_blocking(move || groups(&folder, &texts)).await;
    let found = found.unwrap_or_default();
    if found.iter().any(|group| group.len() == names.len()) {
        return Err(format!(
            "all class names have the same tokens in the prompt `{template}`: it leaves no room for them in the model's context"
        ));
    }
    Ok(describe(&found, &names, concepts))
}

/// The tokens are those that the model reads: what is beyond its context is cut.
#[cfg(feature = "embedded")]
fn groups(folder: &std::path::Path, texts: &ClassTexts) -> Vec<Vec<u32>> {
    let Ok(checkpoint) = lethe_shared::checkpoint::Checkpoint::open(folder) else {
        return Vec::new();
    };
    lethe_worker::model_folder::ModelFolder::open(folder, &checkpoint)
        .ok()
        .and_then(|model| model.tokenizer.equal_texts(texts.prompts()).ok())
        .unwrap_or_default()
}

#[cfg(not(feature = "embedded"))]
fn groups(_: &std::path::Path, _: &ClassTexts) -> Vec<Vec<u32>> {
    Vec::new()
}

fn describe(groups: &[Vec<u32>], names: &[String], concepts: &[Concept]) -> Vec<String> {
    let shown = |group: &Vec<u32>| {
        let name = |&class: &u32| format!("`{}`", printable(&names[class as usize]));
        let mut shown: Vec<String> = group.iter().take(NAMED).map(name).collect();
        if group.len() > NAMED {
            shown.push(format!("{} more", group.len() - NAMED));
        }
        shown.join(" = ")
    };
    let listed = |groups: &[&Vec<u32>]| {
        let mut listed: Vec<String> =
            groups.iter().take(GROUPS).map(|group| shown(group)).collect();
        if groups.len() > GROUPS {
            listed.push(format!("and {} more groups", groups.len() - GROUPS));
        }
        listed.join(", ")
    };
    let of_concepts: std::collections::BTreeSet<u32> =
        concepts.iter().map(|concept| concept.class_index).collect();
    let (removed, retained): (Vec<&Vec<u32>>, Vec<&Vec<u32>>) =
        groups.iter().partition(|group| group.iter().any(|class| of_concepts.contains(class)));
    let mut warnings = Vec::new();
    if !removed.is_empty() {
        warnings.push(format!(
            "concepts cannot be removed whose class has the same tokens as another one: {}; leave all but one of each out of the class list",
            listed(&removed)
        ));
    }
    if !retained.is_empty() {
        warnings.push(format!(
            "classes have the same tokens, and the model cannot tell them apart: {}; leave all but one of each out of the class list",
            listed(&retained)
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::coverage::tests::concept;

    #[test]
    fn concepts_with_the_tokens_of_another_class_come_first() {
        let names: Vec<String> =
            ["zzz", "ZZZ", "dog", "Dog", "cat"].map(String::from).into_iter().collect();
        let groups = [vec![0, 1], vec![2, 3]];
        let warnings = describe(&groups, &names, &[concept(3, "c"), concept(4, "c")]);
        assert!(warnings[0].contains("same tokens as another one: `dog` = `Dog`;"), "{warnings:?}");
        assert!(warnings[1].contains("tell them apart: `zzz` = `ZZZ`;"), "{warnings:?}");
        assert!(describe(&[], &names, &[concept(3, "c")]).is_empty());
        let many: Vec<Vec<u32>> = vec![vec![0, 1, 2, 3, 4, 0, 1]; 7];
        let warnings = describe(&many, &names, &[]);
        assert!(warnings[0].contains("= `cat` = 2 more, "), "{warnings:?}");
        assert!(warnings[0].contains("and 2 more groups"), "{warnings:?}");
    }

    #[cfg(feature = "embedded")]
    #[tokio::test]
    async fn classes_are_compared_by_the_tokens_of_the_model() {
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../jobs/emoji/model");
        let at = |template: &str, names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            let texts = ClassTexts { names, template: template.into() };
            let model = model.clone();
            async move { super::warnings(model, texts, &[concept(0, "c")]).await }
        };
        let warnings = at("a {}", &["pizza", "Pizza", "red heart"]).await.unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("`pizza` = `Pizza`;"), "{warnings:?}");
        // The model has a context of 16 tokens.
        let long = "red ".repeat(20);
        let (cat, dog) = (format!("{long}cat"), format!("{long}dog"));
        let warnings = at("{}", &[&cat, &dog, "pizza"]).await.unwrap();
        assert!(warnings[0].contains("same tokens as another one: `red red"), "{warnings:?}");
        let refused = at(&format!("{long}{{}}"), &["pizza", "cat"]).await.unwrap_err();
        assert!(refused.contains("leaves no room"), "{refused}");
    }
}
