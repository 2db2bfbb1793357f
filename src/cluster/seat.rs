//! A session's seat in a cluster: its process id, its turns, and the signals that it exchanges with other sessions.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{Baton, Priority, Signal, Signals, Slice};
use crate::{client::Waker, postgres::process, tally::Tally};

/// Another session of the cluster has crashed, and shared memory cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another session of this cluster has crashed")]
pub(crate) struct Crashed;

/// Every process of one cluster.
#[derive(Default)]
pub(crate) struct Seats {
    baton: Baton,
    taken: Mutex<Taken>,
    wal: Mutex<WalSegments>,
    /// The number of the last checkpoint.
    checkpoints: Mutex<Option<u32>>,
    /// When the cluster was started.
    started: Started,
    /// The number of turns that have begun.
    turns: AtomicU64,
    /// Where what happens in the cluster is counted.
    tally: Arc<Tally>,
    /// Called for a signal to the checkpointer while that does not run.
    checkpointer_wanted: Mutex<Option<Waker>>,
}

/// A time, by default the present.
struct Started(jiff::Timestamp);

impl Default for Started {
    fn default() -> Self {
        Self(jiff::Timestamp::now())
    }
}

/// Counts the WAL segments since the last checkpoint.
#[derive(Default)]
struct WalSegments {
    checkpoints: u32,
    begun: u32,
}

#[derive(Default)]
struct Taken {
    last_process_id: i32,
    by_process_id: HashMap<i32, Occupant>,
}

struct Occupant {
    signals: Arc<Signals>,
    priority: Priority,
}

/// The first process id of a session. The postmaster of a cluster has
/// [`process::FIRST`].
const FIRST_PROCESS_ID: i32 = 1000;

impl Seats {
    /// Those of a cluster without processes, in which turns are of `slice` and what happens is counted in `tally`.
    pub(crate) fn new(tally: Arc<Tally>, slice: Slice) -> Self {
        Self { baton: Baton::new(tally.clone(), slice), tally, ..Self::default() }
    }

    /// Where what happens in the cluster is counted.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// A seat with a free process id.
    pub(crate) fn join(self: &Arc<Self>, priority: Priority) -> Seat {
        let mut taken = self.taken.lock();
        loop {
            let next = taken.last_process_id.checked_add(1).map_or(FIRST_PROCESS_ID, |next| next.max(FIRST_PROCESS_ID));
            taken.last_process_id = next;
            if !taken.by_process_id.contains_key(&next) {
                drop(taken);
                return self.join_as(next, priority);
            }
        }
    }

    /// A seat with that process id, which must be free.
    pub(crate) fn join_as(self: &Arc<Self>, process_id: i32, priority: Priority) -> Seat {
        let signals = Arc::new(Signals::new(self.baton.slice()));
        self.taken.lock().by_process_id.insert(process_id, Occupant { signals: signals.clone(), priority });
        Seat { seats: self.clone(), process_id, priority, signals, has_turn: false, begun: None }
    }

    /// The number of clients' sessions.
    pub(crate) fn sessions(&self) -> usize {
        self.taken.lock().by_process_id.values().filter(|occupant| occupant.priority == Priority::Client).count()
    }

    /// Sends `signal` to the process with that process id; with `None` it only checks for the process. Returns whether
    /// the process exists.
    pub(crate) fn send(&self, process_id: i32, signal: Option<Signal>) -> bool {
        let target = self.find(process_id);
        if let (Some((target, priority)), Some(signal)) = (&target, signal) {
            match (priority, signal) {
                (Priority::Client, Signal::INT | Signal::TERM) => target.send_until_heard(signal),
                _ => target.send(signal),
            }
        }
        target.is_some() || (process_id == process::CHECKPOINTER && self.want_checkpointer())
    }

    /// From now on `waker` is called when a process sends a signal to the checkpointer and that does not run. It is
    /// expected to start it. What the signal was for stands in shared memory.
    pub(crate) fn call_for_checkpointer(&self, waker: Waker) {
        *self.checkpointer_wanted.lock() = Some(waker);
    }

    fn want_checkpointer(&self) -> bool {
        let wanted = self.checkpointer_wanted.lock().clone();
        wanted.inspect(Waker::wake).is_some()
    }

