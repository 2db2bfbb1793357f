//! Stopping a process that does not check for interrupts (`instrument::SAFEPOINT_PAGE`): others have their turns, or it
//! ends.

use std::{
    ffi::c_void,
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    mm::{MprotectFlags, mprotect},
    param::page_size,
    time::{ClockId, clock_gettime},
};
use wasmtime::{Memory, Store};

use super::{Priority, Seat, Seats, Signals};
use crate::instrument::SAFEPOINT_PAGE;

/// The page of a linear memory that the safepoints of its process write to. They can when this is made.
pub(crate) struct SafepointPage(*mut c_void);

/// Safepoints pass.
const OPEN: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);

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
        page.protect(OPEN)?;
        Ok(page)
    }

    /// Lets safepoints pass, or not.
    pub(super) fn set_open(&self, is_open: bool) {
        let access = if is_open { OPEN } else { MprotectFlags::empty() };
        if let Err(error) = self.protect(access) {
            tracing::warn!(%error, "a process cannot be stopped, or cannot go on");
        }
    }

    fn protect(&self, access: MprotectFlags) -> io::Result<()> {
        // SAFETY: the page belongs to the reservation of a linear memory and not to the memory itself. Nothing but the
        // guest's safepoints writes to it, and a fault there is handled (`Preemption::handle`).
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
    /// The cluster that the process shares with others.
    shared: Option<Shared>,
    /// When the signal was sent for which the process was condemned last, and the processor time of the thread when that
    /// was found, in nanoseconds.
    condemned: Mutex<Option<(Instant, u64)>>,
}

/// A session was told to end and did not, and it has what other sessions need. Ending it alone would leave that taken
/// for ever, so its cluster recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a session that was told to end, or whose statement was cancelled, went on without checking for interrupts, and kept \
     a lock that other sessions need"
)]
pub(crate) struct KeepsLocks;

/// A cluster that a process shares with others.
struct Shared {
    seats: Arc<Seats>,
    /// How soon the process hands over.
    priority: Priority,
    holds: Holds,
}

/// What becomes of a process at a safepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    GoesOn,
    Ends,
    Crashes,
}

impl Preemption {
    /// For the process with those signals, in that seat if it shares its cluster with others. Its safepoints write to
    /// `page`; `holds` tells what it has that others need.
    pub(crate) fn new(signals: Arc<Signals>, seat: Option<&Seat>, page: &SafepointPage, holds: Holds) -> Self {
        let shared = seat.map(|seat| {
            let (seats, priority) = seat.shared();
            Shared { seats, priority, holds }
        });
        Self { signals, page: page.addresses(), shared, condemned: Mutex::default() }
    }

    /// Called on the process' own thread after a fault at `address`. At a safepoint it gives the other processes that
    /// wait their turns, waits for the next one, and returns true: the store can be repeated. It returns false when the
    /// process must not go on, because it was condemned or its cluster has crashed, and for any other fault.
    pub(crate) fn handle(&self, address: usize) -> bool {
        if !self.page.contains(&address) {
            return false;
        }
        self.signals.open_safepoints();
        match self.judge(processor_time()) {
            Verdict::GoesOn => {}
            Verdict::Ends => {
                self.signals.end();
                return false;
            }
            Verdict::Crashes => {
                self.signals.end_with_locks();
                return false;
            }
        }
        self.shared.as_ref().is_none_or(|shared| shared.seats.yield_turn(&self.signals, shared.priority).is_ok())
    }

    /// What becomes of the process, whose thread has used `now` nanoseconds of processor time.
    fn judge(&self, now: u64) -> Verdict {
        let Some(since) = self.signals.condemned_since() else { return Verdict::GoesOn };
        let begun = match *self.condemned.lock() {
            Some((signal, begun)) if signal == since => begun,
            ref mut condemned => {
                *condemned = Some((since, now));
                now
            }
        };
        let used = Duration::from_nanos(now.saturating_sub(begun));
        let others_need = self.shared.as_ref().is_some_and(|shared| shared.holds.anything());
        if others_need && used >= self.signals.slice.until_released() {
            Verdict::Crashes
        } else if !others_need && used >= self.signals.slice.last_chance() {
            Verdict::Ends
        } else {
            Verdict::GoesOn
        }
    }
}

/// The processor time that this thread has used, in nanoseconds.
pub(crate) fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(Duration::try_from(time).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The counters of a process that are not 0 while it has what others may need (`guest::HOLDS`).
pub(crate) struct Holds([*const i32; 2]);

// SAFETY: the pointers are used only on the thread of the process (`Preemption::handle`).
unsafe impl Send for Holds {}
// SAFETY: as above.
unsafe impl Sync for Holds {}

impl Holds {
    /// Those at these addresses.
    ///
    /// # Safety
    /// They must be aligned, and valid as long as the memory of the process.
    pub(crate) unsafe fn at(counters: [*const i32; 2]) -> Self {
        Self(counters)
    }

    fn anything(&self) -> bool {
        // SAFETY: `at`'s caller promised that the addresses are valid. The process that writes there is stopped at a
        // safepoint on this thread.
        self.0.iter().any(|counter| unsafe { counter.read_volatile() } != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Signal, Slice};

    #[test]
    fn a_condemned_process_has_a_last_chance_and_longer_if_it_holds_what_others_need() {
        let slice = Slice::default();
        for (counters, at, verdict) in [
            ([0, 0], slice.last_chance(), Verdict::Ends),
            ([0, 0], slice.last_chance() / 2, Verdict::GoesOn),
            ([1, 0], slice.last_chance(), Verdict::GoesOn),
            ([0, 1], slice.until_released() / 2, Verdict::GoesOn),
            ([0, 1], slice.until_released(), Verdict::Crashes),
        ] {
            let (signals, seats) = (Arc::<Signals>::default(), Arc::<Seats>::default());
            // SAFETY: the counters outlive it.
            let holds = unsafe { Holds::at(counters.each_ref().map(std::ptr::from_ref)) };
            let preemption = Preemption {
                signals: signals.clone(),
                page: 0..1,
                shared: Some(Shared { seats, priority: Priority::Client, holds }),
                condemned: Mutex::default(),
            };
            let begun = 1_000_000;
            assert_eq!(preemption.judge(begun), Verdict::GoesOn);
            let sent = Instant::now();
            signals.begin_to_watch(Signal::TERM, sent);
            signals.watch(Signal::TERM, sent + slice.until_condemned());
            assert_eq!(preemption.judge(begun), Verdict::GoesOn, "its time begins now");
            let then = begun + u64::try_from(at.as_nanos()).expect("it is short");
            assert_eq!(preemption.judge(then), verdict, "{counters:?} after {at:?}");
            drop(signals.take());
            assert_eq!(preemption.judge(then), Verdict::GoesOn, "it has heard");
        }
    }
}
