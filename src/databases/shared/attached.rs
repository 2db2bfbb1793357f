//! The connections of a cluster: those that have a session in it, and those that wait for one.

use std::{collections::HashMap, sync::Arc, time::Instant};

use parking_lot::{Condvar, Mutex};

use crate::session::Control;

/// The connections of one cluster.
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
    controls: HashMap<u64, Control>,
}

/// Keeps a connection on the list; dropping it takes the connection off.
pub(crate) struct Attachment {
    attached: Arc<Attached>,
    number: u64,
}

impl Attached {
    /// Adds a connection; `None` if the cluster takes no more.
    pub(super) fn enter(self: &Arc<Self>, control: &Control) -> Option<Attachment> {
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.controls.insert(number, control.clone());
        Some(Attachment { attached: self.clone(), number })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.state.lock().controls.len()
    }

    /// Refuses further connections, and returns those there are.
    pub(super) fn close(&self) -> Vec<Control> {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.controls.values().cloned().collect()
    }

    /// Refuses further connections if there are none and there was one; returns whether that is so.
    pub(super) fn close_if_left(&self) -> bool {
        let mut state = self.state.lock();
        let is_left = state.controls.is_empty() && state.next > 0;
        state.is_closed |= is_left;
        is_left
    }

    /// Waits until there are none; returns whether that was before the deadline.
    pub(super) fn wait_until_left(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        !self.left.wait_while_until(&mut state, |state| !state.controls.is_empty(), deadline).timed_out()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.attached.state.lock().controls.remove(&self.number);
        self.attached.left.notify_all();
    }
}
