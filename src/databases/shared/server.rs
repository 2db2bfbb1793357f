//! The postmaster of a cluster from its start to its end: starts and ends its children, and handles their requests and
//! those of the host.
//!
//! It is booted up to the point at which it forks. This file does the work of `ServerLoop` and
//! `PostmasterStateMachine` (`PostgreSQL`, `src/backend/postmaster/postmaster.c`), except for accepting connections.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, unbounded};
use parking_lot::Mutex;

use super::{
    super::access::Rules,
    SharedSettings,
    children::{Children, NOT_STARTED, Role},
    process::Process,
    running::{Event, Running},
    tidy,
};
use crate::{
    backend::{Backend, Fork, HBA_FILE, program::Program},
    capacity,
    client::Waker,
    cluster::{Crashed, Priority, Seats, Signal, Slice},
    fs::{Files, Silent, Tree, put_file},
    log::{LineConsole, LogSink, Recent},
    postgres::{postmaster_signal, process},
    tally::Tally,
};

/// What a cluster is started with.
pub(super) struct Launch {
    pub(super) program: Arc<Program>,
    pub(super) files: Arc<Mutex<Tree>>,
    pub(super) settings: SharedSettings,
    /// Where what happens in it is counted.
    pub(super) tally: Arc<Tally>,
    pub(super) log: LogSink,
}

/// How a cluster ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was shut down.
    ShutDown,
    /// A client's session has left shared memory in a state that no process can go on from.
    SessionCrashed,
    /// One of the cluster's own processes has crashed, or could not be started.
    Crashed,
}

/// `PostgreSQL` has refused to start, for this reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// Runs a cluster on this thread until it ends: boots it, or goes on from `captured`. `on_start` is called with it
/// when it has recovered and accepts sessions. `without_auto_conf`: the settings of `ALTER SYSTEM` are not used, because
/// the cluster did not start with them.
///
/// # Errors
/// [`Refused`] when `PostgreSQL` does not start; others when the system lacks memory, files or threads.
pub(super) fn run(
    launch: &Launch,
    captured: Option<Fork>,
    without_auto_conf: bool,
    on_start: impl FnOnce(Arc<Running>) + Send + 'static,
) -> anyhow::Result<End> {
    let seats = Arc::new(Seats::new(launch.tally.clone(), Slice(launch.settings.slice)));
    let recent = Recent::default();
    let state = if captured.is_some() { State::Running } else { State::Starting };
    let fork = captured.map_or_else(|| boot(launch, without_auto_conf, &seats, &recent), Ok)?;
    let mut server = Server::new(launch, fork, seats, &recent, state);
    let end = match server.serve(Box::new(on_start)) {
        Err(error) if error.is::<Crashed>() => Ok(End::SessionCrashed),
        end => end,
    };
    let is_in_order = matches!(end, Ok(End::ShutDown));
    if !is_in_order {
        server.process.crash(&server.running);
    }
    server.children.wait();
    if is_in_order {
        server.in_turn(Backend::exit)?;
    }
    match end {
        // The log has the reason.
        Err(error) if error.is::<NotStarted>() => Err(Refused(recent.told()).into()),
        end => end,
    }
}

/// Boots the postmaster up to the point at which it forks.
///
/// # Errors
/// As [`run`].
pub(super) fn boot(
    launch: &Launch,
    without_auto_conf: bool,
    seats: &Arc<Seats>,
    recent: &Recent,
) -> anyhow::Result<Fork> {
    let mut files = Files::new(launch.files.clone(), Box::new(Silent))?;
    files.begin_again();
    tidy::remove_leftovers(&mut files)?;
    let without_auto_conf = without_auto_conf || launch.settings.ignore_auto_conf;
    tidy::set_aside(&mut files, launch.settings.data_directory.is_none(), without_auto_conf)?;
    drop(files);
    if let Some(rules) = &launch.settings.access.rules {
        put_file(&mut launch.files.lock(), HBA_FILE, rules.text().as_bytes().to_vec())?;
    }
    let console = LineConsole::new(launch.log.clone(), "postgres").remembering(recent);
    let files = Files::new(launch.files.clone(), Box::new(console))?;
    let seat = seats.join_as(process::FIRST, Priority::Background);
    let booted = Backend::boot_postmaster(&launch.program, files, seat, &launch.settings.arguments())?;
    Ok(booted.ok_or_else(|| Refused(recent.told()))?)
}

