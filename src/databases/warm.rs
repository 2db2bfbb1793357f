//! Copies of clusters that are made in advance, so that a new cluster does not wait for the copy of shared memory.

use std::{
    sync::{Arc, Weak},
    thread,
};

use parking_lot::Mutex;

use crate::backend::{ClusterSnapshot, Fork};

/// Copies that are ready to be taken. A clone is the same pool.
#[derive(Clone)]
pub(super) struct Warm {
    /// How many to keep of each snapshot in use.
    wanted: usize,
    ready: Arc<Mutex<Vec<Ready>>>,
}

/// The copies of one snapshot.
struct Ready {
    snapshot: Weak<ClusterSnapshot>,
    copies: Vec<Fork>,
}

impl Warm {
    /// A pool that keeps `wanted` copies of each snapshot that has been used.
    pub(super) fn new(wanted: usize) -> Self {
        Self { wanted, ready: Arc::default() }
    }

    /// A copy of `snapshot`: one that is ready, or a new one.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(super) fn take(&self, snapshot: &Arc<ClusterSnapshot>) -> anyhow::Result<Fork> {
        let ready =
            self.ready.lock().iter_mut().find(|ready| ready.is_of(snapshot)).and_then(|ready| ready.copies.pop());
        if self.wanted > 0 {
            let (pool, snapshot) = (self.clone(), snapshot.clone());
            let refill = move || pool.refill(&snapshot);
            if let Err(error) = thread::Builder::new().name("warm-clusters".to_owned()).spawn(refill) {
                tracing::warn!("no clusters can be kept ready: {error}");
            }
        }
        ready.map_or_else(|| snapshot.start(), Ok)
    }

    /// How many copies are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.lock().iter().map(|ready| ready.copies.len()).sum()
    }

    /// Makes copies of `snapshot` until there are as many as are wanted; drops those of snapshots that are no longer
    /// in use.
    fn refill(&self, snapshot: &Arc<ClusterSnapshot>) {
        while self.lacks(snapshot) {
            match snapshot.start() {
                Ok(copy) => self.put(snapshot, copy),
                Err(error) => return tracing::warn!("no clusters can be kept ready: {error:#}"),
            }
        }
    }

    fn lacks(&self, snapshot: &Arc<ClusterSnapshot>) -> bool {
        let mut ready = self.ready.lock();
        let unused: Vec<Ready> = ready.extract_if(.., |ready| ready.snapshot.strong_count() == 0).collect();
        let lacks = ready.iter().find(|ready| ready.is_of(snapshot)).is_none_or(|it| it.copies.len() < self.wanted);
        drop(ready);
        // Freeing memory takes a while.
        drop(unused);
        lacks
    }

    fn put(&self, snapshot: &Arc<ClusterSnapshot>, copy: Fork) {
        let mut all = self.ready.lock();
        match all.iter_mut().find(|ready| ready.is_of(snapshot)) {
            Some(ready) => ready.copies.push(copy),
            None => all.push(Ready { snapshot: Arc::downgrade(snapshot), copies: vec![copy] }),
        }
    }
}

impl Ready {
    fn is_of(&self, snapshot: &Arc<ClusterSnapshot>) -> bool {
        std::ptr::eq(self.snapshot.as_ptr(), Arc::as_ptr(snapshot))
    }
}
