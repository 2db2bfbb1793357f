//! The connections of a cluster, or those that each have a cluster of their own: which there are, and which makes room
//! when they are too many.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::session::Control;

/// How long a connection waits for others to end that make room for it.
const END_OF_OTHERS: Duration = Duration::from_secs(1);

/// Connections that have a session or wait for one.
#[derive(Default)]
pub(super) struct Attached {
    state: Mutex<State>,
    /// Notified when a connection has left.
    left: Condvar,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    next: u64,
    /// By their numbers, the oldest first.
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    control: Control,
    /// Whether its client need not authenticate.
    is_trusted: bool,
}

/// Keeps a connection on the list; dropping it takes the connection off.
pub(crate) struct Attachment {
    attached: Arc<Attached>,
    number: u64,
}

impl Attached {
    /// Adds a connection; `None` if no more are taken.
    pub(super) fn enter(self: &Arc<Self>, control: &Control, is_trusted: bool) -> Option<Attachment> {
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, Connection { control: control.clone(), is_trusted });
        Some(Attachment { attached: self.clone(), number })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.state.lock().connections.len()
    }

    /// Refuses further connections, and returns those there are.
    pub(super) fn close(&self) -> Vec<Control> {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.connections.values().map(|connection| connection.control.clone()).collect()
    }

    /// Refuses further connections if there are none and there was one; returns whether that is so.
    pub(super) fn close_if_left(&self) -> bool {
        let mut state = self.state.lock();
        let is_left = state.connections.is_empty() && state.next > 0;
        state.is_closed |= is_left;
        is_left
    }

    /// Waits until there are none; returns whether that was before the deadline.
    pub(super) fn wait_until_left(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        !self.left.wait_while_until(&mut state, |state| !state.connections.is_empty(), deadline).timed_out()
    }
}

impl Attachment {
    /// Whether this connection is among the oldest ones, of which there can be `places`. If it is not, those that were
    /// there before it and have not authenticated make room, the oldest first, and it waits a moment for their ends.
    pub(super) fn make_room(&self, places: usize) -> bool {
        let deadline = Instant::now() + END_OF_OTHERS;
        let mut state = self.attached.state.lock();
        loop {
            let too_many = state.too_many(self.number, places);
            if too_many == 0 {
                return true;
            }
            let half_open: Vec<_> = state.half_open_before(self.number).take(too_many).collect();
            if half_open.len() < too_many {
                return false;
            }
            half_open.into_iter().for_each(Control::crowd_out);
            if self.attached.left.wait_until(&mut state, deadline).timed_out() {
                return state.too_many(self.number, places) == 0;
            }
        }
    }
}

impl State {
    /// How many have to go for this connection to be among the oldest ones, of which there can be `places`.
    fn too_many(&self, number: u64, places: usize) -> usize {
        if self.connections.len() <= places {
            return 0;
        }
        // Subscribers have places of their own (`max_wal_senders`).
        let older = self.connections.range(..number).filter(|(_, older)| !older.control.leaves_last());
        (older.count() + 1).saturating_sub(places)
    }

    fn half_open_before(&self, number: u64) -> impl Iterator<Item = &Control> {
        let older = self.connections.range(..number).map(|(_, older)| older);
        older.filter(|older| !older.is_trusted && older.control.is_half_open()).map(|older| &older.control)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.attached.state.lock().connections.remove(&self.number);
        self.attached.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::{client::Waker, session::cancel::CancelRegistry};

    #[test]
    fn the_oldest_that_has_not_authenticated_makes_room_for_a_new_one() {
        let attached = Arc::<Attached>::default();
        let (woken, ends) = mpsc::channel();
        let enter = |number: usize| {
            let woken = woken.clone();
            let wake = move || woken.send(number).expect("somebody listens");
            let control = Control::new(CancelRegistry::default(), Waker::new(wake), false);
            (attached.enter(&control, number == 1).expect("it is open"), control)
        };
        let mut connections: Vec<_> = (0..5).map(enter).map(Some).collect();
        let (newest, _control) = connections.pop().flatten().expect("there are five");
        let (_, authenticated) = connections[0].as_ref().expect("it is there");
        authenticated.settle();
        assert!(!newest.make_room(2), "two could go, of three");
        assert!(ends.try_recv().is_err(), "so none has to");
        thread::scope(|scope| {
            let (ends, connections) = (ends, &mut connections);
            let ended = scope.spawn(move || {
                let number = ends.recv().expect("one is told to end");
                drop(connections[number].take());
                number
            });
            assert!(newest.make_room(4));
            assert_eq!(ended.join().expect("it ends"), 2, "the one before is trusted");
        });
        assert!(newest.make_room(4), "there is room now");
    }
}
