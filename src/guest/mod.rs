//! The Emscripten host: the environment of one wasm instance of PGlite.
//!
//! Each file adds the imports of one concern to Wasmtime's linker; linking fails and names an import that none of them
//! adds. Errors in host functions are of three kinds. Errors that the guest may handle are returned as its errno
//! (`syscalls`, `wasi`). `I32Exit` unwinds for `exit`. Everything else ends the instance as a trap does.

mod authentication;
mod caches;
pub(crate) mod call;
mod callbacks;
#[cfg(feature = "record-calls")]
pub mod calls;
mod channel_binding;
pub(crate) mod checkpoint;
mod commands;
mod conversion;
mod cxx;
mod dylink;
mod entropy;
mod gathering;
mod growth;
mod heap;
mod instance;
mod interrupts;
mod libc;
mod libdeflate;
mod locale;
mod mapping;
pub(crate) mod memory;
mod natives;
mod net;
mod pgoutput;
mod process;
pub(crate) mod report;
mod stack;
mod statistics;
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
    clock::Clock,
    cluster::{Region, Seat, Signals},
    engine::artefact::Package,
    fs::Files,
    instrument::Facts,
    random::Entropy,
    tally::Tally,
};

pub(crate) use authentication::AUTHENTICATION_OK;
pub(crate) use caches::{Caches, CatalogState, Outdated, StoppedAtExit, check_messages};
pub(crate) use callbacks::{CALLBACKS, ClientStream};
pub(crate) use commands::{BackendCommands, Commands, LOCALES, LOCALES_FILE, set_errno};
pub(crate) use dylink::{Libraries, LibrariesImage, Library, LibraryStore, restore as restore_libraries};
pub(crate) use entropy::seed_prng;
pub(crate) use growth::Growth;
pub(crate) use instance::Exports;
pub(crate) use interrupts::{HOLDS, deliver};
pub(crate) use net::encode_socket_address;
pub(crate) use stack::NativeStack;
pub(crate) use time::write_local_time;
pub(crate) use timers::Timers;
pub(crate) use waiting::wait;

/// The state of one wasm instance in its store, for host functions.
pub(crate) struct Guest {
    /// Environment and `proc_exit` of WASI preview 1. Its `fd_*` functions are not used, because they would not share a
    /// descriptor table with `__syscall_*`; nor are its clocks and random bytes.
    pub(crate) wasi: WasiP1Ctx,
    /// Files and descriptors.
    pub(crate) files: Files,
    /// The exports that host functions call; set when the instance is complete.
    pub(crate) exports: Option<Exports>,
    /// Side modules.
    pub(crate) libraries: Libraries,
    /// The package whose library it has just looked for and not found.
    missing: Option<&'static Package>,
    /// Side modules of the whole program.
    pub(crate) library_store: Arc<LibraryStore>,
    /// The rewriter's facts about the main module.
    pub(crate) facts: Arc<Facts>,
    /// The client that the read and write callbacks use.
    pub(crate) client: ClientStream,
    /// The address of `MyProcPid`.
    my_proc_pid: u32,
    /// Runs the commands of `system` and `popen`.
    pub(crate) commands: Box<dyn Commands>,
    /// Signals that other threads have sent.
    pub(crate) signals: Arc<Signals>,
    /// The clock that it sees.
    pub(crate) clock: Arc<Clock>,
    /// The random bytes of its cluster.
    pub(crate) entropy: Arc<Entropy>,
    /// The number of [`Entropy::beginnings`] that it has followed.
    followed_beginnings: u64,
    /// Interval timers (`setitimer`).
    pub(crate) timers: Timers,
    /// Its seat in a cluster that it shares with other sessions.
    pub(crate) seat: Option<Seat>,
    /// The WAL that it has begun.
    pub(crate) wal: checkpoint::Wal,
    /// Where what it does is counted.
    pub(crate) tally: Arc<Tally>,
    before_fork: Option<BeforeFork>,
    /// The anonymous mappings that it has made, before its first fork.
    pub(crate) anonymous: Vec<Region>,
    /// Whether it is between two messages, where there is no statement to cancel.
    pub(crate) is_idle: bool,
    /// The processor time of its thread when its client was found to have left, in nanoseconds.
    alone_since: Option<u64>,
    /// The caches that it began with.
    caches: Option<Arc<Caches>>,
    /// What its memory and its table have grown by.
    pub(crate) growth: Growth,
    /// The functions that messages of logical replication call.
    publishing: Option<Arc<pgoutput::Calls>>,
    /// What exceptions of C++ have cost it.
    lost: cxx::Lost,
    /// The size of the linear memory in bytes, for other threads; 0 before the instance is complete.
    pub(crate) memory_size: Arc<AtomicUsize>,
    /// The start of the host's last call into it on the native stack.
    pub(crate) native_stack: NativeStack,
}

