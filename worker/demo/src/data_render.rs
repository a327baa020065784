//! SVG to pixels, and pixels to the smallest lossless file.

use anyhow::{Context, Result, ensure};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree};

/// Width and height of every drawing, the demo model's input size.
pub(crate) const SIDE: u32 = 48;

/// An encoded drawing.
pub(crate) struct Encoded {
    pub(crate) extension: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// Draws an SVG on white, centred, its aspect kept: RGB bytes, row by row.
pub(crate) fn render(svg: &str) -> Result<Vec<u8>> {
    let tree = Tree::from_str(svg, &Options::default()).context("parse the SVG")?;
    let mut pixmap = Pixmap::new(SIDE, SIDE).context("allocate a pixmap")?;
    pixmap.fill(Color::WHITE);
    let side = SIDE as f32;
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = side / width.max(height);
    let transform = Transform::from_row(
        scale,
        0.0,
        0.0,
        scale,
        (side - width * scale) / 2.0,
        (side - height * scale) / 2.0,
    );
    resvg::render(&tree, transform, &mut pixmap.as_mut());
    // The ground is opaque white, so every pixel is opaque and premultiplied equals plain.
    Ok(pixmap.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
}

/// Whether a drawing shows nothing: one colour all over.
pub(crate) fn is_blank(pixels: &[u8]) -> bool {
    pixels.chunks_exact(3).all(|pixel| pixel == &pixels[..3])
}

/// Encodes without loss as WebP, PNG or PNG with a palette, whichever is smallest.
pub(crate) fn encode(pixels: &[u8]) -> Result<Encoded> {
    let mut webp = Vec::new();
    WebPEncoder::new_lossless(&mut webp).write_image(
        pixels,
        SIDE,
        SIDE,
        ExtendedColorType::Rgb8,
    )?;
    let mut candidates = vec![Encoded { extension: "webp", bytes: webp }];
    for filter in [FilterType::Adaptive, FilterType::NoFilter, FilterType::Paeth] {
        candidates.push(Encoded {
            extension: "png",
            bytes: png(pixels, ExtendedColorType::Rgb8, filter)?,
        });
    }
    if let Some(bytes) = palette_png(pixels)? {
        candidates.push(Encoded { extension: "png", bytes });
    }
    candidates.into_iter().min_by_key(|candidate| candidate.bytes.len()).context("no encoding")
}

fn png(pixels: &[u8], colour: ExtendedColorType, filter: FilterType) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, filter)
        .write_image(pixels, SIDE, SIDE, colour)?;
    Ok(bytes)
}

/// A PNG of at most 256 colours; `None` where the drawing has more.
///
/// `image` does not write palettes, but a greyscale PNG of the colour numbers differs from one only
/// in the header's colour type and the PLTE chunk.
fn palette_png(pixels: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut colours: Vec<&[u8]> = pixels.chunks_exact(3).collect();
    colours.sort_unstable();
    colours.dedup();
    if colours.len() > 256 {
        return Ok(None);
    }
    let mut indices = Vec::with_capacity(pixels.len() / 3);
    for pixel in pixels.chunks_exact(3) {
        indices.push(u8::try_from(
            colours.binary_search(&pixel).ok().context("a colour left its own palette")?,
        )?);
    }
    let grey = png(&indices, ExtendedColorType::L8, FilterType::NoFilter)?;
    // Signature 8 bytes, then IHDR: length 4, type 4, data 13, checksum 4.
    const HEADER_DATA: std::ops::Range<usize> = 16..29;
    ensure!(
        grey.get(12..16) == Some(b"IHDR") && grey[25] == 0,
        "the PNG encoder wrote an unexpected header"
    );
    let mut header = grey[HEADER_DATA].to_vec();
    header[9] = 3;
    let mut bytes = grey[..8].to_vec();
    push_chunk(&mut bytes, b"IHDR", &header)?;
    push_chunk(&mut bytes, b"PLTE", &colours.concat())?;
    bytes.extend_from_slice(&grey[33..]);
    let decoded = image::load_from_memory(&bytes).context("read the palette PNG back")?.to_rgb8();
    ensure!(decoded.as_raw() == pixels, "the palette PNG does not show the drawing");
    Ok(Some(bytes))
}

fn push_chunk(out: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) -> Result<()> {
    out.extend_from_slice(&u32::try_from(data.len())?.to_be_bytes());
    let checked = out.len();
    out.extend_from_slice(kind);
    out.extend_from_slice(data);
    let checksum = crc32(&out[checked..]);
    out.extend_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// The checksum of PNG chunks; bit by bit, for a few hundred bytes a table would not pay.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED_LEFT: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10" viewBox="0 0 20 10">
        <path fill="#f00" d="M0 0h10v10H0z"/></svg>"##;

    #[test]
    fn a_wide_drawing_is_centred_on_white() {
        let pixels = render(RED_LEFT).unwrap();
        let at = |x: usize, y: usize| &pixels[(y * 48 + x) * 3..][..3];
        assert_eq!(pixels.len(), 48 * 48 * 3);
        assert_eq!(at(5, 5), [255, 255, 255], "above the drawing");
        assert_eq!(at(5, 24), [255, 0, 0]);
        assert_eq!(at(40, 24), [255, 255, 255]);
        assert!(!is_blank(&pixels));
        assert!(is_blank(&[255; 48 * 48 * 3]));
    }

    #[test]
    fn every_encoding_is_lossless() {
        let few = render(RED_LEFT).unwrap();
        let many: Vec<u8> =
            (0..48u32 * 48 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for pixels in [few, many] {
            let encoded = encode(&pixels).unwrap();
            assert_eq!(
                image::load_from_memory(&encoded.bytes).unwrap().to_rgb8().into_raw(),
                pixels
            );
        }
    }

    #[test]
    fn the_checksum_is_png_s() {
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
    }
}
