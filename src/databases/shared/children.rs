//! The processes of a cluster that serve no client: `PostgreSQL`'s auxiliary processes and autovacuum. Each is a fork
//! of the postmaster with its own thread.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::anyhow;

use super::running::{Event, Running};
use crate::{
    backend::{Backend, program::Program},
    cluster::{Crashed, Priority, Signal},
    engine::THREAD_STACK,
    guest::Setup,
    log::{LineConsole, LogSink, Recent},
    postgres::{child, process},
    session::panic_text,
};

/// The task of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Recovers the cluster when it starts.
    Startup,
    /// Makes checkpoints, the last of which shuts the cluster down.
    Checkpointer,
    /// Writes changed pages before their buffers are needed for other pages.
    BackgroundWriter,
    /// Writes WAL of asynchronous commits.
    WalWriter,
    /// Decides which database needs VACUUM and ANALYZE.
    AutovacuumLauncher,
    /// Runs VACUUM and ANALYZE in one database.
    AutovacuumWorker,
}

impl Role {
    /// Its name in `child_process_kinds` (`PostgreSQL`, `src/backend/postmaster/launch_backend.c`), which is also the
    /// name of its thread.
    fn name(self) -> &'static str {
        match self {
            Self::Startup => child::STARTUP,
            Self::Checkpointer => child::CHECKPOINTER,
            Self::BackgroundWriter => child::BACKGROUND_WRITER,
            Self::WalWriter => child::WAL_WRITER,
            Self::AutovacuumLauncher => child::AUTOVACUUM_LAUNCHER,
            Self::AutovacuumWorker => child::AUTOVACUUM_WORKER,
        }
    }

    /// Whether an exit with this status is no crash, after which shared memory could be damaged
    /// (`process_pm_child_exit` in `postmaster.c`).
    pub(super) fn may_exit(self, status: i32) -> bool {
        match self {
            Self::AutovacuumWorker => [0, 1, NOT_STARTED].contains(&status),
            Self::AutovacuumLauncher => [0, NOT_STARTED].contains(&status),
            _ => status == 0,
        }
    }
}

/// In place of the exit status of a process that could not be started for lack of memory, and has changed nothing.
pub(super) const NOT_STARTED: i32 = -1;

/// The children of one postmaster.
pub(super) struct Children {
    running: Arc<Running>,
    program: Arc<Program>,
    log: LogSink,
    /// The last lines of their logs.
    recent: Recent,
    /// The role and the thread of each process, by process id.
    live: BTreeMap<i32, (Role, JoinHandle<()>)>,
}

impl Children {
    pub(super) fn new(running: Arc<Running>, program: Arc<Program>, log: LogSink, recent: Recent) -> Self {
        Self { running, program, log, recent, live: BTreeMap::new() }
    }

    /// Starts a process. Its end is reported as an [`Event::Ended`].
    ///
    /// # Errors
    /// When the system has no more threads.
    pub(super) fn start(&mut self, role: Role) -> anyhow::Result<()> {
        let seats = &self.running.seats;
        let seat = match role {
            Role::Checkpointer => seats.join_as(process::CHECKPOINTER, Priority::Background),
            _ => seats.join(Priority::Background),
        };
        let process_id = seat.process_id();
        let (running, program) = (self.running.clone(), self.program.clone());
        let console = LineConsole::new(self.log.clone(), "postgres").remembering(&self.recent);
        let work = move || {
            let run = || -> anyhow::Result<i32> {
                // A worker runs functions of users, in indexes.
                let is_unlimited = role != Role::AutovacuumWorker;
                let setup = |files| Setup { seat: Some(seat), is_unlimited, ..Setup::backend(&program, files) };
                let mut backend = match running.fork().start(&program, console, setup) {
                    Ok(backend) => backend,
                    Err(error) => {
                        tracing::error!("the {role:?} process cannot be started: {error:#}");
                        return Ok(NOT_STARTED);
                    }
                };
                run_in_turn(&mut backend, |backend| backend.run_auxiliary(role.name()))
            };
            let ended = catch_unwind(AssertUnwindSafe(run));
            let ended = ended.unwrap_or_else(|panic| Err(anyhow!("its thread panicked: {}", panic_text(&*panic))));
            running.tell(Event::Ended { process_id, ended });
        };
        let thread = thread::Builder::new().name(role.name().into()).stack_size(THREAD_STACK).spawn(work)?;
        if role == Role::AutovacuumWorker {
            seats.tally().autovacuum_workers.add(1);
        }
        self.live.insert(process_id, (role, thread));
        Ok(())
    }

    /// Removes a process that has ended, and returns its role.
    pub(super) fn forget(&mut self, process_id: i32) -> Option<Role> {
        let (role, thread) = self.live.remove(&process_id)?;
        // Sending the event is the last thing that the thread does, so this returns at once.
        let _ = thread.join();
        Some(role)
    }

    /// Waits until all have ended, as they do after a crash.
    pub(super) fn wait(&mut self) {
        while let Some((&process_id, _)) = self.live.first_key_value() {
            self.forget(process_id);
        }
    }

    /// Whether a process with this role runs.
    pub(super) fn has(&self, role: Role) -> bool {
        self.live.values().any(|(live, _)| *live == role)
    }

    /// Whether no process with another role runs.
    pub(super) fn has_only(&self, role: Role) -> bool {
        self.live.values().all(|(live, _)| *live == role)
    }

    /// Sends `signal` to the processes for whose roles `is_wanted` returns true.
    pub(super) fn send(&self, signal: Signal, is_wanted: impl Fn(Role) -> bool) {
        for (process_id, _) in self.live.iter().filter(|(_, (role, _))| is_wanted(*role)) {
            self.running.seats.send(*process_id, Some(signal));
        }
    }
}

/// Runs a process of a cluster from its first turn to its exit. A trap or a panic of the process is a crash of the
/// whole cluster, because the process may have left shared memory damaged.
///
/// # Errors
/// Those of `run`; [`Crashed`] when another process has crashed.
pub(super) fn run_in_turn<T>(
    backend: &mut Backend,
    run: impl FnOnce(&mut Backend) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    backend.take_turn()?;
    let ran = match catch_unwind(AssertUnwindSafe(|| run(backend))) {
        // A process that waits at a safepoint when another one crashes can only end with a trap.
        Ok(Err(_)) if backend.cluster_has_crashed() => Ok(Err(Crashed.into())),
        ran => ran,
    };
    if !matches!(&ran, Ok(Ok(_))) && !matches!(&ran, Ok(Err(error)) if error.is::<Crashed>()) {
        backend.crash();
    }
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
