//! `shared` mode: one cluster whose every connection is a session of its own, and what a postmaster does for it.
//!
//! * `mod`: starting the cluster, its sessions, and starting it again after a crash
//! * `first`: the first backend, which recovers the cluster, makes its checkpoints, and shuts it down
//! * `autovacuum`: VACUUM and ANALYZE without being asked
//! * `conversation`: a client inside the program
//! * `settings`: what can be chosen

mod autovacuum;
mod conversation;
mod first;
mod settings;

use std::{sync::Arc, thread};

use anyhow::Context;
use parking_lot::Mutex;

use crate::{
    answer::first_value,
    backend::{BOOTSTRAP_USER, Child, Ended, Fork},
    cancel::Interrupt,
    cluster::{Crashed, Priority, Seat, Seats, Signal},
    connection::{Answer, Request, SessionEnd, SessionRequest, Task},
    engine::THREAD_STACK,
    error_response::{ErrorResponse, sqlstate},
    fs::Tree,
    guest::{ClientStream, Setup, client::Client},
    log::LogSink,
    program::Program,
    startup::StartupMessage,
    template::{LineConsole, Templates},
};

use autovacuum::Autovacuum;
use conversation::{Conversation, conversation};
use first::FirstBackend;
pub use settings::SharedSettings;

/// Keeps one cluster running.
pub(crate) struct Postmaster {
    program: Arc<Program>,
    templates: Arc<Templates>,
    settings: SharedSettings,
    log: LogSink,
    files: Arc<Mutex<Tree>>,
    running: Mutex<Option<Arc<Running>>>,
    autovacuum: Mutex<Option<Autovacuum>>,
}

/// A running cluster, from its start to its shutdown or crash.
struct Running {
    seats: Arc<Seats>,
    fork: Fork,
    first: FirstBackend,
}

