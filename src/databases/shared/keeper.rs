//! Keeps a cluster running: starts it, and starts it again after every crash, until it is shut down or cannot be
//! started.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::anyhow;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{
    running::{Event, Running},
    server::{self, End, Launch, Refused},
};
use crate::{
    backend::Fork,
    capacity,
    protocol::error_response::{ErrorResponse, sqlstate},
    session::{Control, cancel::Interrupt},
};

/// Called, on any thread, when the shared cluster has crashed and cannot be started again.
pub type OnFailure = Arc<dyn Fn(anyhow::Error) + Send + Sync>;

/// After how many refusals of `PostgreSQL` to start, in a row, the attempts end.
const REFUSALS: u32 = 3;
/// After how many starts that failed in a row because the system lacks threads, files or memory, the attempts end.
const SHORTAGES: u32 = 12;
/// The pause before the second attempt. It doubles with every further attempt, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A cluster whose own processes crash within this time after its start counts as not started.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a client waits for a cluster that starts.
const PATIENCE: Duration = Duration::from_mins(1);

/// The state of a cluster, shared by the thread that keeps it running and by connections.
pub(super) struct Keeper {
    shared: Mutex<Shared>,
    changed: Condvar,
}

struct Shared {
    state: State,
    /// Whether the cluster is being shut down, or was.
    stopping: bool,
}

enum State {
    /// The cluster starts, for the first time or again after a crash.
    Starting,
    Running(Arc<Running>, Instant),
    /// It cannot be started, for this reason.
    Failed(String),
    /// It was shut down.
    Stopped,
}

impl Default for Keeper {
    fn default() -> Self {
        let shared = Shared { state: State::Starting, stopping: false };
        Self { shared: Mutex::new(shared), changed: Condvar::new() }
    }
}

impl Shared {
    /// The running cluster, or the error if there is none; `None` while it starts.
    fn running(&self) -> Option<anyhow::Result<Arc<Running>>> {
        match &self.state {
            State::Running(running, _) if !running.seats.have_crashed() => Some(Ok(running.clone())),
            State::Starting | State::Running(..) => None,
            State::Failed(reason) => Some(Err(anyhow!("the cluster does not start: {reason}"))),
            State::Stopped => Some(Err(anyhow!("the cluster was shut down"))),
        }
    }
}

impl Keeper {
    /// The running cluster. Waits while it starts, also after a crash.
    ///
    /// # Errors
    /// When it cannot be started, or was shut down.
    pub(super) fn running(&self) -> anyhow::Result<Arc<Running>> {
        let mut shared = self.shared.lock();
        loop {
            match shared.running() {
                Some(running) => return running,
                None => self.changed.wait(&mut shared),
            }
        }
    }

