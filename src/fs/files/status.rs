//! Reading and changing the status of open files.

use super::Files;
use crate::fs::{
    descriptors::Object,
    device::Device,
    errno::Errno,
    mount::ToSync,
    node::{Attributes, Ino, Kind, PERMISSIONS, S_IFIFO, Stat, Timestamp},
    pipe::End,
    tree::Tree,
};

/// Events of `poll`, as Linux numbers them.
mod poll {
    pub(super) const IN: u16 = 0x001;
    pub(super) const OUT: u16 = 0x004;
    pub(super) const ERR: u16 = 0x008;
    pub(super) const HUP: u16 = 0x010;
    pub(super) const NVAL: u16 = 0x020;
    pub(super) const RDNORM: u16 = 0x040;
    pub(super) const WRNORM: u16 = 0x100;
}

impl Files {
    /// The attributes of the open file.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn fstat(&self, fd: i32) -> Result<Stat, Errno> {
        self.stat_descriptor(&self.tree.lock(), fd)
    }

    pub(super) fn stat_descriptor(&self, tree: &Tree, fd: i32) -> Result<Stat, Errno> {
        match self.state.descriptors.file(fd)?.object {
            Object::Node(ino) => Ok(tree.node(ino).ok_or(Errno::EBADF)?.stat(ino)),
            Object::Pipe(number, _) => Ok(Stat {
                ino: Ino(number as u64),
                mode: S_IFIFO | 0o600,
                size: 0,
                device: 0,
                attributes: Attributes {
                    permissions: 0o600,
                    links: 1,
                    accessed: Timestamp::default(),
                    modified: Timestamp::default(),
                    changed: Timestamp::default(),
                },
            }),
        }
    }

    /// The inode behind `fd`; `pipe` is the error for a pipe.
    pub(super) fn open_inode(&self, fd: i32, pipe: Errno) -> Result<Ino, Errno> {
        match self.state.descriptors.file(fd)?.object {
            Object::Node(ino) => Ok(ino),
            Object::Pipe(..) => Err(pipe),
        }
    }

    /// Sets the length of an open file.
    ///
    /// # Errors
    /// `EINVAL` if it is not open for writing or has no length, `EFBIG`, `ENOSPC`, `EBADF`.
    pub fn ftruncate(&mut self, fd: i32, len: u64) -> Result<(), Errno> {
        if !self.flags(fd)?.writable() {
            return Err(Errno::EINVAL);
        }
        self.resize(&mut self.tree.lock(), self.open_inode(fd, Errno::EINVAL)?, len)
    }

    /// Extends an open file to at least `end` bytes with a hole.
    ///
    /// # Errors
    /// `ESPIPE` if it has no positions, else as [`Files::ftruncate`].
    pub fn allocate(&mut self, fd: i32, end: u64) -> Result<(), Errno> {
        let ino = self.open_inode(fd, Errno::ESPIPE)?;
        let mut tree = self.tree.lock();
        let len = tree.node(ino).ok_or(Errno::EBADF)?.stat(ino).size;
        if end <= len {
            return Ok(());
        }
        if !self.flags(fd)?.writable() {
            return Err(Errno::EINVAL);
        }
        if let Some(Kind::Stored(stored)) = tree.node(ino).map(|node| &node.kind) {
            self.check_length(&tree, ino, end)?;
            // With room on the disk, which is what PostgreSQL asks for.
            let file = stored.file.clone().ok_or(Errno::EBADF)?;
            drop(tree);
            file.allocate(len, end)?;
            return self.tree.lock().change(ino, |node| {
                node.touch();
                if let Kind::Stored(stored) = &mut node.kind {
                    stored.len = stored.len.max(end);
                }
            });
        }
        self.resize(&mut tree, ino, end)
    }

    /// As [`Tree::begin_again`](crate::fs::Tree::begin_again).
    pub fn begin_again(&self) {
        self.tree.lock().begin_again();
    }

    /// What has to be synced for what `fd` is open on to be on the disk; `None` if it is in memory.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` for a pipe, which POSIX calls an error; `ENOENT` if a directory has been removed.
    pub fn to_sync(&self, fd: i32) -> Result<Option<ToSync>, Errno> {
        self.tree.lock().to_sync(self.open_inode(fd, Errno::EINVAL)?)
    }

    /// Sets an open file's permission bits.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` for a pipe.
    pub fn fchmod(&mut self, fd: i32, mode: u32) -> Result<(), Errno> {
        let ino = self.open_inode(fd, Errno::EINVAL)?;
        Self::set_permissions(&mut self.tree.lock(), ino, mode)
    }

    pub(super) fn set_permissions(tree: &mut Tree, ino: Ino, mode: u32) -> Result<(), Errno> {
        tree.change(ino, |node| {
            node.attributes.permissions = mode & PERMISSIONS;
            node.attributes.changed = Timestamp::now();
        })
    }

    /// Whether `fd` has positions: a file, a directory or a device that ignores them.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn is_seekable(&self, fd: i32) -> Result<bool, Errno> {
        let Object::Node(ino) = self.state.descriptors.file(fd)?.object else {
            return Ok(false);
        };
        let tree = self.tree.lock();
        let kind = &tree.node(ino).ok_or(Errno::EBADF)?.kind;
        Ok(!matches!(kind, Kind::Device(device) if !matches!(device, Device::Null | Device::Zero)))
    }

    /// The number of bytes in the pipe behind `fd`; `None` if it is not a pipe.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn bytes_in_pipe(&mut self, fd: i32) -> Result<Option<usize>, Errno> {
        match self.state.descriptors.file(fd)?.object {
            Object::Pipe(pipe, _) => Ok(Some(self.state.descriptors.pipe(pipe)?.len())),
            Object::Node(_) => Ok(None),
        }
    }

    /// The result of `poll` for `fd`: the events asked for and those that are always reported (`POLLERR`, `POLLHUP`,
    /// `POLLNVAL`). Everything except a pipe is always ready, as in Emscripten (`libsyscall.js`, `pollOne`).
    pub fn poll(&mut self, fd: i32, events: u16) -> u16 {
        let always = poll::ERR | poll::HUP | poll::NVAL;
        let Ok(file) = self.state.descriptors.file(fd) else {
            return poll::NVAL;
        };
        let ready = match file.object {
            Object::Node(_) => poll::IN | poll::OUT,
            Object::Pipe(number, end) => {
                let Ok(pipe) = self.state.descriptors.pipe(number) else {
                    return poll::NVAL;
                };
                match end {
                    End::Write if pipe.end_is_gone(End::Read) => poll::WRNORM | poll::OUT | poll::ERR,
                    End::Write => poll::WRNORM | poll::OUT,
                    End::Read => {
                        let bytes = if pipe.len() > 0 { poll::RDNORM | poll::IN } else { 0 };
                        let end = if pipe.end_is_gone(End::Write) { poll::HUP | poll::IN } else { 0 };
                        bytes | end
                    }
                }
            }
        };
        ready & (events | always)
    }
}
