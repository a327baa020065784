//! Data that a manifest names more than once. Pure.

use std::collections::BTreeMap;

use lethe_shared::digest::Digest;

/// Number of names in one warning.
const LISTED: usize = 3;

/// Returns a warning about data that a field lists more than once. `items` are digests with the
/// names of the files. Equal bytes under another name, or listed by a pattern and by name, are the
/// same data.
pub fn warning(field: &str, items: impl IntoIterator<Item = (Digest, String)>) -> Option<String> {
    let mut by_digest: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for (digest, name) in items {
        by_digest.entry(digest).or_default().push(name);
    }
    let repeated: Vec<Vec<String>> =
        by_digest.into_values().filter(|names| names.len() > 1).collect();
    if repeated.is_empty() {
        return None;
    }
    let same = |names: &Vec<String>| {
        if names.iter().all(|name| *name == names[0]) {
            format!("{} ({} times)", names[0], names.len())
        } else {
            names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(" = ")
        }
    };
    let mut listed: Vec<String> = repeated.iter().take(LISTED).map(same).collect();
    if repeated.len() > LISTED {
        listed.push(format!("and {} more", repeated.len() - LISTED));
    }
    Some(format!(
        "{field} holds the same data more than once, and counts it as often: {}",
        listed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(of: &[(&str, &str)]) -> Vec<(Digest, String)> {
        of.iter().map(|(bytes, name)| (Digest::of(bytes.as_bytes()), (*name).to_owned())).collect()
    }

    #[test]
    fn the_same_bytes_are_found_whatever_they_are_called() {
        assert_eq!(warning("data.retain", items(&[("a", "a.tar"), ("b", "b.tar")])), None);
        let twice =
            warning("data.retain", items(&[("a", "a.tar"), ("b", "b.tar"), ("a", "a.tar")]))
                .unwrap();
        assert!(twice.contains("data.retain") && twice.ends_with("a.tar (2 times)"), "{twice}");
        let copied = warning("data.retain", items(&[("a", "a.tar"), ("a", "copy.tar")])).unwrap();
        assert!(copied.ends_with("a.tar = copy.tar"), "{copied}");
        let many: Vec<(String, String)> = (0..10)
            .flat_map(|n| {
                [(n.to_string(), format!("{n}.tar")), (n.to_string(), format!("{n}.tar"))]
            })
            .collect();
        let many = warning(
            "f",
            many.into_iter().map(|(bytes, name)| (Digest::of(bytes.as_bytes()), name)),
        )
        .unwrap();
        assert!(many.ends_with("and 7 more"), "{many}");
    }
}
