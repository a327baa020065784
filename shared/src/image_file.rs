//! Image files without decoding them: format, size in pixels, and whether the file is whole.
//!
//! Decoders fill the missing part of a truncated JPEG with grey, and skip a wrong checksum of a
//! PNG. Pillow refuses such files, and so does Lethe, before anything is computed from them.

use crc32fast::hash;

use crate::jpeg::Structure;

/// Most pixels of an image: above this, Pillow warns of a decompression bomb. A file of a few bytes
/// can announce any number, a decoder takes up to eight bytes for each, and every core decodes.
pub const MAX_PIXELS: u64 = 89_478_485;

/// A format of images that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    WebP,
}

impl Format {
    /// Detects the format by the first twelve bytes.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            _ => None,
        }
    }

    /// Returns the usual file extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
        }
    }
}

/// Width and height of an image, in pixels.
pub type Dimensions = (u32, u32);

/// Checks an image file: its format, its size in pixels, and that it is whole. Returns the size;
/// `None` when the header cannot be read, which only a decoder can judge.
///
/// # Errors
/// A message that completes a sentence about the image, such as "is truncated".
pub fn check(bytes: &[u8]) -> Result<Option<Dimensions>, String> {
    let format = Format::of(bytes).ok_or_else(|| {
        let found = other_format(bytes).map(|name| format!("is {name}, and "));
        format!("{}is neither PNG, JPEG nor WebP; convert it", found.unwrap_or_default())
    })?;
    let dimensions = match format {
        Format::Png => png_dimensions(bytes),
        Format::Jpeg => jpeg_dimensions(bytes),
        Format::WebP => webp_dimensions(bytes),
    };
    let Some((width, height)) = dimensions else { return Ok(None) };
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "has {width} × {height} pixels, at most {MAX_PIXELS} in all are read; reduce it"
        ));
    }
    match format {
        Format::Png => check_png(bytes)?,
        Format::Jpeg => check_jpeg(bytes)?,
        Format::WebP => check_webp(bytes)?,
    }
    Ok(Some((width, height)))
}

/// Names a format that is not read, with its article.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [] => "empty",
        [b'G', b'I', b'F', b'8', ..] => "a GIF image",
        [b'B', b'M', ..] => "a BMP image",
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => "a TIFF image",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "an AVIF image",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "a HEIF image",
        [0, 0, 0, 12, b'j', b'P', ..] | [0xff, 0x4f, 0xff, ..] => "a JPEG 2000 image",
        [0, 0, 0, 12, b'J', b'X', b'L', ..] | [0xff, 0x0a, ..] => "a JPEG XL image",
        [b'<', ..] => "a text (SVG or HTML)",
        [b'{', ..] => "a text (JSON)",
        _ => return None,
    })
}

fn truncated() -> String {
    "is truncated; get the whole file".to_owned()
}

/// Reads a big-endian number of two bytes.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Reads a big-endian number of four bytes.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Reads a little-endian number of two bytes.
fn u16_le_at(bytes: &[u8], at: usize) -> Option<u16> {
    u16_at(bytes, at).map(u16::swap_bytes)
}

fn png_dimensions(bytes: &[u8]) -> Option<Dimensions> {
    (bytes.get(8..16)? == b"\0\0\0\rIHDR").then(|| u32_at(bytes, 16).zip(u32_at(bytes, 20)))?
}

/// Checks that every chunk is whole and has its checksum, up to the end of the image data. As in
/// Pillow, chunks after that may be missing.
fn check_png(bytes: &[u8]) -> Result<(), String> {
    let (mut at, mut has_data) = (8, false);
    while at < bytes.len() {
        let chunk = || {
            let length = usize::try_from(u32_at(bytes, at)?).ok()?;
            let end = at.checked_add(8)?.checked_add(length)?;
            Some((bytes.get(at + 4..end)?, u32_at(bytes, end)?, end + 4))
        };
        let Some((named, checksum, next)) = chunk() else {
            let is_data = bytes.get(at + 4..at + 8).is_some_and(|name| name == b"IDAT");
            return if has_data && !is_data { Ok(()) } else { Err(truncated()) };
        };
        let name = &named[..4];
        if hash(named) != checksum {
            return Err(format!(
                "is damaged (the checksum of its chunk `{}` is wrong); get the whole file",
                name.escape_ascii()
            ));
        }
        match name {
            b"IDAT" => has_data = true,
            b"IEND" => break,
            _ => {}
        }
        at = next;
    }
    if has_data { Ok(()) } else { Err(truncated()) }
}

