//! Reading directories.

use super::Files;
use crate::fs::{
    directory::{FIRST_COOKIE, Name},
    errno::Errno,
    node::{Ino, Kind, S_IFDIR, S_IFLNK, S_IFMT},
};

/// An entry of a directory that is being read.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// The inode's number.
    pub ino: Ino,
    /// The position of the next entry.
    pub next: u64,
    /// The type bits of its mode; see [`S_IFMT`].
    pub kind: u32,
    /// Its name.
    pub name: Name,
}

impl Files {
    /// Reads the next entries of an open directory: at most `limit`, none at its end. `.` and `..` come first.
    ///
    /// # Errors
    /// `ENOTDIR`, `EBADF`; `ENOENT` if the directory has been removed.
    pub fn read_directory(&mut self, fd: i32, limit: usize) -> Result<Vec<DirectoryEntry>, Errno> {
        let ino = self.open_inode(fd, Errno::ENOTDIR)?;
        let tree = self.tree.lock();
        let position = self.state.descriptors.file(fd)?.position;
        let node = tree.node(ino).ok_or(Errno::EBADF)?;
        let parent = tree.parent(ino).ok_or(Errno::ENOTDIR)?;
        if node.attributes.links == 0 {
            return Err(Errno::ENOENT);
        }
        let dots: [(&[u8], Ino); 2] = [(b".", ino), (b"..", parent)];
        let dots = dots.into_iter().zip(0..FIRST_COOKIE).map(|((name, ino), cookie)| DirectoryEntry {
            ino,
            next: cookie + 1,
            kind: S_IFDIR,
            name: Name::from(name),
        });
        let dots = dots.filter(|entry| entry.next > position);
        let entries: Vec<DirectoryEntry> = if let Kind::Directory(directory) = &node.kind {
            let named = directory.iter_from(position.max(FIRST_COOKIE)).map(|(cookie, entry)| DirectoryEntry {
                ino: entry.ino,
                next: cookie + 1,
                kind: tree.node(entry.ino).map_or(0, |node| node.mode() & S_IFMT),
                name: Name::clone(&entry.name),
            });
            dots.chain(named).take(limit).collect()
        } else {
            let open = self.state.descriptors.open().map(|fd| DirectoryEntry {
                ino: Ino(u64::from(fd.unsigned_abs()) + 1),
                next: FIRST_COOKIE + u64::from(fd.unsigned_abs()) + 1,
                kind: S_IFLNK,
                name: Name::from(fd.to_string().into_bytes()),
            });
            dots.chain(open.filter(|entry| entry.next > position)).take(limit).collect()
        };
        if let Some(last) = entries.last() {
            self.state.descriptors.file_mut(fd)?.position = last.next;
        }
        Ok(entries)
    }
}
