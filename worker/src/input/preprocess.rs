//! The model's image preprocessing, from `preprocessor_config.json` or `processor_config.json`
//! (`transformers`), or from `open_clip_config.json`.
//!
//! Pixels equal those of `CLIPImageProcessor` and `SiglipImageProcessor` (transformers 4.57) and
//! open_clip's `image_transform`: resize like Pillow, crop the centre, divide by 255, subtract the mean, divide
//! by the standard deviation, in float32.

use std::fmt;
use std::path::Path;

use image::RgbImage;
use serde_json::Value;

use super::error::Error;
use super::json_file;
use super::picture;
use super::resize::{Filter, resize};

/// CLIP's colour statistics, the defaults of both libraries.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
const IMAGE_PROCESSOR_FILE: &str = "preprocessor_config.json";
/// Since transformers 5, this file has the settings of the image processor too.
const PROCESSOR_FILE: &str = "processor_config.json";
const OPEN_CLIP_FILE: &str = "open_clip_config.json";
/// Largest configuration file, bytes.
const MAX_FILE: u64 = 16 << 20;
/// Largest side of a model's input image, pixels.
const MAX_SIDE: u32 = 4096;

/// How an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resize {
    /// The image keeps its size.
    None,
    /// The shorter edge becomes this long; the aspect ratio is kept.
    Shortest(u32),
    /// The image gets this height and width; the aspect ratio may change.
    Exactly(u32, u32),
}

/// How half of an odd number of excess pixels is rounded when the centre is cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CropRounding {
    /// Down (`transformers`).
    Down,
    /// To the nearest even number (torchvision, which open_clip uses).
    ToEven,
}

impl CropRounding {
    fn offset(self, excess: i64) -> i64 {
        match self {
            Self::Down => excess.div_euclid(2),
            Self::ToEven => (excess as f64 / 2.0).round_ties_even() as i64,
        }
    }
}

/// Converts encoded images to a model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    resize: Resize,
    filter: Filter,
    side: u32,
    crop_rounding: CropRounding,
    scale: f64,
    mean: [f64; 3],
    deviation: [f64; 3],
}

impl Preprocessor {
    /// Reads the configuration in a model's folder, in transformers' files if there are any.
    ///
    /// # Errors
    /// When there is no configuration, when two of transformers' files differ, or when images are
    /// anything other than squares that are resized, cropped and normalized.
    pub fn from_model_dir(folder: &Path) -> Result<Self, Error> {
        let open_clip = || Self::read_file(folder, OPEN_CLIP_FILE, |json| Some(open_clip(json)));
        match Self::find_transformers(folder)? {
            Some(found) => Ok(found),
            None => open_clip()?.ok_or_else(|| missing(folder, OPEN_CLIP_FILE)),
        }
    }

    /// Reads the configuration for weights of transformers.
    ///
    /// # Errors
    /// As [`from_model_dir`](Self::from_model_dir).
    pub fn of_transformers(folder: &Path) -> Result<Self, Error> {
        Self::find_transformers(folder)?.ok_or_else(|| missing(folder, IMAGE_PROCESSOR_FILE))
    }

    /// Reads the configuration for weights of open_clip: its own if there is one, otherwise that of
    /// transformers.
    ///
    /// # Errors
    /// As [`from_model_dir`](Self::from_model_dir).
    pub fn of_open_clip(folder: &Path) -> Result<Self, Error> {
        let own = |json: &Value| json["preprocess_cfg"].is_object().then(|| open_clip(json));
        match Self::read_file(folder, OPEN_CLIP_FILE, own)? {
            Some(found) => Ok(found),
            None => Self::from_model_dir(folder),
        }
    }

    fn find_transformers(folder: &Path) -> Result<Option<Self>, Error> {
        let nested =
            |json: &Value| json.get("image_processor").filter(|of| !of.is_null()).map(hugging_face);
        let plain = |json: &Value| Some(hugging_face(json));
        let found = (
            Self::read_file(folder, IMAGE_PROCESSOR_FILE, plain)?,
            Self::read_file(folder, PROCESSOR_FILE, nested)?,
        );
        match found {
            (Some(found), Some(other)) if found != other => Err(Error::new(
                folder.display().to_string(),
                format!(
                    "{IMAGE_PROCESSOR_FILE} and `image_processor` in {PROCESSOR_FILE} differ; remove the one that the model was not trained with"
                ),
            )),
            (found, other) => Ok(found.or(other)),
        }
    }

