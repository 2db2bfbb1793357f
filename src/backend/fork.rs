//! Starts the processes of a running cluster, as a postmaster does with `fork()`.
//!
//! The postmaster of a cluster is a backend that is stopped where it would take a place in shared memory
//! (`InitProcess`). Its memory is then what a postmaster's is when it forks: initialised, attached to shared memory,
//! in no database. Its private memory becomes an image that every further process begins with; its shared memory is
//! mapped into all of them. A client's session then does what a postmaster's child does (`PostgreSQL`, `BackendMain`
//! in `src/backend/tcop/backend_startup.c`): reads the startup packet, takes its place, and runs `PostgresMain`,
//! which checks role and database, and ends in `proc_exit`. An auxiliary process runs its own main function.

use std::{
    iter,
    ops::Range,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use wasmtime::{AsContext, AsContextMut, Caller, Memory, Ref};

use super::{
    Backend, Registers,
    client_session::{BOOTSTRAP_USER, SessionExit},
    model::{Inheritance, Model},
};
use crate::{
    backend::{footprint::PageMap, program::Program},
    client::{Endpoints, NoClient},
    cluster::{KeepsLocks, Region, SharedMemory, main_segment},
    fs::{Console, Files, ProcessState, Silent, Tree},
    guest::{ClientStream, Guest, Library, Outdated, Setup, call, check_messages},
    image::Image,
    instrument::HAS_CHECKPOINTER,
    postgres::{catalog, checkpoint, child, destination, latch, process::EXIT_FATAL},
};

/// The flags of a checkpoint that is made at once, unless nothing has been written since the last one.
const CHECKPOINT_NOW: i32 = (checkpoint::IMMEDIATE | checkpoint::WAIT).cast_signed();

/// The database and the role of a session, and its client's address.
#[derive(Clone, Copy)]
pub(crate) struct Login<'a> {
    pub(crate) database: &'a [u8],
    pub(crate) user: &'a [u8],
    /// The addresses of the client's connection.
    pub(crate) endpoints: Endpoints,
}

impl<'a> Login<'a> {
    /// That of the program itself, which has no client.
    pub(crate) fn of_program(database: &'a str) -> Self {
        Self { database: database.as_bytes(), user: BOOTSTRAP_USER.as_bytes(), endpoints: Endpoints::default() }
    }
}

/// How the service of a client ended.
pub(crate) enum Served {
    Ended(SessionExit),
    /// Not begun: the caches of the process are outdated. The startup packet was read; the client has got nothing.
    Outdated(ClientStream),
}

/// The state with which every new process of one cluster starts.
pub(crate) struct Fork {
    pub(super) parent: Arc<Parent>,
    pub(super) shared: Arc<SharedMemory>,
    pub(super) tree: Arc<Mutex<Tree>>,
    /// What sessions begin with instead.
    pub(super) inheritance: Option<Inheritance>,
}

/// The private state of a postmaster, or of another process that processes begin with.
pub(super) struct Parent {
    pub(super) image: Image,
    registers: Registers,
    pub(super) process: ProcessState,
    /// The libraries of `shared_preload_libraries`.
    pub(super) libraries: Vec<Arc<Library>>,
}

impl Fork {
    /// Captures a postmaster that is in its `InitProcess`.
    ///
    /// # Errors
    /// When its shared memory is not found, or the system has no memory.
    pub(super) fn first(caller: &mut Caller<'_, Guest>, program: &Program) -> anyhow::Result<Self> {
        let memory = caller.data().memory()?;
        let anonymous = std::mem::take(&mut caller.data_mut().anonymous);
        let main = main_segment(memory.data(&*caller), anonymous)?;
        let mapped = mapped_regions(&caller.data().files);
        let quota = caller.data().files.tree().lock().quota().clone();
        Self::capture(caller, program.pristine(), Arc::new(SharedMemory::new(main, mapped, &quota)))
    }

