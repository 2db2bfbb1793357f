//! The bytes of a file that several processes map: a memory object of the operating system instead of chunks.
//!
//! A file becomes a shared object when it is first mapped shared, and stays one until its last name and its last user
//! are gone. From then on it is written through mappings only and keeps its length, so that SQL that writes files
//! cannot truncate it under the processes that have mapped it. Clones of the tree do not get its bytes, because what
//! processes exchange through it does not outlive them.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    param::page_size,
};

use super::{content::Content, node::Ino};

/// The objects of a tree, by inode number.
pub struct SharedObjects(pub(super) Vec<(Ino, SharedObject)>);

/// The content of a file that several processes have mapped.
#[derive(Clone, Debug)]
pub struct SharedObject {
    /// Never shorter than its mappings: an access behind the end of a mapped file would end the program.
    file: Arc<File>,
    len: u64,
}

impl SharedObject {
    /// An object with those bytes.
    ///
    /// # Errors
    /// The system's, when it has no memory.
    pub(super) fn new(content: &Content) -> io::Result<Self> {
        let file = File::from(memfd_create("pglite-port", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        let object = Self { file: Arc::new(file), len: content.len() };
        content.write_to(&*object.to_map(content.len())?, 0)?;
        Ok(object)
    }

    /// An object of its own with the same bytes.
    ///
    /// # Errors
    /// The system's, when it has no memory.
    pub(super) fn copy(&self) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?];
        self.read_at(0, &mut bytes)?;
        let mut content = Content::default();
        content.write_at(0, &bytes);
        Self::new(&content)
    }

    /// Its length in bytes.
    #[must_use]
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The memory object, with at least `end` bytes, to be mapped.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn to_map(&self, end: u64) -> io::Result<Arc<File>> {
        let whole = end.checked_next_multiple_of(page_size() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if self.file.metadata()?.len() < whole {
            self.file.set_len(whole)?;
        }
        Ok(self.file.clone())
    }

    /// Copies bytes from `offset` on into `buffer`, up to the end, and returns how many.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.len.saturating_sub(offset);
        let count = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        self.file.read_exact_at(&mut buffer[..count], offset)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bytes: &[u8]) -> SharedObject {
        let mut content = Content::default();
        content.write_at(0, bytes);
        SharedObject::new(&content).unwrap()
    }

    #[test]
    fn it_has_the_bytes_of_the_file_and_ends_where_that_ended() {
        let mut bytes = [1; 32];
        let object = object(b"0123456789");
        assert_eq!(object.read_at(8, &mut bytes).unwrap(), 2);
        assert_eq!(&bytes[..3], [b'8', b'9', 1]);
        assert_eq!(object.read_at(100, &mut bytes).unwrap(), 0);
        assert_eq!(object.len(), 10);
    }

    #[test]
    fn the_memory_object_has_whole_pages_and_cannot_be_cut_off() {
        let mapped = object(b"0123456789").to_map(10).unwrap();
        assert_eq!(mapped.metadata().unwrap().len(), page_size() as u64);
        assert!(mapped.set_len(0).is_err());
    }
}
