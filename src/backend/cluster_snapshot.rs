//! A cluster captured while its postmaster is its only process, and clusters that start from it: without a boot and
//! without recovery.
//!
//! Captured are the pre-fork image, which all copies map, the contents of shared memory, which each copy gets anew
//! because its processes write it, and the files, of which each copy has an overlay.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::{
    Fork,
    fork::{Parent, mapped_regions},
    model::{Inheritance, Model},
};
use crate::{
    cluster::{MainSegment, SharedMemory},
    fs::{Files, FrozenTree, SharedObjects, Silent, Tree},
};

/// A captured cluster.
pub(crate) struct ClusterSnapshot {
    parent: Arc<Parent>,
    /// What sessions of its copies begin with, as soon as there is one.
    model: Arc<OnceLock<Arc<Model>>>,
    main: Arc<MainSegment>,
    /// The memory objects of `/dev/shm`.
    objects: SharedObjects,
    files: Arc<FrozenTree>,
}

impl ClusterSnapshot {
    /// Captures the cluster of `fork`, of which no process runs.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(crate) fn capture(fork: &Fork) -> anyhow::Result<Self> {
        let mut tree = fork.tree.lock();
        let objects = tree.copy_shared_objects()?;
        Ok(Self {
            parent: fork.parent.clone(),
            model: Arc::default(),
            main: Arc::new(fork.shared.main_segment()?),
            objects,
            files: tree.freeze(),
        })
    }

    /// A cluster that goes on from here.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(crate) fn start(&self) -> anyhow::Result<Fork> {
        let mut tree = Tree::from_frozen(self.files.clone());
        tree.restore_shared_objects(&self.objects)?;
        let quota = tree.quota().clone();
        let tree = Arc::new(Mutex::new(tree));
        let files = Files::resume(tree.clone(), &self.parent.process, Box::new(Silent));
        let shared = Arc::new(SharedMemory::with_main(&self.main, mapped_regions(&files), &quota)?);
        let inheritance = Some(Inheritance::new(self.model.clone()));
        Ok(Fork { parent: self.parent.clone(), shared, tree, inheritance })
    }

    /// Sessions of its copies, also of those that were made before, begin with `model`, which was made in a copy.
    pub(crate) fn set_model(&self, model: Arc<Model>) {
        // Who has made the snapshot, or keeps it, makes one.
        let _ = self.model.set(model);
    }
}