    /// Reads one file; `None` when it does not exist, or has no configuration of images.
    fn read_file(
        folder: &Path,
        name: &str,
        read: impl FnOnce(&Value) -> Option<Result<Self, String>>,
    ) -> Result<Option<Self>, Error> {
        let path = folder.join(name);
        let read = || match json_file::read(&path, MAX_FILE)? {
            None => Ok(None),
            Some(json) => read(&json).transpose()?.map(Self::check).transpose(),
        };
        read().map_err(|problem| Error::new(path.display().to_string(), problem))
    }

    fn check(self) -> Result<Self, String> {
        if !(1..=MAX_SIDE).contains(&self.side) {
            return Err(format!(
                "the image size is {} pixels, expected 1 to {MAX_SIDE}",
                self.side
            ));
        }
        // Float32 has a smaller range than the numbers of a configuration. All other levels are
        // between these two.
        let is_finite = |channel| [0, 255].map(self.level(channel)).iter().all(|v| v.is_finite());
        if !(0..3).all(is_finite) {
            return Err(
                "mean, standard deviation and scale must give finite pixels in float32; a standard deviation is not 0"
                    .to_owned(),
            );
        }
        Ok(self)
    }

    /// Returns the side of the square input, in pixels.
    pub fn side(&self) -> usize {
        self.side as usize
    }

    /// Decodes and preprocesses an image: `[3, side, side]`, row-major.
    ///
    /// # Errors
    /// A message when the image cannot be decoded or resized.
    pub fn pixels(&self, encoded: &[u8]) -> Result<Vec<f32>, String> {
        let image = picture::decode(encoded)?;
        let image = match self.resize {
            Resize::None => image,
            Resize::Exactly(height, width) => resize(&image, width, height, self.filter),
            Resize::Shortest(edge) => {
                let (width, height) = image.dimensions();
                let (short, long) = (width.min(height), width.max(height));
                let stretched = u64::from(edge) * u64::from(long) / u64::from(short);
                let stretched = u32::try_from(stretched)
                    .ok()
                    .filter(|&s| s <= 64 * MAX_SIDE)
                    .ok_or("has too extreme an aspect ratio to be resized")?;
                let (width, height) =
                    if width <= height { (edge, stretched) } else { (stretched, edge) };
                resize(&image, width, height, self.filter)
            }
        };
        Ok(self.normalize(&self.centre_crop(&image)))
    }

    /// Crops the central square, which is padded with black where the image is smaller.
    fn centre_crop(&self, image: &RgbImage) -> RgbImage {
        let side = i64::from(self.side);
        let (width, height) = (i64::from(image.width()), i64::from(image.height()));
        if (width, height) == (side, side) {
            return image.clone();
        }
        let (left, top) =
            (self.crop_rounding.offset(width - side), self.crop_rounding.offset(height - side));
        RgbImage::from_fn(self.side, self.side, |x, y| {
            let (x, y) = (i64::from(x) + left, i64::from(y) + top);
            let inside = (0..width).contains(&x) && (0..height).contains(&y);
            if inside { *image.get_pixel(x as u32, y as u32) } else { image::Rgb([0; 3]) }
        })
    }

    fn normalize(&self, image: &RgbImage) -> Vec<f32> {
        let mut pixels = Vec::with_capacity(3 * self.side() * self.side());
        for channel in 0..3 {
            let level = self.level(channel);
            pixels.extend(image.pixels().map(|pixel| level(pixel.0[channel])));
        }
        pixels
    }

    /// Returns what the levels of a channel become.
    fn level(&self, channel: usize) -> impl Fn(u8) -> f32 + use<> {
        let (mean, deviation) = (self.mean[channel] as f32, self.deviation[channel] as f32);
        let scale = self.scale;
        move |level| ((f64::from(level) * scale) as f32 - mean) / deviation
    }
}

impl fmt::Display for Preprocessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resize {
            Resize::None => write!(f, "not resized")?,
            Resize::Shortest(edge) => {
                write!(f, "shorter edge resized to {edge} ({})", self.filter.name())?;
            }
            Resize::Exactly(height, width) => {
                write!(f, "resized to {height} × {width} ({})", self.filter.name())?;
            }
        }
        let [r, g, b] = self.mean;
        let [dr, dg, db] = self.deviation;
        write!(
            f,
            ", centre cropped to {0} × {0}, mean {r:.3} {g:.3} {b:.3}, deviation {dr:.3} {dg:.3} {db:.3}",
            self.side
        )?;
        // Pixels are 0 to 255 in a file.
        if (self.scale * 255.0 - 1.0).abs() < 1e-6 {
            Ok(())
        } else {
            write!(f, ", scale {}", self.scale)
        }
    }
}

