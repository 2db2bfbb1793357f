//! Rewrites PGlite's WebAssembly before it is compiled.
//!
//! PGlite's published file lacks five things, which are added here:
//!
//! * **Code and memory contents are separated.** One module contains the code ([`Instrumented::code`]) for all
//!   purposes; its memory is empty. The initial memory of a new backend ([`Instrumented::memory`]) is separate, as is
//!   the memory of a running one, so that a clone is the same compiled code with other memory contents.
//! * **The host is called** where PostgreSQL would leave the processor to other processes: [`Hook`].
//! * **Several processes** can be made from one memory, as `fork()` does: the process id is a variable, and
//!   checkpoints are left to the checkpointer where [`HAS_CHECKPOINTER`] is set.
//! * **Safepoints** are added to all loops, at which a process can be stopped that does not check for interrupts.
//!   Large copies are made in pieces, in such a loop.
//! * **Exports for the host** are added: functions, and every mutable global.
//!
//! # How functions are found
//! PGlite exports a part of PostgreSQL's functions. The others are recognised by the string constants that their error
//! reports refer to (`__func__`, `__FILE__`, messages) or by their instructions: `targets` is the table. The whole
//! file is refused if a function is not found exactly once or has an unexpected body; the error names the function. No
//! index or address of one version is fixed.
//!
//! # Reading order
//! `module` (reads a module), `initial_memory` (memory contents), `target` and `targets` (the table), `evidence` (finds
//! functions), `bodies`, `builtins`, `caches`, `processes` and `start` (read facts from their bodies), `hooks` (calls of the
//! host), `changes`, `semaphores` and `real_time` (changes of functions), `outline` (a function made of a part of
//! another), `safepoints`, `bulk` (copies in pieces), `rewrite` (writes the module), `own_imports` (what a side module
//! imports from itself), `longjmp` and `invoke` (exceptions instead of host calls), `inlining` (copies of small
//! functions) and `recording` (counts calls), `type_infos` (of C++), `publishing` and `receiving` (what the plugin and
//! the client of replication need), `facts` (the resulting facts).

mod bodies;
mod builtins;
mod bulk;
mod caches;
mod changes;
mod evidence;
mod facts;
mod hooks;
mod initial_memory;
mod inlining;
mod invoke;
mod longjmp;
mod module;
mod outline;
mod own_imports;
mod processes;
mod publishing;
mod real_time;
mod receiving;
mod recording;
mod rewrite;
mod safepoints;
mod semaphores;
mod start;
mod target;
mod targets;
mod type_infos;

use std::collections::BTreeMap;
use std::convert::Infallible;

use wasm_encoder::ExportKind;
use wasmparser::{BinaryReaderError, Dylink0Subsection, ExternalKind, KnownCustom, Parser, Payload};

use changes::Surroundings;
use evidence::Found;
use inlining::Calls;
use module::Module;
use outline::Outline;
use rewrite::Rewrite;
use target::{Change, Target};
use targets::TARGETS;

pub use facts::{Facts, PageLimits};
pub use hooks::{HOOK_MODULE, Hook};
pub use invoke::{invoke_module, is_invoke};
pub use processes::{CheckpointerShmem, ChildKind, PostmasterSignals};
pub use publishing::Callbacks;
pub use recording::CALLED;
pub use safepoints::SAFEPOINT_PAGE;
use safepoints::Safepoints;
pub use start::Preload;
pub(crate) use type_infos::{CLASS, MULTIPLE, SINGLE};

/// Name of an exported mutable `i32` global. If it is not zero, another process of the cluster makes the checkpoints.
pub const HAS_CHECKPOINTER: &str = "pglite_port.has_checkpointer";

/// Name of an exported mutable `i32` global. If it is not zero, the cluster ends with its session, which therefore
/// writes no shutdown checkpoint.
pub const IS_TEMPORARY: &str = "pglite_port.is_temporary";

