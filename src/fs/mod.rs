//! The guest's files: a POSIX file tree in memory, a copy of which is free.
//!
//! # Layout, in reading order
//!
//! * `extent`, `chunk`, `content`: bytes of files: shared and immutable below, changed chunks above.
//! * `shared`: bytes of files that processes have mapped.
//! * `storage`, `host`: files that outlive the program, in a directory of the host.
//! * `directory`, `device`, `node`: what an inode can be.
//! * `frozen`, `tree`: one cluster's inodes and names: a frozen base, and what changed since.
//! * `mount`: the part of a tree that is in a storage.
//! * `path`: from a path to an inode.
//! * `pipe`, `descriptors`: what a process has open.
//! * `files`: one process' view of a tree; the functions of POSIX.
//! * `layout`: the directories and devices every guest expects.
//! * `bundle`: PGlite's files and extensions, into a tree.
//! * `store`: a frozen tree on disk.

mod bundle;
mod chunk;
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

pub use bundle::{BundleError, open_bundle, put_file, unpack_extension};
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
pub use storage::{Storage, StoredEntry, StoredEntryKind, StoredFile};
pub use store::StoreError;
pub use tree::Tree;
