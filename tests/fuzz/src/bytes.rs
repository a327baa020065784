//! Mutation of bytes, and the reduction of an input that fails.

use proptest::strategy::ValueTree;

use crate::draw::Draw;

/// Most inputs that are tried while a failing one is reduced.
const MOST_STEPS: usize = 4000;

/// Changes bytes in a few places.
pub(crate) fn mutate(bytes: &mut Vec<u8>, draw: &mut Draw<'_>) {
    for _ in 0..=draw.below(3) {
        let at = draw.below(bytes.len() + 1);
        let end = (at + draw.size()).min(bytes.len());
        match draw.below(9) {
            0 => bytes.truncate(at),
            1 => {
                bytes.drain(at..end);
            }
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                let length = draw.size();
                let new = draw.bytes(length);
                bytes.splice(at..at, new);
            }
            4 => {
                let new = draw.bytes(end - at);
                bytes[at..end].copy_from_slice(&new);
            }
            5 => {
                let value = *draw.pick(&[0, 1, 0x7f, 0x80, 0xff]);
                bytes[at..end].fill(value);
            }
            _ if at < bytes.len() => match draw.below(3) {
                0 => bytes[at] ^= 1 << draw.below(8),
                1 => bytes[at] = bytes[at].wrapping_add(1),
                _ => bytes[at] = draw.number() as u8,
            },
            _ => bytes.push(draw.number() as u8),
        }
    }
}

/// An input, and smaller ones made of it: pieces of it are left out, large ones first, as long as
/// it still fails.
#[derive(Debug)]
pub(crate) struct Reducing {
    bytes: Vec<u8>,
    /// Length of the pieces that are left out.
    piece: usize,
    /// Where the next piece begins.
    at: usize,
    /// The piece that was left out last.
    without: Option<(usize, Vec<u8>)>,
    steps: usize,
}

impl Reducing {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let piece = bytes.len().div_ceil(2);
        Self { bytes, piece, at: 0, without: None, steps: 0 }
    }
}

impl ValueTree for Reducing {
    type Value = Vec<u8>;

    fn current(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    fn simplify(&mut self) -> bool {
        self.without = None;
        self.steps += 1;
        if self.at >= self.bytes.len() {
            (self.piece, self.at) = (self.piece / 2, 0);
        }
        if self.piece == 0 || self.bytes.is_empty() || self.steps > MOST_STEPS {
            return false;
        }
        let end = (self.at + self.piece).min(self.bytes.len());
        let piece: Vec<u8> = self.bytes.drain(self.at..end).collect();
        self.without = Some((self.at, piece));
        true
    }

    fn complicate(&mut self) -> bool {
        let Some((at, piece)) = self.without.take() else { return false };
        self.at = at + piece.len();
        self.bytes.splice(at..at, piece);
        // The input is again the one that failed; the next step leaves out another piece.
        self.simplify()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reduces as proptest does.
    fn reduce(bytes: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut tree = Reducing::new(bytes.to_vec());
        let mut smallest = bytes.to_vec();
        let mut more = tree.simplify();
        while more {
            if fails(&tree.current()) {
                smallest = tree.current();
                more = tree.simplify();
            } else {
                more = tree.complicate();
            }
        }
        assert_eq!(tree.current(), smallest, "the last state is the smallest that fails");
        smallest
    }

    #[test]
    fn a_failing_input_is_reduced_to_what_makes_it_fail() {
        let long = [&[b'x'; 500][..], b"!", &[b'y'; 300], b"?", &[b'z'; 77]].concat();
        let fails = |bytes: &[u8]| bytes.contains(&b'!') && bytes.contains(&b'?');
        assert_eq!(reduce(&long, fails), b"!?");
        assert_eq!(reduce(b"", |_| true), b"");
        assert_eq!(reduce(b"abc", |_| true), b"");
        assert_eq!(reduce(b"abc", |bytes| bytes.len() == 3), b"abc");
    }
}
