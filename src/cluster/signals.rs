//! Signals that other threads and sessions send to a backend.
//!
//! A signal is stored here, `InterruptPending` in the guest's memory is set so that its next `CHECK_FOR_INTERRUPTS`
//! calls the hook in `ProcessInterrupts`, and a waiting backend is woken. The handler then runs on the backend's own
//! thread, where the guest is in a host function (`guest::interrupts`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{SafepointPage, Slice, alarm};
use crate::client::Waker;

/// A signal, by its number on Linux and in musl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Signal(u32);

impl Signal {
    /// Reload the configuration files.
    pub(crate) const HUP: Self = Self(1);
    /// Cancel the running query (`StatementCancelHandler`); write the shutdown checkpoint (`ReqShutdownXLOG`).
    pub(crate) const INT: Self = Self(2);
    /// Handle changes in shared memory (`procsignal_sigusr1_handler`); for the postmaster, requests of a child.
    pub(crate) const USR1: Self = Self(10);
    /// Exit (the checkpointer); a worker has started or ended (the autovacuum launcher).
    pub(crate) const USR2: Self = Self(12);
    /// The client has left. `PostgreSQL` has no handler for it, and carries on with what the client has sent.
    pub(crate) const PIPE: Self = Self(13);
    /// A timer is due, which the host looks at itself.
    pub(crate) const ALRM: Self = Self(14);
    /// End the session (`die`).
    pub(crate) const TERM: Self = Self(15);
    /// Wake up from a latch's wait; there is nothing else to do.
    pub(crate) const URG: Self = Self(23);

    /// The signal of that number, if there is one; 0, which only asks whether a process is there, is none.
    #[must_use]
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        u32::try_from(number).ok().filter(|number| (1..32).contains(number)).map(Self)
    }

    /// Its number.
    #[must_use]
    pub(crate) fn number(self) -> i32 {
        self.0.cast_signed()
    }
}

/// The pending signals of one backend.
#[derive(Default)]
pub(crate) struct Signals {
    pending: AtomicU32,
    /// The signals that are watched until they are heard.
    watched: Mutex<[Watched; 32]>,
    /// Whether it was ended at a safepoint.
    was_ended: AtomicBool,
    /// Whether it was ended there with what others need.
    keeps_locks: AtomicBool,
    /// The length of its turns.
    pub(super) slice: Slice,
    target: Mutex<Target>,
}

/// A signal that has to be heard.
#[derive(Clone, Copy, Default)]
struct Watched {
    /// Since when it is pending; `None` if it is not.
    since: Option<Instant>,
    /// For how long it was.
    patience: Patience,
    /// Whether the alarm has a deadline for it.
    has_deadline: bool,
}

/// How long a signal has not been heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Patience {
    #[default]
    Fresh,
    Overdue,
    Condemned,
}

/// The ways to interrupt the backend.
#[derive(Default)]
struct Target {
    interrupt_pending: Option<Flag>,
    safepoints: Option<SafepointPage>,
    waker: Option<Waker>,
}

/// The address of `InterruptPending`, a `sig_atomic_t`, in a guest's memory.
struct Flag(*mut i32);

// SAFETY: the pointer is used only through `Flag::word`, and only while `Signals::target` is locked and the memory
// exists (`attach`).
unsafe impl Send for Flag {}

impl Flag {
    /// The flag, which the host reads and writes as an atomic, also on the backend's own thread.
    ///
    /// It is the only word of a private memory that other threads write. The guest reads and writes it as `PostgreSQL`
    /// does a flag that a signal handler sets: as an aligned word that may have any value. Slices of the whole memory,
    /// from which images are made and in which the guest's addresses are read, contain that word. The host does not
    /// use its value there, and an image may contain either value: a backend that begins with it set only checks for
    /// interrupts once.
    fn word(&self) -> &AtomicI32 {
        // SAFETY: `attach`'s caller promised that the address is aligned, and valid until `detach`, which takes the
        // same lock.
        unsafe { AtomicI32::from_ptr(self.0) }
    }
}

