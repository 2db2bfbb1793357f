//! The part of a tree that is kept in a [`Storage`]: every change of a name below it is made there first, and the tree
//! follows only when it has succeeded.
//!
//! The tree knows all names and lengths, because every change of them goes through it. Paths of the guest are
//! therefore resolved in the tree, and the storage is used only with names that the tree has.

mod copied;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    content::Content,
    directory::Directory,
    errno::Errno,
    frozen::ROOT,
    layout::make_directories,
    node::{Ino, Kind, Node, Stored},
    path::joined,
    storage::{Storage, StoredEntryKind, StoredFile},
    tree::Tree,
    written::Written,
};
use copied::Copied;

/// Permissions that the guest sees, independent of those in the storage.
const FILE_PERMISSIONS: u32 = 0o600;
const DIRECTORY_PERMISSIONS: u32 = 0o700;

/// How many bytes are copied at once.
const PIECE: usize = 1 << 20;

/// A storage, and the directory of the tree that it is mounted on.
#[derive(Debug)]
pub(super) struct Mount {
    root: Ino,
    storage: Arc<dyn Storage>,
    /// Whether a sync has failed since the cluster's start.
    has_lost: Arc<AtomicBool>,
    /// What branches begin with.
    copied: Option<Copied>,
}

impl Tree {
    /// Replaces the files below the directory `path` by those of `storage`. From now on changes below `path` are made
    /// in `storage`.
    ///
    /// # Errors
    /// `EBUSY` if there is a storage in the tree already; those of the storage.
    pub fn mount(&mut self, path: &[u8], storage: Arc<dyn Storage>) -> Result<(), Errno> {
        if self.mount.is_some() {
            return Err(Errno::EBUSY);
        }
        let root = make_directories(self, path)?;
        self.clear(root)?;
        self.change(root, |node| {
            node.attributes.permissions = DIRECTORY_PERMISSIONS;
            if let Kind::Directory(directory) = &mut node.kind {
                directory.set_stored(true);
            }
        })?;
        self.load(root, b"", &*storage)?;
        self.mount = Some(Mount { root, storage, has_lost: Arc::default(), copied: None });
        Ok(())
    }

    /// Copies those files below the directory `path` into `storage` whose paths in it are wanted, with their
    /// directories, and has them on the disk when this returns.
    ///
    /// # Errors
    /// `ENOENT` if there is no such directory; those of the storage.
    pub fn copy_to(&self, path: &[u8], storage: &dyn Storage, is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<(), Errno> {
        let mut at = ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = self.lookup(at, name)?.ok_or(Errno::ENOENT)?;
        }
        let mut written = Written::default();
        self.copy_directory(at, b"", storage, is_wanted, &mut written)?;
        Ok(written.sync(storage)?)
    }

    /// Whether a part of the tree is in a storage.
    #[must_use]
    pub fn has_storage(&self) -> bool {
        self.mount.is_some()
    }

    /// Copies what is wanted, and adds it to `written`.
    fn copy_directory(
        &self,
        ino: Ino,
        path: &[u8],
        storage: &dyn Storage,
        is_wanted: &dyn Fn(&[u8]) -> bool,
        written: &mut Written,
    ) -> Result<(), Errno> {
        let Some(Kind::Directory(directory)) = self.node(ino).map(|node| &node.kind) else {
            return Err(Errno::ENOTDIR);
        };
        for (_, entry) in directory.iter_from(0) {
            let path = joined(path, &entry.name);
            if !is_wanted(&path) {
                continue;
            }
            match &self.node(entry.ino).ok_or(Errno::ENOENT)?.kind {
                Kind::File(content) => {
                    copy_content(content, &*storage.create(&path)?)?;
                    written.files.push(path);
                }
                Kind::Directory(_) => {
                    storage.create_directory(&path)?;
                    self.copy_directory(entry.ino, &path, storage, is_wanted, written)?;
                }
                Kind::Symlink(target) => storage.create_symlink(&path, target)?,
                _ => return Err(Errno::EOPNOTSUPP),
            }
        }
        written.directories.push(path.to_vec());
        Ok(())
    }