/// Name of an exported mutable `i32` global. If it is not zero, the process began with the caches of system catalogs that
/// another one has made.
pub const HAS_CACHES: &str = "pglite_port.has_caches";

/// Name of an exported mutable `i32` global. If it is not zero, the process is not a client's: others begin with what it
/// leaves behind. It has no settings of its role or database, runs no triggers, and stops where it would exit.
pub const IS_MODEL: &str = "pglite_port.is_model";

/// Name of an exported mutable `i32` global. It counts how often the backend has compared the depth of its stack.
const STACK_CHECKS: &str = "pglite_port.stack_checks";

/// The globals that the rewriter adds to the backend, behind its own.
const ADDED_GLOBALS: [&str; 5] = [HAS_CHECKPOINTER, IS_TEMPORARY, HAS_CACHES, IS_MODEL, STACK_CHECKS];

/// Name of the function that `InitPostgres` calls to authenticate its client, and that the host calls for a backend that
/// was started alone. It is exported, and has no parameters and no result.
pub const AUTHENTICATION: &str = "PerformAuthentication";

/// PGlite's backend, ready to be compiled.
pub struct Instrumented {
    /// All code, no data: it defines an empty memory and exports it as `memory`, and imports the hooks from
    /// [`HOOK_MODULE`].
    pub code: Vec<u8>,
    /// The contents of a fresh backend's memory.
    pub memory: Vec<u8>,
    /// The facts about both that a host needs.
    pub facts: Facts,
    /// The functions that were found.
    pub findings: Vec<Finding>,
}

/// A function of PGlite that was searched for and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name in C.
    pub name: &'static str,
    /// Its index in the published file.
    pub index: u32,
    /// The evidence by which it was recognised.
    pub evidence: String,
}

/// Name under which a side module's start function is exported, if it has one.
///
/// It zeroes memory and computes globals. The loader must call it, once in the life of a memory: in a clone it would
/// reset the side module's variables, which the clone's memory already contains.
pub const SIDE_MODULE_START: &str = "pglite_port.start";

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
pub enum InstrumentError {
    /// It is not a WebAssembly module.
    #[error("not a well-formed WebAssembly module: {0}")]
    Malformed(#[from] BinaryReaderError),
    /// It uses a feature of WebAssembly that the encoder does not have.
    #[error("the WebAssembly module cannot be encoded again: {0}")]
    Encode(#[from] wasm_encoder::reencode::Error<Infallible>),
    /// It is not built as expected.
    #[error("this WebAssembly module is not built as PGlite's are: {0}")]
    Unsupported(String),
    /// A function is missing, exists more than once, or has an unexpected body.
    #[error(
        "{function}: expected {expected}, found {found}. This file is not the supported version of PGlite: \
         install that version, or see \"Moving to a new PGlite version\" in ARCHITECTURE.md"
    )]
    Evidence {
        /// Its name in C.
        function: String,
        /// The evidence by which it is recognised.
        expected: String,
        /// What was found instead.
        found: String,
    },
}

