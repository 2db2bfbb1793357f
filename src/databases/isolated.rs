//! Connections that each have their own cluster: a clone of a template, which exists until the connection closes.

use std::{collections::BTreeMap, convert::Infallible, io, sync::Arc, time::Instant};

use anyhow::{Context, anyhow, bail, ensure};
use parking_lot::Mutex;

use crate::{
    administration::Spread,
    backend::{
        Backend, OnAdmitted, Session, SessionExit,
        footprint::{Footprint, PageMap, PrivateBytes},
    },
    client::Client,
    cluster::{Signal, Signals},
    engine::on_wasm_stack,
    fs::Silent,
    log::{LineConsole, LogSink},
    postgres::process,
    protocol::error_response::{ErrorResponse, sqlstate},
    quota::{self, LEAST_MEMORY, Limits},
    random,
    session::{Outcome, PendingTask, SessionEnd, SessionStart, Task, cancel::Interrupt},
    tally::Tally,
    template::{DEFAULT, Template, TemplateError, Templates},
};

use super::{
    Access, Leave, Simulation,
    attached::{Attached, Kind},
};

/// How the clusters of connections are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// From a backend that is booted already.
    #[default]
    Clone,
    /// By booting `PostgreSQL` on the template's files. This is slow; tests use it to check that clones behave the
    /// same.
    Boot,
}

/// All connections that have a cluster of their own.
pub(crate) struct Isolated {
    templates: Arc<Templates>,
    origin: Start,
    leave: Leave,
    /// How many connections there can be at once.
    limit: usize,
    attached: Arc<Attached>,
    access: Access,
    /// Where neither the connection nor its template has limits.
    limits: Limits,
    live: Mutex<BTreeMap<u32, Live>>,
    tally: Arc<Tally>,
}

/// The parts of a connection that other threads use.
#[derive(Clone)]
struct Live {
    footprint: Arc<Footprint>,
    signals: Arc<Signals>,
}

/// The part of the program's memory that the cluster of a connection may have if nothing else is said.
const SHARE: u64 = 4;

impl Isolated {
    /// No connections yet. There can be `limit` at once; without, as many as the system allows.
    pub(crate) fn new(
        templates: Arc<Templates>,
        origin: Start,
        leave: Leave,
        access: Access,
        limits: Limits,
        limit: Option<usize>,
    ) -> Self {
        let limit = limit.unwrap_or(usize::MAX);
        let share = quota::usage().limit.map(|limit| (limit / SHARE).max(LEAST_MEMORY));
        let limits = limits.or(Limits { memory: share, disk: None });
        let (attached, live, tally) = Default::default();
        Self { templates, origin, leave, limit, attached, access, limits, live, tally }
    }

    /// Where what happens in them is counted.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Prepares the default template and its ready clones, which the first connection most likely needs.
    ///
    /// # Errors
    /// When the default template cannot be built.
    pub(crate) fn warm_up(&self) -> Result<(), TemplateError> {
        self.templates.pool().announce(&self.templates.find(DEFAULT)?);
        if let Some(rules) = &self.access.rules
            && !self.accepts(&rules.text()).map_err(TemplateError::Broken)?
        {
            return Err(TemplateError::Broken(anyhow!("the rules of --auth cannot be used; the log says why")));
        }
        Ok(())
    }

    /// Whether `PostgreSQL` takes these rules. If not, the log says why.
    fn accepts(&self, rules: &str) -> anyhow::Result<bool> {
        let template = self.templates.find(DEFAULT).context("there is no cluster to try the rules in")?;
        on_wasm_stack(|| {
            let console = Box::new(LineConsole::new(LogSink::to_own_log(), "postgres"));
            self.templates.pool().take(&template, console)?.use_rules(rules)
        })?
    }

    /// Stores the program's password in the cluster of `backend`.
    fn set_password(&self, backend: &mut Backend) -> anyhow::Result<()> {
        let Some(password) = &self.access.password else { return Ok(()) };
        password.stored(backend.execute_unlogged(&password.statement()))
    }

