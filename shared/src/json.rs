//! JSON from outside, in which no object has a key twice.
//!
//! Of two values of one key, this program's parser would take the last one, and others take the
//! first. A document that two programs read differently is refused.

use std::collections::HashSet;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};

use crate::placeholder::placeholder;
use crate::printable::printable;

/// Parses a document that has no key twice in any object, also where the value is not read.
///
/// # Errors
/// When it is no such document, or not a `T`.
///
/// # Example
/// ```
/// use std::collections::BTreeMap;
///
/// use lethe_shared::json::parse;
///
/// assert!(parse::<BTreeMap<String, u32>>(br#"{"a": 1, "b": 2}"#).is_ok());
/// let error = parse::<BTreeMap<String, u32>>(br#"{"a": 1, "a": 2}"#).unwrap_err();
/// assert_eq!(error.to_string(), "the key `a` appears twice at line 1 column 12");
/// ```
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    if let Some(problem) = placeholder(json) {
        return Err(serde_json::Error::custom(problem));
    }
    if json.starts_with(b"\xef\xbb\xbf") {
        let problem =
            "starts with a byte-order mark, which JSON must not have; save it as UTF-8 without one";
        return Err(serde_json::Error::custom(problem));
    }
    serde_json::from_slice::<UniqueKeys>(json)?;
    serde_json::from_slice(json)
}

/// Any document whose objects have no key twice.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = object.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!(
                    "the key `{}` appears twice",
                    printable(&key)
                )));
            }
            seen.insert(key);
            object.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_key_appears_once_in_every_object() {
        for json in [
            r#"{"a":1,"a":1}"#,
            r#"[{"x":{"a":1,"b":[2],"a":null}}]"#,
            // The same key with an escape.
            r#"{"a":1,"\u0061":true}"#,
        ] {
            let error = parse::<Value>(json.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("the key `a` appears twice at line 1"), "{error}");
        }
        let json = r#"{"a":{"a":-1.5,"b":"x"},"b":[{"a":null},{"a":true}]}"#;
        assert_eq!(parse::<Value>(json.as_bytes()).unwrap().to_string(), json);
        assert!(parse::<Value>(b"{} {}").is_err() && parse::<u32>(b"\"x\"").is_err());
        let error = parse::<Value>(b"\xef\xbb\xbf{}").unwrap_err().to_string();
        assert!(error.contains("byte-order mark"), "{error}");
        let error = parse::<Value>(b"version https://git-lfs.github.com/spec/v1\n").unwrap_err();
        assert!(error.to_string().contains("git lfs pull"), "{error}");
        let error = parse::<Value>(b"{\"\\u001b\":1,\"\\u001b\":2}").unwrap_err().to_string();
        assert!(error.contains(r"`\u{1b}`"), "{error}");
    }
}