impl Signals {
    /// Those of a backend with turns of `slice`.
    pub(super) fn new(slice: Slice) -> Self {
        Self { slice, ..Self::default() }
    }

    /// Sends `signal`.
    pub(crate) fn send(&self, signal: Signal) {
        self.pending.fetch_or(1 << signal.0, Ordering::SeqCst);
        self.interrupt();
    }

    /// Sends `signal`, which cancels a statement, ends the session or says that its client has left, and sees to it that
    /// it is heard: after [`Slice::until_overdue`] the backend also checks for interrupts where it allocates memory, after
    /// [`Slice::until_condemned`] it ends at a safepoint. A timer only becomes overdue.
    pub(crate) fn send_until_heard(self: &Arc<Self>, signal: Signal) {
        if let Some(deadline) = self.begin_to_watch(signal, Instant::now()) {
            alarm::watch(self, signal, deadline);
        }
        self.interrupt();
    }

    /// `signal` becomes pending at the time `now`. Returns the deadline that the alarm needs, if it has none yet.
    pub(super) fn begin_to_watch(&self, signal: Signal, now: Instant) -> Option<Instant> {
        let mut watched = self.watched.lock();
        self.pending.fetch_or(1 << signal.0, Ordering::SeqCst);
        let it = &mut watched[signal.0 as usize];
        if it.since.is_none() {
            (it.since, it.patience) = (Some(now), Patience::Fresh);
        }
        let needs_deadline = !std::mem::replace(&mut it.has_deadline, true);
        needs_deadline.then(|| now + self.slice.until_overdue())
    }

    /// Called at the deadline for `signal`. If it was not heard in time, the backend is interrupted or stopped. Returns
    /// the next deadline, unless the signal was heard.
    pub(super) fn watch(&self, signal: Signal, now: Instant) -> Option<Instant> {
        let (next, patience) = {
            let mut watched = self.watched.lock();
            let it = &mut watched[signal.0 as usize];
            let Some(since) = it.since else {
                it.has_deadline = false;
                return None;
            };
            let (overdue, condemned) = (since + self.slice.until_overdue(), since + self.slice.until_condemned());
            // The deadline may be that of an earlier signal, which was heard.
            if now < overdue {
                return Some(overdue);
            }
            it.patience =
                if now < condemned || signal == Signal::ALRM { Patience::Overdue } else { Patience::Condemned };
            (condemned.max(now + alarm::AGAIN), it.patience)
        };
        if patience == Patience::Condemned {
            self.stop();
        } else {
            self.interrupt();
        }
        Some(next)
    }

    /// Makes the backend check for signals, due timers, and the end of its slice.
    pub(crate) fn interrupt(&self) {
        let target = self.target.lock();
        if let Some(flag) = &target.interrupt_pending {
            flag.word().store(1, Ordering::SeqCst);
        }
        if let Some(waker) = &target.waker {
            waker.wake();
        }
    }

    /// Stops the backend at its next safepoint, whether it checks for interrupts or not.
    pub(crate) fn stop(&self) {
        self.set_safepoints(false);
    }

    /// Whether the backend has not heard a signal for so long that it has to check for interrupts where it allocates
    /// memory.
    pub(crate) fn is_overdue(&self) -> bool {
        self.any() && self.watched.lock().iter().any(|it| it.since.is_some() && it.patience != Patience::Fresh)
    }

    /// Whether it has not heard for as long that its client has left.
    pub(crate) fn has_lost_client(&self) -> bool {
        let it = self.watched.lock()[Signal::PIPE.0 as usize];
        it.since.is_some() && it.patience != Patience::Fresh
    }

    /// Since when the backend has not heard a signal for which it has to end at a safepoint by now.
    pub(super) fn condemned_since(&self) -> Option<Instant> {
        let watched = self.watched.lock();
        watched.iter().filter(|it| it.patience == Patience::Condemned).filter_map(|it| it.since).min()
    }

    /// The backend does not go on beyond the safepoint where it is.
    pub(super) fn end(&self) {
        self.was_ended.store(true, Ordering::SeqCst);
    }

