//! Decodes PNG, JPEG and WebP to 8-bit RGB, like Pillow's `ImageOps.exif_transpose` and
//! `convert("RGB")`.
//!
//! As in Pillow, transparency is dropped and not blended. 16-bit channels keep their high byte.
//! CMYK JPEGs are converted by `(255 − c)(255 − k) / 255`. Pixels of JPEGs may differ from Pillow's
//! by one level, because decoders implement the inverse cosine transform differently, and by a few
//! where colours are subsampled.

use std::io::Cursor;

use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, Luma, RgbImage,
};
use lethe_shared::image_file::{self, Format, MAX_PIXELS};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::orientation;

/// The most memory that a decoder may allocate, bytes: eight per pixel, for 16-bit RGBA.
const MAX_ALLOCATION: u64 = 8 * MAX_PIXELS;

/// Decodes an image, whose format is detected from its bytes. A damaged image is refused, as by
/// Pillow, and not completed with grey, unless no decoder notices the damage: bits that changed
/// inside the coded data of a JPEG, or its early end before an end marker.
///
/// # Errors
/// A message that completes a sentence about the image, such as "cannot be decoded".
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    image_file::check(bytes)?;
    // Decoders panic on some damaged files. Nothing that they have changed is used afterwards.
    std::panic::catch_unwind(|| decode_checked(bytes))
        .unwrap_or_else(|_| Err("cannot be decoded: it is damaged; get the whole file".to_owned()))
}

fn decode_checked(bytes: &[u8]) -> Result<RgbImage, String> {
    let format = Format::of(bytes).ok_or("is neither PNG, JPEG nor WebP")?;
    let mut decoded = match format {
        Format::Png => without_transparency(bytes, by_image(bytes, ImageFormat::Png)?),
        Format::Jpeg => jpeg(bytes)?,
        Format::WebP => by_image(bytes, ImageFormat::WebP)?,
    };
    decoded.apply_orientation(orientation::of(format, bytes));
    let rgb = to_rgb(decoded);
    if rgb.width() == 0 || rgb.height() == 0 { Err("has no pixels".to_owned()) } else { Ok(rgb) }
}

fn broken(error: impl std::fmt::Display) -> String {
    format!("cannot be decoded: {error}")
}

fn check_size(width: u64, height: u64) -> Result<(), String> {
    if width * height > MAX_PIXELS {
        return Err(format!("has {width} × {height} pixels, at most {MAX_PIXELS} in all are read"));
    }
    Ok(())
}

fn by_image(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage, String> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    DynamicImage::from_decoder(decoder).map_err(broken)
}

/// Removes the transparency that the decoder adds to a 16-bit grey PNG with a transparent level,
/// because the values of a grey image with an alpha channel are converted otherwise.
fn without_transparency(bytes: &[u8], decoded: DynamicImage) -> DynamicImage {
    // The colour type is at the same place in every PNG; 0 is grey without alpha.
    match decoded {
        DynamicImage::ImageLumaA16(image) if bytes.get(25) == Some(&0) => {
            let (width, height) = image.dimensions();
            let grey = |x, y| Luma([image.get_pixel(x, y).0[0]]);
            DynamicImage::ImageLuma16(image::ImageBuffer::from_fn(width, height, grey))
        }
        other => other,
    }
}

/// Decodes a JPEG. The decoder behind `image` is asked directly, because there it fills parts that
/// it finds damaged with grey.
fn jpeg(bytes: &[u8]) -> Result<DynamicImage, String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(broken)?;
    let (width, height) = decoder.dimensions().ok_or("has no size")?;
    check_size(width as u64, height as u64)?;
    let is_grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let wanted = if is_grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let pixels = decoder.decode().map_err(broken)?;
    // Both sides are below 2^16.
    let (width, height) = (width as u32, height as u32);
    let decoded = if is_grey {
        GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    decoded.ok_or_else(|| "cannot be decoded: it has too few pixels".to_owned())
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

    /// The decoder takes the segment for the end of the coded data, and loses the last pixels.
    #[test]
    fn a_jpeg_with_a_segment_behind_its_coded_data_is_refused() {
        let whole = encoded(ImageFormat::Jpeg);
        let data = &whole[..whole.len() - 2];
        let bytes = [data, b"\xff\xe5\0\x04ab\xff\xd9"].concat();
        assert!(decode(&bytes).unwrap_err().contains("cannot be decoded"));
    }

    /// Pillow clips the values of a 16-bit grey image, with a transparent level or without.
    #[test]
    fn a_transparent_level_does_not_change_a_deep_grey_image() {
        let values = [7u16, 200, 300, 65_535];
        let native: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let plain = png(&native, 4, 1, ExtendedColorType::L16);
        let mut crc = flate2::Crc::new();
        crc.update(b"tRNS\0\x07");
        // Behind the header, which ends at byte 33.
        let transparent =
            [&plain[..33], b"\0\0\0\x02tRNS\0\x07", &crc.sum().to_be_bytes(), &plain[33..]]
                .concat();
        for bytes in [plain, transparent] {
            let decoded = decode(&bytes).unwrap();
            let grey: Vec<u8> = decoded.pixels().map(|pixel| pixel.0[0]).collect();
            assert_eq!(grey, [7, 200, 255, 255]);
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
