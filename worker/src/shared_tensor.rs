//! A tensor that threads share.

use std::sync::{Mutex, PoisonError};

use tch::Tensor;

/// A tensor that several threads read and none writes.
///
/// libtorch's handles may move between threads but must not be shared, so every thread takes a
/// handle of its own to the same memory.
#[derive(Debug)]
pub struct SharedTensor(Mutex<Tensor>);

impl SharedTensor {
    /// Shares a tensor, which must not be written to from now on.
    pub fn new(tensor: Tensor) -> Self {
        Self(Mutex::new(tensor))
    }

    /// Returns a new handle to the tensor, for the calling thread.
    pub fn get(&self) -> Tensor {
        // A poisoned lock is harmless: cloning a handle never leaves the tensor half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }
}
