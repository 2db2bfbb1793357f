//! The functions of PGlite that the host calls or changes: the evidence for each, and the changes.
//!
//! When a new PGlite version is refused, update this table. It is long so that it is one table.

use wasmparser::ValType;

use super::{
    HAS_CACHES, IS_MODEL, IS_TEMPORARY,
    hooks::Hook,
    target::{Change, Evidence, Target, signature, signature_of, signature_with_i64},
};

/// Every function that [`super::instrument`] searches for.
pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "getpid",
        signature: signature(0, 1),
        evidence: Evidence::Exported,
        changes: &[Change::AnswerProcessId],
    },
    Target { name: "kill", signature: signature(2, 1), evidence: Evidence::KillItself, changes: &[Change::Kill] },
    // Runs the handler of a signal as the C library does: blocked signals stay pending. The host delivers signals with
    // it.
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
        changes: &[Change::OwnProcessId, Change::EnterIf(IS_MODEL, Hook::Exit), Change::Export],
    },
    // Its part that leaves shared memory.
    Target {
        name: "shmem_exit",
        signature: signature(1, 0),
        evidence: Evidence::Mentions(&["shmem_exit(%d): %d before_shmem_exit callbacks to make"]),
        changes: &[Change::Export],
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
    // Called before a child of the postmaster takes a slot in shared memory.
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
    Target { name: "CreateCacheMemoryContext", signature: signature(0, 0), evidence: Evidence::Exported, changes: &[] },
    Target { name: "before_shmem_exit", signature: signature(2, 0), evidence: Evidence::Exported, changes: &[] },
    // RelationCacheInitialize, InitCatalogCache, InitPlanCache, EnablePortalManager and RelationCacheInitializePhase2 are
    // inlined into it, in this order.
    Target {
        name: "InitPostgres",
        signature: signature(6, 0),
        evidence: Evidence::Mentions(&["InitPostgres", "postinit.c"]),
        changes: &[Change::InheritCaches(Hook::InheritCaches), Change::Export],
    },
    Target {
        name: "RelationCacheInitializePhase3",
        signature: signature(0, 0),
        evidence: Evidence::Mentions(&["RelationCacheInitializePhase3", "relcache.c"]),
        changes: &[Change::ReplaceIf(HAS_CACHES, Hook::DatabaseChosen)],
    },
    // Has the address of the flag that it has run; see `Facts`.
    Target {
        name: "InitializeClientEncoding",
        signature: signature(0, 0),
        evidence: Evidence::Mentions(&["InitializeClientEncoding", "mbutils.c"]),
        changes: &[],
    },
    // Has the address of the queue of messages about changed catalogs.
    Target {
        name: "SharedInvalBackendInit",
        signature: signature(1, 0),
        evidence: Evidence::Mentions(&["SharedInvalBackendInit", "sinvaladt.c"]),
        changes: &[],
    },
    // Closes the files of relations.
    Target {
        name: "FileClose",
        signature: signature(1, 0),
        evidence: Evidence::Mentions(&["FileClose", "fd.c"]),
        changes: &[],
    },
    Target { name: "pfree", signature: signature(1, 0), evidence: Evidence::Exported, changes: &[] },
    allocates("repalloc", 2),
    allocates("MemoryContextAlloc", 2),
    Target {
        name: "mdclose",
        signature: signature(2, 0),
        evidence: Evidence::CallsOnly(&["FileClose", "MemoryContextAlloc", "repalloc", "pfree"]),
        changes: &[],
    },
    Target { name: "hash_seq_init", signature: signature(2, 0), evidence: Evidence::Exported, changes: &[] },
    Target { name: "hash_seq_search", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "smgrreleaseall",
        signature: signature(0, 0),
        evidence: Evidence::CallsOnly(&["hash_seq_init", "hash_seq_search", "mdclose"]),
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
    // The settings of ALTER DATABASE and ALTER ROLE. process_settings, which calls it, is inlined into InitPostgres.
    Target { name: "ProcessGUCArray", signature: signature(4, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "ApplySetting",
        signature: signature(5, 0),
        evidence: Evidence::Between { caller: "InitPostgres", callee: "ProcessGUCArray" },
        changes: &[Change::NothingIf(IS_MODEL), Change::Export],
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
        changes: &[Change::NothingIf(IS_MODEL), Change::Export],
    },
    // WaitEventSetWaitBlock, which contains the name, is inlined into it.
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
    // Where memory is allocated PostgreSQL's code has to expect an error, "out of memory", and so one of a process that
    // was cancelled, or told to end, and does not check for interrupts for long. None of these calls another.
    allocates("palloc", 1),
    allocates("palloc0", 1),
    allocates("MemoryContextAllocZero", 2),
    // It reads from a pipe that only a postmaster's children have. VACUUM calls it after every sleep.
    Target {
        name: "PostmasterIsAliveInternal",
        signature: signature(0, 1),
        evidence: Evidence::Mentions(&["PostmasterIsAliveInternal", "pmsignal.c"]),
        changes: &[Change::Replace(Hook::PostmasterIsAlive)],
    },
    // PGlite's RequestCheckpoint makes every checkpoint by itself; its part that signals the checkpointer is not in
    // the file.
    Target {
        name: "CreateCheckPoint",
        signature: signature(1, 1),
        evidence: Evidence::Mentions(&["CreateCheckPoint", "xlog.c", "can't create a checkpoint during recovery"]),
        changes: &[Change::LeaveToCheckpointer(Hook::RequestCheckpoint), Change::Export],
    },
    // Flushes all changed buffers and files at the end of a process that has its cluster alone.
    Target {
        name: "ShutdownXLOG",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["ShutdownXLOG", "xlog.c", "shutting down"]),
        changes: &[Change::NothingIf(IS_TEMPORARY)],
    },
    // XLogWrite calls it when it begins a WAL segment. PostgreSQL then requests a checkpoint if there are too many
    // segments; PGlite has removed that.
    Target {
        name: "XLogFileInit",
        signature: signature_with_i64(0, 2, 1),
        evidence: Evidence::Mentions(&["XLogFileInit", "xlog.c"]),
        changes: &[Change::Enter(Hook::WalSegment)],
    },
    // Its temporary file has the process id in its name, and is synced before it is renamed. The other users of such a
    // name run in the startup process only (XLogFileCopy in xlog.c, timeline.c), which alone keeps the constant.
    Target {
        name: "XLogFileInitInternal",
        signature: signature_with_i64(0, 4, 1),
        evidence: Evidence::Mentions(&["XLogFileInitInternal", "xlog.c", "pg_wal/xlogtemp.%d"]),
        changes: &[Change::OwnProcessId],
    },
    // Recovery begins with two passes over all files: this asks the kernel to begin writing a file, and the second one
    // syncs it. In PGlite the first one syncs too (pg_flush_data in fd.c), so it is left out.
    Target {
        name: "pre_sync_fname",
        signature: signature(3, 0),
        evidence: Evidence::Mentions(&[
            "syncing data directory (pre-fsync), elapsed time: %ld.%02d s, current path: %s",
        ]),
        changes: &[Change::Nothing],
    },
    // Puts requests to sync files into a queue for the checkpointer; see `Facts::checkpointer`.
    Target {
        name: "ForwardSyncRequest",
        signature: signature(2, 1),
        evidence: Evidence::Mentions(&["ForwardSyncRequest", "ForwardSyncRequest must not be called in checkpointer"]),
        changes: &[],
    },
    // The three lists of callbacks that proc_exit runs. A child must not run its postmaster's.
    Target { name: "on_shmem_exit", signature: signature(2, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "on_proc_exit",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["on_proc_exit", "ipc.c", "out of on_proc_exit slots"]),
        changes: &[],
    },
    // Marks a slot of the postmaster's, which does not exist here. The host keeps the list of children.
    Target {
        name: "RegisterPostmasterChildActive",
        signature: signature(0, 0),
        evidence: Evidence::Between { caller: "InitProcess", callee: "on_shmem_exit" },
        changes: &[Change::Nothing],
    },
    // Has the addresses of the postmaster's process id and of the reasons for its signals.
    Target {
        name: "SendPostmasterSignal",
        signature: signature(1, 0),
        evidence: Evidence::SignalsPostmaster,
        changes: &[],
    },
    // A session's `pg_hba.conf` is the postmaster's, which reloads it on a signal.
    Target {
        name: "load_hba",
        signature: signature(0, 1),
        evidence: Evidence::Mentions(&["load_hba", "hba.c"]),
        changes: &[Change::Export],
    },
    // Has the address of `whereToSendOutput`.
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
    // An anonymous mapping is memory of malloc's that is cleared (Emscripten, system/lib/libc/emscripten_mmap.c).
    Target { name: "memset", signature: signature(3, 1), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "mmap",
        signature: signature_with_i64(5, 6, 1),
        evidence: Evidence::Exported,
        changes: &[Change::ClearMapping],
    },
    // Has the address of the heap's state; see `Facts`.
    Target { name: "malloc", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    // ParameterStatus: PGlite does not remember the values that it has reported, and would report them again.
    Target { name: "strcmp", signature: signature(2, 1), evidence: Evidence::Exported, changes: &[] },
    Target { name: "strdup", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    Target { name: "free", signature: signature(1, 0), evidence: Evidence::Exported, changes: &[] },
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
    // The time of day is that of the cluster's clock.
    Target {
        name: "gettimeofday",
        signature: signature(2, 1),
        evidence: Evidence::Exported,
        changes: &[Change::Replace(Hook::TimeOfDay)],
    },
    Target {
        name: "GetCurrentTimestamp",
        signature: signature_of(0, ValType::I64),
        evidence: Evidence::Exported,
        changes: &[Change::Replace(Hook::Timestamp)],
    },
    // What goes by real time: see `real_time`.
    Target { name: "time", signature: signature_of(1, ValType::I64), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "schedule_alarm",
        signature: signature_with_i64(0, 1, 0),
        evidence: Evidence::Mentions(&["schedule_alarm", "timeout.c"]),
        changes: &[],
    },
    Target { name: "WaitLatch", signature: signature(4, 1), evidence: Evidence::Exported, changes: &[] },
    Target { name: "ResetLatch", signature: signature(1, 0), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "pg_sleep",
        signature: signature(1, 1),
        evidence: Evidence::CallsOnly(&["GetCurrentTimestamp", "ProcessInterrupts", "WaitLatch", "ResetLatch"]),
        changes: &[Change::RealTime],
    },
    // The time since which a process waits for a lock is shown by pg_locks; how long it has waited is logged.
    Target {
        name: "ProcSleep",
        signature: signature(1, 1),
        evidence: Evidence::Mentions(&["ProcSleep", "proc.c"]),
        changes: &[Change::RealTime, Change::ShownWait],
    },
    // Statistics are written to shared memory once a second at most.
    Target {
        name: "pgstat_report_stat",
        signature: signature(1, 1),
        evidence: Evidence::Between { caller: "PostgresSendReadyForQueryIfNecessary", callee: "GetCurrentTimestamp" },
        changes: &[Change::RealTime],
    },
    Target {
        name: "GetCurrentTransactionStopTimestamp",
        signature: signature_of(0, ValType::I64),
        evidence: Evidence::Between { caller: "pgstat_report_stat", callee: "GetCurrentTimestamp" },
        changes: &[],
    },
    // At most once a second in each process, and at its end. The host counts what the process adds.
    Target {
        name: "pgstat_database_flush_cb",
        signature: signature(2, 1),
        evidence: Evidence::AddsDatabaseStatistics,
        changes: &[Change::Enter(Hook::DatabaseStatistics)],
    },
    // For archive_timeout: when the last WAL segment began.
    Target {
        name: "XLogWrite",
        signature: signature(3, 0),
        evidence: Evidence::Mentions(&["XLogWrite", "xlog.c"]),
        changes: &[Change::RealTime],
    },
    // For idle_replication_slot_timeout.
    Target {
        name: "ReplicationSlotRelease",
        signature: signature(0, 0),
        evidence: Evidence::Mentions(&["ReplicationSlotRelease", "slot.c"]),
        changes: &[Change::RealTime],
    },
    Target {
        name: "InvalidatePossiblyObsoleteSlot",
        signature: signature_with_i64(1, 4, 1),
        evidence: Evidence::Mentions(&["InvalidatePossiblyObsoleteSlot", "slot.c"]),
        changes: &[Change::RealTime],
    },
    // SCRAM. The parts of channel binding that need OpenSSL are left out.
    Target { name: "strcmp", signature: signature(2, 1), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "scram_get_mechanisms",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["SCRAM-SHA-256"]),
        changes: &[Change::Enter(Hook::ScramMechanisms)],
    },
    Target {
        name: "scram_init",
        signature: signature(3, 1),
        evidence: Evidence::Mentions(&["scram_init", "auth-scram.c"]),
        changes: &[Change::Compare(Hook::ScramCompare)],
    },
    // The functions that read messages are inlined into it.
    Target {
        name: "scram_exchange",
        signature: signature(6, 1),
        evidence: Evidence::Mentions(&["read_client_final_message", "auth-scram.c"]),
        changes: &[Change::Enter(Hook::ScramExchange), Change::Compare(Hook::ScramCompare)],
    },
    // Has the address of the flag that the state of `random()` was seeded; see `Facts`.
    Target { name: "drandom", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    // Has the addresses of the two tables of encodings; see `Facts`.
    Target {
        name: "check_encoding_conversion_args",
        signature: signature(5, 0),
        evidence: Evidence::Exported,
        changes: &[],
    },
    Target { name: "pg_encoding_max_length", signature: signature(1, 1), evidence: Evidence::Exported, changes: &[] },
    // setlocale and newlocale call it for each category (musl, src/locale/locale_map.c). It accepts any name of a
    // locale.
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
        changes: &[Change::ReplaceFrom { hook: Hook::ToUpper, parameter: 0, least: 0x80 }],
    },
    Target { name: "towlower_l", signature: signature(2, 1), evidence: Evidence::Exported, changes: &[] },
    Target {
        name: "towlower",
        signature: signature(1, 1),
        evidence: Evidence::CalledBy("towlower_l"),
        changes: &[Change::ReplaceFrom { hook: Hook::ToLower, parameter: 0, least: 0x80 }],
    },
    // It only warns about unknown languages; the hook refuses languages without data.
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
    // ICU's parser of rules calls it for an [import]. CollationLoader::loadRules (icu4c/source/i18n/ucol_res.cpp) is
    // inlined.
    Target {
        name: "BundleImporter::getRules",
        signature: signature(6, 0),
        evidence: Evidence::Mentions(&["collations", "Sequence"]),
        changes: &[Change::Enter(Hook::ImportRules)],
    },
    // What takes the processor of the host less time. musl parses with a type of 128 bits.
    Target {
        name: "strtod",
        signature: signature_of(2, ValType::F64),
        evidence: Evidence::Exported,
        changes: &[Change::Ask(Hook::ParseDouble)],
    },
    Target {
        name: "strtof",
        signature: signature_of(2, ValType::F32),
        evidence: Evidence::Exported,
        changes: &[Change::Ask(Hook::ParseFloat)],
    },
    // Bytes that are equal are equal characters in these two, and not in MB_MatchText. They search a text only for what
    // follows a `%`, and never call themselves with a pattern that begins with one.
    Target {
        name: "SB_MatchText",
        signature: signature(5, 1),
        evidence: Evidence::Mentions(&["SB_MatchText", "./like_match.c"]),
        changes: &[Change::AskIfBegins { hook: Hook::Like, with: b'%' }],
    },
    Target {
        name: "UTF8_MatchText",
        signature: signature(5, 1),
        evidence: Evidence::Mentions(&["UTF8_MatchText", "./like_match.c"]),
        changes: &[Change::AskIfBegins { hook: Hook::Like, with: b'%' }],
    },
    Target {
        name: "pg_checksum_page",
        signature: signature(2, 1),
        evidence: Evidence::Exported,
        changes: &[Change::Replace(Hook::PageChecksum)],
    },
    // For fewer bytes the call of the host takes longer. It reads `pg_crc32c_table`.
    Target {
        name: "pg_comp_crc32c_sb8",
        signature: signature(3, 1),
        evidence: Evidence::ReadsTable(&[0x0000_0000, 0xf26b_8303, 0xe13b_70f7, 0x1350_f3f4]),
        changes: &[Change::ReplaceFrom { hook: Hook::Crc32c, parameter: 2, least: 256 }],
    },
];

const fn allocates(name: &'static str, parameters: usize) -> Target {
    Target {
        name,
        signature: signature(parameters, 1),
        evidence: Evidence::Exported,
        changes: &[Change::ProcessInterrupts(Hook::IsOverdue)],
    }
}
