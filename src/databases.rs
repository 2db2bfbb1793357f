//! Which cluster a connection gets: the program behind every connection.
//!
//! * `access`: who gets in
//! * `attached`: the connections of a cluster, and which makes room for others
//! * `isolated`: clusters of one connection each
//! * `registry`: clusters by name, which take many
//! * `shared`: such a cluster
//! * `snapshots`, `warm`: what clusters of templates start from, and copies of that in advance
//! * `simulation`: the clock and the random numbers of a cluster, which tests may choose
//! * `administration`: figures, templates, clusters, reloading

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;

use crate::{
    capacity,
    client::Client,
    databases::{isolated::Isolated, registry::Registry},
    log::LogSink,
    protocol::error_response::{ErrorResponse, sqlstate},
    quota::Limits,
    session::{Mode, SessionEnd, SessionStart, Sessions},
    template::Templates,
};

mod access;
mod administration;
mod attached;
mod isolated;
mod registry;
mod shared;
mod simulation;
mod snapshots;
mod warm;

pub use access::{Access, Authentication, Password, Rules};
pub use isolated::Start;
pub(crate) use shared::data_directory;
pub use shared::{DataDirectory, OnFailure, PG_VERSION, SharedSettings};
pub use simulation::Leave;
use simulation::Simulation;

/// Where the program finds and keeps its files.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// The directory with PGlite's files; looked for if there is none.
    pub pglite: Option<PathBuf>,
    /// The directory for compiled code and prepared clusters; the user's cache if there is none.
    pub cache: Option<PathBuf>,
    /// ICU's data for languages with a collation of their own, a directory or a package; without, there are none.
    pub icu_data: Option<PathBuf>,
    /// Bundles of the user's own extensions, which are offered besides those that are installed.
    pub extensions: Vec<PathBuf>,
}

/// How clusters are made.
#[derive(Clone, Default)]
pub struct Settings {
    /// How many clones of each template in use are kept ready, and copies of each cluster that branches are made of.
    pub warm: usize,
    /// How many isolated connections there can be at once; without, as many as the system allows.
    pub max_isolated: Option<usize>,
    /// How the cluster of an isolated connection starts.
    pub start: Start,
    /// What requests may choose for clusters.
    pub leave: Leave,
    /// Whether SQL can load libraries that did not come with the program.
    pub user_libraries: bool,
    /// The limits of clusters that have none of their own; those of isolated connections then have a quarter of the
    /// program's memory at most.
    pub limits: Limits,
    /// The shared cluster's.
    pub shared: SharedSettings,
    /// Called when the shared cluster has crashed and cannot be started again.
    pub on_failure: Option<OnFailure>,
}

/// What to do when a template is missing.
const PREPARE: &str = "Prepare it: pglite-port prepare NAME --sql FILE, or in Elixir PgliteEx.prepare/4.";

/// What a client is told that gets no session. An error in the program itself may name files of the host, which are for
/// the log.
fn for_client(report: ErrorResponse) -> ErrorResponse {
    if report.code == sqlstate::INTERNAL_ERROR {
        let report = ErrorResponse::fatal(sqlstate::INTERNAL_ERROR, "the session could not be started");
        return report.with_hint("The log of pglite-port says why.");
    }
    capacity::too_many(report)
}

/// Every cluster of this program.
pub struct Databases {
    mode: Mode,
    /// Whether no client gets a session any more.
    is_closed: AtomicBool,
    templates: Arc<Templates>,
    isolated: Isolated,
    clusters: Registry,
}

impl Databases {
    /// Loads everything that a first connection of that mode needs, or makes it, which takes some seconds once.
    ///
    /// # Errors
    /// When the artefact is missing or foreign, or the cache cannot be used; the message says what to do.
    pub fn open(paths: &Paths, mode: Mode, settings: Settings, log: LogSink) -> anyhow::Result<Self> {
        let (pglite, cache, icu) = (paths.pglite.as_deref(), paths.cache.as_deref(), paths.icu_data.as_deref());
        let (warm, user_libraries, extensions) = (settings.warm, settings.user_libraries, &paths.extensions);
        let templates = Templates::open(pglite, cache, icu, warm, user_libraries, extensions, log.clone())?;
        let templates = Arc::new(templates);
        let (start, access) = (settings.start, settings.shared.access.clone());
        let limits = settings.limits.check()?;
        let isolated = Isolated::new(templates.clone(), start, settings.leave, access, limits, settings.max_isolated);
        let Settings { warm, shared, leave, on_failure, .. } = settings;
        let clusters = Registry::new(templates.clone(), shared, limits, leave, warm, log, on_failure);
        let databases = Self { mode, is_closed: AtomicBool::new(false), templates, isolated, clusters };
        match mode {
            Mode::Shared => databases.clusters.start_default()?,
            Mode::Isolated => databases.isolated.warm_up().context("the first database cannot be prepared")?,
        }
        Ok(databases)
    }

    /// The templates that connections can get a clone of.
    #[must_use]
    pub fn templates(&self) -> &Templates {
        &self.templates
    }
}

impl Sessions for Databases {
    fn serve(&self, start: SessionStart<'_>, client: Box<dyn Client>) -> SessionEnd {
        if start.startup.asks_for_replication() && start.cluster.is_none() && start.mode == Mode::Isolated {
            let message = "a cluster of one connection has no replication connections";
            let hint = "Connect to a cluster that takes several sessions: in mode shared, or with pglite.cluster.";
            let report = ErrorResponse::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message);
            return SessionEnd::Refused(report.with_hint(hint));
        }
        if let Err(report) = capacity::check_for_session() {
            return SessionEnd::Refused(report);
        }
        let served = match (start.cluster, start.mode) {
            (None, Mode::Isolated) => self.isolated.serve(&start, client),
            (Some(_), _) | (None, Mode::Shared) => self.clusters.serve(&start, client),
        };
        served.unwrap_or_else(|error| {
            tracing::error!("a session could not be started: {error:#}");
            SessionEnd::Refused(for_client(error.into()))
        })
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    fn shut_down(&self) {
        self.clusters.shut_down();
    }
}
