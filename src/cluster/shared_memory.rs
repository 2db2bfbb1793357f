//! The memory that all sessions of a cluster share: mapped at the same addresses into the linear memory of each.
//!
//! In a `PostgreSQL` server these pages are shared because they were mapped shared before `fork()`. Here the guest has only allocated them in its
//! own heap; at the moment of the fork they are moved into memory of the operating system's (`memfd`), which is then mapped over them.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use anyhow::{Context, ensure};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    mm::{MapFlags, ProtFlags},
    param::page_size,
};
use wasmtime::{AsContextMut, Memory};

use crate::image::is_zero;

/// `PGShmemMagic` (`PostgreSQL`, `src/include/storage/pg_shmem.h`).
const MAGIC: u32 = 679_834_894;
/// Offsets in `PGShmemHeader`: `totalsize` and `freeoffset`, each of 4 bytes in wasm32.
const TOTAL_SIZE: usize = 8;
const FREE_OFFSET: usize = 12;
/// Anonymous mappings are aligned to pages of WebAssembly memory (Emscripten, `emscripten_mmap.c`).
const ALIGNMENT: usize = 1 << 16;

/// Shared regions, by their address in linear memory.
pub(crate) struct SharedMemory {
    regions: Vec<Region>,
}

struct Region {
    address: u32,
    length: usize,
    file: File,
}

impl SharedMemory {
    /// Moves `ranges` of `memory` into shared memory, and maps it over them.
    ///
    /// # Errors
    /// When a range is not made of whole pages inside the memory, or the system has no memory.
    pub(crate) fn share(store: &mut impl AsContextMut, memory: Memory, ranges: &[Range<u32>]) -> anyhow::Result<Self> {
        let mut regions = Vec::new();
        for range in ranges {
            let content = memory.data(&*store).get(range.start as usize..range.end as usize);
            let content =
                content.with_context(|| format!("the shared memory {range:x?} is outside of linear memory"))?;
            let whole = (range.start as usize).is_multiple_of(page_size()) && content.len() % page_size() == 0;
            ensure!(whole && !content.is_empty(), "the shared memory {range:x?} is not made of whole pages");
            let file = File::from(memfd_create("pglite-port", MemfdFlags::CLOEXEC).context("no shared memory")?);
            file.set_len(content.len() as u64)?;
            for (at, page) in (0..).step_by(page_size()).zip(content.chunks(page_size())) {
                if !is_zero(page) {
                    file.write_all_at(page, at)?;
                }
            }
            regions.push(Region { address: range.start, length: content.len(), file });
        }
        let shared = Self { regions };
        shared.map_over(store, memory)?;
        Ok(shared)
    }

    /// Maps the regions over those of another memory of the same cluster.
    ///
    /// # Errors
    /// When the memory is too small, or the system allows no more mappings.
    pub(crate) fn map_over(&self, store: &mut impl AsContextMut, memory: Memory) -> anyhow::Result<()> {
        let size = memory.data_size(&*store);
        let base = memory.data_ptr(&*store);
        for region in &self.regions {
            let end = (region.address as usize).checked_add(region.length);
            ensure!(end.is_some_and(|end| end <= size), "a session's memory is smaller than its cluster's");
            // SAFETY: the region is inside the linear memory, which does not move and is unmapped as a whole when the store is dropped, and made of
            // whole pages. Nobody holds a reference into it while `store` is borrowed. Other sessions write these pages, but only one session of
            // a cluster runs wasm or host functions at a time (`Baton`), which is also what orders their accesses.
            unsafe {
                rustix::mm::mmap(
                    base.add(region.address as usize).cast(),
                    region.length,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::FIXED,
                    &region.file,
                    0,
                )
            }
            .context("shared memory cannot be mapped")?;
        }
        Ok(())
    }

    /// The addresses of the regions.
    pub(crate) fn ranges(&self) -> Vec<Range<u32>> {
        let end = |region: &Region| region.address + u32::try_from(region.length).unwrap_or(u32::MAX);
        self.regions.iter().map(|region| region.address..end(region)).collect()
    }
}

/// Where `PostgreSQL`'s main shared memory segment is in `memory`.
///
/// It begins with a `PGShmemHeader`. So does the small System V segment that stands for it, but nothing was ever allocated from that one.
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
        // What only looks like a header: it does not fit into the memory, or is not aligned.
        header(&mut memory, 7 * ALIGNMENT, 0x20000, 0x1ffff);
        header(&mut memory, 5 * ALIGNMENT + 16, 0x10000, 0xffff);
        assert_eq!(find_main_segment(&memory).unwrap(), 0x30000..0x50000);
        assert!(find_main_segment(&[0; 256]).is_err());
    }
}
