//! A cluster that accepts sessions, as its processes see it, and what they tell its postmaster.

use std::{collections::BTreeSet, sync::Arc};

use crossbeam_channel::Sender;
use parking_lot::{Mutex, RwLock};

use crate::{
    backend::Fork,
    cluster::{Seats, Signal},
    postgres::process,
};

/// A cluster that accepts sessions.
pub(super) struct Running {
    pub(super) seats: Arc<Seats>,
    fork: RwLock<Arc<Fork>>,
    /// The process ids of the sessions that may send WAL to subscribers.
    pub(super) senders: Mutex<BTreeSet<i32>>,
    events: Sender<Event>,
}

/// An event that a postmaster handles.
pub(super) enum Event {
    /// A signal has arrived.
    Signal,
    /// A child has ended, with that exit status.
    Ended { process_id: i32, ended: anyhow::Result<i32> },
    /// A process has sent a signal to the checkpointer, which does not run.
    CheckpointerWanted,
    /// A client's session has crashed.
    Crashed,
    /// A session that could send WAL to a subscriber has ended.
    SenderEnded,
    /// The cluster is to be shut down; its sessions have ended, except for those that send WAL.
    ShutDown,
}

impl Running {
    /// The cluster whose processes begin as `fork` says, and whose postmaster gets `events`.
    pub(super) fn new(seats: Arc<Seats>, fork: Fork, events: Sender<Event>) -> Self {
        Self { seats, fork: RwLock::new(Arc::new(fork)), senders: Mutex::default(), events }
    }

    /// The state with which new processes start.
    pub(super) fn fork(&self) -> Arc<Fork> {
        self.fork.read().clone()
    }

    /// From now on new processes start with that state.
    pub(super) fn replace_fork(&self, fork: Fork) {
        *self.fork.write() = Arc::new(fork);
    }

    /// Sends an event to the postmaster.
    pub(super) fn tell(&self, event: Event) {
        // A postmaster that has ended needs no events.
        let _ = self.events.send(event);
    }

    /// Makes the cluster read its configuration files again.
    pub(super) fn reload(&self) {
        self.seats.send(process::FIRST, Some(Signal::HUP));
    }
}
