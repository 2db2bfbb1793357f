//! How a function of PGlite is described: its signature, the evidence by which it is found, and its changes.

use wasmparser::ValType;

use super::hooks::Hook;

/// A function of PGlite.
pub(super) struct Target {
    /// Its name in C, used for its export and in errors.
    pub(super) name: &'static str,
    pub(super) signature: Signature,
    pub(super) evidence: Evidence,
    pub(super) changes: &'static [Change],
}

/// Parameters and result. Parameters that are not named are `i32`, which is C's `int`, `long` and pointers in wasm32.
#[derive(Clone, Copy)]
pub(super) struct Signature {
    pub(super) parameters: usize,
    /// The parameter that is an `i64`, which is C's `uint64` and PostgreSQL's `TimestampTz`.
    pub(super) i64_at: Option<usize>,
    pub(super) result: Option<ValType>,
}

/// A property that exactly one function of the module must have.
pub(super) enum Evidence {
    /// It is exported under its name.
    Exported,
    /// Its body refers to all of these string constants: `__func__` and `__FILE__` of its error reports, and messages.
    Mentions(&'static [&'static str]),
    /// It is the only function that the function of this name calls, which is a target above it in the table.
    CalledBy(&'static str),
    /// The function `caller` calls it, and it calls `callee`; both are targets above it in the table.
    Between { caller: &'static str, callee: &'static str },
    /// It compares its first parameter with the process id, calls `raise` if they are equal, else sets `errno`: the
    /// whole body of Emscripten's `system/lib/libc/musl/src/signal/kill.c`.
    KillItself,
    /// The function that the body found by [`Evidence::KillItself`] calls.
    CalledByKill,
    /// It compares `MyProcPid` with the process id and calls the exported `pqsignal_be` and `raise`:
    /// `wrapper_handler` in PostgreSQL's `src/port/pqsignal.c`, which has no name string.
    ChecksProcessIdOfSignal,
    /// Under a postmaster it sets one of a list of flags and sends `SIGUSR1`: `SendPostmasterSignal` in `PostgreSQL`'s
    /// `src/backend/storage/ipc/pmsignal.c`, which has no name string.
    SignalsPostmaster,
    /// The function `caller`, a target above it in the table, calls it, and it reads all of these exported variables.
    Reads { caller: &'static str, variables: &'static [&'static str] },
    /// It reads a table in memory that begins with these numbers.
    ReadsTable(&'static [u32]),
    /// It calls these functions, targets above it in the table, and no others.
    CallsOnly(&'static [&'static str]),
    /// The same, and its code has this number.
    CallsOnlyWith { callees: &'static [&'static str], constant: i32 },
    /// It measures the stack with the same variables as [`Evidence::Exported`] `check_stack_depth`, above it in the
    /// table.
    MeasuresStack,
    /// It adds all counters of a `PgStat_StatDBEntry` to those in shared memory: `pgstat_database_flush_cb` in
    /// `PostgreSQL`'s `src/backend/utils/activity/pgstat_database.c`, which has no name string.
    AddsDatabaseStatistics,
}

/// A change of a function.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// It is exported under its name.
    Export,
    /// It first calls the host with its own parameters.
    Enter(Hook),
    /// It calls the host if that parameter, taken as unsigned, is at least that number.
    ReplaceFrom { hook: Hook, parameter: u32, least: i32 },
    /// It first asks the host with its own parameters, and returns the answer if there is one.
    Ask(Hook),
    /// The same if the text at parameter 2, whose length is parameter 3, begins with that character.
    AskIfBegins { hook: Hook, with: u8 },
    /// It refuses locales that the host does not know.
    RefuseLocales,
    /// Its body only calls the host with its parameters.
    Replace(Hook),
    /// It does nothing.
    Nothing,
    /// If the global [`super::HAS_CHECKPOINTER`] is not zero, it passes its parameters to the host and returns true.
    LeaveToCheckpointer(Hook),
    /// If that one of the added globals is not zero, it does nothing.
    NothingIf(&'static str),
    /// If that one of the added globals is not zero, it first calls the host with its own parameters.
    EnterIf(&'static str, Hook),
    /// If that one of the added globals is not zero, it only calls the host with its parameters.
    ReplaceIf(&'static str, Hook),
    /// Where it would make the caches of system catalogs, it calls the host instead if the global
    /// [`super::HAS_CACHES`] is not zero.
    InheritCaches(Hook),
    /// The constant process id that the compiler inlined for `getpid()` becomes a load of `MyProcPid`.
    OwnProcessId,
    /// It returns `MyProcPid` if that is set.
    AnswerProcessId,
    /// The host now and then adjusts the depth of the stack that it measures.
    StackDepth,
    /// It stores the value that it has reported.
    RememberReport,
    /// It clears the values reported before, and then reports everything.
    ForgetReports,
    /// It calls the host in place of `poll()`.
    Wait,
    /// It calls the host, and turns a negative result into `errno` and -1.
    Kill,
    /// Its calls of `GetCurrentTimestamp`, `GetCurrentTransactionStopTimestamp` and `time()` become calls of
    /// [`Hook::RealTimestamp`].
    RealTime,
    /// It stores the start of its wait as the cluster's clock shows it.
    ShownWait,
    /// It sends the bytes of `MyCancelKey` instead of the low half of its address.
    CancelKey,
    /// It calls the host in place of `memset`, with the address and the length.
    ClearMapping,
    /// It calls the host in place of `strcmp`.
    Compare(Hook),
    /// If `InterruptPending` is set and the host says so, it first calls `ProcessInterrupts`.
    ProcessInterrupts(Hook),
}

pub(super) const fn signature(parameters: usize, results: usize) -> Signature {
    Signature { parameters, i64_at: None, result: if results == 0 { None } else { Some(ValType::I32) } }
}

pub(super) const fn signature_with_i64(at: usize, parameters: usize, results: usize) -> Signature {
    Signature { i64_at: Some(at), ..signature(parameters, results) }
}

pub(super) const fn signature_of(parameters: usize, result: ValType) -> Signature {
    Signature { result: Some(result), ..signature(parameters, 1) }
}
