//! A frozen tree on disk: a directory with an index of inodes and one file with all content.
//!
//! `index` is a header (magic, CRC-32 and length of the rest) and the inodes in postcard's encoding. `data` is the
//! content of all files, each aligned to 8 KiB, without holes. Files with the same content, as in the three databases
//! of a new cluster, share one place. It is mapped and never read as a whole, so the time to open a tree depends on its
//! number of inodes and not on its size.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::{
    chunk::CHUNK,
    content::Content,
    device::Device,
    directory::Directory,
    extent::{Extent, Source},
    frozen::{FrozenTree, InoMap, ROOT},
    node::{Attributes, Ino, Kind, Node},
    path::is_name,
};

const INDEX: &str = "index";
const DATA: &str = "data";
/// Identifies the format and its version: a change of [`StoredTree`] needs a new number.
const MAGIC: &[u8; 8] = b"PGLTREE1";
/// Magic, checksum and length.
const HEADER: usize = MAGIC.len() + 4 + 8;

/// Why a frozen tree could not be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A host file could not be read or written.
    #[error("cannot access the stored files: {0}")]
    Io(#[from] io::Error),
    /// The index is not of this format, or of another version of it.
    #[error("the index of the stored files is not in the format of this program; prepare them again")]
    Format,
    /// The length of the index differs from the one in its header.
    #[error("the index of the stored files has {actual} bytes instead of {expected}; prepare them again")]
    IndexLength {
        /// The length in its header.
        expected: u64,
        /// The actual length.
        actual: u64,
    },
    /// The checksum of the index is wrong.
    #[error("the index of the stored files is damaged (its checksum is wrong); prepare them again")]
    Checksum,
    /// The index contradicts itself.
    #[error("the index of the stored files is inconsistent: {0}; prepare them again")]
    Inconsistent(&'static str),
    /// The length of the data file differs from the one in the index.
    #[error("the data of the stored files has {actual} bytes instead of {expected}; prepare them again")]
    DataLength {
        /// The length in the index.
        expected: u64,
        /// The actual length.
        actual: u64,
    },
}

/// The content of the index.
#[derive(Serialize, Deserialize)]
struct StoredTree {
    next: Ino,
    data_len: u64,
    nodes: Vec<StoredNode>,
}

#[derive(Serialize, Deserialize)]
struct StoredNode {
    ino: Ino,
    attributes: Attributes,
    kind: StoredKind,
}

#[derive(Serialize, Deserialize)]
enum StoredKind {
    /// `stored` bytes from `start` on in the data file, and zeros up to `len`.
    File {
        len: u64,
        start: u64,
        stored: u64,
    },
    /// Entries in the order in which they are read.
    Directory {
        parent: Ino,
        entries: Vec<(Vec<u8>, Ino)>,
    },
    Symlink(Vec<u8>),
    Device(Device),
    DescriptorDirectory {
        parent: Ino,
    },
}

impl FrozenTree {
    /// Writes the tree without added files into `directory`, which is created if necessary. An existing tree is
    /// replaced; where it is open, it stays usable. The index is removed first and written last: a directory with an
    /// index is complete.
    ///
    /// The directory must not be written to or opened elsewhere meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_to(&self, directory: &Path) -> Result<(), StoreError> {
        fs::create_dir_all(directory)?;
        let data = tempfile::NamedTempFile::new_in(directory)?;
        let mut inodes: Vec<_> = self.nodes.iter().filter(|(ino, _)| !ino.is_added()).collect();
        inodes.sort_unstable_by_key(|(ino, _)| **ino);
        let mut data_len = 0;
        let mut places = HashMap::new();
        let mut nodes = Vec::with_capacity(inodes.len());
        for (ino, node) in inodes {
            let kind = match &node.kind {
                Kind::File(content) => {
                    let (start, stored) = match places.entry(content.digest()) {
                        Entry::Occupied(place) => *place.get(),
                        Entry::Vacant(place) => {
                            let stored = content.write_to(data.as_file(), data_len)?;
                            let start = data_len;
                            data_len += stored.next_multiple_of(CHUNK as u64);
                            *place.insert((start, stored))
                        }
                    };
                    StoredKind::File { len: content.len(), start, stored }
                }
                Kind::Directory(directory) => StoredKind::Directory {
                    parent: directory.parent(),
                    entries: directory
                        .iter_from(0)
                        .filter(|(_, entry)| !entry.ino.is_added())
                        .map(|(_, entry)| (entry.name.to_vec(), entry.ino))
                        .collect(),
                },
                Kind::Symlink(target) => StoredKind::Symlink(target.to_vec()),
                Kind::Device(device) => StoredKind::Device(*device),
                Kind::DescriptorDirectory { parent } => StoredKind::DescriptorDirectory { parent: *parent },
                // A frozen tree has no bytes of shared objects and stored files, see `Tree::freeze`.
                Kind::Shared(_) | Kind::Stored(_) => StoredKind::File { len: 0, start: data_len, stored: 0 },
            };
            nodes.push(StoredNode { ino: *ino, attributes: node.attributes, kind });
        }
        data.as_file().set_len(data_len)?;
        data.as_file().sync_all()?;
        match fs::remove_file(directory.join(INDEX)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // Renamed into place, not overwritten, because the old data may be mapped.
        data.persist(directory.join(DATA)).map_err(|error| error.error)?;
        let stored = StoredTree { next: self.next, data_len, nodes };
        let body = postcard::to_allocvec(&stored).map_err(io::Error::other)?;
        let mut index = tempfile::NamedTempFile::new_in(directory)?;
        index.write_all(MAGIC)?;
        index.write_all(&crc32fast::hash(&body).to_le_bytes())?;
        index.write_all(&(body.len() as u64).to_le_bytes())?;
        index.write_all(&body)?;
        index.as_file().sync_all()?;
        index.persist(directory.join(INDEX)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Opens a tree that [`FrozenTree::write_to`] wrote. Content is mapped: the files in `directory` may be deleted,
    /// but must not be changed, while the tree is in use.
    ///
    /// # Errors
    /// [`StoreError`], which describes what is wrong with the stored files.
    pub fn open(directory: &Path) -> Result<Arc<Self>, StoreError> {
        let stored = read_index(&fs::read(directory.join(INDEX))?)?;
        let data = File::open(directory.join(DATA))?;
        let actual = data.metadata()?.len();
        if actual != stored.data_len {
            return Err(StoreError::DataLength { expected: stored.data_len, actual });
        }
        // SAFETY: the map is only read, as bytes, for which every value is valid. The caller guarantees that the file
        // does not shrink meanwhile; its length has just been checked.
        let source = Arc::new(Source::Mapped(unsafe { Mmap::map(&data) }?));
        Self::restored(stored, &source).map(Arc::new)
    }

    /// The tree of an index, with content in `source`.
    fn restored(stored: StoredTree, source: &Arc<Source>) -> Result<Self, StoreError> {
        let mut nodes = InoMap::default();
        nodes.reserve(stored.nodes.len());
        for StoredNode { ino, attributes, kind } in stored.nodes {
            let node = Node { attributes, kind: restore(kind, source)? };
            if nodes.insert(ino, Arc::new(node)).is_some() || ino >= stored.next {
                return Err(StoreError::Inconsistent("an inode number is used twice"));
            }
        }
        let tree = Self::new(nodes, stored.next, None);
        tree.check_names()?;
        tree.check_parents()?;
        Ok(tree)
    }

    /// Checks that every name has an inode, and every directory no name but the one in its parent.
    fn check_names(&self) -> Result<(), StoreError> {
        let is_directory = |ino: &Ino| self.nodes.get(ino).is_some_and(|node| node.is_directory());
        if !is_directory(&ROOT) {
            return Err(StoreError::Inconsistent("there is no root directory"));
        }
        let mut named = HashSet::new();
        for (ino, node) in &self.nodes {
            let Kind::Directory(directory) = &node.kind else { continue };
            for (_, entry) in directory.iter_from(0) {
                let Some(node) = self.nodes.get(&entry.ino) else {
                    return Err(StoreError::Inconsistent("a name has no inode"));
                };
                if let Some(parent) = parent(node)
                    && (entry.ino == ROOT || parent != *ino || !named.insert(entry.ino))
                {
                    return Err(StoreError::Inconsistent("a directory has a name outside of its parent"));
                }
            }
        }
        Ok(())
    }

    /// Checks that the parents of every directory lead to the root, which is its own.
    fn check_parents(&self) -> Result<(), StoreError> {
        let mut checked = HashSet::from([ROOT]);
        if self.nodes.get(&ROOT).and_then(|root| parent(root)) != Some(ROOT) {
            return Err(StoreError::Inconsistent("the root directory has a parent"));
        }
        for (ino, node) in &self.nodes {
            let (mut at, mut next) = (*ino, parent(node));
            let mut passed = Vec::new();
            while let Some(parent_of) = next.filter(|_| !checked.contains(&at)) {
                passed.push(at);
                at = parent_of;
                next = self.nodes.get(&at).filter(|node| node.is_directory()).and_then(|node| parent(node));
                if next.is_none() || passed.len() > self.nodes.len() {
                    return Err(StoreError::Inconsistent("a directory has no parent"));
                }
            }
            checked.extend(passed);
        }
        Ok(())
    }
}

/// The parent of a directory.
fn parent(node: &Node) -> Option<Ino> {
    match &node.kind {
        Kind::Directory(directory) => Some(directory.parent()),
        Kind::DescriptorDirectory { parent } => Some(*parent),
        _ => None,
    }
}

fn read_index(index: &[u8]) -> Result<StoredTree, StoreError> {
    let (header, body) = index.split_at_checked(HEADER).ok_or(StoreError::Format)?;
    let rest = header.strip_prefix(MAGIC).ok_or(StoreError::Format)?;
    let (checksum, length) = rest.split_first_chunk::<4>().ok_or(StoreError::Format)?;
    let expected = u64::from_le_bytes(length.try_into().map_err(|_| StoreError::Format)?);
    if expected != body.len() as u64 {
        return Err(StoreError::IndexLength { expected, actual: body.len() as u64 });
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(StoreError::Checksum);
    }
    postcard::from_bytes(body).map_err(|_| StoreError::Inconsistent("an inode cannot be read"))
}

fn restore(kind: StoredKind, source: &Arc<Source>) -> Result<Kind, StoreError> {
    Ok(match kind {
        StoredKind::File { len, start, stored } => {
            let place = usize::try_from(start).ok().zip(usize::try_from(stored).ok()).filter(|_| stored <= len);
            let extent = place.and_then(|(start, stored)| Extent::new(Arc::clone(source), start, stored));
            let extent = extent.ok_or(StoreError::Inconsistent("a file lies outside the data"))?;
            Kind::File(Content::of_length(len, extent))
        }
        StoredKind::Directory { parent, entries } => {
            let mut directory = Directory::new(parent);
            for (name, ino) in entries {
                // A cluster in a directory of the host gets files of these names.
                if !is_name(&name) {
                    return Err(StoreError::Inconsistent("a name has what no name has"));
                }
                directory.insert(&name, ino);
            }
            Kind::Directory(directory)
        }
        StoredKind::Symlink(target) => Kind::Symlink(Arc::from(target)),
        StoredKind::Device(device) => Kind::Device(device),
        StoredKind::DescriptorDirectory { parent } => Kind::DescriptorDirectory { parent },
    })
}

#[cfg(test)]
mod tests;
