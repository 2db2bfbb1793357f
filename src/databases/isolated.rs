//! Connections that have a cluster of their own: a clone of a template, gone when the connection closes.

use std::{collections::BTreeMap, io, sync::Arc};

use anyhow::bail;
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::{
    backend::{
        Backend, Ended, Requests, Session,
        footprint::{Footprint, PageMap, PrivateBytes},
    },
    client::Client,
    cluster::{Signal, Signals},
    log::{LineConsole, LogSink},
    postgres::process,
    protocol::error_response::{ErrorResponse, sqlstate},
    random,
    session::{Answer, Request, SessionEnd, SessionRequest, Task, cancel::Interrupt},
    template::{DEFAULT, Template, TemplateError, Templates},
};

/// How clusters of connections are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// From a backend that is booted already.
    #[default]
    Clone,
    /// By booting `PostgreSQL` on the template's files: slow, and the same to its client, which tests make sure of.
    Boot,
}

/// All connections that have a cluster of their own.
pub(crate) struct Isolated {
    templates: Arc<Templates>,
    start: Start,
    live: Mutex<BTreeMap<u32, Live>>,
}

/// A connection with a cluster of its own, for other threads.
#[derive(Clone)]
struct Live {
    footprint: Arc<Footprint>,
    signals: Arc<Signals>,
}

impl Isolated {
    pub(crate) fn new(templates: Arc<Templates>, start: Start) -> Self {
        Self { templates, start, live: Mutex::default() }
    }

    /// Prepares what the first connection most likely needs.
    ///
    /// # Errors
    /// When the default template cannot be built.
    pub(crate) fn warm_up(&self) -> Result<(), TemplateError> {
        self.templates.pool().announce(&self.templates.find(DEFAULT)?);
        Ok(())
    }

    /// Serves `client` until its session ends.
    ///
    /// # Errors
    /// When its cluster cannot be made.
    pub(crate) fn serve(&self, request: &SessionRequest<'_>, client: Box<dyn Client>) -> anyhow::Result<SessionEnd> {
        let database = String::from_utf8_lossy(&request.startup.database);
        let found = match request.template {
            Some(name) => self.templates.find(name),
            None => self.templates.find_for_database(&database),
        };
        let template = match found {
            Ok(template) => template,
            Err(TemplateError::Broken(error)) => return Err(error),
            Err(TemplateError::Unknown(name)) => {
                let what = if request.template.is_some() { "template" } else { "database" };
                let report =
                    ErrorResponse::fatal(sqlstate::INVALID_CATALOG_NAME, format!("{what} \"{name}\" does not exist"));
                return Ok(SessionEnd::Refused(report.with_hint("Prepare it: pglite-port prepare NAME --sql FILE")));
            }
        };
        let mut backend = self.start(&template, request.log)?;
        let mut secret = [0; 4];
        random::fill(&mut secret)?;
        let footprint = Arc::new(Footprint::of(&mut backend)?);
        let signals = backend.signals();
        let _counted = Counted::new(self, request.id, Live { footprint: footprint.clone(), signals: signals.clone() });
        let _registration = request.control.register(process::FIRST, &secret, move |interrupt| {
            signals.send(match interrupt {
                Interrupt::Cancel => Signal::INT,
                // Nobody else has this cluster: what its client left unfinished need not be finished.
                Interrupt::Terminate | Interrupt::ClientGone => Signal::TERM,
            });
        });
        let admission = template.snapshot.admission();
        let session = Session {
            startup: request.startup,
            packet: request.packet,
            endpoints: client.endpoints(),
            cancel_key: secret,
            admission,
        };
        let mut requests = ClusterRequests { isolated: self, template, footprint, session, request };
        Ok(match backend.serve(client, &session, &mut requests) {
            Ok(Ended::Client) => SessionEnd::ClientGone,
            Ok(Ended::Fatal) => SessionEnd::Orderly,
            Err(error) => SessionEnd::Trapped(error),
        })
    }

    fn start(&self, template: &Arc<Template>, log: &LogSink) -> anyhow::Result<Backend> {
        let console = Box::new(LineConsole::of_session(log.clone()));
        match self.start {
            Start::Clone => self.templates.pool().take(template, console),
            Start::Boot => template.boot(self.templates.program(), console),
        }
    }

    /// Has every cluster's session read the configuration files of its cluster again.
    pub(crate) fn reload(&self) {
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        live.iter().for_each(|live| live.signals.send(Signal::HUP));
    }

    /// For the verb `memory`, see [`Sessions::memory`](crate::session::Sessions::memory).
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn memory(&self) -> Answer {
        let (connections, total) = self.private_bytes().map_err(|error| {
            ErrorResponse::error(sqlstate::IO_ERROR, format!("private memory cannot be counted: {error}"))
        })?;
        let mut figures = Vec::new();
        for (id, bytes) in connections {
            figures.push(("connection", id.to_string()));
            figures.extend(bytes.figures(["memory", "files", "sum"]));
        }
        figures.extend(total.figures(["total_memory", "total_files", "total"]));
        Ok(figures)
    }

