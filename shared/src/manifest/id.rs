//! Ids of runs, releases, concepts and targets.

/// Longest id in bytes.
pub(super) const MAX_NAME: usize = 100;

/// Returns whether a text is a valid id of a run, release, concept or target: letters, digits, `.`,
/// `_` and `-`, the first a letter or digit, at most 100 bytes. Such a text is safe in keys,
/// subjects and file names.
pub fn is_id(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first
        && text.len() <= MAX_NAME
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
