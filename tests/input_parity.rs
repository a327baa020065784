//! Decoding, resizing, preprocessing and tokenising against Pillow 11.3, transformers 4.57 and the
//! tokenizers library (`input/make.py` wrote the expected values).
//!
//! Results are exact except for lossy formats, whose decoders differ by single levels.

use std::io::Cursor;
use std::path::PathBuf;

use image::{ImageFormat, RgbImage};
use lethe_shared::digest::Digest;
use lethe_worker::input::resize::{Filter, resize};
use lethe_worker::input::{Preprocessor, Tokenizer, picture};
use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("input")
}

fn expected(section: &str) -> Vec<Value> {
    let text = std::fs::read(fixtures().join("expected.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()[section].as_array().unwrap().clone()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn size(value: &Value) -> (u32, u32) {
    let side = |i: usize| value[i].as_u64().unwrap() as u32;
    (side(0), side(1))
}

/// Returns an image from the linear congruential generator of `make.py`.
fn noise(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let values = (0..3 * width * height).map(|_| next()).collect();
    RgbImage::from_raw(width, height, values).unwrap()
}

#[test]
fn decoding() {
    for case in expected("decoding") {
        let name = text(&case, "file");
        let decoded = picture::decode(&std::fs::read(fixtures().join(name)).unwrap()).unwrap();
        assert_eq!(
            (u64::from(decoded.width()), u64::from(decoded.height())),
            (case["width"].as_u64().unwrap(), case["height"].as_u64().unwrap()),
            "{name}"
        );
        match case["expected"].as_str() {
            None => assert_eq!(
                Digest::of(decoded.as_raw()).to_string(),
                text(&case, "sha256"),
                "{name}"
            ),
            Some(file) => {
                let theirs = image::open(fixtures().join(file)).unwrap().into_rgb8();
                let differences: Vec<u32> = decoded
                    .as_raw()
                    .iter()
                    .zip(theirs.as_raw())
                    .map(|(a, b)| u32::from(a.abs_diff(*b)))
                    .collect();
                let most = differences.iter().max().copied().unwrap();
                let mean = f64::from(differences.iter().sum::<u32>()) / differences.len() as f64;
                // Measured: 3 levels at most and 0.41 on average with chroma subsampling, 2 and
                // 0.02 without.
                assert!(
                    most <= 4 && mean <= 0.5,
                    "{name}: at most {most} levels, {mean:.3} on average"
                );
            }
        }
    }
}

#[test]
fn resizing_is_bit_exact() {
    for case in expected("resizing") {
        let ((width, height), (to_width, to_height)) = (size(&case["from"]), size(&case["to"]));
        let filter = Filter::from_name(text(&case, "filter")).unwrap();
        let resized = resize(
            &noise(width, height, case["seed"].as_u64().unwrap() as u32),
            to_width,
            to_height,
            filter,
        );
        assert_eq!(Digest::of(resized.as_raw()).to_string(), text(&case, "sha256"), "{case}");
    }
}

#[test]
fn preprocessing_is_bit_exact() {
    for case in expected("preprocessing") {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("preprocessor_config.json"), case["config"].to_string())
            .unwrap();
        let preprocessor = Preprocessor::from_model_dir(folder.path()).unwrap();
        let (width, height) = size(&case["image"]);
        let mut encoded = Cursor::new(Vec::new());
        noise(width, height, 7).write_to(&mut encoded, ImageFormat::Png).unwrap();
        let pixels = preprocessor.pixels(encoded.get_ref()).unwrap();
        let side = preprocessor.side();
        for (channel, value) in case["first"].as_array().unwrap().iter().enumerate() {
            let ours = pixels[channel * side * side + 3 * side + 5];
            assert!((f64::from(ours) - value.as_f64().unwrap()).abs() < 1e-6, "{case}: {ours}");
        }
        let bytes: Vec<u8> = pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(Digest::of(&bytes).to_string(), text(&case, "sha256"), "{case}");
    }
}

#[test]
fn tokenising_gives_the_same_ids() {
    let tokenizer = Tokenizer::from_model_dir(&fixtures().join("bpe"), 77, 700).unwrap();
    for case in expected("tokenising") {
        let theirs: Vec<u32> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text(&case, "text")).unwrap(), theirs, "{case}");
    }
}
