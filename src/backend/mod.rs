//! One `PostgreSQL` backend: a wasm instance from its start to its end.
//!
//! * `mod`: making one, fresh or as the copy of another, and calling it
//! * `authentication`: the rules by which clients authenticate
//! * `boot`: starting `PostgreSQL` in it
//! * `sql`: having it run SQL of the host's own
//! * `copies`: being replaced, and making copies
//! * `admission`: which sessions are let in, and what they begin with
//! * `client_session`: one client's session in a backend of its own
//! * `housekeeping`: the checkpoints of a backend of its own
//! * `postmaster`: the parent of the processes of a running cluster
//! * `fork`: those processes
//! * `model`: a process whose caches others begin with
//! * `cluster_snapshot`: a cluster captured before it has any, and its copies
//! * `identity`: what no two backends may share
//! * `endpoints`: where a backend's client is
//! * `registers`: its state outside memory and files

mod admission;
mod authentication;
mod boot;
mod client_session;
mod cluster_snapshot;
mod copies;
mod endpoints;
pub(crate) mod footprint;
mod fork;
mod housekeeping;
mod identity;
mod model;
mod postmaster;
pub(crate) mod program;
mod registers;
mod sql;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Context;
use wasmtime::{Global, Ref, Store, TypedFunc, Val, WasmParams, WasmResults, unix::StoreExt};

use crate::{
    backend::program::Program,
    cluster::{Crashed, Holds, Preemption, SafepointPage, Seat, SharedMemory, Signals},
    fs::Files,
    guest::{
        BackendCommands, CALLBACKS, ClientStream, Exports, Guest, HOLDS, Library, Setup, call, checkpoint, environment,
        memory, restore_libraries,
    },
    image::Image,
    instrument::Facts,
};

pub(crate) use admission::Admission;
pub(crate) use authentication::{HBA_FILE, UNLOGGED};
pub(crate) use boot::{DATA_DIRECTORY, EXECUTABLE, FIXED_PARAMETERS, IN_MEMORY, parameter};
pub(crate) use client_session::{BOOTSTRAP_USER, OnAdmitted, Session, SessionExit};
pub(crate) use cluster_snapshot::ClusterSnapshot;
pub(crate) use fork::{Fork, Login, Served};
pub(crate) use identity::timestamp;
pub(crate) use model::Model;
pub(crate) use registers::Registers;

/// A running backend, on whatever thread has it.
pub(crate) struct Backend {
    store: Store<Guest>,
    hot: Hot,
    /// What is mapped into its memory, which must be gone before another cluster may get it: fields are dropped in
    /// their order.
    shared: Option<Arc<SharedMemory>>,
}

/// Functions and addresses that are used for every message.
struct Hot {
    pending_input: TypedFunc<(), i32>,
    main_loop_once: TypedFunc<(), ()>,
    reset_context: TypedFunc<u32, ()>,
    stack_pointer: Global,
    /// Address of `ConfigReloadPending`.
    config_reload_pending: u32,
}

impl Backend {
    /// A backend as a program just loaded.
    ///
    /// # Errors
    /// When it cannot be linked or its constructors trap.
    pub(crate) fn new(program: &Program, setup: Setup) -> anyhow::Result<Self> {
        let mut backend = Self::instantiate(program, setup, program.pristine())?;
        backend.call::<(), ()>("__wasm_call_ctors", ())?;
        backend.announce_callbacks()?;
        Ok(backend)
    }

    /// A backend that goes on from the state in `image` and `registers`.
    /// `libraries` are those of `registers`, in its order.
    ///
    /// # Errors
    /// When the image cannot be mapped, or does not fit to the program.
    pub(crate) fn resume(
        program: &Program,
        setup: Setup,
        image: &Image,
        registers: &Registers,
        libraries: &[Arc<Library>],
    ) -> anyhow::Result<Self> {
        let mut backend = Self::instantiate(program, setup, image)?;
        registers.set_globals(&mut backend.store)?;
        restore_libraries(&mut backend.store, &registers.libraries, libraries)?;
        Ok(backend)
    }

