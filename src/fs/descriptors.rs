//! File descriptors of one process, and the open file descriptions behind them.

use serde::{Deserialize, Serialize};

use super::{
    errno::Errno,
    node::Ino,
    pipe::{End, Pipe},
    tree::Tree,
};

/// One more than the highest descriptor; Emscripten's `FS.MAX_OPEN_FDS` (`libfs.js`).
pub const MAX_DESCRIPTORS: usize = 4096;

/// Flags of `open`, as Linux numbers them; the access mode is in the lowest two bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    /// `O_RDONLY`.
    pub const READ_ONLY: Self = Self(0);
    /// `O_WRONLY`.
    pub const WRITE_ONLY: Self = Self(1);
    /// `O_RDWR`.
    pub const READ_WRITE: Self = Self(2);
    /// `O_CREAT`.
    pub const CREATE: Self = Self(0o100);
    /// `O_EXCL`.
    pub const EXCLUSIVE: Self = Self(0o200);
    /// `O_TRUNC`.
    pub const TRUNCATE: Self = Self(0o1000);
    /// `O_APPEND`.
    pub const APPEND: Self = Self(0o2000);
    /// `O_NONBLOCK`.
    pub const NONBLOCKING: Self = Self(0o4000);
    /// `O_DSYNC`, which is one bit of `O_SYNC`.
    pub const SYNCHRONOUS: Self = Self(0o10_000);
    /// `O_DIRECTORY`.
    pub const DIRECTORY: Self = Self(0o200_000);
    /// `O_NOFOLLOW`.
    pub const NO_FOLLOW: Self = Self(0o400_000);
    /// Flags that apply to opening only; an open file description does not keep them.
    const TRANSIENT: u32 =
        Self::CREATE.0 | Self::EXCLUSIVE.0 | Self::TRUNCATE.0 | Self::DIRECTORY.0 | Self::NO_FOLLOW.0;

    /// Whether any of `flags` is set.
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// These flags and `more`.
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether the access mode allows reading.
    #[must_use]
    pub const fn readable(self) -> bool {
        self.0 & 3 != Self::WRITE_ONLY.0
    }

    /// Whether the access mode allows writing.
    #[must_use]
    pub const fn writable(self) -> bool {
        self.0 & 3 != Self::READ_ONLY.0
    }

    pub(super) const fn kept(self) -> Self {
        Self(self.0 & !Self::TRANSIENT)
    }
}

/// What an open file description refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Object {
    /// An inode of the tree.
    Node(Ino),
    /// One end of the pipe with that number in this process' table.
    Pipe(usize, End),
}

/// An open file description: what duplicates of a descriptor share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct OpenFile {
    /// What is open.
    pub object: Object,
    /// How it was opened.
    pub flags: OpenFlags,
    /// The offset of the next read or write; in a directory, the cookie of the next entry.
    pub position: u64,
    /// How many descriptors refer to this description.
    descriptors: u32,
}

/// The descriptor table of one process.
///
/// It is plain data: a copy made with `clone` refers to the same inodes and shares nothing else, and it holds nothing
/// open in a tree until [`Descriptors::adopt`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Descriptors {
    /// Indexes into `files`, by descriptor.
    slots: Vec<Option<usize>>,
    files: Vec<Option<OpenFile>>,
    pipes: Vec<Option<Pipe>>,
    /// No descriptor below this one is free.
    lowest_free: usize,
}

/// Puts `value` into the first empty slot of `slots` and returns its index.
fn place<T>(slots: &mut Vec<Option<T>>, value: T) -> usize {
    if let Some(index) = slots.iter().position(Option::is_none) {
        slots[index] = Some(value);
        return index;
    }
    slots.push(Some(value));
    slots.len() - 1
}

impl Descriptors {
    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    fn index(&self, fd: i32) -> Result<usize, Errno> {
        let slot = usize::try_from(fd).ok().and_then(|fd| self.slots.get(fd));
        slot.copied().flatten().ok_or(Errno::EBADF)
    }

