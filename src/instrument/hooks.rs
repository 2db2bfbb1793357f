//! The host functions that an instrumented module imports from [`HOOK_MODULE`].

use wasm_encoder::ValType;

/// Name of the module that an instrumented module imports its hooks from.
pub const HOOK_MODULE: &str = "pglite_port";

/// A host function that an instrumented module calls. Parameters and results are `i32` where nothing else is said; a
/// `timestamp` is an `i64`, in microseconds since 2000 (`TimestampTz`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `init_process()`: the backend is about to take its slot in shared memory. Linear memory is in the state of a
    /// postmaster's memory before it forks.
    InitProcess,
    /// `wait_event_set_wait(timeout_ms, latch, set)`: the backend waits for an event.
    ///
    /// It is called where `WaitEventSetWait` called `poll()`: the latch was not set, and its `maybe_sleeping` is 1, so
    /// that setting it calls `kill(owner, SIGURG)`. `timeout_ms` is the caller's whole timeout (-1 for none, 0 to
    /// return at once); `latch` is the address of a `struct Latch`, or 0; `set` that of the
    /// `WaitEventSet`. The host returns when the latch is set, when
    /// `timeout_ms` have passed on the monotonic clock (if it returns earlier, it is called again with the same
    /// timeout), or when it has run a signal handler.
    WaitEventSetWait,
    /// `pg_usleep(microseconds)`: sleeps; returns at once if the number is not positive.
    PgUsleep,
    /// `process_interrupts()`: `InterruptPending` was set and the backend reached a `CHECK_FOR_INTERRUPTS()`, even
    /// while `InterruptHoldoffCount` or `CritSectionCount` are not zero.
    ProcessInterrupts,
    /// `kill(pid, signal) -> 0 or -errno`: sends a signal, also to the caller itself. Signal 0 only checks whether
    /// `pid` exists. A negative `pid` is that of a process group, which here is one process. Error numbers are WASI's.
    Kill,
    /// `request_checkpoint(flags)`: a process other than the checkpointer requests a checkpoint. `flags` are those of
    /// `RequestCheckpoint` (`src/include/access/xlog.h`); with `CHECKPOINT_WAIT` it is complete when the host returns.
    RequestCheckpoint,
    /// `stack_depth(bytes) -> bytes`: the depth of the stack, for `max_stack_depth`. The argument is the depth in
    /// linear memory. It is called for some of the comparisons with `max_stack_depth` only.
    StackDepth,
    /// `semaphore_wait(flag)`: waits until another session has cleared the byte at that address in shared memory, for
    /// example when it has released a lightweight lock. If the host returns too early, it is called again.
    SemaphoreWait,
    /// `postmaster_is_alive() -> bool`: whether the postmaster still runs.
    PostmasterIsAlive,
    /// `wal_segment()`: the process begins a WAL segment. It may hold lightweight locks and be in a critical section.
    WalSegment,
    /// `time_of_day(timeval, zone) -> 0`: `gettimeofday`. `timeval` is the address of a `struct timeval`; the zone is
    /// ignored.
    TimeOfDay,
    /// `timestamp() -> timestamp`: `GetCurrentTimestamp`, the same time as [`Self::TimeOfDay`].
    Timestamp,
    /// `real_timestamp() -> timestamp`: what `GetCurrentTimestamp` would return if the cluster's clock were not set.
    RealTimestamp,
    /// `shown_timestamp(timestamp) -> timestamp`: the time that the cluster's clock, as it is set now, shows at a real
    /// time.
    ShownTimestamp,
    /// `locale_exists(name) -> bool`: whether the C library has the locale with the NUL-terminated name at that
    /// address. An empty name means the environment's locale.
    LocaleExists,
    /// `to_upper(code_point) -> code_point`: C's `towupper`, for characters that are not ASCII.
    ToUpper,
    /// `to_lower(code_point) -> code_point`: C's `towlower`, for characters that are not ASCII.
    ToLower,
    /// `open_collator(locale)`: ICU is about to open the collator of the locale whose NUL-terminated name is at that
    /// address. The host raises an SQL error where ICU would use the root collation instead.
    OpenCollator,
    /// `import_rules(importer, locale, type)`: ICU is about to import rules from the locale and the type of collation
    /// whose NUL-terminated names are at these addresses. The host raises an SQL error as in [`Self::OpenCollator`].
    ImportRules,
    /// `clear_mapping(address, length)`: the C library has allocated this memory for an anonymous mapping, and the host
    /// clears it. `address` is a multiple of 64 KiB.
    ClearMapping,
    /// `client_is_trusted() -> bool`: the backend is about to authenticate its client, as the rules of `pg_hba.conf` say
    /// ([`AUTHENTICATION`](super::AUTHENTICATION)). If the host returns true, it has sent `AuthenticationOk`, and the
    /// backend does nothing of that.
    ClientIsTrusted,
    /// `client_authenticated()`: the backend has authenticated its client as the rule says that `hba` of its `Port`
    /// points to, and is about to let it in. The host may raise an error.
    ClientAuthenticated,
    /// `database_statistics(entry, nowait)`: the process is about to add what it has counted in a database to the
    /// statistics in shared memory. `entry` is the address of a `PgStat_EntryRef`. If another process has the lock of
    /// the statistics, and `nowait` is not 0, it will not do it now.
    DatabaseStatistics,
    /// `scram_mechanisms(port, buffer)`: the backend is about to offer its client mechanisms of SASL. `buffer` is the
    /// address of a `StringInfoData`, to which the host may append names, each with its NUL.
    ScramMechanisms,
    /// `scram_exchange(state, input)`: the backend is about to handle a message of its client. `state` is the address of a
    /// `scram_state`, `input` that of the message with a final NUL, or 0.
    ScramExchange,
    /// `scram_compare(text, other) -> 0 if they are equal`: in place of `strcmp`, `text` is the name of the mechanism that
    /// the client has chosen, the type of its channel binding, or what it says to be bound to.
    ScramCompare,
    /// `is_overdue() -> bool`: `InterruptPending` was set, and the backend is about to allocate memory, where an error may
    /// be raised as at a `CHECK_FOR_INTERRUPTS()`. If the host returns true, `ProcessInterrupts` runs.
    IsOverdue,
    /// `parse_double(text, end) -> (f64, is_answer)`: C's `strtod`, for text that is easy to parse.
    ParseDouble,
    /// `parse_float(text, end) -> (f32, is_answer)`: C's `strtof`, for text that is easy to parse.
    ParseFloat,
    /// `page_checksum(page, number) -> checksum`: `pg_checksum_page`.
    PageChecksum,
    /// `crc32c(crc, bytes, length) -> crc`: `pg_comp_crc32c_sb8`, for bytes that are many.
    Crc32c,
    /// `like(text, text_length, pattern, pattern_length, locale) -> (match, is_answer)`: `MatchText`, for patterns that
    /// begin with `%`, and have neither `_` nor `\`.
    Like,
    /// `exit(status)`: a process that others begin with ([`IS_MODEL`](super::IS_MODEL)) is about to exit, before any of
    /// its callbacks has run. The host stops it.
    Exit,
    /// `inherit_caches()`: the process has the caches of system catalogs of another one
    /// ([`HAS_CACHES`](super::HAS_CACHES)), and has entered the queue of messages about changes of catalogs.
    InheritCaches,
    /// `database_chosen()`: a process with caches of another one ([`HAS_CACHES`](super::HAS_CACHES)) has found its database
    /// and has locked it.
    DatabaseChosen,
}