/// Prepares `pglite.wasm` for compilation.
///
/// # Errors
/// If the file is not a version of PGlite in which every function and fact is found exactly once.
pub fn instrument(wasm: &[u8]) -> Result<Instrumented, InstrumentError> {
    let module = Module::parse(wasm)?;
    module.refuse_passive_data()?;
    let limits = PageLimits::of(&module)?;
    let (data, zeroed) = (module.static_data()?, initial_memory::zeroed_by_start(&module)?);
    let memory = initial_memory::initial_memory(limits, &data, &zeroed)?;
    let found = Found::search(&module, &memory)?;
    safepoints::check(&module)?;
    let facts = Facts::gather(&module, &memory, &found, limits)?;

    let around = Surroundings {
        found: &found,
        my_proc_pid: facts.address("MyProcPid")?,
        interrupt_pending: facts.address("InterruptPending")?,
        first_added_global: u32::try_from(module.globals.len()).unwrap_or(u32::MAX),
        first_hook: module.imported_functions,
        first_hook_type: u32::try_from(module.types.len()).unwrap_or(u32::MAX),
    };
    let mut rewrite = Rewrite {
        hooks: &Hook::ALL,
        globals: &ADDED_GLOBALS,
        exports: hidden_globals(&module),
        without_data: true,
        own_memory: true,
        safepoints: Safepoints::Loops,
        names: names(&module, &found),
        ..Rewrite::default()
    };
    rewrite.exports.push(("memory".to_owned(), ExportKind::Memory, 0));
    for target in targets() {
        let function = found.function(target.name)?;
        for &change in target.changes {
            rewrite.edits.entry(function).or_default().extend(around.edits(&module, target, change)?);
            if matches!(change, Change::Export) {
                rewrite.exports.push((target.name.to_owned(), ExportKind::Func, function));
            }
        }
    }
    let (waits, timeouts) = (semaphores::waits(&module, &around)?, real_time::timeouts(&module, &around)?);
    for (function, edit) in waits.into_iter().chain(timeouts) {
        rewrite.edits.entry(function).or_default().push(edit);
    }
    rewrite.outline(&module, authentication(&module, &found, &facts)?)?;
    // A function may have several changes, and the table does not order them.
    rewrite.edits.values_mut().for_each(|edits| edits.sort_by_key(|edit| edit.at.start));
    let finding =
        |(target, index): (&Target, u32)| Finding { name: target.name, index, evidence: target.expectation() };
    let findings = found.all().map(finding).collect();
    let code = longjmp::lower_longjmp(&rewrite.apply(&module)?)?;
    Ok(Instrumented { code, memory, facts, findings })
}

/// The [`code`](Instrumented::code) of the file with this SHA-256 with copies of its smallest functions in place of calls
/// that are made often. A program that counts calls gets code that does so instead.
///
/// # Errors
/// If `code` is not a module.
pub fn inline_calls(code: &[u8], sha256: &str) -> Result<Vec<u8>, InstrumentError> {
    if cfg!(feature = "record-calls") {
        // What is copied is not called any more.
        return recording::record(code);
    }
    inlining::inline(code, &Calls::counted(sha256))
}

/// The part of `InitPostgres` that becomes [`AUTHENTICATION`].
fn authentication(module: &Module, found: &Found, facts: &Facts) -> Result<Outline, InstrumentError> {
    let function = found.function("InitPostgres")?;
    let parameters = module.function_type(function).map_or(0, |ty| ty.params().len());
    let parameters = u32::try_from(parameters).unwrap_or(u32::MAX);
    let my_proc_port = facts.address("MyProcPort")?;
    found.read(module, "InitPostgres", |target, operators| {
        Outline::authentication(target, function, parameters, operators, my_proc_port)
    })
}

/// Prepares a module that has one instance only and needs only the change of `longjmp`: `initdb.wasm`.
///
/// # Errors
/// If the bytes are not a module, or its `longjmp` is not Emscripten's.
pub fn instrument_plain(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    longjmp::lower_longjmp(wasm)
}

/// The room in bytes for the data of a module that imports its memory, from its memory base on.
pub const IMPORTING_DATA: u32 = 1 << 20;

/// The same for a module that imports its memory and its table, which it then exports as well: `pg_dump.wasm`.
///
/// # Errors
/// As those of [`instrument_plain`]; if its data need more room than [`IMPORTING_DATA`].
pub fn instrument_importing(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    let data = static_memory(wasm)?;
    if data > IMPORTING_DATA {
        return Err(InstrumentError::Unsupported(format!("its data need {data} bytes, more than {IMPORTING_DATA}")));
    }
    let exports = vec![
        ("memory".to_owned(), ExportKind::Memory, 0),
        ("__indirect_function_table".to_owned(), ExportKind::Table, 0),
    ];
    longjmp::lower_longjmp(&Rewrite { exports, ..Rewrite::default() }.apply(&Module::parse(wasm)?)?)
}

