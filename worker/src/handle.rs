//! A tensor that threads share.

use std::sync::{Mutex, PoisonError};

use tch::Tensor;

/// A tensor that is never written to. libtorch's handles may move between threads but not be shared, so each thread
/// asks for its own; the memory is one.
#[derive(Debug)]
pub struct SharedTensor(Mutex<Tensor>);

impl SharedTensor {
    /// Shares this tensor.
    pub fn new(tensor: Tensor) -> Self {
        Self(Mutex::new(tensor))
    }

    /// A handle of the caller's own.
    pub fn get(&self) -> Tensor {
        // Nothing in here can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }
}
