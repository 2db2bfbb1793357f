//! The pieces of files' contents, in memory that is mapped only for them.
//!
//! In the program's heap, chunks would lie between other allocations, and a few remaining chunks would keep the pages
//! of all others: after a table of a gigabyte is dropped, the program would stay almost as large. Here a dropped chunk
//! is a free slot of a slab. Some free slots keep their pages for the next chunks, which then cost no page faults. The
//! pages of the others return to the operating system, and slabs without chunks are unmapped.

use std::{
    alloc::{Layout, handle_alloc_error},
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

use parking_lot::Mutex;
use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap},
    param::page_size,
};

/// Bytes in a chunk.
pub(super) const CHUNK: usize = 8192;

/// Slots in a slab of 4 MiB. One system call for each slab costs little compared with filling it.
const SLOTS: usize = 512;
const SLAB: usize = SLOTS * CHUNK;

/// The maximum number of free slots that keep their pages: 4 MiB.
const RECENT: usize = 512;

/// The bytes of all files in memory.
static SLABS: Mutex<Slabs> = Mutex::new(Slabs::new());

/// [`CHUNK`] bytes of a file.
pub(super) struct Chunk(Slot);

impl Chunk {
    pub(super) fn new(bytes: &[u8; CHUNK]) -> Self {
        let slot = SLABS.lock().take();
        // SAFETY: the slot has room for them, and only this chunk uses it.
        unsafe { ptr::copy_nonoverlapping(bytes, slot.0.as_ptr(), 1) };
        Self(slot)
    }
}

impl Deref for Chunk {
    type Target = [u8; CHUNK];

