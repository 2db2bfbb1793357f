//! The host functions that an instrumented module imports from [`HOOK_MODULE`].

use wasm_encoder::ValType;

/// Name of the module that an instrumented module imports its hooks from.
pub const HOOK_MODULE: &str = "pglite_port";

/// A host function that an instrumented module calls. All parameters and results are `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `init_process()`: the backend is about to take its slot in shared memory. Linear memory now is what a
    /// postmaster's is before it forks.
    InitProcess,
    /// `wait_event_set_wait(timeout_ms, latch)`: the backend has nothing to do until something happens.
    ///
    /// It is called where `WaitEventSetWait` called `poll()`: the latch has been looked at and was not set, and
    /// `maybe_sleeping` in it is 1, so that whoever sets it calls `kill(owner, SIGURG)`. `timeout_ms` is the caller's
    /// whole timeout (-1 for none, 0 to return at once); `latch` is the address of a `struct Latch`, or 0. The host
    /// returns when the latch is set, when `timeout_ms` have fully passed on the monotonic clock (otherwise it is
    /// called again with the same timeout), or when it has run a signal handler.
    WaitEventSetWait,
    /// `pg_usleep(microseconds)`: sleep; not at all if the number is not positive.
    PgUsleep,
    /// `process_interrupts()`: `InterruptPending` was set and the backend came past a `CHECK_FOR_INTERRUPTS()`, also
    /// where `InterruptHoldoffCount` or `CritSectionCount` are not zero.
    ProcessInterrupts,
    /// `kill(pid, signal) -> 0 or -errno`: send a signal, also to the caller itself; signal 0 only asks whether `pid`
    /// exists; a negative `pid` is that of a process group, which here is one process. Numbers of errors are WASI's.
    Kill,
    /// `request_checkpoint(flags)`: a process that is not the checkpointer wants a checkpoint. `flags` are those of
    /// `RequestCheckpoint` (`src/include/access/xlog.h`); with `CHECKPOINT_WAIT` it is made before the host returns.
    RequestCheckpoint,
    /// `stack_depth(bytes) -> bytes`: how deep the stack is, for `max_stack_depth`; the argument is its depth in
    /// linear memory.
    StackDepth,
    /// `semaphore_wait(semaphore)`: another session has to do something first, such as release a lightweight lock.
    /// The host returns when one may have done it; otherwise it is called again.
    SemaphoreWait,
    /// `postmaster_is_alive() -> bool`: whether there is still somebody whom the session works for.
    PostmasterIsAlive,
    /// `wal_segment()`: the process begins a segment of WAL. It may hold lightweight locks and be in a critical
    /// section.
    WalSegment,
    /// `locale_exists(name) -> bool`: whether the C library has the locale with the NUL-terminated name at that
    /// address; an empty name means the environment's locale.
    LocaleExists,
    /// `to_upper(code_point) -> code_point`: C's `towupper`, for what is not ASCII.
    ToUpper,
    /// `to_lower(code_point) -> code_point`: C's `towlower`, for what is not ASCII.
    ToLower,
    /// `open_collator(locale)`: ICU is about to open the collator of the locale whose NUL-terminated name is at that
    /// address. The host raises an SQL error where ICU would fall back to another language's.
    OpenCollator,
    /// `import_rules(importer, locale, type)`: ICU is about to read the rules that others import from the locale and
    /// the type of collation whose NUL-terminated names are at these addresses. The host raises an SQL error as at
    /// [`Self::OpenCollator`].
    ImportRules,
}

impl Hook {
    /// All hooks, in the order in which they are imported.
    pub const ALL: [Self; 15] = [
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
        Self::LocaleExists,
        Self::ToUpper,
        Self::ToLower,
        Self::OpenCollator,
        Self::ImportRules,
    ];

    /// The name under which it is imported.
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
            Self::LocaleExists => "locale_exists",
            Self::ToUpper => "to_upper",
            Self::ToLower => "to_lower",
            Self::OpenCollator => "open_collator",
            Self::ImportRules => "import_rules",
        }
    }

    /// Its parameters.
    pub(super) fn parameters(self) -> &'static [ValType] {
        match self {
            Self::InitProcess | Self::ProcessInterrupts | Self::PostmasterIsAlive | Self::WalSegment => &[],
            Self::PgUsleep
            | Self::RequestCheckpoint
            | Self::StackDepth
            | Self::SemaphoreWait
            | Self::LocaleExists
            | Self::ToUpper
            | Self::ToLower
            | Self::OpenCollator => &[ValType::I32],
            Self::WaitEventSetWait | Self::Kill => &[ValType::I32, ValType::I32],
            Self::ImportRules => &[ValType::I32, ValType::I32, ValType::I32],
        }
    }

    /// Its results.
    pub(super) fn results(self) -> &'static [ValType] {
        match self {
            Self::Kill
            | Self::StackDepth
            | Self::PostmasterIsAlive
            | Self::LocaleExists
            | Self::ToUpper
            | Self::ToLower => &[ValType::I32],
            _ => &[],
        }
    }

    /// Its place among the hooks.
    pub(super) fn position(self) -> u32 {
        self as u32
    }
}
