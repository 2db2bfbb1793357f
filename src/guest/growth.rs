//! What a guest's linear memory and table grow by, counted against the quota of its cluster.

use std::sync::Arc;

use wasmtime::{Caller, ResourceLimiter};

use super::{Guest, checkpoint, memory};
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
    /// Whether memory was refused since the client's last bytes, and none given since.
    was_refused: bool,
}

impl Growth {
    pub(super) fn new(quota: &Arc<Quota>, is_unlimited: bool) -> Self {
        Self {
            held: Held::new(quota.clone(), Resource::LinearMemory),
            beginning: None,
            is_unlimited,
            last: 0,
            was_refused: false,
        }
    }

    /// From now on it is counted. The memory has `size` bytes.
    pub(crate) fn begin(&mut self, size: usize) {
        self.beginning = Some(size);
    }

    /// What they have grown by, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// What is counted, and may be used.
    pub(super) fn quota(&self) -> &Arc<Quota> {
        self.held.quota()
    }

    /// Whether the guest has asked for memory and got none since its client's last bytes.
    pub(super) fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// Memory for the guest was refused or given, or its client has begun something else.
    pub(super) fn set_refused(&mut self, was_refused: bool) {
        self.was_refused = was_refused;
    }

    /// Whether nothing is refused.
    pub(super) fn is_unlimited(&self) -> bool {
        self.is_unlimited
    }

    /// Counts so many bytes, unless they are refused; returns whether they are not.
    fn grow(&mut self, bytes: usize, may_be_refused: bool) -> bool {
        self.last = 0;
        if self.beginning.is_none() {
            return true;
        }
        let bytes = bytes as u64;
        if may_be_refused && !self.is_unlimited {
            if !self.held.grow(bytes) {
                return false;
            }
        } else {
            self.held.add(bytes);
        }
        self.last = bytes;
        true
    }
}

impl ResourceLimiter for Growth {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let added = desired.saturating_sub(current);
        // Wasmtime's heap for exceptions, which begins with nothing when PostgreSQL reports its first error. It has 64 KiB
        // then, and no guest can have it grow much: none may allocate objects in it.
        let is_of_exceptions = self.beginning.is_some_and(|size| current < size);
        Ok(self.grow(added, !is_of_exceptions))
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
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(ELEMENT), true))
    }
}

impl Guest {
    /// Whether an error of a file would be more than the error of a statement: in a critical section `PostgreSQL` would
    /// have to recover, and the cluster's own processes do what makes room again.
    fn must_write(&self, memory: &[u8]) -> bool {
        let count = self.facts.address("CritSectionCount").ok().and_then(|at| memory::read_u32(memory, at).ok());
        self.growth.is_unlimited || self.wal.is_in_checkpoint || count.is_some_and(|count| count > 0)
    }
}

/// Does something with the files of the guest that called, which is refused when the quota of its cluster is used up,
/// unless it must not be.
///
/// # Errors
/// When the guest traps. The inner error is that of its files.
pub(super) fn within_quota<T>(
    caller: &mut Caller<'_, Guest>,
    act: impl Fn(&mut [u8], &mut Files) -> Result<T, Errno>,
) -> wasmtime::Result<Result<T, Errno>> {
    let (memory, guest) = memory::of(caller)?;
    let mut done = act(memory, &mut guest.files);
    if matches!(done, Err(Errno::ENOSPC)) && guest.must_write(memory) {
        guest.files.set_unlimited(true);
        done = act(memory, &mut guest.files);
        guest.files.set_unlimited(false);
    }
    if matches!(done, Err(Errno::ENOSPC)) {
        checkpoint::make_room(caller)?;
    }
    Ok(done)
}