    fn instantiate(program: &Program, setup: Setup, image: &Image) -> anyhow::Result<Self> {
        let mut store = Store::new(program.engine(), Guest::new(setup)?);
        store.limiter(|guest| &mut guest.growth);
        let instance = program.instantiate(&mut store)?;
        let exports = Exports::find(&mut store, instance)?;
        let table = exports.table;
        image.map_over(&mut store, exports.memory)?;
        store.data().memory_size.store(exports.memory.data_size(&store), Ordering::Relaxed);
        let hot = Hot {
            pending_input: instance.get_typed_func(&mut store, "pq_buffer_remaining_data")?,
            main_loop_once: instance.get_typed_func(&mut store, "PostgresMainLoopOnce")?,
            reset_context: instance.get_typed_func(&mut store, "MemoryContextReset")?,
            stack_pointer: instance.get_global(&mut store, "__stack_pointer").context("there is no __stack_pointer")?,
            config_reload_pending: program.facts().address("ConfigReloadPending")?,
        };
        store.data_mut().exports = Some(exports);
        let callbacks = CALLBACKS.iter().flat_map(|(_, names)| *names);
        for (slot, name) in (program.facts().table_elements..).zip(callbacks) {
            let function = program.libraries().host_function(&mut store, name)?;
            table.set(&mut store, slot, Ref::Func(Some(function)))?;
        }
        let mut backend = Self { store, hot, shared: None };
        backend.attach(backend.signals())?;
        let memory = backend.exports()?.memory;
        let (memory, guest) = memory.data_and_store_mut(&mut backend.store);
        guest.growth.begin(memory.len());
        checkpoint::begin(guest, memory)?;
        Ok(backend)
    }

    /// From now on `signals` interrupt this backend.
    fn attach(&mut self, signals: Arc<Signals>) -> anyhow::Result<()> {
        // The address was read from the cache.
        let address = self.facts().address("InterruptPending")?;
        let flag = memory::word(&self.store, self.exports()?.memory, address).context("InterruptPending")?;
        let safepoints = SafepointPage::open(&self.store, self.exports()?.memory)
            .context("the safepoints' page cannot be mapped")?;
        let mut holds = [std::ptr::null(); 2];
        for (pointer, name) in holds.iter_mut().zip(HOLDS) {
            let address = self.facts().address(name)?;
            *pointer = memory::word(&self.store, self.exports()?.memory, address).context(name)?.cast_const();
        }
        // SAFETY: the words are aligned and inside the memory (`word`), as long as that is there.
        let holds = unsafe { Holds::at(holds) };
        let preemption = Preemption::new(signals.clone(), self.store.data().seat.as_ref(), &safepoints, holds);
        // SAFETY: only for a fault at a safepoint, which is a store of guest code, it does more than compare the
        // address. No host code was interrupted there, so that it may lock and wait, as after a call.
        unsafe { self.store.set_signal_handler(move |_, fault, _| preemption.handle((*fault).si_addr().addr())) };
        // SAFETY: the word is aligned and inside the memory (`word`), and the page belongs to it; `Drop` detaches both
        // before the memory goes.
        unsafe { signals.attach(flag, Some(safepoints)) };
        self.store.data_mut().set_signals(signals);
        Ok(())
    }

