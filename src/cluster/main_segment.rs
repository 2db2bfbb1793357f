//! The contents of a cluster's main segment of shared memory, and segments of other clusters that begin with them.
//!
//! Most of what such a segment costs is the system's work of allocating its pages and freeing them. A few segments of
//! clusters that have ended are therefore kept: what has changed in them is put back, and the next cluster takes one.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Arc, Weak},
};

use anyhow::Context;
use memmap2::MmapMut;
use parking_lot::Mutex;
use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, seek},
    io::Errno,
    param::page_size,
};

use super::shared_memory::Region;
use crate::{
    fs::is_zero,
    quota::{Held, Quota, Resource},
};

/// The unit of `st_blocks` (`inode(7)`).
const BLOCK: u64 = 512;

/// How many segments of ended clusters are kept in the program. As many clusters end as begin, so that a few do for any
/// number of them.
const KEPT: usize = 8;

/// Those segments, the oldest first.
static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// The contents of a main segment.
pub(crate) struct MainSegment {
    addresses: Range<u32>,
    /// The parts that are not zero, by offset, in order. They are whole pages.
    parts: Vec<(u64, Vec<u8>)>,
}

/// A segment of a cluster that has ended, with the contents of its origin.
struct Left {
    origin: Weak<MainSegment>,
    file: Arc<File>,
    _held: Held,
}

impl Left {
    fn is_of(&self, origin: &MainSegment) -> bool {
        std::ptr::eq(self.origin.as_ptr(), origin)
    }
}

impl MainSegment {
    /// The contents of `region`, which no process writes meanwhile.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn capture(region: &Region) -> anyhow::Result<Self> {
        let file = region.file();
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut page = vec![0; page_size()];
        let mut at = 0;
        // Pages that were never used are holes.
        while let Some(data) = next(file, SeekFrom::Data(at))? {
            let end = next(file, SeekFrom::Hole(data))?.context("a file has no end")?;
            for at in (data..end).step_by(page_size()) {
                file.read_exact_at(&mut page, at).context("shared memory cannot be read")?;
                match parts.last_mut() {
                    _ if is_zero(&page) => {}
                    Some((start, part)) if *start + part.len() as u64 == at => part.extend(&page),
                    _ => parts.push((at, page.clone())),
                }
            }
            at = end;
        }
        Ok(Self { addresses: region.addresses(), parts })
    }

    /// A segment with these contents, which nobody else has.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(super) fn begin(&self) -> anyhow::Result<Region> {
        let left = {
            let mut all = LEFT.lock();
            // The newest one, because the processor has its bytes at hand.
            let place = all.iter().rposition(|left| left.is_of(self));
            place.map(|place| all.remove(place))
        };
        if let Some(left) = left {
            return Ok(Region::new(&self.addresses, left.file, 0));
        }
        let region = Region::zeroed(&self.addresses)?;
        self.parts.iter().try_for_each(|(at, part)| region.file().write_all_at(part, *at))?;
        Ok(region)
    }

    /// Keeps a segment that [`MainSegment::begin`] has made, if nothing else has its memory, which is mapped nowhere.
    pub(super) fn end(self: &Arc<Self>, region: &mut Region) {
        let Some(file) = region.unshared() else { return };
        match self.restore(&file) {
            Ok(held) => {
                let mut all = LEFT.lock();
                all.push(Left { origin: Arc::downgrade(self), file, _held: held });
                let oldest = (all.len() > KEPT).then(|| all.remove(0));
                drop(all);
                // Freeing memory takes a while.
                drop(oldest);
            }
            Err(error) => tracing::debug!("shared memory of a cluster that has ended is not kept: {error}"),
        }
    }

    /// Gives `file` these contents again, and returns what counts for it.
    fn restore(&self, file: &File) -> io::Result<Held> {
        // SAFETY: nobody else has the file or a mapping of it (`end`), and it is not truncated.
        let mut found = unsafe { MmapMut::map_mut(file) }?;
        let mut end = 0;
        for (start, part) in &self.parts {
            free(file, end..*start)?;
            end = start + part.len() as u64;
            let start = usize::try_from(*start).map_err(io::Error::other)?;
            let found = found.get_mut(start..start + part.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            for (found, part) in found.chunks_mut(page_size()).zip(part.chunks(page_size())) {
                if found != part {
                    found.copy_from_slice(part);
                }
            }
        }
        free(file, end..self.addresses.len() as u64)?;
        let mut held = Held::new(Quota::unlimited(), Resource::SharedMemory);
        held.set(allocated(file)?);
        Ok(held)
    }
}

