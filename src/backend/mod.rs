//! One `PostgreSQL` backend: a wasm instance from its start to its end.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use wasmtime::{AsContextMut, Ref, Store, Val, WasmParams, WasmResults};
use wasmtime_wasi::I32Exit;

use crate::{
    guest::{ClientStream, Exports, Guest, LibrariesImage, LibraryStore, Setup, Signals, client::Client, memory, restore_libraries},
    image::Image,
    program::Program,
};

/// With this status the guest leaves `main` or its main loop, and lives (PGlite, `pglite.ts`: `PGLITE_EXIT_ALIVE`).
const EXIT_ALIVE: i32 = 99;
/// With this status an error has reached the main loop (PGlite, `pglite.ts`: `POSTGRES_MAIN_LONGJMP`).
const EXIT_LONGJMP: i32 = 100;

/// What the backend is started with: PGlite's parameters, without those that make it differ from `PostgreSQL` for its users
/// (`-O`, which lets anybody change system tables, and `search_path`).
const START_PARAMETERS: &str = "--single -F -j -c log_checkpoints=false -c max_worker_processes=0 \
    -c max_parallel_workers=0 -c max_parallel_workers_per_gather=0 -c max_parallel_maintenance_workers=0 -c io_method=sync";

/// The callbacks that PGlite finds in its table: the import that each is, and the exported function that is told its slot.
const CALLBACKS: [&str; 5] = ["system", "popen", "pclose", "read", "write"];

/// A running backend, on whatever thread has it.
pub(crate) struct Backend {
    store: Store<Guest>,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The client has said that it goes, or is gone.
    Client,
    /// `PostgreSQL` has ended the session itself and told the client why (FATAL).
    Fatal,
}

/// The state of a backend outside its linear memory and its files.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Registers {
    globals: Vec<(String, i64)>,
    libraries: LibrariesImage,
}

impl Backend {
    /// A backend whose memory is that of a program just loaded.
    pub(crate) fn new(program: &Program, setup: Setup) -> anyhow::Result<Self> {
        let mut backend = Self::instantiate(program, setup, program.pristine())?;
        backend.call::<(), ()>("__wasm_call_ctors", ())?;
        Ok(backend)
    }

    /// A backend that goes on where the one stood from which `image` and `registers` were taken.
    pub(crate) fn resume(
        program: &Program,
        setup: Setup,
        image: &Image,
        registers: &Registers,
        libraries: &[Arc<crate::guest::Library>],
    ) -> anyhow::Result<Self> {
        let mut backend = Self::instantiate(program, setup, image)?;
        let instance = backend.exports()?.instance;
        for (name, value) in &registers.globals {
            let global = instance.get_global(&mut backend.store, name).with_context(|| format!("the global {name} is gone"))?;
            let value = match global.ty(&backend.store).content() {
                wasmtime::ValType::I64 => Val::I64(*value),
                _ => Val::I32(i32::try_from(*value)?),
            };
            global.set(&mut backend.store, value)?;
        }
        restore_libraries(&mut backend.store, &registers.libraries, libraries)?;
        Ok(backend)
    }

    fn instantiate(program: &Program, setup: Setup, image: &Image) -> anyhow::Result<Self> {
        let mut store = Store::new(program.engine(), Guest::new(setup));
        let instance = program.link(&mut store)?;
        let exports = Exports::find(&mut store, instance)?;
        image.map_over(&mut store, exports.memory)?;
        let table = exports.table;
        let facts = program.facts().clone();
        let flag = exports.memory.data_ptr(&store).wrapping_add(facts.address("InterruptPending")? as usize).cast();
        ensure!(flag.is_aligned(), "InterruptPending is not aligned");
        // SAFETY: the address is aligned and inside a memory that does not move; `Drop` detaches it before the memory goes.
        unsafe { store.data().signals.attach(flag) };
        store.data_mut().exports = Some(exports);
        let mut backend = Self { store };
        for (slot, function) in (facts.table_elements..).zip(program.callbacks(&mut backend.store)?) {
            table.set(&mut backend.store, slot, Ref::Func(Some(function)))?;
        }
        Ok(backend)
    }

    fn exports(&self) -> anyhow::Result<&Exports> {
        Ok(self.store.data().exports()?)
    }

    /// Calls the export `name`.
    fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, parameters: P) -> anyhow::Result<R> {
        let instance = self.exports()?.instance;
        let function = instance.get_typed_func::<P, R>(&mut self.store, name)?;
        Ok(function.call(&mut self.store, parameters)?)
    }

    /// Runs `main` with these arguments until it returns or exits; returns the exit status.
    pub(crate) fn main(&mut self, program: &str, arguments: &[&str]) -> anyhow::Result<i32> {
        let mut argv = Vec::new();
        for argument in std::iter::once(&program).chain(arguments) {
            argv.extend(self.push(&[argument.as_bytes(), b"\0"].concat())?.to_le_bytes());
        }
        let argc = i32::try_from(argv.len() / 4)?;
        argv.extend([0; 4]);
        let argv = self.push(&argv)?;
        match self.call::<(i32, u32), i32>("__main_argc_argv", (argc, argv)) {
            Ok(status) => Ok(status),
            Err(error) => exit_status(error),
        }
    }

    /// Puts bytes on the guest's stack, where they stay.
    fn push(&mut self, bytes: &[u8]) -> anyhow::Result<u32> {
        // The stack stays aligned to 16 bytes, as the ABI wants it.
        let address: u32 = self.call("_emscripten_stack_alloc", u32::try_from(bytes.len().next_multiple_of(16))?)?;
        let memory = self.exports()?.memory;
        memory::write_bytes(memory.data_mut(&mut self.store), address, bytes)?;
        Ok(address)
    }
}

/// The status of an exit; any other error is passed on.
fn exit_status(error: anyhow::Error) -> anyhow::Result<i32> {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(status)) => Ok(*status),
        None => Err(error),
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.store.data().signals.detach();
        self.store.data_mut().files.close_all();
    }
}