    /// Captures the postmaster once more, after it has changed.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(crate) fn again(&self, postmaster: &mut Backend) -> anyhow::Result<Self> {
        Self::capture(&mut postmaster.store, &self.parent.image, self.shared.clone())
    }

    /// Captures the postmaster in `store`, whose memory was loaded from `loaded`.
    fn capture(
        store: &mut impl AsContextMut<Data = Guest>,
        loaded: &Image,
        shared: Arc<SharedMemory>,
    ) -> anyhow::Result<Self> {
        let parent = Arc::new(capture(store, loaded, &shared)?);
        let tree = store.as_context().data().files.tree().clone();
        Ok(Self { parent, shared, tree, inheritance: None })
    }

    /// Counts the shared memory that the processes have used so far.
    pub(crate) fn count_shared_memory(&self) {
        self.shared.count();
    }

    /// A new process for a session in `database`, as [`Self::start`].
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(crate) fn start_session(
        &self,
        database: &[u8],
        program: &Program,
        console: impl Console + 'static,
        setup: impl FnOnce(Files) -> Setup,
    ) -> anyhow::Result<Backend> {
        let inherited = self.inheritance.as_ref().and_then(|inheritance| inheritance.for_database(database));
        let Some((model, caches)) = inherited else { return self.start(program, console, setup) };
        let mut backend = self.start_from(&model.parent, program, console, setup)?;
        backend.guest().set_caches(caches);
        if let Some(pages) = model.first_pages() {
            // While others have the turn.
            backend.copy_written(pages)?;
        }
        Ok(backend)
    }

    /// A new process, which has not run yet; `setup` makes its other parts from its files.
    ///
    /// This needs no turn, though another process may be writing shared memory meanwhile: the shared pages are mapped
    /// last, and nothing reads or writes the memory from then on until the process has its first turn.
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(crate) fn start(
        &self,
        program: &Program,
        console: impl Console + 'static,
        setup: impl FnOnce(Files) -> Setup,
    ) -> anyhow::Result<Backend> {
        self.start_from(&self.parent, program, console, setup)
    }

    fn start_from(
        &self,
        parent: &Parent,
        program: &Program,
        console: impl Console + 'static,
        setup: impl FnOnce(Files) -> Setup,
    ) -> anyhow::Result<Backend> {
        let Parent { image, registers, process, libraries } = parent;
        let files = Files::resume(self.tree.clone(), process, Box::new(console));
        let mut backend = Backend::resume(program, setup(files), image, registers, libraries)?;
        let memory = backend.exports()?.memory;
        backend.shared = Some(self.shared.clone());
        self.shared.map_over(&mut backend.store, memory)?;
        Ok(backend)
    }

    /// The same, without a model for its sessions.
    #[must_use]
    pub(crate) fn without_model(&self) -> Self {
        Self { parent: self.parent.clone(), shared: self.shared.clone(), tree: self.tree.clone(), inheritance: None }
    }

    /// The same, with a model for its sessions that no other copy has yet.
    #[must_use]
    pub(crate) fn with_model(&self, model: Arc<Model>) -> Self {
        let inheritance = Some(Inheritance::new(Arc::new(OnceLock::from(model))));
        Self { inheritance, ..self.without_model() }
    }

    /// The postmaster's open files. What they refer to exists as long as they do, also without a name.
    pub(crate) fn files(&self) -> Files {
        Files::resume(self.tree.clone(), &self.parent.process, Box::new(Silent))
    }

    /// The cluster's files.
    pub(crate) fn tree(&self) -> &Arc<Mutex<Tree>> {
        &self.tree
    }
}

/// The private state of the process in `store`, whose memory was loaded from `loaded`.
///
/// # Errors
/// When the system has no memory.
pub(super) fn capture(
    store: &mut impl AsContextMut<Data = Guest>,
    loaded: &Image,
    shared: &SharedMemory,
) -> anyhow::Result<Parent> {
    let registers = Registers::capture(store)?;
    let guest = store.as_context().data();
    let memory = guest.memory()?;
    let (process, libraries) = (guest.files.state(), guest.libraries.loaded());
    let used = used_pages(store, memory, loaded);
    let image = Image::in_memory(memory.data(&*store), &used, &shared.ranges())?;
    Ok(Parent { image, registers, process, libraries })
}

