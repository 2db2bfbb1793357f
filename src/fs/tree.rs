//! The files of one cluster: a frozen tree below, and the nodes that changed since above.

use std::{collections::hash_map, sync::Arc};

use super::{
    added::AddedFiles,
    directory::{Directory, Name},
    errno::Errno,
    frozen::{FrozenTree, InoMap, ROOT},
    mount::Mount,
    node::{Access, Ino, Kind, Node, Timestamp},
};
use crate::quota::Quota;

mod freezing;
mod sizes;

use sizes::{Counted, Sizes};

/// The largest length a file can have, in bytes.
pub(super) const MAX_LEN: u64 = i64::MAX as u64;

/// The state of an inode in the overlay.
#[derive(Clone, Debug)]
enum Slot {
    Changed(Node),
    /// The base has it, but it was removed.
    Gone,
}

/// A POSIX file tree in memory that can be cloned at no cost.
///
/// A tree that builds on a [`FrozenTree`] holds only its changes, and neither sees later changes of the other.
/// Sessions of one cluster share a tree as `Arc<Mutex<Tree>>`. This type handles inodes and names;
/// [`Files`](super::Files) handles paths, permissions to open and file descriptors.
#[derive(Debug)]
pub struct Tree {
    base: Arc<FrozenTree>,
    overlay: InoMap<Slot>,
    next: Ino,
    /// The number of open file descriptions and working directories, of all sessions, that refer to an inode.
    opens: InoMap<u32>,
    sizes: Sizes,
    /// [`FrozenTree::len_of_files`] of the base that the tree began with.
    len_at_beginning: u64,
    /// What counts against the quota of the cluster.
    counted: Counted,
    /// The files that the program has added.
    pub(super) added: Option<Arc<AddedFiles>>,
    /// The directory whose files outlive the program, if there is one.
    pub(super) mount: Option<Mount>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A tree with only a root directory.
    #[must_use]
    pub fn new() -> Self {
        Self::from_frozen(FrozenTree::empty())
    }

    /// A tree that starts as `base`. The time does not depend on the number of files.
    #[must_use]
    pub fn from_frozen(base: Arc<FrozenTree>) -> Self {
        let len_at_beginning = base.len_of_files;
        Self {
            next: base.next,
            added: base.added.clone(),
            base,
            overlay: InoMap::default(),
            opens: InoMap::default(),
            sizes: Sizes { files: len_at_beginning, ..Sizes::default() },
            len_at_beginning,
            counted: Counted::new(&Quota::unlimited()),
            mount: None,
        }
    }

    /// Approximate number of bytes that only this tree holds: changed chunks, changed nodes. Constant time.
    #[must_use]
    pub fn private_bytes(&self) -> usize {
        self.sizes.private
    }

    /// The number of inode numbers that were assigned.
    #[must_use]
    pub fn inodes(&self) -> u64 {
        self.next.0
    }

    /// The node `ino`, if there is one.
    #[must_use]
    pub fn node(&self, ino: Ino) -> Option<&Node> {
        match self.overlay.get(&ino) {
            Some(Slot::Changed(node)) => Some(node),
            Some(Slot::Gone) => None,
            None => self.base.nodes.get(&ino).map(Arc::as_ref),
        }
    }

    /// Changes the node `ino`, which moves into the overlay if it is not there yet.
    ///
    /// # Errors
    /// `ENOENT` if there is no such node.
    pub fn change<R>(&mut self, ino: Ino, change: impl FnOnce(&mut Node) -> R) -> Result<R, Errno> {
        let slot = match self.overlay.entry(ino) {
            hash_map::Entry::Occupied(slot) => slot.into_mut(),
            hash_map::Entry::Vacant(vacant) => {
                let node = self.base.nodes.get(&ino).ok_or(Errno::ENOENT)?;
                let slot = Slot::Changed(Node::clone(node));
                // The file's length is counted in the base already.
                self.sizes = self.sizes.and(Sizes { files: 0, ..Sizes::of(&slot) });
                vacant.insert(slot)
            }
        };
        let before = Sizes::of(slot);
        let Slot::Changed(node) = slot else {
            return Err(Errno::ENOENT);
        };
        let result = change(node);
        let after = Sizes::of(slot);
        if after != before {
            self.sizes = self.sizes.and(after).without(before);
            self.count();
        }
        Ok(result)
    }

