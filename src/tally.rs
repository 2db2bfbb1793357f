//! What happens in a cluster, in numbers: counters and histograms, which all threads add to without a lock and which
//! `metrics` reads.
//!
//! * `mod`: the numbers of one cluster, or of all isolated ones together
//! * `counter`, `histogram`: a number that only grows; durations
//! * `errors`: errors by the class of their SQLSTATE
//! * `activity`: what a session does at the moment
//! * `entrance`: connections that have no session yet

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

mod activity;
mod counter;
mod entrance;
mod errors;
mod histogram;

pub use activity::{Activity, Doing};
pub use counter::Counter;
pub use entrance::{ENTRANCE, Entrance};
pub use errors::Errors;
pub use histogram::{BOUNDS, Histogram, Observed};

/// The numbers of one cluster since it was made, or of all isolated ones since the program started.
#[derive(Default)]
pub struct Tally {
    /// The sessions of clients.
    sessions: Mutex<Vec<Weak<Activity>>>,
    /// Sessions of clients that have begun.
    pub sessions_begun: Counter,
    /// How long it took to make what a session runs in: a process of a cluster, or the clone of an isolated one.
    pub starts: Histogram,
    /// Bytes that clients have sent.
    pub received: Counter,
    /// Bytes that clients were sent.
    pub sent: Counter,
    /// Errors that clients were sent.
    pub errors: Errors,
    /// What `PostgreSQL` counts.
    pub database: DatabaseStatistics,
    /// Turns that have begun.
    pub turns: Counter,
    /// How long processes have waited for a turn that they did not get at once.
    pub waits: Histogram,
    /// How often a process was asked to hand over, because another one had waited for a slice. The cluster's own
    /// processes are asked at once.
    pub slices: Counter,
    /// How often a process was stopped because it did not hand over then.
    pub preemptions: Counter,
    /// Bytes of WAL that transactions have written.
    pub wal_bytes: Counter,
    /// Segments of WAL that were begun.
    pub wal_segments: Counter,
    /// Checkpoints of the cluster's checkpointer, or of a session that has its cluster alone.
    pub checkpoints: Counter,
    /// How long syncs have taken, of all files in a directory of the host.
    pub syncs: Histogram,
    /// Autovacuum workers that were started.
    pub autovacuum_workers: Counter,
    /// Sessions whose wasm trapped.
    pub traps: Counter,
    /// Sessions that were ended at a safepoint, because they did not check for interrupts after they were told to end,
    /// cancelled, or left by their client.
    pub unresponsive: Counter,
    /// How often the cluster has crashed and was started again.
    pub restarts: Counter,
}

/// How long it took to start clusters, by what they began as.
#[derive(Default)]
pub struct ClusterStarts {
    /// New clusters, and those in a directory.
    pub empty: Histogram,
    /// Copies of templates.
    pub template: Histogram,
    /// Branches of other clusters.
    pub branch: Histogram,
}

/// The statistics that `PostgreSQL` keeps for databases (`pg_stat_database`), of all databases of a cluster.
#[derive(Default)]
pub struct DatabaseStatistics {
    /// `xact_commit`
    pub commits: Counter,
    /// `xact_rollback`
    pub rollbacks: Counter,
    /// `blks_read`
    pub blocks_read: Counter,
    /// `blks_hit`
    pub blocks_hit: Counter,
    /// `tup_returned`
    pub tuples_returned: Counter,
    /// `tup_fetched`
    pub tuples_fetched: Counter,
    /// `tup_inserted`
    pub tuples_inserted: Counter,
    /// `tup_updated`
    pub tuples_updated: Counter,
    /// `tup_deleted`
    pub tuples_deleted: Counter,
    /// `temp_files`
    pub temporary_files: Counter,
    /// `temp_bytes`
    pub temporary_bytes: Counter,
    /// `deadlocks`
    pub deadlocks: Counter,
}

impl Tally {
    /// Counts a session, whose errors are counted here from now on, and which is one of [`Self::sessions`] as long as
    /// its `activity` exists.
    pub fn enter(self: &Arc<Self>, activity: &Arc<Activity>) {
        activity.count_errors_in(self);
        self.sessions_begun.add(1);
        let mut sessions = self.sessions.lock();
        // So that the list grows with the sessions that there are, not with those that there were.
        if sessions.len() == sessions.capacity() {
            sessions.retain(|session| session.strong_count() > 0);
        }
        sessions.push(Arc::downgrade(activity));
    }

    /// How many sessions do each of [`Doing::ALL`].
    #[must_use]
    pub fn sessions(&self) -> [u64; Doing::ALL.len()] {
        let mut counts = [0; Doing::ALL.len()];
        for session in self.sessions.lock().iter().filter_map(Weak::upgrade) {
            counts[session.doing() as usize] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_count_until_they_have_ended() {
        let tally = Arc::<Tally>::default();
        let activities: Vec<_> = (0..100).map(|_| Arc::<Activity>::default()).collect();
        activities.iter().for_each(|activity| tally.enter(activity));
        activities[..30].iter().for_each(|activity| activity.set(Doing::Idle));
        assert_eq!(tally.sessions(), [70, 0, 30, 0, 0]);
        drop(activities);
        assert_eq!((tally.sessions(), tally.sessions_begun.get()), ([0; 5], 100));
    }
}
