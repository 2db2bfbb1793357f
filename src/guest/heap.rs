//! Returns the free memory of the guest's heap to the operating system while the guest waits for its client.
//!
//! The guest's `malloc` is Doug Lea's (Emscripten, `system/lib/dlmalloc.c`, version 2.8.6, without `mmap` and built so
//! that it never trims). Its memory stays in the linear memory, which cannot shrink. But the contents of a free chunk
//! are undefined, so its pages need not be kept, except for its first words, with which `malloc` links its chunks, and
//! the word after it.
//!
//! This is not done when memory is freed, because a query frees and allocates the same megabytes repeatedly, and would
//! cause page faults each time.

use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    mm::{Advice, madvise},
    param::page_size,
};
use wasmtime::AsContext;

use super::Guest;

/// Offsets in `struct malloc_state`, whose address is [`Facts::heap`](crate::instrument::Facts::heap); pointers and
/// sizes have four bytes.
mod state {
    /// `dvsize` and `dv`: the chunk from which small requests are served.
    pub(super) const VICTIM: [u32; 2] = [8, 20];
    /// `topsize` and `top`: the chunk at the end of the heap.
    pub(super) const TOP: [u32; 2] = [12, 24];
    /// `treebins`: the other chunks of at least 256 bytes, a tree for each range of sizes.
    pub(super) const TREES: u32 = 304;
    pub(super) const TREE_COUNT: u32 = 32;
}

/// Offsets in `struct malloc_tree_chunk`.
mod chunk {
    /// Size and, in its lowest three bits, flags.
    pub(super) const HEAD: u32 = 4;
    /// The next chunk of the same size, in a ring.
    pub(super) const NEXT: u32 = 8;
    pub(super) const CHILDREN: [u32; 2] = [16, 20];
    /// The bytes of a free chunk that `malloc` uses.
    pub(super) const KEPT: u32 = 32;
}

/// The bits of a chunk's head that are not part of its size.
const FLAGS: u32 = 7;
/// The flag of a chunk that is in use.
const IN_USE: u32 = 2;

/// Smaller chunks keep their pages.
const LEAST: u32 = 64 << 10;

/// The first tree that may contain chunks of [`LEAST`] bytes (`compute_tree_index`: two trees for each power of two,
/// from 256 on).
const FIRST_TREE: u32 = 2 * (LEAST.ilog2() - 8);

/// Returns the pages of large free chunks. The guest must be waiting in a call of the host, or not running.
///
/// # Errors
/// While the instance is being made.
pub(super) fn give_back(store: &impl AsContext<Data = Guest>) -> wasmtime::Result<()> {
    let store = store.as_context();
    let memory = store.data().memory()?;
    let (base, size) = (memory.data_ptr(&store), memory.data_size(&store));
    let word = |address: u32| {
        let address = address as usize;
        let is_inside = address.is_multiple_of(4) && address.checked_add(4).is_some_and(|end| end <= size);
        // SAFETY: the word is aligned and inside the memory, which does not move. The guest does not run. Other
        // threads write only to shared memory and to its interrupt flag. A damaged heap may point to both, therefore
        // the load is atomic.
        is_inside
            .then(|| u32::from_le(unsafe { AtomicU32::from_ptr(base.add(address).cast()) }.load(Ordering::Relaxed)))
    };
    let heap = store.data().facts.heap;
    let Some(chunks) = free_chunks(word, heap, u32::try_from(size).unwrap_or(u32::MAX)) else {
        tracing::warn!("the guest's heap is damaged; its free memory is not returned to the system");
        return Ok(());
    };
    for pages in chunks.into_iter().filter_map(pages_within) {
        // SAFETY: whole pages inside the memory, of a private mapping or one that keeps its contents. They belong to a
        // free chunk, whose contents are undefined, and no reference into the memory exists, because its store is
        // borrowed here. Afterwards the guest finds zeros or the bytes of its image there, which are valid as well.
        let given = unsafe { madvise(base.add(pages.start).cast(), pages.len(), Advice::LinuxDontNeed) };
        if let Err(error) = given {
            tracing::debug!(%error, "free memory of a session cannot be returned to the system");
            break;
        }
    }
    Ok(())
}

/// The whole pages of a free chunk that `malloc` does not use.
fn pages_within(chunk: Range<u32>) -> Option<Range<usize>> {
    let page = page_size();
    let start = (chunk.start as usize + chunk::KEPT as usize).next_multiple_of(page);
    let end = chunk.end as usize / page * page;
    (start < end).then_some(start..end)
}

