//! How an image is to be turned before it is shown: the orientation in its EXIF block or, without
//! one, in its XMP block, where Pillow's `ImageOps.exif_transpose` finds it.
//!
//! A block that is damaged counts as absent. Pillow fails on some of these.

use std::io::Read;

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;
use lethe_shared::image_file::Format;

/// Largest compressed text of a PNG that is looked at, bytes after decompression.
const MAX_TEXT: u64 = 16 << 20;
/// The EXIF tag of the orientation.
const ORIENTATION: u16 = 0x0112;

/// The metadata of an image file.
#[derive(Debug, Default)]
struct Metadata {
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
}

/// Returns the orientation of an image file.
pub(super) fn of(format: Format, bytes: &[u8]) -> Orientation {
    let found = match format {
        Format::Png => png(bytes),
        Format::Jpeg => jpeg(bytes),
        Format::WebP => webp(bytes),
    };
    let number = found.exif.as_deref().and_then(in_exif).or_else(|| in_xmp(&found.xmp?));
    number
        .and_then(|number| u8::try_from(number).ok())
        .and_then(Orientation::from_exif)
        .unwrap_or(Orientation::NoTransforms)
}

/// Collects the segments before the first scan. An EXIF block may be spread over several.
fn jpeg(bytes: &[u8]) -> Metadata {
    let mut found = Metadata::default();
    let mut at = 2;
    let mut next = || -> Option<(u8, &[u8])> {
        loop {
            at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
            match *bytes.get(at + 1)? {
                0xff => at += 1,
                // Markers without a segment.
                0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
                code => {
                    let length = u16::from_be_bytes(bytes.get(at + 2..at + 4)?.try_into().ok()?);
                    let segment = bytes.get(at + 4..at + 2 + usize::from(length))?;
                    at += 2 + usize::from(length);
                    return Some((code, segment));
                }
            }
        }
    };
    while let Some((code, segment)) = next().filter(|(code, _)| !matches!(code, 0xd9 | 0xda)) {
        if code != 0xe1 {
            continue;
        }
        if let Some(block) = segment.strip_prefix(b"Exif\0\0") {
            found.exif.get_or_insert_default().extend(block);
        } else if let Some(block) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            found.xmp = Some(block.to_vec());
        }
    }
    found
}

/// Collects the chunks of a PNG, before and behind the image data; the last of each kind counts.
fn png(bytes: &[u8]) -> Metadata {
    let (mut found, mut profile) = (Metadata::default(), None);
    let mut at = 8;
    let mut next = || -> Option<(&[u8], &[u8])> {
        let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
        let end = at.checked_add(8)?.checked_add(length)?;
        let chunk = (bytes.get(at + 4..at + 8)?, bytes.get(at + 8..end)?);
        at = end.checked_add(4)?;
        Some(chunk)
    };
    while let Some((name, content)) = next().filter(|(name, _)| name != b"IEND") {
        match name {
            b"eXIf" => found.exif = Some(content.to_vec()),
            b"tEXt" | b"zTXt" => {
                if let Some(text) = content.strip_prefix(b"Raw profile type exif\0") {
                    let text = if name == b"zTXt" { inflate(text.get(1..)) } else { text.to_vec() };
                    profile = raw_profile(&text);
                }
            }
            b"iTXt" => {
                if let Some(text) = content.strip_prefix(b"XML:com.adobe.xmp\0") {
                    found.xmp = international_text(text);
                }
            }
            _ => {}
        }
    }
    found.exif = found.exif.or(profile);
    found
}

/// Decompresses a text of a PNG, up to damage in it.
fn inflate(compressed: Option<&[u8]>) -> Vec<u8> {
    let mut text = Vec::new();
    // What was read before an error is kept.
    let _ = ZlibDecoder::new(compressed.unwrap_or_default()).take(MAX_TEXT).read_to_end(&mut text);
    text
}

/// Reads the rest of an `iTXt` chunk behind its keyword: whether it is compressed, the method,
/// language, translated keyword, text.
fn international_text(content: &[u8]) -> Option<Vec<u8>> {
    let (&[is_compressed, _], rest) = content.split_first_chunk::<2>()?;
    let text = rest.splitn(3, |&byte| byte == 0).nth(2)?;
    Some(if is_compressed == 0 { text.to_vec() } else { inflate(Some(text)) })
}

