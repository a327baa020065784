//! Checkpoints for tests.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

/// Writes a safetensors file with these float32 vectors.
pub(crate) fn write(path: &Path, tensors: &[(&str, &[f32])]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, values), bytes)| {
            (*name, TensorView::new(Dtype::F32, vec![values.len()], bytes).unwrap())
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
