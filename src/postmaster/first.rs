//! The first backend of a cluster: it recovers it, makes its checkpoints, and shuts it down. No client ever talks to it.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};

use super::SharedSettings;
use crate::{
    backend::{Backend, Fork},
    cluster::{Priority, Seats},
    engine::THREAD_STACK,
    fs::{Files, FrozenTree, Tree},
    guest::{Setup, client::Waker},
    log::LogSink,
    program::Program,
    template::LineConsole,
};

/// The process id that is compiled into PGlite.
const PROCESS_ID: i32 = 42;

/// How often it looks whether a checkpoint is due, if anything has happened since.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a checkpoint is due: enough WAL has been written, or time has passed, since the last one (`max_wal_size`, `checkpoint_completion_target`
/// and `checkpoint_timeout`; `PostgreSQL`, `src/backend/postmaster/checkpointer.c`).
const IS_CHECKPOINT_DUE: &str = "SELECT written > pg_size_bytes(current_setting('max_wal_size')) \
        / (1 + current_setting('checkpoint_completion_target')::float8) \
    OR (written > 0 AND now() - checkpoint_time > current_setting('checkpoint_timeout')::interval) \
    FROM (SELECT pg_current_wal_insert_lsn() - redo_lsn AS written, checkpoint_time FROM pg_control_checkpoint()) AS last";

/// The first backend's thread.
pub(super) struct FirstBackend {
    thread: Mutex<Option<JoinHandle<()>>>,
    bell: Arc<Bell>,
}

impl FirstBackend {
    /// Starts the cluster in `files`, and returns what its further sessions begin with.
    ///
    /// # Errors
    /// When `PostgreSQL` does not start.
    pub(super) fn start(
        program: &Arc<Program>,
        files: &Arc<Mutex<Tree>>,
        settings: &SharedSettings,
        seats: &Arc<Seats>,
        log: &LogSink,
    ) -> anyhow::Result<(Self, Fork)> {
        let bell = Arc::new(Bell::default());
        let checkpoint = bell.clone();
        seats.set_checkpointer(move |done| checkpoint.ring(|news| news.checkpoints.push(done)));
        let (started, start) = bounded(1);
        let run = {
            let (program, files, settings) = (program.clone(), files.clone(), settings.clone());
            let (seats, log, bell) = (seats.clone(), log.clone(), bell.clone());
            move || match boot(&program, files, &settings, &seats, log) {
                Ok((backend, fork)) => {
                    let _ = started.send(Ok(fork));
                    keep_house(backend, &seats, &bell);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new().name("first backend".into()).stack_size(THREAD_STACK).spawn(run)?;
        let fork = start.recv().context("the first backend's thread is gone")??;
        Ok((Self { thread: Mutex::new(Some(thread)), bell }, fork))
    }

    /// The cluster's files after a checkpoint.
    ///
    /// # Errors
    /// When the cluster crashes meanwhile.
    pub(super) fn freeze(&self) -> anyhow::Result<Arc<FrozenTree>> {
        let (frozen, answer) = bounded(1);
        self.bell.ring(|news| news.freezes.push(frozen));
        answer.recv().context("the cluster has crashed")
    }

    /// Shuts the cluster down, and waits until that is done.
    pub(super) fn shut_down(&self) {
        self.bell.ring(|news| news.stop = true);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the first backend panicked");
        }
    }
}

fn boot(
    program: &Program,
    files: Arc<Mutex<Tree>>,
    settings: &SharedSettings,
    seats: &Arc<Seats>,
    log: LogSink,
) -> anyhow::Result<(Backend, Fork)> {
    let captured = Arc::new(Mutex::new(None));
    let capture = captured.clone();
    let files = Files::new(files, Box::new(LineConsole::new(log, "postgres")))?;
    let setup = Setup {
        seat: Some(seats.join_as(PROCESS_ID, Priority::Background)),
        before_fork: Some(Box::new(move |caller| {
            *capture.lock() = Some(Fork::capture(caller)?);
            Ok(())
        })),
        ..Setup::backend(program, files)
    };
    let mut backend = Backend::new(program, setup)?;
    backend.take_turn()?;
    backend.boot("postgres", &settings.arguments())?;
    backend.become_checkpointer(PROCESS_ID)?;
    backend.end_turn();
    let fork = captured.lock().take().context("PostgreSQL did not come past InitProcess")?;
    Ok((backend, fork))
}

/// Runs until the cluster is to be shut down, or has crashed.
fn keep_house(mut backend: Backend, seats: &Seats, bell: &Arc<Bell>) {
    backend.signals().set_waker(Some(bell.waker()));
    let mut turns = 0;
    loop {
        let news = bell.wait(Instant::now() + LOOK);
        let has_happened = seats.turns() != turns;
        if news.is_nothing() && !has_happened {
            continue;
        }
        if backend.take_turn().is_err() {
            // Another session has crashed: there is nothing to put in order, recovery will.
            return;
        }
        if news.stop {
            if let Err(error) = backend.shut_down() {
                tracing::error!("the cluster was not shut down in order, it will recover: {error:#}");
            }
            return;
        }
        if let Err(error) = attend(&mut backend, news, has_happened) {
            tracing::error!("the first backend has crashed: {error:#}");
            backend.crash();
            return;
        }
        backend.signals().set_waker(Some(bell.waker()));
        backend.end_turn();
        turns = seats.turns();
    }
}

/// Does what the news ask for, and what is due. Those who wait for a checkpoint learn of its end when `news` are dropped.
///
/// # Errors
/// When the backend traps.
fn attend(backend: &mut Backend, news: News, has_happened: bool) -> anyhow::Result<()> {
    backend.handle_idle_interrupts()?;
    let is_asked_for = !news.checkpoints.is_empty() || !news.freezes.is_empty();
    if is_asked_for || (has_happened && is_checkpoint_due(backend)?) {
        backend.execute("CHECKPOINT")?;
    }
    if !news.freezes.is_empty() {
        let frozen = backend.guest().files.tree().lock().freeze();
        for freeze in news.freezes {
            let _ = freeze.send(frozen.clone());
        }
    }
    Ok(())
}

fn is_checkpoint_due(backend: &mut Backend) -> anyhow::Result<bool> {
    if backend.is_sync_queue_filling()? {
        return Ok(true);
    }
    backend.is_true(IS_CHECKPOINT_DUE)
}

/// What wakes the first backend.
#[derive(Default)]
struct Bell {
    news: Mutex<News>,
    rung: Condvar,
}

#[derive(Default)]
struct News {
    stop: bool,
    signal: bool,
    /// Who waits for a checkpoint.
    checkpoints: Vec<Sender<()>>,
    /// Who waits for the cluster's files.
    freezes: Vec<Sender<Arc<FrozenTree>>>,
}

impl News {
    fn is_nothing(&self) -> bool {
        !self.stop && !self.signal && self.checkpoints.is_empty() && self.freezes.is_empty()
    }
}

impl Bell {
    fn ring(&self, tell: impl FnOnce(&mut News)) {
        tell(&mut self.news.lock());
        self.rung.notify_one();
    }

    /// Waits for news until `deadline`, and takes them.
    fn wait(&self, deadline: Instant) -> News {
        let mut news = self.news.lock();
        self.rung.wait_while_until(&mut news, |news| news.is_nothing(), deadline);
        std::mem::take(&mut news)
    }

    fn waker(self: &Arc<Self>) -> Waker {
        let bell = self.clone();
        Waker::new(move || bell.ring(|news| news.signal = true))
    }
}
