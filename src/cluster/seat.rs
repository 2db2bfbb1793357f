//! One session's part in a cluster: its process id, its turns, and the signals that it exchanges with the others.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use super::{Baton, Priority, Signal, Signals};

/// Another session of the cluster has left shared memory in a state that nobody can go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another session of this cluster has crashed")]
pub(crate) struct Crashed;

/// Every session of one cluster.
#[derive(Default)]
pub(crate) struct Seats {
    baton: Baton,
    taken: Mutex<Taken>,
    checkpointer: OnceLock<Checkpointer>,
}

/// Has a checkpoint made, and sends when that is done.
type Checkpointer = Box<dyn Fn(Sender<()>) + Send + Sync>;

#[derive(Default)]
struct Taken {
    last_process_id: i32,
    by_process_id: HashMap<i32, Arc<Signals>>,
}

/// The first process id that is given out. The first backend of a cluster has the one that is compiled into it, 42.
const FIRST_PROCESS_ID: i32 = 1000;

impl Seats {
    /// A seat for a further session, with a process id that no session of the cluster has.
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

    /// A seat with that process id, which nobody has.
    pub(crate) fn join_as(self: &Arc<Self>, process_id: i32, priority: Priority) -> Seat {
        let signals = Arc::new(Signals::default());
        self.taken.lock().by_process_id.insert(process_id, signals.clone());
        Seat { seats: self.clone(), process_id, priority, signals, has_turn: false }
    }

    /// From now on `request` is called for a checkpoint; it must not block.
    pub(crate) fn set_checkpointer(&self, request: impl Fn(Sender<()>) + Send + Sync + 'static) {
        let _ = self.checkpointer.set(Box::new(request));
    }

    /// How often a session has taken its turn.
    pub(crate) fn turns(&self) -> u64 {
        self.baton.turns()
    }

    /// How many sessions there are.
    pub(crate) fn count(&self) -> usize {
        self.taken.lock().by_process_id.len()
    }

    /// The signals of the session with that process id.
    fn find(&self, process_id: i32) -> Option<Arc<Signals>> {
        self.taken.lock().by_process_id.get(&process_id).cloned()
    }

    /// The session that has the turn has crashed: all end without running on.
    pub(crate) fn crash(&self) {
        self.baton.crash();
        for signals in self.taken.lock().by_process_id.values() {
            signals.interrupt();
        }
    }
}

/// One session's seat; leaving it frees its process id, and its turn if it has it.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    process_id: i32,
    priority: Priority,
    signals: Arc<Signals>,
    has_turn: bool,
}

impl Seat {
    /// The process id in the cluster.
    pub(crate) fn process_id(&self) -> i32 {
        self.process_id
    }

    /// The signals of this session.
    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Sends `signal` (or none, to ask whether it is there) to the session with that process id; says whether there is one.
    pub(crate) fn send(&self, process_id: i32, signal: Option<Signal>) -> bool {
        let target = self.seats.find(process_id);
        if let (Some(target), Some(signal)) = (&target, signal) {
            target.send(signal);
        }
        target.is_some()
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn take_turn(&mut self) -> Result<(), Crashed> {
        if !self.has_turn {
            self.seats.baton.take(&self.signals, self.priority)?;
            self.has_turn = true;
        }
        Ok(())
    }

    /// Ends the turn, if it has it.
    pub(crate) fn end_turn(&mut self) {
        if std::mem::take(&mut self.has_turn) {
            self.seats.baton.give();
        }
    }

    /// Has a checkpoint made, and waits for it; meanwhile others have their turns.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn request_checkpoint(&mut self) -> Result<(), Crashed> {
        let Some(request) = self.seats.checkpointer.get() else { return Ok(()) };
        let (done, is_done) = bounded(1);
        request(done);
        self.end_turn();
        // A checkpointer that is gone has crashed, which taking the turn finds out.
        let _ = is_done.recv();
        self.take_turn()
    }

    /// Cannot go on before another session has: lets the others have their turns, and takes the next one after one of them.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn pass_turn(&mut self) -> Result<(), Crashed> {
        self.has_turn = false;
        self.seats.baton.pass(&self.signals, self.priority)?;
        self.has_turn = true;
        Ok(())
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
    use super::*;

    #[test]
    fn process_ids_are_unique_and_gone_with_the_session() {
        let seats = Arc::new(Seats::default());
        let (first, second) = (seats.join(Priority::Client), seats.join(Priority::Client));
        assert_ne!(first.process_id(), second.process_id());
        let gone = first.process_id();
        drop(first);
        assert!(!second.send(gone, Some(Signal::INT)));
        assert_eq!(seats.count(), 1);
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
