//! A process whose memory others of its cluster begin with: a session that has made the caches of system catalogs, and
//! has left shared memory.
//!
//! Most of what a short session costs is its caches: a new process has none, and reads its database's catalogs before it
//! can plan a statement. A *model* is a session of the host's own that has done so. It is stopped where it would exit.
//! Then it does what `proc_exit` would do with shared memory, and what else it has is put back: the state is that of a
//! postmaster before its fork, but for what only caches have. A session that begins with it takes its place in shared
//! memory, authenticates and gets its settings as any other, and leaves out what would make caches.
//!
//! Changes of catalogs are announced in a queue in shared memory. If its numbers have moved since the model was made, the
//! session is in the position of one that has overslept, which drops all its caches (`guest/caches.rs`).

use std::sync::{Arc, OnceLock};

use anyhow::ensure;

use super::{
    Backend, Fork, Login,
    fork::{Parent, capture},
};
use crate::{
    guest::{Caches, ClientStream, StoppedAtExit, memory, next_message},
    image::TouchedPages,
    instrument::{HAS_CACHES, IS_MODEL},
    postgres::port_struct,
};

/// What the sessions of one copy of a snapshot begin with, as soon as there is a model.
pub(super) struct Inheritance {
    model: Arc<OnceLock<Model>>,
    caches: OnceLock<Arc<Caches>>,
}

/// The private memory of a process that has made its caches.
pub(crate) struct Model {
    pub(super) parent: Parent,
    /// The name of its database.
    database: Vec<u8>,
    next_message: u32,
    /// The pages that a short session writes.
    pub(super) first_pages: OnceLock<TouchedPages>,
}

impl Inheritance {
    /// For a new copy of the snapshot whose model is that one, or will be.
    pub(super) fn new(model: Arc<OnceLock<Model>>) -> Self {
        Self { model, caches: OnceLock::new() }
    }

    /// What a session in `database` begins with; none if there is no model yet, or catalogs have changed.
    pub(super) fn for_database(&self, database: &[u8]) -> Option<(&Model, Arc<Caches>)> {
        let model = self.model.get().filter(|model| model.database == database)?;
        let caches = self.caches.get_or_init(|| Arc::new(Caches::new(model.next_message)));
        (!caches.are_outdated()).then(|| (model, caches.clone()))
    }
}

impl Backend {
    /// Serves `client`, a process of `fork`, to its end, and makes a model of the process. It has its turn.
    ///
    /// Returns none if the session was not let in, has changed a catalog, or has left files open.
    ///
    /// # Errors
    /// When the guest traps, or the system has no memory.
    pub(crate) fn become_model(
        &mut self,
        fork: &Fork,
        client: ClientStream,
        login: Login<'_>,
    ) -> anyhow::Result<Option<Model>> {
        let mut kept = Vec::new();
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        for (address, length) in [
            (self.facts().address("CurrentMemoryContext")?, 4),
            (self.facts().address("PG_exception_stack")?, 4),
            (self.facts().address("error_context_stack")?, 4),
            (port, port_struct::USED),
        ] {
            kept.push((address, memory::read_bytes(self.memory()?, address, length)?.to_vec()));
        }
        let pointer = self.hot.stack_pointer;
        let stack = pointer.get(&mut self.store);
        let (before, _) = next_message(&self.store)?;
        self.set_global(IS_MODEL, true)?;
        self.set_client(client);
        let stopped = self.run_session_for(login);
        self.set_client(ClientStream::default());
        let status = match stopped {
            Ok(()) => return self.leave(None),
            Err(error) => error.downcast::<StoppedAtExit>()?.0,
        };
        self.set_global(IS_MODEL, false)?;
        pointer.set(&mut self.store, stack)?;
        if status != 0 {
            return self.leave(Some(status));
        }
        self.call::<(), ()>("smgrreleaseall", ())?;
        self.call::<i32, ()>("shmem_exit", 0)?;
        for (address, bytes) in kept {
            self.write(address, &bytes)?;
        }
        let (next_message, _) = next_message(&self.store)?;
        let opened = self.guest().files.state().open_count();
        if next_message != before || opened != fork.parent.process.open_count() {
            tracing::debug!("no model: {} messages, {opened:?} files and mappings", next_message.wrapping_sub(before));
            return Ok(None);
        }
        self.set_global(HAS_CACHES, true)?;
        let parent = capture(&mut self.store, &fork.parent.image, &fork.shared)?;
        Ok(Some(Model { parent, database: login.database.to_vec(), next_message, first_pages: OnceLock::new() }))
    }

    /// Exits as a session does that is no model.
    fn leave(&mut self, status: Option<i32>) -> anyhow::Result<Option<Model>> {
        if let Some(status) = status {
            let exited = self.call::<i32, ()>("proc_exit", status);
            ensure!(exited.is_err(), "proc_exit has returned");
        }
        Ok(None)
    }
}