/// Returns the next marker at or after `at`: its code, and the position behind it. Bytes before it
/// are skipped, as decoders do.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        match bytes.get(at + 1)? {
            0 => at += 2,
            0xff => at += 1,
            &code => return Some((code, at + 2)),
        }
    }
}

/// Whether a marker has no segment: restarts, the start of an image, and the reserved one.
fn stands_alone(code: u8) -> bool {
    matches!(code, 0x01 | 0xd0..=0xd8)
}

fn jpeg_dimensions(bytes: &[u8]) -> Option<Dimensions> {
    let mut at = 2;
    loop {
        let (code, segment) = next_marker(bytes, at)?;
        match code {
            // A frame header: precision, height, width.
            0xc0..=0xcf if !matches!(code, 0xc4 | 0xc8 | 0xcc) => {
                let (height, width) = u16_at(bytes, segment + 3).zip(u16_at(bytes, segment + 5))?;
                return Some((width.into(), height.into()));
            }
            0xd9 | 0xda => return None,
            code if stands_alone(code) => at = segment,
            _ => at = segment + usize::from(u16_at(bytes, segment)?),
        }
    }
}

/// Checks the structure, and that the end marker is reached. It is missing when a file is cut,
/// wherever that is, because segments have lengths and no marker occurs inside coded data.
fn check_jpeg(bytes: &[u8]) -> Result<(), String> {
    let mut at = 2;
    let mut has_scan = false;
    let mut structure = Structure::default();
    loop {
        let (code, segment) = next_marker(bytes, at).ok_or_else(truncated)?;
        if code == 0xd9 {
            return if has_scan { Ok(()) } else { Err("holds no image data".to_owned()) };
        }
        has_scan |= code == 0xda;
        at = segment;
        if !stands_alone(code) {
            at += usize::from(u16_at(bytes, segment).ok_or_else(truncated)?);
            if at > bytes.len() {
                return Err(truncated());
            }
            structure.read(code, bytes.get(segment + 2..at).unwrap_or_default())?;
        }
    }
}

fn webp_dimensions(bytes: &[u8]) -> Option<Dimensions> {
    let low_14 = |at| Some(u32::from(u16_le_at(bytes, at)? & 0x3fff));
    match bytes.get(12..16)? {
        b"VP8 " => (bytes.get(23..26)? == b"\x9d\x01\x2a").then(|| low_14(26).zip(low_14(28)))?,
        b"VP8L" => {
            let packed = u32_at(bytes, 21)?.swap_bytes();
            (bytes[20] == 0x2f).then_some((1 + (packed & 0x3fff), 1 + (packed >> 14 & 0x3fff)))
        }
        b"VP8X" => {
            let side = |at| Some(1 + (u32_at(bytes, at)?.swap_bytes() & 0x00ff_ffff));
            // The height is in the last three of these four bytes.
            side(24).zip(Some(1 + (u32_at(bytes, 26)?.swap_bytes() >> 8)))
        }
        _ => None,
    }
}

