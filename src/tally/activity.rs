//! What a session does at the moment.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU8, Ordering},
};

use super::Tally;

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It begins: its client was not let in yet.
    Starting,
    /// Its client has sent something since the last `ReadyForQuery`.
    Active,
    /// It waits for its client, outside a transaction block.
    Idle,
    /// It waits for its client in a transaction block.
    IdleInTransaction,
    /// It waits for its client in a transaction block that has failed.
    IdleInFailedTransaction,
}

impl Doing {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Starting, Self::Active, Self::Idle, Self::IdleInTransaction, Self::IdleInFailedTransaction];

    /// Its name in `pg_stat_activity.state`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::IdleInTransaction => "idle in transaction",
            Self::IdleInFailedTransaction => "idle in transaction (aborted)",
        }
    }
}

/// What one session does at the moment, as the messages to and from its client show it.
#[derive(Default)]
pub struct Activity {
    doing: AtomicU8,
    tally: OnceLock<Arc<Tally>>,
}

impl Activity {
    /// The session does that now.
    pub fn set(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
    }

    /// What the session does.
    #[must_use]
    pub fn doing(&self) -> Doing {
        let doing = usize::from(self.doing.load(Ordering::Relaxed));
        Doing::ALL.get(doing).copied().unwrap_or(Doing::Starting)
    }

    /// The session's errors are counted in `tally`.
    pub(super) fn count_errors_in(self: &Arc<Self>, tally: &Arc<Tally>) {
        // A session is one of one cluster.
        let _ = self.tally.set(tally.clone());
    }

    /// The session's client was sent an error with that SQLSTATE.
    pub fn error(&self, sqlstate: &[u8]) {
        if let Some(tally) = self.tally.get() {
            tally.errors.count(sqlstate);
        }
    }
}