    /// Removes everything below the directory `ino` from the tree.
    fn clear(&mut self, ino: Ino) -> Result<(), Errno> {
        let Some(Kind::Directory(directory)) = self.node(ino).map(|node| &node.kind) else { return Ok(()) };
        let entries: Vec<_> = directory.iter_from(0).map(|(_, entry)| entry.clone()).collect();
        for entry in entries {
            if self.node(entry.ino).is_some_and(Node::is_directory) {
                self.clear(entry.ino)?;
                self.rmdir(ino, &entry.name)?;
            } else {
                self.unlink(ino, &entry.name)?;
            }
        }
        Ok(())
    }

    /// Adds the content of the directory `path` of `storage` to the directory `ino`.
    fn load(&mut self, ino: Ino, path: &[u8], storage: &dyn Storage) -> Result<(), Errno> {
        for entry in storage.list(path)? {
            let mut node = match entry.kind {
                StoredEntryKind::File { len } => Node::new(Kind::Stored(Stored { len, file: None }), FILE_PERMISSIONS),
                StoredEntryKind::Directory => Node::new(stored_directory(ino), DIRECTORY_PERMISSIONS),
                StoredEntryKind::Symlink { target } => Node::new(Kind::Symlink(Arc::from(target)), 0o777),
                // PostgreSQL makes no files of other kinds, so this one is not a part of the cluster.
                StoredEntryKind::Other => continue,
            };
            node.attributes.modified = entry.modified;
            let is_directory = node.is_directory();
            let child = self.insert(ino, &entry.name, node)?;
            if is_directory {
                self.load(child, &joined(path, &entry.name), storage)?;
            }
        }
        Ok(())
    }

    /// Makes `node` in the storage, with the name `name` in the stored directory `parent`; returns the node for the
    /// tree.
    pub(super) fn store_node(&self, parent: Ino, name: &[u8], mut node: Node) -> Result<Node, Errno> {
        let kind = self.in_storage(parent, name, |storage, path| {
            Ok(match &node.kind {
                Kind::File(content) if content.is_empty() => {
                    Some(Kind::Stored(Stored { len: 0, file: Some(storage.create(path)?) }))
                }
                Kind::Directory(_) => {
                    storage.create_directory(path)?;
                    Some(stored_directory(parent))
                }
                Kind::Symlink(target) if self.is_below_mount(target) => {
                    storage.create_symlink(path, target)?;
                    Some(node.kind.clone())
                }
                // A tablespace in memory would be lost at the program's end. Without it, the cluster could not start.
                _ => None,
            })
        })?;
        node.kind = kind.flatten().ok_or(Errno::EPERM)?;
        Ok(node)
    }

    /// Opens the stored file `ino`, which has the name `name` in `parent`, unless it is open already.
    ///
    /// # Errors
    /// Those of the storage.
    pub(super) fn open_stored(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let Some(Kind::Stored(Stored { file: None, .. })) = self.node(ino).map(|node| &node.kind) else {
            return Ok(());
        };
        let opened = self.in_storage(parent, name, |storage, path| storage.open(path))?;
        self.change(ino, |node| {
            if let Kind::Stored(stored) = &mut node.kind {
                stored.file = opened;
            }
        })
    }

    /// Closes the stored file `ino`, which no descriptor or mapping in the tree uses any more.
    pub(super) fn close_stored(&mut self, ino: Ino) {
        if let Some(Kind::Stored(Stored { file: Some(_), .. })) = self.node(ino).map(|node| &node.kind) {
            // The node exists, as checked above, so this cannot fail.
            let _ = self.change(ino, |node| {
                if let Kind::Stored(stored) = &mut node.kind {
                    stored.file = None;
                }
            });
        }
    }

    /// Refuses a second name for a stored file, because after another start it would be that of another node, with a
    /// length of its own. `PostgreSQL` makes none.
    pub(super) fn link_stored(&self, parent: Ino, name: &[u8], ino: Ino) -> Result<(), Errno> {
        let from = self.path_of(ino).and_then(|path| self.relative(&path));
        match (from, self.path_in_storage(parent, name)) {
            (None, None) => Ok(()),
            (Some(_), Some(_)) => Err(Errno::EPERM),
            _ => Err(Errno::EXDEV),
        }
    }

