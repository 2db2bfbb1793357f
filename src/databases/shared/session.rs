//! A client's session of the cluster, and what is done for it between two of its statements.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context, bail};
use parking_lot::Mutex;

use super::{
    super::attached::{Attachment, Kind},
    Postmaster,
    children::run_in_turn,
    crash_report,
    running::{Event, Running},
};
use crate::{
    backend::{Backend, Login, Served, SessionExit},
    client::Client,
    cluster::{Crashed, KeepsLocks, Priority, Signal},
    engine::THREAD_STACK,
    guest::{ClientStream, Setup},
    log::LineConsole,
    protocol::{
        boundary::TransactionStatus,
        error_response::{ErrorResponse, sqlstate},
    },
    quota::Limits,
    session::{Outcome, PendingTask, SessionEnd, SessionStart, Task, cancel::Interrupt},
};

/// Keeps a session on the list of those that may send WAL to a subscriber; dropping it takes the session off.
struct Sender<'a> {
    running: &'a Running,
    process_id: i32,
}

impl<'a> Sender<'a> {
    fn enter(running: &'a Running, process_id: i32) -> Self {
        running.senders.lock().insert(process_id);
        Self { running, process_id }
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        self.running.senders.lock().remove(&self.process_id);
        self.running.tell(Event::SenderEnded);
    }
}

/// How the service of a client by one process ended.
enum Once {
    Ended(SessionEnd),
    /// Not begun: the process had outdated caches.
    Outdated(Box<dyn Client>),
}

impl Postmaster {
    /// Serves the client of a connection with this attachment, as a session of the cluster.
    ///
    /// # Errors
    /// When the session cannot be made.
    pub(crate) fn serve(
        self: &Arc<Self>,
        attachment: &Attachment,
        start: &SessionStart<'_>,
        client: Box<dyn Client>,
    ) -> anyhow::Result<SessionEnd> {
        // It has to run before there are places, and may have crashed by the time that this connection has one.
        let running = self.keeper.running_for(start.control).and_then(|_| {
            let kind = if start.startup.asks_for_replication() { Kind::Sender } else { Kind::Session };
            let [most, all] = self.settings.places(kind);
            // Without one PostgreSQL refuses it.
            let _ = attachment.take_place(kind, most) || attachment.take_place(kind, all);
            start.control.refusal().map_or_else(|| self.keeper.running_for(start.control), Err)
        });
        match running {
            Ok(running) => self.serve_in(&running, start, client),
            Err(report) => Ok(SessionEnd::Refused(report)),
        }
    }

    fn serve_in(
        self: &Arc<Self>,
        running: &Arc<Running>,
        start: &SessionStart<'_>,
        client: Box<dyn Client>,
    ) -> anyhow::Result<SessionEnd> {
        let (postmaster, database) = (self.clone(), String::from_utf8_lossy(&start.startup.database).into_owned());
        let transaction = start.transaction.clone();
        transaction.on_first({
            let (postmaster, database) = (postmaster.clone(), database.clone());
            move || *postmaster.last_database.lock() = database
        });
        start.control.handle_tasks_with(move |task| {
            if let Some(task) = postmaster.simulation.perform(task) {
                postmaster.perform(&database, &transaction, task);
            }
            None
        });
        self.tally.enter(&start.transaction.activity());
        // A sender looks at the catalogs of all databases, or of none.
        let may_inherit = !start.startup.asks_for_replication();
        match self.serve_once(running, start, client, may_inherit)? {
            Once::Ended(end) => Ok(end),
            Once::Outdated(client) => match self.serve_once(running, start, client, false)? {
                Once::Ended(end) => Ok(end),
                Once::Outdated(_) => bail!("a session without caches cannot begin, because they are outdated"),
            },
        }
    }

