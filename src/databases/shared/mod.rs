//! A cluster whose every connection is a session of its own, and what a postmaster does for it.
//!
//! * `mod`: the cluster, from its start to its end
//! * `session`: a client's session of it
//! * `branches`: what branches of it begin with
//! * `capture`: a cluster from which others start without a boot
//! * `model`: what sessions of its copies begin with
//! * `own_session`: sessions of the program itself
//! * `keeper`: starting it, and again after a crash
//! * `server`: the postmaster itself, from the cluster's start to its end
//! * `running`: the cluster as its processes see it, and what they tell the postmaster
//! * `process`: the postmaster as a process of its cluster
//! * `children`: `PostgreSQL`'s own processes: startup, checkpointer, background writer, WAL writer, autovacuum
//! * `settings`: what can be chosen
//! * `tidy`: what is removed before it starts
//! * `data_directory`: the directory of the host that it is kept in
//! * `system_identifier`: what tells one cluster from all others

mod branches;
mod capture;
mod children;
pub(crate) mod data_directory;
mod keeper;
mod model;
mod own_session;
mod process;
mod running;
mod server;
mod session;
mod settings;
mod system_identifier;
mod tidy;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use parking_lot::Mutex;

use crate::{
    backend::{Backend, DATA_DIRECTORY, Fork},
    cluster::{Crashed, Priority},
    engine::{THREAD_STACK, on_wasm_stack, spinner},
    fs::{FrozenTree, Tree},
    guest::Setup,
    log::{LineConsole, LogSink},
    protocol::error_response::{ErrorResponse, sqlstate},
    quota::Quota,
    session::{Control, cancel::Interrupt},
    tally::Tally,
    template::Templates,
};

use super::{
    Simulation,
    attached::{Attached, Attachment},
};
use branches::Branched;
pub(crate) use capture::{add_model, capture};
use children::run_in_turn;
pub use data_directory::{DataDirectory, PG_VERSION};
use keeper::Keeper;
pub use keeper::OnFailure;
use running::{Event, Running};
use server::Launch;
pub use settings::SharedSettings;

/// Keeps one cluster running.
pub(crate) struct Postmaster {
    templates: Arc<Templates>,
    simulation: Simulation,
    log: LogSink,
    keeper: Arc<Keeper>,
    attached: Arc<Attached>,
    settings: SharedSettings,
    files: Arc<Mutex<Tree>>,
    quota: Arc<Quota>,
    tally: Arc<Tally>,
    /// The database of the session that was let in last.
    last_database: Mutex<String>,
    /// What branches were made from last.
    branched: Mutex<Option<Branched>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The database that every cluster has.
pub(crate) const DATABASE: &str = "postgres";

/// How long the sessions of a cluster that is dropped have to end before its processes are stopped where they are.
const END_PATIENCE: Duration = Duration::from_secs(5);

impl Postmaster {
    /// A cluster, which is started now. If it does not exist in a data directory, it begins with the files that
    /// `new_cluster` returns. What happens in it is counted in `tally`. `on_failure` is called when it has crashed and
    /// cannot be started again.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(
        templates: &Arc<Templates>,
        new_cluster: impl FnOnce() -> anyhow::Result<Arc<FrozenTree>>,
        settings: SharedSettings,
        simulation: Simulation,
        tally: Arc<Tally>,
        log: LogSink,
        on_failure: Option<OnFailure>,
    ) -> anyhow::Result<Self> {
        settings.check()?;
        // Shown until the cluster runs.
        let mut progress = ProgressBar::hidden();
        let tree = match &settings.data_directory {
            None => Tree::from_frozen(new_cluster()?),
            Some(data_directory) => {
                progress = spinner(&format!("opening the {data_directory}"));
                Self::open(templates, new_cluster, &settings, data_directory, &progress)?
            }
        };
        let files = Arc::new(Mutex::new(tree));
        let launch = Launch { program: templates.program().clone(), files, settings, tally, log };
        let password = launch.settings.access.password.clone();
        let started = Self::launch(templates, launch, None, simulation, on_failure)?;
        if let Some(password) = password {
            // Before there are clients: it takes effect with the next one.
            let set = started.keeper.running().and_then(|running| {
                on_wasm_stack(|| own_session::set_password(&running, templates.program(), &started.log, &password))?
            });
            set.inspect_err(|_| started.shut_down())?;
        }
        progress.finish_and_clear();
        Ok(started)
    }

    /// A cluster in memory that goes on from `copy`, the copy of a snapshot. It has none of PostgreSQL's own processes
    /// yet: the checkpointer is started when it is asked for, autovacuum after some seconds. With data in memory, no
    /// other is needed.
    ///
    /// # Errors
    /// When the system has no memory or threads.
    pub(crate) fn from_snapshot(
        templates: &Arc<Templates>,
        copy: Fork,
        settings: SharedSettings,
        simulation: Simulation,
        tally: Arc<Tally>,
        log: LogSink,
        on_failure: Option<OnFailure>,
    ) -> anyhow::Result<Self> {
        let launch = Launch { program: templates.program().clone(), files: copy.tree().clone(), settings, tally, log };
        Self::launch(templates, launch, Some(copy), simulation, on_failure)
    }

