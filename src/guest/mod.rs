//! The Emscripten host: what one wasm instance of PGlite sees of the world.
//!
//! Each file adds the imports of one concern to Wasmtime's linker; an import that no file knows fails at link time
//! with its name. Errors in host functions are of three kinds. What the guest may handle is returned as its errno
//! (`syscalls`, `wasi`). `I32Exit` unwinds for `exit`. Everything else ends the instance as a trap does.

pub(crate) mod call;
mod callbacks;
mod checkpoint;
mod commands;
mod conversion;
mod dylink;
mod heap;
mod instance;
mod interrupts;
mod locale;
mod mapping;
pub(crate) mod memory;
mod net;
mod process;
pub(crate) mod report;
mod stack;
mod syscalls;
mod time;
mod timers;
mod waiting;
mod wasi;

use std::sync::{Arc, atomic::AtomicUsize};

use anyhow::Context;
use wasmtime::{AsContextMut, Caller, Linker, Memory, Ref, TypedFunc, WasmParams, WasmResults};
use wasmtime_wasi::{WasiCtxBuilder, p1::WasiP1Ctx};

use crate::{
    cluster::{Seat, Signals},
    fs::Files,
    instrument::Facts,
};

pub(crate) use callbacks::{CALLBACKS, ClientStream};
pub(crate) use commands::{BackendCommands, Commands, LOCALES, LOCALES_FILE};
pub(crate) use dylink::{Libraries, LibrariesImage, Library, LibraryStore, restore as restore_libraries};
pub(crate) use instance::Exports;
pub(crate) use interrupts::deliver;
pub(crate) use net::encode_socket_address;
pub(crate) use stack::NativeStack;
pub(crate) use timers::Timers;
pub(crate) use waiting::wait;

/// The state that host functions find in the store of one wasm instance.
pub(crate) struct Guest {
    /// Clocks, randomness, environment and `proc_exit` of WASI preview 1; its `fd_*` functions are not used, because
    /// they would not share a descriptor table with `__syscall_*`.
    pub(crate) wasi: WasiP1Ctx,
    /// Files and descriptors.
    pub(crate) files: Files,
    /// What host functions call back, known once the instance has been made.
    pub(crate) exports: Option<Exports>,
    /// Side modules.
    pub(crate) libraries: Libraries,
    /// Side modules of the whole program.
    pub(crate) library_store: Arc<LibraryStore>,
    /// What the rewriter knows of the main module.
    pub(crate) facts: Arc<Facts>,
    /// The client whose bytes the read and write callbacks carry.
    pub(crate) client: ClientStream,
    /// The address of `MyProcPid`.
    my_proc_pid: u32,
    /// What `system` and `popen` run.
    pub(crate) commands: Box<dyn Commands>,
    /// Signals that other threads have sent.
    pub(crate) signals: Arc<Signals>,
    /// Interval timers (`setitimer`).
    pub(crate) timers: Timers,
    /// Its part in a cluster that it shares with other sessions.
    pub(crate) seat: Option<Seat>,
    before_fork: Option<BeforeFork>,
    /// Whether it is between two messages, where a cancel has nothing to cancel.
    pub(crate) is_idle: bool,
    /// The size of the linear memory in bytes, for other threads; 0 while there is none.
    pub(crate) memory_size: Arc<AtomicUsize>,
    /// Where the host's last call into it began.
    pub(crate) native_stack: NativeStack,
}

/// Runs once where a postmaster would begin to fork: when the guest is about to take its place in shared memory.
pub(crate) type BeforeFork = Box<dyn FnOnce(&mut Caller<'_, Guest>) -> wasmtime::Result<()> + Send>;

/// What one guest is made of besides its wasm.
pub(crate) struct Setup {
    pub(crate) files: Files,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) commands: Box<dyn Commands>,
    pub(crate) library_store: Arc<LibraryStore>,
    pub(crate) facts: Arc<Facts>,
    /// Its part in a cluster that it shares with other sessions.
    pub(crate) seat: Option<Seat>,
    /// What happens where a postmaster would begin to fork.
    pub(crate) before_fork: Option<BeforeFork>,
}

