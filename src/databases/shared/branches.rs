//! What branches of a cluster begin with: its files after a checkpoint, or a snapshot of a cluster that has started from
//! these.

use std::{
    sync::{Arc, Weak},
    thread,
};

use anyhow::Context;
use parking_lot::Mutex;

use super::{Postmaster, add_model, capture, reported, running::Running, tidy::without_slots};
use crate::{
    backend::ClusterSnapshot,
    cluster::{Priority, Seats},
    fs::{FrozenTree, Tree},
    protocol::error_response::ErrorResponse,
};

/// A snapshot that has been used again so often is worth a model of its sessions, which takes as long as a few of them.
const FEW: usize = 2;

const UNREADABLE: &str = "the cluster's files cannot be read";

/// A snapshot of a cluster as it was after that number of turns.
pub(super) struct Branched {
    seats: Arc<Seats>,
    turns: u64,
    /// The files that the branches began with; not kept for this.
    files: Weak<FrozenTree>,
    snapshot: Arc<ClusterSnapshot>,
    /// How often it has been used again.
    uses: usize,
}

impl Branched {
    /// Whether the cluster has run since then without a crash.
    fn is_of(&self, running: &Running) -> bool {
        Arc::ptr_eq(&self.seats, &running.seats)
    }
}

impl Postmaster {
    /// The files of the cluster as they are now, after a checkpoint. Another cluster that starts from them recovers:
    /// what is committed is in it, what is not yet committed is not, and its unlogged tables are empty.
    ///
    /// # Errors
    /// When the checkpoint fails, or the cluster crashes meanwhile.
    pub(crate) fn branch(&self) -> Result<Arc<FrozenTree>, ErrorResponse> {
        // Locked, as in `snapshot`.
        let last = self.branched.lock();
        let running = self.keeper.running()?;
        let files = self.frozen_files(&running);
        if last.is_none() {
            // No branch in memory has the same bytes.
            running.fork().tree().lock().forget_copy();
        }
        files.and_then(|(files, _)| without_slots(&files)).map_err(reported)
    }

    /// A snapshot of a cluster in memory that begins with what is committed in this one. If nothing has changed since
    /// the last one, it is the same.
    ///
    /// # Errors
    /// As [`Self::branch`], and when the new cluster does not start.
    pub(crate) fn snapshot(&self) -> Result<Arc<ClusterSnapshot>, ErrorResponse> {
        // Locked, so that branches that are made at the same time share one, and one thread copies stored files.
        let mut last = self.branched.lock();
        let running = self.keeper.running()?;
        if let Some(branched) = last.as_mut().filter(|last| last.is_of(&running) && last.turns == running.seats.turns())
        {
            return Ok(self.again(branched));
        }
        let (frozen, turns) = self.frozen_files(&running).map_err(reported)?;
        // A tree that has not changed since it was frozen is the same one when it is frozen again.
        let files = Arc::downgrade(&frozen);
        if let Some(branched) = last.as_mut().filter(|last| last.is_of(&running) && last.files.ptr_eq(&files)) {
            branched.turns = turns;
            return Ok(self.again(branched));
        }
        let made = self.capture(&frozen);
        if made.is_err() && last.is_none() {
            // No branch has its bytes.
            running.fork().tree().lock().forget_copy();
        }
        let snapshot = made?;
        *last = Some(Branched { seats: running.seats.clone(), turns, files, snapshot: snapshot.clone(), uses: 0 });
        Ok(snapshot)
    }

    /// A snapshot that has been used before. If it is used often, a model of its sessions is made meanwhile.
    fn again(&self, branched: &mut Branched) -> Arc<ClusterSnapshot> {
        let snapshot = &branched.snapshot;
        branched.uses += 1;
        if branched.uses == FEW {
            let (program, settings, log) =
                (self.templates.program().clone(), self.settings.of_branch(), self.log.clone());
            let (of, database) = (snapshot.clone(), self.last_database.lock().clone());
            let work = move || add_model(&program, &of, settings, &database, log);
            if let Err(error) = thread::Builder::new().name("model".to_owned()).spawn(work) {
                tracing::warn!("sessions of copies make their caches themselves: {error}");
            }
        }
        snapshot.clone()
    }

    /// A snapshot of a cluster that starts from those files.
    fn capture(&self, files: &Arc<FrozenTree>) -> Result<Arc<ClusterSnapshot>, ErrorResponse> {
        let recovered = self.templates.recovered(&without_slots(files).map_err(reported)?)?;
        let (settings, database) = (self.settings.of_branch(), self.last_database.lock().clone());
        Ok(capture(self.templates.program(), recovered, settings, &database, self.log.clone())?)
    }

    /// The cluster's files after a checkpoint, and the number of turns until then.
    ///
    /// # Errors
    /// When the checkpoint fails, the files cannot be read, or the cluster crashes meanwhile.
    fn frozen_files(&self, running: &Arc<Running>) -> anyhow::Result<(Arc<FrozenTree>, u64)> {
        let tree = running.fork().tree().clone();
        let copy = || Tree::copy_stored(&tree).context(UNREADABLE);
        // Sessions go on meanwhile. The second time it is what the checkpoint has written.
        let copied = copy().and_then(|()| self.checkpoint(running)).and_then(|()| copy());
        copied.and_then(|()| Self::frozen_now(running, &tree)).inspect_err(|_| tree.lock().forget_copy())
    }

    fn frozen_now(running: &Running, tree: &Mutex<Tree>) -> anyhow::Result<(Arc<FrozenTree>, u64)> {
        // With the turn, because no session may write them meanwhile.
        let mut seat = running.seats.join(Priority::Background);
        seat.take_turn()?;
        let mut tree = tree.lock();
        let frozen = if tree.has_storage() { tree.freeze_stored() } else { Ok(tree.freeze()) };
        let turns = running.seats.turns();
        drop(tree);
        seat.end_turn();
        Ok((frozen.context(UNREADABLE)?, turns))
    }
}
