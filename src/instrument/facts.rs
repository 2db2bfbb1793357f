//! Facts about PGlite's backend that a host needs besides its code.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wasmparser::ExternalKind;

use super::bodies::{
    CancelKey, Kill, cancel_key_length, encoding_functions, encoding_names, first_variable, heap_state,
    message_context, signal_handlers,
};
use super::builtins::{LOAD_TIME, START_TIME};
use super::caches::{encoding_is_settled, message_queue, timer_runs};
use super::evidence::Found;
use super::module::Module;
use super::processes::{
    self, CheckpointerShmem, ChildKind, PostmasterSignals, is_postmaster_environment, where_to_send_output,
};
use super::publishing::Callbacks;
use super::start::{Preload, is_regular_backend, preloads};
use super::{ADDED_GLOBALS, InstrumentError, receiving, type_infos};

/// Size of a page of WebAssembly memory, in bytes.
const WASM_PAGE: u64 = 65_536;

/// Size of a memory in pages of 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageLimits {
    /// The initial size.
    pub minimum: u64,
    /// The limit, if there is one.
    pub maximum: Option<u64>,
}

impl PageLimits {
    pub(super) fn of(module: &Module) -> Result<Self, InstrumentError> {
        let memory = module.memory.ok_or_else(|| InstrumentError::Unsupported("it has no memory".into()))?;
        if memory.memory64 || memory.shared || memory.page_size_log2.is_some() {
            return Err(InstrumentError::Unsupported("its memory is 64-bit, shared, or has another page size".into()));
        }
        Ok(Self { minimum: memory.initial, maximum: memory.maximum })
    }

    /// The initial size in bytes.
    pub(super) fn minimum_bytes(self) -> u64 {
        self.minimum.saturating_mul(WASM_PAGE)
    }
}

/// Facts that were found while a backend's module was instrumented.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// The size of its memory.
    pub memory: PageLimits,
    /// The table's initial number of elements; further ones are for callbacks and side modules.
    pub table_elements: u64,
    /// Initial value of `__stack_pointer`: the stack grows down from here.
    pub stack_pointer: u32,
    /// Export names of all its mutable globals, those that the rewriter adds included: a snapshot must save all of
    /// them.
    pub mutable_globals: Vec<String>,
    /// Addresses of exported variables, by their names in C, of `WalReceiverFunctions`, and of the vtables of C++'s
    /// type information.
    pub data_symbols: BTreeMap<String, u32>,
    /// The first table slot of every exported function that has one, by its name.
    pub table_slots: BTreeMap<String, u32>,
    /// Address of `errno`.
    pub errno: u32,
    /// Address of `MyCancelKey` (`src/backend/utils/init/globals.c`), whose first four bytes `pgl_sendConnData` sends.
    pub my_cancel_key: u32,
    /// Address of `MyCancelKeyLength`, an `int`.
    pub my_cancel_key_length: u32,
    /// Address of `pqsignal_handlers` (`src/port/pqsignal.c`): the table index of each signal's handler, by its
    /// number.
    pub signal_handlers: u32,
    /// Addresses of the counters of callbacks that `proc_exit` runs; `on_exit_reset` sets them to zero
    /// (`src/backend/storage/ipc/ipc.c`).
    pub exit_callbacks: [u32; 3],
    /// Address of `send_ready_for_query`, a byte, which PGlite made a global variable of
    /// `src/backend/tcop/postgres.c`.
    pub send_ready_for_query: u32,
    /// Address of `MessageContext` (`src/backend/utils/mmgr/mcxt.c`), a pointer.
    pub message_context: u32,
    /// The shared memory of sessions and checkpointer.
    pub checkpointer: CheckpointerShmem,
    /// The variables through which a child signals its postmaster.
    pub postmaster: PostmasterSignals,
    /// Address of `IsPostmasterEnvironment`, a byte.
    pub is_postmaster_environment: u32,
    /// Address of `whereToSendOutput`, an `int`.
    pub where_to_send_output: u32,
    /// The kinds of child processes of a postmaster.
    pub children: Vec<ChildKind>,
    /// The settings that name libraries to load when a session starts.
    pub preloads: [Preload; 2],
    /// Offset in `MyProc` of the byte that makes the backend count for connection limits
    /// (`src/include/storage/proc.h`).
    pub is_regular_backend: u32,
    /// Address of `pg_enc2name_tbl` (`src/common/encnames.c`): name and number of each encoding, 8 bytes each.
    pub encoding_names: u32,
    /// Address of `pg_wchar_table` (`src/common/wchar.c`): the functions of each encoding, 28 bytes each.
    pub encoding_functions: u32,
    /// Address of `prng_seed_set` (`src/backend/utils/adt/pseudorandomfuncs.c`), a byte: whether the state of
    /// `random()` has its seed.
    pub random_is_seeded: u32,
    /// Address of `PgStartTime` (`src/backend/utils/adt/timestamp.c`), when the server was started.
    pub server_start: u32,
    /// Address of `PgReloadTime`, when the configuration was read.
    pub configuration_load: u32,
    /// `relsync_callback_list`, the callbacks of plugins for logical decoding when publications change.
    pub relation_sync_callbacks: Callbacks,
    /// Address of `shmInvalBuffer` (`src/backend/storage/ipc/sinvaladt.c`), the pointer to the queue of messages about
    /// changed catalogs.
    pub message_queue: u32,
    /// Address of `backend_startup_complete` (`src/backend/utils/mb/mbutils.c`), a byte: whether a change of the client's
    /// encoding takes effect at once.
    pub encoding_is_settled: u32,
    /// Address of `signal_pending` (`src/backend/utils/misc/timeout.c`), an `int`: whether a timer runs.
    pub timer_runs: u32,
    /// Address of `_gm_` (Emscripten, `system/lib/dlmalloc.c`, version 2.8.6), the state of the heap.
    pub heap: u32,
}

