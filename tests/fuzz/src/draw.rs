//! Random choices, from the generator of proptest.

use proptest::prelude::Rng as _;
use proptest::test_runner::TestRng;

/// Characters that readers treat in a special way: control, invisible, combining, of several bytes,
/// changed by normalisation or by folding.
const LETTERS: &[char] = &[
    'a', 'b', 'Z', '0', '9', ' ', ' ', '.', '-', '_', '/', '\\', '"', '\'', '&', ';', ',', '#',
    '|', '\n', '\r', '\t', '\0', '\u{1b}', '\u{7f}', '\u{85}', 'é', 'e', '\u{301}', '\u{30a}', 'Å',
    '\u{212b}', 'ß', 'İ', 'ﬁ', '²', '\u{a0}', '\u{ad}', '\u{200b}', '\u{200d}', '\u{202e}',
    '\u{2028}', '\u{feff}', '\u{fffd}', '寿', 'ก', 'ั', '한', '\u{1112}', '\u{1161}', '\u{11ab}',
    '❤', '\u{fe0f}', '😀', '™',
];

/// Words that mean something to some reader.
const WORDS: &[&str] = &[
    "",
    "a",
    "cat",
    "red heart",
    "AT&amp;T",
    "&#x41;",
    "&amp;amp;lt;",
    "&#128;",
    "&eacute",
    "..",
    "../x",
    "/etc/passwd",
    "null",
    "true",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "s3://b/k",
    "file:///x",
    "model",
    "id",
    "a;b",
    "*.tar",
    "{}",
    "{name}",
    "__metadata__",
    "\u{feff}x",
];

/// Numbers at which readers break.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "-1",
    "-0.0",
    "0.5",
    "224",
    "255",
    "256",
    "4096",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "4294967520",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e-320",
    "1e-50",
    "1e39",
    "1e300",
    "1e308",
    "-1e308",
    "1e-7",
    "0.1",
];

/// A source of random choices.
#[derive(Debug)]
pub struct Draw<'a>(&'a mut TestRng);

impl<'a> Draw<'a> {
    /// Uses a generator of proptest.
    pub(crate) fn new(rng: &'a mut TestRng) -> Self {
        Self(rng)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a number below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// Returns true once in so many times.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        &from[self.below(from.len())]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Returns a small number, rarely a large one.
    pub(crate) fn size(&mut self) -> usize {
        match self.below(32) {
            0 => self.below(300),
            1..6 => self.below(20),
            _ => self.below(5),
        }
    }

    /// Returns a text of special characters, or a word with a meaning.
    pub(crate) fn text(&mut self) -> String {
        if self.one_in(3) {
            return (*self.pick(WORDS)).to_owned();
        }
        let length = self.size();
        (0..length).map(|_| self.letter()).collect()
    }

    pub(crate) fn letter(&mut self) -> char {
        if self.one_in(16) {
            char::from_u32(self.below(0x11_0000) as u32).unwrap_or('x')
        } else {
            *self.pick(LETTERS)
        }
    }

    /// Returns a number as JSON and TOML write it.
    pub(crate) fn numeral(&mut self) -> String {
        if self.one_in(3) { self.size().to_string() } else { (*self.pick(NUMBERS)).to_owned() }
    }
}