/// The error of a folder without a configuration of images.
fn missing(folder: &Path, wanted: &str) -> Error {
    let or = if wanted == OPEN_CLIP_FILE { ", nor open_clip_config.json" } else { "" };
    Error::new(
        folder.display().to_string(),
        format!(
            "contains neither {IMAGE_PROCESSOR_FILE} nor a {PROCESSOR_FILE} with `image_processor`{or}; one of them is required to prepare \
             images as the model expects"
        ),
    )
}

/// Checks that all keys are understood; `null` counts as absent.
fn check_keys(at: &str, json: &Value, known: &[&str]) -> Result<(), String> {
    let unknown = json.as_object().and_then(|object| {
        object.iter().find(|(key, value)| !value.is_null() && !known.contains(&key.as_str()))
    });
    match unknown {
        None => Ok(()),
        Some((key, _)) => Err(format!(
            "`{at}{}` is not an option that Lethe knows, and may change how images are prepared; remove it if they do not depend on it",
            key.escape_debug()
        )),
    }
}

fn flag(json: &Value, key: &str, default: bool) -> Result<bool, String> {
    match &json[key] {
        Value::Null => Ok(default),
        Value::Bool(value) => Ok(*value),
        other => Err(format!("{key} is {other}, expected true or false")),
    }
}

fn triple(json: &Value, key: &str, default: [f64; 3]) -> Result<[f64; 3], String> {
    let value = &json[key];
    if value.is_null() {
        return Ok(default);
    }
    let numbers: Option<Vec<f64>> =
        value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect());
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| format!("{key} is {value}, expected three numbers"))
}

/// A size that is a number, `{"shortest_edge": n}` or `{"height": n, "width": n}`: (height, width,
/// shortest edge).
fn size(json: &Value, key: &str) -> Result<Option<Resize>, String> {
    let number = |value: &Value| {
        value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0 && n <= MAX_SIDE)
    };
    let value = &json[key];
    if value.is_null() {
        return Ok(None);
    }
    let wrong =
        || format!("{key} is {value}; expected a number, shortest_edge, or height and width");
    let keys: Vec<&str> =
        value.as_object().into_iter().flatten().map(|(key, _)| &key[..]).collect();
    let found = if value.is_number() {
        number(value).map(Resize::Shortest)
    } else if keys == ["shortest_edge"] {
        number(&value["shortest_edge"]).map(Resize::Shortest)
    } else if keys.len() == 2 {
        number(&value["height"])
            .zip(number(&value["width"]))
            .map(|(height, width)| Resize::Exactly(height, width))
    } else {
        None
    };
    found.map(Some).ok_or_else(wrong)
}

/// Names of CLIP's image processor: its older name, and its variants on torchvision and Pillow.
const PROCESSORS: [&str; 4] = [
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
];
/// Names of SigLIP's image processor.
const SIGLIP_PROCESSORS: [&str; 3] =
    ["SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"];

/// Keys of an image processor's configuration. Those not read below say how pixels are computed or
/// returned, which does not change them.
const PROCESSOR_KEYS: &[&str] = &[
    "_processor_class",
    "_valid_processor_keys",
    "auto_map",
    "crop_size",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "feature_extractor_type",
    "image_mean",
    "image_processor_type",
    "image_std",
    "input_data_format",
    "processor_class",
    "resample",
    "rescale_factor",
    "return_tensors",
    "size",
    "transformers_version",
];

/// Keys whose `null` means something else to each version of transformers: off, or the default.
const NOT_NULL: [&str; 6] =
    ["do_center_crop", "do_normalize", "do_rescale", "do_resize", "resample", "rescale_factor"];