    /// The number of turns that have begun. As long as it stays the same after a turn has ended, nothing has changed
    /// in the cluster.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::SeqCst)
    }

    /// Whether a session has crashed, so that all end.
    pub(crate) fn have_crashed(&self) -> bool {
        self.baton.has_crashed()
    }

    /// Sends `signal` to every process except the one with that process id.
    pub(crate) fn send_to_others(&self, process_id: i32, signal: Signal) {
        let others: Vec<_> = {
            let taken = self.taken.lock();
            let others = taken.by_process_id.iter().filter(|(other, _)| **other != process_id);
            others.map(|(_, occupant)| occupant.signals.clone()).collect()
        };
        others.iter().for_each(|signals| signals.send(signal));
    }

    /// The signals of the process with that process id, and how soon it hands over.
    fn find(&self, process_id: i32) -> Option<(Arc<Signals>, Priority)> {
        let taken = self.taken.lock();
        taken.by_process_id.get(&process_id).map(|occupant| (occupant.signals.clone(), occupant.priority))
    }

    /// Lets the processes that wait have their turns before the one behind `signals`, which has the turn, goes on.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(super) fn yield_turn(&self, signals: &Arc<Signals>, priority: Priority) -> Result<(), Crashed> {
        if self.baton.is_wanted() {
            self.baton.give();
            self.baton.take(signals, priority)?;
            self.begin_turn();
        }
        Ok(())
    }

    fn begin_turn(&self) {
        self.turns.fetch_add(1, Ordering::SeqCst);
        self.tally.turns.add(1);
    }

    /// The session that has the turn has crashed: all sessions end without another turn.
    pub(crate) fn crash(&self) {
        self.baton.crash();
        for occupant in self.taken.lock().by_process_id.values() {
            occupant.signals.interrupt();
        }
    }
}

/// The seat of one session. Dropping it frees its process id, and ends its turn.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    process_id: i32,
    priority: Priority,
    signals: Arc<Signals>,
    has_turn: bool,
    /// When the last turn of a process of the cluster itself began.
    begun: Option<Instant>,
}

impl Seat {
    /// When the cluster was started.
    pub(crate) fn cluster_start(&self) -> jiff::Timestamp {
        self.seats.started.0
    }

    /// The session's process id in the cluster.
    pub(crate) fn process_id(&self) -> i32 {
        self.process_id
    }

