//! The model's tokenizer, from `tokenizer.json`.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use lethe_shared::printable::printable;
use serde_json::Value;
use tokenizers::ModelWrapper;

use super::cleaning::Cleaning;
use super::error::Error;
use super::json_file;

/// Largest tokenizer file, bytes.
const MAX_FILE: u64 = 256 << 20;
/// Largest of the files beside it, bytes.
const MAX_SETTINGS: u64 = 64 << 20;
/// The files that name a tokenizer's padding token, in this order.
const SETTINGS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// Converts texts to token ids, including start and end tokens. Ids are padded for a model that reads
/// whole contexts only.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: String,
    context: usize,
    vocabulary: usize,
    cleaning: Cleaning,
    /// The token to which texts are padded to the whole context.
    padding: Option<u32>,
    /// The padding token in the file itself.
    own_padding: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a model's folder. Texts are truncated to `context` tokens, keeping
    /// the end token, and ids must be below `vocabulary`. Padding and truncation settings of the
    /// file are ignored, because batches are built elsewhere.
    ///
    /// # Errors
    /// When the file is missing or cannot be read.
    pub fn from_model_dir(folder: &Path, context: usize, vocabulary: usize) -> Result<Self, Error> {
        let path = folder.join("tokenizer.json");
        let file = path.display().to_string();
        let wrong = |problem: String| Error::new(file.clone(), problem);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return Err(wrong("is larger than 256 MiB".into()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong(
                    "is missing; create it in Python with transformers: AutoTokenizer.from_pretrained(model).save_pretrained(folder)"
                        .into(),
                ));
            }
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        }
        let mut inner = without_panic(|| tokenizers::Tokenizer::from_file(&path))
            .map_err(|error| wrong(format!("is not a tokenizer: {error}")))?;
        // With dropout, a text has other tokens each time.
        if let ModelWrapper::BPE(model) = inner.get_model()
            && let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0)
        {
            return Err(wrong(format!(
                "model.dropout is {dropout}, which makes tokens random; set it to null, as it is for every use but training"
            )));
        }
        let own_padding = inner.get_padding().map(|padding| padding.pad_id);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        let cleaning = Cleaning::None;
        Ok(Self { inner, file, context, vocabulary, cleaning, padding: None, own_padding })
    }

    /// Cleans texts before they are tokenized.
    #[must_use]
    pub fn with_cleaning(self, cleaning: Cleaning) -> Self {
        Self { cleaning, ..self }
    }

    /// Pads every text to the whole context, as the processor of a SigLIP does, with the padding token
    /// that the files in `folder` name.
    ///
    /// # Errors
    /// When they name none, or a shorter context.
    pub fn with_padding_of(mut self, folder: &Path) -> Result<Self, Error> {
        let mut named = None;
        for name in SETTINGS {
            let path = folder.join(name);
            let wrong = |problem: String| Error::new(path.display().to_string(), problem);
            let Some(json) = json_file::read(&path, MAX_SETTINGS).map_err(wrong)? else {
                continue;
            };
            if let Some(length) = json["model_max_length"].as_f64()
                && length < self.context as f64
            {
                return Err(wrong(format!(
                    "model_max_length is {length}, but the model reads the last of {} tokens; set it to {}",
                    self.context, self.context
                )));
            }
            named = named.or_else(|| special_token(&json["pad_token"]).map(str::to_owned));
        }
        self.padding = match named {
            Some(token) => match self.inner.token_to_id(&token) {
                Some(id) => Some(id),
                None => {
                    let problem = format!(
                        "has no token `{}`, with which {} pads texts",
                        printable(&token),
                        SETTINGS[0]
                    );
                    return Err(Error::new(self.file, problem));
                }
            },
            None => self.own_padding,
        };
        match self.padding {
            Some(id) if (id as usize) < self.vocabulary => Ok(self),
            Some(id) => Err(Error::new(
                self.file,
                format!("pads texts with token {id}, but the model has {} tokens", self.vocabulary),
            )),
            None => Err(Error::new(
                folder.display().to_string(),
                format!(
                    "names no padding token, but the model reads texts that are padded to {} tokens; set pad_token in {}",
                    self.context, SETTINGS[0]
                ),
            )),
        }
    }

    /// Returns the groups of texts that have the same tokens, as positions in ascending order.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn equal_texts(&self, texts: impl Iterator<Item = String>) -> Result<Vec<Vec<u32>>, Error> {
        let mut positions: HashMap<Vec<u32>, Vec<u32>> = HashMap::new();
        for (position, text) in (0u32..).zip(texts) {
            positions.entry(self.encode(&text)?).or_default().push(position);
        }
        let mut groups: Vec<Vec<u32>> =
            positions.into_values().filter(|group| group.len() > 1).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    /// Returns the token ids of a text.
    ///
    /// # Errors
    /// When the tokenizer fails, returns no token, or returns an id for which the model has no
    /// embedding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.encoding(text)?.get_ids().to_vec();
        if let Some(&end) = ids.last()
            && ids.len() > self.context
        {
            ids.truncate(self.context);
            ids[self.context - 1] = end;
        }
        self.finished(ids, text)
    }

    /// Returns the token ids of a text with `count` tokens of its own between start and end tokens, and
    /// the place of the first of them. They are the first tokens of the text, and its last one again
    /// where it has fewer.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and when the text has no token of its own or the model's context
    /// is too short.
    pub fn encode_with_length(&self, text: &str, count: usize) -> Result<(Vec<u32>, usize), Error> {
        let wrong = |problem: String| Error::new(self.file.clone(), problem);
        let encoding = self.encoding(text)?;
        let (all, special) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let is_special = |mask: &&u32| **mask == 1;
        let start = special.iter().take_while(is_special).count();
        let end = all.len() - special.iter().rev().take_while(is_special).count();
        let Some((own, last)) = all.get(start..end).and_then(|own| Some((own, own.last()?))) else {
            return Err(wrong(format!("has no token for `{}`", printable(text))));
        };
        let own = own.iter().chain(std::iter::repeat(last)).take(count);
        let ids: Vec<u32> = all[..start].iter().chain(own).chain(&all[end..]).copied().collect();
        if ids.len() > self.context {
            let (needed, context) = (ids.len(), self.context);
            return Err(wrong(format!(
                "needs {needed} tokens for a prompt of {count}, but the model reads {context}"
            )));
        }
        Ok((self.finished(ids, text)?, start))
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding, Error> {
        let cleaned = self.cleaning.of(text);
        without_panic(|| self.inner.encode_fast(cleaned.as_str(), true)).map_err(|error| {
            Error::new(self.file.clone(), format!("cannot encode `{}`: {error}", printable(text)))
        })
    }

    /// Pads and checks the token ids of a text.
    fn finished(&self, mut ids: Vec<u32>, text: &str) -> Result<Vec<u32>, Error> {
        let wrong = |problem: String| Error::new(self.file.clone(), problem);
        if let Some(padding) = self.padding
            && ids.len() < self.context
        {
            ids.resize(self.context, padding);
        }
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            Some(id) => Err(wrong(format!(
                "returns token {id} for `{}`, but the model has {} tokens; the file belongs to another model",
                printable(text),
                self.vocabulary
            ))),
            None if ids.is_empty() => {
                Err(wrong(format!("returns no token for `{}`", printable(text))))
            }
            None => Ok(ids),
        }
    }
}

