//! A tree as the base of others, and what its clones do not get by that.

use std::sync::Arc;

use super::{Sizes, Slot, Tree};
use crate::fs::{
    content::Content,
    errno::Errno,
    frozen::{FrozenTree, InoMap},
    node::{Kind, Node},
    shared::SharedObjects,
};

impl Tree {
    /// The current tree as a base for others. This tree builds on it as well from now on, so that common content is in
    /// memory once. Takes time for each file and each changed chunk; copies no content.
    ///
    /// Files that are open but have no name stay in this tree and are not part of the frozen one. The bytes of files
    /// that several processes have mapped, and of stored files, stay here too; in the frozen tree these are empty.
    pub fn freeze(&mut self) -> Arc<FrozenTree> {
        if self.is_frozen() {
            return Arc::clone(&self.base);
        }
        let mut nodes = self.base.nodes.clone();
        let mut kept = InoMap::default();
        for (ino, slot) in self.overlay.drain() {
            match slot {
                Slot::Changed(node) if matches!(node.kind, Kind::Shared(_) | Kind::Stored(_)) => {
                    if node.attributes.links > 0 {
                        let kind = Kind::File(Content::default());
                        nodes.insert(ino, Arc::new(Node { attributes: node.attributes, kind }));
                    }
                    kept.insert(ino, Slot::Changed(node));
                }
                Slot::Changed(mut node) if node.attributes.links > 0 => {
                    if let Kind::File(content) = &mut node.kind {
                        content.freeze();
                    }
                    nodes.insert(ino, Arc::new(node));
                }
                slot => {
                    nodes.remove(&ino);
                    if matches!(slot, Slot::Changed(_)) {
                        kept.insert(ino, slot);
                    }
                }
            }
        }
        self.overlay = kept;
        self.base = Arc::new(FrozenTree::new(nodes, self.next, self.added.clone()));
        let own = self.overlay.values().map(Sizes::of).fold(Sizes::default(), Sizes::and);
        self.sizes = Sizes { files: self.sizes.files, ..own };
        self.count();
        Arc::clone(&self.base)
    }

    /// Whether nothing has changed since [`Tree::freeze`], except for what that leaves out. Never true with a storage,
    /// whose files change without the tree.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let is_left_out = |slot: &Slot| match slot {
            Slot::Changed(node) => node.attributes.links == 0 || matches!(node.kind, Kind::Shared(_)),
            Slot::Gone => false,
        };
        self.mount.is_none() && self.overlay.values().all(is_left_out)
    }

    /// Copies of the memory objects that processes have mapped, which [`Tree::freeze`] leaves out.
    ///
    /// # Errors
    /// `ENOMEM` and others of the system.
    pub fn copy_shared_objects(&self) -> Result<SharedObjects, Errno> {
        let objects = self.overlay.iter().filter_map(|(ino, slot)| match slot {
            Slot::Changed(Node { kind: Kind::Shared(object), .. }) => Some((*ino, object)),
            _ => None,
        });
        let copies = objects.map(|(ino, object)| Ok((ino, object.copy()?)));
        Ok(SharedObjects(copies.collect::<Result<_, Errno>>()?))
    }

    /// Gives a tree that was frozen its memory objects back: copies of `objects`.
    ///
    /// # Errors
    /// `ENOENT` if one of them is not in the tree; `ENOMEM` and others of the system.
    pub fn restore_shared_objects(&mut self, objects: &SharedObjects) -> Result<(), Errno> {
        objects.0.iter().try_for_each(|(ino, object)| {
            let object = object.copy()?;
            self.change(*ino, |node| node.kind = Kind::Shared(object))
        })
    }

    /// A tree of its own with the same nodes, which nothing has open, and without a storage.
    pub(in crate::fs) fn detached(&self) -> Self {
        let overlay = self.overlay.iter().map(|(ino, slot)| (*ino, slot.clone())).collect();
        let mut detached = Self::from_frozen(Arc::clone(&self.base));
        (detached.overlay, detached.next, detached.sizes) = (overlay, self.next, self.sizes);
        detached.added.clone_from(&self.added);
        detached.count();
        detached
    }
}