    /// The signals of this session.
    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Where what happens in the cluster is counted.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.seats.tally
    }

    /// All seats of the cluster, and how soon this one's process hands over.
    pub(super) fn shared(&self) -> (Arc<Seats>, Priority) {
        (self.seats.clone(), self.priority)
    }

    /// Whether a process of the cluster has crashed.
    pub(crate) fn cluster_has_crashed(&self) -> bool {
        self.seats.have_crashed()
    }

    /// As [`Seats::send`].
    pub(crate) fn send(&self, process_id: i32, signal: Option<Signal>) -> bool {
        self.seats.send(process_id, signal)
    }

    /// Counts a new WAL segment, after `checkpoints` checkpoints; returns the number of segments since the last of
    /// them.
    pub(crate) fn count_wal_segment(&self, checkpoints: u32) -> u32 {
        let mut wal = self.seats.wal.lock();
        if wal.checkpoints != checkpoints {
            *wal = WalSegments { checkpoints, begun: 0 };
        }
        wal.begun += 1;
        wal.begun
    }

    /// Counts checkpoints: `done` is the number of the last one. The first such number is not counted, because a copy
    /// of a cluster goes on with the numbers of its origin.
    pub(crate) fn count_checkpoints(&self, done: u32) {
        let before = self.seats.checkpoints.lock().replace(done);
        let more = before.map_or(0, |before| done.wrapping_sub(before));
        if more > 0 {
            self.seats.tally.checkpoints.add(more.into());
        }
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn take_turn(&mut self) -> Result<(), Crashed> {
        if !self.has_turn {
            self.seats.baton.take(&self.signals, self.priority)?;
            self.begin_turn();
        }
        Ok(())
    }

    /// Ends the turn, if the session has it.
    pub(crate) fn end_turn(&mut self) {
        if std::mem::take(&mut self.has_turn) {
            self.seats.baton.give();
        }
    }

    /// Lets the other sessions that wait have their turns, and takes the turn again after them, or at the first
    /// hand-over after a slice. The session must have the turn.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn lend_turn(&mut self) -> Result<(), Crashed> {
        self.has_turn = false;
        self.seats.baton.lend(&self.signals, self.priority)?;
        self.begin_turn();
        Ok(())
    }

    /// A process of the cluster itself that has had its turn for a while lends it if others wait. The process must have
    /// the turn.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn give_way(&mut self) -> Result<(), Crashed> {
        let least = self.seats.baton.slice().least();
        // The turn of a client's session has no beginning, and no clock is read while nobody waits.
        let is_due = self.begun.is_some_and(|begun| self.others_wait() && begun.elapsed() >= least);
        if is_due { self.lend_turn() } else { Ok(()) }
    }

    /// Called when the session cannot continue before another one has run: lets the others have their turns, and takes
    /// a turn after `is_over`, which is called at the end of each turn, and not any more when this returns.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn sleep(&mut self, is_over: impl Fn() -> bool + Send + 'static) -> Result<(), Crashed> {
        self.has_turn = false;
        self.seats.baton.sleep(&self.signals, self.priority, is_over)?;
        self.begin_turn();
        Ok(())
    }

    fn begin_turn(&mut self) {
        self.has_turn = true;
        self.begun = (self.priority == Priority::Background).then(Instant::now);
        self.seats.begin_turn();
    }

    /// Whether another session waits for its turn.
    pub(crate) fn others_wait(&self) -> bool {
        self.seats.baton.is_wanted()
    }

    /// The guest in this seat has crashed while it had the turn.
    pub(crate) fn crash(&mut self) {
        self.has_turn = false;
        self.seats.crash();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.end_turn();
        self.seats.taken.lock().by_process_id.remove(&self.process_id);
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn process_ids_are_unique_and_gone_with_the_session() {
        let seats = Arc::new(Seats::default());
        let (first, second) = (seats.join(Priority::Client), seats.join(Priority::Client));
        assert_ne!(first.process_id(), second.process_id());
        let gone = first.process_id();
        drop(first);
        assert!(!second.send(gone, Some(Signal::INT)));
        assert_eq!(seats.sessions(), 1);
    }

    #[test]
    fn a_signal_reaches_the_session_that_it_is_for() {
        let seats = Arc::new(Seats::default());
        let (first, second) = (seats.join(Priority::Client), seats.join(Priority::Client));
        assert!(first.send(second.process_id(), Some(Signal::TERM)));
        assert!(first.send(second.process_id(), None));
        assert_eq!(second.signals().take().collect::<Vec<_>>(), [Signal::TERM]);
        assert!(!first.signals().any());
    }

    #[test]
    fn a_process_of_the_cluster_gives_way_to_sessions_when_it_has_had_its_time() {
        for (slice, priority, has_turn_first) in [
            (Duration::ZERO, Priority::Background, "session"),
            (Duration::from_hours(1), Priority::Background, "process"),
            (Duration::ZERO, Priority::Client, "process"),
        ] {
            let seats = Arc::new(Seats::new(Arc::default(), Slice(slice)));
            let (mut process, mut session) = (seats.join(priority), seats.join(Priority::Client));
            let order = Arc::new(Mutex::new(Vec::new()));
            process.take_turn().unwrap();
            let thread = thread::spawn({
                let order = order.clone();
                move || {
                    session.take_turn().unwrap();
                    order.lock().push("session");
                    session.end_turn();
                }
            });
            while !process.others_wait() {
                thread::yield_now();
            }
            process.give_way().unwrap();
            order.lock().push("process");
            process.end_turn();
            thread.join().unwrap();
            assert_eq!(order.lock()[0], has_turn_first, "{slice:?} {priority:?}");
        }
    }

    #[test]
    fn a_session_that_leaves_passes_its_turn_on() {
        let seats = Arc::new(Seats::default());
        let (mut first, mut second) = (seats.join(Priority::Client), seats.join(Priority::Client));
        first.take_turn().unwrap();
        drop(first);
        second.take_turn().unwrap();
        second.crash();
        assert_eq!(seats.join(Priority::Client).take_turn(), Err(Crashed));
    }
}
