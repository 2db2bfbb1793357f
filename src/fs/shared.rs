//! Bytes that several processes map into their memories: a memory object of the operating system's instead of chunks.
//!
//! A file becomes one when it is first mapped shared, and stays one until its last name and its last user are gone. It is of no use to
//! other trees: what processes exchange through it does not outlive them.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create},
    param::page_size,
};

use super::content::Content;

/// What a file holds that is mapped by several processes.
#[derive(Clone, Debug)]
pub struct SharedObject {
    /// Never shorter than what was mapped of it: touching a page behind the end of a file would end the program.
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
        let mut object = Self { file: Arc::new(file), len: 0 };
        object.set_len(content.len())?;
        content.write_to(&object.file, 0)?;
        Ok(object)
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
        self.reach(end)?;
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

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        self.reach(end)?;
        self.file.write_all_at(bytes, offset)?;
        self.len = self.len.max(end);
        Ok(())
    }

    /// Cuts it off at `len`, or extends it to there with zeros. Who has mapped what is cut off finds zeros there.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.reach(len)?;
        if len < self.len {
            fallocate(&*self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, len, self.len - len)?;
        }
        self.len = len;
        Ok(())
    }

    /// Makes the memory object at least that long, in whole pages.
    fn reach(&self, len: u64) -> io::Result<()> {
        let whole = len.checked_next_multiple_of(page_size() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if self.file.metadata()?.len() < whole {
            self.file.set_len(whole)?;
        }
        Ok(())
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

    fn all(object: &SharedObject) -> Vec<u8> {
        let mut bytes = vec![1; 32];
        let count = object.read_at(0, &mut bytes).unwrap();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn it_begins_with_the_bytes_of_the_file_and_is_written_as_one() {
        let mut object = object(b"before");
        object.write_at(8, b"after").unwrap();
        assert_eq!(all(&object), b"before\0\0after");
        assert_eq!(object.read_at(100, &mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn what_was_cut_off_is_zeros_and_stays_mapped() {
        let mut object = object(b"0123456789");
        let mapped = object.to_map(10).unwrap();
        object.set_len(4).unwrap();
        assert_eq!(all(&object), b"0123");
        object.set_len(8).unwrap();
        assert_eq!(all(&object), b"0123\0\0\0\0");
        assert_eq!(mapped.metadata().unwrap().len(), page_size() as u64);
        assert!(mapped.set_len(0).is_err(), "the memory object can be cut off");
    }
}
