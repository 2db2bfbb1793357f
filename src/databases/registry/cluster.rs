//! One cluster of the registry: what it was made with, and what runs it.

use std::{
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use parking_lot::Mutex;

use super::super::{
    Simulation,
    shared::{DATABASE, DataDirectory, OnFailure, Postmaster, SharedSettings},
};
use crate::{
    administration::{ClusterOrigin, ClusterSummary, Lifetime, WatchedCluster},
    backend::ClusterSnapshot,
    quota::Limits,
    tally::Tally,
};

/// One cluster.
pub(super) struct Cluster {
    pub(super) name: String,
    pub(super) origin: ClusterOrigin,
    pub(super) lifetime: Lifetime,
    pub(super) settings: SharedSettings,
    /// Whether it has other settings than the default cluster, besides where it is kept.
    pub(super) has_own_settings: bool,
    pub(super) limits: Limits,
    pub(super) made: SystemTime,
    /// Called when it has crashed and cannot be started again.
    pub(super) on_failure: Option<OnFailure>,
    pub(super) simulation: Simulation,
    /// Where what happens in it is counted.
    pub(super) tally: Arc<Tally>,
    /// What it began as a copy of.
    pub(super) beginning: Mutex<Option<Arc<ClusterSnapshot>>>,
    /// The database in it that its origin was made for; known when it is started.
    pub(super) database: OnceLock<String>,
    pub(super) state: Mutex<State>,
    /// Locked while it starts, so that it is started once. A thread that has the lock of a branch may take that of the
    /// branch's origin, which is older.
    pub(super) starting: Mutex<()>,
}

/// What runs a cluster.
#[derive(Clone)]
pub(super) enum State {
    /// Nothing yet: it starts for the first connection that needs it. A branch has its origin here.
    New(Option<Arc<Cluster>>),
    Started(Arc<Postmaster>),
    /// It was dropped, or could not be made.
    Gone,
}

impl Cluster {
    /// What runs it. A cluster that is just being started counts as not running.
    pub(super) fn running(&self) -> Option<Arc<Postmaster>> {
        match &*self.state.lock() {
            State::Started(postmaster) => Some(postmaster.clone()),
            State::New(_) | State::Gone => None,
        }
    }

    /// Whether `postmaster` runs it.
    pub(super) fn is_run_by(&self, postmaster: &Arc<Postmaster>) -> bool {
        matches!(&*self.state.lock(), State::Started(running) if Arc::ptr_eq(running, postmaster))
    }

    /// From now on `postmaster` runs it, unless it is gone; returns whether it is not.
    pub(super) fn has_started(&self, postmaster: &Arc<Postmaster>) -> bool {
        let mut state = self.state.lock();
        let is_wanted = !matches!(*state, State::Gone);
        if is_wanted {
            *state = State::Started(postmaster.clone());
        }
        is_wanted
    }

    /// From now on `successor` runs it, if it runs; returns what ran it.
    pub(super) fn succeed_to(&self, successor: &Arc<Postmaster>) -> Option<Arc<Postmaster>> {
        let mut state = self.state.lock();
        let State::Started(replaced) = &*state else { return None };
        let replaced = replaced.clone();
        *state = State::Started(successor.clone());
        Some(replaced)
    }

    /// From now on it is gone; what ran it. If it is just being started, waits until that has ended as well.
    pub(super) fn go(&self) -> Option<Arc<Postmaster>> {
        let before = std::mem::replace(&mut *self.state.lock(), State::Gone);
        match before {
            State::Started(postmaster) => Some(postmaster),
            State::New(_) => {
                drop(self.starting.lock());
                None
            }
            State::Gone => None,
        }
    }

    /// From now on `postmaster` keeps to the cluster's limits.
    pub(super) fn limit(&self, postmaster: &Postmaster) {
        postmaster.quota().limit(self.limits, || format!("the cluster {:?}", self.name));
    }

    /// The database in it that its origin was made for.
    pub(super) fn database(&self) -> &str {
        self.database.get().map_or(DATABASE, String::as_str)
    }

    /// Whether it takes sessions at the moment.
    pub(super) fn takes_sessions(&self) -> bool {
        self.running().is_some_and(|postmaster| postmaster.is_running())
    }

    /// The bytes of memory and of disk that it uses.
    fn used(&self) -> (u64, u64) {
        self.running().map_or((0, 0), |postmaster| postmaster.used())
    }

    pub(super) fn watched(&self) -> WatchedCluster {
        let (memory, disk) = self.used();
        let (name, tally, is_running) = (self.name.clone(), self.tally.clone(), self.takes_sessions());
        WatchedCluster { name, is_running, tally, memory, disk, limits: self.limits }
    }

    pub(super) fn summary(&self) -> ClusterSummary {
        let data_directory = match &self.settings.data_directory {
            Some(DataDirectory::Host(path)) => Some(path.clone()),
            _ => None,
        };
        let (memory, disk) = self.used();
        ClusterSummary {
            name: self.name.clone(),
            origin: self.origin.clone(),
            data_directory,
            lifetime: self.lifetime,
            connections: self.running().map_or(0, |postmaster| postmaster.connections()),
            made: self.made,
            memory,
            disk,
            limits: self.limits,
        }
    }
}
