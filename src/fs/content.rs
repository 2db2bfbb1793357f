//! The content of a file: shared, immutable bytes below, and the chunks that were written since above them.
//!
//! A chunk has 8 KiB, the block size of PostgreSQL's tables and of its write-ahead log (`BLCKSZ`, `XLOG_BLCKSZ`), so
//! that PostgreSQL's writes replace whole chunks and copy nothing from below. Chunks that were never written are
//! holes, which read as zeros and use no memory.

use std::{collections::BTreeMap, convert::Infallible, fs::File, io, ops::Range, os::unix::fs::FileExt, sync::Arc};

use sha2::{Digest, Sha256};

use super::{
    chunk::{CHUNK, Chunk},
    chunks::{Chunks, SharedChunk},
    extent::Extent,
};

const CHUNK_U64: u64 = CHUNK as u64;
/// The bytes that a chunk is counted with: its content, the reference counts and a slot in the map.
const CHUNK_COST: usize = CHUNK + 48;

/// The content of a file when its tree was frozen, shared by many files of many trees.
#[derive(Clone, Debug)]
struct Layer {
    extent: Option<Extent>,
    /// Chunks that replace the extent's bytes.
    chunks: Chunks,
}

impl Layer {
    /// Copies bytes of one chunk into `target`.
    fn read(&self, offset: u64, target: &mut [u8]) {
        if let Some(chunk) = self.chunks.get(offset / CHUNK_U64) {
            let within = within_chunk(offset);
            target.copy_from_slice(&chunk[within..within + target.len()]);
        } else if let Some(extent) = &self.extent {
            extent.read(offset, target);
        } else {
            target.fill(0);
        }
    }

    /// Whether the layer has no bytes at chunk `index`.
    fn is_hole(&self, index: u64) -> bool {
        self.chunks.get(index).is_none()
            && self.extent.as_ref().is_none_or(|extent| index.saturating_mul(CHUNK_U64) >= extent.len() as u64)
    }
}

/// The bytes of one file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    len: u64,
    base: Option<Arc<Layer>>,
    /// The base is not read from here on, because the file was truncated to this length.
    visible: u64,
    /// Chunks written since the last freeze; only this file holds them.
    changed: BTreeMap<u64, SharedChunk>,
}

/// The part of a read or write that falls into one chunk.
struct Piece {
    index: u64,
    /// The offset in the file at which it starts.
    offset: u64,
    /// Its range in the buffer.
    range: Range<usize>,
}

/// Splits `len` bytes at `offset` of a file at the boundaries of chunks.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let step = (CHUNK - within_chunk(at)).min(len - done);
        let range = done..done + step;
        done += step;
        (step > 0).then_some(Piece { index: at / CHUNK_U64, offset: at, range })
    })
}

/// The offset of the byte at `offset` in its chunk.
fn within_chunk(offset: u64) -> usize {
    (offset % CHUNK_U64) as usize
}

/// Copies bytes of one chunk from below the changed chunks; from `visible` on they are zeros.
fn read_base(base: Option<&Layer>, visible: u64, offset: u64, target: &mut [u8]) {
    let Some(base) = base else {
        return target.fill(0);
    };
    let shown = usize::try_from(visible.saturating_sub(offset)).map_or(target.len(), |shown| shown.min(target.len()));
    let (seen, hidden) = target.split_at_mut(shown);
    base.read(offset, seen);
    hidden.fill(0);
}

/// A chunk that can be written to: a copy if a frozen tree shares it.
fn unshared(chunk: &mut SharedChunk) -> &mut [u8; CHUNK] {
    &mut *Arc::make_mut(chunk)
}

impl Content {
    /// The bytes of `extent`, which the file shares.
    #[must_use]
    pub fn from_extent(extent: Extent) -> Self {
        Self::of_length(extent.len() as u64, extent)
    }

    /// A file of `len` bytes that begins with the bytes of `extent`; the rest is a hole.
    #[must_use]
    pub(super) fn of_length(len: u64, extent: Extent) -> Self {
        let base = (!extent.is_empty()).then(|| Arc::new(Layer { extent: Some(extent), chunks: Chunks::default() }));
        Self { len, base, visible: len, changed: BTreeMap::new() }
    }

