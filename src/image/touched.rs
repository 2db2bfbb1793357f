//! The pages of an image that a session touches, which others get before they run.

use std::{
    hint::black_box,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::param::page_size;
use serde::{Deserialize, Serialize};
use wasmtime::{AsContext, AsContextMut, Memory};

/// The pages of a memory that a session has touched, by their offsets.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "whatever offsets were read, the unsafe code checks them against the memory"
)]
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TouchedPages {
    written: Vec<Range<usize>>,
    /// One page of each neighbourhood from which a page was read.
    read: Vec<usize>,
}

/// When a page of a file is read, Linux also maps those neighbours that are in its page cache, within 64 KiB
/// (`fault_around_bytes` in `mm/memory.c`).
const NEIGHBOURHOOD: usize = 64 << 10;

impl TouchedPages {
    /// Adds the page at `offset`, which must be larger than the offsets added before.
    pub(crate) fn add(&mut self, offset: usize, is_written: bool) {
        if is_written {
            match self.written.last_mut() {
                Some(last) if last.end == offset => last.end += page_size(),
                _ => self.written.push(offset..offset + page_size()),
            }
        } else if self.read.last().is_none_or(|last| last / NEIGHBOURHOOD != offset / NEIGHBOURHOOD) {
            self.read.push(offset);
        }
    }

    /// Copies the pages that a session will write, before they are read: a page that is read first is mapped twice.
    pub(crate) fn copy_written(&self, store: &mut impl AsContextMut, memory: Memory) {
        let (base, size) = (memory.data_ptr(&*store), memory.data_size(&*store));
        let is_inside = |range: &&Range<usize>| {
            [range.start, range.end].iter().all(|at| at.is_multiple_of(page_size())) && range.end <= size
        };
        for range in self.written.iter().filter(is_inside) {
            for offset in range.clone().step_by(page_size()) {
                // SAFETY: the word begins a page inside the memory, where every value is valid. The store is borrowed
                // for writing, so the guest does not run and no slice of its memory exists. Another thread may store 1
                // into `InterruptPending` meanwhile (`Signals`), which is an atomic word as well.
                let word = unsafe { AtomicU32::from_ptr(base.add(offset).cast()) };
                // This changes no value but makes the page writable. One page fault each takes less time than madvise
                // with MADV_POPULATE_WRITE.
                let _ = word.compare_exchange(black_box(0), 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Reads one byte of each page that a session will read.
    pub(crate) fn look_at_read(&self, store: &impl AsContext, memory: Memory) {
        let (base, size) = (memory.data_ptr(store), memory.data_size(store));
        for &offset in self.read.iter().filter(|offset| **offset < size) {
            // SAFETY: the byte lies inside the memory, which is not written meanwhile: the guest does not run while
            // its store is borrowed, and no other thread has the signals of a backend without a client. The read must
            // not be optimised away.
            unsafe { base.add(offset).read_volatile() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{new_memory, present},
        *,
    };

    fn touched(pages: &[(usize, bool)]) -> TouchedPages {
        let mut touched = TouchedPages::default();
        pages.iter().for_each(|&(page, is_written)| touched.add(page * page_size(), is_written));
        touched
    }

    #[test]
    fn written_pages_beside_each_other_are_joined_and_others_are_not() {
        let touched = touched(&[(0, true), (1, true), (3, true), (4, true), (6, true)]);
        let page = page_size();
        assert_eq!(touched.written, [0..2 * page, 3 * page..5 * page, 6 * page..7 * page]);
        assert_eq!(touched.read, [0; 0]);
    }

    #[test]
    fn of_pages_that_were_looked_at_the_first_of_each_neighbourhood_is_kept() {
        let neighbours = NEIGHBOURHOOD / page_size();
        let (first, second) = (neighbours, 3 * neighbours);
        let pages = [1, first - 1, first, first + 1, second - 1, second + 2, second + neighbours];
        let touched = touched(&pages.map(|page| (page, false)));
        let kept = [1, first, second - 1, second + 2, second + neighbours];
        assert_eq!(touched.read, kept.map(|page| page * page_size()));
        assert_eq!(touched.written, [0..0; 0]);
    }

    #[test]
    fn written_pages_and_those_that_were_looked_at_are_kept_apart() {
        let touched = touched(&[(0, false), (1, true), (2, false), (3, true), (4, true)]);
        let page = page_size();
        assert_eq!(touched.written, [page..2 * page, 3 * page..5 * page]);
        assert_eq!(touched.read, [0], "the page between them is in the same neighbourhood");
    }

    #[test]
    fn what_lies_beyond_the_memory_is_not_copied_and_does_not_keep_the_rest_from_it() {
        let (mut store, memory) = new_memory();
        let (page, size) = (page_size(), memory.data_size(&store));
        let backwards = Range { start: 4 * page, end: 3 * page };
        let beyond = [size..size + page, size - page..size + page, 1 << 50..(1 << 50) + page, backwards];
        let inside = [page..3 * page, 5 * page..6 * page];
        let written = inside[..1].iter().chain(&beyond).chain(&inside[1..]).cloned().collect();
        TouchedPages { written, read: Vec::new() }.copy_written(&mut store, memory);
        assert_eq!(present(&store, memory), [1, 2, 5]);
    }

    #[test]
    fn what_lies_beyond_the_memory_is_not_looked_at_and_does_not_keep_the_rest_from_it() {
        let (store, memory) = new_memory();
        let (page, size) = (page_size(), memory.data_size(&store));
        let read = vec![page, size, size + page, 1 << 50, usize::MAX, 5 * page, size - page];
        TouchedPages { written: Vec::new(), read }.look_at_read(&store, memory);
        assert_eq!(present(&store, memory), [1, 5, size / page - 1]);
    }
}