    /// For the verb `stats`: what all isolated connections have for themselves, and how many clones are ready.
    pub(crate) fn stats(&self) -> Vec<(&'static str, String)> {
        let mut figures = vec![("warm", self.templates.pool().ready().to_string())];
        if let Ok((_, total)) = self.private_bytes() {
            figures.extend(total.figures(["private_memory", "private_files", "private"]));
        }
        figures
    }

    /// For the verb `templates`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn templates(&self) -> Answer {
        let summaries = self.templates.shelf().list().map_err(unwritable)?;
        let figures = summaries.into_iter().flat_map(|summary| {
            [
                ("name", summary.name),
                ("database", summary.database),
                ("key", summary.key.unwrap_or_default()),
                ("size", summary.size.to_string()),
                ("made", Timestamp::try_from(summary.made).unwrap_or_default().as_microsecond().to_string()),
            ]
        });
        Ok(figures.collect())
    }

    /// For the verb `drop_template`.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be removed.
    pub(crate) fn drop_template(&self, name: &str) -> Answer {
        if self.templates.shelf().remove(name).map_err(unwritable)? {
            return Ok(Vec::new());
        }
        Err(ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, format!("template \"{name}\" does not exist")))
    }

    /// Private bytes by connection, and of all together.
    fn private_bytes(&self) -> io::Result<(Vec<(u32, PrivateBytes)>, PrivateBytes)> {
        let live: Vec<_> = self.live.lock().iter().map(|(id, live)| (*id, live.footprint.clone())).collect();
        let pages = PageMap::open()?;
        let mut total = PrivateBytes::default();
        let mut connections = Vec::with_capacity(live.len());
        for (id, footprint) in live {
            let bytes = footprint.count(&pages)?;
            total += bytes;
            connections.push((id, bytes));
        }
        Ok((connections, total))
    }
}

fn unwritable(error: anyhow::Error) -> ErrorResponse {
    ErrorResponse::error(sqlstate::IO_ERROR, format!("{error:#}"))
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

/// What is asked of one connection.
struct ClusterRequests<'a> {
    isolated: &'a Isolated,
    template: Arc<Template>,
    footprint: Arc<Footprint>,
    session: Session<'a>,
    request: &'a SessionRequest<'a>,
}

impl Requests for ClusterRequests<'_> {
    fn any(&self) -> bool {
        self.request.control.has_requests()
    }

    fn handle(&mut self, backend: &mut Backend) -> anyhow::Result<()> {
        while let Some(request) = self.request.control.take_request() {
            match &request.task {
                Task::Reset => self.reset(backend, request)?,
                Task::Freeze { name, key } => {
                    let answer = self.freeze(backend, name, key.as_deref());
                    request.answer(answer);
                }
            }
        }
        Ok(())
    }
}

impl ClusterRequests<'_> {
    /// An error here ends the session: nobody knows what state it is in.
    fn reset(&self, backend: &mut Backend, request: Request) -> anyhow::Result<()> {
        let pool = self.isolated.templates.pool();
        let reset = backend.restart_session(&self.session, |backend| pool.reset(&self.template, backend));
        let replaced = match reset {
            Ok(replaced) => replaced,
            Err(error) => {
                tracing::error!("a cluster cannot be put back to its template: {error:?}");
                let message = format!("the cluster cannot be put back to its template: {}", error.root_cause());
                let report = ErrorResponse::error(sqlstate::INTERNAL_ERROR, message.clone());
                request.answer(Err(report.with_hint("Its connection ends. Open another one.")));
                // Not the error itself: if it was an exit, its client would be taken to have been told.
                bail!(message);
            }
        };
        self.footprint.follow(backend)?;
        request.answer(Ok(Vec::new()));
        // Its memory is given back while the client does something with the answer.
        drop(replaced);
        Ok(())
    }

    /// Shuts a copy of the backend down and makes a template of its files; the session itself goes on as if nothing
    /// had been.
    fn freeze(&self, backend: &mut Backend, name: &str, key: Option<&str>) -> Answer {
        if backend.is_in_transaction()? {
            return Err(ErrorResponse::freeze_in_transaction());
        }
        let console = Box::new(LineConsole::of_session(self.request.log.clone()));
        let files = backend.copy(self.isolated.templates.program(), console).and_then(|mut copy| {
            let tree = copy.guest().files.tree().clone();
            copy.shut_down()?;
            Ok(tree.lock().freeze())
        });
        let database = &self.template.database;
        files.and_then(|files| self.isolated.templates.freeze(name, database, key, &files))?;
        Ok(Vec::new())
    }
}
