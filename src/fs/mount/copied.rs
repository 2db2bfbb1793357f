//! A copy of stored files in memory, which is brought up to date by reading what has changed since.
//!
//! A branch of a cluster in a directory begins with its files at one moment. Nobody can write them while they are read
//! at that moment, so most of them are read before, and then the chunks that were written meanwhile once more. The next
//! branch reads only what was written since this one.

use std::{
    collections::{BTreeSet, HashMap},
    iter,
    ops::Range,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Mount, PIECE};
use crate::{
    fs::{
        chunk::CHUNK,
        content::Content,
        errno::Errno,
        frozen::FrozenTree,
        node::{Ino, Kind, Stored},
        path::joined,
        storage::{Storage, StoredFile},
        tree::Tree,
    },
    quota,
};

const CHUNK_U64: u64 = CHUNK as u64;

/// The copy of files that are in the tree.
#[derive(Debug, Default)]
pub(super) struct Copied(HashMap<Ino, CopiedFile>);

#[derive(Debug)]
struct CopiedFile {
    /// Frozen, so that a clone of it shares its chunks.
    content: Content,
    stale: Stale,
}

/// What of a file was not read yet, or has changed since.
#[derive(Clone, Debug)]
struct Stale {
    chunks: BTreeSet<u64>,
    /// Everything from here on: the shortest length that the file had since.
    from: u64,
}

impl Stale {
    const NOTHING: Self = Self { chunks: BTreeSet::new(), from: u64::MAX };
    const EVERYTHING: Self = Self { chunks: BTreeSet::new(), from: 0 };

    /// The parts of a file of `len` bytes, in order. Chunks beside each other are one.
    fn parts(&self, len: u64) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        let chunks = self.chunks.iter().map(|chunk| chunk * CHUNK_U64..(chunk + 1) * CHUNK_U64);
        for part in chunks.take_while(|part| part.start < self.from).chain(iter::once(self.from..len)) {
            let part = part.start..part.end.min(len);
            match parts.last_mut() {
                _ if part.is_empty() => {}
                Some(last) if last.end >= part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
        parts
    }
}

impl CopiedFile {
    fn unread() -> Self {
        Self { content: Content::default(), stale: Stale::EVERYTHING }
    }
}

/// Brings the content of a file up to date, which has `len` bytes now.
fn update(
    content: &mut Content,
    stale: &Stale,
    len: u64,
    open: impl FnOnce() -> Result<Arc<dyn StoredFile>, Errno>,
) -> Result<(), Errno> {
    let parts = stale.parts(len);
    if parts.is_empty() && content.len() == len {
        return Ok(());
    }
    if !quota::has_room_for_copy(parts.iter().map(|part| part.end - part.start).sum()) {
        return Err(Errno::ENOMEM);
    }
    content.set_len(content.len().min(stale.from));
    content.set_len(len);
    if !parts.is_empty() {
        let file = open()?;
        parts.into_iter().try_for_each(|part| read_into(content, &*file, part))?;
    }
    content.freeze();
    Ok(())
}

impl Tree {
    fn copy(&mut self) -> Option<&mut Copied> {
        self.mount.as_mut()?.copied.as_mut()
    }

    fn copied(&mut self, ino: Ino) -> Option<&mut CopiedFile> {
        self.copy()?.0.get_mut(&ino)
    }

    /// Those bytes of the file `ino` were written. A process says it after it has, and before its turn ends.
    pub(in crate::fs) fn mark_written(&mut self, ino: Ino, bytes: Range<u64>) {
        if let Some(file) = self.copied(ino).filter(|_| !bytes.is_empty()) {
            file.stale.chunks.extend(bytes.start / CHUNK_U64..bytes.end.div_ceil(CHUNK_U64));
        }
    }

    /// The file `ino` gets that length.
    pub(in crate::fs) fn mark_cut(&mut self, ino: Ino, len: u64) {
        let is_shorter = self.node(ino).is_some_and(|node| len < node.len());
        if let Some(file) = self.copied(ino).filter(|_| is_shorter) {
            file.stale.from = file.stale.from.min(len);
        }
    }

    /// The file `ino` is no longer there.
    pub(in crate::fs) fn forget_copy_of(&mut self, ino: Ino) {
        if let Some(copy) = self.copy() {
            copy.0.remove(&ino);
        }
    }

    /// Reads what of the stored files of `tree` is not in its copy yet, while processes may write them. No two threads
    /// may do this at the same time.
    ///
    /// # Errors
    /// Those of the storage; `ENOMEM` when the files do not fit into the program's memory.
    pub fn copy_stored(tree: &Mutex<Self>) -> Result<(), Errno> {
        let stale = {
            let mut tree = tree.lock();
            let Some(mount) = &mut tree.mount else { return Ok(()) };
            mount.copied.get_or_insert_default();
            let root = mount.root;
            let mut stale = Vec::new();
            tree.list_stale(root, &mut stale);
            stale
        };
        stale.into_iter().try_for_each(|(parent, name, ino)| copy_file(tree, parent, &name, ino))
    }

