//! The functions of PGlite that we call or change: by what each is recognised, and what is done with it.
//!
//! This table is what has to be looked at when a new PGlite version is refused.

use super::hooks::Hook;

/// A function of PGlite.
pub(super) struct Target {
    /// Its name in C; a function that is exported under this name by us, or refused by this name.
    pub(super) name: &'static str,
    pub(super) signature: Signature,
    pub(super) evidence: Evidence,
    pub(super) changes: &'static [Change],
}

/// Numbers of parameters and results. All are `i32`: what C's `int`, `long` and pointers are in wasm32.
#[derive(Clone, Copy)]
pub(super) struct Signature {
    pub(super) parameters: usize,
    pub(super) results: usize,
    /// Whether the first parameter is an `i64` instead: what C's `uint64` is.
    pub(super) begins_with_i64: bool,
}

/// What exactly one function of the module must answer to.
pub(super) enum Evidence {
    /// It is exported under its name.
    Exported,
    /// Its body refers to all of these string constants: `__func__` and `__FILE__` of its error reports, and messages.
    Mentions(&'static [&'static str]),
    /// It is the only function that the function of this name calls, which is a target above it in the table.
    CalledBy(&'static str),
    /// The function `caller` calls it, and it calls `callee`; both are targets above it in the table.
    Between { caller: &'static str, callee: &'static str },
    /// It compares its first parameter with the process id, calls `raise` if they are equal, else sets `errno`:
    /// Emscripten's `system/lib/libc/musl/src/signal/kill.c` as one whole body.
    KillItself,
    /// The function that the body found by [`Evidence::KillItself`] calls.
    CalledByKill,
    /// It compares `MyProcPid` with the process id and calls the exported `pqsignal_be` and `raise`:
    /// `wrapper_handler` in PostgreSQL's `src/port/pqsignal.c`, which has no name string.
    ChecksProcessIdOfSignal,
    /// Under a postmaster it sets one of a list of flags and sends `SIGUSR1`: `SendPostmasterSignal` in `PostgreSQL`'s
    /// `src/backend/storage/ipc/pmsignal.c`, which has no name string.
    SignalsPostmaster,
    /// The function `caller`, a target above it in the table, calls it, and it looks at all of these exported
    /// variables.
    Reads { caller: &'static str, variables: &'static [&'static str] },
    /// It measures the stack with the variables that [`Evidence::Exported`] `check_stack_depth`, above it in the
    /// table, uses.
    MeasuresStack,
}

/// What is done with a function.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// It is exported under its name.
    Export,
    /// It calls the host first, with its own parameters.
    Enter(Hook),
    /// The host does its work for characters that are not ASCII.
    ReplaceBeyondAscii(Hook),
    /// It knows no locale but those that the host knows.
    RefuseLocales,
    /// The host does its work: its body passes its parameters on.
    Replace(Hook),
    /// It does nothing.
    Nothing,
    /// Where the global [`super::HAS_CHECKPOINTER`] is not zero it passes its parameters to the host and returns true.
    LeaveToCheckpointer(Hook),
    /// A process id that the compiler put in place of `getpid()` becomes a load of `MyProcPid`.
    OwnProcessId,
    /// It returns `MyProcPid` once that is set.
    AnswerProcessId,
    /// The host has a say in how deep the stack is.
    StackDepth,
    /// It remembers what it has reported.
    RememberReport,
    /// It forgets what was reported before it reports everything.
    ForgetReports,
    /// It calls the host where it called `poll()`.
    Wait,
    /// It calls the host, and turns a negative answer into `errno` and -1.
    Kill,
    /// It sends the bytes of `MyCancelKey` where it sent the low half of its address.
    CancelKey,
}

const fn signature(parameters: usize, results: usize) -> Signature {
    Signature { parameters, results, begins_with_i64: false }
}

const fn signature_with_i64(parameters: usize, results: usize) -> Signature {
    Signature { begins_with_i64: true, ..signature(parameters, results) }
}

/// Every function that [`super::instrument`] looks for.
pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "getpid",
        signature: signature(0, 1),
        evidence: Evidence::Exported,
        changes: &[Change::AnswerProcessId],
    },
    Target { name: "kill", signature: signature(2, 1), evidence: Evidence::KillItself, changes: &[Change::Kill] },
    // Runs the handler of a signal as the C library does: blocked signals stay pending. For the host to deliver one.
    Target { name: "raise", signature: signature(1, 1), evidence: Evidence::CalledByKill, changes: &[Change::Export] },
    Target {
        name: "wrapper_handler",
        signature: signature(1, 0),
        evidence: Evidence::ChecksProcessIdOfSignal,
        changes: &[Change::OwnProcessId],
    },
    Target {
        name: "proc_exit",
        signature: signature(1, 0),
        evidence: Evidence::Mentions(&["proc_exit", "ipc.c", "proc_exit() called in child process"]),
        changes: &[Change::OwnProcessId, Change::Export],
    },
    Target {
        name: "ProcKill",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["ProcKill", "proc.c", "ProcKill() called in child process"]),
        changes: &[Change::OwnProcessId],
    },
    Target {
        name: "AuxiliaryProcKill",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["AuxiliaryProcKill", "proc.c", "AuxiliaryProcKill() called in child process"]),
        changes: &[Change::OwnProcessId],
    },
    // The moment before a postmaster's child takes a slot in shared memory.
    Target {
        name: "InitProcess",
        signature: signature(0, 0),
        evidence: Evidence::Mentions(&["InitProcess", "proc.c", "proc header uninitialized"]),
        changes: &[Change::Enter(Hook::InitProcess), Change::Export],
    },
    Target {
        name: "PostgresMain",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["PostgresMain", "postgres.c", "could not generate random cancel key"]),
        changes: &[Change::Export],
    },
    // BackendInitialize is inlined into it.
    Target {
        name: "BackendMain",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["BackendInitialize", "backend_startup.c", "connection received: host=%s"]),
        changes: &[Change::Export],
    },
    Target {
        name: "InitPostgres",
        signature: signature(6, 0),
        evidence: Evidence::Mentions(&["InitPostgres", "postinit.c"]),
        changes: &[Change::Export],
    },
    Target {
        name: "InitializeSessionUserId",
        signature: signature(3, 0),
        evidence: Evidence::Mentions(&["InitializeSessionUserId", "miscinit.c"]),
        changes: &[Change::Export],
    },
    Target {
        name: "process_postgres_switches",
        signature: signature(4, 0),
        evidence: Evidence::Mentions(&["process_postgres_switches", "postgres.c"]),
        changes: &[],
    },
    Target {
        name: "process_startup_options",
        signature: signature(2, 0),
        evidence: Evidence::Between { caller: "InitPostgres", callee: "process_postgres_switches" },
        changes: &[Change::Export],
    },
    // What ALTER DATABASE and ALTER ROLE have set. process_settings, which calls it, is inlined into InitPostgres.
    Target { name: "ProcessGUCArray", signature: signature(4, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "ApplySetting",
        signature: signature(5, 0),
        evidence: Evidence::Between { caller: "InitPostgres", callee: "ProcessGUCArray" },
        changes: &[Change::Export],
    },
    // A backend's entry in pg_stat_activity.
    Target {
        name: "pgstat_bestart_initial",
        signature: signature(0, 0),
        evidence: Evidence::Reads { caller: "InitPostgres", variables: &["MyBackendType", "MyProcPid", "MyProcPort"] },
        changes: &[Change::Export],
    },
    Target {
        name: "pgstat_bestart_final",
        signature: signature(0, 0),
        evidence: Evidence::Reads {
            caller: "InitPostgres",
            variables: &["MyBackendType", "MyDatabaseId", "application_name"],
        },
        changes: &[Change::Export],
    },
    // For session_preload_libraries and local_preload_libraries: process_session_preload_libraries is inlined into
    // InitPostgres.
    Target {
        name: "load_libraries",
        signature: signature(3, 0),
        evidence: Evidence::Mentions(&["load_libraries", "miscinit.c"]),
        changes: &[Change::Export],
    },
    Target {
        name: "EventTriggerOnLogin",
        signature: signature(0, 0),
        evidence: Evidence::Mentions(&["EventTriggerOnLogin", "event_trigger.c"]),
        changes: &[Change::Export],
    },
    // WaitEventSetWaitBlock, which carries the name, is inlined into it.
    Target {
        name: "WaitEventSetWait",
        signature: signature(5, 1),
        evidence: Evidence::Mentions(&["WaitEventSetWaitBlock", "waiteventset.c"]),
        changes: &[Change::Wait],
    },
    Target {
        name: "pg_usleep",
        signature: signature(1, 0),
        evidence: Evidence::Exported,
        changes: &[Change::Replace(Hook::PgUsleep)],
    },
    Target {
        name: "ProcessInterrupts",
        signature: signature(0, 0),
        evidence: Evidence::Exported,
        changes: &[Change::Enter(Hook::ProcessInterrupts)],
    },
    // It reads from a pipe that only a postmaster's children have. VACUUM asks whenever it has slept.
    Target {
        name: "PostmasterIsAliveInternal",
        signature: signature(0, 1),
        evidence: Evidence::Mentions(&["PostmasterIsAliveInternal", "pmsignal.c"]),
        changes: &[Change::Replace(Hook::PostmasterIsAlive)],
    },
    // PGlite's RequestCheckpoint makes every checkpoint by itself: the half that asks the checkpointer is not in the
    // file.
    Target {
        name: "CreateCheckPoint",
        signature: signature(1, 1),
        evidence: Evidence::Mentions(&["CreateCheckPoint", "xlog.c", "can't create a checkpoint during recovery"]),
        changes: &[Change::LeaveToCheckpointer(Hook::RequestCheckpoint), Change::Export],
    },
    // XLogWrite calls it when it begins a segment of WAL. In PostgreSQL it then asks for a checkpoint if there are
    // too many; PGlite has removed that.
    Target {
        name: "XLogFileInit",
        signature: signature_with_i64(2, 1),
        evidence: Evidence::Mentions(&["XLogFileInit", "xlog.c"]),
        changes: &[Change::Enter(Hook::WalSegment)],
    },
    // Puts requests to sync files into a queue for the checkpointer; see `Facts::checkpointer`.
    Target {
        name: "ForwardSyncRequest",
        signature: signature(2, 1),
        evidence: Evidence::Mentions(&["ForwardSyncRequest", "ForwardSyncRequest must not be called in checkpointer"]),
        changes: &[],
    },
    // The three lists of callbacks that proc_exit runs. A child must not run those of the postmaster.
    Target { name: "before_shmem_exit", signature: signature(2, 0), evidence: Evidence::Exported, changes: &[] },
    Target { name: "on_shmem_exit", signature: signature(2, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "on_proc_exit",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["on_proc_exit", "ipc.c", "out of on_proc_exit slots"]),
        changes: &[],
    },
    // Marks a slot of the postmaster's that a backend without one has not got. The host knows its children.
    Target {
        name: "RegisterPostmasterChildActive",
        signature: signature(0, 0),
        evidence: Evidence::Between { caller: "InitProcess", callee: "on_shmem_exit" },
        changes: &[Change::Nothing],
    },
    // Where the postmaster's process id and the reasons for its signals are.
    Target {
        name: "SendPostmasterSignal",
        signature: signature(1, 0),
        evidence: Evidence::SignalsPostmaster,
        changes: &[],
    },
    // A session's `pg_hba.conf` is the postmaster's, which reads it again when it is told to.
    Target {
        name: "load_hba",
        signature: signature(0, 1),
        evidence: Evidence::Mentions(&["load_hba", "hba.c"]),
        changes: &[Change::Export],
    },
    // Where `whereToSendOutput` is.
    Target { name: "pgl_startPGlite", signature: signature(0, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "PostgresSendReadyForQueryIfNecessary",
        signature: signature(0, 0),
        evidence: Evidence::Exported,
        changes: &[],
    },
    Target { name: "PostgresMainLoopOnce", signature: signature(0, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "pgl_sendConnData",
        signature: signature(0, 0),
        evidence: Evidence::Exported,
        changes: &[Change::CancelKey],
    },
    // Where the heap is; see `Facts`.
    Target { name: "malloc", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    // ParameterStatus: PGlite does not remember what it has told the client, and would tell it again.
    Target { name: "strcmp", signature: signature(2, 1), evidence: Evidence::Exported, changes: &[] },
    Target { name: "strdup", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    Target { name: "free", signature: signature(1, 0), evidence: Evidence::Exported, changes: &[] },
    Target { name: "hash_seq_init", signature: signature(2, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "BeginReportingGUCOptions",
        signature: signature(0, 0),
        evidence: Evidence::Between { caller: "pgl_sendConnData", callee: "hash_seq_init" },
        changes: &[Change::ForgetReports],
    },
    Target {
        name: "ReportGUCOption",
        signature: signature(1, 0),
        evidence: Evidence::Between { caller: "BeginReportingGUCOptions", callee: "strcmp" },
        changes: &[Change::RememberReport],
    },
    Target {
        name: "check_stack_depth",
        signature: signature(0, 0),
        evidence: Evidence::Exported,
        changes: &[Change::StackDepth],
    },
    Target {
        name: "stack_is_too_deep",
        signature: signature(0, 1),
        evidence: Evidence::MeasuresStack,
        changes: &[Change::StackDepth],
    },
    // For the two tables of encodings that they read; see `Facts`.
    Target {
        name: "check_encoding_conversion_args",
        signature: signature(5, 0),
        evidence: Evidence::Exported,
        changes: &[],
    },
    Target { name: "pg_encoding_max_length", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    // What setlocale and newlocale ask for each category (musl, src/locale/locale_map.c). It takes any name for a
    // locale's.
    Target {
        name: "__get_locale",
        signature: signature(2, 1),
        evidence: Evidence::Mentions(&["LC_ALL", "LANG", "C.UTF-8", "POSIX"]),
        changes: &[Change::RefuseLocales],
    },
    // musl maps \u{df} to \u{1e9e}, and knows Unicode 13 only.
    Target { name: "towupper_l", signature: signature(2, 1), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "towupper",
        signature: signature(1, 1),
        evidence: Evidence::CalledBy("towupper_l"),
        changes: &[Change::ReplaceBeyondAscii(Hook::ToUpper)],
    },
    Target { name: "towlower_l", signature: signature(2, 1), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "towlower",
        signature: signature(1, 1),
        evidence: Evidence::CalledBy("towlower_l"),
        changes: &[Change::ReplaceBeyondAscii(Hook::ToLower)],
    },
    // Warns of languages that are not there, which is no more than half the truth about one whose data is not there.
    Target {
        name: "icu_validate_locale",
        signature: signature(1, 0),
        evidence: Evidence::Mentions(&["icu_validate_locale", "pg_locale.c"]),
        changes: &[Change::Enter(Hook::OpenCollator)],
    },
    // Every use of an ICU collation begins here.
    Target {
        name: "pg_ucol_open",
        signature: signature(1, 1),
        evidence: Evidence::Mentions(&["pg_ucol_open", "pg_locale_icu.c"]),
        changes: &[Change::Enter(Hook::OpenCollator)],
    },
    // What ICU's parser of rules calls for an [import]. CollationLoader::loadRules (icu4c/source/i18n/ucol_res.cpp)
    // is inlined.
    Target {
        name: "BundleImporter::getRules",
        signature: signature(6, 0),
        evidence: Evidence::Mentions(&["collations", "Sequence"]),
        changes: &[Change::Enter(Hook::ImportRules)],
    },
];
