//! The pieces that contents of files are kept in, in memory that is mapped for nothing else.
//!
//! In the heap of the program, chunks would lie between each other and between everything else, and a few that live
//! on would keep the pages of all others: a table of a gigabyte, once dropped, would leave the program almost as
//! large as it was. A dropped chunk is a slot of a slab that is free again. A few of those are kept as they are for
//! the next chunks, which then cost no page faults; the pages of all others go back to the operating system, and so
//! does a slab without chunks.

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

/// Slots in a slab, which has 4 MiB: a call of the system for each costs little beside filling them.
const SLOTS: usize = 512;
const SLAB: usize = SLOTS * CHUNK;

/// As many free slots keep their pages at most: 4 MiB.
const RECENT: usize = 512;

/// The bytes of all files that are kept in memory.
static SLABS: Mutex<Slabs> = Mutex::new(Slabs::new());

/// [`CHUNK`] bytes of a file.
pub(super) struct Chunk(Slot);

impl Chunk {
    pub(super) fn new(bytes: &[u8; CHUNK]) -> Self {
        let slot = SLABS.lock().take();
        // SAFETY: the slot has room for them, and is this chunk's alone.
        unsafe { ptr::copy_nonoverlapping(bytes, slot.0.as_ptr(), 1) };
        Self(slot)
    }
}

impl Deref for Chunk {
    type Target = [u8; CHUNK];

    fn deref(&self) -> &[u8; CHUNK] {
        // SAFETY: the slot is mapped, and this chunk's alone, until the chunk is dropped.
        unsafe { self.0.0.as_ref() }
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [u8; CHUNK] {
        // SAFETY: as in `deref`, and nobody else has a reference to the chunk.
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

/// A place for a chunk, of a slab.
struct Slot(NonNull<[u8; CHUNK]>);

// SAFETY: whoever has a slot is the only one who has it: it is as good as a `Box`.
unsafe impl Send for Slot {}
// SAFETY: without `&mut` nothing is done with it but reading.
unsafe impl Sync for Slot {}

impl Slot {
    fn address(&self) -> usize {
        self.0.addr().get()
    }
}

/// Memory for [`SLOTS`] chunks.
struct Slab {
    first: Slot,
    /// A bit for each slot, set while it is free; its pages may have gone back to the system.
    free: [u64; SLOTS / 64],
}

impl Slab {
    fn map() -> Self {
        // SAFETY: a new mapping at an address of the system's choice.
        let memory =
            unsafe { mmap_anonymous(ptr::null_mut(), SLAB, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
        match memory.ok().and_then(|memory| NonNull::new(memory.cast())) {
            Some(first) => Self { first: Slot(first), free: [u64::MAX; SLOTS / 64] },
            // As for any other memory that the system does not have.
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
    /// The addresses of those with free slots.
    with_room: BTreeSet<usize>,
    /// Slots that were freed last, which their slabs do not know yet.
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

    /// Takes free slots back, and unmaps the slabs that have no others.
    fn put_back(&mut self, slots: &[Slot]) {
        for slot in slots {
            let Some((&address, slab)) = self.by_address.range_mut(..=slot.address()).next_back() else { continue };
            slab.put_back(slot);
            self.with_room.insert(address);
            // SAFETY: no slot of the slab is anybody's.
            if slab.is_empty() && unsafe { munmap(slab.first.0.as_ptr().cast(), SLAB) }.is_ok() {
                self.with_room.remove(&address);
                self.by_address.remove(&address);
            }
        }
    }
}

/// Frees a slot. When many have been freed, their memory goes back to the system, while others take and free further
/// ones.
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

/// Gives the pages of slots that follow each other back to the system; on a machine whose pages are larger than a
/// chunk, those that lie within them.
fn give_back(run: &[Slot]) {
    let [first, ..] = run else { return };
    let (start, end) = (first.address(), first.address() + run.len() * CHUNK);
    let skipped = start.next_multiple_of(page_size()) - start;
    let length = (end - end % page_size()).saturating_sub(start + skipped);
    if length > 0 {
        // SAFETY: these are whole pages of slots that are nobody's; whoever takes one next expects nothing of its
        // contents. If the system does not take them, they are its own loss.
        let _ = unsafe { madvise(first.0.as_ptr().byte_add(skipped).cast(), length, Advice::LinuxDontNeed) };
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs::File, os::unix::fs::FileExt};

    use super::*;

    /// How many bytes of the slab's memory are there (`/proc/self/pagemap`).
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
        // SAFETY: these slots are the test's.
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
            // Every other one, so that no slab becomes empty.
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
            // SAFETY: the slot is the test's.
            assert!(unsafe { slot.0.read() } == [1; CHUNK]);
        });
        kept.into_iter().for_each(|(_, slot)| free(&slabs, slot));
        // As many more as make the last ones go, too.
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
