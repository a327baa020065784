//! Thumbnails of a concept's first forget images, for the report.

use std::fs::File;
use std::io::{BufReader, Read};

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{ExtendedColorType, RgbImage};
use lethe_shared::printable::printable;
use lethe_shared::reference::{ArtifactRef, FileSpec};
use lethe_shared::webdataset::Archive;

use super::error::Error;
use super::job_context::JobContext;
use crate::input::{self, Samples, picture};

/// The most images per concept.
const MAX_IMAGES: usize = 3;
/// Width and height of each, pixels.
const SIDE: u32 = 64;
/// JPEG quality, which gives about 4 kB per concept.
const QUALITY: u8 = 85;

/// Writes thumbnails of the first images of some shards as one artifact; `None` when there are no
/// images.
pub(super) fn of(
    context: JobContext<'_>,
    shards: &[FileSpec],
) -> Result<Option<ArtifactRef>, Error> {
    let mut pictures = Vec::new();
    for shard in shards {
        if pictures.len() == MAX_IMAGES {
            break;
        }
        let (path, name) = (context.fetch(shard)?, context.name(shard));
        let file = File::open(&path)
            .map_err(|error| Error::environment(format!("cannot read {name}: {error}")))?;
        let found = first(BufReader::new(file), &name, MAX_IMAGES - pictures.len());
        pictures.extend(found.map_err(|problem| context.unusable(shard, &path, &problem))?);
    }
    if pictures.is_empty() { Ok(None) } else { Ok(Some(context.put(strip(&pictures)?)?)) }
}

/// Reads the first images of a shard.
fn first(shard: impl Read, name: &str, most: usize) -> Result<Vec<RgbImage>, input::Error> {
    let mut archive = Archive::new(shard);
    let picture = |sample: Result<input::webdataset::Sample, input::Error>| {
        let sample = sample?;
        picture::decode(&sample.image).map_err(|problem| {
            input::Error::new(
                name,
                format!("the image of sample `{}` {problem}", printable(&sample.key)),
            )
        })
    };
    Samples::read(&mut archive, name, true)?.take(most).map(picture).collect()
}

/// Encodes the central squares of some images, side by side, as a JPEG.
fn strip(pictures: &[RgbImage]) -> Result<Vec<u8>, Error> {
    let mut strip = RgbImage::new(SIDE * pictures.len() as u32, SIDE);
    for (picture, place) in pictures.iter().zip(0u32..) {
        let side = picture.width().min(picture.height());
        let (left, top) = ((picture.width() - side) / 2, (picture.height() - side) / 2);
        let square = imageops::crop_imm(picture, left, top, side, side).to_image();
        imageops::replace(
            &mut strip,
            &imageops::resize(&square, SIDE, SIDE, FilterType::Triangle),
            i64::from(place * SIDE),
            0,
        );
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode(strip.as_raw(), strip.width(), strip.height(), ExtendedColorType::Rgb8)
        .map_err(|error| Error::Input(format!("cannot encode the thumbnails: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn images_are_cropped_to_squares_and_placed_side_by_side() {
        let wide = RgbImage::from_fn(300, 100, |x, _| {
            if (100..200).contains(&x) { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) }
        });
        let small = RgbImage::from_pixel(3, 9, Rgb([0, 250, 0]));
        let bytes = strip(&[wide, small]).unwrap();
        let back = picture::decode(&bytes).unwrap();
        assert_eq!((back.width(), back.height()), (2 * SIDE, SIDE));
        let near = |x: u32, expected: [u8; 3]| {
            back.get_pixel(x, 32)
                .0
                .iter()
                .zip(expected)
                .all(|(&is, should)| is.abs_diff(should) < 20)
        };
        assert!(near(8, [250, 0, 0]) && near(56, [250, 0, 0]) && near(96, [0, 250, 0]));
        assert!(bytes.len() < 8 << 10, "{} bytes", bytes.len());
    }

    #[test]
    fn only_the_first_images_are_read() {
        let shard = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../jobs/emoji/forget/rocket.tar");
        let read = |most| first(File::open(&shard).unwrap(), "rocket", most).unwrap().len();
        assert_eq!((read(1), read(3)), (1, 3));
    }
}