    fn deref(&self) -> &[u8; CHUNK] {
        // SAFETY: the slot is mapped, and only this chunk uses it, until the chunk is dropped.
        unsafe { self.0.0.as_ref() }
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [u8; CHUNK] {
        // SAFETY: as in `deref`, and no other reference to the chunk exists.
        unsafe { self.0.0.as_mut() }
    }
}

impl Clone for Chunk {
    fn clone(&self) -> Self {
        Self::new(self)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        free(&SLABS, Slot(self.0.0));
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Chunk")
    }
}

/// A slot of a slab, with room for one chunk.
struct Slot(NonNull<[u8; CHUNK]>);

// SAFETY: a slot has one owner, like a `Box`.
unsafe impl Send for Slot {}
// SAFETY: without `&mut` a slot is only read.
unsafe impl Sync for Slot {}

impl Slot {
    fn address(&self) -> usize {
        self.0.addr().get()
    }
}

/// Memory for [`SLOTS`] chunks.
struct Slab {
    first: Slot,
    /// One bit for each slot, set while it is free; the pages of a free slot may have been returned to the system.
    free: [u64; SLOTS / 64],
}

impl Slab {
    fn map() -> Self {
        // SAFETY: a new mapping at an address that the system chooses.
        let memory =
            unsafe { mmap_anonymous(ptr::null_mut(), SLAB, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
        match memory.ok().and_then(|memory| NonNull::new(memory.cast())) {
            Some(first) => Self { first: Slot(first), free: [u64::MAX; SLOTS / 64] },
            // Fail as every other allocation does when the system has no memory.
            None => handle_alloc_error(Layout::new::<[u8; SLAB]>()),
        }
    }

    fn take(&mut self) -> Option<Slot> {
        let (index, word) = self.free.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let slot = index * 64 + word.trailing_zeros() as usize;
        *word &= *word - 1;
        // SAFETY: there are `SLOTS` slots from the first on, and a bit for each.
        Some(Slot(unsafe { self.first.0.add(slot) }))
    }

    fn put_back(&mut self, slot: &Slot) {
        let index = (slot.address() - self.first.address()) / CHUNK;
        self.free[index / 64] |= 1 << (index % 64);
    }

    fn is_full(&self) -> bool {
        self.free == [0; SLOTS / 64]
    }

    fn is_empty(&self) -> bool {
        self.free == [u64::MAX; SLOTS / 64]
    }
}

struct Slabs {
    by_address: BTreeMap<usize, Slab>,
    /// The addresses of slabs with free slots.
    with_room: BTreeSet<usize>,
    /// The slots that were freed last; their slabs still count them as used.
    recent: Vec<Slot>,
}

impl Slabs {
    const fn new() -> Self {
        Self { by_address: BTreeMap::new(), with_room: BTreeSet::new(), recent: Vec::new() }
    }

    fn take(&mut self) -> Slot {
        if let Some(slot) = self.recent.pop() {
            return slot;
        }
        loop {
            let address = self.with_room.first().copied().unwrap_or_else(|| self.add(Slab::map()));
            let Some(slab) = self.by_address.get_mut(&address) else { continue };
            let slot = slab.take();
            if slab.is_full() {
                self.with_room.remove(&address);
            }
            if let Some(slot) = slot {
                return slot;
            }
        }
    }

    fn add(&mut self, slab: Slab) -> usize {
        let address = slab.first.address();
        self.by_address.insert(address, slab);
        self.with_room.insert(address);
        address
    }

    /// Marks slots as free, and unmaps slabs that have only free slots.
    fn put_back(&mut self, slots: &[Slot]) {
        for slot in slots {
            let Some((&address, slab)) = self.by_address.range_mut(..=slot.address()).next_back() else { continue };
            slab.put_back(slot);
            self.with_room.insert(address);
            // SAFETY: all slots of the slab are free.
            if slab.is_empty() && unsafe { munmap(slab.first.0.as_ptr().cast(), SLAB) }.is_ok() {
                self.with_room.remove(&address);
                self.by_address.remove(&address);
            }
        }
    }
}

/// Frees a slot. When many slots have been freed, their memory returns to the system without holding the lock.
fn free(slabs: &Mutex<Slabs>, slot: Slot) {
    let mut guard = slabs.lock();
    guard.recent.push(slot);
    if guard.recent.len() < RECENT {
        return;
    }
    let mut slots = mem::replace(&mut guard.recent, Vec::with_capacity(RECENT));
    drop(guard);
    slots.sort_unstable_by_key(Slot::address);
    slots.chunk_by(|slot, next| slot.address() + CHUNK == next.address()).for_each(give_back);
    slabs.lock().put_back(&slots);
}

/// Returns the pages of consecutive slots to the system. On a machine whose pages are larger than a chunk, it returns
/// the pages that lie within the slots.
fn give_back(run: &[Slot]) {
    let [first, ..] = run else { return };
    let (start, end) = (first.address(), first.address() + run.len() * CHUNK);
    let skipped = start.next_multiple_of(page_size()) - start;
    let length = (end - end % page_size()).saturating_sub(start + skipped);
    if length > 0 {
        // SAFETY: these are whole pages of free slots, and a new chunk does not depend on a slot's contents. If the
        // system keeps the pages, they only stay allocated.
        let _ = unsafe { madvise(first.0.as_ptr().byte_add(skipped).cast(), length, Advice::LinuxDontNeed) };
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs::File, os::unix::fs::FileExt};

    use super::*;

    /// The resident bytes of the slabs (`/proc/self/pagemap`).
    fn present(slabs: &Mutex<Slabs>) -> usize {
        let pages = File::open("/proc/self/pagemap").unwrap();
        let is_present = |address: usize| {
            let mut word = [0; 8];
            pages.read_exact_at(&mut word, (address / page_size()) as u64 * 8).unwrap();
            u64::from_le_bytes(word) >> 63 == 1
        };
        let starts = slabs.lock().by_address.keys().copied().collect::<Vec<_>>();
        let pages = starts.iter().flat_map(|start| (*start..start + SLAB).step_by(page_size()));
        pages.filter(|page| is_present(*page)).count() * page_size()
    }

    /// Takes slots and writes to them.
    fn fill(slabs: &Mutex<Slabs>, count: usize) -> Vec<Slot> {
        let slots: Vec<_> = (0..count).map(|_| slabs.lock().take()).collect();
        // SAFETY: only the test uses these slots.
        slots.iter().for_each(|slot| unsafe { slot.0.write([1; CHUNK]) });
        slots
    }

    #[test]
    fn no_slot_is_given_out_twice_and_none_gets_lost() {
        let slabs = Mutex::new(Slabs::new());
        let mut slots = fill(&slabs, 3 * SLOTS);
        for _ in 0..4 {
            let addresses: HashSet<_> = slots.iter().map(Slot::address).collect();
            assert!(addresses.len() == 3 * SLOTS && addresses.iter().all(|address| address % CHUNK == 0));
            assert_eq!(slabs.lock().by_address.len(), 3);
            // Every second one, so that no slab becomes empty.
            let (kept, freed): (Vec<_>, Vec<_>) = slots.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
            let count = freed.len();
            freed.into_iter().for_each(|(_, slot)| free(&slabs, slot));
            slots = kept.into_iter().map(|(_, slot)| slot).chain(fill(&slabs, count)).collect();
        }
    }

    #[test]
    fn of_freed_slots_only_the_last_keep_their_memory() {
        let slabs = Mutex::new(Slabs::new());
        let slots = fill(&slabs, 8 * SLOTS);
        assert_eq!(present(&slabs), 8 * SLAB);
        let (kept, freed): (Vec<_>, Vec<_>) = slots.into_iter().enumerate().partition(|(at, _)| at % 4 == 0);
        freed.into_iter().for_each(|(_, slot)| free(&slabs, slot));
        let there = present(&slabs);
        assert!((2 * SLAB..2 * SLAB + RECENT * CHUNK).contains(&there), "{there} bytes for {} chunks", kept.len());
        assert_eq!(slabs.lock().by_address.len(), 8, "each has chunks that are used");
        fill(&slabs, RECENT / 2).into_iter().for_each(|slot| free(&slabs, slot));
        assert_eq!(present(&slabs), there + RECENT / 2 * CHUNK, "they are kept for the next chunks");
        kept.iter().for_each(|(_, slot)| {
            // SAFETY: only the test uses the slot.
            assert!(unsafe { slot.0.read() } == [1; CHUNK]);
        });
        kept.into_iter().for_each(|(_, slot)| free(&slabs, slot));
        // Free enough further slots that the last ones are returned as well.
        fill(&slabs, RECENT).into_iter().for_each(|slot| free(&slabs, slot));
        assert!(slabs.lock().by_address.len() <= 1, "slabs without chunks are gone");
    }

    #[test]
    fn a_chunk_and_its_clone_change_on_their_own() {
        let mut chunk = Chunk::new(&[7; CHUNK]);
        let clone = chunk.clone();
        chunk[5] = 8;
        assert!(*clone == [7; CHUNK] && chunk[..6] == [7, 7, 7, 7, 7, 8]);
    }
}
