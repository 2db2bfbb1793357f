//! A copy of stored files in memory, which is brought up to date by reading what has changed since.
//!
//! A branch of a cluster in a directory begins with its files at one moment. Nobody can write them while they are read
//! at that moment, so most of them are read before, and then the chunks that were written meanwhile once more. The next
//! branch reads only what was written since this one.

use std::{
    collections::{BTreeSet, HashMap},
    io::ErrorKind,
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

/// The copy.
#[derive(Debug, Default)]
pub(super) struct Copied {
    files: HashMap<Ino, Content>,
    /// Chunks of any file that may have changed since they were copied.
    changed: HashMap<Ino, BTreeSet<u64>>,
}

impl Copied {
    /// Those bytes of a file have changed.
    fn mark(&mut self, ino: Ino, bytes: Range<u64>) {
        if !bytes.is_empty() {
            let chunks = bytes.start / CHUNK_U64..bytes.end.div_ceil(CHUNK_U64);
            self.changed.entry(ino).or_default().extend(chunks);
        }
    }

    /// Takes the copy of a file of `len` bytes, as the file is now.
    fn take(
        &mut self,
        ino: Ino,
        len: u64,
        open: impl FnOnce() -> Result<Arc<dyn StoredFile>, Errno>,
    ) -> Result<Content, Errno> {
        let changed = self.changed.remove(&ino).unwrap_or_default();
        let mut content = match self.files.remove(&ino) {
            Some(content) if changed.is_empty() && content.len() == len => return Ok(content),
            Some(mut content) => {
                content.set_len(len);
                let file = open()?;
                let mut changed = changed.range(..len.div_ceil(CHUNK_U64)).copied().peekable();
                while let Some(first) = changed.next() {
                    // Those beside each other are read at once.
                    let mut end = first + 1;
                    while changed.next_if_eq(&end).is_some() {
                        end += 1;
                    }
                    read_into(&mut content, &*file, first * CHUNK_U64..len.min(end * CHUNK_U64))?;
                }
                content
            }
            None => {
                if !quota::has_room_for_copy(len) {
                    return Err(Errno::ENOMEM);
                }
                let mut content = Content::default();
                read_into(&mut content, &*open()?, 0..len)?;
                content
            }
        };
        // It is longer than what was read where it ends with a hole.
        content.set_len(len);
        content.freeze();
        Ok(content)
    }
}

impl Tree {
    /// Those bytes of the file `ino` have changed. A process says it before its turn ends.
    pub(in crate::fs) fn mark_changed(&mut self, ino: Ino, bytes: Range<u64>) {
        if let Some(copied) = self.mount.as_mut().and_then(|mount| mount.copied.as_mut()) {
            copied.mark(ino, bytes);
        }
    }

    /// Copies the stored files of `tree` into memory that are not yet in its copy, while processes may write them. Two
    /// threads must not do this at the same time.
    ///
    /// # Errors
    /// Those of the storage; `ENOMEM` when the files do not fit into the program's memory.
    pub fn copy_stored(tree: &Mutex<Self>) -> Result<(), Errno> {
        let (storage, missing) = {
            let mut tree = tree.lock();
            let Some(mount) = &mut tree.mount else { return Ok(()) };
            mount.copied.get_or_insert_default();
            let (storage, root) = (mount.storage.clone(), mount.root);
            let mut missing = Vec::new();
            tree.list_stored(root, b"", &mut missing);
            (storage, missing)
        };
        for (ino, path) in missing {
            copy_file(tree, ino, &path, &*storage)?;
        }
        Ok(())
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
        let mut before = copied.take().unwrap_or_default();
        let mut now = Copied::default();
        self.read_directory(root, b"", &*storage, &mut before, &mut now, &mut frozen)?;
        if let Some(mount) = &mut self.mount {
            mount.copied = Some(now);
        }
        Ok(frozen.freeze())
    }

    /// Gives back the copy of stored files, which is in memory.
    pub fn forget_copy(&mut self) {
        if let Some(mount) = &mut self.mount {
            mount.copied = None;
        }
    }

    /// Adds the stored files below the directory `ino` that are not in the copy to `missing`, with their paths.
    fn list_stored(&self, ino: Ino, path: &[u8], missing: &mut Vec<(Ino, Vec<u8>)>) {
        let Some(Kind::Directory(directory)) = self.node(ino).map(|node| &node.kind) else { return };
        let is_copied = |ino| {
            let copied = self.mount.as_ref().and_then(|mount| mount.copied.as_ref());
            copied.is_some_and(|copied| copied.files.contains_key(&ino))
        };
        for (_, entry) in directory.iter_from(0) {
            let path = joined(path, &entry.name);
            match self.node(entry.ino).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => self.list_stored(entry.ino, &path, missing),
                Some(Kind::Stored(_)) if !is_copied(entry.ino) => missing.push((entry.ino, path)),
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
        before: &mut Copied,
        now: &mut Copied,
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
                Some(Kind::Directory(_)) => self.read_directory(entry.ino, &path, storage, before, now, target)?,
                Some(Kind::Stored(Stored { len, file })) => {
                    let open = || file.clone().map_or_else(|| Ok(storage.open(&path)?), Ok);
                    let content = before.take(entry.ino, *len, open)?;
                    now.files.insert(entry.ino, content.clone());
                    target.change(entry.ino, |node| node.kind = Kind::File(content))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Copies a file that processes may write meanwhile. One that is removed meanwhile is left out.
fn copy_file(tree: &Mutex<Tree>, ino: Ino, path: &[u8], storage: &dyn Storage) -> Result<(), Errno> {
    let (file, len) = match tree.lock().node(ino).map(|node| &node.kind) {
        Some(Kind::Stored(Stored { len, file })) => (file.clone(), *len),
        _ => return Ok(()),
    };
    let file = match file.map_or_else(|| storage.open(path), Ok) {
        Ok(file) => file,
        // It is read when the tree is frozen, if it has another name now.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !quota::has_room_for_copy(len) {
        return Err(Errno::ENOMEM);
    }
    let mut content = Content::default();
    read_into(&mut content, &*file, 0..len)?;
    content.freeze();
    if let Some(copied) = tree.lock().mount.as_mut().and_then(|mount| mount.copied.as_mut()) {
        copied.files.insert(ino, content);
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
