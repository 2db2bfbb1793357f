//! Opening by descriptor, closing, reading, writing and seeking.

use super::Files;
use crate::fs::{
    descriptors::{Object, OpenFlags},
    device::Device,
    errno::Errno,
    node::Kind,
    tree::MAX_LEN,
};

/// The start of an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The start of the file (`SEEK_SET`).
    Start,
    /// The position (`SEEK_CUR`).
    Current,
    /// The end of the file (`SEEK_END`).
    End,
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

    /// Makes `new` a duplicate of `fd`, after closing `new`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn dup_to(&mut self, fd: i32, new: i32) -> Result<i32, Errno> {
        self.state.descriptors.duplicate_to(&mut self.tree.lock(), fd, new)
    }

    /// Makes a pipe; returns its reading and its writing end.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn pipe(&mut self, flags: OpenFlags) -> Result<(i32, i32), Errno> {
        self.state.descriptors.open_pipe(flags)
    }

    /// The flags of `fd`.
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

    /// Reads from `position`, or from the descriptor's own position, which moves on; returns how many bytes, 0 at the
    /// end.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open for reading, `EISDIR`, `ESPIPE` if it has no positions, `EAGAIN` from an empty
    /// pipe.
    pub fn read(&mut self, fd: i32, position: Option<u64>, buffer: &mut [u8]) -> Result<usize, Errno> {
        let file = self.state.descriptors.file_mut(fd)?;
        if !file.flags.readable() {
            return Err(Errno::EBADF);
        }
        let ino = match file.object {
            Object::Node(ino) => ino,
            Object::Pipe(..) if position.is_some() => return Err(Errno::ESPIPE),
            Object::Pipe(pipe, _) => return self.state.descriptors.pipe(pipe)?.read(buffer),
        };
        let at = position.unwrap_or(file.position);
        let tree = self.tree.lock();
        let count = match &tree.node(ino).ok_or(Errno::EBADF)?.kind {
            Kind::File(content) => content.read_at(at, buffer),
            Kind::Shared(object) => object.read_at(at, buffer)?,
            Kind::Stored(stored) => {
                let stored = stored.file.clone().ok_or(Errno::EBADF)?;
                // Other processes may use the tree while the disk works.
                drop(tree);
                stored.read_at(at, buffer)?
            }
            Kind::Device(device) => return device.read(buffer, &self.entropy),
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => return Err(Errno::EISDIR),
            Kind::Symlink(_) => return Err(Errno::EINVAL),
        };
        if position.is_none() {
            file.position += count as u64;
        }
        Ok(count)
    }

    /// Writes at `position`, or at the descriptor's own position, which moves on; with `O_APPEND` always at the end.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open for writing, `EBUSY` if processes have mapped the file, `EFBIG`, `ESPIPE` if it
    /// has no positions, `EPIPE`, `ENOSPC`.
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
        let node = tree.node(ino).ok_or(Errno::EBADF)?;
        let stored = match &node.kind {
            Kind::File(_) => None,
            Kind::Stored(stored) => Some(stored.file.clone().ok_or(Errno::EBADF)?),
            Kind::Shared(_) => return Err(Errno::EBUSY),
            Kind::Device(device) => {
                let device = *device;
                // The console must be called without the tree's lock.
                drop(tree);
                return device.write(bytes, &mut *self.console);
            }
            _ => return Err(Errno::EISDIR),
        };
        let len = node.len();
        let at = if file.flags.has(OpenFlags::APPEND) { len } else { position.unwrap_or(file.position) };
        let end = at.checked_add(bytes.len() as u64).filter(|end| *end <= MAX_LEN).ok_or(Errno::EFBIG)?;
        if !self.is_unlimited {
            // A page that is written back is never refused, because any session may happen to write it.
            let added = end.saturating_sub(len);
            tree.check_room(if stored.is_some() { 0 } else { added }, added, end)?;
        }
        let count = if let Some(stored) = &stored {
            // Other processes may use the tree while the disk works.
            drop(tree);
            let written = stored.write_at(at, bytes);
            let mut tree = self.tree.lock();
            // Also after an error, because a part may have been written. Not before, when there may be no copy yet.
            tree.mark_written(ino, at..end);
            let count = written?;
            tree.change(ino, |node| {
                node.touch();
                if let Kind::Stored(stored) = &mut node.kind
                    && count > 0
                {
                    stored.len = stored.len.max(at + count as u64);
                }
            })?;
            count
        } else {
            tree.change(ino, |node| {
                node.touch();
                if let Kind::File(content) = &mut node.kind {
                    content.write_at(at, bytes);
                }
            })?;
            bytes.len()
        };
        if position.is_none() {
            file.position = at + count as u64;
        }
        if stored.is_some() && file.flags.has(OpenFlags::SYNCHRONOUS) {
            let to_sync = self.tree.lock().to_sync(ino)?;
            to_sync.map_or(Ok(()), |to_sync| to_sync.sync())?;
        }
        Ok(count)
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
            Kind::Stored(stored) => stored.len,
            Kind::Shared(object) => object.len(),
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => 0,
            Kind::Device(Device::Null | Device::Zero) => return Ok(0),
            Kind::Device(_) | Kind::Symlink(_) => return Err(Errno::ESPIPE),
        };
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => file.position,
            Whence::End => end,
        };
        file.position = base.checked_add_signed(offset).filter(|at| *at <= MAX_LEN).ok_or(Errno::EINVAL)?;
        Ok(file.position)
    }
}
