//! Images: PNG, JPEG and WebP.

use std::io::Cursor;
use std::sync::LazyLock;

use image::{DynamicImage, ImageFormat, RgbImage};
use lethe_shared::image_file;
use lethe_worker::input::picture;

use crate::draw::Draw;
use crate::harness::{Harness, Outcome, hold, refused, same};

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness { name: "png", memory, seeds: || PNGS.clone(), generate: generate_png, check },
        Harness { name: "jpeg", memory, seeds: || JPEGS.clone(), generate: generate_jpeg, check },
        Harness { name: "webp", memory, seeds: || WEBPS.clone(), generate: generate_webp, check },
    ]
}

/// Decoders hold a few copies of the pixels that the header announces. A part of a WebP has up to
/// 16 MiB, for which room is made before it is read.
fn memory(input: &[u8]) -> usize {
    let pixels = match image_file::check(input) {
        Ok(Some((width, height))) => width as usize * height as usize,
        _ => 0,
    };
    (32 << 20) + 16 * pixels + 64 * input.len()
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("memory takes every byte");
    bytes.into_inner()
}

fn noise(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, (x ^ y) as u8])
    }))
}

static PNGS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let image = noise(5, 3);
    let forms = [
        image.clone(),
        DynamicImage::ImageRgba8(image.to_rgba8()),
        DynamicImage::ImageLuma8(image.to_luma8()),
        DynamicImage::ImageLumaA8(image.to_luma_alpha8()),
        DynamicImage::ImageRgb16(image.to_rgb16()),
        DynamicImage::ImageRgba16(image.to_rgba16()),
        DynamicImage::ImageLuma16(image.to_luma16()),
        DynamicImage::ImageLumaA16(image.to_luma_alpha16()),
    ];
    forms.iter().map(|form| encoded(form, ImageFormat::Png)).collect()
});

static JPEGS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let image = noise(9, 4);
    let grey = DynamicImage::ImageLuma8(image.to_luma8());
    vec![encoded(&image, ImageFormat::Jpeg), encoded(&grey, ImageFormat::Jpeg)]
});

static WEBPS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let image = noise(5, 3);
    let transparent = DynamicImage::ImageRgba8(image.to_rgba8());
    let lossless = encoded(&image, ImageFormat::WebP);
    // The image inside the extended format: flags, then width − 1 and height − 1 of 24 bits.
    let extended = [&b"VP8X\x0a\0\0\0\0\0\0\0\x04\0\0\x02\0\0"[..], &lossless[12..]].concat();
    // One lossy pixel.
    let lossy =
        b"VP8 \x16\0\0\0\x30\x01\0\x9d\x01\x2a\x01\0\x01\0\x0e\xc0\xfe\x25\xa4\0\x03\x70\0\0\0\0";
    vec![lossless, encoded(&transparent, ImageFormat::WebP), riff(&extended), riff(lossy)]
});

/// The smallest PNG, as a member of shards.
pub(crate) fn tiny_png() -> Vec<u8> {
    static TINY: LazyLock<Vec<u8>> = LazyLock::new(|| encoded(&noise(1, 1), ImageFormat::Png));
    TINY.clone()
}

fn riff(chunks: &[u8]) -> Vec<u8> {
    [b"RIFF", &(4 + chunks.len() as u32).to_le_bytes()[..], b"WEBP", chunks].concat()
}

/// Sides that are small, or at a bound.
fn side(draw: &mut Draw<'_>) -> u32 {
    match draw.below(64) {
        0 => draw.number() as u32,
        1 => *draw.pick(&[0x3fff, 0x4000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX]),
        _ => draw.below(12) as u32,
    }
}

/// Changes the parts of a file: leaves out, repeats, swaps or edits one.
fn change_parts(parts: &mut Vec<Vec<u8>>, draw: &mut Draw<'_>) {
    let at = draw.below(parts.len().max(1));
    if parts.is_empty() {
        return;
    }
    match draw.below(8) {
        0 => {
            parts.remove(at);
        }
        1 => parts.insert(at, parts[at].clone()),
        2 => parts.swap(0, at),
        _ => crate::bytes::mutate(&mut parts[at], draw),
    }
}