/// Returns a special token: a text, or an object with its `content`.
fn special_token(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Calls the library, which panics on some files that are no tokenizers, and on texts that some
/// tokenizers do not suit.
fn without_panic<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing that the call has changed is used after a panic.
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library fails on it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"<pad>"},
        "added_tokens":[{"id":1,"content":"<bos>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":3,"content":"<eos>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":{"type":"Lowercase"},"pre_tokenizer":{"type":"Whitespace"},
        "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<bos>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<eos>","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
        "special_tokens":{"<bos>":{"id":"<bos>","ids":[1],"tokens":["<bos>"]},"<eos>":{"id":"<eos>","ids":[3],"tokens":["<eos>"]}}},
        "decoder":null,"model":{"type":"WordLevel","vocab":{"<pad>":0,"<bos>":1,"<unk>":2,"<eos>":3,"a":4,"cat":5,"rare":9},"unk_token":"<unk>"}}"#;

    fn tokenizer(context: usize) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), WORDS).unwrap();
        Tokenizer::from_model_dir(folder.path(), context, 6).unwrap()
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_ignored() {
        assert_eq!(tokenizer(16).encode("A cat, a dog").unwrap(), [1, 4, 5, 2, 4, 2, 3]);
    }

    /// A tokenizer of a model that reads whole contexts of this many tokens, with files beside it.
    fn padded(context: usize, files: &[(&str, &str)]) -> Result<Tokenizer, Error> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("tokenizer.json", WORDS)].iter().chain(files) {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Tokenizer::from_model_dir(folder.path(), context, 6)?.with_padding_of(folder.path())
    }

    #[test]
    fn texts_fill_the_context_where_a_model_reads_its_end() {
        let ids = |files: &[(&str, &str)]| padded(6, files).unwrap().encode("a cat").unwrap();
        assert_eq!(ids(&[]), [1, 4, 5, 3, 0, 0]);
        let end = (
            "tokenizer_config.json",
            r#"{"pad_token": {"content": "<eos>"}, "model_max_length": 6}"#,
        );
        assert_eq!(ids(&[end]), [1, 4, 5, 3, 3, 3]);
        let special = ("special_tokens_map.json", r#"{"pad_token": "<unk>"}"#);
        assert_eq!(ids(&[special]), [1, 4, 5, 3, 2, 2]);
        assert_eq!(ids(&[special, end]), [1, 4, 5, 3, 3, 3]);
        let long = padded(4, &[]).unwrap().encode("a cat a cat a cat").unwrap();
        assert_eq!(long, [1, 4, 5, 3]);
        for (settings, expected) in [
            (r#"{"model_max_length": 4}"#, "model_max_length is 4"),
            (r#"{"pad_token": "<none>"}"#, "has no token `<none>`"),
            (r#"{"pad_token": "rare"}"#, "pads texts with token 9"),
            ("{", "tokenizer_config.json"),
        ] {
            let error = padded(6, &[("tokenizer_config.json", settings)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn texts_with_the_same_tokens_are_found() {
        let texts = ["A cat", "a", "a CAT", "dog", "cat", "bird"].map(String::from);
        let groups = tokenizer(16).equal_texts(texts.into_iter()).unwrap();
        assert_eq!(groups, [vec![0, 2], vec![3, 5]]);
    }

    #[test]
    fn random_tokens_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let read = |dropout: &str| {
            let model = format!(
                r#""model":{{"type":"BPE","dropout":{dropout},"vocab":{{"c":0,"a":1,"ca":2}},"merges":[["c","a"]]}}}}"#
            );
            let text = format!(r#"{{"version":"1.0","added_tokens":[],{model}"#);
            std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
            Tokenizer::from_model_dir(folder.path(), 16, 6)
        };
        assert_eq!(read("null").unwrap().encode("ca").unwrap(), [2]);
        assert_eq!(read("0.0").unwrap().encode("ca").unwrap(), [2]);
        let problem = read("0.1").unwrap_err().problem;
        assert!(problem.contains("model.dropout is 0.1, which makes tokens random"), "{problem}");
    }

    /// Cut in its decoder, the library panics.
    #[test]
    fn a_file_that_is_cut_is_no_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = r#""decoder":{"type":"ByteLevel","add_prefix_space":true}"#;
        let whole = WORDS.replace(r#""decoder":null"#, decoder);
        let read = |text: &str| {
            std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
            Tokenizer::from_model_dir(folder.path(), 16, 6)
        };
        let inside = whole.find(decoder).unwrap() + decoder.len() - 3;
        for cut in (0..whole.len()).step_by(97).chain([inside]) {
            let problem = read(&whole[..cut]).unwrap_err().problem;
            assert!(problem.contains("is not a tokenizer"), "cut at {cut}: {problem}");
        }
    }

    #[test]
    fn long_texts_keep_their_end() {
        assert_eq!(tokenizer(4).encode("a cat a cat a cat").unwrap(), [1, 4, 5, 3]);
    }

    #[test]
    fn prompts_have_as_many_tokens_as_asked_for() {
        let prompt = |text: &str, count| tokenizer(8).encode_with_length(text, count);
        assert_eq!(prompt("a cat", 4).unwrap(), (vec![1, 4, 5, 5, 5, 3], 1));
        assert_eq!(prompt("a cat a cat a cat", 3).unwrap(), (vec![1, 4, 5, 4, 3], 1));
        let error = prompt("cat", 7).unwrap_err().problem;
        assert!(
            error.contains("needs 9 tokens for a prompt of 7, but the model reads 8"),
            "{error}"
        );
        assert!(prompt("", 4).unwrap_err().problem.contains("has no token for ``"));
        let whole = padded(8, &[]).unwrap().encode_with_length("cat", 2).unwrap();
        assert_eq!(whole, (vec![1, 5, 5, 3, 0, 0, 0, 0], 1));
    }

    #[test]
    fn ids_beyond_the_model_are_refused() {
        assert!(tokenizer(16).encode("rare").unwrap_err().problem.contains("token 9"));
    }

    #[test]
    fn the_error_of_a_missing_file_says_how_to_create_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            Tokenizer::from_model_dir(folder.path(), 16, 6)
                .unwrap_err()
                .problem
                .contains("save_pretrained")
        );
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(
            Tokenizer::from_model_dir(folder.path(), 16, 6)
                .unwrap_err()
                .problem
                .contains("is not a tokenizer")
        );
    }
}
