//! Turns: exactly one session of a cluster runs wasm at a time.
//!
//! The guest's code has no atomic operations, so only one process may run it at a time. Turns change where `PostgreSQL`
//! itself lets other processes run: while a session waits for its client or for a latch, while it sleeps, or where it
//! would handle interrupts. Sessions have their turns in the order of their requests. A session that waits longer than a
//! slice interrupts the holder, whose hook in `ProcessInterrupts` then hands over. If it does not check for interrupts for
//! [`Slice::grace`], it hands over at a safepoint (`preemption`), as a process that loses the processor. No clock is read
//! while no session waits for its turn.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Crashed, Signals, Slice};
use crate::{
    sync::{AtomicUsize, Condvar, Mutex},
    tally::Tally,
};

#[cfg(all(test, feature = "loom"))]
mod interleavings;

/// How soon a session hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A client's session: after a slice.
    Client,
    /// A process of the cluster itself: as soon as another session waits.
    Background,
}

/// The right to run wasm in one cluster.
#[derive(Default)]
pub(crate) struct Baton {
    state: Mutex<State>,
    /// The number of waiting sessions, readable without the lock.
    waiting: AtomicUsize,
    slice: Slice,
    /// Where turns are counted.
    tally: Arc<Tally>,
}

#[derive(Default)]
struct State {
    holder: Option<Holder>,
    queue: VecDeque<Arc<Waiter>>,
    sleepers: Vec<Sleeper>,
    crashed: bool,
}

/// A session that cannot continue before a turn of another one has changed something. It is not in the queue.
struct Sleeper {
    waiter: Arc<Waiter>,
    /// Whether it can continue, asked at the end of each turn.
    is_over: Box<dyn Fn() -> bool + Send>,
}

/// What a session does that has waited for a slice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// It keeps its place in the queue.
    Queues,
    /// It has lent its turn, and becomes the first in the queue.
    Returns,
}

struct Holder {
    signals: Arc<Signals>,
    priority: Priority,
    /// Whether it was asked to hand over at its next check for interrupts.
    was_asked: bool,
    /// Whether it was to be stopped at its next safepoint.
    was_stopped: bool,
}

impl Holder {
    fn new(signals: &Arc<Signals>, priority: Priority) -> Self {
        Self { signals: signals.clone(), priority, was_asked: false, was_stopped: false }
    }

    /// Called when the first in the queue has waited for a slice, and again after [`Slice::grace`]: it hands over when it
    /// checks for interrupts next, or, the second time, at its next safepoint.
    fn ask(&mut self, tally: &Tally) {
        if !self.was_asked {
            self.interrupt(tally);
            return;
        }
        if !std::mem::replace(&mut self.was_stopped, true) {
            tally.preemptions.add(1);
        }
        self.signals.stop();
    }

    /// It hands over when it checks for interrupts next.
    fn interrupt(&mut self, tally: &Tally) {
        if !std::mem::replace(&mut self.was_asked, true) {
            tally.slices.add(1);
        }
        self.signals.interrupt();
    }
}

/// A process that waits in the queue or sleeps.
struct Waiter {
    place: Mutex<Place>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing is expected of it: it sleeps, or it has slept and others are before it in the queue.
    Asleep,
    /// It watches how long it waits in the queue.
    Watching,
    Called,
}

impl Waiter {
    fn new(place: Place) -> Arc<Self> {
        Arc::new(Self { place: Mutex::new(place), changed: Condvar::new() })
    }

    fn call(&self) {
        *self.place.lock() = Place::Called;
        self.changed.notify_one();
    }

    /// From now on it watches how long it waits.
    fn watch(&self) {
        let mut place = self.place.lock();
        if *place == Place::Asleep {
            *place = Place::Watching;
            self.changed.notify_one();
        }
    }

    /// Waits to be called, at most for `time` if it is not asleep; returns whether it was called.
    fn wait(&self, time: Duration) -> bool {
        let mut place = self.place.lock();
        while *place == Place::Asleep {
            self.changed.wait(&mut place);
        }
        if *place == Place::Watching {
            self.changed.wait_for(&mut place, time);
        }
        *place == Place::Called
    }
}

impl Baton {
    /// One that no process has, for turns of `slice`. They are counted in `tally`.
    pub(super) fn new(tally: Arc<Tally>, slice: Slice) -> Self {
        Self { slice, tally, ..Self::default() }
    }

    /// The length of turns.
    pub(super) fn slice(&self) -> Slice {
        self.slice
    }

    /// Waits for the turn of the session behind `signals`, and takes it.
    ///
    /// # Errors
    /// [`Crashed`] when another session of the cluster has crashed; then no session runs any more.
    pub(super) fn take(&self, signals: &Arc<Signals>, priority: Priority) -> Result<(), Crashed> {
        let holder = Holder::new(signals, priority);
        self.ask(holder)?.map_or(Ok(()), |(waiter, holder)| self.queue(&waiter, holder, Manners::Queues))
    }

