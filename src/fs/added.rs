//! Files that the program adds to the trees of its clusters: those of extensions that were installed beside PGlite.
//!
//! They are in a tree like any others, but are left out when it is stored ([`FrozenTree::write_to`]): a stored tree
//! gets those of the program that opens it. A file has the same inode number in every tree, which its path and its
//! bundle decide, because PostgreSQL tells loaded libraries apart by these numbers, also in the memory of a template.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    bundle::BundleError,
    errno::Errno,
    frozen::FrozenTree,
    layout::make_directories,
    node::{Ino, Node},
    tree::Tree,
};
use crate::sources::hex_digest;

/// The inode numbers of added files are not below this one; a tree does not give out so many.
const FIRST: u64 = 1 << 62;

impl Ino {
    /// Whether it is the number of an added file.
    pub(super) fn is_added(self) -> bool {
        self.0 >= FIRST
    }
}

/// A set of files to add.
#[derive(Debug, Default)]
pub struct AddedFiles {
    /// By their paths.
    files: BTreeMap<String, (Ino, Arc<Node>)>,
}

impl AddedFiles {
    /// The files and links of trees, below the directory `below`. Each tree comes with a text that identifies its
    /// contents. Of several files with one path, the first counts.
    #[must_use]
    pub fn new<'a>(trees: impl IntoIterator<Item = (&'a FrozenTree, &'a str)>, below: &str) -> Self {
        let mut files = BTreeMap::new();
        for (tree, contents) in trees {
            for (path, node) in tree.files() {
                let path = format!("{below}{path}");
                let ino = number(&path, contents);
                files.entry(path).or_insert((ino, node));
            }
        }
        Self { files }
    }
}

/// The inode number of the file with that path in a tree with these contents.
fn number(path: &str, contents: &str) -> Ino {
    let digest = hex_digest(&[path.as_bytes(), &[0], contents.as_bytes()]);
    // 60 bits, which are hexadecimal digits.
    let digits = digest.bytes().take(15);
    let hash =
        digits.fold(0, |hash, digit| (hash << 4) | u64::from(char::from(digit).to_digit(16).unwrap_or_default()));
    Ino(FIRST | hash)
}

impl Tree {
    /// Adds `files`, and removes those that were added before and are not among them. What the tree has of its own at
    /// one of their paths stays.
    ///
    /// # Errors
    /// [`BundleError::Place`]; what was added until then stays.
    pub fn add(&mut self, files: &Arc<AddedFiles>) -> Result<(), BundleError> {
        if self.has_added(files) {
            return Ok(());
        }
        let before = self.added.take().unwrap_or_default();
        for (path, (ino, _)) in &before.files {
            if files.files.get(path).is_none_or(|(kept, _)| kept != ino) {
                self.take_away(path, *ino).map_err(|errno| BundleError::Place { path: path.clone(), errno })?;
            }
        }
        for (path, (ino, node)) in &files.files {
            self.add_one(path, *ino, node).map_err(|errno| BundleError::Place { path: path.clone(), errno })?;
        }
        self.added = Some(files.clone());
        Ok(())
    }

    /// Whether it has these added files, and no others.
    #[must_use]
    pub fn has_added(&self, files: &Arc<AddedFiles>) -> bool {
        is_same(self.added.as_ref(), files)
    }

    fn add_one(&mut self, path: &str, ino: Ino, node: &Node) -> Result<(), Errno> {
        let (directory, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
        let parent = make_directories(self, directory.as_bytes())?;
        if self.lookup(parent, name.as_bytes())?.is_some() || self.node(ino).is_some() {
            return Ok(());
        }
        self.insert_as(ino, parent, name.as_bytes(), Node::clone(node))
    }

    fn take_away(&mut self, path: &str, ino: Ino) -> Result<(), Errno> {
        let (directory, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
        let parent = make_directories(self, directory.as_bytes())?;
        if self.lookup(parent, name.as_bytes())? == Some(ino) { self.unlink(parent, name.as_bytes()) } else { Ok(()) }
    }
}

impl FrozenTree {
    /// This tree with these added files, and no others.
    ///
    /// # Errors
    /// [`BundleError::Place`]
    pub fn with(self: &Arc<Self>, files: &Arc<AddedFiles>) -> Result<Arc<Self>, BundleError> {
        if self.has_added(files) {
            return Ok(self.clone());
        }
        let mut tree = Tree::from_frozen(self.clone());
        tree.add(files)?;
        Ok(tree.freeze())
    }

    /// Whether it has these added files, and no others.
    #[must_use]
    pub fn has_added(&self, files: &Arc<AddedFiles>) -> bool {
        is_same(self.added.as_ref(), files)
    }
}

fn is_same(added: Option<&Arc<AddedFiles>>, files: &Arc<AddedFiles>) -> bool {
    added.map_or(files.files.is_empty(), |added| Arc::ptr_eq(added, files))
}

#[cfg(test)]
mod tests;
