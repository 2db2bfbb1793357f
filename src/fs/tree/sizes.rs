//! How much memory and disk the files of a tree use, counted against the quota of its cluster.

use std::sync::Arc;

use super::{Slot, Tree};
use crate::{
    fs::{errno::Errno, node::Kind},
    quota::{Held, Need, Quota, Resource},
};

/// Approximate number of bytes of a slot in the overlay besides the node.
const SLOT_COST: usize = 32;

/// A file of so many bytes may use what is kept of a limit.
const SMALL_FILE: u64 = 256 << 10;

/// Sums over slots of an overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Approximate number of bytes that only this tree holds.
    pub(super) private: usize,
    /// The same with the holes of files that may still be filled.
    pub(super) promised: u64,
    /// The lengths of memory objects that processes have mapped.
    pub(super) shared: u64,
    /// The lengths of all files. Those of a base are counted as well.
    pub(super) files: u64,
}

impl Sizes {
    pub(super) fn of(slot: &Slot) -> Self {
        let Slot::Changed(node) = slot else {
            return Self { private: SLOT_COST, promised: SLOT_COST as u64, shared: 0, files: 0 };
        };
        let private = SLOT_COST + node.private_bytes();
        let (promised, shared) = match &node.kind {
            Kind::File(content) => ((private - content.private_bytes()) as u64 + content.promised_bytes(), 0),
            Kind::Shared(object) => (private as u64, object.len()),
            _ => (private as u64, 0),
        };
        Self { private, promised, shared, files: node.len() }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            private: self.private + other.private,
            promised: self.promised + other.promised,
            shared: self.shared + other.shared,
            files: self.files.saturating_add(other.files),
        }
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self {
            private: self.private.saturating_sub(other.private),
            promised: self.promised.saturating_sub(other.promised),
            shared: self.shared.saturating_sub(other.shared),
            files: self.files.saturating_sub(other.files),
        }
    }
}

/// What the files of a tree count for.
#[derive(Debug)]
pub(super) struct Counted {
    files: Held,
    shared: Held,
    disk: Held,
}

impl Counted {
    pub(super) fn new(quota: &Arc<Quota>) -> Self {
        let [files, shared, disk] = [Resource::Files, Resource::SharedMemory, Resource::Disk]
            .map(|resource| Held::new(quota.clone(), resource));
        Self { files, shared, disk }
    }
}

impl Tree {
    /// The quota of the cluster with these files.
    pub(crate) fn quota(&self) -> &Arc<Quota> {
        self.counted.files.quota()
    }

    /// Counts what has changed. What was frozen since the tree's beginning is still the tree's.
    pub(super) fn count(&mut self) {
        let frozen = self.base.len_of_files.saturating_sub(self.len_at_beginning);
        self.counted.files.set(self.sizes.promised + frozen);
        self.counted.shared.set(self.sizes.shared);
        self.counted.disk.set(self.sizes.files);
    }

    /// Checks that files in memory may hold `memory` bytes more, and that all files together may have `len` bytes more,
    /// because a file is to have `end` bytes.
    ///
    /// # Errors
    /// `ENOSPC`
    pub(in crate::fs) fn check_room(&self, memory: u64, len: u64, end: u64) -> Result<(), Errno> {
        let need = if end <= SMALL_FILE { Need::Small } else { Need::Bulk };
        let has_room = (memory == 0 || self.counted.files.has_room(memory, need))
            && (len == 0 || self.counted.disk.has_room(len, need));
        if has_room { Ok(()) } else { Err(Errno::ENOSPC) }
    }
}
