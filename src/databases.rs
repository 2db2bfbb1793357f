//! Which cluster a connection gets: the program behind every connection.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;

use crate::{
    connection::{Answer, Mode, SessionEnd, SessionRequest, Sessions},
    error_response::{ErrorResponse, sqlstate},
    guest::client::Client,
    isolated::Isolated,
    log::LogSink,
    template::Templates,
};

pub use crate::isolated::Start;

/// Where the program finds and keeps its files.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The directory with PGlite's files; looked for if there is none.
    pub pglite: Option<PathBuf>,
    /// The directory for compiled code and prepared clusters; the user's cache if there is none.
    pub cache: Option<PathBuf>,
}

/// How clusters are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// How many clones of each template in use are kept ready.
    pub warm: usize,
    /// How the cluster of an isolated connection starts.
    pub start: Start,
}

/// Every cluster of this program.
pub struct Databases {
    templates: Arc<Templates>,
    isolated: Isolated,
}

impl Databases {
    /// Loads everything that a first connection needs, or makes it, which takes some seconds once.
    ///
    /// # Errors
    /// When the artefact is missing or foreign, or the cache cannot be used; the message says what to do.
    pub fn open(places: &Places, settings: Settings, log: LogSink) -> anyhow::Result<Self> {
        let templates = Templates::open(places.pglite.as_deref(), places.cache.as_deref(), settings.warm, log)?;
        let templates = Arc::new(templates);
        let isolated = Isolated::new(templates.clone(), settings.start);
        isolated.warm_up().context("the first database cannot be prepared")?;
        Ok(Self { templates, isolated })
    }

    /// The templates that connections can get a clone of.
    #[must_use]
    pub fn templates(&self) -> &Templates {
        &self.templates
    }
}

impl Sessions for Databases {
    fn serve(&self, request: SessionRequest<'_>, client: Box<dyn Client>) -> SessionEnd {
        let served = match request.mode {
            Mode::Isolated => self.isolated.serve(&request, client),
            Mode::Shared => {
                let message = "shared clusters are not available yet; use --mode isolated";
                return SessionEnd::Refused(ErrorResponse::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message));
            }
        };
        served.unwrap_or_else(|error| {
            tracing::error!("a session could not be started: {error:#}");
            SessionEnd::Refused(ErrorResponse::fatal(sqlstate::INTERNAL_ERROR, format!("{error:#}")))
        })
    }

    fn stats(&self) -> Vec<(&'static str, String)> {
        self.isolated.stats()
    }

    fn memory(&self) -> Answer {
        self.isolated.memory()
    }

    fn templates(&self) -> Answer {
        self.isolated.templates()
    }

    fn drop_template(&self, name: &str) -> Answer {
        self.isolated.drop_template(name)
    }
}
