//! Inodes: what a name in a directory stands for.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{content::Content, device::Device, directory::Directory, shared::SharedObject, storage::StoredFile};

/// An inode number. Numbers grow and are never given out twice in a tree or in the trees cloned from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ino(pub u64);

/// The type bits of `st_mode` and their values, as in Linux' `sys/stat.h`.
pub const S_IFMT: u32 = 0o170_000;
/// A pipe.
pub(super) const S_IFIFO: u32 = 0o010_000;
/// A character device.
pub const S_IFCHR: u32 = 0o020_000;
/// A directory.
pub const S_IFDIR: u32 = 0o040_000;
/// A regular file.
pub(super) const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// The permission bits of a mode, with set-user-id, set-group-id and sticky.
pub(super) const PERMISSIONS: u32 = 0o7777;

/// A way to access a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Execute it, or search it if it is a directory.
    Execute,
}

/// A point in time as `struct timespec` holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds on top of that, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The host's clock; a clock before 1970 reads as 1970.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs().cast_signed(), nanoseconds: since.subsec_nanos() }
    }
}

/// The attributes that `stat` returns besides type and size.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, see [`PERMISSIONS`].
    pub permissions: u32,
    /// Names that refer to the node; 1 for a directory, as in Emscripten's MEMFS.
    pub links: u32,
    /// Last access: creation or `utimens`; reads do not change it, as on a mount with `noatime`.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the node.
    pub changed: Timestamp,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A regular file of a storage.
    Stored(Stored),
    /// A regular file that several processes have mapped.
    Shared(SharedObject),
    /// A directory.
    Directory(Directory),
    /// A symbolic link and its target.
    Symlink(Arc<[u8]>),
    /// A character device.
    Device(Device),
    /// `/proc/self/fd`: its entries are the descriptors of the process that reads it.
    DescriptorDirectory {
        /// What `..` names.
        parent: Ino,
    },
}

/// What a tree knows of a file in its [`Storage`](super::Storage).
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Its length in bytes, which nobody else changes.
    pub len: u64,
    /// Open while anything in the tree has it open.
    pub file: Option<Arc<dyn StoredFile>>,
}

/// An inode.
#[derive(Clone, Debug)]
pub struct Node {
    /// Permissions, link count and times.
    pub attributes: Attributes,
    /// What it is and holds.
    pub kind: Kind,
}

impl Node {
    /// A node with one link, created now.
    #[must_use]
    pub fn new(kind: Kind, permissions: u32) -> Self {
        let now = Timestamp::now();
        Self {
            attributes: Attributes {
                permissions: permissions & PERMISSIONS,
                links: 1,
                accessed: now,
                modified: now,
                changed: now,
            },
            kind,
        }
    }

    /// `st_mode`: type and permissions.
    #[must_use]
    pub fn mode(&self) -> u32 {
        let kind = match self.kind {
            Kind::File(_) | Kind::Stored(_) | Kind::Shared(_) => S_IFREG,
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => S_IFDIR,
            Kind::Symlink(_) => S_IFLNK,
            Kind::Device(_) => S_IFCHR,
        };
        kind | self.attributes.permissions
    }

    /// Whether it is a directory of either kind.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_) | Kind::DescriptorDirectory { .. })
    }

    /// Whether `access` is allowed. There is only one user, so any of the three permission bits suffices, as in
    /// Emscripten's `FS.nodePermissions` (`libfs.js`).
    #[must_use]
    pub fn permits(&self, access: Access) -> bool {
        let bits = match access {
            Access::Read => 0o444,
            Access::Write => 0o222,
            Access::Execute => 0o111,
        };
        self.attributes.permissions & bits != 0
    }

    /// Sets the times of a change of the content to now.
    pub fn touch(&mut self) {
        let now = Timestamp::now();
        self.attributes.modified = now;
        self.attributes.changed = now;
    }

    /// The result of `stat` for the node with the number `ino`.
    #[must_use]
    pub fn stat(&self, ino: Ino) -> Stat {
        let size = match &self.kind {
            Kind::File(content) => content.len(),
            Kind::Stored(stored) => stored.len,
            Kind::Shared(object) => object.len(),
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => 4096,
            Kind::Symlink(target) => target.len() as u64,
            Kind::Device(_) => 0,
        };
        let device = match self.kind {
            Kind::Device(device) => device.number(),
            _ => 0,
        };
        Stat { ino, mode: self.mode(), size, device, attributes: self.attributes }
    }

    /// The length of a regular file; 0 for everything else.
    #[must_use]
    pub(super) fn len(&self) -> u64 {
        match &self.kind {
            Kind::File(content) => content.len(),
            Kind::Stored(stored) => stored.len,
            Kind::Shared(object) => object.len(),
            _ => 0,
        }
    }

    /// Approximate number of bytes that this node holds and does not share with other trees.
    #[must_use]
    pub fn private_bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.kind {
                Kind::File(content) => content.private_bytes(),
                Kind::Directory(directory) => directory.private_bytes(),
                Kind::Symlink(target) => target.len(),
                Kind::Device(_) | Kind::DescriptorDirectory { .. } | Kind::Shared(_) | Kind::Stored(_) => 0,
            }
    }
}

/// The result of `stat`.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// The inode's number.
    pub ino: Ino,
    /// Type and permissions.
    pub mode: u32,
    /// Length in bytes.
    pub size: u64,
    /// The number of the device that the node stands for; 0 for all but devices.
    pub device: u32,
    /// Links and times. Its permissions are also part of `mode`.
    pub attributes: Attributes,
}