/// The startup process has ended with an error.
#[derive(Debug, thiserror::Error)]
#[error("PostgreSQL did not start")]
struct NotStarted;

/// How long a cluster that was captured does without the autovacuum launcher, and the pause after a failed start of it.
const LAUNCHER_PAUSE: Duration = Duration::from_secs(10);

/// The pause before another attempt at what sessions may be waiting for: the checkpointer, a reload.
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// Called with the cluster when it accepts sessions.
type OnStart = Box<dyn FnOnce(Arc<Running>) + Send>;

/// The state of a cluster.
pub(super) enum State {
    /// It recovers.
    Starting,
    Running,
    /// Its processes are ending, the checkpointer last.
    Stopping,
    /// The checkpointer writes the shutdown checkpoint.
    ShuttingDown,
    /// The last of the WAL is sent.
    Sending,
}

/// A postmaster at work.
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) running: Arc<Running>,
    pub(super) children: Children,
    pub(super) events: Receiver<Event>,
    state: State,
    /// The rules of the program for its clients.
    rules: Option<Arc<Rules>>,
    /// Whether its files are gone with it.
    is_in_memory: bool,
    lacking: Lacking,
}

/// What was wanted and not possible, or not wanted yet.
#[derive(Default)]
struct Lacking {
    launcher: bool,
    /// The launcher is wanted also if autovacuum is off.
    launcher_anyway: bool,
    checkpointer: bool,
    /// Signals that were not handled, because the postmaster's backend could not be made.
    signals: Vec<Signal>,
}

impl Server {
    /// The postmaster of the cluster that `fork` is of, without children.
    pub(super) fn new(launch: &Launch, fork: Fork, seats: Arc<Seats>, recent: &Recent, state: State) -> Self {
        let (sender, events) = unbounded();
        let ring = |event: fn() -> Event| {
            let sender = sender.clone();
            // A postmaster that has ended needs no events.
            Waker::new(move || drop(sender.send(event())))
        };
        let seat = seats.join_as(process::FIRST, Priority::Background);
        seat.signals().set_waker(Some(ring(|| Event::Signal)));
        seats.call_for_checkpointer(ring(|| Event::CheckpointerWanted));
        let files = fork.files();
        let running = Arc::new(Running::new(seats, fork, sender));
        let program = launch.program.clone();
        let children = Children::new(running.clone(), program.clone(), launch.log.clone(), recent.clone());
        let console = LineConsole::new(launch.log.clone(), "postgres").remembering(recent);
        let process = Process::new(seat, program, console, files);
        let is_in_memory = launch.settings.data_directory.is_none();
        let rules = launch.settings.access.rules.clone();
        let lacking = Lacking { launcher: matches!(state, State::Running), ..Lacking::default() };
        Self { process, running, children, events, state, rules, is_in_memory, lacking }
    }

