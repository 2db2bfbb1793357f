//! Memory that the processes of a cluster share, mapped into the linear memory of each.
//!
//! The main segment of a `PostgreSQL` server is an anonymous mapping of the postmaster's. Here such a mapping lies in
//! memory of the guest's own `malloc`, over which the postmaster maps memory of the operating system (`memfd`) as soon
//! as it is allocated. Further processes map that at the same address. Dynamic shared memory is mapped by each process
//! where its `malloc` has room (`guest::mapping`).

use std::{
    ffi::c_void,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Weak},
};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    mm::{MapFlags, ProtFlags},
    param::page_size,
};
use wasmtime::{AsContext, AsContextMut, Memory};

use super::main_segment::{MainSegment, allocated};
use crate::{
    postgres::shared_memory::{FREE_OFFSET, MAGIC, TOTAL_SIZE},
    quota::{Held, Quota, Resource},
};

/// From this size on, new pages of zeros take less time than writing zeros.
const LARGE: u32 = 1 << 20;

/// The main segment is made of whole units of this size, because the pages of a machine may be as large. It is that of
/// WebAssembly's pages.
pub(crate) const UNIT: u32 = 1 << 16;

/// The shared memory that further processes of a cluster map when they start, by its address in linear memory.
pub(crate) struct SharedMemory {
    main: Region,
    others: Vec<Region>,
    /// What the main segment has of the system's memory; the others are files of the cluster.
    held: Mutex<Held>,
    /// The contents that the main segment began with, if there are others with the same.
    origin: Weak<MainSegment>,
}

/// A part of a linear memory that several processes share.
#[derive(Clone)]
pub(crate) struct Region {
    address: u32,
    length: usize,
    file: Arc<File>,
    /// Its offset in the file.
    offset: u64,
}

impl SharedMemory {
    /// That of a cluster whose postmaster has mapped these regions: the main segment, and others.
    pub(crate) fn new(main: Region, others: impl IntoIterator<Item = Region>, quota: &Arc<Quota>) -> Self {
        Self::begin(main, Weak::new(), others, quota)
    }

    fn begin(
        main: Region,
        origin: Weak<MainSegment>,
        others: impl IntoIterator<Item = Region>,
        quota: &Arc<Quota>,
    ) -> Self {
        let held = Mutex::new(Held::new(quota.clone(), Resource::SharedMemory));
        let shared = Self { main, others: others.into_iter().collect(), held, origin };
        shared.count();
        shared
    }

    /// Counts the memory that the main segment has by now.
    pub(crate) fn count(&self) {
        // Without this figure, the last one stays.
        if let Ok(bytes) = allocated(&self.main.file) {
            self.held.lock().set(bytes);
        }
    }

    /// Maps the regions over the same addresses of another memory of the same cluster.
    ///
    /// # Errors
    /// As [`Region::map_over`].
    pub(crate) fn map_over(&self, store: &mut impl AsContextMut, memory: Memory) -> anyhow::Result<()> {
        self.count();
        self.regions().try_for_each(|region| region.map_over(store, memory))
    }

    /// The addresses of the regions.
    pub(crate) fn ranges(&self) -> Vec<Range<u32>> {
        self.regions().map(Region::addresses).collect()
    }

    fn regions(&self) -> impl Iterator<Item = &Region> {
        self.others.iter().chain([&self.main])
    }

    /// The contents of the main segment, which no process writes meanwhile.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn main_segment(&self) -> anyhow::Result<MainSegment> {
        MainSegment::capture(&self.main)
    }

    /// Shared memory of another cluster that begins with these contents. `others` are the regions beside the main
    /// segment.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(crate) fn with_main(
        main: &Arc<MainSegment>,
        others: impl IntoIterator<Item = Region>,
        quota: &Arc<Quota>,
    ) -> anyhow::Result<Self> {
        let region = main.begin().context("shared memory cannot be allocated")?;
        Ok(Self::begin(region, Arc::downgrade(main), others, quota))
    }
}

/// Every process that has mapped it has a reference to it for longer than its memory.
impl Drop for SharedMemory {
    fn drop(&mut self) {
        if let Some(origin) = self.origin.upgrade() {
            origin.end(&mut self.main);
        }
    }
}

impl Region {
    /// A region for the addresses in `range`, with the content of `file` from `offset` on. The file must have all of
    /// it, and must not be truncated.
    pub(crate) fn new(range: &Range<u32>, file: Arc<File>, offset: u64) -> Self {
        Self { address: range.start, length: range.len(), file, offset }
    }

    /// Its addresses.
    pub(super) fn addresses(&self) -> Range<u32> {
        self.address..self.address + u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    /// Its memory object.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its memory object, if no other region has it.
    pub(super) fn unshared(&mut self) -> Option<Arc<File>> {
        Arc::get_mut(&mut self.file).is_some().then(|| self.file.clone())
    }

    /// A region of zeros for the addresses in `range`.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(super) fn zeroed(range: &Range<u32>) -> anyhow::Result<Self> {
        let file = memfd_create("pglite-port", MemfdFlags::CLOEXEC).map(File::from);
        let sized = file.map_err(io::Error::from).and_then(|file| file.set_len(range.len() as u64).map(|()| file));
        Ok(Self::new(range, Arc::new(sized.context("shared memory cannot be allocated")?), 0))
    }

