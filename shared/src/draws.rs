//! Pseudo-random numbers that are the same on every machine, thread and version (SplitMix64):
//! nothing in a release may depend on where it was made.

use crate::digest::Digest;

/// A stream of numbers, fixed by its seed.
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// Creates the stream for a digest.
    pub fn seeded(digest: Digest) -> Self {
        Self(digest.as_bytes().iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a uniformly distributed number above 0 and at most 1.
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number from the standard normal distribution (Box–Muller; the second of each pair
    /// is not used).
    pub fn normal(&mut self) -> f32 {
        let (radius, angle) =
            ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        (radius * angle.cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_spread_and_the_same_every_time() {
        let many = |seed: &[u8]| -> Vec<f64> {
            let mut draws = Draws::seeded(Digest::of(seed));
            (0..4000).map(|_| draws.uniform()).collect()
        };
        let first = many(b"a");
        assert!(first.iter().all(|&value| value > 0.0 && value <= 1.0));
        assert!((first.iter().sum::<f64>() / 4000.0 - 0.5).abs() < 0.02);
        assert_eq!(first, many(b"a"));
        assert_ne!(first, many(b"b"));
        let mut draws = Draws::seeded(Digest::of(b"n"));
        let normal: Vec<f64> = (0..4000).map(|_| f64::from(draws.normal())).collect();
        assert!((normal.iter().map(|value| value * value).sum::<f64>() / 4000.0 - 1.0).abs() < 0.1);
    }
}
