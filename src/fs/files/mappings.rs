//! Files mapped into a process' memory: copied at `mmap` and written back at `munmap`, or, where several processes
//! share a tree, one memory object of the operating system.

use std::{fs::File, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Files;
use crate::fs::{
    descriptors::Object,
    errno::Errno,
    node::{Ino, Kind, Stored},
    shared::SharedObject,
};

/// A file mapped into memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mapping {
    /// The address in the process' memory.
    pub address: u32,
    /// The offset in the file.
    pub offset: u64,
    /// Whether changes in memory are changes of the file (`PROT_WRITE` with `MAP_SHARED`).
    pub write_back: bool,
    /// How many bytes of memory are the shared object's, in whole pages; 0 for a copy.
    pub shared: u32,
    /// The file; `None` in a clone of the tree if the file had no name.
    pub(super) ino: Option<Ino>,
}

impl Files {
    /// Checks that the file behind `fd` can be mapped, and returns the mapping; nothing is mapped yet.
    ///
    /// # Errors
    /// `EACCES` if `fd` is not open for reading, or, with `write_back`, not for reading and writing; `ENODEV` if it is
    /// not a regular file; `EBADF`.
    pub fn prepare_mapping(&self, fd: i32, address: u32, offset: u64, write_back: bool) -> Result<Mapping, Errno> {
        let file = self.state.descriptors.file(fd)?;
        if !file.flags.readable() || (write_back && !file.flags.writable()) {
            return Err(Errno::EACCES);
        }
        let Object::Node(ino) = file.object else {
            return Err(Errno::ENODEV);
        };
        match self.tree.lock().node(ino).map(|node| &node.kind) {
            Some(Kind::File(_) | Kind::Stored(_) | Kind::Shared(_)) => {
                Ok(Mapping { address, offset, write_back, shared: 0, ino: Some(ino) })
            }
            _ => Err(Errno::ENODEV),
        }
    }

    /// Maps a file: fills `memory` with its bytes, and with zeros after its end. The file exists until it is unmapped.
    ///
    /// # Errors
    /// `EBADF` if the file was removed after [`Files::prepare_mapping`].
    pub fn map(&mut self, mapping: Mapping, memory: &mut [u8]) -> Result<(), Errno> {
        let ino = mapping.ino.ok_or(Errno::EBADF)?;
        let mut tree = self.tree.lock();
        let count = match tree.node(ino).map(|node| &node.kind) {
            Some(Kind::File(content)) => content.read_at(mapping.offset, memory),
            Some(Kind::Stored(stored)) => stored.file.as_ref().ok_or(Errno::EBADF)?.read_at(mapping.offset, memory)?,
            Some(Kind::Shared(object)) => object.read_at(mapping.offset, memory)?,
            _ => return Err(Errno::EBADF),
        };
        memory[count..].fill(0);
        tree.retain(ino)?;
        drop(tree);
        self.state.mappings.push(mapping);
        Ok(())
    }

    /// Maps a file for several processes. Returns the memory object; the caller maps it from [`Mapping::offset`] on
    /// over the first [`Mapping::shared`] bytes at [`Mapping::address`]. The file exists until it is unmapped.
    ///
    /// # Errors
    /// `EBADF` if the file was removed after [`Files::prepare_mapping`]; `ENOMEM`.
    pub fn map_shared(&mut self, mapping: Mapping) -> Result<Arc<File>, Errno> {
        let ino = mapping.ino.ok_or(Errno::EBADF)?;
        let end = mapping.offset.checked_add(mapping.shared.into()).ok_or(Errno::EINVAL)?;
        let mut tree = self.tree.lock();
        let object = tree.change(ino, |node| {
            if let Kind::File(content) = &node.kind {
                node.kind = Kind::Shared(SharedObject::new(content)?);
            }
            match &node.kind {
                Kind::Shared(object) => Ok(object.to_map(end)?),
                _ => Err(Errno::EBADF),
            }
        })??;
        tree.retain(ino)?;
        drop(tree);
        self.state.mappings.push(mapping);
        Ok(object)
    }

    /// All shared mappings: their addresses, memory objects, and offsets in these.
    #[must_use]
    pub fn shared_mappings(&self) -> Vec<(Range<u32>, Arc<File>, u64)> {
        let tree = self.tree.lock();
        let object = |mapping: &Mapping| match &tree.node(mapping.ino?)?.kind {
            Kind::Shared(object) if mapping.shared > 0 => {
                let range = mapping.address..mapping.address.checked_add(mapping.shared)?;
                Some((range, object.to_map(0).ok()?, mapping.offset))
            }
            _ => None,
        };
        self.state.mappings.iter().filter_map(object).collect()
    }

    /// The number of bytes of the shared mapping at `address`.
    ///
    /// # Errors
    /// `EINVAL` if nothing is mapped at `address`.
    pub fn shared_at(&self, address: u32) -> Result<u32, Errno> {
        self.state.mappings.iter().find(|mapping| mapping.address == address).map(|it| it.shared).ok_or(Errno::EINVAL)
    }

    /// Ends the mapping at `address`, whose bytes are `memory`. A copy with `write_back` is written back, up to the
    /// end of the file: a mapping does not extend its file.
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
        let mut written = Ok(());
        if mapping.write_back && mapping.shared == 0 {
            let of_file = |len: u64| {
                let rest = len.saturating_sub(mapping.offset);
                &memory[..usize::try_from(rest).map_or(memory.len(), |rest| rest.min(memory.len()))]
            };
            tree.mark_written(ino, mapping.offset..mapping.offset + memory.len() as u64);
            written = tree.change(ino, |node| {
                match &mut node.kind {
                    Kind::File(content) => content.write_at(mapping.offset, of_file(content.len())),
                    Kind::Stored(Stored { len, file: Some(file) }) => {
                        let bytes = of_file(*len);
                        if file.write_at(mapping.offset, bytes)? < bytes.len() {
                            return Err(Errno::ENOSPC);
                        }
                    }
                    _ => {}
                }
                node.touch();
                Ok(())
            })?;
        }
        tree.release(ino);
        written
    }
}
