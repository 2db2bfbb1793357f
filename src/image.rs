//! The contents of a linear memory on disk, mapped copy-on-write over the memories of instances.
//!
//! An instance gets its contents without copying, and the pages that it does not write are shared with all other
//! instances in all processes. Addresses that an image does not cover are zero. Wasmtime maps data segments in modules
//! in the same way; mapping a file over its memory needs no compilation.

mod touched;

use std::{fs::File, io, iter, ops::Range, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, ensure};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    mm::{MapFlags, ProtFlags},
    param::page_size,
};
use serde::{Deserialize, Serialize};
use wasmtime::{AsContextMut, Memory};

use crate::{
    fs::is_zero,
    quota::{Held, Quota, Resource},
};

pub(crate) use touched::TouchedPages;

/// Bytes in a page of WebAssembly memory.
const WASM_PAGE: u64 = 1 << 16;

/// What the extents of an image in a file are aligned to: the pages of a machine that opens it later may be as large.
const UNIT: usize = 1 << 16;

/// Runs of zeros of at least this many bytes are left out of an image. Every gap costs one more mapping for each
/// instance; smaller runs cost only address space, because they are holes in the file.
const GAP: usize = 1 << 20;

/// The contents of a memory.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    layout: Layout,
    /// What counts for it if its file is in memory.
    _held: Option<Held>,
}

/// The addresses of an image's contents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// The memory's size in pages of 64 KiB.
    wasm_pages: u64,
    /// Contents that are not zero, by address; in the file they follow each other without gaps.
    extents: Vec<Range<u64>>,
}

impl Layout {
    fn file_len(&self) -> u64 {
        self.extents.iter().map(|extent| extent.end - extent.start).sum()
    }

