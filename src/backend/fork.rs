//! A further session of a running cluster: what `fork()` is for a postmaster.
//!
//! The first backend of a cluster is stopped for a moment where it is about to take its own place in shared memory (`InitProcess`). Its memory is then what a
//! postmaster's is when it forks: initialised, attached to shared memory, in no database. What is private of it becomes an image that every further session begins with;
//! what is shared is mapped into all of them. A further session then does what a postmaster's child does (`PostgreSQL`, `BackendMain` in
//! `src/backend/tcop/backend_startup.c`): reads the startup packet, takes its place, and runs `PostgresMain`, which checks role and database, and
//! ends in `proc_exit`.

use std::sync::Arc;

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use wasmtime::{Caller, Val};

use super::{Backend, Registers, session::Ended};
use crate::{
    cluster::{SharedMemory, find_main_segment},
    fs::{Files, ProcessState, Tree},
    guest::{ClientStream, Guest, Library, Setup, client::Endpoints},
    image::Image,
    instrument::FURTHER_SESSION,
    program::Program,
    template::LineConsole,
};

/// Offset of `owner_pid` in `struct Latch` (`src/include/storage/latch.h`).
const LATCH_OWNER: u32 = 12;

/// Bytes of a name that `PostgreSQL` looks at (`NAMEDATALEN` - 1).
const NAME_LENGTH: usize = 63;

/// What a further session is to be.
pub(crate) struct Child<'a> {
    database: &'a [u8],
    user: &'a [u8],
    endpoints: Endpoints,
    is_autovacuum_worker: bool,
}

impl<'a> Child<'a> {
    /// A client's session.
    pub(crate) fn client(database: &'a [u8], user: &'a [u8], endpoints: Endpoints) -> Self {
        Self { database, user, endpoints, is_autovacuum_worker: false }
    }

    /// A session of the bootstrap superuser that has one of the places reserved for autovacuum workers, and is cancelled when others wait for it.
    pub(crate) fn autovacuum_worker(database: &'a [u8], user: &'a [u8]) -> Self {
        Self { database, user, endpoints: Endpoints::default(), is_autovacuum_worker: true }
    }
}

/// `B_AUTOVAC_WORKER` of `BackendType` (`src/include/miscadmin.h`), where `B_CHECKPOINTER` is 11, which the rewriter reads out of the file.
const AUTOVACUUM_WORKER: u32 = 4;
const CHECKPOINTER: u32 = 11;

/// What further sessions of one cluster begin with.
pub(crate) struct Fork {
    image: Image,
    registers: Registers,
    process: ProcessState,
    shared: SharedMemory,
    tree: Arc<Mutex<Tree>>,
    /// Those of `shared_preload_libraries`.
    libraries: Vec<Arc<Library>>,
}

impl Fork {
    /// Captures the first backend, which is in its `InitProcess`, and moves what is shared of its memory.
    ///
    /// # Errors
    /// When its shared memory is not found, or the system has no memory.
    pub(crate) fn capture(caller: &mut Caller<'_, Guest>) -> anyhow::Result<Self> {
        let registers = Registers::capture(caller)?;
        let memory = caller.data().memory()?;
        let files = &caller.data().files;
        let (process, tree) = (files.state(), files.tree().clone());
        let mut ranges = vec![find_main_segment(memory.data(&*caller))?];
        ranges.extend(caller.data().files.shared_mappings());
        let shared = SharedMemory::share(caller, memory, &ranges)?;
        let image = Image::in_memory(memory.data(&*caller), &shared.ranges())?;
        let libraries = caller.data().libraries.loaded();
        Ok(Self { image, registers, process, shared, tree, libraries })
    }

    /// A further session, which has not run yet; `setup` makes the rest of it from its files.
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(crate) fn start(
        &self,
        program: &Program,
        console: LineConsole,
        setup: impl FnOnce(Files) -> Setup,
    ) -> anyhow::Result<Backend> {
        let files = Files::resume(self.tree.clone(), &self.process, Box::new(console));
        let mut backend = Backend::resume(program, setup(files), &self.image, &self.registers, &self.libraries)?;
        let memory = backend.exports()?.memory;
        self.shared.map_over(&mut backend.store, memory)?;
        Ok(backend)
    }
}

