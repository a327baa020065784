//! The number of items that pass through a tower at a time.
//!
//! A *batch* is part of the method: the loss is defined over a batch, so its size affects results.
//! A *micro-batch* is the part of a batch that a device processes at a time. Its size affects
//! results only by rounding, as sums run in a different order.
//!
//! A GPU reports when its memory is exhausted, and the engine then halves the size of passes. Linux
//! kills the process instead. On a CPU, passes are therefore limited in advance by an estimate of
//! their memory ([`Clip::pass_bytes`](crate::model::Clip::pass_bytes)). The limit is the same on
//! every machine, so that results are too.

use super::model::Error;

/// Limits on the size of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MicroBatch {
    max_items: i64,
    /// Passes above this size fail, for tests.
    fails_above: i64,
    max_bytes: u64,
}

impl MicroBatch {
    /// No limit: every batch is one pass.
    pub const UNLIMITED: Self =
        Self { max_items: i64::MAX, fails_above: i64::MAX, max_bytes: u64::MAX };

    /// Limits passes to this many items; 0 counts as 1.
    pub fn limited_to(items: i64) -> Self {
        Self { max_items: items.max(1), ..Self::UNLIMITED }
    }

    /// Additionally limits passes to this many items.
    #[must_use]
    pub fn and_limited_to(self, items: i64) -> Self {
        Self { max_items: self.max_items.min(items), ..self }
    }

    /// Limits the estimated memory of passes. A single item is always allowed.
    #[must_use]
    pub fn within_bytes(self, bytes: u64) -> Self {
        Self { max_bytes: bytes, ..self }
    }

    /// Applies the limit on memory to items that take this many bytes each.
    #[must_use]
    pub fn for_item_bytes(self, bytes: u64) -> Self {
        self.and_limited_to(i64::try_from(self.max_bytes / bytes.max(1)).unwrap_or(i64::MAX).max(1))
    }

    /// Makes passes over more than `items` items fail like on a device without enough memory, for
    /// tests.
    #[must_use]
    pub fn failing_above(self, items: i64) -> Self {
        Self { fails_above: items, ..self }
    }

    /// Returns `items`, or the most items of a pass if that is less.
    pub fn clamp(self, items: i64) -> i64 {
        self.max_items.min(items)
    }

    /// Divides items into passes. Returns the start and length of each.
    pub fn passes(self, items: i64) -> impl Iterator<Item = (i64, i64)> {
        let step = self.clamp(items).max(1);
        (0..items).step_by(step as usize).map(move |start| (start, step.min(items - start)))
    }

    /// Runs a pass over this many items.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device's memory is too small for it; otherwise the error of
    /// `act`.
    pub fn run<T>(self, items: i64, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if items > self.fails_above {
            return Err(Error::Memory {
                items,
                problem: format!("out of memory (simulated above {} items)", self.fails_above),
            });
        }
        act().map_err(|error| match error {
            Error::Torch(error) if is_out_of_memory(&error) => {
                Error::Memory { items, problem: error.to_string() }
            }
            other => other,
        })
    }
}

/// Returns whether an error means that a device's memory is exhausted. libtorch has no error code
/// for it, so this looks for the messages of its CUDA and CPU allocators, and of CUDA's libraries.
pub fn is_out_of_memory(error: &tch::TchError) -> bool {
    let text = error.to_string();
    ["out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, TchError, Tensor};

    use super::*;

    #[test]
    fn every_item_is_in_exactly_one_pass() {
        let cut =
            |limit: i64, items| MicroBatch::limited_to(limit).passes(items).collect::<Vec<_>>();
        assert_eq!(cut(4, 10), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(cut(0, 2), [(0, 1), (1, 1)]);
        assert_eq!(cut(4, 0), []);
        assert_eq!(MicroBatch::UNLIMITED.passes(7).collect::<Vec<_>>(), [(0, 7)]);
    }

    #[test]
    fn passes_respect_the_memory_limit() {
        let cut = |bytes, item| {
            MicroBatch::limited_to(100)
                .within_bytes(bytes)
                .for_item_bytes(item)
                .passes(10)
                .map(|(_, count)| count)
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(4 << 30, 1 << 30), [4, 4, 2]);
        assert_eq!(cut(1, 1 << 30), [1; 10]);
        assert_eq!(cut(u64::MAX, 1), [10]);
        assert_eq!(MicroBatch::limited_to(3).within_bytes(100).for_item_bytes(0).clamp(10), 3);
    }

    #[test]
    fn errors_of_exhausted_memory_are_recognized() {
        // Larger than any address space, so that the allocation fails on every machine.
        let pass = || Ok(Tensor::f_zeros([1 << 55], (Kind::Float, Device::Cpu))?);
        assert!(matches!(
            MicroBatch::UNLIMITED.run(12, pass),
            Err(Error::Memory { items: 12, .. })
        ));
        let cuda = TchError::Torch(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
                .into(),
        );
        assert!(is_out_of_memory(&cuda));
        let shapes = || {
            Ok(Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu))?
                .f_matmul(&Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu))?)?)
        };
        assert!(matches!(MicroBatch::UNLIMITED.run(12, shapes), Err(Error::Torch(_))));
    }

    #[test]
    fn a_pass_fails_above_the_simulated_limit() {
        let scarce = MicroBatch::UNLIMITED.failing_above(3);
        assert!(matches!(scarce.run(4, || Ok(())), Err(Error::Memory { items: 4, .. })));
        assert!(scarce.run(3, || Ok(())).is_ok());
    }
}
