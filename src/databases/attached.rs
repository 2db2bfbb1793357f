//! The connections of a cluster, or those that each have a cluster of their own: which there are, and which makes room
//! when they are too many.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::session::Control;

/// How long a client that has a place may take to authenticate when others need it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a connection waits for a place.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How often one that waits looks whether its client still does.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

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
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    control: Control,
    /// Whether its client need not authenticate.
    is_trusted: bool,
    /// The place that it has or waits for.
    place: Option<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    kind: Kind,
    /// The first to ask has the lowest one.
    order: u64,
    asked: Instant,
    /// Since when it has the place.
    since: Option<Instant>,
}

/// Which places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those of sessions (`max_connections`).
    Session,
    /// Those of processes that send WAL (`max_wal_senders`).
    Sender,
}

/// Whether there is a place for a connection.
enum Room {
    Is,
    IsNot,
    /// Others end, or may have to at that time.
    Comes(Instant),
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
        state.connections.insert(number, Connection { control: control.clone(), is_trusted, place: None });
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
    /// Gives the connection a place of that kind, of which there are `places`; returns whether there is one. If all are
    /// taken, clients that have had one for longer than [`PATIENCE`] and have not authenticated make room, the oldest
    /// first, if that is enough. One that has no place keeps its turn to get one.
    pub(super) fn take_place(&self, kind: Kind, places: usize) -> bool {
        let mut state = self.attached.state.lock();
        let own = state.ask(self.number, kind);
        loop {
            match state.make_room(own, places) {
                Room::Is => {
                    state.give(self.number);
                    return true;
                }
                Room::IsNot => return false,
                // It was told to end, or its client has left.
                Room::Comes(_) if !state.is_wanted(self.number) => return false,
                Room::Comes(until) => {
                    let until = until.min(Instant::now() + BETWEEN_LOOKS);
                    self.attached.left.wait_until(&mut state, until);
                }
            }
        }
    }
}

impl State {
    fn ask(&mut self, number: u64, kind: Kind) -> Place {
        self.next += 1;
        let new = Place { kind, order: self.next, asked: Instant::now(), since: None };
        match self.connections.get_mut(&number) {
            Some(connection) => *connection.place.get_or_insert(new),
            None => new,
        }
    }

    fn give(&mut self, number: u64) {
        if let Some(place) = self.connections.get_mut(&number).and_then(|connection| connection.place.as_mut()) {
            place.since.get_or_insert_with(Instant::now);
        }
    }

    fn is_wanted(&self, number: u64) -> bool {
        self.connections.get(&number).is_some_and(|connection| connection.control.is_wanted())
    }