    /// [`Self::running`] for a client, which `control` may order to end meanwhile.
    ///
    /// # Errors
    /// The error for the client.
    pub(super) fn running_for(self: &Arc<Self>, control: &Control) -> Result<Arc<Running>, ErrorResponse> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (keeper, over) = (self.clone(), is_over.clone());
        // Registered without a key: there is no statement to cancel yet.
        let _registration = control.register(0, &[], move |interrupt| {
            if interrupt != Interrupt::Cancel {
                over.store(true, Ordering::SeqCst);
                // Under the lock, so that the notification cannot come between the check and the wait below.
                let _shared = keeper.shared.lock();
                keeper.changed.notify_all();
            }
        });
        let cannot_connect = |message: String| ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, message);
        let deadline = Instant::now() + PATIENCE;
        let mut shared = self.shared.lock();
        loop {
            if is_over.load(Ordering::SeqCst) {
                return Err(ErrorResponse::terminated());
            }
            if let Some(running) = shared.running() {
                return running.map_err(|error| cannot_connect(format!("{error:#}")));
            }
            if self.changed.wait_until(&mut shared, deadline).timed_out() {
                return Err(ErrorResponse::starting_up());
            }
        }
    }

    /// The cluster, if it runs at the moment.
    pub(super) fn current(&self) -> Option<Arc<Running>> {
        self.shared.lock().running().and_then(Result::ok)
    }

    /// Shuts the cluster down if it runs, and prevents further starts.
    pub(super) fn stop(&self) {
        let mut shared = self.shared.lock();
        shared.stopping = true;
        if let State::Running(running, _) = &shared.state {
            running.tell(Event::ShutDown);
        }
        self.changed.notify_all();
    }

    /// Stops the processes of the cluster where they are, and prevents further starts.
    pub(super) fn abandon(&self) {
        let mut shared = self.shared.lock();
        shared.stopping = true;
        if let State::Running(running, _) = &shared.state {
            running.seats.crash();
            running.tell(Event::Crashed);
        }
        self.changed.notify_all();
    }

    fn set(&self, mut shared: MutexGuard<'_, Shared>, state: State) {
        shared.state = state;
        self.changed.notify_all();
    }

    /// The cluster has started: accepts sessions, or shuts it down if that was ordered meanwhile.
    fn has_started(&self, running: Arc<Running>) {
        let shared = self.shared.lock();
        if shared.stopping {
            running.tell(Event::ShutDown);
        }
        self.set(shared, State::Running(running, Instant::now()));
    }

    /// Starts the cluster, from `captured` if that is given, and starts it again after every crash.
    pub(super) fn keep_running(
        self: &Arc<Self>,
        launch: &Launch,
        mut captured: Option<Fork>,
        on_failure: Option<&OnFailure>,
    ) {
        let mut has_run = false;
        // A durable cluster may be refused because of its disk, which will have room again; and its settings are not
        // the program's to remove.
        let is_durable = launch.settings.data_directory.is_some();
        let (mut refusals, mut shortages) = (0, 0);
        loop {
            if has_run {
                self.wait_for_room();
            }
            let keeper = self.clone();
            let captured = captured.take();
            let run = || {
                server::run(launch, captured, refusals > 0 && !is_durable, move |running| keeper.has_started(running))
            };
            let ended = catch_unwind(AssertUnwindSafe(run));
            let ended = ended.unwrap_or_else(|_| Err(anyhow!("the postmaster panicked; the log says where")));
            let shared = self.shared.lock();
            let ran_for = match &shared.state {
                State::Running(_, since) => Some(since.elapsed()),
                _ => None,
            };
            if shared.stopping || matches!(ended, Ok(End::ShutDown)) {
                if let Err(error) = ended {
                    tracing::error!("the cluster was not shut down in order: {error:#}");
                }
                return self.set(shared, State::Stopped);
            }
            self.set(shared, State::Starting);
            has_run |= ran_for.is_some();
            let error = match ended {
                Ok(End::SessionCrashed) if ran_for.is_some() => None,
                Ok(_) => Some(anyhow!("one of its own processes has crashed; the log says which")),
                Err(error) => Some(error),
            };
            let Some(error) = error.filter(|_| ran_for.is_none_or(|ran_for| ran_for < SETTLED)) else {
                tracing::warn!("the cluster has crashed: it is started again, and recovers");
                launch.tally.restarts.add(1);
                (refusals, shortages) = (0, 0);
                continue;
            };
            tracing::error!("the cluster does not start: {error:#}");
            let is_refused = error.is::<Refused>() && !is_durable;
            if is_refused {
                refusals += 1;
            } else {
                shortages += 1;
            }
            if !has_run || refusals == REFUSALS || shortages == SHORTAGES {
                self.set(self.shared.lock(), State::Failed(format!("{error:#}")));
                if let Some(on_failure) = on_failure.filter(|_| has_run) {
                    on_failure(error.context("the shared cluster has crashed, and does not start again"));
                }
                return;
            }
            self.pause(refusals + shortages);
        }
    }

    /// Waits until the system allows the processes of a cluster that starts again; an order to shut down ends the wait.
    fn wait_for_room(&self) {
        let mut shared = self.shared.lock();
        while !shared.stopping && capacity::check_for_process().is_err() {
            self.changed.wait_for(&mut shared, PAUSE);
        }
    }

    /// Waits before the next attempt; an order to shut down ends the wait.
    fn pause(&self, attempts: u32) {
        let pause = PAUSE.saturating_mul(1 << attempts.min(8).saturating_sub(1)).min(LONGEST_PAUSE);
        let deadline = Instant::now() + pause;
        let mut shared = self.shared.lock();
        self.changed.wait_while_until(&mut shared, |shared| !shared.stopping, deadline);
    }
}
