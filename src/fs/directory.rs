//! The entries of a directory, in an order that stays stable while a reader makes many calls.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::node::Ino;

/// A file name: any bytes except `/` and NUL, at most [`NAME_MAX`](super::path::NAME_MAX) of them.
pub(super) type Name = Arc<[u8]>;

/// The cookie of the first real entry; `.` and `..` have the ones before it.
pub(super) const FIRST_COOKIE: u64 = 2;
/// The bytes that an entry is counted with: the name and the slots in both maps.
const ENTRY_COST: usize = 176;

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: Name,
    /// What it names.
    pub ino: Ino,
}

/// The entries of one directory.
///
/// Each entry has a cookie, a number that only grows. A reader that continues from the last cookie it saw gets every
/// entry that stays exactly once, whatever is added or removed meanwhile.
#[derive(Clone, Debug)]
pub struct Directory {
    parent: Ino,
    /// Whether its names are those of a directory of a storage.
    stored: bool,
    entries: BTreeMap<u64, Entry>,
    cookies: HashMap<Name, u64>,
    next: u64,
}

impl Directory {
    /// An empty directory whose `..` is `parent`.
    #[must_use]
    pub fn new(parent: Ino) -> Self {
        Self { parent, stored: false, entries: BTreeMap::new(), cookies: HashMap::new(), next: FIRST_COOKIE }
    }

    /// Whether its names are those of a directory of a [`Storage`](super::Storage).
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    pub(super) fn set_stored(&mut self, stored: bool) {
        self.stored = stored;
    }

    /// What `..` names.
    #[must_use]
    pub fn parent(&self) -> Ino {
        self.parent
    }

    pub(super) fn set_parent(&mut self, parent: Ino) {
        self.parent = parent;
    }

    /// What `name` names.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<Ino> {
        let cookie = self.cookies.get(name)?;
        self.entries.get(cookie).map(|entry| entry.ino)
    }

    /// Adds `name`, or makes it name `ino`.
    pub fn insert(&mut self, name: &[u8], ino: Ino) {
        let known = self.cookies.get(name).and_then(|cookie| self.entries.get_mut(cookie));
        if let Some(entry) = known {
            entry.ino = ino;
            return;
        }
        let name = Name::from(name);
        self.cookies.insert(Arc::clone(&name), self.next);
        self.entries.insert(self.next, Entry { name, ino });
        self.next += 1;
    }

    /// Removes `name`.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(cookie) = self.cookies.remove(name) {
            self.entries.remove(&cookie);
        }
    }

    /// Whether there are no entries except `.` and `..`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries with their cookies, from cookie `from` on.
    pub fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range(from..).map(|(cookie, entry)| (*cookie, entry))
    }

    /// Approximate number of bytes that this directory holds.
    #[must_use]
    pub fn private_bytes(&self) -> usize {
        self.entries.len() * ENTRY_COST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_meets_every_entry_that_stays_once_while_others_come_and_go() {
        let mut directory = Directory::new(Ino(1));
        for name in [b"a", b"b", b"c", b"d"] {
            directory.insert(name, Ino(9));
        }
        let (cookie, first) = directory.iter_from(0).next().unwrap();
        assert_eq!(&*first.name, b"a");
        directory.remove(b"a");
        directory.remove(b"c");
        directory.insert(b"e", Ino(9));
        let rest: Vec<_> = directory.iter_from(cookie + 1).map(|(_, entry)| entry.name.to_vec()).collect();
        assert_eq!(rest, [b"b".to_vec(), b"d".to_vec(), b"e".to_vec()]);
    }
}