/// Runs once when the guest is about to take its slot in shared memory, where a postmaster would begin to fork.
pub(crate) type BeforeFork = Box<dyn FnOnce(&mut Caller<'_, Guest>) -> wasmtime::Result<()> + Send>;

/// The parts of a guest besides its wasm.
pub(crate) struct Setup {
    pub(crate) files: Files,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) commands: Box<dyn Commands>,
    pub(crate) library_store: Arc<LibraryStore>,
    pub(crate) facts: Arc<Facts>,
    /// Its seat in a cluster that it shares with other sessions.
    pub(crate) seat: Option<Seat>,
    /// The clock that it sees; real time, unless it is a session of a cluster whose clock can be set.
    pub(crate) clock: Arc<Clock>,
    /// The random bytes of its cluster; those of the operating system, unless it is a session of a cluster that can be
    /// seeded.
    pub(crate) entropy: Arc<Entropy>,
    /// Whether it is never refused what its cluster has no room for: PostgreSQL's own processes, which would not go on
    /// without it, and make room.
    pub(crate) is_unlimited: bool,
    /// Runs where a postmaster would begin to fork.
    pub(crate) before_fork: Option<BeforeFork>,
}

impl Guest {
    /// # Errors
    /// When facts that every guest needs are missing.
    pub(crate) fn new(setup: Setup) -> anyhow::Result<Self> {
        let mut wasi = WasiCtxBuilder::new();
        for (name, value) in &setup.environment {
            wasi.env(name, value);
        }
        let callbacks: u64 = CALLBACKS.iter().map(|(_, names)| names.len() as u64).sum();
        let growth = Growth::new(setup.files.tree().lock().quota(), setup.is_unlimited);
        let signals = setup.seat.as_ref().map_or_else(Arc::default, |seat| seat.signals().clone());
        Ok(Self {
            wasi: wasi.build_p1(),
            my_proc_pid: setup.facts.address("MyProcPid")?,
            files: setup.files,
            exports: None,
            libraries: Libraries::new(u32::try_from(setup.facts.table_elements.saturating_add(callbacks))?),
            missing: None,
            library_store: setup.library_store,
            facts: setup.facts,
            client: ClientStream::default(),
            commands: setup.commands,
            timers: Timers::new(signals.clone()),
            native_stack: NativeStack::default(),
            signals,
            tally: setup.seat.as_ref().map_or_else(Arc::default, |seat| seat.tally().clone()),
            seat: setup.seat,
            wal: checkpoint::Wal::default(),
            clock: setup.clock,
            entropy: setup.entropy,
            followed_beginnings: 0,
            before_fork: setup.before_fork,
            anonymous: Vec::new(),
            is_idle: false,
            alone_since: None,
            caches: None,
            growth,
            publishing: None,
            lost: cxx::Lost::default(),
            memory_size: Arc::default(),
        })
    }

    /// Sets the signals that it receives from now on.
    pub(crate) fn set_signals(&mut self, signals: Arc<Signals>) {
        self.timers.set_signals(signals.clone());
        self.signals = signals;
    }

    /// It has begun with these caches.
    pub(crate) fn set_caches(&mut self, caches: Arc<Caches>) {
        self.caches = Some(caches);
    }

    /// The exports that host functions may call.
    ///
    /// # Errors
    /// Until the instance is complete, that is in a start function.
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

/// The function at `index` of the table, the value of a C function pointer.
///
/// # Errors
/// When there is none, or it has another type.
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

/// All host functions of `pglite.wasm` and `initdb.wasm`, and those of `pg_dump.wasm` that are not its own.
///
/// # Errors
/// When two files define the same import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> anyhow::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_sync(&mut linker, |guest: &mut Guest| &mut guest.wasi)
        .map_err(anyhow::Error::from)
        .context("WASI cannot be linked")?;
    // The guest's own `fd_*` functions, which share its descriptor table, replace those of wasmtime-wasi, as do its
    // clocks and random bytes.
    linker.allow_shadowing(true);
    #[cfg(feature = "record-calls")]
    calls::add_to_linker(&mut linker)?;
    wasi::add_to_linker(&mut linker)?;
    entropy::add_to_linker(&mut linker)?;
    time::add_to_linker(&mut linker)?;
    linker.allow_shadowing(false);
    for add in [
        authentication::add_to_linker,
        caches::add_to_linker,
        channel_binding::add_to_linker,
        callbacks::add_to_linker,
        conversion::add_to_linker,
        cxx::add_to_linker,
        dylink::add_to_linker,
        interrupts::add_to_linker,
        libc::add_to_linker,
        libdeflate::add_to_linker,
        locale::add_to_linker,
        mapping::add_to_linker,
        natives::add_to_linker,
        net::add_to_linker,
        pgoutput::add_to_linker,
        process::add_to_linker,
        stack::add_to_linker,
        statistics::add_to_linker,
        syscalls::add_to_linker,
        timers::add_to_linker,
    ] {
        add(&mut linker)?;
    }
    Ok(linker)
}

/// The environment that PGlite gives its guests (`pglite.ts`), with a locale that exists.
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
        // Where the bundle of PostGIS has the data of PROJ. PGlite's JavaScript sets nothing, so that what needs them
        // fails there.
        ("PROJ_DATA", "/pglite/share/proj"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}
