//! Reading weights in pieces, so that a checkpoint of any size needs only a few megabytes of
//! memory: digests, and the check for values that are not finite.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;

use super::error::Error;
use super::file::TensorInfo;
use super::reader::Checkpoint;
use crate::digest::{Digest, Hasher};
use crate::reference::ArtifactRef;

/// Bytes read at once; a multiple of every element's size.
const PIECE: usize = 1 << 20;

/// Tensors with other bytes than the checkpoint's, of the same sizes.
type Changed = BTreeMap<String, Vec<u8>>;

impl Checkpoint {
    /// Returns the SHA-256 over the bytes of all tensors in name order: `digest` in
    /// `composition.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn digest(&self) -> Result<Digest, Error> {
        self.digest_with(&Changed::new())
    }

    /// Returns the [digest](Self::digest) of the checkpoint with these tensors changed.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn digest_with(&self, changed: &Changed) -> Result<Digest, Error> {
        let mut hasher = Hasher::new();
        let mut pieces = Pieces::of(self);
        for (name, info) in &self.tensors {
            match changed.get(name) {
                Some(bytes) => hasher.update(bytes),
                None => pieces.read(info.file, info.range.clone(), |piece| hasher.update(piece))?,
            }
        }
        Ok(hasher.finish())
    }

    /// Returns SHA-256 and size of each weight file with these tensors changed, by name.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn files_with(&self, changed: &Changed) -> Result<BTreeMap<String, ArtifactRef>, Error> {
        let mut pieces = Pieces::of(self);
        let mut files = BTreeMap::new();
        for (number, file) in self.files.iter().enumerate() {
            let mut hasher = Hasher::new();
            let mut at = 0;
            for (info, bytes) in self.in_file_order(number, changed) {
                pieces.read(number, at..info.range.start, |piece| hasher.update(piece))?;
                hasher.update(bytes);
                at = info.range.end;
            }
            pieces.read(number, at..file.bytes, |piece| hasher.update(piece))?;
            files.insert(
                file.name.clone(),
                ArtifactRef { digest: hasher.finish(), bytes: file.bytes },
            );
        }
        Ok(files)
    }

    /// Returns the changed tensors of one file in file order.
    pub(super) fn in_file_order<'a>(
        &'a self,
        file: usize,
        changed: &'a Changed,
    ) -> Vec<(&'a TensorInfo, &'a [u8])> {
        let known = changed
            .iter()
            .filter_map(|(name, bytes)| Some((self.tensors.get(name)?, bytes.as_slice())));
        let mut here: Vec<_> = known.filter(|(info, _)| info.file == file).collect();
        here.sort_by_key(|(info, _)| info.range.start);
        here
    }

    /// Returns the names of floating-point tensors that contain NaN or infinities.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn non_finite(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let mut pieces = Pieces::of(self);
        for (name, info) in &self.tensors {
            let mut finite = true;
            pieces.read(info.file, info.range.clone(), |piece| {
                finite = finite && all_finite(piece, info.dtype)
            })?;
            if !finite {
                names.push(name.clone());
            }
        }
        Ok(names)
    }
}

/// Reads ranges of weight files through one buffer.
struct Pieces<'a> {
    checkpoint: &'a Checkpoint,
    buffer: Vec<u8>,
}

impl<'a> Pieces<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, buffer: vec![0; PIECE] }
    }

    /// Reads a range of a file in pieces, and fails when the file was changed meanwhile.
    fn read(
        &mut self,
        file: usize,
        range: Range<u64>,
        mut act: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let file = &self.checkpoint.files[file];
        for start in range.clone().step_by(PIECE) {
            let piece = &mut self.buffer[..(PIECE as u64).min(range.end - start) as usize];
            file.read_at(piece, start)?;
            act(piece);
        }
        file.check_unchanged()
    }
}

/// Whether values are all finite; types without infinities always are.
fn all_finite(bytes: &[u8], dtype: Dtype) -> bool {
    // A float is not finite when all its exponent bits are set.
    fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks_exact gives N bytes"))
    }
    match dtype {
        Dtype::F32 => words::<4>(bytes).all(|w| u32::from_le_bytes(w) & 0x7f80_0000 != 0x7f80_0000),
        Dtype::F16 => words::<2>(bytes).all(|w| u16::from_le_bytes(w) & 0x7c00 != 0x7c00),
        Dtype::BF16 => words::<2>(bytes).all(|w| u16::from_le_bytes(w) & 0x7f80 != 0x7f80),
        Dtype::F64 => words::<8>(bytes).all(|w| f64::from_le_bytes(w).is_finite()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn the_digest_is_over_tensor_bytes_in_name_order() {
        let folder = tempfile::tempdir().unwrap();
        fixture::write(&folder.path().join("model.safetensors"), &[("b", &[2.0]), ("a", &[1.0])]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let bytes: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(checkpoint.digest().unwrap(), Digest::of(&bytes));
        let changed = BTreeMap::from([("a".to_owned(), 3f32.to_le_bytes().to_vec())]);
        let bytes: Vec<u8> = [3f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(checkpoint.digest_with(&changed).unwrap(), Digest::of(&bytes));
    }

    #[test]
    fn tensors_larger_than_a_piece_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut large = vec![1f32; 3 * PIECE / 4 / 2 + 5];
        let path = folder.path().join("model.safetensors");
        fixture::write(&path, &[("a", &large), ("b", &[4.0])]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let bytes: Vec<u8> = large.iter().chain(&[4.0]).flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(checkpoint.digest().unwrap(), Digest::of(&bytes));
        let whole = std::fs::read(&path).unwrap();
        let expected = ArtifactRef { digest: Digest::of(&whole), bytes: whole.len() as u64 };
        assert_eq!(checkpoint.files_with(&Changed::new()).unwrap()["model.safetensors"], expected);
        assert!(checkpoint.non_finite().unwrap().is_empty());
        *large.last_mut().unwrap() = f32::NAN;
        fixture::write(&path, &[("a", &large), ("b", &[4.0])]);
        assert_eq!(Checkpoint::open(folder.path()).unwrap().non_finite().unwrap(), ["a"]);
    }

    #[test]
    fn finds_what_is_not_finite() {
        let folder = tempfile::tempdir().unwrap();
        let tensors: [(&str, &[f32]); 3] = [
            ("good", &[1.0, -3.0e38]),
            ("nan", &[0.0, f32::NAN]),
            ("infinite", &[f32::NEG_INFINITY]),
        ];
        fixture::write(&folder.path().join("model.safetensors"), &tensors);
        assert_eq!(
            Checkpoint::open(folder.path()).unwrap().non_finite().unwrap(),
            ["infinite", "nan"]
        );
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        assert!(
            all_finite(&half(65504.0), Dtype::F16) && !all_finite(&half(f32::INFINITY), Dtype::F16)
        );
        let brain = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        assert!(
            all_finite(&brain(3e38), Dtype::BF16) && !all_finite(&brain(f32::NAN), Dtype::BF16)
        );
        assert!(
            all_finite(&f64::MAX.to_le_bytes(), Dtype::F64)
                && !all_finite(&f64::NAN.to_le_bytes(), Dtype::F64)
        );
        assert!(all_finite(&[0xff; 8], Dtype::I64));
    }
}