impl Postmaster {
    /// A cluster with the files of a new one, which is started now.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(
        templates: &Arc<Templates>,
        settings: SharedSettings,
        log: LogSink,
    ) -> anyhow::Result<Arc<Self>> {
        let files = Arc::new(Mutex::new(Tree::from_frozen(templates.cluster()?)));
        let postmaster = Arc::new(Self {
            program: templates.program().clone(),
            templates: templates.clone(),
            settings,
            log,
            files,
            running: Mutex::default(),
            autovacuum: Mutex::default(),
        });
        postmaster.running()?;
        if postmaster.settings.autovacuum {
            *postmaster.autovacuum.lock() = Some(Autovacuum::start(Arc::downgrade(&postmaster))?);
        }
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
        let started = Arc::new(Running { seats, fork, first });
        *running = Some(started.clone());
        Ok(started)
    }

    /// Serves one client as a session of the cluster.
    ///
    /// # Errors
    /// When the session cannot be made.
    pub(crate) fn serve(
        self: &Arc<Self>,
        request: &SessionRequest<'_>,
        client: Box<dyn Client>,
    ) -> anyhow::Result<SessionEnd> {
        let running = self.running()?;
        let seat = running.seats.join(Priority::Client);
        let (process_id, signals) = (seat.process_id(), seat.signals().clone());
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
        let endpoints = client.endpoints();
        let client = ClientStream::new(client, request.packet).on_key(announce);
        let database = String::from_utf8_lossy(&request.startup.database).into_owned();
        let postmaster = self.clone();
        request.control.attend_requests(move |request| postmaster.attend(process_id, &database, request));
        let child = Child::client(&request.startup.database, &request.startup.user, endpoints);
        let ended = self.run(&running, seat, request.log, client, &child);
        drop(registration.lock().take());
        match ended {
            Ok(Ended::Client) => Ok(SessionEnd::ClientGone),
            Ok(Ended::Fatal) => Ok(SessionEnd::Orderly),
            Err(error) if error.is::<Crashed>() => {
                let message = "terminating connection because of crash of another server process";
                let hint = "In a moment you should be able to reconnect to the database and repeat your command.";
                Ok(SessionEnd::Refused(ErrorResponse::fatal(sqlstate::CRASH_SHUTDOWN, message).with_hint(hint)))
            }
            Err(error) => Ok(SessionEnd::Trapped(error)),
        }
    }

    /// Runs one session on this thread until it ends; if it traps, its cluster ends.
    fn run(
        &self,
        running: &Arc<Running>,
        seat: Seat,
        log: &LogSink,
        client: ClientStream,
        child: &Child<'_>,
    ) -> anyhow::Result<Ended> {
        let console = LineConsole::of_session(log.clone());
        let setup = |files| Setup { seat: Some(seat), ..Setup::backend(&self.program, files) };
        let mut backend = running.fork.start(&self.program, console, setup)?;
        backend.take_turn()?;
        let ended = backend.serve_forked(client, child);
        if let Err(error) = &ended
            && !error.is::<Crashed>()
        {
            tracing::error!("a session has crashed, its cluster is started again: {error:#}");
            self.forget(running);
            backend.crash();
        }
        ended
    }

    /// Handles what is asked of the session with that process id in `database`, on a thread of its own, because it takes time.
    fn attend(self: &Arc<Self>, process_id: i32, database: &str, request: Request) {
        let (postmaster, database) = (self.clone(), database.to_owned());
        let work = move || {
            let answer = match &request.task {
                Task::Freeze { name, key } => postmaster.freeze(process_id, &database, name, key.as_deref()),
                Task::Reset => {
                    let message =
                        "a shared database has no template to be put back to; reset is for isolated connections";
                    Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, message))
                }
            };
            request.answer(answer);
        };
        // A request that no thread can be had for answers for itself when it is dropped.
        if let Err(error) = thread::Builder::new().name("request".into()).stack_size(THREAD_STACK).spawn(work) {
            tracing::error!("a request cannot be handled: {error}");
        }
    }

    /// Makes a template from the cluster as it is now; clones of it are for clients that ask for `database`. Transactions that are open are not part of it.
    fn freeze(self: &Arc<Self>, process_id: i32, database: &str, name: &str, key: Option<&str>) -> Answer {
        let is_open = format!("SELECT xact_start IS NOT NULL FROM pg_stat_activity WHERE pid = {process_id}");
        let rows = self.open_worker(database).and_then(|session| session.query(&is_open))?;
        if first_value(&rows) == Some("t") {
            return Err(ErrorResponse::freeze_in_transaction());
        }
        let running = self.running.lock().clone().context("the cluster is not running")?;
        let files = running.first.freeze()?;
        self.templates.freeze(name, database, key, &files)?;
        Ok(Vec::new())
    }

    /// Opens a session as an autovacuum worker in `database`.
    ///
    /// # Errors
    /// When the cluster is not running, or refuses it.
    fn open_worker(self: &Arc<Self>, database: &str) -> anyhow::Result<Conversation> {
        let running = self.running.lock().clone().context("the cluster is not running")?;
        let (ours, theirs) = conversation();
        let (postmaster, database) = (self.clone(), database.to_owned());
        let work = move || {
            let child = Child::autovacuum_worker(database.as_bytes(), BOOTSTRAP_USER.as_bytes());
            let packet = StartupMessage::packet(&[("user", BOOTSTRAP_USER), ("database", &database)]);
            let client = ClientStream::new(Box::new(theirs), &packet);
            let seat = running.seats.join(Priority::Background);
            if let Err(error) = postmaster.run(&running, seat, &postmaster.log, client, &child) {
                tracing::warn!("autovacuum: {error:#}");
            }
        };
        thread::Builder::new().name("autovacuum worker".into()).stack_size(THREAD_STACK).spawn(work)?;
        ours.start()?;
        Ok(ours)
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
        if let Some(autovacuum) = self.autovacuum.lock().take() {
            autovacuum.stop();
        }
        let running = self.running.lock().take();
        if let Some(running) = running {
            running.first.shut_down();
        }
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        // The first backend is nobody's session.
        self.running.lock().as_ref().map_or(0, |running| running.seats.count().saturating_sub(1))
    }

    /// How often sessions have had their turns: whether anything has happened.
    fn turns(&self) -> u64 {
        self.running.lock().as_ref().map_or(0, |running| running.seats.turns())
    }
}
