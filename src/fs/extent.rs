//! Immutable bytes that many files share: a range of a mapped host file, or of a buffer.

use std::{fmt, sync::Arc};

use memmap2::Mmap;

/// The memory that holds the bytes of extents.
pub enum Source {
    /// A buffer.
    Owned(Vec<u8>),
    /// A host file, mapped read-only.
    Mapped(Mmap),
}

impl Source {
    /// All bytes of the source.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// A range of a [`Source`]; copying it copies no bytes.
#[derive(Clone)]
pub struct Extent {
    source: Arc<Source>,
    start: usize,
    len: usize,
}

impl Extent {
    /// `len` bytes of `source` from `start` on, or `None` if the source ends before that.
    #[must_use]
    pub fn new(source: Arc<Source>, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= source.bytes().len()).then_some(Self { source, start, len })
    }

    /// The whole of a buffer.
    #[must_use]
    pub fn owned(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self { source: Arc::new(Source::Owned(bytes)), start: 0, len }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.start..self.start + self.len]
    }

    /// The first `len` bytes, or all if there are fewer.
    #[must_use]
    pub(super) fn shortened(&self, len: u64) -> Self {
        Self {
            source: Arc::clone(&self.source),
            start: self.start,
            len: usize::try_from(len).map_or(self.len, |len| len.min(self.len)),
        }
    }

    /// Copies the bytes from `offset` on into `target`; after the end of the extent they are zero.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.bytes().get(offset..)).unwrap_or_default();
        let present = bytes.len().min(target.len());
        let (filled, rest) = target.split_at_mut(present);
        filled.copy_from_slice(&bytes[..present]);
        rest.fill(0);
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Extent({}..+{})", self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_past_the_end_of_its_source_does_not_come_into_being() {
        let source = Arc::new(Source::Owned(vec![7; 10]));
        assert!(Extent::new(Arc::clone(&source), 4, 6).is_some());
        assert!(Extent::new(Arc::clone(&source), 4, 7).is_none());
        assert!(Extent::new(source, usize::MAX, 2).is_none());
    }

    #[test]
    fn reading_past_the_end_of_an_extent_gives_zeros() {
        let extent = Extent::owned(vec![1, 2, 3]);
        let mut target = [9; 5];
        extent.read(1, &mut target);
        assert_eq!(target, [2, 3, 0, 0, 0]);
        extent.read(u64::MAX, &mut target);
        assert_eq!(target, [0; 5]);
    }
}
