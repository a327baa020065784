//! The structure of a JPEG, from its headers: what decoders read in the same way.
//!
//! Every camera and program writes JPEGs of this structure. Of the others, some decoders make noise
//! without an error, so they are refused before one is asked.

/// The frame of a JPEG.
#[derive(Debug)]
struct Frame {
    is_progressive: bool,
    /// Component ids.
    ids: Vec<u8>,
}

/// The headers of a JPEG that were read so far.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    frame: Option<Frame>,
    has_jfif: bool,
    /// The colour transform of an Adobe segment.
    adobe: Option<u8>,
}

impl Structure {
    /// Reads the next segment, without its marker and length.
    ///
    /// # Errors
    /// A message that completes a sentence about the image.
    pub(crate) fn read(&mut self, code: u8, segment: &[u8]) -> Result<(), String> {
        match code {
            0xe0 if segment.len() >= 14 && segment.starts_with(b"JFIF\0") => self.has_jfif = true,
            0xee if segment.len() >= 12 && segment.starts_with(b"Adobe") => {
                self.adobe = Some(segment[11]);
            }
            0xc0..=0xc2 => self.frame = Some(frame(code, segment)?),
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(
                    "is an arithmetic-coded, lossless or hierarchical JPEG; convert it".to_owned()
                );
            }
            0xda => self.check_scan(segment.first().copied())?,
            _ => {}
        }
        Ok(())
    }

    fn check_scan(&self, components: Option<u8>) -> Result<(), String> {
        let (Some(frame), Some(components)) = (&self.frame, components) else {
            return Err("is damaged (its headers are out of order); get the whole file".to_owned());
        };
        let has_two_colour_spaces = match frame.ids[..] {
            [_, _, _] => self.has_jfif && (self.adobe == Some(0) || frame.ids == *b"RGB"),
            [_, _, _, _] => self.adobe == Some(1),
            _ => false,
        };
        if has_two_colour_spaces {
            return Err("is a JPEG whose headers contradict each other on its colours; convert it"
                .to_owned());
        }
        if !frame.is_progressive && usize::from(components) < frame.ids.len() {
            return Err("is a sequential JPEG in several scans; convert it".to_owned());
        }
        Ok(())
    }
}

/// Reads a frame header.
fn frame(code: u8, segment: &[u8]) -> Result<Frame, String> {
    let damaged = || "is damaged (its frame header is cut off); get the whole file".to_owned();
    let &[bits, _, _, _, _, count, ref components @ ..] = segment else { return Err(damaged()) };
    if bits != 8 {
        return Err(format!("is a JPEG of {bits} bits per channel, expected 8; convert it"));
    }
    if !matches!(count, 1 | 3 | 4) {
        return Err(format!("is a JPEG of {count} channels, expected 1, 3 or 4; convert it"));
    }
    let components = components.get(..3 * usize::from(count)).ok_or_else(damaged)?;
    let factors: Vec<(u8, u8)> =
        components.chunks_exact(3).map(|of| (of[1] >> 4, of[1] & 15)).collect();
    let (most_h, most_v) = factors[0];
    let blocks: u32 = factors.iter().map(|&(h, v)| u32::from(h) * u32::from(v)).sum();
    let is_usual = factors.iter().all(|&(h, v)| {
        matches!(h, 1 | 2 | 4) && matches!(v, 1 | 2 | 4) && h <= most_h && v <= most_v
    });
    // A coded unit has at most ten blocks. A single channel is never subsampled.
    if !is_usual || (count > 1 && blocks > 10) {
        return Err("is a JPEG of unusual chroma subsampling; convert it".to_owned());
    }
    let ids = components.chunks_exact(3).map(|of| of[0]).collect();
    Ok(Frame { is_progressive: code == 0xc2, ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame header of these components: id, sampling factors.
    fn frame_of(components: &[(u8, u8)]) -> Vec<u8> {
        let mut segment = vec![8, 0, 9, 0, 9, components.len() as u8];
        components.iter().for_each(|&(id, factors)| segment.extend([id, factors, 0]));
        segment
    }

    fn read(segments: &[(u8, &[u8])]) -> Result<(), String> {
        let mut structure = Structure::default();
        segments.iter().try_for_each(|(code, segment)| structure.read(*code, segment))
    }

    const JFIF: (u8, &[u8]) = (0xe0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0");

    #[test]
    fn usual_structures_are_read() {
        for factors in [[0x11; 3], [0x22, 0x11, 0x11], [0x21, 0x11, 0x11], [0x41, 0x11, 0x11]] {
            let frame = frame_of(&[(1, factors[0]), (2, factors[1]), (3, factors[2])]);
            read(&[JFIF, (0xc0, &frame), (0xda, &[3])]).unwrap();
            read(&[JFIF, (0xc2, &frame), (0xda, &[3]), (0xda, &[1])]).unwrap();
        }
        read(&[(0xc0, &frame_of(&[(1, 0x22)])), (0xda, &[1])]).unwrap();
        let adobe = |transform| [&b"Adobe\0\x64\0\0\0\0"[..], &[transform]].concat();
        let inks = frame_of(&[(1, 0x11), (2, 0x11), (3, 0x11), (4, 0x11)]);
        read(&[(0xee, &adobe(2)), (0xc0, &inks), (0xda, &[4])]).unwrap();
        let rgb = frame_of(&[(b'R', 0x11), (b'G', 0x11), (b'B', 0x11)]);
        read(&[(0xee, &adobe(0)), (0xc0, &rgb), (0xda, &[3])]).unwrap();
    }

    #[test]
    fn structures_that_decoders_read_differently_are_refused() {
        let three = frame_of(&[(1, 0x11), (2, 0x11), (3, 0x11)]);
        let rgb = frame_of(&[(b'R', 0x11), (b'G', 0x11), (b'B', 0x11)]);
        let inks = frame_of(&[(1, 0x11), (2, 0x11), (3, 0x11), (4, 0x11)]);
        let larger = frame_of(&[(1, 0x11), (2, 0x22), (3, 0x22)]);
        let odd = frame_of(&[(1, 0x31), (2, 0x11), (3, 0x11)]);
        let many = frame_of(&[(1, 0x22), (2, 0x22), (3, 0x22)]);
        let (rgb_transform, ycc_transform) =
            (b"Adobe\0\x64\0\0\0\0\0".as_slice(), b"Adobe\0\x64\0\0\0\0\x01".as_slice());
        let mut deep = three.clone();
        deep[0] = 12;
        for (segments, says) in [
            (vec![(0xc0, &three[..]), (0xda, &[1][..])], "several scans"),
            (vec![JFIF, (0xee, rgb_transform), (0xc0, &three), (0xda, &[3])], "contradict"),
            (vec![JFIF, (0xc0, &rgb), (0xda, &[3])], "contradict"),
            (vec![(0xee, ycc_transform), (0xc0, &inks), (0xda, &[4])], "contradict"),
            (vec![(0xc0, &larger)], "subsampling"),
            (vec![(0xc0, &odd)], "subsampling"),
            (vec![(0xc0, &many)], "subsampling"),
            (vec![(0xc0, &deep)], "12 bits"),
            (vec![(0xc0, &frame_of(&[(1, 0x11), (2, 0x11)]))], "2 channels"),
            (vec![(0xc9, &three)], "arithmetic"),
            (vec![(0xc0, &three[..9])], "cut off"),
            (vec![(0xda, &[3])], "out of order"),
        ] {
            assert!(read(&segments).unwrap_err().contains(says), "{says}");
        }
    }
}
