//! Memory that the processes of a cluster share, mapped into the linear memory of each.
//!
//! In a `PostgreSQL` server the main segment is mapped shared before `fork()`. Here the guest has allocated it in its
//! own heap. Before the first fork it is moved into memory of the operating system (`memfd`), which is then mapped
//! over it, in every process at the same address. Dynamic shared memory is mapped by each process where its `malloc`
//! has room (`guest::mapping`).

use std::{ffi::c_void, fs::File, ops::Range, os::unix::fs::FileExt, sync::Arc};

use anyhow::{Context, ensure};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    mm::{MapFlags, ProtFlags},
    param::page_size,
};
use wasmtime::{AsContext, AsContextMut, Memory};

use crate::{
    fs::is_zero,
    postgres::shared_memory::{FREE_OFFSET, MAGIC, TOTAL_SIZE},
};

/// Anonymous mappings are aligned to pages of WebAssembly memory (Emscripten, `emscripten_mmap.c`).
const ALIGNMENT: usize = 1 << 16;

/// The shared memory that further processes of a cluster map when they start, by its address in linear memory.
pub(crate) struct SharedMemory {
    main: Region,
    others: Vec<Region>,
}

/// The contents of a main segment.
pub(crate) struct MainSegment {
    address: u32,
    length: usize,
    /// The parts that are not zero, by offset.
    parts: Vec<(u64, Vec<u8>)>,
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
    /// Moves `range` of `memory` into shared memory, and maps that over it. `mapped` are the regions that this memory
    /// has already.
    ///
    /// # Errors
    /// When the range is not made of whole pages inside the memory, or the system has no memory.
    pub(crate) fn share(
        store: &mut impl AsContextMut,
        memory: Memory,
        range: &Range<u32>,
        mapped: impl IntoIterator<Item = Region>,
    ) -> anyhow::Result<Self> {
        let content = memory.data(&*store).get(range.start as usize..range.end as usize);
        let content = content.with_context(|| format!("the shared memory {range:x?} is outside of linear memory"))?;
        ensure!(!content.is_empty() && content.len() % page_size() == 0, "shared memory is not made of whole pages");
        let file =
            File::from(memfd_create("pglite-port", MemfdFlags::CLOEXEC).context("shared memory cannot be allocated")?);
        file.set_len(content.len() as u64)?;
        for (at, page) in (0..).step_by(page_size()).zip(content.chunks(page_size())) {
            if !is_zero(page) {
                file.write_all_at(page, at)?;
            }
        }
        let main = Region { address: range.start, length: content.len(), file: Arc::new(file), offset: 0 };
        main.map_over(store, memory)?;
        Ok(Self { main, others: mapped.into_iter().collect() })
    }

    /// Maps the regions over the same addresses of another memory of the same cluster.
    ///
    /// # Errors
    /// As [`Region::map_over`].
    pub(crate) fn map_over(&self, store: &mut impl AsContextMut, memory: Memory) -> anyhow::Result<()> {
        self.regions().try_for_each(|region| region.map_over(store, memory))
    }

    /// The addresses of the regions.
    pub(crate) fn ranges(&self) -> Vec<Range<u32>> {
        let end = |region: &Region| region.address + u32::try_from(region.length).unwrap_or(u32::MAX);
        self.regions().map(|region| region.address..end(region)).collect()
    }

    fn regions(&self) -> impl Iterator<Item = &Region> {
        self.others.iter().chain([&self.main])
    }

    /// The contents of the main segment, which no process writes meanwhile.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn main_segment(&self) -> anyhow::Result<MainSegment> {
        let Region { address, length, file, .. } = &self.main;
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut page = vec![0; page_size()];
        for at in (0..*length as u64).step_by(page_size()) {
            file.read_exact_at(&mut page, at).context("shared memory cannot be read")?;
            if is_zero(&page) {
                continue;
            }
            match parts.last_mut() {
                Some((start, part)) if *start + part.len() as u64 == at => part.extend(&page),
                _ => parts.push((at, page.clone())),
            }
        }
        Ok(MainSegment { address: *address, length: *length, parts })
    }

    /// Shared memory of another cluster that begins with these contents. `others` are the regions beside the main
    /// segment.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(crate) fn with_main(main: &MainSegment, others: impl IntoIterator<Item = Region>) -> anyhow::Result<Self> {
        let make = || {
            let file = File::from(memfd_create("pglite-port", MemfdFlags::CLOEXEC)?);
            file.set_len(main.length as u64)?;
            main.parts.iter().try_for_each(|(at, part)| file.write_all_at(part, *at))?;
            Ok::<_, std::io::Error>(file)
        };
        let file = Arc::new(make().context("shared memory cannot be allocated")?);
        let main = Region { address: main.address, length: main.length, file, offset: 0 };
        Ok(Self { main, others: others.into_iter().collect() })
    }
}

impl Region {
    /// A region for the addresses in `range`, with the content of `file` from `offset` on. The file must have all of
    /// it, and must not be truncated.
    pub(crate) fn new(range: &Range<u32>, file: Arc<File>, offset: u64) -> Self {
        Self { address: range.start, length: range.len(), file, offset }
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

/// The range of `PostgreSQL`'s main shared memory segment in `memory`.
///
/// It begins with a `PGShmemHeader`. So does the small System V segment, but nothing was ever allocated from that one.
///
/// # Errors
/// When there is none.
pub(crate) fn find_main_segment(memory: &[u8]) -> anyhow::Result<Range<u32>> {
    let word = |address: usize| Some(u32::from_le_bytes(*memory.get(address..)?.first_chunk()?));
    let segments = (0..memory.len()).step_by(ALIGNMENT).filter_map(|address| {
        let (size, used) = (word(address + TOTAL_SIZE)?, word(address + FREE_OFFSET)?);
        let start = u32::try_from(address).ok()?;
        let fits = address + size as usize <= memory.len();
        (word(address)? == MAGIC && fits && used <= size).then_some((used, start..start.checked_add(size)?))
    });
    let (_, range) = segments.max_by_key(|(used, _)| *used).context("PostgreSQL's shared memory was not found")?;
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(memory: &mut [u8], address: usize, size: u32, used: u32) {
        for (offset, word) in [(0, MAGIC), (TOTAL_SIZE, size), (FREE_OFFSET, used)] {
            memory[address + offset..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    #[test]
    fn the_main_segment_is_the_one_that_something_was_allocated_from() {
        let mut memory = vec![0; 8 * ALIGNMENT];
        header(&mut memory, ALIGNMENT, 0x20000, 64);
        header(&mut memory, 3 * ALIGNMENT, 0x20000, 0x10000);
        // These only look like headers: one does not fit into the memory, the other is not aligned.
        header(&mut memory, 7 * ALIGNMENT, 0x20000, 0x1ffff);
        header(&mut memory, 5 * ALIGNMENT + 16, 0x10000, 0xffff);
        assert_eq!(find_main_segment(&memory).unwrap(), 0x30000..0x50000);
        assert!(find_main_segment(&[0; 256]).is_err());
    }
}
