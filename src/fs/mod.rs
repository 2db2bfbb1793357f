//! The guest's files: a POSIX file tree in memory that can be copied at no cost.
//!
//! # Layout, in reading order
//!
//! * `extent`, `chunk`, `chunks`, `content`: the bytes of files: immutable and shared below, changed chunks above.
//! * `shared`: the bytes of files that several processes have mapped.
//! * `storage`, `host`, `written`: files that outlive the program, in a directory of the host, and their first sync.
//! * `directory`, `device`, `node`: the kinds of inodes.
//! * `frozen`, `tree`: the inodes and names of one cluster: a frozen base, and the changes since.
//! * `mount`: the part of a tree that is in a storage.
//! * `path`: the walk from a path to an inode.
//! * `pipe`, `descriptors`: what a process has open.
//! * `files`: one process' view of a tree; the functions of POSIX.
//! * `layout`: the directories and devices that every guest needs.
//! * `archive`, `bundle`: put PGlite's files and extensions into a tree.
//! * `added`: files that the program adds to every tree, and that are not stored with it.
//! * `store`: a frozen tree on disk.

mod added;
mod archive;
mod bundle;
mod chunk;
mod chunks;
mod content;
mod descriptors;
mod device;
mod directory;
mod errno;
mod extent;
mod files;
mod frozen;
mod host;
mod layout;
mod mount;
mod node;
mod path;
mod pipe;
mod shared;
mod storage;
mod store;
mod tree;
mod written;

pub use added::AddedFiles;
pub use archive::{Archived, ArchivedFile, read_archive};
pub use bundle::{BundleError, open_bundle, put_file, tree_of, unpack_extension};
pub(crate) use content::is_zero;
pub use descriptors::{MAX_DESCRIPTORS, OpenFlags};
pub use device::{Console, Device, Silent, Stream};
pub use errno::Errno;
pub use files::{At, DirectoryEntry, Files, Mapping, NewTime, ProcessState, Whence};
pub use frozen::FrozenTree;
pub use host::HostDirectory;
pub use mount::ToSync;
pub use node::{Access, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, Stat, Timestamp};
pub use path::Follow;
pub(crate) use path::joined;
pub use shared::SharedObjects;
pub use storage::{Storage, StoredEntry, StoredEntryKind, StoredFile};
pub use store::StoreError;
pub use tree::Tree;
pub(crate) use written::Written;
