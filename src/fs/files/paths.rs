//! The functions of a process that take paths.

use std::sync::Arc;

use super::Files;
use crate::fs::{
    content::Content,
    descriptors::{Object, OpenFlags},
    directory::Directory,
    errno::Errno,
    node::{Access, Ino, Kind, Node, S_IFLNK, Stat, Timestamp},
    path::{self, Follow, Location, Place},
    tree::{MAX_LEN, Tree},
};

/// The start of a relative path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The process' working directory (`AT_FDCWD`).
    WorkingDirectory,
    /// An open directory.
    Descriptor(i32),
}

/// A time that `utimens` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTime {
    /// Leave the time unchanged (`UTIME_OMIT`).
    Keep,
    /// The current time (`UTIME_NOW`).
    Now,
    /// That time.
    At(Timestamp),
}

impl NewTime {
    fn or(self, old: Timestamp) -> Timestamp {
        match self {
            Self::Keep => old,
            Self::Now => Timestamp::now(),
            Self::At(time) => time,
        }
    }
}

/// The name to create or remove; `error` is returned for a path that ends in `/`, `.` or `..`.
fn name(location: &Location, error: Errno) -> Result<&[u8], Errno> {
    location.name.as_deref().ok_or(error)
}

impl Files {
    fn starting_directory(&self, at: At) -> Result<Ino, Errno> {
        match at {
            At::WorkingDirectory => Ok(self.state.working_directory),
            At::Descriptor(fd) => self.open_inode(fd, Errno::ENOTDIR),
        }
    }

    fn walk(&self, tree: &Tree, at: At, path: &[u8], follow: Follow) -> Result<Location, Errno> {
        // For an absolute path POSIX ignores the descriptor, valid or not.
        let start = if path.starts_with(b"/") { At::WorkingDirectory } else { at };
        path::walk(tree, &self.state.descriptors, self.starting_directory(start)?, path, follow)
    }

    /// The inode that a path names; `EINVAL` for an entry of `/proc/self/fd` that has none.
    pub(super) fn inode(&self, tree: &Tree, at: At, path: &[u8], follow: Follow) -> Result<Ino, Errno> {
        match self.walk(tree, at, path, follow)?.existing()? {
            Place::Node(ino) => Ok(ino),
            Place::Descriptor(_) => Err(Errno::EINVAL),
        }
    }

    /// Opens a file and returns its descriptor, the lowest that is free. `mode` is that of a file that is created.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `EISDIR`, `ENOTDIR`, `ELOOP`, `EACCES`, `EMFILE`, as `open(2)` says.
    pub fn open(&mut self, at: At, path: &[u8], flags: OpenFlags, mode: u32) -> Result<i32, Errno> {
        let mut tree = self.tree.lock();
        let exclusive = flags.has(OpenFlags::CREATE) && flags.has(OpenFlags::EXCLUSIVE);
        let follow = if exclusive || flags.has(OpenFlags::NO_FOLLOW) { Follow::No } else { Follow::Yes };
        let location = self.walk(&tree, at, path, follow)?;
        let ino = match location.place {
            Some(_) if exclusive => return Err(Errno::EEXIST),
            Some(Place::Node(ino)) => {
                if let Some(name) = &location.name {
                    tree.open_stored(ino, location.parent, name)?;
                }
                Self::prepare_to_open(&mut tree, ino, flags)?;
                ino
            }
            // Opening the `/proc/self/fd` entry of a pipe makes another descriptor of that end.
            Some(Place::Descriptor(_)) if follow == Follow::No => return Err(Errno::ELOOP),
            Some(Place::Descriptor(fd)) => return self.state.descriptors.duplicate(fd, 0),
            None if !flags.has(OpenFlags::CREATE) => return Err(Errno::ENOENT),
            None if location.trailing_slash => return Err(Errno::EISDIR),
            None => {
                let node = Node::new(Kind::File(Content::default()), mode & !self.state.umask);
                self.create(&mut tree, location.parent, name(&location, Errno::EISDIR)?, node)?
            }
        };
        self.state.descriptors.open_node(&mut tree, ino, flags)
    }