/// Exif data that turns the image.
fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    tiff
}

fn generate_png(draw: &mut Draw<'_>) -> Vec<u8> {
    let seed = draw.pick(&PNGS).clone();
    // Names with contents of the chunks.
    let (mut chunks, mut at) = (Vec::new(), 8);
    while at + 12 <= seed.len() {
        let length = u32::from_be_bytes(seed[at..at + 4].try_into().expect("four bytes")) as usize;
        chunks.push(seed[at + 4..at + 8 + length].to_vec());
        at += 12 + length;
    }
    if draw.one_in(3) {
        let header = &mut chunks[0];
        header[4..8].copy_from_slice(&side(draw).to_be_bytes());
        header[8..12].copy_from_slice(&side(draw).to_be_bytes());
    }
    if draw.one_in(4) {
        // Depth, kind of colour, interlacing.
        let field = *draw.pick(&[12, 13, 16]);
        chunks[0][field] = *draw.pick(&[0, 1, 2, 3, 4, 6, 8, 16]);
    }
    if draw.one_in(4) {
        let more = match draw.below(5) {
            0 => [b"eXIf", &exif(draw.below(10) as u8)[..]].concat(),
            1 => [b"PLTE", &draw.bytes(9)[..]].concat(),
            2 => [b"tRNS", &draw.bytes(6)[..]].concat(),
            3 => b"acTL\0\0\0\x02\0\0\0\0".to_vec(),
            _ => b"tEXtk\0v".to_vec(),
        };
        let place = 1 + draw.below(chunks.len());
        chunks.insert(place, more);
    }
    while draw.one_in(3) {
        change_parts(&mut chunks, draw);
    }
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in &chunks {
        bytes.extend((chunk.len().saturating_sub(4) as u32).to_be_bytes());
        bytes.extend(chunk);
        bytes.extend(crc32fast::hash(chunk).to_be_bytes());
    }
    bytes
}

fn generate_jpeg(draw: &mut Draw<'_>) -> Vec<u8> {
    let seed = draw.pick(&JPEGS).clone();
    // Segments with their markers; the last one is the image data with the end marker.
    let (mut segments, mut at) = (Vec::new(), 2);
    while seed[at + 1] != 0xda {
        let end = at + 2 + usize::from(u16::from_be_bytes([seed[at + 2], seed[at + 3]]));
        segments.push(seed[at..end].to_vec());
        at = end;
    }
    let mut data = seed[at..].to_vec();
    if draw.one_in(3)
        && let Some(frame) = segments.iter_mut().find(|segment| segment[1] == 0xc0)
    {
        match draw.below(3) {
            0 => frame[1] = 0xc0 + draw.below(16) as u8,
            _ => {
                frame[5..7].copy_from_slice(&(side(draw) as u16).to_be_bytes());
                frame[7..9].copy_from_slice(&(side(draw) as u16).to_be_bytes());
            }
        }
    }
    if draw.one_in(4) {
        let content = [b"Exif\0\0", &exif(draw.below(10) as u8)[..]].concat();
        let length = (content.len() as u16 + 2).to_be_bytes();
        segments.insert(0, [&[0xff, 0xe1][..], &length, &content].concat());
    }
    if draw.one_in(6) {
        let more: &[u8] = draw.pick::<&[u8]>(&[
            b"\xff\xfe\0\x04\xff\xd9",
            b"\xff\xff\xff",
            b"\xff\xd0",
            b"\xff\xdd\0\x04\0\x01",
            b"\xff\xdc\0\x04\0\x04",
            b"\xff\x01",
            b"junk",
            b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02",
        ]);
        let place = draw.below(segments.len() + 1);
        segments.insert(place, more.to_vec());
    }
    while draw.one_in(4) {
        change_parts(&mut segments, draw);
    }
    if draw.one_in(4) {
        crate::bytes::mutate(&mut data, draw);
    }
    [&[0xff, 0xd8][..], &segments.concat(), &data].concat()
}

