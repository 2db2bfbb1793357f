//! A file tree that does not change any more, the base of any number of trees.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use super::{
    added::AddedFiles,
    directory::Directory,
    node::{Ino, Kind, Node},
};

/// The root directory's inode number, in every tree.
pub(super) const ROOT: Ino = Ino(1);

/// Hashes inode numbers, which are small, distinct and not chosen by users: one multiplication distributes them
/// enough.
#[derive(Default)]
pub(super) struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// A map by inode number.
pub(super) type InoMap<T> = HashMap<Ino, T, BuildHasherDefault<InoHasher>>;

/// Inodes as they were when a [`Tree`](super::Tree) was frozen. Shared between trees, and immutable.
#[derive(Debug)]
pub struct FrozenTree {
    pub(super) nodes: InoMap<Arc<Node>>,
    /// The number that the next new inode gets.
    pub(super) next: Ino,
    /// The sum of the lengths of all files.
    pub(super) len_of_files: u64,
    /// The files that the program has added.
    pub(super) added: Option<Arc<AddedFiles>>,
}

impl FrozenTree {
    /// A tree with only a root directory, whose permissions are Emscripten's (0777).
    #[must_use]
    pub fn empty() -> Arc<Self> {
        let root = Node::new(Kind::Directory(Directory::new(ROOT)), 0o777);
        Arc::new(Self::new(InoMap::from_iter([(ROOT, Arc::new(root))]), Ino(ROOT.0 + 1), None))
    }

    pub(super) fn new(nodes: InoMap<Arc<Node>>, next: Ino, added: Option<Arc<AddedFiles>>) -> Self {
        // A damaged store may have any lengths.
        let len_of_files = nodes.values().fold(0, |sum: u64, node| sum.saturating_add(node.len()));
        Self { nodes, next, len_of_files, added }
    }

    /// The path and the node of everything but directories.
    #[must_use]
    pub(super) fn files(&self) -> Vec<(String, Arc<Node>)> {
        let (mut found, mut unseen) = (Vec::new(), vec![(String::new(), ROOT)]);
        while let Some((path, ino)) = unseen.pop() {
            let Some(node) = self.nodes.get(&ino) else { continue };
            match &node.kind {
                Kind::Directory(directory) => unseen.extend(
                    directory
                        .iter_from(0)
                        .map(|(_, entry)| (format!("{path}/{}", String::from_utf8_lossy(&entry.name)), entry.ino)),
                ),
                _ => found.push((path, node.clone())),
            }
        }
        found
    }

    /// The paths of everything but directories.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.files().into_iter().map(|(path, _)| path).collect()
    }

    /// What is in the regular file at `path`, if there is one.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let (_, node) = self.files().into_iter().find(|(found, _)| found == path)?;
        let Kind::File(content) = &node.kind else { return None };
        let mut bytes = vec![0; usize::try_from(content.len()).ok()?];
        content.read_at(0, &mut bytes);
        Some(bytes)
    }

    /// The number of inodes: files, directories, links and devices.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is only the root directory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }
}
