//! Stopping a process that does not check for interrupts (`instrument::SAFEPOINT_PAGE`): others have their turns, or it
//! ends.

use std::{ffi::c_void, io, ops::Range, sync::Arc};

use rustix::{
    mm::{MprotectFlags, mprotect},
    param::page_size,
};
use wasmtime::{Memory, Store};

use super::{Priority, Seat, Seats, Signals};
use crate::instrument::SAFEPOINT_PAGE;

/// The page of a linear memory that the safepoints of its process load from. It can be read when this is made.
pub(crate) struct SafepointPage(*mut c_void);

// SAFETY: the pointer is only an address for `mprotect`, which any thread may call.
unsafe impl Send for SafepointPage {}

impl SafepointPage {
    /// That of `memory`. It must not be used any more when the store is dropped.
    ///
    /// # Errors
    /// When the system allows no more mappings.
    pub(crate) fn open<T>(store: &Store<T>, memory: Memory) -> io::Result<Self> {
        // The whole address space of a memory is reserved (`memory_reservation` in `engine.rs`), and the memory does
        // not grow to this page (`HEAP_MAX` in `guest/process.rs`).
        let page = Self(memory.data_ptr(store).wrapping_add(SAFEPOINT_PAGE as usize).cast());
        page.protect(MprotectFlags::READ)?;
        Ok(page)
    }

    /// Lets safepoints pass, or not.
    pub(super) fn set_open(&self, is_open: bool) {
        let access = if is_open { MprotectFlags::READ } else { MprotectFlags::empty() };
        if let Err(error) = self.protect(access) {
            tracing::warn!(%error, "a process cannot be stopped, or cannot go on");
        }
    }

    fn protect(&self, access: MprotectFlags) -> io::Result<()> {
        // SAFETY: the page belongs to the reservation of a linear memory and not to the memory itself. Nothing but the
        // guest's safepoints loads from it, and a fault there is handled (`Preemption::handle`).
        Ok(unsafe { mprotect(self.0, page_size(), access) }?)
    }

    fn addresses(&self) -> Range<usize> {
        self.0.addr()..self.0.addr() + page_size()
    }
}

/// What happens to a process that was stopped at a safepoint.
pub(crate) struct Preemption {
    signals: Arc<Signals>,
    page: Range<usize>,
    /// The cluster that the process shares with others, and how soon it hands over.
    shared: Option<(Arc<Seats>, Priority)>,
}

impl Preemption {
    /// For the process with those signals, in that seat if it shares its cluster with others. Its safepoints load from
    /// `page`.
    pub(crate) fn new(signals: Arc<Signals>, seat: Option<&Seat>, page: &SafepointPage) -> Self {
        Self { signals, page: page.addresses(), shared: seat.map(Seat::shared) }
    }

    /// Called on the process' own thread after a fault at `address`. At a safepoint it gives the other processes that
    /// wait their turns, waits for the next one, and returns true: the load can be repeated. It returns false when the
    /// process must not go on, because it was condemned or its cluster has crashed, and for any other fault.
    pub(crate) fn handle(&self, address: usize) -> bool {
        if !self.page.contains(&address) {
            return false;
        }
        self.signals.open_safepoints();
        let goes_on = match &self.shared {
            Some((seats, priority)) => seats.yield_turn(&self.signals, *priority).is_ok(),
            None => true,
        };
        goes_on && !self.signals.is_condemned()
    }
}
