//! A bound on the extension records of a tar file: pax headers, and the long names of GNU.
//!
//! The `tar` library holds such a record in memory, whatever size its header announces.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::printable::printable;

/// Largest extension record, bytes. A path has at most 1,024 bytes, and Linux bounds the extended
/// attributes of a file to some 100 KiB on most file systems.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// Bytes of a tar block.
const BLOCK: usize = 512;

/// A reader that fails at the header of an extension record that is too large, before the record is
/// read. The error has the kind [`io::ErrorKind::FileTooLarge`].
///
/// `tar` reads every header as one block that begins at a multiple of a block, behind the contents
/// of the member before. Other reads are passed on as they are.
pub(super) struct Bounded<R> {
    inner: R,
    position: u64,
    contents_end: ContentsEnd,
    header: [u8; BLOCK],
    /// Bytes of the header that were read; all of them, while contents are read.
    filled: usize,
}

/// Where the contents of the last member end, bytes, with what fills their last block.
#[derive(Clone, Default)]
pub(super) struct ContentsEnd(Arc<AtomicU64>);

impl ContentsEnd {
    pub(super) fn set(&self, position: u64) {
        self.0.store(position, Ordering::Relaxed);
    }
}

impl<R> Bounded<R> {
    pub(super) fn new(inner: R, contents_end: ContentsEnd) -> Self {
        Self { inner, position: 0, contents_end, header: [0; BLOCK], filled: BLOCK }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position.is_multiple_of(BLOCK as u64) {
            let is_contents = self.position < self.contents_end.0.load(Ordering::Relaxed);
            self.filled = if buffer.len() == BLOCK && !is_contents { 0 } else { BLOCK };
        }
        let n = self.inner.read(buffer)?;
        self.position += n as u64;
        let of_header = n.min(BLOCK - self.filled);
        if of_header > 0 {
            self.header[self.filled..][..of_header].copy_from_slice(&buffer[..of_header]);
            self.filled += of_header;
            if self.filled == BLOCK {
                check(&self.header)?;
            }
        }
        Ok(n)
    }
}

/// Checks the size that a header announces.
fn check(block: &[u8; BLOCK]) -> io::Result<()> {
    let header = tar::Header::from_byte_slice(block);
    let kind = header.entry_type();
    let what = if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
        "pax header"
    } else if kind.is_gnu_longname() || kind.is_gnu_longlink() {
        "long name"
    } else {
        return Ok(());
    };
    match header.entry_size() {
        Ok(size) if size > MAX_EXTENSION => {
            let name = printable(&String::from_utf8_lossy(&header.path_bytes()));
            let problem = format!(
                "the {what} `{name}` announces {size} bytes, at most {MAX_EXTENSION} are read; write the shard again without \
                 extended attributes"
            );
            Err(io::Error::new(io::ErrorKind::FileTooLarge, problem))
        }
        // `tar` finds a malformed size itself.
        _ => Ok(()),
    }
}