    /// The file's length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes from `offset` on into `buffer`, up to the end of the file, and returns how many.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let rest = self.len.saturating_sub(offset);
        let wanted = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        for piece in pieces(offset, wanted) {
            self.read_piece(piece.index, piece.offset, &mut buffer[piece.range]);
        }
        wanted
    }

    fn read_piece(&self, index: u64, offset: u64, target: &mut [u8]) {
        if let Some(chunk) = self.changed.get(&index) {
            let within = within_chunk(offset);
            target.copy_from_slice(&chunk[within..within + target.len()]);
        } else {
            read_base(self.base.as_deref(), self.visible, offset, target);
        }
    }

    /// Writes `bytes` at `offset`; a gap between the old end and `offset` becomes a hole.
    ///
    /// The caller keeps `offset + bytes.len()` within `i64::MAX`, the largest length a file can have.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) {
        for piece in pieces(offset, bytes.len()) {
            let bytes = &bytes[piece.range];
            if let Ok(bytes) = bytes.try_into() {
                self.replace_chunk(piece.index, bytes);
            } else {
                let within = within_chunk(piece.offset);
                self.chunk_to_change(piece.index)[within..within + bytes.len()].copy_from_slice(bytes);
            }
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    fn replace_chunk(&mut self, index: u64, bytes: &[u8; CHUNK]) {
        if let Some(chunk) = self.changed.get_mut(&index) {
            match Arc::get_mut(chunk) {
                Some(unshared) => unshared.copy_from_slice(bytes),
                None => *chunk = Arc::new(Chunk::new(bytes)),
            }
        // PostgreSQL fills every new WAL segment with zeros (`wal_init_zero`): 16 MiB that need no memory.
        } else if !(self.is_hole(index) && is_zero(bytes)) {
            self.changed.insert(index, Arc::new(Chunk::new(bytes)));
        }
    }

    /// The changed chunk `index`; a new one is a copy of the bytes below.
    fn chunk_to_change(&mut self, index: u64) -> &mut [u8; CHUNK] {
        let chunk = self.changed.entry(index).or_insert_with(|| {
            let mut bytes = [0; CHUNK];
            read_base(self.base.as_deref(), self.visible, index * CHUNK_U64, &mut bytes);
            Arc::new(Chunk::new(&bytes))
        });
        unshared(chunk)
    }

    fn is_hole(&self, index: u64) -> bool {
        !self.changed.contains_key(&index)
            && (index.saturating_mul(CHUNK_U64) >= self.visible
                || self.base.as_ref().is_none_or(|base| base.is_hole(index)))
    }

    /// Truncates the file to `len`, or extends it with a hole.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.changed.split_off(&len.div_ceil(CHUNK_U64));
            if let Some(last) = self.changed.get_mut(&(len / CHUNK_U64)) {
                unshared(last)[within_chunk(len)..].fill(0);
            }
            self.visible = self.visible.min(len);
        }
        self.len = len;
    }

    /// Approximate number of bytes that only this file holds.
    #[must_use]
    pub fn private_bytes(&self) -> usize {
        self.changed.len() * CHUNK_COST
    }

    /// As [`Self::private_bytes`], with its holes after the base counted as if they were filled, which no write is
    /// refused for.
    #[must_use]
    pub(super) fn promised_bytes(&self) -> u64 {
        (self.private_bytes() as u64).max(self.len.saturating_sub(self.visible))
    }

    /// Moves the changed chunks into the layer below, which clones of this content share.
    pub(super) fn freeze(&mut self) {
        if self.changed.is_empty() {
            return;
        }
        let mut layer = match self.base.take() {
            Some(base) => Arc::unwrap_or_clone(base),
            None => Layer { extent: None, chunks: Chunks::default() },
        };
        layer.extent = layer.extent.map(|extent| extent.shortened(self.visible));
        layer.chunks.truncate(self.visible.div_ceil(CHUNK_U64));
        if let Some(last) = layer.chunks.get_mut(self.visible / CHUNK_U64) {
            unshared(last)[within_chunk(self.visible)..].fill(0);
        }
        layer.chunks.append(&mut self.changed);
        self.base = Some(Arc::new(layer));
        self.visible = self.len;
    }

    /// Writes everything that is not zero to `target`, from offset `start` on, and returns the offset after the last
    /// byte.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn write_to(&self, target: &File, start: u64) -> io::Result<u64> {
        let mut end = 0;
        self.each_chunk(|offset, bytes| {
            end = offset + bytes.len() as u64;
            target.write_all_at(bytes, start + offset)
        })?;
        Ok(end)
    }

    /// The SHA-256 of what [`Content::write_to`] writes, and where. It does not depend on how long the hole at the end
    /// is.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let hashed = self.each_chunk(|offset, bytes| {
            hash.update(offset.to_le_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
            Ok::<_, Infallible>(())
        });
        let Ok(()) = hashed;
        hash.finalize().into()
    }

    /// Calls `visit` with the chunks that are not zero, in ascending order, each with its offset.
    fn each_chunk<E>(&self, mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut chunk = [0; CHUNK];
        for index in self.occupied() {
            let offset = index * CHUNK_U64;
            let count = self.read_at(offset, &mut chunk);
            if !is_zero(&chunk[..count]) {
                visit(offset, &chunk[..count])?;
            }
        }
        Ok(())
    }

    /// The chunks that may contain bytes other than zero, in ascending order.
    pub(super) fn occupied(&self) -> Vec<u64> {
        let mut indexes: Vec<u64> = self.changed.keys().copied().collect();
        if let Some(base) = &self.base {
            let extent = base.extent.as_ref().map_or(0, |extent| extent.len() as u64);
            indexes.extend(0..extent.min(self.visible).div_ceil(CHUNK_U64));
            indexes.extend(base.chunks.numbers(self.visible.div_ceil(CHUNK_U64)));
        }
        indexes.sort_unstable();
        indexes.dedup();
        indexes
    }
}

/// Whether there are only zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // By blocks, which the compiler compares with wide registers: 160 MB that are mostly zeros take milliseconds.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| *block == [0; 64]) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests;