/// Reads ImageMagick's form of an EXIF block: a line each for nothing, the name and the length, and
/// then hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').skip(3).collect();
    let digits: Vec<u8> =
        lines.concat().into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Collects the chunks of a WebP that its header announces.
fn webp(bytes: &[u8]) -> Metadata {
    let mut found = Metadata::default();
    let Some(flags) = bytes.get(20).filter(|_| bytes.get(12..16) == Some(b"VP8X")) else {
        return found;
    };
    let mut at = 12;
    let mut next = || -> Option<(&[u8], &[u8])> {
        let size = u32::from_le_bytes(bytes.get(at + 4..at + 8)?.try_into().ok()?) as usize;
        let end = at.checked_add(8)?.checked_add(size)?;
        let chunk = (bytes.get(at..at + 4)?, bytes.get(at + 8..end)?);
        at = end + end % 2;
        Some(chunk)
    };
    while let Some((name, content)) = next() {
        match name {
            b"EXIF" if flags & 8 != 0 => {
                found.exif.get_or_insert_with(|| content.to_vec());
            }
            b"XMP " if flags & 4 != 0 => {
                found.xmp.get_or_insert_with(|| content.to_vec());
            }
            _ => {}
        }
    }
    found
}

/// Returns the orientation in an EXIF block, whatever its number.
fn in_exif(mut block: &[u8]) -> Option<u32> {
    while let Some(rest) = block.strip_prefix(b"Exif\0\0") {
        block = rest;
    }
    let is_little = match block.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes = block.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes = block.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let directory = u32_at(4)? as usize;
    let entries = usize::from(u16_at(directory)?);
    let mut found = None;
    for entry in (0..entries).map(|number| directory + 2 + 12 * number) {
        // A directory that is cut off counts as far as it goes.
        let (Some(tag), Some(kind), Some(count), Some(offset)) =
            (u16_at(entry), u16_at(entry + 2), u32_at(entry + 4), u32_at(entry + 8))
        else {
            break;
        };
        if tag != ORIENTATION {
            continue;
        }
        // Numbers of two or four bytes; more of them than fit into the entry are elsewhere.
        let value = match (kind, count) {
            (3, 1..=2) => u16_at(entry + 8).map(u32::from),
            (3, 3..) => u16_at(offset as usize).map(u32::from),
            (4, 1) => Some(offset),
            (4, 2..) => u32_at(offset as usize),
            _ => None,
        };
        found = value.or(found);
    }
    found
}