/// The free chunks of at least [`LEAST`] bytes of the heap whose state is at `heap`, in a memory of `size` bytes;
/// `word` reads a word. `None` if the heap is damaged.
fn free_chunks(word: impl Fn(u32) -> Option<u32>, heap: u32, size: u32) -> Option<Vec<Range<u32>>> {
    let at = |address: u32, offset: u32| word(address.checked_add(offset)?);
    let mut chunks = Vec::new();
    for [length, start] in [state::VICTIM, state::TOP] {
        let (length, start) = (at(heap, length)?, at(heap, start)?);
        if length >= LEAST {
            chunks.push(start..start.checked_add(length)?);
        }
    }
    // The maximum number that fits into the memory: a ring that does not close ends the search.
    let mut left = size / LEAST;
    let mut unseen = Vec::new();
    for tree in FIRST_TREE..state::TREE_COUNT {
        unseen.push(at(heap, state::TREES + 4 * tree)?);
        while let Some(root) = unseen.pop() {
            if root == 0 {
                continue;
            }
            let mut start = root;
            loop {
                left = left.checked_sub(1)?;
                let head = at(start, chunk::HEAD)?;
                let end = start.checked_add(head & !FLAGS)?;
                // The size of a free chunk is repeated after it.
                if head & IN_USE != 0 || at(end, 0)? != head & !FLAGS {
                    return None;
                }
                if end - start >= LEAST {
                    chunks.push(start..end);
                }
                start = at(start, chunk::NEXT)?;
                if start == root {
                    break;
                }
            }
            for child in chunk::CHILDREN {
                unseen.push(at(root, child)?);
            }
        }
    }
    chunks.iter().all(|chunk| chunk.end <= size).then_some(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: u32 = 1024;
    const SIZE: u32 = 64 << 20;

    /// A memory with a heap without free chunks.
    #[derive(Default)]
    struct Memory(std::collections::HashMap<u32, u32>);

    impl Memory {
        fn set(&mut self, address: u32, offset: u32, value: u32) {
            self.0.insert(address + offset, value);
        }

        /// Makes the chunk at `start` free, the only one of its size.
        fn free(&mut self, start: u32, length: u32) {
            self.set(start, chunk::HEAD, length | 1);
            self.set(start, chunk::NEXT, start);
            self.set(start, length, length);
        }

        fn set_tree(&mut self, tree: u32, root: u32) {
            self.set(HEAP, state::TREES + 4 * tree, root);
        }

        /// The start and end of each free chunk.
        fn free_chunks(&self) -> Option<Vec<(u32, u32)>> {
            let word = |address: u32| {
                (address.is_multiple_of(4) && address < SIZE).then(|| self.0.get(&address).copied().unwrap_or(0))
            };
            let chunks = free_chunks(word, HEAP, SIZE)?;
            Some(chunks.into_iter().map(|chunk| (chunk.start, chunk.end)).collect())
        }
    }

    #[test]
    fn the_last_chunk_and_the_victim_are_free() {
        let mut memory = Memory::default();
        assert_eq!(memory.free_chunks(), Some(vec![]));
        for ([length, start], values) in [(state::TOP, [1 << 20, 5 << 20]), (state::VICTIM, [LEAST, 1 << 20])] {
            memory.set(HEAP, length, values[0]);
            memory.set(HEAP, start, values[1]);
        }
        assert_eq!(memory.free_chunks(), Some(vec![(1 << 20, (1 << 20) + LEAST), (5 << 20, 6 << 20)]));
        memory.set(HEAP, state::VICTIM[0], LEAST - 8);
        assert_eq!(memory.free_chunks(), Some(vec![(5 << 20, 6 << 20)]), "the victim is too small");
    }

    #[test]
    fn every_large_chunk_of_every_tree_and_ring_is_found_once() {
        let mut memory = Memory::default();
        let (root, left, right, twin) = (1 << 20, 2 << 20, 3 << 20, 4 << 20);
        for (start, length) in
            [(root, LEAST), (left, LEAST + 8), (right, LEAST + 16), (twin, LEAST), (5 << 20, 16 << 20)]
        {
            memory.free(start, length);
        }
        memory.set_tree(FIRST_TREE, root);
        memory.set_tree(state::TREE_COUNT - 1, 5 << 20);
        memory.set(root, chunk::CHILDREN[0], left);
        memory.set(left, chunk::CHILDREN[1], right);
        memory.set(root, chunk::NEXT, twin);
        memory.set(twin, chunk::NEXT, root);
        let mut found = memory.free_chunks().unwrap();
        found.sort_unstable();
        let ends = [root + LEAST, left + LEAST + 8, right + LEAST + 16, twin + LEAST, 21 << 20];
        assert_eq!(found, [(root, ends[0]), (left, ends[1]), (right, ends[2]), (twin, ends[3]), (5 << 20, ends[4])]);
    }

    #[test]
    fn a_damaged_heap_is_left_alone() {
        let chunk = 1 << 20;
        let damages: [fn(&mut Memory, u32); 6] = [
            |memory, chunk| memory.set(chunk, chunk::HEAD, LEAST | IN_USE | 1),
            |memory, chunk| memory.set(chunk, LEAST, LEAST + 8),
            |memory, chunk| memory.set(chunk, chunk::NEXT, SIZE),
            |memory, chunk| memory.set(chunk, chunk::NEXT, chunk + 2),
            |memory, chunk| memory.set(chunk, chunk::CHILDREN[0], chunk),
            |memory, _| (0..2).for_each(|at| memory.set(HEAP, state::TOP[at], SIZE - 8)),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let mut memory = Memory::default();
            memory.free(chunk, LEAST);
            memory.set_tree(FIRST_TREE, chunk);
            assert_eq!(memory.free_chunks(), Some(vec![(chunk, chunk + LEAST)]));
            damage(&mut memory, chunk);
            assert_eq!(memory.free_chunks(), None, "damage {number}");
        }
    }

    #[test]
    fn what_malloc_keeps_in_a_free_chunk_is_on_no_page_that_is_given_back() {
        let page = u32::try_from(page_size()).unwrap();
        let pages = |range: Range<u32>| range.start as usize * page_size()..range.end as usize * page_size();
        assert_eq!(pages_within(page..4 * page), Some(pages(2..4)));
        assert_eq!(pages_within(page - chunk::KEPT..4 * page + 8), Some(pages(1..4)));
        assert_eq!(pages_within(page - chunk::KEPT + 8..4 * page - 8), Some(pages(2..3)));
        assert_eq!(pages_within(page - 8..2 * page + 8), None);
    }
}
