//! The token with which a pipeline pads prompts to the whole context.

use lethe_shared::printable::printable;
use serde_json::Value;

use super::folder::Folder;
use crate::failure::Failure;

/// Returns the id of the token with which the tokenizer of an encoder pads, where it is another one
/// than the end of a text: `!` (0) in Stable Diffusion 2.x. When its files do not give the id, a
/// warning says so.
pub(super) async fn of(
    folder: &Folder,
    encoder: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<u32>, Failure> {
    let at = encoder.replacen("text_encoder", "tokenizer", 1);
    let read = async |file: &str| -> Result<Option<Value>, Failure> {
        let name = format!("{at}/{file}");
        if folder.has(&name) { folder.json(&name).await.map(Some) } else { Ok(None) }
    };
    let config = read("tokenizer_config.json").await?.unwrap_or_default();
    let special = read("special_tokens_map.json").await?.unwrap_or_default();
    let Some(padding) = token(&config, &special, "pad_token") else { return Ok(None) };
    if token(&config, &special, "eos_token") == Some(padding) {
        return Ok(None);
    }
    if let Some(id) = added(&config, padding) {
        return Ok(Some(id));
    }
    let vocabulary = match read("vocab.json").await? {
        Some(vocabulary) => vocabulary,
        None => read("tokenizer.json").await?.unwrap_or_default()["model"]["vocab"].take(),
    };
    let found = vocabulary.get(padding).and_then(id);
    if found.is_none() {
        warnings.push(format!(
            "`{at}` pads prompts with `{}`, and its files do not give the id of that token: prompts are taken as padded with their own end",
            printable(padding)
        ));
    }
    Ok(found)
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Returns a special token: a text, or an object with its `content`.
fn token<'a>(config: &'a Value, special: &'a Value, name: &str) -> Option<&'a str> {
    let of = |file: &'a Value| {
        let token = file.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    };
    of(config).or_else(|| of(special))
}

/// Returns the id of a token that the configuration lists.
fn added(config: &Value, content: &str) -> Option<u32> {
    let listed = config.get("added_tokens_decoder")?.as_object()?;
    let (id, _) = listed.iter().find(|(_, token)| token["content"] == content)?;
    id.parse().ok()
}

#[cfg(test)]
mod tests {
    use lethe_shared::address::Address;
    use serde_json::json;

    use super::*;

    async fn found(files: &[(&str, Value)]) -> (Option<u32>, usize) {
        let made = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = made.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        }
        let address = Address::Local(made.path().to_owned());
        let folder = Folder::open(&address, made.path()).await.unwrap();
        let mut warnings = Vec::new();
        (of(&folder, "text_encoder", &mut warnings).await.unwrap(), warnings.len())
    }

    #[tokio::test]
    async fn padding_is_found_in_the_files_of_every_version() {
        let end = json!({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"});
        assert_eq!(found(&[("tokenizer/tokenizer_config.json", end)]).await, (None, 0));
        assert_eq!(found(&[("tokenizer/readme.json", json!({}))]).await, (None, 0));
        let second = json!({"eos_token": {"content": "<|endoftext|>"}, "pad_token": "!"});
        let vocabulary = json!({"!": 0, "\"": 1});
        let files =
            [("tokenizer/special_tokens_map.json", second), ("tokenizer/vocab.json", vocabulary)];
        assert_eq!(found(&files).await, (Some(0), 0));
        let listed = json!({"eos_token": "<eos>", "pad_token": "<pad>",
            "added_tokens_decoder": {"7": {"content": "<pad>"}, "3": {"content": "<eos>"}}});
        assert_eq!(found(&[("tokenizer/tokenizer_config.json", listed)]).await, (Some(7), 0));
        let one = json!({"eos_token": "<eos>", "pad_token": "<pad>"});
        let files = [
            ("tokenizer/tokenizer_config.json", one),
            ("tokenizer/tokenizer.json", json!({"model": {"vocab": {"<pad>": 5}}})),
        ];
        assert_eq!(found(&files).await, (Some(5), 0));
        assert_eq!(found(&files[..1]).await, (None, 1));
    }
}
