//! Where files are kept that outlive the program: the seam between a tree and a directory of the host.
//!
//! A tree names a stored file by its path below the storage's root, made of the names in its own directories. Such a
//! path never has `.`, `..` or a symbolic link in it: the tree resolves those itself, whatever a guest asks for.

use std::{fmt, io, sync::Arc};

use super::node::Timestamp;

/// A directory of files that outlive the program. Every operation has taken place when it returns, and is on the disk
/// once the file and the directory that it changed were synced after it.
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
    /// The operating system's; one if there is something of that name.
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

    /// Gives a file a second name.
    ///
    /// # Errors
    /// The operating system's.
    fn link(&self, from: &[u8], to: &[u8]) -> io::Result<()>;

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// The operating system's.
    fn unlink(&self, path: &[u8]) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_directory(&self, path: &[u8]) -> io::Result<()>;

    /// Renames something, which replaces what has the new name, in one step.
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

    /// Sets the length; what is added reads as zeros.
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
    /// The operating system's. The bytes may be lost then, and another attempt must not be taken for a success.
    fn sync(&self) -> io::Result<()>;
}

/// A name in a directory of a [`Storage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub kind: StoredEntryKind,
    /// When that was changed last.
    pub modified: Timestamp,
}

/// What a name in a directory of a [`Storage`] names.
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
        /// Its target, which means nothing outside of the tree.
        target: Vec<u8>,
    },
    /// Something that a cluster has no use for, such as a socket.
    Other,
}
