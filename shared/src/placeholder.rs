//! Files that stand for another file that was not fetched.

/// Recognises a pointer of Git LFS and a page of HTML by their first bytes; returns a sentence about
/// the file, which says what to do.
///
/// # Example
/// ```
/// use lethe_shared::placeholder::placeholder;
///
/// assert!(placeholder(b"version https://git-lfs.github.com/spec/v1\noid sha256:").is_some());
/// assert!(placeholder(b"<!DOCTYPE html><html>").is_some());
/// assert_eq!(placeholder(b"{\"model_type\": \"clip\"}"), None);
/// ```
pub fn placeholder(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"version https://git-lfs") {
        return Some(
            "is a pointer of Git LFS and not the file; fetch the file with `git lfs pull`",
        );
    }
    let start = start.trim_ascii_start();
    let is_page = [b"<!doctype html".as_slice(), b"<html"]
        .iter()
        .any(|page| start.get(..page.len()).is_some_and(|start| start.eq_ignore_ascii_case(page)));
    is_page.then_some(
        "is an HTML page, such as one that a failed download leaves; fetch the file again",
    )
}
