//! JSON documents that are almost valid: trees that may repeat a key, written in different ways.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::draw::Draw;

/// A document. Numbers are texts, so that a number of any size can be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl From<&Value> for Node {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(number.to_string()),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(values) => Self::List(values.iter().map(Self::from).collect()),
            Value::Object(fields) => Self::Object(
                fields.iter().map(|(key, value)| (key.clone(), value.into())).collect(),
            ),
        }
    }
}

/// Parses documents that are written in this crate.
pub(crate) fn documents<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Node> {
    let parse = |text| Node::from(&serde_json::from_str::<Value>(text).expect("valid JSON"));
    texts.into_iter().map(parse).collect()
}

impl Node {
    /// Returns the field of an object.
    pub(crate) fn field(&mut self, key: &str) -> Option<&mut Node> {
        match self {
            Self::Object(fields) => {
                fields.iter_mut().find(|(known, _)| known == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Self::List(values) => values.iter().map(Self::count).sum(),
            Self::Object(fields) => fields.iter().map(|(_, value)| value.count()).sum(),
            _ => 0,
        }
    }

    /// Returns the node with this number, in the order of the document.
    fn find(&mut self, number: &mut usize) -> Option<&mut Node> {
        if *number == 0 {
            return Some(self);
        }
        *number -= 1;
        match self {
            Self::List(values) => values.iter_mut().find_map(|value| value.find(number)),
            Self::Object(fields) => fields.iter_mut().find_map(|(_, value)| value.find(number)),
            _ => None,
        }
    }

    fn scalar(draw: &mut Draw<'_>) -> Self {
        match draw.below(8) {
            0 => Self::Null,
            1 => Self::Bool(draw.one_in(2)),
            2..5 => Self::Number(draw.numeral()),
            5 => Self::List(Vec::new()),
            6 => Self::Object(Vec::new()),
            _ => Self::Text(draw.text()),
        }
    }

    /// Changes one place: a value, a key, what a list or an object holds. `keys` are names that the
    /// format knows.
    pub(crate) fn mutate(&mut self, draw: &mut Draw<'_>, keys: &[&str]) {
        let mut number = draw.below(self.count());
        let Some(node) = self.find(&mut number) else { return };
        match node {
            Self::Object(fields) if !draw.one_in(8) => {
                let at = draw.below(fields.len().max(1));
                match draw.below(6) {
                    0 if !fields.is_empty() => {
                        fields.remove(at);
                    }
                    1 if !fields.is_empty() => {
                        let again = fields[at].clone();
                        fields.push(again);
                    }
                    2 if !fields.is_empty() => {
                        let value = Self::scalar(draw);
                        fields.push((fields[at].0.clone(), value));
                    }
                    3 if !fields.is_empty() && !keys.is_empty() => {
                        (*draw.pick(keys)).clone_into(&mut fields[at].0);
                    }
                    4 => fields.push((draw.text(), Self::scalar(draw))),
                    _ if !keys.is_empty() => {
                        fields.push(((*draw.pick(keys)).to_owned(), Self::scalar(draw)));
                    }
                    _ => {}
                }
            }
            Self::List(values) if !draw.one_in(8) => {
                let at = draw.below(values.len().max(1));
                match draw.below(4) {
                    0 if !values.is_empty() => {
                        values.remove(at);
                    }
                    1 if !values.is_empty() => {
                        let again = values[at].clone();
                        values.push(again);
                    }
                    2 if values.len() > 1 => values.swap(0, at),
                    _ => values.push(Self::scalar(draw)),
                }
            }
            Self::Text(text) if draw.one_in(2) => {
                let at = text.char_indices().map(|(at, _)| at).nth(draw.below(8)).unwrap_or(0);
                if draw.one_in(3) && at < text.len() {
                    text.remove(at);
                } else {
                    text.insert(at, draw.letter());
                }
            }
            Self::Number(text) => *text = draw.numeral(),
            Self::Bool(value) if draw.one_in(2) => *value = !*value,
            _ if draw.one_in(200) => {
                // Readers bound the depth.
                for _ in 0..300 {
                    *node = Self::List(vec![std::mem::replace(node, Self::Null)]);
                }
            }
            _ => *node = Self::scalar(draw),
        }
    }

    /// Returns the text. With `draw`, white space and escapes vary.
    pub(crate) fn write(&self, mut draw: Option<&mut Draw<'_>>) -> String {
        let varies = draw.as_mut().is_some_and(|draw| draw.one_in(4));
        let mut text = String::new();
        self.write_to(&mut text, &mut draw.filter(|_| varies));
        text
    }

    fn write_to(&self, text: &mut String, draw: &mut Option<&mut Draw<'_>>) {
        let space = |text: &mut String, draw: &mut Option<&mut Draw<'_>>| {
            if let Some(draw) = draw
                && draw.one_in(4)
            {
                text.push_str(draw.pick::<&str>(&[" ", "\n", "\t", "\r\n", "  "]));
            }
        };
        space(text, draw);
        match self {
            Self::Null => text.push_str("null"),
            Self::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Self::Number(number) => text.push_str(number),
            Self::Text(value) => quote(text, value, draw),
            Self::List(values) => {
                text.push('[');
                for (number, value) in values.iter().enumerate() {
                    if number > 0 {
                        text.push(',');
                    }
                    value.write_to(text, draw);
                }
                text.push(']');
            }
            Self::Object(fields) => {
                text.push('{');
                for (number, (key, value)) in fields.iter().enumerate() {
                    if number > 0 {
                        text.push(',');
                    }
                    space(text, draw);
                    quote(text, key, draw);
                    text.push(':');
                    value.write_to(text, draw);
                }
                text.push('}');
            }
        }
        space(text, draw);
    }
}

fn quote(text: &mut String, value: &str, draw: &mut Option<&mut Draw<'_>>) {
    text.push('"');
    for letter in value.chars() {
        let escapes = draw.as_mut().is_some_and(|draw| draw.one_in(8));
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            letter if escapes || letter < ' ' => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            letter => text.push(letter),
        }
    }
    text.push('"');
}