impl Hook {
    /// All hooks, in the order in which they are imported.
    pub const ALL: [Self; 35] = [
        Self::InitProcess,
        Self::WaitEventSetWait,
        Self::PgUsleep,
        Self::ProcessInterrupts,
        Self::Kill,
        Self::RequestCheckpoint,
        Self::StackDepth,
        Self::SemaphoreWait,
        Self::PostmasterIsAlive,
        Self::WalSegment,
        Self::TimeOfDay,
        Self::Timestamp,
        Self::RealTimestamp,
        Self::ShownTimestamp,
        Self::LocaleExists,
        Self::ToUpper,
        Self::ToLower,
        Self::OpenCollator,
        Self::ImportRules,
        Self::ClearMapping,
        Self::ClientIsTrusted,
        Self::ClientAuthenticated,
        Self::DatabaseStatistics,
        Self::ScramMechanisms,
        Self::ScramExchange,
        Self::ScramCompare,
        Self::IsOverdue,
        Self::ParseDouble,
        Self::ParseFloat,
        Self::PageChecksum,
        Self::Crc32c,
        Self::Like,
        Self::Exit,
        Self::InheritCaches,
        Self::DatabaseChosen,
    ];

    /// Its import name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InitProcess => "init_process",
            Self::WaitEventSetWait => "wait_event_set_wait",
            Self::PgUsleep => "pg_usleep",
            Self::ProcessInterrupts => "process_interrupts",
            Self::Kill => "kill",
            Self::RequestCheckpoint => "request_checkpoint",
            Self::StackDepth => "stack_depth",
            Self::SemaphoreWait => "semaphore_wait",
            Self::PostmasterIsAlive => "postmaster_is_alive",
            Self::WalSegment => "wal_segment",
            Self::TimeOfDay => "time_of_day",
            Self::Timestamp => "timestamp",
            Self::RealTimestamp => "real_timestamp",
            Self::ShownTimestamp => "shown_timestamp",
            Self::LocaleExists => "locale_exists",
            Self::ToUpper => "to_upper",
            Self::ToLower => "to_lower",
            Self::OpenCollator => "open_collator",
            Self::ImportRules => "import_rules",
            Self::ClearMapping => "clear_mapping",
            Self::ClientIsTrusted => "client_is_trusted",
            Self::ClientAuthenticated => "client_authenticated",
            Self::DatabaseStatistics => "database_statistics",
            Self::ScramMechanisms => "scram_mechanisms",
            Self::ScramExchange => "scram_exchange",
            Self::ScramCompare => "scram_compare",
            Self::IsOverdue => "is_overdue",
            Self::ParseDouble => "parse_double",
            Self::ParseFloat => "parse_float",
            Self::PageChecksum => "page_checksum",
            Self::Crc32c => "crc32c",
            Self::Like => "like",
            Self::Exit => "exit",
            Self::InheritCaches => "inherit_caches",
            Self::DatabaseChosen => "database_chosen",
        }
    }

    /// Its parameters.
    pub(super) fn parameters(self) -> &'static [ValType] {
        match self {
            Self::InitProcess
            | Self::ProcessInterrupts
            | Self::PostmasterIsAlive
            | Self::WalSegment
            | Self::Timestamp
            | Self::RealTimestamp
            | Self::ClientIsTrusted
            | Self::ClientAuthenticated
            | Self::IsOverdue
            | Self::InheritCaches
            | Self::DatabaseChosen => &[],
            Self::ShownTimestamp => &[ValType::I64],
            Self::PgUsleep
            | Self::RequestCheckpoint
            | Self::StackDepth
            | Self::SemaphoreWait
            | Self::LocaleExists
            | Self::ToUpper
            | Self::ToLower
            | Self::OpenCollator
            | Self::Exit => &[ValType::I32],
            Self::Kill
            | Self::ClearMapping
            | Self::TimeOfDay
            | Self::DatabaseStatistics
            | Self::ScramMechanisms
            | Self::ScramExchange
            | Self::ScramCompare
            | Self::ParseDouble
            | Self::ParseFloat
            | Self::PageChecksum => &[ValType::I32, ValType::I32],
            Self::WaitEventSetWait | Self::ImportRules | Self::Crc32c => &[ValType::I32; 3],
            Self::Like => &[ValType::I32; 5],
        }
    }

    /// Its results.
    pub(super) fn results(self) -> &'static [ValType] {
        match self {
            Self::Timestamp | Self::RealTimestamp | Self::ShownTimestamp => &[ValType::I64],
            Self::Kill
            | Self::TimeOfDay
            | Self::StackDepth
            | Self::PostmasterIsAlive
            | Self::LocaleExists
            | Self::ToUpper
            | Self::ToLower
            | Self::ClientIsTrusted
            | Self::ScramCompare
            | Self::IsOverdue
            | Self::PageChecksum
            | Self::Crc32c => &[ValType::I32],
            Self::ParseDouble => &[ValType::F64, ValType::I32],
            Self::ParseFloat => &[ValType::F32, ValType::I32],
            Self::Like => &[ValType::I32; 2],
            _ => &[],
        }
    }

    /// Its position among the imported hooks.
    pub(super) fn position(self) -> u32 {
        self as u32
    }
}
