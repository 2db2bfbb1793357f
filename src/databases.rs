//! Which cluster a connection gets: the program behind every connection.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use parking_lot::Mutex;

use crate::{
    artefact::Artefact,
    backend::{BackendKey, Ended},
    cache::Cache,
    cancel::Interrupt,
    connection::{Mode, SessionEnd, SessionRequest, Sessions},
    error_response::{ErrorResponse, sqlstate},
    cluster::Signal,
    guest::client::Client,
    log::LogSink,
    postmaster::Postmaster,
    program::Program,
    random,
    template::{LineConsole, TemplateError, Templates},
};

pub use crate::postmaster::Settings;

/// Where the program finds and keeps its files.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The directory with PGlite's files; looked for if there is none.
    pub pglite: Option<PathBuf>,
    /// The directory for compiled code and prepared clusters; the user's cache if there is none.
    pub cache: Option<PathBuf>,
}

/// Every cluster of this program.
pub struct Databases {
    program: Arc<Program>,
    templates: Templates,
    settings: Settings,
    log: LogSink,
    /// The shared cluster, started when somebody first wants it.
    postmaster: Mutex<Option<Arc<Postmaster>>>,
}

/// The process id that every backend with a cluster of its own has.
const PROCESS_ID: i32 = 42;

impl Databases {
    /// Loads everything that a first connection of that mode needs, or makes it, which takes some seconds once.
    ///
    /// # Errors
    /// When the artefact is missing or foreign, or the cache cannot be used; the message says what to do.
    pub fn open(places: &Places, mode: Mode, settings: Settings, log: LogSink) -> anyhow::Result<Self> {
        let cache = Cache::open(places.cache.as_deref())?;
        let artefact = Artefact::find(places.pglite.as_deref(), &cache)?;
        let program = Arc::new(Program::load(&artefact, &cache)?);
        let templates = Templates::new(program.clone(), artefact, cache, log.clone())?;
        let databases = Self { program, templates, settings, log, postmaster: Mutex::default() };
        match mode {
            Mode::Shared => drop(databases.postmaster()?),
            Mode::Isolated => {
                databases.templates.find("postgres").context("the first database cannot be prepared")?;
            }
        }
        Ok(databases)
    }

    fn postmaster(&self) -> anyhow::Result<Arc<Postmaster>> {
        let mut postmaster = self.postmaster.lock();
        if let Some(postmaster) = &*postmaster {
            return Ok(postmaster.clone());
        }
        let (program, cluster) = (self.program.clone(), self.templates.cluster()?);
        let started = Postmaster::start(program, cluster, self.settings.clone(), self.log.clone())?;
        Ok(postmaster.insert(Arc::new(started)).clone())
    }

    fn serve_isolated(&self, request: &SessionRequest<'_>, client: Box<dyn Client>) -> anyhow::Result<SessionEnd> {
        let database = String::from_utf8_lossy(&request.startup.database);
        let snapshot = match self.templates.find(&database) {
            Ok(snapshot) => snapshot,
            Err(TemplateError::Unknown(_)) => {
                let message = format!("database \"{database}\" does not exist");
                return Ok(SessionEnd::Refused(ErrorResponse::fatal(sqlstate::INVALID_CATALOG_NAME, message)));
            }
            Err(TemplateError::Broken(error)) => return Err(error),
        };
        let console = LineConsole::new(request.log.clone(), "postgres");
        let mut backend = snapshot.start(&self.program, Box::new(console))?;
        let mut secret = [0; 4];
        random::fill(&mut secret)?;
        let signals = backend.signals();
        let registration = request.control.register(PROCESS_ID, &secret, move |interrupt| {
            signals.send(match interrupt {
                Interrupt::Cancel => Signal::INT,
                // Nobody else has this cluster: what its client left unfinished need not be finished.
                Interrupt::Terminate | Interrupt::ClientGone => Signal::TERM,
            });
        });
        let ended = backend.serve(client, request.startup, request.packet, BackendKey { secret });
        drop(registration);
        Ok(match ended {
            Ok(Ended::Client) => SessionEnd::ClientGone,
            Ok(Ended::Fatal) => SessionEnd::Orderly,
            Err(error) => SessionEnd::Trapped(error),
        })
    }
}

impl Sessions for Databases {
    fn serve(&self, request: SessionRequest<'_>, client: Box<dyn Client>) -> SessionEnd {
        let served = match request.mode {
            Mode::Isolated => self.serve_isolated(&request, client),
            Mode::Shared => self.postmaster().and_then(|postmaster| postmaster.serve(&request, client)),
        };
        served.unwrap_or_else(|error| {
            tracing::error!("a session could not be started: {error:#}");
            SessionEnd::Refused(ErrorResponse::fatal(sqlstate::INTERNAL_ERROR, format!("{error:#}")))
        })
    }

    fn shut_down(&self) {
        if let Some(postmaster) = self.postmaster.lock().take() {
            postmaster.shut_down();
        }
    }

    fn stats(&self) -> Vec<(&'static str, String)> {
        let sessions = self.postmaster.lock().as_ref().map_or(0, |postmaster| postmaster.sessions());
        vec![("shared_sessions", sessions.to_string())]
    }
}
