//! What is watched of the program's clusters.

use std::sync::Arc;

use crate::{
    quota::Limits,
    tally::{ClusterStarts, Tally},
};

/// What is watched of the clusters.
#[derive(Default)]
pub struct Watched {
    /// Those that take several sessions, by name.
    pub clusters: Vec<WatchedCluster>,
    /// All that connections have for themselves.
    pub isolated: Arc<Tally>,
    /// The memory of these, as [`Limits::memory`] counts it.
    pub isolated_memory: Spread,
    /// Their files, as [`Limits::disk`] counts them.
    pub isolated_disk: Spread,
    /// How long it took to start those that take several sessions.
    pub starts: Arc<ClusterStarts>,
    /// How many clones and copies of clusters are ready to be taken.
    pub warm: usize,
}

/// A number of bytes of several clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Of all of them together.
    pub all: u64,
    /// Of the one with most.
    pub largest: u64,
}

impl Spread {
    /// Adds one more cluster.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.all = self.all.saturating_add(bytes);
        self.largest = self.largest.max(bytes);
    }
}

/// What is watched of one cluster.
pub struct WatchedCluster {
    /// Its name.
    pub name: String,
    /// Whether it takes sessions now.
    pub is_running: bool,
    /// What is counted in it.
    pub tally: Arc<Tally>,
    /// The bytes of memory that it uses, as [`Limits::memory`] counts them.
    pub memory: u64,
    /// The bytes of its files, as [`Limits::disk`] counts them.
    pub disk: u64,
    /// Its limits.
    pub limits: Limits,
}