/// The regions of shared memory that a process has mapped besides the main segment.
pub(super) fn mapped_regions(files: &Files) -> impl Iterator<Item = Region> + use<> {
    files.shared_mappings().into_iter().map(|(range, file, offset)| Region::new(&range, file, offset))
}

/// The pages of `memory` that need not be zero: those of the program that was loaded into it, and those that were used
/// since. All of them if the operating system does not tell.
fn used_pages(store: &impl AsContext, memory: Memory, loaded: &Image) -> Vec<Range<u64>> {
    let (start, size) = (memory.data_ptr(store).addr(), memory.data_size(store));
    let Ok(mut used) = PageMap::open().and_then(|pages| pages.used(start, size)) else {
        return iter::once(0..size as u64).collect();
    };
    used.extend_from_slice(loaded.extents());
    used.sort_unstable_by_key(|part| part.start);
    let mut end = 0;
    for part in &mut used {
        part.start = part.start.max(end);
        end = end.max(part.end);
    }
    used.retain(|part| part.start < part.end);
    used
}

impl Backend {
    /// Serves `client` as a session of its cluster until the session ends. It has the turn.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn serve_forked(&mut self, client: ClientStream, login: Login<'_>) -> anyhow::Result<Served> {
        if check_messages(&self.store).is_err_and(|error| error.is::<Outdated>()) {
            return Ok(Served::Outdated(client));
        }
        self.set_client(client);
        let ended = self.run_session_for(login);
        let client = self.set_client(ClientStream::default());
        match ended {
            // Nothing was sent to the client yet.
            Err(error) if error.is::<Outdated>() => {
                self.leave_shared_memory(EXIT_FATAL)?;
                Ok(Served::Outdated(client))
            }
            ended => self.session_exit(ended).map(Served::Ended),
        }
    }

    fn session_exit(&mut self, ended: anyhow::Result<()>) -> anyhow::Result<SessionExit> {
        match ended {
            Ok(()) => Ok(SessionExit::Client),
            Err(_) if self.guest().signals.was_ended() => self.exit_unheard(),
            Err(_) if self.guest().signals.keeps_locks() => Err(KeepsLocks.into()),
            Err(error) => SessionExit::by_exit(error, 0),
        }
    }

    /// Does what follows a fatal error in `PostgreSQL`, for a session that was ended at a safepoint: its transaction is
    /// rolled back, and its locks and its place in shared memory are free.
    fn exit_unheard(&mut self) -> anyhow::Result<SessionExit> {
        // It has heard now.
        drop(self.guest().signals.take());
        // An error of the roll-back is fatal, too. Its handlers would be in functions that are gone.
        self.write_u32(self.facts().address("PG_exception_stack")?, 0)?;
        let exited = self.call::<i32, ()>("proc_exit", EXIT_FATAL).err().context("proc_exit has returned")?;
        let status = call::exit_status(exited)?;
        ensure!(status == EXIT_FATAL, "a session that was ended exits with the status {status}");
        tracing::warn!("a session was ended that did not check for interrupts after it was told to end or cancelled");
        Ok(SessionExit::Unheard)
    }

    /// Does with shared memory what `proc_exit` does, for a process that was stopped, and closes the files of relations.
    pub(super) fn leave_shared_memory(&mut self, status: i32) -> anyhow::Result<()> {
        // Its handlers of errors would be in functions that are gone.
        self.write_u32(self.facts().address("PG_exception_stack")?, 0)?;
        self.write_u32(self.facts().address("InterruptHoldoffCount")?, 1)?;
        self.call::<(), ()>("smgrreleaseall", ())?;
        self.call::<i32, ()>("shmem_exit", status)
    }

    pub(super) fn run_session_for(&mut self, login: Login<'_>) -> anyhow::Result<()> {
        self.become_child(destination::REMOTE, true)?;
        self.write(self.facts().is_postmaster_environment, &[1])?;
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        self.set_endpoints(port, login.endpoints)?;
        let status: i32 = self.call("ProcessStartupPacket", (port, 1, 1))?;
        if status != 0 {
            return Ok(());
        }
        self.call::<(), ()>("InitProcess", ())?;
        let mut name = |name: &[u8]| self.push_string(&name[..name.len().min(catalog::NAME_LENGTH)]);
        let (database, user) = (name(login.database)?, name(login.user)?);
        self.call::<(u32, u32), ()>("PostgresMain", (database, user))
    }

    /// Runs the main function of the postmaster's children of that kind (`child_process_kinds` in
    /// `src/backend/postmaster/launch_backend.c`) until it exits, and returns the exit status. It has the turn.
    ///
    /// # Errors
    /// When there is no such kind, or the guest traps.
    pub(crate) fn run_auxiliary(&mut self, kind: &str) -> anyhow::Result<i32> {
        let main = self.facts().child(kind)?.main;
        self.run_alone(kind != child::CHECKPOINTER, |backend| {
            let table = backend.exports()?.table;
            let Some(Ref::Func(Some(main))) = table.get(&mut backend.store, main.into()) else {
                bail!("there is no function at index {main} of the table");
            };
            let main = main.typed::<(u32, u32), ()>(&backend.store)?;
            backend.store.data_mut().native_stack.begin();
            // It has no start-up data.
            Ok(main.call(&mut backend.store, (0, 0))?)
        })
    }

    /// Makes the cluster's checkpointer write a checkpoint if there is something to write, and exits; returns the exit
    /// status. The process has its turn.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn run_checkpoint(&mut self) -> anyhow::Result<i32> {
        self.run_alone(true, |backend| {
            backend.call::<(), ()>("InitProcess", ())?;
            backend.call::<i32, i32>("CreateCheckPoint", CHECKPOINT_NOW)?;
            backend.call::<i32, ()>("proc_exit", 0)
        })
    }

    /// Runs `main` as a child that has no client, until it exits; returns the exit status.
    fn run_alone(
        &mut self,
        has_checkpointer: bool,
        main: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<i32> {
        self.set_client(ClientStream::new(Box::new(NoClient::default()), &[]));
        let ran = self.become_child(destination::NONE, has_checkpointer).and_then(|()| {
            let port = self.facts().address("MyProcPort")?;
            self.write_u32(port, 0)?;
            main(self)
        });
        self.set_client(ClientStream::default());
        match ran {
            Ok(()) => bail!("the main function of a process has returned"),
            Err(error) => call::exit_status(error),
        }
    }

    /// Changes the state inherited from the postmaster into that of a child process (`InitPostmasterChild` in
    /// `src/backend/utils/init/miscinit.c`).
    fn become_child(&mut self, destination: u32, has_checkpointer: bool) -> anyhow::Result<()> {
        self.set_global(HAS_CHECKPOINTER, has_checkpointer)?;
        let guest = self.store.data();
        let seat = guest.seat.as_ref().context("a process of a cluster has no seat")?;
        let (process_id, cluster_start) = (seat.process_id(), seat.cluster_start());
        self.write_u32(self.facts().address("MyProcPid")?, process_id.cast_unsigned())?;
        self.write(self.facts().address("IsUnderPostmaster")?, &[1])?;
        self.write_u32(self.facts().where_to_send_output, destination)?;
        let latch = self.read_u32(self.facts().address("MyLatch")?)?;
        self.write_u32(latch.wrapping_add(latch::OWNER), process_id.cast_unsigned())?;
        // on_exit_reset: the postmaster's exit callbacks must not run in a child.
        for callbacks in self.facts().exit_callbacks {
            self.write_u32(callbacks, 0)?;
        }
        // PostgresMain sets it in a part that PGlite does not run.
        self.write(self.facts().send_ready_for_query, &[1])?;
        self.reseed()?;
        self.set_start_time()?;
        self.set_server_start(cluster_start)
    }
}