    pub(super) fn rename_stored(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<(), Errno> {
        match (self.path_in_storage(from.0, from.1), self.path_in_storage(to.0, to.1), &self.mount) {
            (None, None, _) => Ok(()),
            (Some(from), Some(to), Some(mount)) => Ok(mount.storage.rename(&from, &to)?),
            _ => Err(Errno::EXDEV),
        }
    }

    /// Calls `act` with the storage's path of the name `name` in the directory `parent`, if that directory is stored.
    pub(super) fn in_storage<T>(
        &self,
        parent: Ino,
        name: &[u8],
        act: impl FnOnce(&dyn Storage, &[u8]) -> io::Result<T>,
    ) -> Result<Option<T>, Errno> {
        match (self.path_in_storage(parent, name), &self.mount) {
            (Some(path), Some(mount)) => Ok(Some(act(&*mount.storage, &path)?)),
            _ => Ok(None),
        }
    }

    /// The object to sync so that the file or the directory `ino` is on the disk; `None` if it is in memory.
    ///
    /// # Errors
    /// `ENOENT` if the directory has been removed.
    pub(super) fn to_sync(&self, ino: Ino) -> Result<Option<ToSync>, Errno> {
        let Some(mount) = &self.mount else { return Ok(None) };
        let object = match self.node(ino).map(|node| &node.kind) {
            Some(Kind::Stored(stored)) => Synced::File(stored.file.clone().ok_or(Errno::EBADF)?),
            Some(Kind::Directory(directory)) if directory.is_stored() => {
                let path = self.path_of_directory(ino).and_then(|path| self.relative(&path)).ok_or(Errno::ENOENT)?;
                Synced::Directory(mount.storage.clone(), path)
            }
            _ => return Ok(None),
        };
        Ok(Some(ToSync { object, has_lost: mount.has_lost.clone() }))
    }

    /// The cluster starts, and recovers from what is on the disk: syncs that failed before are forgotten.
    pub fn begin_again(&self) {
        if let Some(mount) = &self.mount {
            mount.has_lost.store(false, Ordering::SeqCst);
        }
    }

    /// Whether an absolute path leads into the storage.
    fn is_below_mount(&self, path: &[u8]) -> bool {
        let goes_up = path.split(|byte| *byte == b'/').any(|name| name == b"..");
        !goes_up && path.starts_with(b"/") && self.relative(path).is_some()
    }

    /// The storage's path of the name `name` in the directory `parent`; `None` if that directory is not stored.
    fn path_in_storage(&self, parent: Ino, name: &[u8]) -> Option<Vec<u8>> {
        match &self.node(parent)?.kind {
            Kind::Directory(directory) if directory.is_stored() => {
                Some(joined(&self.relative(&self.path_of_directory(parent)?)?, name))
            }
            _ => None,
        }
    }

    /// An absolute path, relative to the storage's root; `None` if it is not below the mount.
    fn relative(&self, path: &[u8]) -> Option<Vec<u8>> {
        let root = self.path_of_directory(self.mount.as_ref()?.root)?;
        let rest = path.strip_prefix(&*root)?;
        if rest.is_empty() { Some(Vec::new()) } else { Some(rest.strip_prefix(b"/")?.to_vec()) }
    }
}

/// A file or a directory of a storage that is to be written to the disk. This takes no lock.
#[derive(Debug)]
pub struct ToSync {
    object: Synced,
    has_lost: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Synced {
    File(Arc<dyn StoredFile>),
    Directory(Arc<dyn Storage>, Vec<u8>),
}

impl ToSync {
    /// Writes it to the disk.
    ///
    /// # Errors
    /// Those of the storage. `EIO` after any sync has failed because of the disk: an operating system reports a lost
    /// write only once, maybe to another process, and the next sync of the file succeeds.
    pub fn sync(&self) -> Result<(), Errno> {
        let synced = match &self.object {
            Synced::File(file) => file.sync(),
            Synced::Directory(storage, path) => storage.sync_directory(path),
        };
        let synced = synced.map_err(Errno::from);
        if matches!(synced, Err(Errno::EIO | Errno::ENOSPC | Errno::EDQUOT)) {
            self.has_lost.store(true, Ordering::SeqCst);
        }
        // Looked at after the sync: while this one ran, another one may have got the error of a write that both are
        // for.
        match synced {
            Ok(()) if self.has_lost.load(Ordering::SeqCst) => Err(Errno::EIO),
            synced => synced,
        }
    }
}

fn stored_directory(parent: Ino) -> Kind {
    let mut directory = Directory::new(parent);
    directory.set_stored(true);
    Kind::Directory(directory)
}

fn copy_content(content: &Content, target: &dyn StoredFile) -> Result<(), Errno> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let read = content.read_at(offset, &mut buffer);
        if read == 0 {
            return Ok(());
        }
        target.write_all_at(offset, &buffer[..read])?;
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests;