/// The bytes of memory that an Emscripten module needs for its data, by its section `dylink.0`.
fn static_memory(wasm: &[u8]) -> Result<u32, InstrumentError> {
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::CustomSection(section) = payload?
            && let KnownCustom::Dylink0(subsections) = section.as_known()
        {
            for subsection in subsections {
                if let Dylink0Subsection::MemInfo(info) = subsection? {
                    return Ok(info.memory_size);
                }
            }
        }
    }
    Err(InstrumentError::Unsupported("it does not say how much memory its data need (dylink.0)".to_owned()))
}

/// Prepares a side module (the `.so` of an extension or of PL/pgSQL) for being loaded, and for clones whose memory
/// already contains it.
///
/// Its data segments are left out, because the loader writes them. Nothing runs when it is instantiated. Functions that
/// it imports and defines itself are no longer imported.
///
/// # Errors
/// If the bytes are not a module, or it uses data segments for anything but writing them when it is instantiated; if it
/// has no memory.
pub fn instrument_side_module(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    side_module(wasm, Safepoints::Loops)
}

/// As [`instrument_side_module`], for a side module that did not come with the program: it can also be stopped where a
/// function begins, so that one that calls itself without a loop keeps the turn no longer than others.
///
/// # Errors
/// As those of [`instrument_side_module`].
pub fn instrument_foreign_side_module(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    side_module(wasm, Safepoints::LoopsAndEntries)
}

fn side_module(wasm: &[u8], safepoints: Safepoints) -> Result<Vec<u8>, InstrumentError> {
    let resolved = own_imports::resolve(wasm)?;
    let module = Module::parse(resolved.as_deref().unwrap_or(wasm))?;
    module.refuse_passive_data()?;
    if module.memory.is_none() {
        return Err(InstrumentError::Unsupported("it has no memory, which safepoints write to".to_owned()));
    }
    let start = module.start.map(|start| (SIDE_MODULE_START.to_owned(), ExportKind::Func, start));
    let exports = hidden_globals(&module).into_iter().chain(start).collect();
    let rewrite = Rewrite { exports, without_data: true, safepoints, ..Rewrite::default() };
    rewrite.apply(&module)
}

/// Export names of a prepared side module's own mutable globals. A clone has to set them to their captured values,
/// because it does not call [`SIDE_MODULE_START`].
///
/// # Errors
/// If the bytes are not a module.
pub fn side_module_globals(wasm: &[u8]) -> Result<Vec<String>, InstrumentError> {
    Ok(Module::parse(wasm)?.mutable_globals().into_iter().map(|global| global.name).collect())
}

/// Exports for the mutable globals that have none.
fn hidden_globals(module: &Module) -> Vec<(String, ExportKind, u32)> {
    let hidden = module.mutable_globals().into_iter().filter(|global| !global.is_exported);
    hidden.map(|global| (global.name, ExportKind::Global, global.index)).collect()
}

/// Every function that [`instrument`] searches for, each after those by which it is found.
fn targets() -> impl Iterator<Item = &'static Target> {
    TARGETS.iter().chain(publishing::TARGETS)
}

/// Names for backtraces: those in the module, those of exports, and those of the functions that were found.
fn names(module: &Module, found: &Found) -> BTreeMap<u32, String> {
    let mut names: BTreeMap<u32, String> =
        module.names.iter().map(|(&index, &name)| (index, name.to_owned())).collect();
    for export in module.exports.iter().filter(|export| export.kind == ExternalKind::Func) {
        names.entry(export.index).or_insert_with(|| export.name.to_owned());
    }
    for (target, function) in found.all() {
        names.insert(function, target.name.to_owned());
    }
    names
}

#[cfg(test)]
mod tests;