impl Drop for MainSegment {
    fn drop(&mut self) {
        let gone: Vec<Left> = LEFT.lock().extract_if(.., |left| left.is_of(self)).collect();
        drop(gone);
    }
}

/// The bytes of memory that a memory object has: a page is allocated when it is used first.
pub(super) fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * BLOCK)
}

/// Makes a part of a file a hole, which reads as zeros.
fn free(file: &File, part: Range<u64>) -> io::Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, part.start, part.end - part.start)?)
}

/// The place in `file` that `from` describes; `None` behind the last data.
fn next(file: &File, from: SeekFrom) -> anyhow::Result<Option<u64>> {
    match seek(file, from) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("shared memory cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LENGTH: u32 = 0x10_0000;

    /// The tests share [`LEFT`].
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Contents with holes before, between and behind them.
    fn contents() -> Arc<MainSegment> {
        let region = Region::zeroed(&(0..LENGTH)).unwrap();
        for (at, length) in [(0x2_0000, 0x1_0000), (0x4_0800, 0x100), (0x8_0000, 0x4_0000)] {
            region.file().write_all_at(&vec![7; length], at).unwrap();
        }
        Arc::new(MainSegment::capture(&region).unwrap())
    }

    /// How many segments are kept for `main`.
    fn kept(main: &MainSegment) -> usize {
        LEFT.lock().iter().filter(|left| left.is_of(main)).count()
    }

    fn bytes(region: &Region) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH as usize];
        region.file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn a_segment_that_was_left_begins_as_a_new_one(
            writes in prop::collection::vec((0..u64::from(LENGTH) - 0x3000, 1..0x3000_usize, any::<u8>()), 0..20)
        ) {
            let _one = ONE_AT_A_TIME.lock();
            let main = contents();
            let new = main.begin().unwrap();
            let mut left = main.begin().unwrap();
            for (at, length, byte) in writes {
                left.file().write_all_at(&vec![byte; length], at).unwrap();
            }
            let inode = left.file().metadata().unwrap().ino();
            main.end(&mut left);
            drop(left);
            let taken = main.begin().unwrap();
            prop_assert_eq!(taken.file().metadata().unwrap().ino(), inode);
            prop_assert!(bytes(&taken) == bytes(&new));
            // Nothing that was allocated since costs memory.
            prop_assert_eq!(allocated(taken.file()).unwrap(), allocated(new.file()).unwrap());
        }
    }

    #[test]
    fn no_segment_is_kept_that_another_region_has_nor_longer_than_its_contents() {
        let _one = ONE_AT_A_TIME.lock();
        let main = contents();
        let mut left = main.begin().unwrap();
        let other = left.clone();
        main.end(&mut left);
        assert_eq!(kept(&main), 0);
        drop(other);
        main.end(&mut left);
        assert_eq!(kept(&main), 1);
        let address = Arc::as_ptr(&main);
        drop(main);
        assert!(!LEFT.lock().iter().any(|left| std::ptr::eq(left.origin.as_ptr(), address)));
    }

    #[test]
    fn a_few_segments_are_kept_and_each_is_one_cluster_s_only() {
        let _one = ONE_AT_A_TIME.lock();
        let main = contents();
        let mut left: Vec<Region> = (0..KEPT + 3).map(|_| main.begin().unwrap()).collect();
        left.iter_mut().for_each(|region| main.end(region));
        drop(left);
        assert!(LEFT.lock().len() <= KEPT);
        let taken: Vec<Region> = (0..=KEPT).map(|_| main.begin().unwrap()).collect();
        let inodes: BTreeSet<u64> = taken.iter().map(|region| region.file().metadata().unwrap().ino()).collect();
        assert_eq!(inodes.len(), KEPT + 1);
    }
}
