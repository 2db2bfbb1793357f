//! Connections whose clients have not authenticated yet: how many there may be, and which has to go when there are more.
//!
//! Such a connection has a thread and may have a clone, and anybody can open one. A client that authenticates takes
//! milliseconds. One that says nothing, or little, ends after `authentication_timeout`, and sooner if there are many
//! like it, or if something that connections need is scarce: the oldest goes first, so that new clients get in. When a
//! cluster has no place for another session, its own go after a second (`databases/attached.rs`).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{capacity, session::Control};

/// How many there may be for longer than [`PATIENCE`].
const FEW: usize = 64;
/// How long a client may take in any case, unless there are [`MANY`].
const PATIENCE: Duration = Duration::from_secs(3);
/// How many there may be at all.
const MANY: usize = 1024;
/// How many go for each new one while something is scarce.
const SCARCE: usize = 2;

/// The connections that have not authenticated, by their numbers, the oldest first; some that have may be among them.
#[derive(Default)]
pub(super) struct HalfOpen(Mutex<BTreeMap<u64, (Instant, Control)>>);

impl HalfOpen {
    /// Adds a new connection, and ends those that are too many.
    pub(super) fn enter(&self, number: u64, control: &Control) {
        // Counting takes longer than the rest of this, and few use nothing up.
        let is_scarce = self.0.lock().len() >= FEW / 4 && capacity::is_scarce();
        self.enter_where(number, control, is_scarce);
    }

    fn enter_where(&self, number: u64, control: &Control, is_scarce: bool) {
        let mut waiting = self.0.lock();
        // It may have ended already.
        if control.is_half_open() {
            waiting.insert(number, (Instant::now(), control.clone()));
        }
        if is_scarce || waiting.len() > FEW {
            waiting.retain(|_, (_, control)| control.is_half_open());
        }
        let scarce = if is_scarce { SCARCE.min(waiting.len().saturating_sub(1)) } else { 0 };
        (0..scarce).for_each(|_| crowd_out_oldest(&mut waiting));
        while waiting.len() > FEW
            && let Some((_, (since, _))) = waiting.first_key_value()
        {
            let is_patient = since.elapsed() < PATIENCE;
            if is_patient && waiting.len() <= MANY {
                return;
            }
            crowd_out_oldest(&mut waiting);
        }
    }

    /// Ends the oldest ones; returns how many.
    pub(super) fn make_room(&self) -> usize {
        let mut waiting = self.0.lock();
        waiting.retain(|_, (_, control)| control.is_half_open());
        // Each of them has as many descriptors as the one that comes.
        let ended = SCARCE.min(waiting.len());
        (0..ended).for_each(|_| crowd_out_oldest(&mut waiting));
        ended
    }

    /// Removes a connection that has ended: what is kept of it keeps its socket open.
    pub(super) fn leave(&self, number: u64) {
        self.0.lock().remove(&number);
    }
}

fn crowd_out_oldest(waiting: &mut BTreeMap<u64, (Instant, Control)>) {
    if let Some((_, (_, oldest))) = waiting.pop_first() {
        oldest.crowd_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::Waker, session::cancel::CancelRegistry};

    fn control() -> Control {
        Control::new(CancelRegistry::default(), Waker::new(|| {}), false)
    }

    fn is_crowded_out(control: &Control) -> bool {
        control.refusal().is_some_and(|report| report.code == "53300")
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_and_those_that_have_authenticated_stay() {
        let half_open = HalfOpen::default();
        let authenticated = control();
        half_open.enter_where(0, &authenticated, false);
        authenticated.settle();
        let controls: Vec<Control> = (0..MANY + 3).map(|_| control()).collect();
        (1..).zip(&controls).for_each(|(id, control)| half_open.enter_where(id, control, false));
        let crowded: Vec<bool> = controls.iter().map(is_crowded_out).collect();
        assert_eq!(crowded.iter().position(|crowded| !crowded), Some(3));
        assert!(!crowded[3..].contains(&true));
        assert!(!is_crowded_out(&authenticated));
    }

    #[test]
    fn where_descriptors_are_scarce_each_new_one_takes_the_place_of_two() {
        let half_open = HalfOpen::default();
        let controls: Vec<Control> = (0..6).map(|_| control()).collect();
        (0..).zip(&controls[..4]).for_each(|(id, control)| half_open.enter_where(id, control, false));
        (4..).zip(&controls[4..]).for_each(|(id, control)| half_open.enter_where(id, control, true));
        let crowded: Vec<bool> = controls.iter().map(is_crowded_out).collect();
        assert_eq!(crowded, [true, true, true, true, false, false]);
        let (alone, newest) = (HalfOpen::default(), control());
        alone.enter_where(0, &newest, true);
        assert!(!is_crowded_out(&newest));
    }

    #[test]
    fn nothing_is_kept_of_a_connection_that_has_ended() {
        let half_open = HalfOpen::default();
        let (before, after) = (control(), control());
        before.settle();
        half_open.enter_where(1, &before, false);
        half_open.enter_where(2, &after, false);
        after.settle();
        half_open.leave(2);
        assert!(half_open.0.lock().is_empty());
    }

    #[test]
    fn those_that_have_waited_for_long_go_sooner() {
        let half_open = HalfOpen::default();
        let controls: Vec<Control> = (0..=FEW).map(|_| control()).collect();
        (1..).zip(&controls[..FEW]).for_each(|(id, control)| half_open.enter_where(id, control, false));
        for (since, _) in half_open.0.lock().values_mut().take(2) {
            *since = since.checked_sub(PATIENCE).expect("the machine has run for longer");
        }
        half_open.enter_where(1000, &controls[FEW], false);
        let crowded: Vec<bool> = controls.iter().map(is_crowded_out).collect();
        assert_eq!((crowded[0], crowded[1..].contains(&true)), (true, false), "one makes room for one");
    }
}