    fn launch(
        templates: &Arc<Templates>,
        launch: Launch,
        captured: Option<Fork>,
        simulation: Simulation,
        on_failure: Option<OnFailure>,
    ) -> anyhow::Result<Self> {
        let (keeper, log) = (Arc::new(Keeper::default()), launch.log.clone());
        let (settings, tally) = (launch.settings.clone(), launch.tally.clone());
        let files = launch.files.clone();
        files.lock().add(&templates.extensions().offer().files)?;
        let quota = files.lock().quota().clone();
        let work = {
            let keeper = keeper.clone();
            move || keeper.keep_running(&launch, captured, on_failure.as_ref())
        };
        let thread = thread::Builder::new().name("postmaster".into()).stack_size(THREAD_STACK).spawn(work)?;
        if let Err(error) = keeper.running() {
            // What it had, such as the lock of the directory, is free when this returns.
            let _ = thread.join();
            return Err(error);
        }
        Ok(Self {
            templates: templates.clone(),
            simulation,
            log,
            keeper,
            attached: Arc::default(),
            settings,
            files,
            quota,
            tally,
            last_database: Mutex::new(DATABASE.to_owned()),
            branched: Mutex::default(),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The files of the cluster in `data_directory`.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn open(
        templates: &Templates,
        new_cluster: impl FnOnce() -> anyhow::Result<Arc<FrozenTree>>,
        settings: &SharedSettings,
        data_directory: &DataDirectory,
        progress: &ProgressBar,
    ) -> anyhow::Result<Tree> {
        let opened = data_directory.open(new_cluster, settings.data_patience)?;
        if let Some(template) = settings.template.as_ref().filter(|_| !opened.is_new) {
            tracing::info!("there is a cluster in the {data_directory}: the template {template:?} is not used");
        }
        if opened.recovers {
            progress.set_message(format!("recovering the cluster in the {data_directory}"));
        }
        let mut tree = Tree::from_frozen(templates.cluster()?);
        tree.mount(DATA_DIRECTORY.as_bytes(), opened.storage)
            .with_context(|| format!("the {data_directory} cannot be read"))?;
        Ok(tree)
    }

    /// Gives the cluster the extensions that are installed now, if it has others.
    pub(crate) fn offer_extensions(&self) {
        let offer = self.templates.extensions().offer();
        if let Err(error) = self.files.lock().add(&offer.files) {
            tracing::error!("a cluster does not get the extensions that are installed now: {error}");
        }
    }

    /// What the cluster uses, and may.
    pub(crate) fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// The bytes of memory and of disk that the cluster uses now.
    pub(crate) fn used(&self) -> (u64, u64) {
        if let Some(running) = self.keeper.current() {
            running.fork().count_shared_memory();
        }
        self.quota.used()
    }

    /// Adds a connection to those of the cluster; `None` if the cluster takes no more.
    pub(crate) fn attach(&self, control: &Control, is_trusted: bool) -> Option<Attachment> {
        self.attached.enter(control, is_trusted)
    }

    /// Whether it takes sessions at the moment.
    pub(crate) fn is_running(&self) -> bool {
        self.keeper.current().is_some()
    }

    /// Has the cluster's checkpointer make a checkpoint, and waits for it.
    ///
    /// # Errors
    /// When it fails, or the cluster crashes meanwhile.
    fn checkpoint(&self, running: &Arc<Running>) -> anyhow::Result<()> {
        let program = self.templates.program();
        let seat = running.seats.join(Priority::Background);
        let setup = |files| Setup { seat: Some(seat), is_unlimited: true, ..Setup::backend(program, files) };
        let console = LineConsole::new(self.log.clone(), "postgres");
        let mut backend = running.fork().start(program, console, setup)?;
        let status = run_in_turn(&mut backend, Backend::run_checkpoint);
        if status.as_ref().is_err_and(|error| !error.is::<Crashed>()) {
            running.tell(Event::Crashed);
        }
        let status = status?;
        ensure!(status == 0, "the checkpoint failed (exit status {status}); the log says why");
        Ok(())
    }

    /// Has the configuration files read again, by the postmaster, all sessions and all later ones.
    pub(crate) fn reload(&self) {
        // One that starts reads them.
        if let Some(running) = self.keeper.current() {
            running.reload();
        }
    }

    /// Refuses further connections if the last one has closed; returns whether that is so.
    pub(crate) fn close_if_left(&self) -> bool {
        self.attached.close_if_left()
    }

    /// Ends the sessions (`57P01`) and then the cluster, with a shutdown checkpoint if it is in a directory.
    pub(crate) fn end(&self) {
        for control in self.attached.close() {
            control.interrupt(Interrupt::Terminate);
        }
        if !self.attached.wait_until_left(Instant::now() + END_PATIENCE) {
            tracing::warn!("sessions of a cluster that is dropped have not ended in time: its processes are stopped");
            self.keeper.abandon();
            if !self.attached.wait_until_left(Instant::now() + END_PATIENCE) {
                tracing::warn!(
                    "a session of a cluster that is dropped does not end: its memory stays in use until then"
                );
            }
        }
        self.shut_down();
    }

    /// Shuts the cluster down, after its sessions have ended.
    pub(crate) fn shut_down(&self) {
        self.keeper.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the postmaster panicked");
        }
    }

    /// How many connections have a session, or wait for one.
    pub(crate) fn connections(&self) -> usize {
        self.attached.count()
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.keeper.current().map_or(0, |running| running.seats.sessions())
    }
}

/// An error of a task, which may be that the cluster has crashed meanwhile.
fn reported(error: anyhow::Error) -> ErrorResponse {
    if error.is::<Crashed>() { crash_report() } else { error.into() }
}

/// The error for sessions whose cluster has crashed, in `PostgreSQL`'s words (`quickdie` in
/// `src/backend/tcop/postgres.c`).
fn crash_report() -> ErrorResponse {
    let message = "terminating connection because of crash of another server process";
    let hint = "In a moment you should be able to reconnect to the database and repeat your command.";
    ErrorResponse::fatal(sqlstate::CRASH_SHUTDOWN, message).with_hint(hint)
}
