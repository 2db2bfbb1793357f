//! Turns: exactly one session of a cluster runs wasm at a time.
//!
//! The guest's code has no atomic operations, so `PostgreSQL`'s spinlocks and lightweight locks are correct only when
//! turns change where `PostgreSQL` itself lets other processes run: while a session waits for its client or for a
//! latch, while it sleeps, or where it would handle interrupts. Sessions have their turns in the order of their
//! requests. A session that waits longer than a slice interrupts the holder, whose hook in `ProcessInterrupts` then
//! hands over. If it does not check for interrupts for [`GRACE`], it hands over at a safepoint (`preemption`), as a
//! process that loses the processor. No clock is read while no session waits for its turn.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Crashed, Signals};
use crate::sync::{AtomicUsize, Condvar, Mutex};

#[cfg(all(test, feature = "loom"))]
mod interleavings;

/// How long a turn may last while another session waits.
const SLICE: Duration = Duration::from_millis(5);

/// How long a session that was asked to hand over has until its next check for interrupts. Then it is stopped.
const GRACE: Duration = Duration::from_millis(2);

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
}

impl Holder {
    fn new(signals: &Arc<Signals>, priority: Priority) -> Self {
        Self { signals: signals.clone(), priority, was_asked: false }
    }

    /// Called when the first in the queue has waited for a slice, and again after [`GRACE`]: it hands over when it
    /// checks for interrupts next, or, the second time, at its next safepoint.
    fn ask(&mut self) {
        if std::mem::replace(&mut self.was_asked, true) {
            self.signals.stop();
        } else {
            self.signals.interrupt();
        }
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
    /// Waits for the turn of the session behind `signals`, and takes it.
    ///
    /// # Errors
    /// [`Crashed`] when another session of the cluster has crashed; then no session runs any more.
    pub(super) fn take(&self, signals: &Arc<Signals>, priority: Priority) -> Result<(), Crashed> {
        let holder = Holder::new(signals, priority);
        self.ask(holder)?.map_or(Ok(()), |(waiter, holder)| self.wait(&waiter, holder, Manners::Queues))
    }

    /// Hands the baton over, and takes it again when the other sessions that wait have had their turns, but not later
    /// than at the first hand-over after a slice. The caller must hold the baton.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn lend(&self, signals: &Arc<Signals>, priority: Priority) -> Result<(), Crashed> {
        self.give();
        let holder = Holder::new(signals, priority);
        self.ask(holder)?.map_or(Ok(()), |(waiter, holder)| self.wait(&waiter, holder, Manners::Returns))
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
            current.was_asked = true;
            current.signals.interrupt();
        }
        let waiter = Waiter::new(Place::Watching);
        state.queue.push_back(waiter.clone());
        Ok(Some((waiter, holder)))
    }

    /// Waits until `waiter` is called, and takes the baton for `holder`.
    fn wait(&self, waiter: &Arc<Waiter>, holder: Holder, manners: Manners) -> Result<(), Crashed> {
        let mut patience = SLICE;
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
                current.ask();
                patience = GRACE;
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
mod tests {
    use std::{
        sync::{atomic::AtomicBool, mpsc},
        thread,
    };

    use super::*;

    fn wait_until_queued(baton: &Baton, count: usize) {
        while baton.waiting.load(Ordering::SeqCst) != count {
            thread::yield_now();
        }
    }

    #[test]
    fn sessions_come_in_the_order_in_which_they_asked() {
        let (baton, signals) = (Arc::new(Baton::default()), Arc::new(Signals::default()));
        baton.take(&signals, Priority::Client).unwrap();
        let (came, order) = mpsc::channel();
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let (waiter, came) = (baton.clone(), came.clone());
                let thread = thread::spawn(move || {
                    waiter.take(&Arc::default(), Priority::Client).unwrap();
                    came.send(number).unwrap();
                    waiter.give();
                });
                wait_until_queued(&baton, number + 1);
                thread
            })
            .collect();
        baton.give();
        assert_eq!(order.iter().take(4).collect::<Vec<_>>(), [0, 1, 2, 3]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!baton.is_wanted());
    }

    /// A session, and its interrupts.
    fn interruptible(priority: Priority) -> (Holder, mpsc::Receiver<()>) {
        let (interrupted, interrupts) = mpsc::channel();
        let holder = holder(priority);
        holder.signals.set_waker(Some(crate::client::Waker::new(move || {
            let _ = interrupted.send(());
        })));
        (holder, interrupts)
    }

    /// A baton whose holder has that priority, and the holder's interrupts.
    fn held(priority: Priority) -> (Arc<Baton>, mpsc::Receiver<()>) {
        let (baton, (holder, interrupts)) = (Arc::new(Baton::default()), interruptible(priority));
        assert!(baton.ask(holder).unwrap().is_none(), "it is free");
        (baton, interrupts)
    }

    fn holder(priority: Priority) -> Holder {
        Holder::new(&Arc::default(), priority)
    }

    #[test]
    fn a_client_is_interrupted_when_somebody_waits_longer_than_a_slice_and_not_when_somebody_asks() {
        for priority in [Priority::Client, Priority::Background] {
            let (baton, interrupts) = held(Priority::Client);
            let (place, asking) = baton.ask(holder(priority)).unwrap().expect("it is held");
            assert_eq!(interrupts.try_recv(), Err(mpsc::TryRecvError::Empty), "{priority:?}");
            let waiter = {
                let baton = baton.clone();
                thread::spawn(move || baton.wait(&place, asking, Manners::Queues).map(|()| baton.give()))
            };
            assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()), "{priority:?}");
            baton.give();
            waiter.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_process_of_the_cluster_is_interrupted_as_soon_as_somebody_asks() {
        for priority in [Priority::Client, Priority::Background] {
            let (baton, interrupts) = held(Priority::Background);
            assert!(baton.ask(holder(priority)).unwrap().is_some());
            assert_eq!(interrupts.try_recv(), Ok(()), "{priority:?}");
        }
    }

    #[test]
    fn a_session_that_sleeps_has_no_turn_before_another_one_has_ended_its_sleep() {
        let (baton, turns) = (Arc::new(Baton::default()), Arc::new(AtomicUsize::default()));
        let is_over = Arc::new(AtomicBool::default());
        baton.take(&Arc::default(), Priority::Client).unwrap();
        let sleeper = {
            let (baton, is_over, turns) = (baton.clone(), is_over.clone(), turns.clone());
            thread::spawn(move || {
                baton.sleep(&Arc::default(), Priority::Client, move || is_over.load(Ordering::SeqCst))?;
                let seen = turns.load(Ordering::SeqCst);
                baton.give();
                Ok::<_, Crashed>(seen)
            })
        };
        // It gives the baton to these turns, which are the only ones until one has ended its sleep.
        for turn in 1..=3 {
            baton.take(&Arc::default(), Priority::Client).unwrap();
            turns.store(turn, Ordering::SeqCst);
            is_over.store(turn == 3, Ordering::SeqCst);
            baton.give();
        }
        assert_eq!(sleeper.join().unwrap(), Ok(3));
        assert!(!baton.is_wanted());
    }

    #[test]
    fn a_session_that_sleeps_watches_no_clock_before_it_is_the_first_in_the_queue() {
        let waiter = Waiter::new(Place::Asleep);
        let (told, looks) = mpsc::channel();
        let thread = {
            let waiter = waiter.clone();
            thread::spawn(move || {
                while !waiter.wait(SLICE) {
                    let _ = told.send(());
                }
            })
        };
        assert_eq!(looks.recv_timeout(SLICE * 20), Err(mpsc::RecvTimeoutError::Timeout));
        waiter.watch();
        assert_eq!(looks.recv_timeout(Duration::from_mins(1)), Ok(()));
        waiter.call();
        thread.join().unwrap();
    }

    #[test]
    fn a_holder_is_interrupted_by_a_session_that_has_slept() {
        let baton = Arc::new(Baton::default());
        baton.take(&Arc::default(), Priority::Client).unwrap();
        let (busy, interrupts) = interruptible(Priority::Client);
        let (place, busy) = baton.ask(busy).unwrap().expect("it is held");
        let sleeper = {
            let baton = baton.clone();
            // Its sleep is over at once, and then it waits for the busy one.
            thread::spawn(move || baton.sleep(&Arc::default(), Priority::Client, || true).map(|()| baton.give()))
        };
        baton.wait(&place, busy, Manners::Queues).unwrap();
        assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()));
        baton.give();
        sleeper.join().unwrap().unwrap();
    }

    #[test]
    fn a_turn_that_was_lent_comes_back_before_those_that_wait_when_the_holder_has_had_a_slice() {
        let (baton, signals) = (Arc::new(Baton::default()), Arc::new(Signals::default()));
        baton.take(&signals, Priority::Client).unwrap();
        let (busy, interrupts) = interruptible(Priority::Client);
        let (place, busy) = baton.ask(busy).unwrap().expect("it is held");
        let (patient, patiently) = baton.ask(holder(Priority::Client)).unwrap().expect("it is held");
        let (came, order) = mpsc::channel();
        let lender = {
            let (baton, came) = (baton.clone(), came.clone());
            thread::spawn(move || {
                baton.lend(&signals, Priority::Client).unwrap();
                came.send("lender").unwrap();
                baton.give();
            })
        };
        baton.wait(&place, busy, Manners::Queues).unwrap();
        // The thread of the patient one does not run yet, so only the lender interrupts.
        assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()));
        let other = {
            let baton = baton.clone();
            thread::spawn(move || {
                baton.wait(&patient, patiently, Manners::Queues).unwrap();
                came.send("patient").unwrap();
                baton.give();
            })
        };
        baton.give();
        assert_eq!(order.iter().take(2).collect::<Vec<_>>(), ["lender", "patient"]);
        [lender, other].into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!baton.is_wanted());
    }

    #[test]
    fn after_a_crash_nobody_gets_a_turn() {
        let (baton, signals) = (Arc::new(Baton::default()), Arc::new(Signals::default()));
        baton.take(&signals, Priority::Client).unwrap();
        let waiter = {
            let baton = baton.clone();
            thread::spawn(move || baton.take(&Arc::default(), Priority::Client))
        };
        wait_until_queued(&baton, 1);
        baton.crash();
        assert_eq!(waiter.join().unwrap(), Err(Crashed));
        assert_eq!(baton.take(&signals, Priority::Client), Err(Crashed));
    }
}