    /// Each extent with its offset in the file.
    fn placed(&self) -> impl Iterator<Item = (&Range<u64>, u64)> {
        self.extents.iter().scan(0, |end, extent| {
            let start = *end;
            *end += extent.end - extent.start;
            Some((extent, start))
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        let page = page_size() as u64;
        let mut end = 0;
        for extent in &self.extents {
            let aligned = extent.start.is_multiple_of(page) && extent.end.is_multiple_of(page);
            ensure!(aligned && extent.start >= end && extent.end > extent.start, "its extents are not in order");
            end = extent.end;
        }
        ensure!(Some(end) <= self.wasm_pages.checked_mul(WASM_PAGE), "it is larger than its memory");
        Ok(())
    }
}

impl Image {
    /// Writes the contents of a memory of `bytes.len()` bytes to a new file at `path`, and returns the shape, which
    /// [`Image::open`] needs.
    pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<Layout> {
        let layout = Layout {
            wasm_pages: (bytes.len() as u64).div_ceil(WASM_PAGE),
            extents: extents_in(bytes, iter::once(0..bytes.len() as u64), UNIT),
        };
        let write = || {
            let file = File::create(path)?;
            write_extents(&file, bytes, &layout)?;
            file.sync_all()
        };
        write().with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(layout)
    }

    /// An image of `bytes` without the ranges in `excluded`, kept in a memory file of the operating system. Only the
    /// pages in `used` are looked at, which are in order; all others are zero.
    pub(crate) fn in_memory(bytes: &[u8], used: &[Range<u64>], excluded: &[Range<u32>]) -> anyhow::Result<Self> {
        // What is excluded is not looked at, because reading a page of shared memory for the first time allocates it.
        let mut parts: Vec<_> = iter::once(0..bytes.len() as u64).collect();
        for excluded in excluded {
            let excluded = excluded.start.into()..excluded.end.into();
            parts = parts.iter().flat_map(|part| without(part, &excluded)).collect();
        }
        let used_in = |part: &Range<u64>| {
            let (start, end) = (part.start, part.end);
            used.iter().map(move |used| used.start.max(start)..used.end.min(end)).filter(|used| used.start < used.end)
        };
        let extents = parts.iter().flat_map(|part| extents_in(bytes, used_in(part), page_size())).collect();
        let layout = Layout { wasm_pages: (bytes.len() as u64).div_ceil(WASM_PAGE), extents };
        layout.check()?;
        let file = File::from(memfd_create("pglite-port", MemfdFlags::CLOEXEC).context("no memory for an image")?);
        write_extents(&file, bytes, &layout).context("no memory for an image")?;
        let mut held = Held::new(Quota::unlimited(), Resource::Images);
        held.set(layout.file_len());
        Ok(Self { file, layout, _held: Some(held) })
    }

    /// Opens the image at `path`, which must not be changed while instances use it.
    pub(crate) fn open(path: &Path, layout: Layout) -> anyhow::Result<Self> {
        let open = || {
            layout.check()?;
            let file = File::open(path)?;
            let (found, expected) = (file.metadata()?.len(), layout.file_len());
            ensure!(found == expected, "it has {found} bytes, expected {expected}");
            Ok(file)
        };
        let file = open().with_context(|| format!("the memory image {} cannot be used", path.display()))?;
        Ok(Self { file, layout, _held: None })
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> u64 {
        self.layout.file_len()
    }

    /// The addresses of the contents.
    pub(crate) fn extents(&self) -> &[Range<u64>] {
        &self.layout.extents
    }

    /// Maps the contents over `memory`, which was never written, and grows it to their size.
    pub(crate) fn map_over(&self, store: &mut impl AsContextMut, memory: Memory) -> anyhow::Result<()> {
        let missing = self.layout.wasm_pages.saturating_sub(memory.size(&*store));
        memory.grow(&mut *store, missing)?;
        let base = memory.data_ptr(&*store);
        for (extent, offset) in self.layout.placed() {
            let length = usize::try_from(extent.end - extent.start)?;
            // SAFETY: `check` found the extent page-aligned and inside the memory, which was just grown to the
            // image's size, does not move (`memory_may_move(false)`) and is unmapped as a whole when the store is
            // dropped. No reference into it exists while `store` is borrowed. Every byte value is valid, and the
            // mapping is private, so that later changes of the file's name or owner do not matter.
            unsafe {
                rustix::mm::mmap(
                    base.add(usize::try_from(extent.start)?).cast(),
                    length,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::FIXED,
                    &self.file,
                    offset,
                )
            }
            .context("a memory image cannot be mapped")?;
        }
        Ok(())
    }
}

/// The pages of `page` bytes of `parts` of `bytes` that are not zero; those with few others between them are joined.
fn extents_in(bytes: &[u8], parts: impl IntoIterator<Item = Range<u64>>, page: usize) -> Vec<Range<u64>> {
    let place = |address: u64| usize::try_from(address).map_or(bytes.len(), |address| address.min(bytes.len()));
    let mut extents: Vec<Range<usize>> = Vec::new();
    for part in parts {
        let (first, end) = (place(part.start), place(part.end));
        for (start, content) in (first..).step_by(page).zip(bytes[first..end].chunks(page)) {
            if is_zero(content) {
                continue;
            }
            match extents.last_mut() {
                Some(last) if start - last.end < GAP => last.end = start + page,
                _ => extents.push(start..start + page),
            }
        }
    }
    extents.into_iter().map(|extent| extent.start as u64..extent.end as u64).collect()
}

/// `extent` without `excluded`.
fn without(extent: &Range<u64>, excluded: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let before = extent.start..extent.end.min(excluded.start);
    let after = extent.start.max(excluded.end)..extent.end;
    [before, after].into_iter().filter(|part| part.start < part.end)
}

fn write_extents(file: &File, bytes: &[u8], layout: &Layout) -> io::Result<()> {
    let page = page_size();
    file.set_len(layout.file_len())?;
    for (extent, offset) in layout.placed() {
        let place = |address: u64| usize::try_from(address).map_or(bytes.len(), |address| address.min(bytes.len()));
        let content = &bytes[place(extent.start)..place(extent.end)];
        // Pages beside each other are written at once; zeros remain holes.
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (start, content) in (0..).step_by(page).zip(content.chunks(page)) {
            match runs.last_mut() {
                _ if is_zero(content) => {}
                Some(run) if run.end == start => run.end += content.len(),
                _ => runs.push(start..start + content.len()),
            }
        }
        for run in runs {
            file.write_all_at(&content[run.clone()], offset + run.start as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::slice;

    use wasmtime::{Engine, MemoryType, Store};

    use super::*;

    /// The numbers of the memory's resident pages (`/proc/self/pagemap`).
    pub(super) fn present(store: &Store<()>, memory: Memory) -> Vec<usize> {
        let pages = File::open("/proc/self/pagemap").unwrap();
        let first = memory.data_ptr(store).addr() / page_size();
        let is_present = |page: &usize| {
            let mut word = [0; 8];
            pages.read_exact_at(&mut word, (first + page) as u64 * 8).unwrap();
            u64::from_le_bytes(word) >> 63 == 1
        };
        (0..memory.data_size(store) / page_size()).filter(is_present).collect()
    }

    pub(super) fn new_memory() -> (Store<()>, Memory) {
        let mut store = Store::new(&Engine::default(), ());
        let memory = Memory::new(&mut store, MemoryType::new(4, None)).unwrap();
        assert_eq!(present(&store, memory), [0; 0]);
        (store, memory)
    }

    /// Four megabytes, and the places in them that are not zero.
    fn contents() -> (Vec<u8>, [usize; 4]) {
        let places = [0, 600_000, 3 << 20, (4 << 20) - 1];
        let mut bytes = vec![0; 4 << 20];
        places.iter().zip(1..).for_each(|(place, byte)| bytes[*place] = byte);
        (bytes, places)
    }

    #[test]
    fn a_memory_gets_the_contents_of_an_image_and_keeps_what_it_writes_to_itself() {
        let (bytes, _) = contents();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let shape = Image::write(&path, &bytes).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        assert!((600_000..2 << 20).contains(&length), "{length} bytes for two extents");
        let image = Image::open(&path, shape).unwrap();
        let [mut one, mut other] = [new_memory(), new_memory()];
        for (store, memory) in [&mut one, &mut other] {
            image.map_over(store, *memory).unwrap();
            assert!(memory.data(&store) == bytes);
            memory.data_mut(store)[600_000] = 9;
        }
        let (mut store, memory) = new_memory();
        image.map_over(&mut store, memory).unwrap();
        assert!(memory.data(&store) == bytes);
    }

    #[test]
    fn the_extents_of_an_image_in_a_file_are_whole_pages_of_every_machine() {
        let (bytes, _) = contents();
        let directory = tempfile::tempdir().unwrap();
        let layout = Image::write(&directory.path().join("image"), &bytes).unwrap();
        let unit = 64 << 10;
        assert_eq!(layout.extents, [0..10 * unit, 3 << 20..4 << 20]);
    }

    #[test]
    fn what_is_excluded_from_an_image_is_zero() {
        let (mut bytes, places) = contents();
        let page = u32::try_from(page_size()).unwrap();
        let excluded = [0..page, 3 << 20..4 << 20];
        let image = Image::in_memory(&bytes, slice::from_ref(&(0..4 << 20)), &excluded).unwrap();
        for place in [places[0], places[2], places[3]] {
            bytes[place] = 0;
        }
        let (mut store, memory) = new_memory();
        image.map_over(&mut store, memory).unwrap();
        assert!(memory.data(&store) == bytes);
    }

    #[test]
    fn pages_that_were_not_used_are_not_looked_at() {
        let (mut bytes, places) = contents();
        let page = page_size() as u64;
        let used = [0..page, 3 << 20..(3 << 20) + 2 * page, (4 << 20) - page..4 << 20];
        let image = Image::in_memory(&bytes, &used, &[]).unwrap();
        bytes[places[1]] = 0;
        let (mut store, memory) = new_memory();
        image.map_over(&mut store, memory).unwrap();
        assert!(memory.data(&store) == bytes);
    }

    #[test]
    fn an_image_is_refused_that_is_damaged_or_does_not_fit_its_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let page = page_size() as u64;
        let open = |extents: &[(u64, u64)], length: u64| {
            File::create(&path).unwrap().set_len(length).unwrap();
            let extents = extents.iter().map(|&(start, end)| start..end).collect();
            Image::open(&path, Layout { wasm_pages: 2, extents })
        };
        let whole = 2 * WASM_PAGE;
        assert!(open(&[(0, page), (2 * page, whole)], whole - page).is_ok());
        for (extents, length, problem) in [
            (&[(0, page)][..], page - 1, "bytes, expected"),
            (&[(0, page)], page + 1, "bytes, expected"),
            (&[(0, whole + page)], whole + page, "larger than its memory"),
            (&[(0, 2 * page), (page, 3 * page)], 4 * page, "not in order"),
            (&[(2 * page, 3 * page), (0, page)], 2 * page, "not in order"),
            (&[(page, page)], 0, "not in order"),
            (&[(1, page + 1)], page, "not in order"),
            (&[(0, page - 1)], page - 1, "not in order"),
        ] {
            let error = format!("{:#}", open(extents, length).unwrap_err());
            assert!(error.contains(problem), "{extents:?}: {error}");
        }
    }
}