    /// Ends those that have to make room for `own`, if it is time.
    fn make_room(&self, own: Place, places: usize) -> Room {
        if self.connections.len() <= places {
            return Room::Is;
        }
        let others = self.connections.values().filter_map(|connection| Some((connection, connection.place?)));
        let before = others.filter(|(_, place)| place.kind == own.kind && place.order < own.order);
        let mut before: Vec<_> = before.collect();
        let too_many = (before.len() + 1).saturating_sub(places);
        if too_many == 0 {
            return Room::Is;
        }
        before.retain(|(connection, _)| !connection.is_trusted && connection.control.is_half_open());
        let (now, end) = (Instant::now(), own.asked + LONGEST_WAIT);
        if before.len() < too_many || now >= end {
            return Room::IsNot;
        }
        before.sort_unstable_by_key(|(_, place)| place.order);
        let mut until = end;
        for (connection, place) in &before[..too_many] {
            // One that waits itself gets its place or goes.
            match place.since.map(|since| since + PATIENCE) {
                Some(patient_until) if patient_until <= now => connection.control.crowd_out(),
                Some(patient_until) => until = until.min(patient_until),
                None => {}
            }
        }
        Room::Comes(until)
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
    use crate::{
        client::Waker,
        session::cancel::{CancelRegistry, Interrupt},
    };

    /// Connections, of which the second is trusted, and what hears the number of one that is told to end.
    fn connections(attached: &Arc<Attached>, count: usize) -> (Vec<(Attachment, Control)>, mpsc::Receiver<usize>) {
        let (woken, ends) = mpsc::channel();
        let enter = |number: usize| {
            let woken = woken.clone();
            let wake = move || {
                // Nobody may listen.
                let _ = woken.send(number);
            };
            let control = Control::new(CancelRegistry::default(), Waker::new(wake), false);
            (attached.enter(&control, number == 1).expect("it is open"), control)
        };
        ((0..count).map(enter).collect(), ends)
    }

    /// Lets all that have a place have had it for long.
    fn grow_old(attached: &Attached) {
        let mut state = attached.state.lock();
        for place in state.connections.values_mut().filter_map(|connection| connection.place.as_mut()) {
            place.since = place.since.map(|since| since.checked_sub(PATIENCE).expect("the machine has run for longer"));
        }
    }

    #[test]
    fn the_oldest_that_has_not_authenticated_makes_room_for_a_new_one() {
        let attached = Arc::<Attached>::default();
        let (mut connections, ends) = connections(&attached, 5);
        let (newest, _control) = connections.pop().expect("there are five");
        connections[0].1.settle();
        assert!(connections.iter().all(|(connection, _)| connection.take_place(Kind::Session, 4)));
        grow_old(&attached);
        assert!(!newest.take_place(Kind::Session, 2), "two can go, and three would have to");
        assert!(ends.try_recv().is_err(), "so none has to");
        thread::scope(|scope| {
            let connections = &mut connections;
            let ended = scope.spawn(move || {
                let number = ends.recv().expect("one is told to end");
                connections.remove(number);
                number
            });
            assert!(newest.take_place(Kind::Session, 4));
            assert_eq!(ended.join().expect("it ends"), 2, "the one before is trusted");
        });
    }

    #[test]
    fn one_that_has_just_asked_is_waited_for() {
        let attached = Arc::<Attached>::default();
        let (connections, ends) = connections(&attached, 3);
        let [(first, control), _, (last, _)] = &connections[..] else { panic!("there are three") };
        assert!(first.take_place(Kind::Session, 1));
        let own = attached.state.lock().ask(last.number, Kind::Session);
        let state = attached.state.lock();
        assert!(matches!(state.make_room(own, 1), Room::Comes(until) if until > Instant::now()));
        assert!(ends.try_recv().is_err() && control.refusal().is_none());
        control.settle();
        assert!(matches!(state.make_room(own, 1), Room::IsNot), "it has authenticated");
    }

    #[test]
    fn one_that_waits_is_not_ended_for_another_and_does_not_wait_for_a_client_that_has_left() {
        let attached = Arc::<Attached>::default();
        let (connections, ends) = connections(&attached, 4);
        let [(first, _), _, (second, _), (third, control)] = &connections[..] else { panic!("there are four") };
        assert!(first.take_place(Kind::Session, 1));
        let (waits, own) = {
            let mut state = attached.state.lock();
            (state.ask(second.number, Kind::Session), state.ask(third.number, Kind::Session))
        };
        grow_old(&attached);
        assert!(matches!(attached.state.lock().make_room(own, 1), Room::Comes(_)));
        assert_eq!(ends.try_iter().collect::<Vec<_>>(), [0], "the one that has the place, and not the one that waits");
        assert!(matches!(attached.state.lock().make_room(waits, 1), Room::Comes(_)));
        control.interrupt(Interrupt::ClientGone);
        assert!(!third.take_place(Kind::Session, 1));
    }

    #[test]
    fn subscribers_and_sessions_take_no_places_from_each_other() {
        let attached = Arc::<Attached>::default();
        let (connections, _ends) = connections(&attached, 3);
        let [(sender, _), (session, _), (second, _)] = &connections[..] else { panic!("there are three") };
        assert!(sender.take_place(Kind::Sender, 1) && session.take_place(Kind::Session, 1));
        assert!(!second.take_place(Kind::Session, 1), "the other session is trusted");
    }
}