    /// Starts the children, and serves until the cluster ends.
    fn serve(&mut self, on_start: OnStart) -> anyhow::Result<End> {
        let mut on_start = Some(on_start);
        if matches!(self.state, State::Starting) {
            for role in [Role::Checkpointer, Role::BackgroundWriter, Role::Startup] {
                self.children.start(role)?;
            }
        }
        loop {
            if matches!(self.state, State::Running)
                && let Some(on_start) = on_start.take()
            {
                on_start(self.running.clone());
            }
            let Ok(event) = self.events.recv_timeout(self.patience()) else {
                self.try_again()?;
                continue;
            };
            let end = match event {
                Event::Signal => {
                    self.handle_signals()?;
                    None
                }
                Event::Ended { process_id, ended } => self.reap(process_id, ended)?,
                Event::CheckpointerWanted => {
                    self.start_checkpointer();
                    None
                }
                Event::Crashed => Some(End::SessionCrashed),
                Event::SenderEnded => {
                    self.finish_sending();
                    None
                }
                Event::ShutDown => self.shut_down()?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// Does what was not possible before.
    fn try_again(&mut self) -> anyhow::Result<()> {
        if self.lacking.checkpointer {
            self.start_checkpointer();
        }
        if !self.lacking.signals.is_empty() {
            self.handle_signals()?;
        }
        if self.lacking.launcher {
            self.launch_autovacuum(false)?;
        }
        Ok(())
    }

    fn start_checkpointer(&mut self) {
        let is_missing = matches!(self.state, State::Running) && !self.children.has(Role::Checkpointer);
        self.lacking.checkpointer = is_missing && !self.try_to_start(Role::Checkpointer);
    }

    fn handle_signals(&mut self) -> anyhow::Result<()> {
        let mut signals: Vec<_> = self.process.signals.take().collect();
        signals.append(&mut self.lacking.signals);
        if !signals.is_empty() && matches!(self.state, State::Running) && !self.can_run() {
            self.lacking.signals = signals;
            return Ok(());
        }
        if signals.contains(&Signal::HUP) {
            self.reload()?;
            self.running.seats.send_to_others(process::FIRST, Signal::HUP);
            self.launch_autovacuum(false)?;
        }
        if signals.contains(&Signal::USR1) {
            let asked = self.in_turn(Backend::take_postmaster_signals)?;
            if asked[postmaster_signal::START_AUTOVACUUM_LAUNCHER] {
                self.launch_autovacuum(true)?;
            }
            if asked[postmaster_signal::START_AUTOVACUUM_WORKER] && matches!(self.state, State::Running) {
                self.try_to_start(Role::AutovacuumWorker);
            }
            if asked[postmaster_signal::XLOG_IS_SHUT_DOWN] {
                self.state = State::Sending;
                for &process_id in &*self.running.senders.lock() {
                    self.running.seats.send(process_id, Some(Signal::USR2));
                }
                self.finish_sending();
            }
        }
        Ok(())
    }

    /// Reads the configuration again; later processes begin with it.
    fn reload(&mut self) -> anyhow::Result<()> {
        let fork = self.running.fork();
        let rules = self.rules.clone().map(|rules| (rules.next(), rules));
        let again = self.in_turn(|postmaster| {
            if let Some((text, _)) = &rules {
                // Written each time, because a superuser can write the guest's files.
                put_file(&mut fork.tree().lock(), HBA_FILE, text.as_bytes().to_vec())?;
            }
            let is_accepted = postmaster.reload_as_postmaster()?;
            match rules {
                Some((text, rules)) => rules.adopt(text, is_accepted),
                None if is_accepted => {}
                None => tracing::warn!("pg_hba.conf was not reloaded: the rules before stay in use"),
            }
            Ok(fork.again(postmaster))
        });
        match again? {
            Ok(fork) => self.running.replace_fork(fork),
            Err(error) => tracing::error!("new sessions have the configuration from before the reload: {error:#}"),
        }
        Ok(())
    }

    /// Handles the end of a child.
    fn reap(&mut self, process_id: i32, ended: anyhow::Result<i32>) -> anyhow::Result<Option<End>> {
        let Some(role) = self.children.forget(process_id) else { return Ok(None) };
        let status = match ended {
            Ok(status) => status,
            Err(error) if error.is::<Crashed>() => return Ok(Some(End::SessionCrashed)),
            Err(error) => {
                tracing::error!("the {role:?} process (PID {process_id}) has crashed: {error:?}");
                return Ok(Some(End::Crashed));
            }
        };
        if !role.may_exit(status) {
            if role == Role::Startup && status != NOT_STARTED {
                return Err(NotStarted.into());
            }
            tracing::error!("the {role:?} process (PID {process_id}) exited with status {status}");
            return Ok(Some(End::Crashed));
        }
        match (&self.state, role) {
            (State::Starting, Role::Startup) => {
                self.state = State::Running;
                self.children.start(Role::WalWriter)?;
                self.launch_autovacuum(false)?;
            }
            (State::Sending, Role::Checkpointer) => return Ok(Some(End::ShutDown)),
            (_, Role::Checkpointer) => {
                tracing::error!("the checkpointer has exited while the cluster was running");
                return Ok(Some(End::Crashed));
            }
            (State::Starting | State::Running, Role::BackgroundWriter) | (State::Running, Role::WalWriter) => {
                self.children.start(role)?;
            }
            (State::Running, Role::AutovacuumLauncher) => self.launch_autovacuum(false)?,
            _ => {}
        }
        self.finish_stopping();
        Ok(None)
    }

    /// Starts the autovacuum launcher if it is wanted and does not run. `anyway`: also if autovacuum is off, to prevent
    /// the wraparound of transaction ids.
    fn launch_autovacuum(&mut self, anyway: bool) -> anyhow::Result<()> {
        let is_missing = matches!(self.state, State::Running) && !self.children.has(Role::AutovacuumLauncher);
        let anyway = anyway || self.lacking.launcher_anyway;
        self.lacking.launcher = is_missing && !self.can_run();
        if is_missing && !self.lacking.launcher && (anyway || self.in_turn(Backend::wants_autovacuum)?) {
            self.lacking.launcher = !self.try_to_start(Role::AutovacuumLauncher);
        }
        self.lacking.launcher_anyway = anyway && self.lacking.launcher;
        Ok(())
    }

    /// Whether the postmaster has a backend, or one can be made.
    fn can_run(&self) -> bool {
        !self.process.has_no_backend() || capacity::check_for_process().is_ok()
    }

    /// Starts a process that the cluster can do without for a while, and returns whether it could be started.
    fn try_to_start(&mut self, role: Role) -> bool {
        if capacity::check_for_process().is_err() {
            return false;
        }
        let started = self.children.start(role);
        if let Err(error) = &started {
            tracing::warn!("the {role:?} process cannot be started for now: {error:#}");
        }
        started.is_ok()
    }

    /// How long to wait for an event: without limit, or, if something was not possible, until the next attempt.
    fn patience(&self) -> Duration {
        match (self.lacking.checkpointer || !self.lacking.signals.is_empty(), self.lacking.launcher) {
            (true, _) => SHORT_PAUSE,
            (false, true) => LAUNCHER_PAUSE,
            (false, false) => Duration::MAX,
        }
    }

    fn shut_down(&mut self) -> anyhow::Result<Option<End>> {
        let has_senders = !self.running.senders.lock().is_empty();
        if (self.is_in_memory && !has_senders) || matches!(self.state, State::Starting) {
            // No shutdown checkpoint is needed: its files are gone, or the next start recovers again.
            return Ok(Some(End::Crashed));
        }
        if !matches!(self.state, State::Running) {
            return Ok(None);
        }
        if !self.children.has(Role::Checkpointer) {
            self.children.start(Role::Checkpointer)?;
        }
        self.state = State::Stopping;
        self.children.send(Signal::TERM, |role| role != Role::Checkpointer);
        self.finish_stopping();
        Ok(None)
    }

    /// Makes the checkpointer write the shutdown checkpoint once it is the only process left.
    fn finish_stopping(&mut self) {
        if matches!(self.state, State::Stopping) && self.children.has_only(Role::Checkpointer) {
            self.state = State::ShuttingDown;
            self.children.send(Signal::INT, |role| role == Role::Checkpointer);
        }
    }

    /// Ends the checkpointer when the last session that sends WAL has sent all of it.
    fn finish_sending(&mut self) {
        if matches!(self.state, State::Sending) && self.running.senders.lock().is_empty() {
            self.children.send(Signal::USR2, |role| role == Role::Checkpointer);
        }
    }

    /// Calls `act` with the postmaster's backend, which has its turn, for the guest and for shared memory.
    fn in_turn<T>(&mut self, act: impl FnOnce(&mut Backend) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let backend = self.process.backend(&self.running)?;
        backend.take_turn()?;
        let acted = act(backend);
        backend.end_turn();
        acted
    }
}
