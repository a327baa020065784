//! How many items go through a tower in one pass.
//!
//! A *batch* belongs to the method: a loss is over so many pairs, and another batch is another result. A *micro-batch* is
//! what a device holds at one time. What a batch gives does not depend on how it is cut, but for the last bits of sums.
//!
//! A GPU says when its memory is exhausted, and the engine halves its passes. Linux does not: it kills the process. So on a CPU
//! passes are bounded beforehand, by what they take by estimate ([`Clip::pass_bytes`](crate::model::Clip::pass_bytes)), and by the
//! same bound on every machine, so that results are the same.

use super::model::Error;

/// The most items of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MicroBatch {
    most: i64,
    fits: i64,
    bytes: u64,
}

impl MicroBatch {
    /// Batches as the method has them.
    pub const WHOLE: Self = Self { most: i64::MAX, fits: i64::MAX, bytes: u64::MAX };

    /// At most this many items a pass; 0 counts as 1.
    pub fn of(most: i64) -> Self {
        Self { most: most.max(1), ..Self::WHOLE }
    }

    /// The same with no more than this many items a pass.
    #[must_use]
    pub fn and_at_most(self, most: i64) -> Self {
        Self { most: self.most.min(most), ..self }
    }

    /// The same with passes that take no more than this by estimate, one item at least.
    #[must_use]
    pub fn within(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// The same for items that take this many bytes each.
    #[must_use]
    pub fn for_items_of(self, bytes: u64) -> Self {
        self.and_at_most(i64::try_from(self.bytes / bytes.max(1)).unwrap_or(i64::MAX).max(1))
    }

    /// For tests: a pass over more than `fits` items fails as on a device without memory.
    #[must_use]
    pub fn failing_above(self, fits: i64) -> Self {
        Self { fits, ..self }
    }

    /// `items`, or the most that a pass may have.
    pub fn at_most(self, items: i64) -> i64 {
        self.most.min(items)
    }

    /// Start and length of each pass over this many items.
    pub fn cut(self, items: i64) -> impl Iterator<Item = (i64, i64)> {
        let step = self.at_most(items).max(1);
        (0..items).step_by(step as usize).map(move |start| (start, step.min(items - start)))
    }

    /// Does a pass over this many items.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device's memory does not hold it; otherwise what `act` gives.
    pub fn pass<T>(self, items: i64, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if items > self.fits {
            return Err(Error::Memory { items, problem: format!("out of memory, as asked for above {} items", self.fits) });
        }
        act().map_err(|error| match error {
            Error::Torch(error) if is_out_of_memory(&error) => Error::Memory { items, problem: error.to_string() },
            other => other,
        })
    }
}

/// Whether a device's memory was exhausted. libtorch has no code for it; these are the words of its CUDA and CPU
/// allocators, and of CUDA's own libraries.
pub fn is_out_of_memory(error: &tch::TchError) -> bool {
    let text = error.to_string();
    ["out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED"].iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, TchError, Tensor};

    use super::*;

    #[test]
    fn every_item_is_in_one_pass() {
        let cut = |most: i64, items| MicroBatch::of(most).cut(items).collect::<Vec<_>>();
        assert_eq!(cut(4, 10), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(cut(0, 2), [(0, 1), (1, 1)]);
        assert_eq!(cut(4, 0), []);
        assert_eq!(MicroBatch::WHOLE.cut(7).collect::<Vec<_>>(), [(0, 7)]);
    }

    #[test]
    fn passes_stay_within_their_memory() {
        let cut = |bytes, item| MicroBatch::of(100).within(bytes).for_items_of(item).cut(10).map(|(_, count)| count).collect::<Vec<_>>();
        assert_eq!(cut(4 << 30, 1 << 30), [4, 4, 2]);
        assert_eq!(cut(1, 1 << 30), [1; 10]);
        assert_eq!(cut(u64::MAX, 1), [10]);
        assert_eq!(MicroBatch::of(3).within(100).for_items_of(0).at_most(10), 3);
    }

    #[test]
    fn what_libtorch_says_without_memory_is_understood() {
        // More than any address space has: the allocator refuses, whatever the machine.
        let pass = || Ok(Tensor::f_zeros([1 << 55], (Kind::Float, Device::Cpu))?);
        assert!(matches!(MicroBatch::WHOLE.pass(12, pass), Err(Error::Memory { items: 12, .. })));
        let cuda = TchError::Torch("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB".into());
        assert!(is_out_of_memory(&cuda));
        let shapes =
            || Ok(Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu))?.f_matmul(&Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu))?)?);
        assert!(matches!(MicroBatch::WHOLE.pass(12, shapes), Err(Error::Torch(_))));
    }

    #[test]
    fn a_pass_fails_where_a_test_wants_it() {
        let scarce = MicroBatch::WHOLE.failing_above(3);
        assert!(matches!(scarce.pass(4, || Ok(())), Err(Error::Memory { items: 4, .. })));
        assert!(scarce.pass(3, || Ok(())).is_ok());
    }
}
