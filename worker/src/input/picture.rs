//! Decodes PNG, JPEG and WebP to 8-bit RGB, like Pillow's `ImageOps.exif_transpose` and
//! `convert("RGB")`.
//!
//! As in Pillow, transparency is dropped and not blended. 16-bit channels keep their high byte.
//! CMYK JPEGs are converted by `(255 − c)(255 − k) / 255`. Pixels of JPEGs may differ from Pillow's
//! by one level, because decoders implement the inverse cosine transform differently.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use lethe_shared::image_file::{self, Format, MAX_PIXELS};

/// The most memory that a decoder may allocate, bytes: eight per pixel, for 16-bit RGBA.
const MAX_ALLOCATION: u64 = 8 * MAX_PIXELS;

/// Decodes an image, whose format is detected from its bytes. A damaged image is refused, as by
/// Pillow, and not completed with grey.
///
/// # Errors
/// A message that completes a sentence about the image, such as "cannot be decoded".
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    image_file::check(bytes)?;
    let format = match Format::of(bytes) {
        Some(Format::Png) => ImageFormat::Png,
        Some(Format::Jpeg) => ImageFormat::Jpeg,
        Some(Format::WebP) => ImageFormat::WebP,
        None => return Err("is neither PNG, JPEG nor WebP".to_owned()),
    };
    let broken = |error: image::ImageError| format!("cannot be decoded: {error}");
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("has {width} × {height} pixels, at most {MAX_PIXELS} in all are read"));
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(broken)?;
    decoded.apply_orientation(orientation);
    let rgb = to_rgb(decoded);
    if rgb.width() == 0 || rgb.height() == 0 { Err("has no pixels".to_owned()) } else { Ok(rgb) }
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    let high = |value: u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageRgb16(image) => {
            RgbImage::from_fn(image.width(), image.height(), |x, y| {
                image::Rgb(image.get_pixel(x, y).0.map(high))
            })
        }
        DynamicImage::ImageRgba16(image) => {
            RgbImage::from_fn(image.width(), image.height(), |x, y| {
                let [r, g, b, _] = image.get_pixel(x, y).0.map(high);
                image::Rgb([r, g, b])
            })
        }
        DynamicImage::ImageLumaA16(image) => {
            RgbImage::from_fn(image.width(), image.height(), |x, y| {
                image::Rgb([high(image.get_pixel(x, y).0[0]); 3])
            })
        }
        // Pillow reads 16-bit grey values as integers and clips them: everything above 255 becomes
        // white.
        DynamicImage::ImageLuma16(image) => {
            RgbImage::from_fn(image.width(), image.height(), |x, y| {
                image::Rgb([image.get_pixel(x, y).0[0].min(255) as u8; 3])
            })
        }
        other => other.into_rgb8(),
    }
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;

    fn png(pixels: &[u8], width: u32, height: u32, kind: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(pixels, width, height, kind)
            .unwrap();
        bytes
    }

    #[test]
    fn transparency_is_dropped_not_blended() {
        let bytes = png(&[10, 20, 30, 0, 1, 2, 3, 255], 2, 1, ExtendedColorType::Rgba8);
        assert_eq!(decode(&bytes).unwrap().into_raw(), [10, 20, 30, 1, 2, 3]);
        let bytes = png(&[7, 0, 9, 128], 2, 1, ExtendedColorType::La8);
        assert_eq!(decode(&bytes).unwrap().into_raw(), [7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = png(&[1, 2, 3], 1, 1, ExtendedColorType::Rgb8);
        assert!(decode(b"").is_err());
        assert!(decode(b"GIF89a and more").unwrap_err().contains("is a GIF image"));
        for cut in [9, 20, good.len() - 15] {
            assert!(decode(&good[..cut]).is_err(), "cut at {cut}");
        }
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let noise = RgbImage::from_fn(64, 48, |x, y| {
            image::Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, (x ^ y) as u8])
        });
        noise.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_damaged_image_is_refused_in_every_format() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let whole = encoded(format);
            assert_eq!(decode(&whole).unwrap().dimensions(), (64, 48), "{format:?}");
            // Only the last chunk of a PNG, which holds no pixels, may be missing.
            let rest = if format == ImageFormat::Png { 13 } else { 1 };
            for cut in (0..=whole.len() - rest).step_by(7).chain([whole.len() - rest]) {
                assert!(decode(&whole[..cut]).is_err(), "{format:?} cut at {cut}");
            }
        }
        let whole = encoded(ImageFormat::Png);
        for at in (8..whole.len() - 12).step_by(5) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_wide_image_is_read() {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(20_000, 400).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        assert_eq!(decode(bytes.get_ref()).unwrap().dimensions(), (20_000, 400));
    }

    #[test]
    fn an_implausibly_large_image_is_refused() {
        // A header that claims 2^31 pixels per side.
        let mut bytes = png(&[1, 2, 3], 1, 1, ExtendedColorType::Rgb8);
        bytes[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        assert!(decode(&bytes).is_err());
    }
}