/// Checks that the file is as long as its header says, and every chunk inside it too, and that it
/// holds one image, or an animation whose first frame is one.
fn check_webp(bytes: &[u8]) -> Result<(), String> {
    let whole = || {
        let size = u32_at(bytes, 4)?.swap_bytes();
        bytes.get(..usize::try_from(size).ok()?.checked_add(8)?)
    };
    let bytes = whole().ok_or_else(truncated)?;
    let mut at = 12;
    let (mut images, mut frames) = (0, 0);
    while at < bytes.len() {
        let next = || {
            let size = usize::try_from(u32_at(bytes, at + 4)?.swap_bytes()).ok()?;
            at.checked_add(8)?.checked_add(size)
        };
        let end = next().filter(|&end| end <= bytes.len()).ok_or_else(truncated)?;
        match &bytes[at..at + 4] {
            b"VP8 " | b"VP8L" => images += 1,
            b"ANMF" => {
                frames += 1;
                // Width and height, less one, of the frame and of the canvas.
                let covers = bytes.get(at + 14..at + 20) == bytes.get(24..30);
                if frames == 1 && !covers {
                    return Err(
                        "is an animation whose first frame does not cover it; save one frame"
                            .to_owned(),
                    );
                }
            }
            _ => {}
        }
        at = end + end % 2;
    }
    if images > 1 { Err("holds several images; save one".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let named = [name, content].concat();
        let mut bytes = (content.len() as u32).to_be_bytes().to_vec();
        bytes.extend(&named);
        bytes.extend(hash(&named).to_be_bytes());
        bytes
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, content) in
            [(b"IHDR", &header[..]), (b"tEXt", b"k\0v"), (b"IDAT", b"coded"), (b"IEND", b"")]
        {
            bytes.extend(chunk(name, content));
        }
        bytes
    }

    fn jpeg(width: u16, height: u16) -> Vec<u8> {
        let (height, width) = (height.to_be_bytes(), width.to_be_bytes());
        [
            // A comment that contains an end marker.
            &b"\xff\xd8\xff\xfe\0\x04\xff\xd9\xff\xc0\0\x0b\x08"[..],
            &height,
            &width,
            b"\x01\x01\x11\0\xff\xda\0\x03\x01ab\xff\0cd\xff\xd0ef\xff\xd9",
        ]
        .concat()
    }

    fn webp(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let size = |bytes: usize| (bytes as u32).to_le_bytes();
        [b"RIFF", &size(12 + content.len())[..], b"WEBP", name, &size(content.len()), content]
            .concat()
    }

    #[test]
    fn sizes_come_from_headers() {
        assert_eq!(check(&png(300, 7)), Ok(Some((300, 7))));
        assert_eq!(check(&jpeg(300, 7)), Ok(Some((300, 7))));
        let lossy = webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a\x2c\x01\x07\0");
        assert_eq!(check(&lossy), Ok(Some((300, 7))));
        let extended = webp(b"VP8X", b"\0\0\0\0\x2b\x01\0\x06\0\0");
        assert_eq!(check(&extended), Ok(Some((300, 7))));
        let lossless =
            webp(b"VP8L", &[&[0x2f][..], &(299u32 | 6 << 14).to_le_bytes(), &[0]].concat());
        assert_eq!(check(&lossless), Ok(Some((300, 7))));
    }

    #[test]
    fn one_image_is_read_of_a_webp() {
        let chunk = |name: &[u8; 4], content: &[u8]| {
            [name, &(content.len() as u32).to_le_bytes()[..], content].concat()
        };
        let file = |chunks: &[Vec<u8>]| {
            let body = [&b"WEBP"[..], &chunks.concat()].concat();
            [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
        };
        let canvas = chunk(b"VP8X", b"\0\0\0\0\x2b\x01\0\x06\0\0");
        let frame = |size: &[u8; 6]| chunk(b"ANMF", &[&[0; 6][..], size, &[0; 4]].concat());
        let whole = frame(b"\x2b\x01\0\x06\0\0");
        let part = frame(b"\x2a\x01\0\x06\0\0");
        assert_eq!(check(&file(&[canvas.clone(), whole, part.clone()])), Ok(Some((300, 7))));
        assert!(check(&file(&[canvas.clone(), part])).unwrap_err().contains("first frame"));
        let image = chunk(b"VP8L", b"\x2f\0\0\0");
        assert!(check(&file(&[canvas, image.clone(), image])).unwrap_err().contains("several"));
    }

    #[test]
    fn a_cut_file_is_refused_wherever_it_is_cut() {
        let lossy = webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a\x2c\x01\x07\0");
        for whole in [jpeg(3, 3), lossy] {
            for cut in 12..whole.len() {
                assert!(!matches!(check(&whole[..cut]), Ok(Some(_))), "cut at {cut}");
            }
        }
        let whole = png(3, 3);
        let after_data = whole.len() - 12;
        for cut in 24..after_data {
            assert_eq!(check(&whole[..cut]), Err(truncated()), "cut at {cut}");
        }
        assert_eq!(check(&whole[..after_data + 6]), Ok(Some((3, 3))));
    }

    #[test]
    fn a_flipped_bit_of_a_png_is_found() {
        let whole = png(3, 3);
        for at in 16..whole.len() - 12 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(check(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn pixels_are_bounded_and_sides_are_not() {
        assert_eq!(check(&jpeg(20_000, 400)), Ok(Some((20_000, 400))));
        assert_eq!(check(&png(894_784, 100)), Ok(Some((894_784, 100))));
        for image in [png(u32::MAX, u32::MAX), png(894_785, 100), jpeg(9_460, 9_460)] {
            assert!(check(&image).unwrap_err().contains("at most 89478485 in all are read"));
        }
    }

    #[test]
    fn other_formats_are_named() {
        let of = |bytes: &[u8]| check(bytes).unwrap_err();
        assert!(of(b"GIF89a").contains("is a GIF image, and is neither PNG, JPEG nor WebP"));
        assert!(of(b"\0\0\0\x1cftypavif").contains("AVIF"));
        assert!(of(b"<svg ").contains("SVG"));
        assert!(of(b"").contains("is empty"));
        assert!(of(&[7; 40]).starts_with("is neither PNG"));
        assert_eq!(check(b"\x89PNG\r\n\x1a\n and the rest"), Ok(None));
        assert_eq!(check(b"\xff\xd8\xff\xe0 and so on"), Ok(None));
    }
}
