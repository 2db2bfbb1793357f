//! What a process does to descriptors.

use super::Files;
use crate::fs::{
    descriptors::{Object, OpenFlags},
    device::Device,
    directory::{FIRST_COOKIE, Name},
    errno::Errno,
    node::{
        Attributes, Ino, Kind, PERMISSIONS, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, Stat, Timestamp,
    },
    pipe::End,
    tree::{MAX_LEN, Tree},
};

/// What an offset is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The start of the file (`SEEK_SET`).
    Start,
    /// The position (`SEEK_CUR`).
    Current,
    /// The end of the file (`SEEK_END`).
    End,
}

/// An entry of a directory that is being read.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// The inode's number.
    pub ino: Ino,
    /// The position from which to read on after this entry.
    pub next: u64,
    /// The type bits of its mode; see [`S_IFMT`](crate::fs::node::S_IFMT).
    pub kind: u32,
    /// Its name.
    pub name: Name,
}

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
    /// Closes a descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn close(&mut self, fd: i32) -> Result<(), Errno> {
        self.state.descriptors.close(&mut self.tree.lock(), fd)
    }

    /// A duplicate of `fd`, the lowest free descriptor from `least` on.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`, `EMFILE`.
    pub fn dup(&mut self, fd: i32, least: i32) -> Result<i32, Errno> {
        self.state.descriptors.duplicate(fd, least)
    }

    /// Makes `new` a duplicate of `fd`, closing what it was.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn dup_to(&mut self, fd: i32, new: i32) -> Result<i32, Errno> {
        self.state
            .descriptors
            .duplicate_to(&mut self.tree.lock(), fd, new)
    }

    /// Makes a pipe; returns its reading and its writing end.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn pipe(&mut self, flags: OpenFlags) -> Result<(i32, i32), Errno> {
        self.state.descriptors.open_pipe(flags)
    }

    /// The flags that `fd` was opened with, or got since.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn flags(&self, fd: i32) -> Result<OpenFlags, Errno> {
        Ok(self.state.descriptors.file(fd)?.flags)
    }

    /// Sets the flags of `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_flags(&mut self, fd: i32, flags: OpenFlags) -> Result<(), Errno> {
        self.state.descriptors.file_mut(fd)?.flags = flags;
        Ok(())
    }

    /// Reads from `position`, or from the descriptor's own position, which moves on; returns how many bytes, 0 at the end.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open for reading, `EISDIR`, `ESPIPE` if it has no positions, `EAGAIN` from an empty pipe.
    pub fn read(
        &mut self,
        fd: i32,
        position: Option<u64>,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let file = self.state.descriptors.file_mut(fd)?;
        if !file.flags.readable() {
            return Err(Errno::EBADF);
        }
        let ino = match file.object {
            Object::Node(ino) => ino,
            Object::Pipe(..) if position.is_some() => return Err(Errno::ESPIPE),
            Object::Pipe(pipe, _) => return self.state.descriptors.pipe(pipe)?.read(buffer),
        };
        let tree = self.tree.lock();
        match &tree.node(ino).ok_or(Errno::EBADF)?.kind {
            Kind::File(content) => {
                let count = content.read_at(position.unwrap_or(file.position), buffer);
                if position.is_none() {
                    file.position += count as u64;
                }
                Ok(count)
            }
            Kind::Device(device) => device.read(buffer),
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => Err(Errno::EISDIR),
            Kind::Symlink(_) => Err(Errno::EINVAL),
        }
    }

    /// Writes at `position`, or at the descriptor's own position, which moves on; with `O_APPEND` always at the end.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open for writing, `EFBIG`, `ESPIPE` if it has no positions, `EPIPE`.
    pub fn write(&mut self, fd: i32, position: Option<u64>, bytes: &[u8]) -> Result<usize, Errno> {
        let file = self.state.descriptors.file_mut(fd)?;
        if !file.flags.writable() {
            return Err(Errno::EBADF);
        }
        let ino = match file.object {
            Object::Node(ino) => ino,
            Object::Pipe(..) if position.is_some() => return Err(Errno::ESPIPE),
            Object::Pipe(pipe, _) => return self.state.descriptors.pipe(pipe)?.write(bytes),
        };
        let mut tree = self.tree.lock();
        let len = match &tree.node(ino).ok_or(Errno::EBADF)?.kind {
            Kind::File(content) => content.len(),
            Kind::Device(device) => {
                let device = *device;
                // The console may do as it likes; it must not find the tree locked.
                drop(tree);
                return device.write(bytes, &mut *self.console);
            }
            _ => return Err(Errno::EISDIR),
        };
        let at = if file.flags.has(OpenFlags::APPEND) {
            len
        } else {
            position.unwrap_or(file.position)
        };
        let end = at
            .checked_add(bytes.len() as u64)
            .filter(|end| *end <= MAX_LEN)
            .ok_or(Errno::EFBIG)?;
        tree.change(ino, |node| {
            node.touch();
            if let Kind::File(content) = &mut node.kind {
                content.write_at(at, bytes);
            }
        })?;
        if position.is_none() {
            file.position = end;
        }
        Ok(bytes.len())
    }

    /// Moves the position of `fd` and returns it.
    ///
    /// # Errors
    /// `ESPIPE` if it has no position, `EINVAL` if that would be negative, `EBADF`.
    pub fn seek(&mut self, fd: i32, offset: i64, whence: Whence) -> Result<u64, Errno> {
        let file = self.state.descriptors.file_mut(fd)?;
        let Object::Node(ino) = file.object else {
            return Err(Errno::ESPIPE);
        };
        let end = match &self.tree.lock().node(ino).ok_or(Errno::EBADF)?.kind {
            Kind::File(content) => content.len(),
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => 0,
            Kind::Device(Device::Null | Device::Zero) => return Ok(0),
            Kind::Device(_) | Kind::Symlink(_) => return Err(Errno::ESPIPE),
        };
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => file.position,
            Whence::End => end,
        };
        file.position = base
            .checked_add_signed(offset)
            .filter(|at| *at <= MAX_LEN)
            .ok_or(Errno::EINVAL)?;
        Ok(file.position)
    }

    /// What is known of the open file.
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

    /// The inode behind `fd`; `EINVAL` for a pipe.
    fn open_inode(&self, fd: i32) -> Result<Ino, Errno> {
        match self.state.descriptors.file(fd)?.object {
            Object::Node(ino) => Ok(ino),
            Object::Pipe(..) => Err(Errno::EINVAL),
        }
    }

    /// Sets the length of an open file.
    ///
    /// # Errors
    /// `EINVAL` if it is not open for writing or has no length, `EFBIG`, `EBADF`.
    pub fn ftruncate(&mut self, fd: i32, len: u64) -> Result<(), Errno> {
        if !self.flags(fd)?.writable() {
            return Err(Errno::EINVAL);
        }
        Self::cut(&mut self.tree.lock(), self.open_inode(fd)?, len)
    }

    /// Extends an open file to at least `end` bytes; the addition is a hole.
    ///
    /// # Errors
    /// `ESPIPE` if it has no positions, else as [`Files::ftruncate`].
    pub fn allocate(&mut self, fd: i32, end: u64) -> Result<(), Errno> {
        let ino = self.open_inode(fd).map_err(|error| {
            if error == Errno::EINVAL {
                Errno::ESPIPE
            } else {
                error
            }
        })?;
        let mut tree = self.tree.lock();
        let len = tree.node(ino).ok_or(Errno::EBADF)?.stat(ino).size;
        if end <= len {
            return Ok(());
        }
        if !self.flags(fd)?.writable() {
            return Err(Errno::EINVAL);
        }
        Self::cut(&mut tree, ino, end)
    }

    /// Sets an open file's permission bits.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` for a pipe.
    pub fn fchmod(&mut self, fd: i32, mode: u32) -> Result<(), Errno> {
        let ino = self.open_inode(fd)?;
        Self::set_permissions(&mut self.tree.lock(), ino, mode)
    }

    pub(super) fn set_permissions(tree: &mut Tree, ino: Ino, mode: u32) -> Result<(), Errno> {
        tree.change(ino, |node| {
            node.attributes.permissions = mode & PERMISSIONS;
            node.attributes.changed = Timestamp::now();
        })
    }

    /// Whether `fd` has positions: a file, a directory or a device that does not care.
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

    /// Bytes that wait in the pipe behind `fd`; `None` if that is no pipe.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn bytes_in_pipe(&mut self, fd: i32) -> Result<Option<usize>, Errno> {
        match self.state.descriptors.file(fd)?.object {
            Object::Pipe(pipe, _) => Ok(Some(self.state.descriptors.pipe(pipe)?.len())),
            Object::Node(_) => Ok(None),
        }
    }

    /// What `poll` reports for `fd`, of the events asked for and those that are always reported (`POLLERR`, `POLLHUP`,
    /// `POLLNVAL`). Everything but a pipe is always ready, as in Emscripten (`libsyscall.js`, `pollOne`).
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
                    End::Write if pipe.end_is_gone(End::Read) => {
                        poll::WRNORM | poll::OUT | poll::ERR
                    }
                    End::Write => poll::WRNORM | poll::OUT,
                    End::Read => {
                        let bytes = if pipe.len() > 0 {
                            poll::RDNORM | poll::IN
                        } else {
                            0
                        };
                        let end = if pipe.end_is_gone(End::Write) {
                            poll::HUP | poll::IN
                        } else {
                            0
                        };
                        bytes | end
                    }
                }
            }
        };
        ready & (events | always)
    }

    /// Reads on in an open directory: at most `limit` entries, none at its end. `.` and `..` come first.
    ///
    /// # Errors
    /// `ENOTDIR`, `EBADF`; `ENOENT` if the directory has been removed.
    pub fn read_directory(&mut self, fd: i32, limit: usize) -> Result<Vec<DirectoryEntry>, Errno> {
        let ino = self.open_inode(fd).map_err(|error| {
            if error == Errno::EINVAL {
                Errno::ENOTDIR
            } else {
                error
            }
        })?;
        let tree = self.tree.lock();
        let position = self.state.descriptors.file(fd)?.position;
        let node = tree.node(ino).ok_or(Errno::EBADF)?;
        let parent = tree.parent(ino).ok_or(Errno::ENOTDIR)?;
        if node.attributes.links == 0 {
            return Err(Errno::ENOENT);
        }
        let dots: [(&[u8], Ino); 2] = [(b".", ino), (b"..", parent)];
        let dots = dots
            .into_iter()
            .zip(0..FIRST_COOKIE)
            .map(|((name, ino), cookie)| DirectoryEntry {
                ino,
                next: cookie + 1,
                kind: S_IFDIR,
                name: Name::from(name),
            });
        let dots = dots.filter(|entry| entry.next > position);
        let entries: Vec<DirectoryEntry> = match &node.kind {
            Kind::Directory(directory) => {
                let named =
                    directory
                        .iter_from(position.max(FIRST_COOKIE))
                        .map(|(cookie, entry)| DirectoryEntry {
                            ino: entry.ino,
                            next: cookie + 1,
                            kind: tree.node(entry.ino).map_or(0, |node| node.mode() & S_IFMT),
                            name: Name::clone(&entry.name),
                        });
                dots.chain(named).take(limit).collect()
            }
            _ => {
                let open = self.state.descriptors.open().map(|fd| DirectoryEntry {
                    ino: Ino(u64::from(fd.unsigned_abs()) + 1),
                    next: FIRST_COOKIE + u64::from(fd.unsigned_abs()) + 1,
                    kind: S_IFLNK,
                    name: Name::from(fd.to_string().into_bytes()),
                });
                dots.chain(open.filter(|entry| entry.next > position))
                    .take(limit)
                    .collect()
            }
        };
        if let Some(last) = entries.last() {
            self.state.descriptors.file_mut(fd)?.position = last.next;
        }
        Ok(entries)
    }
}