    /// Serves `client` until its session ends.
    ///
    /// # Errors
    /// When its cluster cannot be made.
    pub(crate) fn serve(&self, start: &SessionStart<'_>, client: Box<dyn Client>) -> anyhow::Result<SessionEnd> {
        let database = String::from_utf8_lossy(&start.startup.database);
        let found = match start.template {
            Some(name) => self.templates.find(name),
            None => self.templates.find_for_database(&database),
        };
        let template = match found {
            Ok(template) => template,
            Err(TemplateError::Broken(error)) => return Err(error),
            Err(ref error @ TemplateError::Lacks { ref missing, .. }) => {
                let report = ErrorResponse::fatal(sqlstate::UNDEFINED_FILE, error.to_string());
                return Ok(SessionEnd::Refused(report.with_hint(missing.advice())));
            }
            Err(TemplateError::Unknown(name)) => {
                let what = if start.template.is_some() { "template" } else { "database" };
                let report =
                    ErrorResponse::fatal(sqlstate::INVALID_CATALOG_NAME, format!("{what} \"{name}\" does not exist"));
                return Ok(SessionEnd::Refused(report.with_hint(super::PREPARE)));
            }
        };
        let attachment = self.attached.enter(start.control, start.is_trusted);
        if !attachment.as_ref().is_some_and(|attachment| attachment.take_place(Kind::Session, self.limit)) {
            // PostgreSQL's words (InitProcess in src/backend/storage/lmgr/proc.c).
            let no_place = || ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
            return Ok(SessionEnd::Refused(start.control.refusal().unwrap_or_else(no_place)));
        }
        let limits = start.limits.or(template.limits).or(self.limits);
        self.tally.enter(&start.transaction.activity());
        let begun = Instant::now();
        let mut backend = self.make_backend(&template, start.log)?;
        self.tally.starts.observe(begun.elapsed());
        backend.guest().tally = self.tally.clone();
        limit(&mut backend, limits, start.id);
        self.set_password(&mut backend)?;
        let rules = self.access.rules.as_ref().filter(|rules| !start.is_trusted && !rules.trust_everyone());
        if let Some(rules) = rules {
            ensure!(backend.use_rules(&rules.text())?, "the rules of --auth cannot be used");
            if let Some(time) = self.access.authentication_timeout {
                backend.limit_authentication(time)?;
            }
        }
        let simulation = Simulation::new(self.leave);
        backend.guest().clock = simulation.clock.clone();
        backend.guest().entropy = simulation.entropy.clone();
        let chosen = simulation.clone();
        start.control.handle_tasks_with(move |task| chosen.perform(task));
        let mut secret = [0; 4];
        random::fill(&mut secret)?;
        let footprint = Arc::new(Footprint::of(&mut backend)?);
        let signals = backend.signals();
        let _counted = Counted::new(self, start.id, Live { footprint: footprint.clone(), signals: signals.clone() });
        let interrupted = signals.clone();
        let _registration = start.control.register(process::FIRST, &secret, move |interrupt| {
            let signal = match interrupt {
                Interrupt::Cancel => Signal::INT,
                // The cluster ends with the connection, so its unfinished commands can be abandoned.
                Interrupt::Terminate | Interrupt::ShutDown | Interrupt::ClientGone => Signal::TERM,
            };
            interrupted.send_until_heard(signal);
        });
        let admission = template.snapshot.admission();
        let control = start.control.clone();
        let on_admitted: OnAdmitted = Arc::new(move || control.settle());
        let session = Session {
            startup: start.startup,
            packet: start.packet,
            endpoints: client.endpoints(),
            cancel_key: secret,
            admission,
            is_trusted: rules.is_none(),
            on_admitted: &on_admitted,
        };
        let conversation = Conversation { isolated: self, template, limits, footprint, simulation, session, start };
        let Err(error) = conversation.hold(&mut backend, client);
        Ok(match backend.end_session(error) {
            Ok(SessionExit::Client) => SessionEnd::ClientGone,
            Ok(SessionExit::Fatal) => SessionEnd::Orderly,
            Ok(SessionExit::Unheard) => {
                self.tally.unresponsive.add(1);
                SessionEnd::Refused(ErrorResponse::terminated())
            }
            Err(error) => {
                self.tally.traps.add(1);
                SessionEnd::Trapped(error)
            }
        })
    }

    fn make_backend(&self, template: &Arc<Template>, log: &LogSink) -> anyhow::Result<Backend> {
        let console = Box::new(LineConsole::of_session(log.clone()));
        match self.origin {
            Start::Clone => self.templates.pool().take(template, console),
            Start::Boot => template.boot(self.templates.program(), console),
        }
    }

    /// Makes every session read the configuration files of its cluster again, and gives its cluster the extensions that
    /// are installed now.
    pub(crate) fn reload(&self) {
        if let Some(rules) = &self.access.rules {
            let text = rules.next();
            match self.accepts(&text) {
                Ok(is_accepted) => rules.adopt(text, is_accepted),
                Err(error) => tracing::error!("the rules before stay in use: {error:#}"),
            }
        }
        let offer = self.templates.extensions().offer();
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        for Live { footprint, signals } in live {
            if let Err(error) = footprint.tree().lock().add(&offer.files) {
                tracing::error!("a connection does not get the extensions that are installed now: {error}");
            }
            signals.send(Signal::HUP);
        }
    }

    /// The memory and the disk that the clusters of connections use, as their limits count them.
    pub(crate) fn used(&self) -> (Spread, Spread) {
        let (mut memory, mut disk) = (Spread::default(), Spread::default());
        let live: Vec<_> = self.live.lock().values().map(|live| live.footprint.clone()).collect();
        for footprint in live {
            let used = footprint.used();
            memory.add(used.0);
            disk.add(used.1);
        }
        (memory, disk)
    }

