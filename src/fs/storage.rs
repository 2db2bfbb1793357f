//! A storage keeps files that outlive the program: the seam between a tree and a directory of the host.
//!
//! A tree names a stored file by its path below the storage's root, made of the names in the tree's directories. Such
//! a path never contains `.`, `..` or a symbolic link, because the tree resolves those itself.

use std::{fmt, io, sync::Arc};

use super::node::Timestamp;

/// A directory of files that outlive the program. The effect of an operation is visible when it returns; it is on the
/// disk once the changed file and the changed directory have been synced afterwards.
///
/// # Errors
/// All functions return the operating system's errors as they are.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>>;

    /// Makes an empty file and opens it.
    ///
    /// # Errors
    /// The operating system's, also if the name exists already.
    fn create(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>>;

    /// Makes a directory.
    ///
    /// # Errors
    /// The operating system's.
    fn create_directory(&self, path: &[u8]) -> io::Result<()>;

    /// Makes a symbolic link, which is never followed.
    ///
    /// # Errors
    /// The operating system's.
    fn create_symlink(&self, path: &[u8], target: &[u8]) -> io::Result<()>;

    /// Removes a name, which must not be that of a directory.
    ///
    /// # Errors
    /// The operating system's.
    fn unlink(&self, path: &[u8]) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_directory(&self, path: &[u8]) -> io::Result<()>;

    /// Renames a file or a directory, and replaces the owner of the new name in the same step.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()>;

    /// Writes the names in a directory to the disk.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_directory(&self, path: &[u8]) -> io::Result<()>;

    /// Lists a directory; the root is the empty path.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &[u8]) -> io::Result<Vec<StoredEntry>>;
}

/// An open file of a [`Storage`].
pub trait StoredFile: fmt::Debug + Send + Sync {
    /// Reads at `offset`; returns how many bytes, 0 at the end.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes at `offset`; returns how many bytes, which are fewer than asked for only if there is no more room.
    ///
    /// # Errors
    /// The operating system's.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The operating system's; `ENOSPC` if there is no room for all of them.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.write_at(offset, bytes)? < bytes.len() {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        Ok(())
    }

    /// Sets the length; added bytes are zeros.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Extends the file from `from`, which is its length, to `end` bytes, with room on the disk for what is added.
    ///
    /// # Errors
    /// The operating system's.
    fn allocate(&self, from: u64, end: u64) -> io::Result<()>;

    /// Writes the file to the disk: its bytes and its length.
    ///
    /// # Errors
    /// The operating system's. After an error the bytes may be lost, even if another call succeeds.
    fn sync(&self) -> io::Result<()>;
}

/// A name in a directory of a [`Storage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The name.
    pub name: Vec<u8>,
    /// The kind of file that it names.
    pub kind: StoredEntryKind,
    /// The time of the file's last change.
    pub modified: Timestamp,
}

/// The kind of file that a name in a directory of a [`Storage`] names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredEntryKind {
    /// A regular file.
    File {
        /// Its length in bytes.
        len: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Its target, which only the tree resolves.
        target: Vec<u8>,
    },
    /// A file of another kind, such as a socket, which a cluster does not use.
    Other,
}
