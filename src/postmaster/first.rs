//! The first backend of a cluster: it recovers it, keeps house for it, and shuts it down. No client ever talks to it.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::Context;
use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};

use super::Settings;
use crate::{
    backend::{Backend, Fork},
    cluster::{Priority, Seats},
    engine::THREAD_STACK,
    fs::{Files, Tree},
    guest::{Setup, client::Waker},
    log::LogSink,
    program::Program,
    template::LineConsole,
};

/// The process id that is compiled into PGlite.
const PROCESS_ID: i32 = 42;

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
        settings: &Settings,
        seats: &Arc<Seats>,
        log: &LogSink,
    ) -> anyhow::Result<(Self, Fork)> {
        let bell = Arc::new(Bell::default());
        let checkpoint = bell.clone();
        seats.set_checkpointer(move |done| checkpoint.ring(|news| news.checkpoints.push(done)));
        let (started, start) = bounded(1);
        let boot = {
            let (program, files, settings) = (program.clone(), files.clone(), settings.clone());
            let (seats, log, bell) = (seats.clone(), log.clone(), bell.clone());
            move || match boot(&program, files, &settings, &seats, log) {
                Ok((backend, fork)) => {
                    let _ = started.send(Ok(fork));
                    keep_house(backend, &bell);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new().name("first backend".into()).stack_size(THREAD_STACK).spawn(boot)?;
        let fork = start.recv().context("the first backend's thread is gone")??;
        Ok((Self { thread: Mutex::new(Some(thread)), bell }, fork))
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
    settings: &Settings,
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
fn keep_house(mut backend: Backend, bell: &Arc<Bell>) {
    backend.signals().set_waker(Some(bell.waker()));
    loop {
        let news = bell.wait();
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
        if let Err(error) = attend(&mut backend, &news) {
            tracing::error!("the first backend has crashed: {error:#}");
            backend.crash();
            return;
        }
        backend.signals().set_waker(Some(bell.waker()));
        backend.end_turn();
    }
}

/// Does what the news ask for. Those who wait for a checkpoint learn of its end when `news` are dropped.
///
/// # Errors
/// When the backend traps.
fn attend(backend: &mut Backend, news: &News) -> anyhow::Result<()> {
    backend.handle_idle_interrupts()?;
    if !news.checkpoints.is_empty() {
        backend.execute("CHECKPOINT")?;
    }
    Ok(())
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
}

impl Bell {
    fn ring(&self, tell: impl FnOnce(&mut News)) {
        tell(&mut self.news.lock());
        self.rung.notify_one();
    }

    /// Waits for news, and takes them.
    fn wait(&self) -> News {
        let mut news = self.news.lock();
        self.rung.wait_while(&mut news, |news| !news.stop && !news.signal && news.checkpoints.is_empty());
        std::mem::take(&mut news)
    }

    fn waker(self: &Arc<Self>) -> Waker {
        let bell = self.clone();
        Waker::new(move || bell.ring(|news| news.signal = true))
    }
}
