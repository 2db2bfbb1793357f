//! Starting `PostgreSQL` in a backend, and shutting it down.

use anyhow::{Context, bail, ensure};

use super::Backend;
use crate::{guest::call, instrument::IS_TEMPORARY, postgres::process::EXIT_ALIVE};

/// The path of the executable that the guest gets as its `argv[0]`.
pub(crate) const EXECUTABLE: &str = "/pglite/bin/postgres";

/// The path of the cluster's data directory in the guest's files.
pub(crate) const DATA_DIRECTORY: &str = "/pglite/data";

/// The first parameters of every backend: those of PGlite (`pglite.ts`: `defaultStartParams`), except for two with
/// which it would differ from `PostgreSQL` for its users: `-O`, which allows changes of system tables, and a
/// `search_path`.
const START_PARAMETERS: &[&str] = &["--single", "-j", "-clog_checkpoints=false"];

/// Files in memory need no syncs.
pub(crate) const IN_MEMORY: &str = "-F";

/// Parameters that come after all others, because other values do not work: the host does not start worker processes,
/// and provides shared memory in one way only.
pub(crate) const FIXED_PARAMETERS: &[&str] = &[
    "-cmax_worker_processes=0",
    "-cmax_parallel_workers=0",
    "-cmax_parallel_workers_per_gather=0",
    "-cmax_parallel_maintenance_workers=0",
    "-cio_method=sync",
    // A process does one operation at a time; more would take a megabyte of shared memory from every cluster.
    "-cio_max_concurrency=1",
    "-cshared_memory_type=mmap",
    "-cdynamic_shared_memory_type=posix",
    // The processes that summarize and archive WAL do not run, so WAL would be kept for ever.
    "-csummarize_wal=off",
    "-carchive_mode=off",
];

/// The value that settings of the command line have for a parameter. `PostgreSQL` takes the last one, and does not look at
/// the case of names.
pub(crate) fn parameter<'a>(settings: &'a [(String, String)], name: &str) -> Option<&'a str> {
    settings.iter().rfind(|(set, _)| set.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Backend {
    /// Starts `PostgreSQL` on the cluster in the backend's files, connected to `database` as the bootstrap superuser,
    /// with further arguments.
    ///
    /// # Errors
    /// When it does not start; its own messages are in the log.
    pub(crate) fn boot(&mut self, database: &str, settings: &[String]) -> anyhow::Result<()> {
        self.call::<i32, i32>("pgl_setPGliteActive", 1)?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let arguments =
            [START_PARAMETERS, &[IN_MEMORY], &settings, FIXED_PARAMETERS, &["-D", DATA_DIRECTORY, database]].concat();
        let status = call::main(&mut self.store, EXECUTABLE, &arguments)?;
        ensure!(status == EXIT_ALIVE, "PostgreSQL did not start on database \"{database}\" (exit status {status})");
        self.call::<(), ()>("pgl_startPGlite", ()).context("PostgreSQL cannot be made to listen")
    }

    /// Starts `PostgreSQL` as the postmaster of the cluster in the backend's files, with further arguments, and
    /// returns its exit status. [`Setup::before_fork`](crate::guest::Setup::before_fork) stops it where it would begin
    /// to fork.
    ///
    /// # Errors
    /// When the guest traps, and those of the hook.
    pub(super) fn run_postmaster(&mut self, settings: &[String]) -> anyhow::Result<i32> {
        // With PGlite's mode off, an exit of PostgreSQL ends the process.
        self.call::<i32, i32>("pgl_setPGliteActive", 0)?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        call::main(
            &mut self.store,
            EXECUTABLE,
            &[START_PARAMETERS, &settings, FIXED_PARAMETERS, &["-D", DATA_DIRECTORY, "postgres"]].concat(),
        )
    }

    /// Shuts `PostgreSQL` down: it writes the shutdown checkpoint, after which another backend can start from its
    /// files.
    ///
    /// # Errors
    /// When it does not exit with status 0.
    pub(crate) fn shut_down(mut self) -> anyhow::Result<()> {
        self.call::<i32, i32>("pgl_setPGliteActive", 0)?;
        // It may be a copy of a session's backend, which is to be frozen.
        self.set_global(IS_TEMPORARY, false)?;
        match self.exit()? {
            0 => Ok(()),
            status => bail!("PostgreSQL ended with exit status {status}"),
        }
    }

    /// Exits through `proc_exit`, with its callbacks, and returns the exit status.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn exit(&mut self) -> anyhow::Result<i32> {
        match self.call::<i32, ()>("proc_exit", 0) {
            Ok(()) => bail!("PostgreSQL did not exit"),
            Err(error) => call::exit_status(error),
        }
    }
}