/// Returns the orientation in an XMP block: the first `tiff:Orientation` with one digit.
fn in_xmp(block: &[u8]) -> Option<u32> {
    let name: &[u8] = b"tiff:Orientation";
    (0..block.len()).filter(|&at| block[at..].starts_with(name)).find_map(|at| {
        let rest = &block[at + name.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        char::from(*value.first()?).to_digit(10)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An EXIF block with one entry.
    fn exif(kind: u16, count: u32, value: &[u8; 4]) -> Vec<u8> {
        let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01".to_vec();
        block.extend(kind.to_le_bytes());
        block.extend(count.to_le_bytes());
        block.extend(value);
        block.extend([0; 4]);
        block
    }

    fn segment(content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u16 + 2).to_be_bytes();
        [b"\xff\xe1", &length[..], content].concat()
    }

    fn in_jpeg(segments: &[Vec<u8>]) -> Orientation {
        of(Format::Jpeg, &[b"\xff\xd8", &segments.concat()[..], b"\xff\xda"].concat())
    }

    fn in_png(chunks: &[(&[u8; 4], Vec<u8>)]) -> Orientation {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, content) in chunks {
            bytes.extend((content.len() as u32).to_be_bytes());
            bytes.extend_from_slice(*name);
            bytes.extend(content);
            bytes.extend([0; 4]);
        }
        of(Format::Png, &bytes)
    }

    fn compressed(text: &[u8]) -> Vec<u8> {
        let mut found = Vec::new();
        flate2::read::ZlibEncoder::new(text, flate2::Compression::fast())
            .read_to_end(&mut found)
            .unwrap();
        found
    }

    const TURNED: Orientation = Orientation::Rotate90;
    const XMP: &[u8] = b"<a tiff:Orientation=\"6\"/>";

    #[test]
    fn numbers_of_an_exif_block_are_read_as_by_pillow() {
        assert_eq!(in_exif(&exif(3, 1, b"\x06\0\0\0")), Some(6));
        assert_eq!(in_exif(&exif(3, 2, b"\x06\0\x03\0")), Some(6));
        assert_eq!(in_exif(&exif(4, 1, b"\x06\0\0\0")), Some(6));
        assert_eq!(in_exif(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"), Some(6));
        assert_eq!(in_exif(&[b"Exif\0\0", &exif(3, 1, b"\x06\0\0\0")[..]].concat()), Some(6));
        let mut twice = exif(3, 1, b"\x03\0\0\0");
        twice[8] = 2;
        twice.truncate(22);
        twice.extend(&exif(3, 1, b"\x06\0\0\0")[10..]);
        assert_eq!(in_exif(&twice), Some(6));
        for broken in
            [exif(3, 0, &[6; 4]), exif(5, 1, &[6; 4]), b"II*\0\xff\xff\xff\xff".to_vec(), vec![]]
        {
            assert_eq!(in_exif(&broken), None);
        }
    }

    #[test]
    fn jpegs() {
        let block = [b"Exif\0\0", &exif(3, 1, b"\x06\0\0\0")[..]].concat();
        let xmp = [b"http://ns.adobe.com/xap/1.0/\0", XMP].concat();
        assert_eq!(in_jpeg(&[segment(&block)]), TURNED);
        let parts = [&block[..20], &[b"Exif\0\0", &block[20..]].concat()].map(segment);
        assert_eq!(in_jpeg(&parts), TURNED);
        assert_eq!(in_jpeg(&[segment(&xmp)]), TURNED);
        let upright = [b"Exif\0\0", &exif(3, 1, b"\x01\0\0\0")[..]].concat();
        assert_eq!(in_jpeg(&[segment(&xmp), segment(&upright)]), Orientation::NoTransforms);
        assert_eq!(in_jpeg(&[]), Orientation::NoTransforms);
    }

    #[test]
    fn pngs() {
        let block = exif(3, 1, b"\x06\0\0\0");
        assert_eq!(in_png(&[(b"IDAT", vec![]), (b"eXIf", block.clone())]), TURNED);
        let hex: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        let profile = format!("\nexif\n      26\n{}\n{}\n", &hex[..20], &hex[20..]);
        let named = |more: &[u8], text: &[u8]| [b"Raw profile type exif\0", more, text].concat();
        assert_eq!(in_png(&[(b"tEXt", named(b"", profile.as_bytes()))]), TURNED);
        assert_eq!(in_png(&[(b"zTXt", named(b"\0", &compressed(profile.as_bytes())))]), TURNED);
        let named = |more: &[u8], text: &[u8]| [b"XML:com.adobe.xmp\0", more, text].concat();
        assert_eq!(in_png(&[(b"iTXt", named(b"\0\0\0\0", XMP))]), TURNED);
        assert_eq!(in_png(&[(b"iTXt", named(b"\x01\0\0\0", &compressed(XMP)))]), TURNED);
        assert_eq!(in_png(&[(b"iTXt", named(b"\x01\0\0\0", XMP))]), Orientation::NoTransforms);
    }

    #[test]
    fn webps() {
        let file = |flags: u8, name: &[u8; 4], content: &[u8]| {
            let size = (content.len() as u32).to_le_bytes();
            let head = [b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0", &[flags][..], &[0; 9]].concat();
            [&head[..], name, &size, content].concat()
        };
        let block = exif(3, 1, b"\x06\0\0\0");
        assert_eq!(of(Format::WebP, &file(8, b"EXIF", &block)), TURNED);
        assert_eq!(of(Format::WebP, &file(4, b"XMP ", XMP)), TURNED);
        assert_eq!(of(Format::WebP, &file(0, b"EXIF", &block)), Orientation::NoTransforms);
    }
}