/// Reads the configuration of a `CLIPImageProcessor` or a `SiglipImageProcessor`, under any of their
/// names.
fn hugging_face(json: &Value) -> Result<Preprocessor, String> {
    if !json.is_object() {
        return Err("is not the configuration of an image processor".to_owned());
    }
    let kind = json["image_processor_type"]
        .as_str()
        .or(json["feature_extractor_type"].as_str())
        .unwrap_or("CLIPImageProcessor");
    let is_siglip = SIGLIP_PROCESSORS.contains(&kind);
    if !is_siglip && !PROCESSORS.contains(&kind) {
        return Err(format!(
            "is for a {}; Lethe supports CLIPImageProcessor and SiglipImageProcessor",
            kind.escape_debug()
        ));
    }
    check_keys("", json, PROCESSOR_KEYS)?;
    if let Some(key) = NOT_NULL.iter().find(|key| json.get(key).is_some_and(Value::is_null)) {
        return Err(format!(
            "{key} is null, which versions of transformers read differently; give it a value or remove it"
        ));
    }
    if flag(json, "do_pad", false)? {
        return Err("do_pad is true; Lethe supports images that are resized and cropped".to_owned());
    }
    let default = if is_siglip { Resize::Exactly(224, 224) } else { Resize::Shortest(224) };
    let wanted = size(json, "size")?.unwrap_or(default);
    let resize = if flag(json, "do_resize", true)? { wanted } else { Resize::None };
    let square = |found: Resize| match found {
        Resize::Shortest(side) => Ok(side),
        Resize::Exactly(height, width) if height == width => Ok(height),
        _ => Err("images must be square".to_owned()),
    };
    // SigLIP's processor crops nothing.
    let side = if !is_siglip && flag(json, "do_center_crop", true)? {
        // A plain number gives both sides of the crop.
        if json["crop_size"].is_object() && json["crop_size"].get("height").is_none() {
            return Err(format!("crop_size is {}; expected height and width", json["crop_size"]));
        }
        square(size(json, "crop_size")?.unwrap_or(Resize::Exactly(224, 224)))?
    } else {
        match resize {
            Resize::Exactly(height, width) if height == width => height,
            _ => {
                return Err(
                    "without a centre crop, `size` must have equal height and width".to_owned()
                );
            }
        }
    };
    let filter = match &json["resample"] {
        Value::Null => Filter::Bicubic,
        value => value
            .as_u64()
            .and_then(Filter::from_number)
            .ok_or_else(|| format!("resample is {value}, expected 0 to 5"))?,
    };
    let scale = match (flag(json, "do_rescale", true)?, &json["rescale_factor"]) {
        (false, _) => 1.0,
        (true, Value::Null) => 1.0 / 255.0,
        (true, value) => {
            value.as_f64().ok_or_else(|| format!("rescale_factor is {value}, expected a number"))?
        }
    };
    let (mean, deviation) = if flag(json, "do_normalize", true)? {
        let (mean, deviation) =
            if is_siglip { ([0.5; 3], [0.5; 3]) } else { (CLIP_MEAN, CLIP_DEVIATION) };
        (triple(json, "image_mean", mean)?, triple(json, "image_std", deviation)?)
    } else {
        ([0.0; 3], [1.0; 3])
    };
    Ok(Preprocessor {
        resize,
        filter,
        side,
        crop_rounding: CropRounding::Down,
        scale,
        mean,
        deviation,
    })
}

/// Reads `preprocess_cfg` of open_clip's configuration.
fn open_clip(json: &Value) -> Result<Preprocessor, String> {
    let settings = &json["preprocess_cfg"];
    const KEYS: &[&str] =
        &["size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"];
    check_keys("preprocess_cfg.", settings, KEYS)?;
    let name = |key: &str, known: &[&'static str]| match &settings[key] {
        Value::Null => Ok(known[0]),
        value => known.iter().find(|name| *value == ***name).copied().ok_or_else(|| {
            format!("preprocess_cfg.{key} is {value}, expected {}", known.join(" or "))
        }),
    };
    name("mode", &["RGB"])?;
    let size = [&settings["size"], &json["model_cfg"]["vision_cfg"]["image_size"]]
        .into_iter()
        .find(|value| !value.is_null());
    let side = match size {
        None => 224,
        Some(Value::Array(sides)) if sides.len() == 2 && sides[0] == sides[1] => {
            sides[0].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
        }
        Some(value) => value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| format!("image size is {value}, expected one number"))?,
    };
    let filter = match name("interpolation", &["bicubic", "bilinear"])? {
        "bilinear" => Filter::Bilinear,
        _ => Filter::Bicubic,
    };
    let resize = match name("resize_mode", &["shortest", "squash"])? {
        "squash" => Resize::Exactly(side, side),
        _ => Resize::Shortest(side),
    };
    let (mean, deviation) =
        (triple(settings, "mean", CLIP_MEAN)?, triple(settings, "std", CLIP_DEVIATION)?);
    Ok(Preprocessor {
        resize,
        filter,
        side,
        crop_rounding: CropRounding::ToEven,
        scale: 1.0 / 255.0,
        mean,
        deviation,
    })
}

#[cfg(test)]
mod tests;