    /// The description behind `fd`.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open.
    pub(super) fn file(&self, fd: i32) -> Result<&OpenFile, Errno> {
        self.files.get(self.index(fd)?).and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    /// The description behind `fd`, to be changed.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open.
    pub(super) fn file_mut(&mut self, fd: i32) -> Result<&mut OpenFile, Errno> {
        let index = self.index(fd)?;
        self.files.get_mut(index).and_then(Option::as_mut).ok_or(Errno::EBADF)
    }

    /// The descriptors that are open, in ascending order.
    pub(super) fn open(&self) -> impl Iterator<Item = i32> {
        let open = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        open.filter_map(|(fd, _)| i32::try_from(fd).ok())
    }

    fn free_from(&self, least: usize) -> Result<usize, Errno> {
        let taken = self.slots.iter().skip(least).position(Option::is_none);
        let fd = taken.map_or(self.slots.len().max(least), |offset| least + offset);
        if fd < MAX_DESCRIPTORS { Ok(fd) } else { Err(Errno::EMFILE) }
    }

    fn set(&mut self, fd: usize, index: usize) -> i32 {
        if fd >= self.slots.len() {
            self.slots.resize(fd + 1, None);
        }
        self.slots[fd] = Some(index);
        if fd == self.lowest_free {
            self.lowest_free = fd + 1;
        }
        i32::try_from(fd).unwrap_or(i32::MAX)
    }

    /// Gives the lowest free descriptor to a new description of `ino`, which `tree` retains.
    ///
    /// # Errors
    /// `EMFILE` if no descriptor is free, `ENOENT` if there is no such node.
    pub(super) fn open_node(&mut self, tree: &mut Tree, ino: Ino, flags: OpenFlags) -> Result<i32, Errno> {
        let fd = self.free_from(self.lowest_free)?;
        tree.retain(ino)?;
        Ok(self.describe(fd, Object::Node(ino), flags))
    }

    fn describe(&mut self, fd: usize, object: Object, flags: OpenFlags) -> i32 {
        let file = OpenFile { object, flags: flags.kept(), position: 0, descriptors: 1 };
        let index = place(&mut self.files, file);
        self.set(fd, index)
    }

    /// Makes a pipe; returns the descriptors of its reading and its writing end.
    ///
    /// # Errors
    /// `EMFILE` if there are no two free descriptors.
    pub(super) fn open_pipe(&mut self, flags: OpenFlags) -> Result<(i32, i32), Errno> {
        let read = self.free_from(self.lowest_free)?;
        let write = self.free_from(read + 1)?;
        let pipe = place(&mut self.pipes, Pipe::new());
        let reader = self.describe(read, Object::Pipe(pipe, End::Read), flags.with(OpenFlags::READ_ONLY));
        let writer = self.describe(write, Object::Pipe(pipe, End::Write), flags.with(OpenFlags::WRITE_ONLY));
        Ok((reader, writer))
    }

    pub(super) fn pipe(&mut self, pipe: usize) -> Result<&mut Pipe, Errno> {
        self.pipes.get_mut(pipe).and_then(Option::as_mut).ok_or(Errno::EBADF)
    }

    /// A duplicate of `fd`: the lowest free descriptor that is at least `least`.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` if `least` cannot be a descriptor; `EMFILE` if no descriptor is free.
    pub(super) fn duplicate(&mut self, fd: i32, least: i32) -> Result<i32, Errno> {
        let index = self.index(fd)?;
        let least = usize::try_from(least).ok().filter(|least| *least < MAX_DESCRIPTORS).ok_or(Errno::EINVAL)?;
        let new = self.free_from(least.max(self.lowest_free))?;
        self.share(index);
        Ok(self.set(new, index))
    }

    /// Makes `new` a duplicate of `fd`, after closing `new`.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open or `new` cannot be a descriptor.
    pub(super) fn duplicate_to(&mut self, tree: &mut Tree, fd: i32, new: i32) -> Result<i32, Errno> {
        let index = self.index(fd)?;
        let slot = usize::try_from(new).ok().filter(|new| *new < MAX_DESCRIPTORS).ok_or(Errno::EBADF)?;
        if fd == new {
            return Ok(new);
        }
        self.share(index);
        if self.index(new).is_ok() {
            self.close(tree, new)?;
        }
        Ok(self.set(slot, index))
    }

    fn share(&mut self, index: usize) {
        if let Some(Some(file)) = self.files.get_mut(index) {
            file.descriptors += 1;
        }
    }

    /// Closes `fd`. The description, and what it has open, close with its last descriptor.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open.
    pub(super) fn close(&mut self, tree: &mut Tree, fd: i32) -> Result<(), Errno> {
        let index = self.index(fd)?;
        let slot = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.slots[slot] = None;
        self.lowest_free = self.lowest_free.min(slot);
        let Some(file) = self.files.get_mut(index).and_then(Option::as_mut) else {
            return Err(Errno::EBADF);
        };
        file.descriptors = file.descriptors.saturating_sub(1);
        if file.descriptors > 0 {
            return Ok(());
        }
        let object = file.object;
        self.files[index] = None;
        match object {
            Object::Node(ino) => tree.release(ino),
            Object::Pipe(number, end) => {
                if let Some(Some(pipe)) = self.pipes.get_mut(number) {
                    pipe.close(end);
                    if pipe.end_is_gone(End::Read) && pipe.end_is_gone(End::Write) {
                        self.pipes[number] = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes `tree` retain what the descriptions of this copied table refer to. Descriptors of inodes that do not
    /// exist any more are closed.
    pub(super) fn adopt(&mut self, tree: &mut Tree) {
        for (index, slot) in self.files.iter_mut().enumerate() {
            let Some(OpenFile { object: Object::Node(ino), .. }) = slot else {
                continue;
            };
            if tree.retain(*ino).is_err() {
                *slot = None;
                for descriptor in self.slots.iter_mut().filter(|slot| **slot == Some(index)) {
                    *descriptor = None;
                }
            }
        }
        self.lowest_free = 0;
    }

    /// Closes every descriptor.
    pub(super) fn close_all(&mut self, tree: &mut Tree) {
        for file in self.files.drain(..).flatten() {
            if let Object::Node(ino) = file.object {
                tree.release(ino);
            }
        }
        *self = Self::default();
    }
}
