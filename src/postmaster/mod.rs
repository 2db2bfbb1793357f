//! `shared` mode: one cluster whose every connection is a session of its own, and what a postmaster does for it.
//!
//! * `mod`: starting the cluster, its sessions, and starting it again after a crash
//! * `first`: the first backend, which recovers the cluster, keeps house, and shuts it down
//! * `settings`: what can be chosen

mod first;
mod settings;

use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;

use crate::{
    backend::{Ended, Fork},
    cancel::Interrupt,
    cluster::{Crashed, Priority, Seats, Signal},
    connection::{SessionEnd, SessionRequest},
    error_response::{ErrorResponse, sqlstate},
    fs::{FrozenTree, Tree},
    guest::{ClientStream, Setup, client::Client},
    log::LogSink,
    program::Program,
    template::LineConsole,
};

use first::FirstBackend;
pub use settings::Settings;

/// Keeps one cluster running.
pub(crate) struct Postmaster {
    program: Arc<Program>,
    settings: Settings,
    log: LogSink,
    files: Arc<Mutex<Tree>>,
    running: Mutex<Option<Arc<Running>>>,
}

/// A running cluster, from its start to its shutdown or crash.
struct Running {
    seats: Arc<Seats>,
    fork: Arc<Fork>,
    first: FirstBackend,
}

impl Postmaster {
    /// A cluster with the files of `cluster`, which is started now.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(
        program: Arc<Program>,
        cluster: Arc<FrozenTree>,
        settings: Settings,
        log: LogSink,
    ) -> anyhow::Result<Self> {
        let files = Arc::new(Mutex::new(Tree::from_frozen(cluster)));
        let postmaster = Self { program, settings, log, files, running: Mutex::default() };
        postmaster.running()?;
        Ok(postmaster)
    }

    /// The running cluster; it is started if it is not, as after a crash, from which its first backend then recovers.
    fn running(&self) -> anyhow::Result<Arc<Running>> {
        let mut running = self.running.lock();
        if let Some(running) = &*running {
            return Ok(running.clone());
        }
        let seats = Arc::new(Seats::default());
        let (first, fork) = FirstBackend::start(&self.program, &self.files, &self.settings, &seats, &self.log)
            .context("the cluster does not start")?;
        let started = Arc::new(Running { seats, fork: Arc::new(fork), first });
        *running = Some(started.clone());
        Ok(started)
    }

    /// Serves one client as a session of the cluster.
    ///
    /// # Errors
    /// When the session cannot be made.
    pub(crate) fn serve(&self, request: &SessionRequest<'_>, client: Box<dyn Client>) -> anyhow::Result<SessionEnd> {
        let running = self.running()?;
        let seat = running.seats.join(Priority::Client);
        let (process_id, signals) = (seat.process_id(), seat.signals().clone());
        let console = LineConsole::new(request.log.clone(), "postgres");
        let setup = |files| Setup { seat: Some(seat), ..Setup::backend(&self.program, files) };
        let mut backend = running.fork.start(&self.program, console, setup)?;
        let interrupt = move |interrupt| match interrupt {
            Interrupt::Cancel => signals.send(Signal::INT),
            Interrupt::Terminate => signals.send(Signal::TERM),
            // What its client has sent is still carried out, as in PostgreSQL: the session ends when it reads the end of its input.
            Interrupt::ClientGone => {}
        };
        // Until PostgreSQL has made the key, nobody knows one.
        let registration = Arc::new(Mutex::new(Some(request.control.register(process_id, &[], interrupt.clone()))));
        let announce = {
            let (registration, control) = (registration.clone(), request.control.clone());
            move |secret: &[u8]| {
                let mut registration = registration.lock();
                drop(registration.take());
                *registration = Some(control.register(process_id, secret, interrupt));
            }
        };
        let client = ClientStream::new(client, request.packet).on_key(announce);
        let ended = backend.take_turn().map_err(anyhow::Error::from).and_then(|()| backend.serve_forked(client, request.startup));
        drop(registration.lock().take());
        match ended {
            Ok(Ended::Client) => Ok(SessionEnd::ClientGone),
            Ok(Ended::Fatal) => Ok(SessionEnd::Orderly),
            Err(error) if error.is::<Crashed>() => {
                let message = "terminating connection because of crash of another server process";
                Ok(SessionEnd::Refused(ErrorResponse::fatal(sqlstate::CRASH_SHUTDOWN, message)))
            }
            Err(error) => {
                self.forget(&running);
                backend.crash();
                Ok(SessionEnd::Trapped(error))
            }
        }
    }

    /// The cluster has crashed: the next connection finds it started again.
    fn forget(&self, crashed: &Arc<Running>) {
        let mut running = self.running.lock();
        if running.as_ref().is_some_and(|running| Arc::ptr_eq(running, crashed)) {
            *running = None;
        }
    }

    /// Shuts the cluster down, after its sessions have ended.
    pub(crate) fn shut_down(&self) {
        if let Some(running) = self.running.lock().take() {
            running.first.shut_down();
        }
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        // The first backend is nobody's session.
        self.running.lock().as_ref().map_or(0, |running| running.seats.count().saturating_sub(1))
    }
}