    /// What `name` names in the directory `parent`.
    ///
    /// # Errors
    /// `ENOTDIR` if `parent` is not a directory, `EACCES` if it must not be searched.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>, Errno> {
        Ok(self.directory(parent, &[Access::Execute])?.get(name))
    }

    /// The directory `ino`, if it permits all of `access`.
    fn directory(&self, ino: Ino, access: &[Access]) -> Result<&Directory, Errno> {
        let node = self.node(ino).ok_or(Errno::ENOENT)?;
        let directory = match &node.kind {
            Kind::Directory(directory) => directory,
            Kind::DescriptorDirectory { .. } => return Err(Errno::EPERM),
            _ => return Err(Errno::ENOTDIR),
        };
        if access.iter().all(|access| node.permits(*access)) { Ok(directory) } else { Err(Errno::EACCES) }
    }

    /// The directory `ino`, if names may be added to it and removed from it.
    fn directory_to_change(&self, ino: Ino) -> Result<&Directory, Errno> {
        let directory = self.directory(ino, &[Access::Write, Access::Execute])?;
        // A directory that was removed while in use takes no new names.
        if self.node(ino).is_none_or(|node| node.attributes.links == 0) {
            return Err(Errno::ENOENT);
        }
        Ok(directory)
    }

    /// Changes the entries of the directory `ino`.
    fn change_directory(&mut self, ino: Ino, change: impl FnOnce(&mut Directory)) -> Result<(), Errno> {
        self.change(ino, |node| {
            node.touch();
            if let Kind::Directory(directory) = &mut node.kind {
                change(directory);
            }
        })
    }

    /// Makes a new node with the name `name` in `parent`.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken; `ENOTDIR`, `EACCES`, `ENOENT` if `parent` takes no names.
    pub fn create(&mut self, parent: Ino, name: &[u8], node: Node) -> Result<Ino, Errno> {
        let directory = self.directory_to_change(parent)?;
        if directory.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let node = if directory.is_stored() { self.store_node(parent, name, node)? } else { node };
        self.insert(parent, name, node)
    }

    /// Adds a node that is in its storage already, if it belongs there.
    pub(super) fn insert(&mut self, parent: Ino, name: &[u8], node: Node) -> Result<Ino, Errno> {
        let ino = self.next;
        self.next.0 += 1;
        self.insert_as(ino, parent, name, node)?;
        Ok(ino)
    }

    /// Adds a node with the number `ino`, which no other node has.
    pub(super) fn insert_as(&mut self, ino: Ino, parent: Ino, name: &[u8], node: Node) -> Result<(), Errno> {
        let slot = Slot::Changed(node);
        self.sizes = self.sizes.and(Sizes::of(&slot));
        self.overlay.insert(ino, slot);
        self.change_directory(parent, |directory| directory.insert(name, ino))
    }

    /// Gives the node `ino` the further name `name` in `parent`.
    ///
    /// # Errors
    /// `EPERM` if `ino` is a directory, else as [`Tree::create`].
    pub fn link(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Result<(), Errno> {
        let node = self.node(ino).ok_or(Errno::ENOENT)?;
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        let links = node.attributes.links.checked_add(1).ok_or(Errno::EMLINK)?;
        if self.directory_to_change(parent)?.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.link_stored(parent, name, ino)?;
        self.change(ino, |node| {
            node.attributes.links = links;
            node.attributes.changed = Timestamp::now();
        })?;
        self.change_directory(parent, |directory| directory.insert(name, ino))
    }

    /// Removes the name of something other than a directory. The inode lives on while it has other names or is open.
    ///
    /// # Errors
    /// `ENOENT` if there is no such name, `EISDIR` if it names a directory; `ENOTDIR`, `EACCES`.
    pub fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let ino = self.directory_to_change(parent)?.get(name).ok_or(Errno::ENOENT)?;
        if self.node(ino).is_some_and(Node::is_directory) {
            return Err(Errno::EISDIR);
        }
        self.in_storage(parent, name, |storage, path| storage.unlink(path))?;
        self.change_directory(parent, |directory| directory.remove(name))?;
        self.drop_link(ino)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT` if there is no such name, `ENOTDIR` if it names something else, `ENOTEMPTY`, `EACCES`.
    pub fn rmdir(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let ino = self.directory_to_change(parent)?.get(name).ok_or(Errno::ENOENT)?;
        if !self.directory(ino, &[])?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.in_storage(parent, name, |storage, path| storage.remove_directory(path))?;
        self.change_directory(parent, |directory| directory.remove(name))?;
        self.drop_link(ino)
    }

    /// Renames `from` to `to` in one step; the inode that `to` named before loses that name.
    ///
    /// # Errors
    /// `EINVAL` if a directory would move into itself; `EISDIR`, `ENOTDIR`, `ENOTEMPTY` if `to` cannot be replaced by
    /// `from`; `ENOENT`, `EACCES`.
    pub fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<(), Errno> {
        let moved = self.directory_to_change(from.0)?.get(from.1).ok_or(Errno::ENOENT)?;
        let replaced = self.directory_to_change(to.0)?.get(to.1);
        if replaced == Some(moved) {
            return Ok(());
        }
        let is_directory = self.node(moved).is_some_and(Node::is_directory);
        if is_directory && self.is_below(to.0, moved) {
            return Err(Errno::EINVAL);
        }
        if let Some(replaced) = replaced {
            let replaces_directory = self.node(replaced).is_some_and(Node::is_directory);
            match (is_directory, replaces_directory) {
                (false, false) => {}
                (false, true) => return Err(Errno::EISDIR),
                (true, false) => return Err(Errno::ENOTDIR),
                (true, true) if self.directory(replaced, &[])?.is_empty() => {}
                (true, true) => return Err(Errno::ENOTEMPTY),
            }
        }
        self.rename_stored(from, to)?;
        self.change_directory(from.0, |directory| directory.remove(from.1))?;
        self.change_directory(to.0, |directory| directory.insert(to.1, moved))?;
        if is_directory && from.0 != to.0 {
            self.change(moved, |node| {
                if let Kind::Directory(directory) = &mut node.kind {
                    directory.set_parent(to.0);
                }
            })?;
        }
        replaced.map_or(Ok(()), |replaced| self.drop_link(replaced))
    }

    /// Whether `ino` is `ancestor` or below it.
    fn is_below(&self, mut ino: Ino, ancestor: Ino) -> bool {
        while ino != ancestor {
            match self.parent(ino) {
                Some(parent) if ino != ROOT => ino = parent,
                _ => return false,
            }
        }
        true
    }

    /// What `..` names in the directory `ino`; `None` if it is not a directory.
    #[must_use]
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        match &self.node(ino)?.kind {
            Kind::Directory(directory) => Some(directory.parent()),
            Kind::DescriptorDirectory { parent } => Some(*parent),
            _ => None,
        }
    }

    /// An absolute path of the directory `ino`; `None` if it is not a directory or has been removed.
    #[must_use]
    pub fn path_of_directory(&self, mut ino: Ino) -> Option<Vec<u8>> {
        let mut names: Vec<Name> = Vec::new();
        while ino != ROOT {
            let parent = self.parent(ino)?;
            let Kind::Directory(directory) = &self.node(parent)?.kind else {
                return None;
            };
            let (_, entry) = directory.iter_from(0).find(|(_, entry)| entry.ino == ino)?;
            names.push(Name::clone(&entry.name));
            ino = parent;
        }
        if names.is_empty() {
            return Some(b"/".to_vec());
        }
        Some(names.iter().rev().flat_map(|name| [b"/", &**name].concat()).collect())
    }

    /// An absolute path of `ino`, one of them if it has several; `None` if it has none.
    ///
    /// Takes time for each inode of the tree unless `ino` is a directory, because a file does not record its names.
    #[must_use]
    pub fn path_of(&self, ino: Ino) -> Option<Vec<u8>> {
        if self.node(ino)?.is_directory() {
            return self.path_of_directory(ino);
        }
        let mut unseen = vec![ROOT];
        while let Some(at) = unseen.pop() {
            let Some(Kind::Directory(directory)) = self.node(at).map(|node| &node.kind) else {
                continue;
            };
            for (_, entry) in directory.iter_from(0) {
                if entry.ino == ino {
                    let mut path = self.path_of_directory(at)?;
                    if at != ROOT {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&entry.name);
                    return Some(path);
                }
                unseen.push(entry.ino);
            }
        }
        None
    }

    /// Counts one more user of `ino`, so that it lives on without a name until [`Tree::release`].
    ///
    /// # Errors
    /// `ENOENT` if there is no such node.
    pub fn retain(&mut self, ino: Ino) -> Result<(), Errno> {
        if self.node(ino).is_none() {
            return Err(Errno::ENOENT);
        }
        *self.opens.entry(ino).or_default() += 1;
        Ok(())
    }

    /// Reverts one [`Tree::retain`].
    pub fn release(&mut self, ino: Ino) {
        let hash_map::Entry::Occupied(mut count) = self.opens.entry(ino) else {
            return;
        };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
            self.close_stored(ino);
            self.discard_if_unused(ino);
        }
    }

    fn drop_link(&mut self, ino: Ino) -> Result<(), Errno> {
        self.change(ino, |node| {
            node.attributes.links = node.attributes.links.saturating_sub(1);
            node.attributes.changed = Timestamp::now();
        })?;
        self.discard_if_unused(ino);
        Ok(())
    }

    /// Removes a node that has neither a name nor a user.
    fn discard_if_unused(&mut self, ino: Ino) {
        let nameless = self.node(ino).is_some_and(|node| node.attributes.links == 0);
        if !nameless || self.opens.contains_key(&ino) {
            return;
        }
        self.forget_copy_of(ino);
        if let Some(slot) = self.overlay.remove(&ino) {
            self.sizes = self.sizes.without(Sizes::of(&slot));
        }
        if self.base.nodes.contains_key(&ino) {
            self.sizes = self.sizes.and(Sizes::of(&Slot::Gone));
            self.overlay.insert(ino, Slot::Gone);
        }
        self.count();
    }
}