    /// Serves the client in a process that begins with the caches of a model if it `may_inherit` any.
    fn serve_once(
        self: &Arc<Self>,
        running: &Arc<Running>,
        start: &SessionStart<'_>,
        client: Box<dyn Client>,
        may_inherit: bool,
    ) -> anyhow::Result<Once> {
        let seat = running.seats.join(Priority::Client);
        let (process_id, signals) = (seat.process_id(), seat.signals().clone());
        // It may become one that sends WAL to a subscriber (`src/backend/replication/walsender.c`).
        let is_sender = start.startup.asks_for_replication();
        let _sender = is_sender.then(|| Sender::enter(running, process_id));
        let interrupted = start.control.clone();
        let interrupt = move |interrupt| match interrupt {
            Interrupt::Cancel => signals.send_until_heard(Signal::INT),
            // The checkpointer tells it when the cluster is shut down.
            Interrupt::ShutDown if interrupted.leaves_last() => {}
            Interrupt::Terminate | Interrupt::ShutDown => signals.send_until_heard(Signal::TERM),
            // What its client has sent is still carried out, as in PostgreSQL, as long as it checks for interrupts: the
            // session ends when it reads the end of its input.
            Interrupt::ClientGone => signals.send_until_heard(Signal::PIPE),
        };
        // Without a key until PostgreSQL has made one.
        let registration = Arc::new(Mutex::new(Some(start.control.register(process_id, &[], interrupt.clone()))));
        let announce = {
            let (registration, control) = (registration.clone(), start.control.clone());
            move |secret: &[u8]| {
                let mut registration = registration.lock();
                drop(registration.take());
                *registration = Some(control.register(process_id, secret, interrupt));
            }
        };
        let endpoints = client.endpoints();
        let admitted = start.control.clone();
        let client = ClientStream::new(client, start.packet).trusted(start.is_trusted);
        let client = client.on_key(announce).on_admitted(move || {
            if is_sender {
                admitted.leave_last();
            }
            admitted.settle();
        });
        let login = Login { database: &start.startup.database, user: &start.startup.user, endpoints };
        let (console, program) = (LineConsole::of_session(start.log.clone()), self.templates.program());
        let setup = |files| Setup { seat: Some(seat), ..self.simulation.of_session(Setup::backend(program, files)) };
        let begun = Instant::now();
        let fork = running.fork();
        let backend = if may_inherit {
            fork.start_session(&start.startup.database, program, console, setup)?
        } else {
            fork.start(program, console, setup)?
        };
        self.tally.starts.observe(begun.elapsed());
        let ended = Self::run(running, backend, client, login);
        drop(registration.lock().take());
        let end = match ended {
            Ok(Served::Outdated(client)) => {
                return client.into_client().map(Once::Outdated).context("a session has lost its client");
            }
            Ok(Served::Ended(SessionExit::Client)) => SessionEnd::ClientGone,
            Ok(Served::Ended(SessionExit::Fatal)) => SessionEnd::Orderly,
            Ok(Served::Ended(SessionExit::Unheard)) => {
                self.tally.unresponsive.add(1);
                SessionEnd::Refused(ErrorResponse::terminated())
            }
            Err(error) if error.is::<KeepsLocks>() => {
                self.tally.unresponsive.add(1);
                tracing::error!("{error}: the cluster recovers");
                SessionEnd::Refused(ErrorResponse::terminated())
            }
            Err(error) if error.is::<Crashed>() => SessionEnd::Refused(crash_report()),
            Err(error) => {
                self.tally.traps.add(1);
                SessionEnd::Trapped(error)
            }
        };
        Ok(Once::Ended(end))
    }

    /// Runs one session on this thread until it ends; if it traps or panics, its cluster ends.
    fn run(running: &Running, mut backend: Backend, client: ClientStream, login: Login<'_>) -> anyhow::Result<Served> {
        let ran =
            catch_unwind(AssertUnwindSafe(|| run_in_turn(&mut backend, |backend| backend.serve_forked(client, login))));
        if !matches!(&ran, Ok(Ok(_))) && !matches!(&ran, Ok(Err(error)) if error.is::<Crashed>()) {
            tracing::error!("a session has crashed, its cluster is started again");
            running.tell(Event::Crashed);
        }
        ran.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Does a task of a session in `database`, on a thread of its own, because it takes time.
    fn perform(self: &Arc<Self>, database: &str, transaction: &TransactionStatus, pending: PendingTask) {
        let (postmaster, database, transaction) = (self.clone(), database.to_owned(), transaction.clone());
        let work = move || {
            let outcome = match &pending.task {
                Task::Freeze { name, key, limits } => {
                    postmaster.freeze(&database, &transaction, name, key.as_deref(), *limits)
                }
                Task::Reset => {
                    let message =
                        "a shared database has no template to be put back to; reset is for isolated connections";
                    Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, message))
                }
                Task::Choose(choice) => postmaster.simulation.choose(*choice),
            };
            pending.finish(outcome);
        };
        // A task that no thread can be had for reports that itself when it is dropped.
        if let Err(error) = thread::Builder::new().name("request".into()).stack_size(THREAD_STACK).spawn(work) {
            tracing::error!("a request cannot be handled: {error}");
        }
    }

    /// Makes a template from the cluster as it is now; its clones serve connections to `database`.
    /// Transactions that are open are not part of it.
    fn freeze(
        &self,
        database: &str,
        transaction: &TransactionStatus,
        name: &str,
        key: Option<&str>,
        limits: Limits,
    ) -> Outcome {
        if transaction.is_open() {
            return Err(ErrorResponse::freeze_in_transaction());
        }
        let files = self.branch()?;
        Ok(self.templates.freeze(name, database, key, limits, &files)?)
    }
}