    /// Private bytes by connection.
    ///
    /// # Errors
    /// When `/proc/self/pagemap` cannot be read.
    pub(crate) fn private_bytes(&self) -> io::Result<Vec<(u32, PrivateBytes)>> {
        let live: Vec<_> = self.live.lock().iter().map(|(id, live)| (*id, live.footprint.clone())).collect();
        let pages = PageMap::open()?;
        live.into_iter().map(|(id, footprint)| Ok((id, footprint.count(&pages)?))).collect()
    }
}

/// Sets the limits of the cluster of `backend`, which is that of the connection `id`.
fn limit(backend: &mut Backend, limits: Limits, id: u32) {
    backend.guest().files.tree().lock().quota().limit(limits, || format!("the cluster of connection {id}"));
}

/// Keeps a connection in the list of those whose memory is counted.
struct Counted<'a> {
    isolated: &'a Isolated,
    id: u32,
}

impl<'a> Counted<'a> {
    fn new(isolated: &'a Isolated, id: u32, live: Live) -> Self {
        isolated.live.lock().insert(id, live);
        Self { isolated, id }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.isolated.live.lock().remove(&self.id);
    }
}

/// One client's session, and the tasks between its commands.
struct Conversation<'a> {
    isolated: &'a Isolated,
    template: Arc<Template>,
    limits: Limits,
    footprint: Arc<Footprint>,
    simulation: Simulation,
    session: Session<'a>,
    start: &'a SessionStart<'a>,
}

impl Conversation<'_> {
    /// Runs the session until it ends; the error says how.
    fn hold(&self, backend: &mut Backend, client: Box<dyn Client>) -> anyhow::Result<Infallible> {
        backend.begin_session(client, &self.session)?;
        loop {
            backend.run_session(|| self.start.control.has_tasks())?;
            self.do_tasks(backend)?;
        }
    }

    /// Does every task there is. An error ends the session.
    fn do_tasks(&self, backend: &mut Backend) -> anyhow::Result<()> {
        while let Some(pending) = self.start.control.take_task() {
            match &pending.task {
                Task::Reset => self.reset(backend, pending)?,
                Task::Freeze { name, key, limits } => {
                    let outcome = self.freeze(backend, name, key.as_deref(), *limits);
                    pending.finish(outcome);
                }
                Task::Choose(choice) => {
                    let outcome = self.simulation.choose(*choice);
                    pending.finish(outcome);
                }
            }
        }
        Ok(())
    }

    /// An error here ends the session, whose state is then unknown.
    fn reset(&self, backend: &mut Backend, pending: PendingTask) -> anyhow::Result<()> {
        match self.begin_again(backend) {
            Ok(replaced) => {
                pending.finish(Ok(()));
                // Freeing its memory takes a while, so the client gets its reply first.
                drop(replaced);
                Ok(())
            }
            Err(error) => {
                tracing::error!("a cluster cannot be put back to its template: {error:?}");
                let message = format!("the cluster cannot be put back to its template: {}", error.root_cause());
                let report = ErrorResponse::error(sqlstate::INTERNAL_ERROR, message.clone());
                pending.finish(Err(report.with_hint("Its connection ends. Open another one.")));
                // Not the error itself, because an exit means that the client has got an error from PostgreSQL.
                bail!(message)
            }
        }
    }

    /// Replaces the backend by another clone of the template, and begins the client's session in it. Returns the
    /// replaced backend, so that the caller can drop it later: that takes as long as everything else here.
    ///
    /// Returning the old backend to its first state would be slower. Its changed pages would have to be dropped before
    /// the session can go on, which takes as long as copying the pages that the session is about to write. With a new
    /// clone only the copying has to be done first.
    fn begin_again(&self, backend: &mut Backend) -> anyhow::Result<Backend> {
        let greeting = backend.greeting()?;
        let mut successor = self.isolated.templates.pool().take(&self.template, Box::new(Silent))?;
        limit(&mut successor, self.limits, self.start.id);
        self.isolated.set_password(&mut successor)?;
        let replaced = backend.succeed_to(successor)?;
        backend.begin_session_again(&self.session, &greeting)?;
        // So that every clone with that seed has the same numbers.
        self.simulation.entropy.begin_again();
        self.footprint.follow(backend)?;
        Ok(replaced)
    }

    /// Shuts a copy of the backend down and makes a template of its files; the session goes on unchanged.
    fn freeze(&self, backend: &mut Backend, name: &str, key: Option<&str>, limits: Limits) -> Outcome {
        if backend.is_in_transaction()? {
            return Err(ErrorResponse::freeze_in_transaction());
        }
        let console = Box::new(LineConsole::of_session(self.start.log.clone()));
        let files = backend.copy(self.isolated.templates.program(), console).and_then(|mut copy| {
            let tree = copy.guest().files.tree().clone();
            copy.shut_down()?;
            Ok(tree.lock().freeze())
        });
        let database = &self.template.database;
        Ok(files.and_then(|files| self.isolated.templates.freeze(name, database, key, limits, &files))?)
    }
}