    /// Checks that an existing node may be opened with these flags, and truncates it if they say so.
    fn prepare_to_open(tree: &mut Tree, ino: Ino, flags: OpenFlags) -> Result<(), Errno> {
        let node = tree.node(ino).ok_or(Errno::ENOENT)?;
        let truncate = flags.has(OpenFlags::TRUNCATE);
        match node.kind {
            Kind::Symlink(_) => return Err(Errno::ELOOP),
            // A directory can only be read; `O_DIRECTORY` is valid for it.
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => {
                let is_read = !(flags.writable() || truncate || flags.has(OpenFlags::CREATE));
                is_read.then_some(()).ok_or(Errno::EISDIR)?;
            }
            _ if flags.has(OpenFlags::DIRECTORY) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        if (flags.readable() && !node.permits(Access::Read))
            || ((flags.writable() || truncate) && !node.permits(Access::Write))
        {
            return Err(Errno::EACCES);
        }
        if truncate && matches!(node.kind, Kind::File(_) | Kind::Stored(_) | Kind::Shared(_)) {
            Self::cut(tree, ino, 0)?;
        }
        Ok(())
    }

    /// Makes a new node, if there is room for it.
    fn create(&self, tree: &mut Tree, parent: Ino, name: &[u8], node: Node) -> Result<Ino, Errno> {
        if !self.is_unlimited {
            tree.check_room((size_of::<Node>() + name.len()) as u64, 0, 0)?;
        }
        tree.create(parent, name, node)
    }

    /// Sets the length of the file `ino`, if there is room for that.
    pub(super) fn resize(&self, tree: &mut Tree, ino: Ino, len: u64) -> Result<(), Errno> {
        self.check_length(tree, ino, len)?;
        Self::cut(tree, ino, len)
    }

    /// Checks that there is room for the file `ino` to have `len` bytes.
    ///
    /// # Errors
    /// `ENOSPC`, `EFBIG`
    pub(super) fn check_length(&self, tree: &Tree, ino: Ino, len: u64) -> Result<(), Errno> {
        if len > MAX_LEN {
            return Err(Errno::EFBIG);
        }
        let node = tree.node(ino).ok_or(Errno::ENOENT)?;
        let added = len.saturating_sub(node.len());
        if self.is_unlimited || added == 0 {
            return Ok(());
        }
        tree.check_room(if matches!(node.kind, Kind::Stored(_)) { 0 } else { added }, added, len)
    }

    /// Sets the length of the file `ino`, whether there is room for that or not.
    fn cut(tree: &mut Tree, ino: Ino, len: u64) -> Result<(), Errno> {
        if len > MAX_LEN {
            return Err(Errno::EFBIG);
        }
        let node = tree.node(ino).ok_or(Errno::ENOENT)?;
        match node.kind {
            Kind::File(_) | Kind::Stored(_) if node.permits(Access::Write) => {}
            Kind::File(_) | Kind::Stored(_) => return Err(Errno::EACCES),
            Kind::Shared(_) => return Err(Errno::EBUSY),
            _ if node.is_directory() => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        tree.mark_cut(ino, len);
        tree.change(ino, |node| {
            match &mut node.kind {
                Kind::File(content) => content.set_len(len),
                Kind::Stored(stored) => {
                    stored.file.as_ref().ok_or(Errno::EBADF)?.set_len(len)?;
                    stored.len = len;
                }
                _ => {}
            }
            node.touch();
            Ok(())
        })?
    }

    /// Sets the length of a file.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for a node without a length, `EACCES`, `EBUSY` if processes have mapped it, `EFBIG`,
    /// `ENOENT`.
    pub fn truncate(&mut self, path: &[u8], len: u64) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let location = self.walk(&tree, At::WorkingDirectory, path, Follow::Yes)?;
        let Place::Node(ino) = location.existing()? else { return Err(Errno::EINVAL) };
        tree.retain(ino)?;
        let opened = location.name.as_ref().map_or(Ok(()), |name| tree.open_stored(ino, location.parent, name));
        let cut = opened.and_then(|()| self.resize(&mut tree, ino, len));
        tree.release(ino);
        cut
    }

    /// The attributes of the file that a path names.
    ///
    /// # Errors
    /// `ENOENT` and the other errors of a walk.
    pub fn stat(&self, at: At, path: &[u8], follow: Follow) -> Result<Stat, Errno> {
        let tree = self.tree.lock();
        match self.walk(&tree, at, path, follow)?.existing()? {
            Place::Node(ino) => Ok(tree.node(ino).ok_or(Errno::ENOENT)?.stat(ino)),
            Place::Descriptor(fd) => {
                let mut stat = self.stat_descriptor(&tree, fd)?;
                if follow == Follow::No {
                    stat.mode = S_IFLNK | 0o777;
                }
                Ok(stat)
            }
        }
    }

    /// Checks whether a file may be accessed in all ways of `wanted`; if `wanted` is empty, it only has to exist.
    ///
    /// # Errors
    /// `EACCES` if it may not, `ENOENT` and the other errors of a walk.
    pub fn access(&self, at: At, path: &[u8], wanted: &[Access]) -> Result<(), Errno> {
        let tree = self.tree.lock();
        let ino = match self.walk(&tree, at, path, Follow::Yes)?.existing()? {
            Place::Node(ino) => ino,
            Place::Descriptor(_) => return Ok(()),
        };
        let node = tree.node(ino).ok_or(Errno::ENOENT)?;
        if wanted.iter().all(|access| node.permits(*access)) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn mkdir(&mut self, at: At, path: &[u8], mode: u32) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let location = self.walk(&tree, at, path, Follow::No)?;
        let name = name(&location, Errno::EEXIST)?;
        // The mode's nine bits and the sticky bit, without set-user-id and set-group-id, as in `mkdir(2)`.
        let mode = mode & 0o1777 & !self.state.umask;
        let node = Node::new(Kind::Directory(Directory::new(location.parent)), mode);
        self.create(&mut tree, location.parent, name, node).map(|_| ())
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `ENOENT` if `target` is empty, `EEXIST`, `ENOTDIR`, `EACCES`, `ENAMETOOLONG`.
    pub fn symlink(&mut self, target: &[u8], at: At, path: &[u8]) -> Result<(), Errno> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut tree = self.tree.lock();
        let location = self.walk(&tree, at, path, Follow::No)?;
        let name = name(&location, Errno::EEXIST)?;
        if location.place.is_none() && location.trailing_slash {
            return Err(Errno::ENOENT);
        }
        let node = Node::new(Kind::Symlink(Arc::from(target)), 0o777);
        self.create(&mut tree, location.parent, name, node).map(|_| ())
    }

    /// Gives a file a second name. Emscripten's MEMFS has no hard links; these are Linux'.
    ///
    /// # Errors
    /// `EPERM` for a directory, `EEXIST`, `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn link(&mut self, from: (At, &[u8]), to: (At, &[u8]), follow: Follow) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let ino = self.inode(&tree, from.0, from.1, follow)?;
        let location = self.walk(&tree, to.0, to.1, Follow::No)?;
        tree.link(location.parent, name(&location, Errno::EEXIST)?, ino)
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// `EISDIR`, `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn unlink(&mut self, at: At, path: &[u8]) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let location = self.walk(&tree, at, path, Follow::No)?;
        tree.unlink(location.parent, name(&location, Errno::EISDIR)?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOTEMPTY`, `ENOTDIR`, `ENOENT`, `EACCES`; `EINVAL` if the path ends in `.`, `EBUSY` for the root directory.
    pub fn rmdir(&mut self, at: At, path: &[u8]) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let location = self.walk(&tree, at, path, Follow::No)?;
        let error = if path.ends_with(b".") { Errno::EINVAL } else { Errno::EBUSY };
        tree.rmdir(location.parent, name(&location, error)?)
    }

    /// Renames a file or directory, replacing the file or directory that has the new name.
    ///
    /// # Errors
    /// `EINVAL`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `ENOENT`, `EACCES`, `EBUSY`, as `rename(2)` says.
    pub fn rename(&mut self, from: (At, &[u8]), to: (At, &[u8])) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let old = self.walk(&tree, from.0, from.1, Follow::No)?;
        let new = self.walk(&tree, to.0, to.1, Follow::No)?;
        let (old_name, new_name) = (name(&old, Errno::EBUSY)?, name(&new, Errno::EBUSY)?);
        if let Place::Node(ino) = old.existing()? {
            let is_directory = tree.node(ino).is_some_and(Node::is_directory);
            if new.trailing_slash && !is_directory {
                return Err(Errno::ENOTDIR);
            }
        }
        tree.rename((old.parent, old_name), (new.parent, new_name))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if the path names something else, `ENOENT` and the other errors of a walk.
    pub fn readlink(&self, at: At, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let tree = self.tree.lock();
        match self.walk(&tree, at, path, Follow::No)?.existing()? {
            Place::Node(ino) => match tree.node(ino).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) => Ok(target.to_vec()),
                _ => Err(Errno::EINVAL),
            },
            Place::Descriptor(fd) => match self.state.descriptors.file(fd)?.object {
                Object::Node(ino) => tree.path_of(ino).ok_or(Errno::ENOENT),
                Object::Pipe(number, _) => Ok(format!("pipe:[{number}]").into_bytes()),
            },
        }
    }

    /// Sets a file's permission bits.
    ///
    /// # Errors
    /// `ENOENT` and the other errors of a walk.
    pub fn chmod(&mut self, at: At, path: &[u8], mode: u32, follow: Follow) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let ino = self.inode(&tree, at, path, follow)?;
        Self::set_permissions(&mut tree, ino, mode)
    }

    /// Sets a file's times of last access and last modification. An empty path means `at` itself.
    ///
    /// # Errors
    /// `ENOENT` and the other errors of a walk.
    pub fn utimens(
        &mut self,
        at: At,
        path: &[u8],
        accessed: NewTime,
        modified: NewTime,
        follow: Follow,
    ) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let ino = if path.is_empty() { self.starting_directory(at)? } else { self.inode(&tree, at, path, follow)? };
        tree.change(ino, |node| {
            let times = &mut node.attributes;
            times.accessed = accessed.or(times.accessed);
            times.modified = modified.or(times.modified);
            times.changed = Timestamp::now();
        })
    }

    /// Sets the working directory.
    ///
    /// # Errors
    /// `ENOTDIR`, `EACCES`, `ENOENT` and the other errors of a walk.
    pub fn chdir(&mut self, path: &[u8]) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let ino = self.inode(&tree, At::WorkingDirectory, path, Follow::Yes)?;
        let node = tree.node(ino).ok_or(Errno::ENOENT)?;
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if !node.permits(Access::Execute) {
            return Err(Errno::EACCES);
        }
        tree.retain(ino)?;
        tree.release(self.state.working_directory);
        drop(tree);
        self.state.working_directory = ino;
        Ok(())
    }

    /// The absolute path of the working directory.
    ///
    /// # Errors
    /// `ENOENT` if it has been removed.
    pub fn getcwd(&self) -> Result<Vec<u8>, Errno> {
        self.tree.lock().path_of_directory(self.state.working_directory).ok_or(Errno::ENOENT)
    }
}
