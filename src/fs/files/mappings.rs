//! Files mapped into a process' memory, by copying: in at `mmap`, back at `munmap`.

use serde::{Deserialize, Serialize};

use super::Files;
use crate::fs::{
    descriptors::Object,
    errno::Errno,
    node::{Ino, Kind},
};

/// A file mapped into memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mapping {
    /// Where in the process' memory.
    pub address: u32,
    /// Where in the file the mapping begins.
    pub offset: u64,
    /// Whether changes in memory are changes of the file (`PROT_WRITE` with `MAP_SHARED`).
    pub write_back: bool,
    /// The file; `None` in a clone of the tree that does not have it any more, because it had no name.
    pub(super) ino: Option<Ino>,
}

impl Files {
    /// Checks that the file behind `fd` can be mapped, and says what that mapping would be; nothing is mapped yet.
    ///
    /// # Errors
    /// `EACCES` if `fd` is not open for reading, or not for reading and writing while `write_back` is asked for; `ENODEV`
    /// if it is no regular file; `EBADF`.
    pub fn prepare_mapping(&self, fd: i32, address: u32, offset: u64, write_back: bool) -> Result<Mapping, Errno> {
        let file = self.state.descriptors.file(fd)?;
        if !file.flags.readable() || (write_back && !file.flags.writable()) {
            return Err(Errno::EACCES);
        }
        let Object::Node(ino) = file.object else {
            return Err(Errno::ENODEV);
        };
        match self.tree.lock().node(ino).map(|node| &node.kind) {
            Some(Kind::File(_)) => Ok(Mapping { address, offset, write_back, ino: Some(ino) }),
            _ => Err(Errno::ENODEV),
        }
    }

    /// Maps a file: fills `memory` with its bytes and zeros after its end, and keeps it in existence until it is unmapped.
    ///
    /// # Errors
    /// `EBADF` if the file has gone since it was prepared.
    pub fn map(&mut self, mapping: Mapping, memory: &mut [u8]) -> Result<(), Errno> {
        let ino = mapping.ino.ok_or(Errno::EBADF)?;
        let mut tree = self.tree.lock();
        let Some(Kind::File(content)) = tree.node(ino).map(|node| &node.kind) else {
            return Err(Errno::EBADF);
        };
        let count = content.read_at(mapping.offset, memory);
        memory[count..].fill(0);
        tree.retain(ino)?;
        drop(tree);
        self.state.mappings.push(mapping);
        Ok(())
    }

    /// Ends the mapping at `address`, whose bytes are `memory`, and writes them back if that was asked for, as far as the
    /// file reaches: a mapping does not extend its file.
    ///
    /// # Errors
    /// `EINVAL` if nothing is mapped at `address`.
    pub fn unmap(&mut self, address: u32, memory: &[u8]) -> Result<(), Errno> {
        let index = self.state.mappings.iter().position(|mapping| mapping.address == address).ok_or(Errno::EINVAL)?;
        let mapping = self.state.mappings.swap_remove(index);
        let Some(ino) = mapping.ino else {
            return Ok(());
        };
        let mut tree = self.tree.lock();
        if mapping.write_back {
            tree.change(ino, |node| {
                if let Kind::File(content) = &mut node.kind {
                    let rest = content.len().saturating_sub(mapping.offset);
                    let count = usize::try_from(rest).map_or(memory.len(), |rest| rest.min(memory.len()));
                    content.write_at(mapping.offset, &memory[..count]);
                }
                node.touch();
            })?;
        }
        tree.release(ino);
        Ok(())
    }

    /// The parts of memory that hold mapped files whose changes are the file's (`MAP_SHARED`), in whole pages of 4 KiB.
    #[must_use]
    pub fn shared_mappings(&self) -> Vec<std::ops::Range<u32>> {
        let tree = self.tree.lock();
        let range = |mapping: &Mapping| match &tree.node(mapping.ino?)?.kind {
            Kind::File(content) if mapping.write_back => {
                let length = content.len().checked_sub(mapping.offset)?.next_multiple_of(4096);
                Some(mapping.address..mapping.address.checked_add(u32::try_from(length).ok()?)?)
            }
            _ => None,
        };
        self.state.mappings.iter().filter_map(range).collect()
    }
}