    /// As [`Tree::freeze`], with the bytes of stored files. Nothing may write them meanwhile. What of them is not in
    /// memory yet, or was written since, is read, and kept in memory for the next time. This tree stays as it is.
    ///
    /// # Errors
    /// As those of [`Tree::copy_stored`].
    pub fn freeze_stored(&mut self) -> Result<Arc<FrozenTree>, Errno> {
        let mut frozen = Self::from_frozen(self.detached().freeze());
        let Some(Mount { root, storage, copied, .. }) = &mut self.mount else { return Ok(frozen.freeze()) };
        let (root, storage) = (*root, storage.clone());
        // After an error it is not known what the copy lacks.
        let mut copy = copied.take().unwrap_or_default();
        self.read_directory(root, b"", &*storage, &mut copy, &mut frozen)?;
        if let Some(mount) = &mut self.mount {
            mount.copied = Some(copy);
        }
        Ok(frozen.freeze())
    }

    /// Gives back the copy of stored files, which is in memory.
    pub fn forget_copy(&mut self) {
        if let Some(mount) = &mut self.mount {
            mount.copied = None;
        }
    }

    /// Adds the stored files below the directory `ino` of which something is not in the copy to `stale`, with their
    /// directories and names.
    fn list_stale(&self, ino: Ino, stale: &mut Vec<(Ino, Arc<[u8]>, Ino)>) {
        let Some(Kind::Directory(directory)) = self.node(ino).map(|node| &node.kind) else { return };
        let copied = self.mount.as_ref().and_then(|mount| mount.copied.as_ref());
        for (_, entry) in directory.iter_from(0) {
            match self.node(entry.ino).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => self.list_stale(entry.ino, stale),
                Some(Kind::Stored(Stored { len, .. })) => {
                    let file = copied.and_then(|copied| copied.0.get(&entry.ino));
                    if file.is_none_or(|file| !file.stale.parts(*len).is_empty()) {
                        stale.push((ino, Arc::from(&*entry.name), entry.ino));
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads the stored files below the directory `ino` into `target`, in which they have the same numbers.
    fn read_directory(
        &self,
        ino: Ino,
        path: &[u8],
        storage: &dyn Storage,
        copy: &mut Copied,
        target: &mut Self,
    ) -> Result<(), Errno> {
        target.change(ino, |node| {
            if let Kind::Directory(directory) = &mut node.kind {
                directory.set_stored(false);
            }
        })?;
        let Some(Kind::Directory(directory)) = self.node(ino).map(|node| &node.kind) else { return Ok(()) };
        for (_, entry) in directory.iter_from(0) {
            let path = joined(path, &entry.name);
            match self.node(entry.ino).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => self.read_directory(entry.ino, &path, storage, copy, target)?,
                Some(Kind::Stored(Stored { len, file })) => {
                    let copied = copy.0.entry(entry.ino).or_insert_with(CopiedFile::unread);
                    let open = || file.clone().map_or_else(|| Ok(storage.open(&path)?), Ok);
                    update(&mut copied.content, &copied.stale, *len, open)?;
                    copied.stale = Stale::NOTHING;
                    let content = copied.content.clone();
                    target.change(entry.ino, |node| node.kind = Kind::File(content))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Copies a file that processes may write meanwhile, if it still has that name. If not, it is read when the tree is
/// frozen.
fn copy_file(tree: &Mutex<Tree>, parent: Ino, name: &[u8], ino: Ino) -> Result<(), Errno> {
    let mut locked = tree.lock();
    if locked.lookup(parent, name).ok().flatten() != Some(ino) {
        return Ok(());
    }
    let Some(Kind::Stored(Stored { len, file })) = locked.node(ino).map(|node| node.kind.clone()) else {
        return Ok(());
    };
    // Opened while it has the name.
    let file = match file {
        Some(file) => file,
        None => locked.in_storage(parent, name, |storage, path| storage.open(path))?.ok_or(Errno::ENOENT)?,
    };
    let Some(copy) = locked.copy() else { return Ok(()) };
    let copied = copy.0.entry(ino).or_insert_with(CopiedFile::unread);
    // What is written from now on is read once more.
    let stale = std::mem::replace(&mut copied.stale, Stale::NOTHING);
    let mut content = copied.content.clone();
    drop(locked);
    update(&mut content, &stale, len, || Ok(file))?;
    if let Some(copied) = tree.lock().copied(ino) {
        copied.content = content;
    }
    Ok(())
}

/// Reads those bytes of a file, as far as it has them.
fn read_into(content: &mut Content, file: &dyn StoredFile, bytes: Range<u64>) -> Result<(), Errno> {
    let wanted = |at: u64| usize::try_from(bytes.end - at).map_or(PIECE, |rest| rest.min(PIECE));
    let mut buffer = vec![0; wanted(bytes.start)];
    let mut at = bytes.start;
    while at < bytes.end {
        let read = file.read_at(at, &mut buffer[..wanted(at)])?;
        if read == 0 {
            break;
        }
        content.write_at(at, &buffer[..read]);
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
