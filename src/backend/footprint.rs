//! How much memory a backend has for itself, counted without disturbing it.

use std::{
    fs::File,
    io,
    iter::Sum,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::param::page_size;

use crate::{backend::Backend, fs::Tree, image::TouchedPages};

/// Bytes that a backend shares with no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrivateBytes {
    /// Pages of linear memory that it has written.
    pub memory: u64,
    /// Parts of files that it has written.
    pub files: u64,
}

impl PrivateBytes {
    /// Memory and files together.
    #[must_use]
    pub fn sum(self) -> u64 {
        self.memory + self.files
    }
}

impl Sum for PrivateBytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |total, one| Self {
            memory: total.memory + one.memory,
            files: total.files + one.files,
        })
    }
}

/// Where a backend's memory and files are.
pub(crate) struct Footprint(Mutex<Spans>);

struct Spans {
    /// The first address of the linear memory, which does not move.
    memory: usize,
    size: Arc<AtomicUsize>,
    tree: Arc<Mutex<Tree>>,
}

impl Spans {
    fn of(backend: &mut Backend) -> anyhow::Result<Self> {
        let (memory, size) = backend.memory_range()?;
        Ok(Self { memory, size, tree: backend.guest().files.tree().clone() })
    }
}

impl Footprint {
    /// That of `backend`.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn of(backend: &mut Backend) -> anyhow::Result<Self> {
        Ok(Self(Mutex::new(Spans::of(backend)?)))
    }

    /// The backend's files.
    pub(crate) fn tree(&self) -> Arc<Mutex<Tree>> {
        self.0.lock().tree.clone()
    }

    /// Follows `backend` to where its memory and its files are now.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn follow(&self, backend: &mut Backend) -> anyhow::Result<()> {
        *self.0.lock() = Spans::of(backend)?;
        Ok(())
    }

    /// The bytes of memory and of disk that count against the quota of its cluster.
    pub(crate) fn used(&self) -> (u64, u64) {
        self.0.lock().tree.lock().quota().used()
    }

    /// Counts, from any thread.
    ///
    /// # Errors
    /// When `/proc` is not there or too old.
    pub(crate) fn count(&self, pages: &PageMap) -> io::Result<PrivateBytes> {
        let places = self.0.lock();
        let memory = pages.private_bytes(places.memory, places.size.load(Ordering::Relaxed))?;
        let files = places.tree.lock().private_bytes() as u64;
        Ok(PrivateBytes { memory, files })
    }
}

/// Linux' `/proc/self/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`): a word of flags for every page of this
/// process.
pub(crate) struct PageMap(File);

/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// The page is in swap space.
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file or is shared, so it was not copied on a write.
const FILE: u64 = 1 << 61;
/// The page is mapped once, unlike the page of zeros, which all mappings share until they write.
const EXCLUSIVE: u64 = 1 << 56;

impl PageMap {
    /// # Errors
    /// The operating system's.
    pub(crate) fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// The bytes of the `size` bytes at address `start` in pages that this process has written in private mappings.
    fn private_bytes(&self, start: usize, size: usize) -> io::Result<u64> {
        let mut pages = 0;
        self.each_present(start, size, |_, is_written| pages += u64::from(is_written))?;
        Ok(pages * page_size() as u64)
    }

    /// The pages that `backend` has looked at or written.
    ///
    /// # Errors
    /// When `/proc` is not there or too old.
    pub(crate) fn touched(backend: &Backend) -> anyhow::Result<TouchedPages> {
        let (start, size) = backend.memory_range()?;
        let mut touched = TouchedPages::default();
        Self::open()?.each_present(start, size.load(Ordering::Relaxed), |page, is_written| {
            touched.add(page * page_size() - start, is_written);
        })?;
        Ok(touched)
    }

    /// The parts of the `size` bytes at address `start` that are not zero or were not looked at, by their offsets, for
    /// memory that is not mapped from a file.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn used(&self, start: usize, size: usize) -> io::Result<Vec<Range<u64>>> {
        let page = page_size() as u64;
        let mut used: Vec<Range<u64>> = Vec::new();
        self.each_present(start, size, |number, _| {
            let at = (number * page_size() - start) as u64;
            match used.last_mut() {
                Some(last) if last.end == at => last.end += page,
                _ => used.push(at..at + page),
            }
        })?;
        Ok(used)
    }

    /// Calls `each` with the number of every page that is there, and whether it has been written.
    fn each_present(&self, start: usize, size: usize, mut each: impl FnMut(usize, bool)) -> io::Result<()> {
        /// Pages whose words are read at once.
        const BATCH: usize = 8192;
        const WORD: usize = size_of::<u64>();
        let page = page_size();
        let mut words = vec![0; BATCH * WORD];
        let (mut next, end) = (start / page, (start + size).div_ceil(page));
        while next < end {
            let count = BATCH.min(end - next);
            let words = &mut words[..count * WORD];
            self.0.read_exact_at(words, (next * WORD) as u64)?;
            for (page, word) in (next..).zip(words.as_chunks::<WORD>().0) {
                let word = u64::from_le_bytes(*word);
                if word & (PRESENT | SWAPPED) != 0 {
                    let is_own = word & SWAPPED != 0 || word & EXCLUSIVE != 0;
                    each(page, is_own && word & FILE == 0);
                }
            }
            next += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn only_pages_that_were_written_count() {
        let page = page_size();
        let pages = PageMap::open().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![1; 8 * page], 0).unwrap();
        // SAFETY: no other process has the file.
        let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.unwrap();
        let mut nothing = MmapMut::map_anon(4 * page).unwrap();
        let count = |map: &MmapMut| pages.private_bytes(map.as_ptr().addr(), map.len()).unwrap();
        assert_eq!(map.iter().map(|byte| usize::from(*byte)).sum::<usize>(), 8 * page);
        assert_eq!(nothing.iter().filter(|byte| **byte != 0).count(), 0);
        assert_eq!((count(&map), count(&nothing)), (0, 0), "reading makes nothing private");
        map[0] = 2;
        map[5 * page] = 2;
        nothing[page] = 2;
        assert_eq!((count(&map), count(&nothing)), (2 * page as u64, page as u64));
    }

    #[test]
    fn pages_that_were_not_used_are_zero() {
        let page = page_size();
        let mut map = MmapMut::map_anon(8 * page).unwrap();
        for used in [2, 3, 5] {
            map[used * page] = 1;
        }
        let used = PageMap::open().unwrap().used(map.as_ptr().addr(), map.len()).unwrap();
        let page = page as u64;
        assert_eq!(used, [2 * page..4 * page, 5 * page..6 * page]);
    }
}