    /// The same for one that has what others need, so that its cluster has to end.
    pub(super) fn end_with_locks(&self) {
        self.keeps_locks.store(true, Ordering::SeqCst);
    }

    /// Whether the backend was ended at a safepoint with what others need.
    pub(crate) fn keeps_locks(&self) -> bool {
        self.keeps_locks.load(Ordering::SeqCst)
    }

    /// Whether the backend was ended at a safepoint.
    pub(crate) fn was_ended(&self) -> bool {
        self.was_ended.load(Ordering::SeqCst)
    }

    /// Lets the backend go on beyond its safepoints.
    pub(crate) fn open_safepoints(&self) {
        self.set_safepoints(true);
    }

    fn set_safepoints(&self, are_open: bool) {
        if let Some(page) = &self.target.lock().safepoints {
            page.set_open(are_open);
        }
    }

    /// Whether the backend was interrupted and has not checked yet.
    pub(crate) fn is_interrupt_pending(&self) -> bool {
        self.target.lock().interrupt_pending.as_ref().is_some_and(|flag| flag.word().load(Ordering::SeqCst) != 0)
    }

    /// Interrupts the backend again if signals are pending, because its memory or its client has changed.
    pub(crate) fn repeat(&self) {
        if self.any() {
            self.interrupt();
        }
    }

    /// Makes signals set the flag at `interrupt_pending` from now on, and [`Signals::stop`] close `safepoints`.
    ///
    /// # Safety
    /// The address must be aligned, and it and the page must stay valid until [`Signals::detach`].
    pub(crate) unsafe fn attach(&self, interrupt_pending: *mut i32, safepoints: Option<SafepointPage>) {
        let mut target = self.target.lock();
        target.interrupt_pending = Some(Flag(interrupt_pending));
        target.safepoints = safepoints;
    }

    /// Called before the memory is freed.
    pub(crate) fn detach(&self) {
        let mut target = self.target.lock();
        target.interrupt_pending = None;
        target.safepoints = None;
    }

    /// Makes signals end the waits of that client, or of none, from now on.
    pub(crate) fn set_waker(&self, waker: Option<Waker>) {
        self.target.lock().waker = waker;
    }

    /// Takes all pending signals, lowest number first.
    pub(crate) fn take(&self) -> impl Iterator<Item = Signal> + use<> {
        let pending = if self.any() { self.take_pending() } else { 0 };
        (1..32).filter(move |number| pending & (1 << number) != 0).map(Signal)
    }

    fn take_pending(&self) -> u32 {
        let mut watched = self.watched.lock();
        for it in watched.iter_mut() {
            (it.since, it.patience) = (None, Patience::Fresh);
        }
        self.pending.swap(0, Ordering::SeqCst)
    }

    /// Whether signals are pending.
    pub(crate) fn any(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once_however_often_it_was_sent() {
        let signals = Signals::default();
        signals.send(Signal::TERM);
        signals.send(Signal::INT);
        signals.send(Signal::INT);
        assert_eq!(signals.take().collect::<Vec<_>>(), [Signal::INT, Signal::TERM]);
        assert_eq!(signals.take().count(), 0);
    }

    #[test]
    fn a_signal_sets_the_flag_only_while_it_is_attached() {
        let signals = Signals::default();
        let mut flag = 0_i32;
        // SAFETY: `flag` outlives the attachment.
        unsafe { signals.attach(&raw mut flag, None) };
        assert!(!signals.is_interrupt_pending());
        signals.send(Signal::TERM);
        assert!(signals.is_interrupt_pending());
        signals.detach();
        assert!(!signals.is_interrupt_pending());
        assert_eq!(std::mem::take(&mut flag), 1);
        signals.send(Signal::TERM);
        assert_eq!(flag, 0);
    }

    #[test]
    fn numbers_that_are_no_signals_are_none() {
        assert_eq!([-1, 0, 32, 64].map(Signal::from_number), [None; 4]);
        assert_eq!(Signal::from_number(15), Some(Signal::TERM));
    }
}