    /// Where its linear memory is: the first address, and the size in bytes, which follows its growth.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn memory_range(&self) -> anyhow::Result<(usize, Arc<AtomicUsize>)> {
        Ok((self.exports()?.memory.data_ptr(&self.store).addr(), self.store.data().memory_size.clone()))
    }

    /// Gives PGlite the table slots of its callbacks.
    fn announce_callbacks(&mut self) -> anyhow::Result<()> {
        let mut slot = u32::try_from(self.facts().table_elements)?;
        for (setter, names) in CALLBACKS {
            match names {
                [_] => self.call::<u32, ()>(setter, slot)?,
                _ => self.call::<(u32, u32), ()>(setter, (slot, slot + 1))?,
            }
            slot += u32::try_from(names.len())?;
        }
        Ok(())
    }

    /// The state of this backend besides its memory and its files.
    ///
    /// # Errors
    /// As [`Registers::capture`].
    pub(crate) fn registers(&mut self) -> anyhow::Result<Registers> {
        Registers::capture(&mut self.store)
    }

    /// The linear memory.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn memory(&self) -> anyhow::Result<&[u8]> {
        Ok(self.exports()?.memory.data(&self.store))
    }

    /// The guest's files and the rest of its state.
    pub(crate) fn guest(&mut self) -> &mut Guest {
        self.store.data_mut()
    }

    /// Waits for its turn in the cluster that it shares with others.
    ///
    /// # Errors
    /// [`Crashed`]
    pub(crate) fn take_turn(&mut self) -> Result<(), Crashed> {
        self.store.data_mut().seat.as_mut().map_or(Ok(()), Seat::take_turn)
    }

    /// Ends its turn, if it has it.
    pub(crate) fn end_turn(&mut self) {
        if let Some(seat) = &mut self.store.data_mut().seat {
            seat.end_turn();
        }
    }

    /// Whether a process of the cluster that it shares with others has crashed.
    pub(crate) fn cluster_has_crashed(&self) -> bool {
        self.store.data().seat.as_ref().is_some_and(Seat::cluster_has_crashed)
    }

    /// It has trapped during its turn: its whole cluster ends.
    pub(crate) fn crash(&mut self) {
        if let Some(seat) = &mut self.store.data_mut().seat {
            seat.crash();
        }
    }

    /// How other threads interrupt it.
    pub(crate) fn signals(&self) -> Arc<Signals> {
        self.store.data().signals.clone()
    }

    /// Sets the backend's client, and returns the one before.
    fn set_client(&mut self, client: ClientStream) -> ClientStream {
        let guest = self.store.data_mut();
        guest.signals.set_waker(client.waker());
        let before = std::mem::replace(&mut guest.client, client);
        // Signals that came while there was no client to wake.
        guest.signals.repeat();
        before
    }

    pub(crate) fn facts(&self) -> &Arc<Facts> {
        &self.store.data().facts
    }

    fn exports(&self) -> anyhow::Result<&Exports> {
        Ok(self.store.data().exports()?)
    }

    /// Calls the export `name`.
    fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, parameters: P) -> anyhow::Result<R> {
        let instance = self.exports()?.instance;
        let function = instance.get_typed_func::<P, R>(&mut self.store, name)?;
        self.store.data_mut().native_stack.begin();
        Ok(function.call(&mut self.store, parameters)?)
    }

    pub(crate) fn read_u32(&self, address: u32) -> anyhow::Result<u32> {
        Ok(memory::read_u32(self.memory()?, address)?)
    }

    pub(crate) fn write_u32(&mut self, address: u32, value: u32) -> anyhow::Result<()> {
        self.write(address, &value.to_le_bytes())
    }

    /// Sets one of the globals that the rewriter adds.
    fn set_global(&mut self, name: &str, value: bool) -> anyhow::Result<()> {
        let instance = self.exports()?.instance;
        let global = instance.get_global(&mut self.store, name).context("the module was not instrumented")?;
        Ok(global.set(&mut self.store, Val::I32(value.into()))?)
    }

    pub(crate) fn write(&mut self, address: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let memory = self.exports()?.memory;
        Ok(memory::write_bytes(memory.data_mut(&mut self.store), address, bytes)?)
    }

    /// Runs the program with these arguments from `main` to its exit, and returns the exit status.
    ///
    /// # Errors
    /// When it traps.
    pub(crate) fn run(mut self, arguments: &[&str]) -> anyhow::Result<i32> {
        let status = call::main(&mut self.store, EXECUTABLE, arguments)?;
        call::flush(&mut self.store)?;
        Ok(status)
    }

    /// Puts a C string on the guest's stack, where it stays until the stack pointer is restored.
    fn push_string(&mut self, text: &[u8]) -> anyhow::Result<u32> {
        Ok(call::push_string(&mut self.store, text)?)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.store.data().memory_size.store(0, Ordering::Relaxed);
        self.store.data().signals.detach();
        self.store.data_mut().files.close_all();
    }
}

impl Setup {
    /// A backend's, on those files.
    pub(crate) fn backend(program: &Program, files: Files) -> Self {
        Self {
            files,
            environment: environment(),
            commands: Box::new(BackendCommands),
            library_store: program.libraries().clone(),
            facts: program.facts().clone(),
            seat: None,
            clock: Arc::default(),
            entropy: Arc::default(),
            is_unlimited: false,
            before_fork: None,
        }
    }
}