impl Facts {
    pub(super) fn gather(
        module: &Module,
        memory: &[u8],
        found: &Found,
        limits: PageLimits,
    ) -> Result<Self, InstrumentError> {
        let lacking = |what: &str| InstrumentError::Unsupported(format!("it has no {what}"));
        let stack_pointer = module.exported(ExternalKind::Global, "__stack_pointer");
        let stack_pointer = stack_pointer.and_then(|index| module.globals.get(index as usize)?.initial);
        let exported = module.mutable_globals().into_iter().map(|global| global.name);
        let kill = found.read(module, "kill", |target, body| Kill::read(target, body, found.process_id))?;
        let load_libraries = found.function("load_libraries")?;
        let mut data_symbols = module.data_symbols();
        data_symbols.extend(type_infos::vtables(memory)?);
        data_symbols.insert(receiving::FUNCTIONS.to_owned(), receiving::functions(module, memory)?);
        let is_under_postmaster = data_symbols.get("IsUnderPostmaster").copied();
        let is_under_postmaster = is_under_postmaster.ok_or_else(|| lacking("exported IsUnderPostmaster"))?;
        let current_context = data_symbols.get("CurrentMemoryContext").copied();
        let current_context = current_context.ok_or_else(|| lacking("exported CurrentMemoryContext"))?;
        let my_cancel_key = found.read(module, "pgl_sendConnData", CancelKey::read)?.address;
        Ok(Self {
            memory: limits,
            table_elements: module.table_elements.ok_or_else(|| lacking("table"))?,
            stack_pointer: stack_pointer.ok_or_else(|| lacking("exported __stack_pointer"))?.cast_unsigned(),
            mutable_globals: exported.chain(ADDED_GLOBALS.map(str::to_owned)).collect(),
            data_symbols,
            table_slots: module.exported_table_slots()?,
            errno: kill.errno.cast_unsigned(),
            my_cancel_key,
            my_cancel_key_length: found
                .read(module, "InitPostgres", |target, body| cancel_key_length(target, body, my_cancel_key))?,
            signal_handlers: found.read(module, "wrapper_handler", signal_handlers)?,
            exit_callbacks: [
                found.read(module, "before_shmem_exit", first_variable)?,
                found.read(module, "on_shmem_exit", first_variable)?,
                found.read(module, "on_proc_exit", first_variable)?,
            ],
            send_ready_for_query: found.read(module, "PostgresSendReadyForQueryIfNecessary", first_variable)?,
            message_context: found
                .read(module, "PostgresMainLoopOnce", |target, body| message_context(target, body, current_context))?,
            checkpointer: found.read(module, "ForwardSyncRequest", CheckpointerShmem::read)?,
            postmaster: found.read(module, "SendPostmasterSignal", PostmasterSignals::read)?,
            is_postmaster_environment: found.read(module, "pgl_startPGlite", |target, body| {
                is_postmaster_environment(target, body, is_under_postmaster)
            })?,
            where_to_send_output: found.read(module, "pgl_startPGlite", where_to_send_output)?,
            children: processes::kinds(memory)?,
            preloads: found.read(module, "InitPostgres", |target, body| preloads(target, body, load_libraries))?,
            is_regular_backend: found.read(module, "InitProcess", is_regular_backend)?,
            encoding_names: found.read(module, "check_encoding_conversion_args", encoding_names)?,
            encoding_functions: found.read(module, "pg_encoding_max_length", encoding_functions)?,
            random_is_seeded: found.read(module, "drandom", first_variable)?,
            server_start: START_TIME.variable(module, memory)?,
            configuration_load: LOAD_TIME.variable(module, memory)?,
            relation_sync_callbacks: Callbacks::of_relation_syncs(module)?,
            encoding_is_settled: found.read(module, "InitializeClientEncoding", encoding_is_settled)?,
            timer_runs: found.read(module, "schedule_alarm", timer_runs)?,
            message_queue: found.read(module, "SharedInvalBackendInit", message_queue)?,
            heap: found.read(module, "malloc", heap_state)?,
        })
    }

    /// The address of an exported name in C: a variable's address in memory, or a function's slot in the table if it
    /// has one.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<u32> {
        self.data_symbols.get(name).or_else(|| self.table_slots.get(name)).copied()
    }

    /// The kind of child process with the name `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn child(&self, name: &str) -> Result<&ChildKind, InstrumentError> {
        self.children.iter().find(|kind| kind.name == name).ok_or_else(|| InstrumentError::Evidence {
            function: name.to_owned(),
            expected: "a row of child_process_kinds".to_owned(),
            found: "none of this name".to_owned(),
        })
    }

    /// The address of an exported variable.
    ///
    /// # Errors
    /// If the module exports no variable of this name.
    pub fn address(&self, symbol: &str) -> Result<u32, InstrumentError> {
        self.data_symbols.get(symbol).copied().ok_or_else(|| InstrumentError::Evidence {
            function: symbol.to_owned(),
            expected: "an exported variable".to_owned(),
            found: "none of this name".to_owned(),
        })
    }
}