    /// Maps the region over its addresses in `memory`.
    ///
    /// # Errors
    /// When it is not made of whole pages inside the memory, or the system allows no more mappings.
    pub(crate) fn map_over(&self, store: &mut impl AsContextMut, memory: Memory) -> anyhow::Result<()> {
        let place = place(store, memory, self.address, self.length)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the place is inside the linear memory and made of whole pages (`place`); the memory does not move
        // and is unmapped as a whole when the store is dropped. No reference into it exists while `store` is borrowed.
        // Other processes write these pages, but only one process of a cluster runs wasm or host functions at a time
        // (`Baton`), which also orders their accesses. A process that is being made has no turn yet; mapping the pages
        // touches none of them, nor does anything else before its turn (`Fork::start`). The file is not truncated: the
        // main segment's file is used only here, and a `SharedObject` is sealed against it.
        unsafe {
            rustix::mm::mmap(place, self.length, access, MapFlags::SHARED | MapFlags::FIXED, &*self.file, self.offset)
        }
        .map(drop)
        .context("shared memory cannot be mapped")
    }
}

/// Clears `length` bytes of `memory` at `address`, which is inside of it. The first `shared` bytes from there on, whole
/// pages, become a region, which is returned; those of them behind the others keep their contents.
///
/// # Errors
/// When the system has no memory, or allows no more mappings.
pub(crate) fn clear_mapping(
    store: &mut impl AsContextMut,
    memory: Memory,
    address: u32,
    length: u32,
    shared: u32,
) -> anyhow::Result<Option<Region>> {
    let whole = whole_pages(address, length);
    let (mut region, mut mapped) = (None, 0);
    if shared > 0 {
        let shared = Region::zeroed(&(address..address.checked_add(shared).context("a mapping is too long")?))?;
        let behind = address as usize + length as usize..address as usize + shared.length;
        if let Some(kept) = memory.data(&*store).get(behind) {
            shared.file.write_all_at(kept, length.into()).context("shared memory cannot be written")?;
        }
        shared.map_over(store, memory)?;
        mapped = length.min(u32::try_from(shared.length)?);
        region = Some(shared);
    } else if whole >= LARGE {
        map_zeros_over(store, memory, address, whole as usize)?;
        mapped = whole;
    }
    let rest = (address + mapped) as usize..address as usize + length as usize;
    memory.data_mut(store).get_mut(rest).context("a mapping is outside of linear memory")?.fill(0);
    Ok(region)
}

/// How many of `length` bytes from `address` on are whole pages of this machine, if a page begins there.
pub(crate) fn whole_pages(address: u32, length: u32) -> u32 {
    let is_whole = (address as usize).is_multiple_of(page_size());
    // A page is no larger than what is left.
    let rest = u32::try_from(length as usize % page_size()).unwrap_or(length);
    if is_whole { length - rest } else { 0 }
}

/// Replaces a mapped part of `memory` with private pages of zeros.
///
/// # Errors
/// As [`Region::map_over`].
pub(crate) fn map_zeros_over(
    store: &mut impl AsContextMut,
    memory: Memory,
    address: u32,
    length: usize,
) -> anyhow::Result<()> {
    let place = place(store, memory, address, length)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: as in `Region::map_over`; the new pages are anonymous, as those of a linear memory are.
    unsafe { rustix::mm::mmap_anonymous(place, length, access, MapFlags::PRIVATE | MapFlags::FIXED) }
        .map(drop)
        .context("private memory cannot be mapped in place of a shared mapping")
}

/// The address of whole pages of a linear memory in the host's memory.
fn place(store: &impl AsContext, memory: Memory, address: u32, length: usize) -> anyhow::Result<*mut c_void> {
    let start = address as usize;
    let is_whole = start.is_multiple_of(page_size()) && length.is_multiple_of(page_size()) && length > 0;
    ensure!(is_whole, "{length} bytes at address {address:#x} are not whole pages");
    let end = start.checked_add(length);
    ensure!(end.is_some_and(|end| end <= memory.data_size(store)), "a process' memory is smaller than its cluster's");
    Ok(memory.data_ptr(store).wrapping_add(start).cast())
}

/// The region with `PostgreSQL`'s main shared memory segment, which is one of `mappings`, anonymous mappings in
/// `memory`. It begins with a `PGShmemHeader`, and things were allocated from it.
///
/// # Errors
/// When there is none.
pub(crate) fn main_segment(memory: &[u8], mappings: Vec<Region>) -> anyhow::Result<Region> {
    let used = |region: &Region| {
        let header = memory.get(region.address as usize..)?;
        let word = |offset: usize| Some(u32::from_le_bytes(*header.get(offset..)?.first_chunk()?));
        let (size, used) = (word(TOTAL_SIZE)?, word(FREE_OFFSET)?);
        let length = u32::try_from(region.length).ok()?;
        let is_size = size.checked_next_multiple_of(UNIT).is_some_and(|whole| (size..=whole).contains(&length));
        (word(0)? == MAGIC && is_size && used <= size).then_some(used)
    };
    let segments = mappings.into_iter().filter_map(|region| Some((used(&region)?, region)));
    let main = segments.max_by_key(|(used, _)| *used);
    Ok(main.context("PostgreSQL's shared memory was not found")?.1)
}