fn generate_webp(draw: &mut Draw<'_>) -> Vec<u8> {
    let seed = draw.pick(&WEBPS).clone();
    // Names with contents of the chunks.
    let (mut chunks, mut at) = (Vec::new(), 12);
    while at + 8 <= seed.len() {
        let length =
            u32::from_le_bytes(seed[at + 4..at + 8].try_into().expect("four bytes")) as usize;
        let end = (at + 8 + length).min(seed.len());
        chunks.push([&seed[at..at + 4], &seed[at + 8..end]].concat());
        at = end + length % 2;
    }
    if draw.one_in(3) {
        let (width, height) = (side(draw), side(draw));
        let (name, content) = chunks[0].split_at_mut(4);
        match (&*name, content.len()) {
            (b"VP8L", 5..) => {
                let packed = width & 0x3fff | (height & 0x3fff) << 14;
                content[1..5].copy_from_slice(&packed.to_le_bytes());
            }
            (b"VP8 ", 10..) => {
                content[6..8].copy_from_slice(&(width as u16).to_le_bytes());
                content[8..10].copy_from_slice(&(height as u16).to_le_bytes());
            }
            (b"VP8X", 10..) => {
                content[4..7].copy_from_slice(&width.to_le_bytes()[..3]);
                content[7..10].copy_from_slice(&height.to_le_bytes()[..3]);
            }
            _ => {}
        }
    }
    if draw.one_in(4) {
        let more = match draw.below(6) {
            0 => [b"EXIF", &exif(draw.below(10) as u8)[..]].concat(),
            1 => [b"ALPH", &draw.bytes(8)[..]].concat(),
            2 => b"ANIM\0\0\0\0\0\0".to_vec(),
            3 => [b"ANMF", &draw.bytes(24)[..]].concat(),
            4 => b"ICCPxxxx".to_vec(),
            _ => b"XMP x".to_vec(),
        };
        let place = draw.below(chunks.len() + 1);
        chunks.insert(place, more);
        if let Some(flags) = chunks[0].strip_prefix(b"VP8X").and_then(|rest| rest.first()) {
            chunks[0][4] = flags | *draw.pick(&[0, 2, 4, 8, 16, 32, 0xff]);
        }
    }
    while draw.one_in(3) {
        change_parts(&mut chunks, draw);
    }
    let mut all = Vec::new();
    for chunk in &chunks {
        let (name, content) = chunk.split_at(chunk.len().min(4));
        all.extend(name);
        all.extend((content.len() as u32).to_le_bytes());
        all.extend(content);
        all.extend(&[0][..content.len() % 2]);
    }
    riff(&all)
}

fn check(bytes: &[u8]) -> Result<Outcome, String> {
    let checked = image_file::check(bytes);
    let decoded = picture::decode(bytes);
    let image = match (&checked, decoded) {
        (Err(problem), Ok(_)) => return Err(format!("was decoded, though it {problem}")),
        (Err(problem), Err(_)) => return refused(problem),
        (Ok(_), Err(problem)) => return refused(problem),
        (Ok(_), Ok(image)) => image,
    };
    let Ok(Some((width, height))) = checked else {
        return Err("was decoded, though its header could not be read".to_owned());
    };
    let (of_decoder, turned) = (image.dimensions(), (height, width));
    hold(of_decoder == (width, height) || of_decoder == turned, || {
        format!("the header says {width} × {height}, the decoder {of_decoder:?}")
    })?;
    let again = encoded(&DynamicImage::ImageRgb8(image.clone()), ImageFormat::Png);
    let again =
        picture::decode(&again).map_err(|problem| format!("written again: it {problem}"))?;
    same("pixels read and written", &image.as_raw(), &again.as_raw())?;
    Ok(Outcome::Accepted)
}