/// Returns a document that is changed in up to three places.
pub(crate) fn almost(seeds: &[Node], keys: &[&str], draw: &mut Draw<'_>) -> Node {
    let mut node = draw.pick(seeds).clone();
    for _ in 0..draw.below(4) {
        node.mutate(draw, keys);
    }
    node
}

/// A document none of whose objects has a key twice, not even one that its reader ignores.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON document")
            }

            fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UniqueKeys, A::Error> {
                while list.next_element::<UniqueKeys>()?.is_some() {}
                Ok(UniqueKeys)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some(key) = object.next_key::<String>()? {
                    object.next_value::<UniqueKeys>()?;
                    if !seen.insert(key) {
                        return Err(A::Error::custom("a key appears twice"));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_any(Each)
    }
}

/// Checks that no object of a JSON document has a key twice.
///
/// # Errors
/// The property that does not hold.
pub(crate) fn unique_keys(json: &[u8]) -> Result<(), String> {
    match serde_json::from_slice::<UniqueKeys>(json) {
        Err(error) if error.to_string().contains("twice") => {
            Err(format!("was accepted, but {error}: two readers may take different values"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_found_at_any_depth() {
        for json in
            [r#"{"a":1,"a":1}"#, r#"[{"x":{"a":1,"b":2,"a":null}}]"#, r#"{"a":1,"\u0061":2}"#]
        {
            assert!(unique_keys(json.as_bytes()).is_err(), "{json}");
        }
        assert!(unique_keys(br#"{"a":{"a":1},"b":[{"a":1e400},{"a":"x"}]}"#).is_ok());
    }

    #[test]
    fn documents_are_written_as_they_were_read() {
        let text = r#"{"a":[1,-2.5,"x\"\\",null,true],"b":{}}"#;
        assert_eq!(documents([text])[0].write(None), text);
    }
}