impl Guest {
    /// # Errors
    /// When the module's facts lack what every guest needs.
    pub(crate) fn new(setup: Setup) -> anyhow::Result<Self> {
        let mut wasi = WasiCtxBuilder::new();
        for (name, value) in &setup.environment {
            wasi.env(name, value);
        }
        let callbacks: u64 = CALLBACKS.iter().map(|(_, names)| names.len() as u64).sum();
        let signals = setup.seat.as_ref().map_or_else(Arc::default, |seat| seat.signals().clone());
        Ok(Self {
            wasi: wasi.build_p1(),
            my_proc_pid: setup.facts.address("MyProcPid")?,
            files: setup.files,
            exports: None,
            libraries: Libraries::new(u32::try_from(setup.facts.table_elements.saturating_add(callbacks))?),
            library_store: setup.library_store,
            facts: setup.facts,
            client: ClientStream::default(),
            commands: setup.commands,
            timers: Timers::new(signals.clone()),
            native_stack: NativeStack::default(),
            signals,
            seat: setup.seat,
            before_fork: setup.before_fork,
            is_idle: false,
            memory_size: Arc::default(),
        })
    }

    /// From now on those are the signals that it receives.
    pub(crate) fn set_signals(&mut self, signals: Arc<Signals>) {
        self.timers.set_signals(signals.clone());
        self.signals = signals;
    }

    /// What host functions may call.
    ///
    /// # Errors
    /// While the instance is being made, that is in a start function.
    pub(crate) fn exports(&self) -> wasmtime::Result<&Exports> {
        self.exports
            .as_ref()
            .ok_or_else(|| wasmtime::format_err!("a host function was called before the instance was complete"))
    }

    /// The linear memory; errors as [`Guest::exports`].
    pub(crate) fn memory(&self) -> wasmtime::Result<Memory> {
        Ok(self.exports()?.memory)
    }
}

/// The function at `index` of the table, as a C function pointer names it.
///
/// # Errors
/// When there is none, or it is of another type.
fn table_function<P: WasmParams, R: WasmResults>(
    store: &mut impl AsContextMut<Data = Guest>,
    index: u32,
) -> wasmtime::Result<TypedFunc<P, R>> {
    let table = store.as_context().data().exports()?.table;
    match table.get(&mut *store, index.into()) {
        Some(Ref::Func(Some(function))) => function.typed(&*store),
        _ => wasmtime::bail!("there is no function at index {index} of the table"),
    }
}

/// All host functions of `pglite.wasm` and `initdb.wasm`.
///
/// # Errors
/// When two files define the same import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> anyhow::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_sync(&mut linker, |guest: &mut Guest| &mut guest.wasi)
        .map_err(anyhow::Error::from)
        .context("WASI cannot be linked")?;
    // The `fd_*` functions of wasmtime-wasi give way to those that share the guest's descriptor table.
    linker.allow_shadowing(true);
    wasi::add_to_linker(&mut linker)?;
    linker.allow_shadowing(false);
    for add in [
        callbacks::add_to_linker,
        conversion::add_to_linker,
        dylink::add_to_linker,
        interrupts::add_to_linker,
        locale::add_to_linker,
        mapping::add_to_linker,
        net::add_to_linker,
        process::add_to_linker,
        stack::add_to_linker,
        syscalls::add_to_linker,
        time::add_to_linker,
        timers::add_to_linker,
    ] {
        add(&mut linker)?;
    }
    Ok(linker)
}

/// The environment that PGlite gives its guests (`pglite.ts`), with a locale that there is.
pub(crate) fn environment() -> Vec<(&'static str, String)> {
    [
        ("HOME", "/home/postgres"),
        ("USER", "postgres"),
        ("LOGNAME", "postgres"),
        ("PATH", "/pglite/bin"),
        ("PWD", "/"),
        ("PGDATA", "/pglite/data"),
        ("PGUSER", "postgres"),
        ("PGDATABASE", "postgres"),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("PGTZ", "UTC"),
        ("PGCLIENTENCODING", "UTF8"),
        ("ICU_DATA", "/pglite/icu"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}
