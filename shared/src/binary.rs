//! The encoding inside messages: bincode 2. It does not describe itself, so a version beside it
//! always says what it holds.

/// Largest encoded message body in bytes: NATS's default limit.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// Encodes a value.
///
/// # Errors
/// When the value has no such encoding.
pub(crate) fn encode<T: serde::Serialize>(body: &T) -> Result<Vec<u8>, String> {
    bincode::serde::encode_to_vec(body, bincode::config::standard())
        .map_err(|error| error.to_string())
}

/// Decodes a value from exactly these bytes.
///
/// # Errors
/// When the bytes hold something else, or more.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // The limit counts values as they are in memory: up to eight bytes for one byte of the message.
    let config = bincode::config::standard().with_limit::<{ 16 * MAX_BODY }>();
    let (value, read) =
        bincode::serde::decode_from_slice(body, config).map_err(|error| error.to_string())?;
    if read == body.len() {
        Ok(value)
    } else {
        Err(format!("{} bytes are left over", body.len() - read))
    }
}