#[cfg(test)]
mod tests {
    use wasmtime::{Engine, MemoryType, Store};

    use super::*;

    const SIZE: u32 = 0x2_0000;

    #[test]
    fn a_mapping_is_cleared_and_nothing_beside_it() {
        let page = u32::try_from(page_size()).unwrap();
        let mut store = Store::new(&Engine::default(), ());
        let memory = Memory::new(&mut store, MemoryType::new(64, None)).unwrap();
        let end = u32::try_from(memory.data_size(&store)).unwrap();
        for (address, length) in [
            (page, LARGE),
            (page, LARGE + 48),
            (page, 2 * page + 48),
            (page, 48),
            (page + 16, LARGE + 16),
            (end - LARGE - page, LARGE + page),
            (page, 0),
        ] {
            for is_shared in [false, true] {
                memory.data_mut(&mut store).fill(0xff);
                let whole = whole_pages(address, length);
                let shared = if is_shared { whole } else { 0 };
                let region = clear_mapping(&mut store, memory, address, length, shared).unwrap();
                let (start, end) = (address as usize, (address + length) as usize);
                let bytes = memory.data(&store);
                let is_zero = |byte: &u8| *byte == 0;
                assert!(bytes[start..end].iter().all(is_zero), "{address:#x} {length} {is_shared}");
                assert!(!bytes[..start].iter().chain(&bytes[end..]).any(is_zero), "{address:#x} {length} {is_shared}");
                assert_eq!(whole, if address.is_multiple_of(page) { length - length % page } else { 0 });
                let shared = region.map(|region| (region.address, region.length));
                assert_eq!(shared, (is_shared && whole > 0).then_some((address, whole as usize)));
            }
        }
        assert!(clear_mapping(&mut store, memory, end - page, 2 * page, 0).is_err());
    }

    #[test]
    fn what_lies_behind_a_mapping_in_its_last_unit_is_kept_and_shared() {
        let mut store = Store::new(&Engine::default(), ());
        let memories = [(); 2].map(|()| Memory::new(&mut store, MemoryType::new(64, None)).unwrap());
        memories[0].data_mut(&mut store).fill(0xff);
        let length = SIZE - 8192;
        let region = clear_mapping(&mut store, memories[0], SIZE, length, SIZE).unwrap().expect("it is shared");
        SharedMemory::new(region, [], &Quota::unlimited()).map_over(&mut store, memories[1]).unwrap();
        for memory in memories {
            let bytes = &memory.data(&store)[SIZE as usize..2 * SIZE as usize];
            let (cleared, kept) = bytes.split_at(length as usize);
            assert!(cleared.iter().all(|byte| *byte == 0) && kept.iter().all(|byte| *byte == 0xff));
        }
    }

    #[test]
    fn a_region_has_the_same_bytes_in_every_memory_that_it_is_mapped_over() {
        let mut store = Store::new(&Engine::default(), ());
        let memories = [(); 2].map(|()| Memory::new(&mut store, MemoryType::new(64, None)).unwrap());
        let region = clear_mapping(&mut store, memories[0], SIZE, SIZE, SIZE).unwrap().expect("it is shared");
        memories[0].data_mut(&mut store)[SIZE as usize] = 7;
        SharedMemory::new(region, [], &Quota::unlimited()).map_over(&mut store, memories[1]).unwrap();
        assert_eq!(memories[1].data(&store)[SIZE as usize], 7);
        memories[1].data_mut(&mut store)[2 * SIZE as usize - 1] = 8;
        assert_eq!(memories[0].data(&store)[2 * SIZE as usize - 1], 8);
    }

    fn region(address: u32) -> Region {
        Region::zeroed(&(address..address + SIZE)).unwrap()
    }

    fn header(memory: &mut [u8], address: usize, size: u32, used: u32) {
        for (offset, word) in [(0, MAGIC), (TOTAL_SIZE, size), (FREE_OFFSET, used)] {
            memory[address + offset..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    #[test]
    fn the_main_segment_is_the_mapping_that_something_was_allocated_from() {
        let mut memory = vec![0; 0x10_0000];
        header(&mut memory, 0x1_0000, SIZE, 64);
        header(&mut memory, 0x4_0000, SIZE, 0x1_0000);
        // These only look like headers: one has another size than its mapping, one is in no mapping.
        header(&mut memory, 0x8_0000, SIZE / 2, 0xffff);
        header(&mut memory, 0xc_0000, SIZE, 0x1_ffff);
        let found = |memory: &[u8]| {
            let mappings = [0x1_0000, 0x4_0000, 0x8_0000, 0xa_0000, 0xf_ffff].map(region);
            main_segment(memory, mappings.into()).map(|region| region.address)
        };
        assert_eq!(found(&memory).unwrap(), 0x4_0000);
        assert!(found(&[0; 256]).is_err());
    }
}
