//! The names of the tensors in a weight file that is not opened: of a remote file, only the header
//! is transferred.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::SafeTensors;
use serde::de::IgnoredAny;

use super::file::{LENGTH, MAX_HEADER};
use crate::json;

/// Number of bytes that [`header_length`] takes.
pub const HEADER_START: u64 = LENGTH;

/// Returns the length of a safetensors header, from the first bytes of a file of this size. The
/// header follows them.
///
/// # Errors
/// A sentence when this is not the beginning of a safetensors file.
pub fn header_length(start: &[u8], bytes: u64) -> Result<u64, String> {
    let start: [u8; LENGTH as usize] =
        start.try_into().map_err(|_| "the file is too small".to_owned())?;
    let length = u64::from_le_bytes(start);
    if length > MAX_HEADER || length > bytes.saturating_sub(LENGTH) {
        return Err("the header's length is wrong".to_owned());
    }
    Ok(length)
}

/// Returns the names of the tensors in a header.
///
/// # Errors
/// A sentence when it is not a header.
pub fn tensor_names(header: &[u8]) -> Result<BTreeSet<String>, String> {
    let tensors: BTreeMap<String, IgnoredAny> =
        json::parse(header).map_err(|error| error.to_string())?;
    Ok(tensors.into_keys().filter(|name| name != "__metadata__").collect())
}

/// Reads a whole safetensors file in memory, none of whose tensors has the name of another.
///
/// # Errors
/// A sentence when it is no such file.
pub fn read_tensors(file: &[u8]) -> Result<SafeTensors<'_>, String> {
    let (header, _) = SafeTensors::read_metadata(file).map_err(|error| error.to_string())?;
    let start = HEADER_START as usize;
    // The library takes the last of two tensors of one name.
    tensor_names(file.get(start..start + header).unwrap_or_default())?;
    SafeTensors::deserialize(file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn names_are_read_from_the_header_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fixture::write(&path, &[("a", &[1.0]), ("b", &[2.0])]);
        let bytes = std::fs::read(path).unwrap();
        let length = header_length(&bytes[..8], bytes.len() as u64).unwrap() as usize;
        let names = tensor_names(&bytes[8..8 + length]).unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        assert!(header_length(&bytes[..8], 10).is_err());
        assert!(header_length(&bytes[..7], 7).is_err());
        assert!(header_length(&[255; 8], u64::MAX).is_err());
        assert!(tensor_names(b"[1]").is_err());
        assert!(tensor_names(br#"{"a":1,"a":2}"#).unwrap_err().contains("`a` appears twice"));
    }
}