impl Backend {
    /// Serves `client`, whose startup packet was `packet`, as a further session of its cluster, until the session ends. It has the turn.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn serve_forked(&mut self, client: ClientStream, child: &Child<'_>) -> anyhow::Result<Ended> {
        self.set_client(client);
        let ended = self.run_forked(child);
        self.set_client(ClientStream::default());
        match ended {
            Ok(()) => Ok(Ended::Client),
            Err(error) => Ended::by_exit(error, 0),
        }
    }

    fn run_forked(&mut self, child: &Child<'_>) -> anyhow::Result<()> {
        self.become_child()?;
        // From here on the client is told what goes wrong.
        self.call::<(), ()>("pgl_startPGlite", ())?;
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        self.set_endpoints(port, child.endpoints)?;
        let status: i32 = self.call("ProcessStartupPacket", (port, 1, 1))?;
        if status != 0 {
            return Ok(());
        }
        if child.is_autovacuum_worker {
            let types = self.facts().checkpointer;
            ensure!(types.backend_type == CHECKPOINTER, "the backend types of this version of PGlite are not known");
            self.write_u32(types.my_backend_type, AUTOVACUUM_WORKER)?;
        }
        // Under a postmaster it would look for the slot that the postmaster keeps for each child.
        let is_under_postmaster = self.facts().address("IsUnderPostmaster")?;
        self.write(is_under_postmaster, &[0])?;
        self.call::<(), ()>("InitProcess", ())?;
        self.write(is_under_postmaster, &[1])?;
        let mut name = |name: &[u8]| self.push_string(&name[..name.len().min(NAME_LENGTH)]);
        let (database, user) = (name(child.database)?, name(child.user)?);
        self.call::<(u32, u32), ()>("PostgresMain", (database, user))
    }

    /// Makes this backend, with that process id, the one that makes its cluster's checkpoints: requests to sync and remove files then are sent to it.
    ///
    /// # Errors
    /// When it has no shared memory.
    pub(crate) fn become_checkpointer(&mut self, process_id: i32) -> anyhow::Result<()> {
        let checkpointer = self.facts().checkpointer;
        self.write_u32(checkpointer.my_backend_type, checkpointer.backend_type)?;
        let shared = self.read_u32(checkpointer.shared)?;
        self.write_u32(shared, process_id.cast_unsigned())
    }

    /// Whether the queue of files to be synced and removed at the next checkpoint is so full that sessions will soon have to wait for one.
    ///
    /// # Errors
    /// When it has no shared memory.
    pub(crate) fn is_sync_queue_filling(&self) -> anyhow::Result<bool> {
        let checkpointer = self.facts().checkpointer;
        let shared = self.read_u32(checkpointer.shared)?;
        let requests = self.read_u32(shared.wrapping_add(checkpointer.requests))?;
        Ok(requests > self.read_u32(shared.wrapping_add(checkpointer.max_requests))? / 2)
    }

    /// What the child of a fork has to change of what it was given.
    fn become_child(&mut self) -> anyhow::Result<()> {
        // Its end of the session is proc_exit, not a return to the host.
        self.call::<i32, i32>("pgl_setPGliteActive", 0)?;
        let instance = self.exports()?.instance;
        let further =
            instance.get_global(&mut self.store, FURTHER_SESSION).context("the module was not instrumented")?;
        further.set(&mut self.store, Val::I32(1))?;
        let guest = self.store.data();
        let process_id = guest.seat.as_ref().context("a further session has no seat")?.process_id();
        self.write_u32(self.facts().address("MyProcPid")?, process_id.cast_unsigned())?;
        let latch = self.read_u32(self.facts().address("MyLatch")?)?;
        self.write_u32(latch.wrapping_add(LATCH_OWNER), process_id.cast_unsigned())?;
        // on_exit_reset: what the first backend does at its end is not this one's to do.
        for callbacks in self.facts().exit_callbacks {
            self.write_u32(callbacks, 0)?;
        }
        // PostgresMain sets it where PGlite no longer comes past.
        self.write(self.facts().send_ready_for_query, &[1])?;
        self.reseed()?;
        self.set_start_time()?;
        Ok(())
    }
}
