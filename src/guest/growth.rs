//! What a guest's linear memory and table grow by, counted against the quota of its cluster.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use super::{Guest, memory};
use crate::{
    fs::{Errno, Files},
    quota::{Held, Quota, Resource},
};

/// The bytes that a table has for each element.
const ELEMENT: usize = size_of::<usize>();

/// What has been added to a guest's memory and table since it began.
pub(crate) struct Growth {
    held: Held,
    /// The size of the memory that it began with, the pages of its image, which it shares with others; `None` before.
    beginning: Option<usize>,
    /// Whether nothing is refused.
    is_unlimited: bool,
    /// What was counted last.
    last: u64,
}

impl Growth {
    pub(super) fn new(quota: &Arc<Quota>, is_unlimited: bool) -> Self {
        Self { held: Held::new(quota.clone(), Resource::LinearMemory), beginning: None, is_unlimited, last: 0 }
    }

    /// From now on it is counted. The memory has `size` bytes.
    pub(crate) fn begin(&mut self, size: usize) {
        self.beginning = Some(size);
    }

    fn allow(&mut self, bytes: usize) -> bool {
        if self.is_unlimited || self.beginning.is_none() {
            return self.count(bytes);
        }
        let is_allowed = self.held.grow(bytes as u64);
        self.last = if is_allowed { bytes as u64 } else { 0 };
        is_allowed
    }

    /// Whether nothing is refused.
    pub(super) fn is_unlimited(&self) -> bool {
        self.is_unlimited
    }

    /// Counts what is not refused.
    fn count(&mut self, bytes: usize) -> bool {
        self.last = 0;
        if self.beginning.is_some() {
            self.held.add(bytes as u64);
            self.last = bytes as u64;
        }
        true
    }
}

impl ResourceLimiter for Growth {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let added = desired.saturating_sub(current);
        // Wasmtime's heap for exceptions, which begins with nothing when PostgreSQL reports its first error. It has 64 KiB
        // then, and no guest can have it grow much: none may allocate objects in it.
        let is_of_exceptions = self.beginning.is_some_and(|size| current < size);
        Ok(if is_of_exceptions { self.count(added) } else { self.allow(added) })
    }

    // The system has no memory.
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.held.take_back(std::mem::take(&mut self.last));
        Ok(())
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_grow_failed(error)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.allow(desired.saturating_sub(current).saturating_mul(ELEMENT)))
    }
}

impl Guest {
    /// Whether an error of a file would be more than the error of a statement: in a critical section `PostgreSQL` would
    /// have to recover, and the cluster's own processes do what makes room again.
    fn must_write(&self, memory: &[u8]) -> bool {
        let count = self.facts.address("CritSectionCount").ok().and_then(|at| memory::read_u32(memory, at).ok());
        self.growth.is_unlimited || self.wal.is_in_checkpoint || count.is_some_and(|count| count > 0)
    }

    /// Does something with its files that is refused when the quota of its cluster is used up, unless it must not be.
    pub(super) fn within_quota<T>(
        &mut self,
        memory: &mut [u8],
        act: impl Fn(&mut [u8], &mut Files) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let done = act(memory, &mut self.files);
        if !matches!(done, Err(Errno::ENOSPC)) || !self.must_write(memory) {
            return done;
        }
        self.files.set_unlimited(true);
        let done = act(memory, &mut self.files);
        self.files.set_unlimited(false);
        done
    }
}