    /// Hands the baton over, and takes it again when the other sessions that wait have had their turns, but not later
    /// than at the first hand-over after a slice. The caller must hold the baton.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn lend(&self, signals: &Arc<Signals>, priority: Priority) -> Result<(), Crashed> {
        self.give();
        let holder = Holder::new(signals, priority);
        self.ask(holder)?.map_or(Ok(()), |(waiter, holder)| self.queue(&waiter, holder, Manners::Returns))
    }

    /// Hands the baton over, and takes it again at the first turn after `is_over`, which is called at the end of each
    /// session's turn and not any more when this returns. The caller must hold the baton.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn sleep(
        &self,
        signals: &Arc<Signals>,
        priority: Priority,
        is_over: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Crashed> {
        let waiter = Waiter::new(Place::Asleep);
        {
            let mut state = self.state.lock();
            if state.crashed {
                return Err(Crashed);
            }
            state.sleepers.push(Sleeper { waiter: waiter.clone(), is_over: Box::new(is_over) });
        }
        self.give();
        self.wait(&waiter, Holder::new(signals, priority), Manners::Queues)
    }

    /// Takes the baton for `holder` if it is free; otherwise adds a waiter to the queue.
    fn ask(&self, holder: Holder) -> Result<Option<(Arc<Waiter>, Holder)>, Crashed> {
        let mut state = self.state.lock();
        if state.crashed {
            return Err(Crashed);
        }
        let Some(current) = &mut state.holder else {
            state.holder = Some(holder);
            return Ok(None);
        };
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if current.priority == Priority::Background {
            current.interrupt(&self.tally);
        }
        let waiter = Waiter::new(Place::Watching);
        state.queue.push_back(waiter.clone());
        Ok(Some((waiter, holder)))
    }

    /// [`Self::wait`], for a process that could run, and counts how long.
    fn queue(&self, waiter: &Arc<Waiter>, holder: Holder, manners: Manners) -> Result<(), Crashed> {
        let begun = Instant::now();
        self.wait(waiter, holder, manners)?;
        self.tally.waits.observe(begun.elapsed());
        Ok(())
    }

    /// Waits until `waiter` is called, and takes the baton for `holder`.
    fn wait(&self, waiter: &Arc<Waiter>, holder: Holder, manners: Manners) -> Result<(), Crashed> {
        let mut patience = self.slice.0;
        loop {
            let called = waiter.wait(patience);
            let mut state = self.state.lock();
            if state.crashed {
                return Err(Crashed);
            }
            if called {
                // The caller took the waiter out of the queue and reserved the baton for it.
                state.holder = Some(holder);
                return Ok(());
            }
            if manners == Manners::Returns
                && let Some(place) = state.queue.iter().position(|other| Arc::ptr_eq(other, waiter))
                && let Some(waiter) = state.queue.remove(place)
            {
                state.queue.push_front(waiter);
            }
            let is_first = state.queue.front().is_some_and(|front| Arc::ptr_eq(front, waiter));
            if let Some(current) = state.holder.as_mut().filter(|_| is_first) {
                current.ask(&self.tally);
                patience = self.slice.grace();
            }
        }
    }

    /// Hands the baton to the session that has waited longest. The caller must hold the baton.
    pub(super) fn give(&self) {
        // The lock is free before the next session is called, because that one takes it.
        let next = self.next(&mut self.state.lock());
        if let Some(next) = next {
            next.call();
        }
    }

    fn next(&self, state: &mut State) -> Option<Arc<Waiter>> {
        for sleeper in state.sleepers.extract_if(.., |sleeper| (sleeper.is_over)()) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            state.queue.push_back(sleeper.waiter);
        }
        let next = state.queue.pop_front();
        match next {
            Some(_) => drop(self.waiting.fetch_sub(1, Ordering::SeqCst)),
            None => state.holder = None,
        }
        // The first in the queue interrupts the holder after a slice.
        if let Some(first) = state.queue.front() {
            first.watch();
        }
        next
    }

    /// Whether a holder has crashed.
    pub(super) fn has_crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// Whether a session waits.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// The holder has crashed, and shared memory stays as it is: no session runs any more.
    pub(super) fn crash(&self) {
        let mut state = self.state.lock();
        state.crashed = true;
        state.holder = None;
        self.waiting.store(0, Ordering::SeqCst);
        let State { queue, sleepers, .. } = &mut *state;
        for waiter in queue.drain(..).chain(sleepers.drain(..).map(|sleeper| sleeper.waiter)) {
            waiter.call();
        }
    }
}

#[cfg(test)]
mod tests;
