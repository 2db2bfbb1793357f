//! A process whose memory others of its cluster begin with: a session that has made the caches of system catalogs, and
//! has left shared memory.
//!
//! Most of what a short session costs is its caches: a new process has none, and reads its database's catalogs before it
//! can plan a statement. A *model* is a session of the host's own that has done so. It is stopped where it would exit.
//! Then it does what `proc_exit` would do with shared memory, and what a session's start expects as a postmaster has it is
//! put back. A session that begins with it takes its place in shared memory, authenticates and gets its settings as any
//! other, and leaves out what would make caches.
//!
//! What else is in a model's memory either means nothing outside of a session, or is set when one starts: `BaseInit`,
//! `InitPostgres` and `PostgresMain` do not ask whether they have run before, as their assertions are compiled out. Two
//! things stay as the model has them. `MyDatabaseId` is set before a session has found its database, because messages
//! about changes in that database would be ignored without it; so a refused login counts in `pg_stat_database`. And
//! callbacks that are registered once more (`initialize_acl`, `InitializeSearchPath`) are called twice.
//!
//! Changes of catalogs are announced in a queue in shared memory. A session begins with a model only if the queue has not
//! moved since; otherwise it is given up before it has said anything to its client, and begun again without
//! (`guest/caches.rs`).

use std::sync::{Arc, OnceLock};

use super::{
    Backend, Fork, Login,
    fork::{Parent, capture},
};
use crate::{
    guest::{Caches, CatalogState, ClientStream, StoppedAtExit, checkpoint, memory},
    image::TouchedPages,
    instrument::{HAS_CACHES, IS_MODEL},
    postgres::port_struct,
};

/// How much larger a model may be than a postmaster, in bytes: what was freed in it is part of its image.
const ROOM: u64 = 64 << 20;

/// What the sessions of one copy of a snapshot begin with, as soon as there is a model.
pub(super) struct Inheritance {
    model: Arc<OnceLock<Arc<Model>>>,
    caches: OnceLock<Arc<Caches>>,
}

/// The private memory of a process that has made its caches.
pub(crate) struct Model {
    pub(super) parent: Parent,
    /// The name of its database.
    database: Vec<u8>,
    made: CatalogState,
    /// The pages that a short session writes.
    first_pages: OnceLock<TouchedPages>,
}

impl Model {
    pub(super) fn first_pages(&self) -> Option<&TouchedPages> {
        self.first_pages.get()
    }

    /// Sessions get these pages at once, because they will write them.
    pub(crate) fn set_first_pages(&self, pages: TouchedPages) {
        // Who makes a model does so once.
        let _ = self.first_pages.set(pages);
    }
}

impl Inheritance {
    /// For a new copy of the snapshot whose model is that one, or will be.
    pub(super) fn new(model: Arc<OnceLock<Arc<Model>>>) -> Self {
        Self { model, caches: OnceLock::new() }
    }

    /// What a session in `database` begins with; none if there is no model yet, or catalogs have changed.
    pub(super) fn for_database(&self, database: &[u8]) -> Option<(&Model, Arc<Caches>)> {
        let model = self.model.get().filter(|model| model.database == database)?;
        let caches = self.caches.get_or_init(|| Arc::new(Caches::new(model.made)));
        (!caches.are_outdated()).then(|| (&**model, caches.clone()))
    }
}

impl Backend {
    /// The state of the catalogs as this process sees it.
    ///
    /// # Errors
    /// When there is no shared memory.
    pub(crate) fn catalogs(&self) -> anyhow::Result<CatalogState> {
        Ok(CatalogState::of(&self.store)?)
    }

    /// Serves `client`, a process of `fork`, to its end, and makes a model of the process. It has its turn.
    ///
    /// Returns none if the session was not let in or has failed, has loaded a library, has left files open, has become
    /// large, or has written WAL: it would remember pages of WAL that are in no other copy. None also if catalogs are no
    /// longer as in `untouched`.
    ///
    /// # Errors
    /// When the guest traps, or the system has no memory.
    pub(crate) fn become_model(
        &mut self,
        fork: &Fork,
        untouched: CatalogState,
        client: ClientStream,
        login: Login<'_>,
    ) -> anyhow::Result<Option<Model>> {
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        let mut kept = Vec::new();
        for (address, length) in [
            (self.facts().address("CurrentMemoryContext")?, 4),
            (self.facts().address("error_context_stack")?, 4),
            (self.facts().address("PG_exception_stack")?, 4),
            (self.facts().address("InterruptHoldoffCount")?, 4),
            (self.facts().encoding_is_settled, 1),
            (self.facts().timer_runs, 4),
            (port, port_struct::USED),
        ] {
            kept.push((address, memory::read_bytes(self.memory()?, address, length)?.to_vec()));
        }
        let pointer = self.hot.stack_pointer;
        let stack = pointer.get(&mut self.store);
        let written = checkpoint::written(self.store.data(), self.memory()?)?;
        self.set_global(IS_MODEL, true)?;
        self.set_client(client);
        let stopped = self.run_session_for(login);
        self.set_client(ClientStream::default());
        let status = match stopped {
            // Its startup packet was refused.
            Ok(()) => return Ok(None),
            Err(error) => error.downcast::<StoppedAtExit>()?.0,
        };
        self.set_global(IS_MODEL, false)?;
        pointer.set(&mut self.store, stack)?;
        let written = checkpoint::written(self.store.data(), self.memory()?)?.wrapping_sub(written);
        self.leave_shared_memory(status)?;
        // `PostgresMain` makes another key.
        self.write_u32(self.facts().my_cancel_key_length, 0)?;
        let made = CatalogState::of(&self.store)?;
        for (address, bytes) in kept {
            self.write(address, &bytes)?;
        }
        let guest = self.guest();
        let (opened, libraries) = (guest.files.state().open_count(), guest.libraries.loaded().len());
        if status != 0
            || written != 0
            || made.next_message != untouched.next_message
            || opened != fork.parent.process.open_count()
            || libraries != fork.parent.libraries.len()
        {
            tracing::debug!(
                "no model of sessions: status {status}, {written} bytes of WAL, {opened:?} files and mappings"
            );
            return Ok(None);
        }
        self.set_global(HAS_CACHES, true)?;
        let parent = capture(&mut self.store, &fork.parent.image, &fork.shared)?;
        let is_small = parent.image.len() <= fork.parent.image.len() + ROOM;
        let database = login.database.to_vec();
        Ok(is_small.then(|| Model { parent, database, made, first_pages: OnceLock::new() }))
    }
}
