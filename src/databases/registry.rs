//! The clusters of the program by name: made, found for connections, dropped.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use anyhow::{Context, anyhow};
use parking_lot::Mutex;

use super::{
    Leave, Simulation,
    attached::Attachment,
    shared::{DataDirectory, OnFailure, Postmaster, SharedSettings},
    snapshots::Snapshots,
    warm::Warm,
};

use crate::{
    administration::{
        ClusterOrigin, ClusterSummary, DEFAULT_CLUSTER, Lifetime, MadeCluster, NewCluster, WatchedCluster,
    },
    client::Client,
    log::LogSink,
    protocol::error_response::{ErrorResponse, Severity, sqlstate},
    quota::Limits,
    session::{Choice, Outcome, SessionEnd, SessionStart},
    tally::ClusterStarts,
    template::Templates,
};

mod cluster;
mod start;

use cluster::{Cluster, State};

/// The longest name of a cluster, in bytes, as of a database (`NAMEDATALEN` - 1 in `src/include/pg_config_manual.h`).
const NAME_LENGTH: usize = 63;

/// All clusters that take several sessions.
pub(super) struct Registry {
    templates: Arc<Templates>,
    snapshots: Snapshots,
    warm: Warm,
    /// The settings of the default cluster. Others begin with them, and a branch with those of its origin.
    settings: SharedSettings,
    /// The limits of clusters that have none of their own.
    limits: Limits,
    leave: Leave,
    log: LogSink,
    starts: Arc<ClusterStarts>,
    clusters: Mutex<Clusters>,
}

#[derive(Default)]
struct Clusters {
    by_name: BTreeMap<String, Arc<Cluster>>,
    /// The number in the next name that the program chooses.
    next: u64,
    /// Whether the program ends.
    is_closed: bool,
}

impl Registry {
    /// A registry with the default cluster, which is started when it is first needed. `on_failure` is called when that
    /// has crashed and cannot be started again.
    pub(super) fn new(
        templates: Arc<Templates>,
        settings: SharedSettings,
        limits: Limits,
        leave: Leave,
        warm: usize,
        log: LogSink,
        on_failure: Option<OnFailure>,
    ) -> Self {
        let default = Cluster {
            name: DEFAULT_CLUSTER.to_owned(),
            origin: settings.template.clone().map_or(ClusterOrigin::Empty, ClusterOrigin::Template),
            lifetime: Lifetime::Program,
            settings: settings.clone(),
            has_own_settings: false,
            limits,
            made: SystemTime::now(),
            on_failure,
            simulation: Simulation::new(leave),
            tally: Arc::default(),
            beginning: Mutex::default(),
            database: OnceLock::new(),
            state: Mutex::new(State::New(None)),
            starting: Mutex::default(),
        };
        let clusters =
            Clusters { by_name: BTreeMap::from([(default.name.clone(), Arc::new(default))]), ..Clusters::default() };
        let snapshots = Snapshots::new(templates.clone(), settings.in_memory(), log.clone());
        let warm = Warm::new(warm);
        let (starts, clusters) = (Arc::default(), Mutex::new(clusters));
        Self { templates, snapshots, warm, settings, limits, leave, log, starts, clusters }
    }

    /// Starts the default cluster.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start_default(&self) -> anyhow::Result<()> {
        let cluster = self.find(DEFAULT_CLUSTER).context("there is no default cluster")?;
        self.postmaster(&cluster).map_err(in_words)?.context("the default cluster is gone")?;
        Ok(())
    }

    /// Serves one client as a session of the cluster that it names, or of the default one.
    ///
    /// # Errors
    /// When the session cannot be made.
    pub(super) fn serve(&self, start: &SessionStart<'_>, client: Box<dyn Client>) -> anyhow::Result<SessionEnd> {
        let name = start.cluster.unwrap_or(DEFAULT_CLUSTER);
        let refused = || SessionEnd::Refused(unknown(name, Severity::Fatal));
        let Some(cluster) = self.find(name) else { return Ok(refused()) };
        let (postmaster, attachment) = match self.attach(&cluster, start) {
            Ok(Some(attached)) => attached,
            Ok(None) => return Ok(refused()),
            Err(report) => {
                tracing::error!(%report, "the cluster {name:?} cannot be started");
                return Ok(SessionEnd::Refused(super::for_client(report)));
            }
        };
        let ended = catch_unwind(AssertUnwindSafe(|| postmaster.serve(&attachment, start, client)));
        drop(attachment);
        // Of one that was reset meanwhile, the connections to its successor decide.
        if cluster.lifetime == Lifetime::Connections && cluster.is_run_by(&postmaster) && postmaster.close_if_left() {
            self.end(&cluster);
        }
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Adds a connection to those of `cluster`, which is started if necessary; returns what runs it. `None` if it is
    /// gone.
    fn attach(
        &self,
        cluster: &Arc<Cluster>,
        start: &SessionStart<'_>,
    ) -> Result<Option<(Arc<Postmaster>, Attachment)>, ErrorResponse> {
        while let Some(postmaster) = self.postmaster(cluster)? {
            if let Some(attachment) = postmaster.attach(start.control, start.is_trusted) {
                return Ok(Some((postmaster, attachment)));
            }
            // It takes no more connections: the cluster goes, or has a successor after a reset.
            if cluster.is_run_by(&postmaster) {
                break;
            }
        }
        Ok(None)
    }

    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// See [`Administration::create_cluster`](crate::administration::Administration::create_cluster).
    pub(super) fn create(&self, new: NewCluster) -> Result<MadeCluster, ErrorResponse> {
        let cluster = self.enter(new)?;
        self.postmaster(&cluster)?.ok_or_else(|| {
            let message = format!("cluster \"{}\" was dropped while it was made", cluster.name);
            ErrorResponse::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        })?;
        Ok(MadeCluster { name: cluster.name.clone(), database: cluster.database().to_owned() })
    }

    /// Adds a cluster that is not started yet. Its name is taken from then on.
    fn enter(&self, new: NewCluster) -> Result<Arc<Cluster>, ErrorResponse> {
        let NewCluster { name, origin, data_directory, lifetime, limits, settings: mut further } = new;
        if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
            let message = format!("invalid name of a cluster: {name:?}");
            let report = ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, message);
            return Err(report.with_hint(format!("Use 1 to {NAME_LENGTH} bytes without control characters.")));
        }
        let has_own_settings = !further.is_empty();
        let mut clusters = self.clusters.lock();
        if clusters.is_closed {
            return Err(ErrorResponse::error(sqlstate::CANNOT_CONNECT_NOW, "the program is shutting down"));
        }
        let name = name.unwrap_or_else(|| clusters.free_name());
        if clusters.by_name.contains_key(&name) {
            let message = format!("cluster \"{name}\" already exists");
            return Err(ErrorResponse::error(sqlstate::DUPLICATE_OBJECT, message));
        }
        // Of what this name means now, so that no cluster is a branch of itself, or of a branch of itself.
        let branch_of = match &origin {
            ClusterOrigin::Branch(name) => {
                Some(clusters.by_name.get(name).ok_or_else(|| unknown(name, Severity::Error))?.clone())
            }
            ClusterOrigin::Empty | ClusterOrigin::Template(_) => None,
        };
        let of_origin = match (&origin, &branch_of) {
            (_, Some(branched)) => branched.limits,
            (ClusterOrigin::Template(name), None) => self.templates.limits(name).or(self.limits),
            (_, None) => self.limits,
        };
        let limits = limits.or(of_origin);
        let settings = branch_of.as_ref().map(|origin| origin.settings.of_branch());
        let mut settings = settings.unwrap_or_else(|| self.settings.clone());
        settings.further.append(&mut further);
        let settings =
            SharedSettings { data_directory: data_directory.map(DataDirectory::Host), ..settings.in_memory() };
        let cluster = Arc::new(Cluster {
            name: name.clone(),
            origin,
            lifetime,
            settings,
            has_own_settings,
            limits,
            made: SystemTime::now(),
            on_failure: None,
            simulation: Simulation::new(self.leave),
            tally: Arc::default(),
            beginning: Mutex::default(),
            database: OnceLock::new(),
            state: Mutex::new(State::New(branch_of)),
            starting: Mutex::default(),
        });
        clusters.by_name.insert(name, cluster.clone());
        Ok(cluster)
    }

    /// Puts a cluster back to its beginning: its sessions end, and what was done in it is gone.
    ///
    /// # Errors
    /// See [`Administration::reset_cluster`](crate::administration::Administration::reset_cluster).
    pub(super) fn reset(&self, name: &str) -> Result<(), ErrorResponse> {
        let cluster = self.find(name).ok_or_else(|| unknown(name, Severity::Error))?;
        let beginning = cluster.beginning.lock().clone();
        let Some(beginning) = beginning.filter(|_| cluster.lifetime != Lifetime::Program) else {
            let message = format!("cluster \"{name}\" cannot be put back to its beginning");
            let report = ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, message);
            return Err(report.with_hint(
                "That is for clusters in memory that are copies of a template or branches, without settings of their own.",
            ));
        };
        let successor = Arc::new(self.go_on(&cluster, beginning)?);
        cluster.limit(&successor);
        let Some(replaced) = cluster.succeed_to(&successor) else {
            successor.end();
            return Err(unknown(name, Severity::Error));
        };
        replaced.end();
        Ok(())
    }

    /// Ends a cluster and its sessions.
    ///
    /// # Errors
    /// See [`Administration::drop_cluster`](crate::administration::Administration::drop_cluster).
    pub(super) fn drop(&self, name: &str) -> Result<(), ErrorResponse> {
        let cluster = self.find(name).ok_or_else(|| unknown(name, Severity::Error))?;
        if cluster.lifetime == Lifetime::Program {
            let message = format!("cluster \"{name}\" cannot be dropped: it exists as long as the program");
            return Err(ErrorResponse::error(sqlstate::OBJECT_IN_USE, message));
        }
        // Another request may have been faster.
        if self.end(&cluster) { Ok(()) } else { Err(unknown(name, Severity::Error)) }
    }

    /// Takes a cluster off the list; returns whether it was on it.
    fn remove(&self, cluster: &Arc<Cluster>) -> bool {
        let mut clusters = self.clusters.lock();
        let is_there = clusters.by_name.get(&cluster.name).is_some_and(|listed| Arc::ptr_eq(listed, cluster));
        is_there && clusters.by_name.remove(&cluster.name).is_some()
    }

    /// Ends a cluster and its sessions, unless it was taken off the list already; returns whether it was not. Waits
    /// while it starts.
    fn end(&self, cluster: &Arc<Cluster>) -> bool {
        let is_there = self.remove(cluster);
        if is_there && let Some(postmaster) = cluster.go() {
            postmaster.end();
        }
        is_there
    }

    /// Makes a choice for a cluster, for when it starts if it does not run yet.
    ///
    /// # Errors
    /// See [`Administration::choose`](crate::administration::Administration::choose).
    pub(super) fn choose(&self, name: &str, choice: Choice) -> Outcome {
        self.find(name).ok_or_else(|| unknown(name, Severity::Error))?.simulation.choose(choice)
    }

    /// Gives back what is kept of the template `name`, which was removed.
    pub(super) fn forget_template(&self, name: &str) {
        self.snapshots.forget(name);
    }

    /// The copies of clusters that are ready.
    pub(super) fn warm(&self) -> &Warm {
        &self.warm
    }

    /// The clusters, by name.
    pub(super) fn list(&self) -> Vec<ClusterSummary> {
        self.all().iter().map(|cluster| cluster.summary()).collect()
    }

    /// What is watched of the clusters, by name.
    pub(super) fn watched(&self) -> Vec<WatchedCluster> {
        self.all().iter().map(|cluster| cluster.watched()).collect()
    }

    /// Whether the default cluster takes sessions at the moment.
    pub(super) fn is_default_running(&self) -> bool {
        self.find(DEFAULT_CLUSTER).is_some_and(|cluster| cluster.takes_sessions())
    }

    /// How long it took to start clusters.
    pub(super) fn starts(&self) -> &Arc<ClusterStarts> {
        &self.starts
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<Arc<Postmaster>> {
        self.all().iter().filter_map(|cluster| cluster.running()).collect()
    }

    /// All of them, by name.
    fn all(&self) -> Vec<Arc<Cluster>> {
        self.clusters.lock().by_name.values().cloned().collect()
    }

    /// Shuts all clusters down, after their sessions have ended.
    pub(super) fn shut_down(&self) {
        let clusters = {
            let mut clusters = self.clusters.lock();
            clusters.is_closed = true;
            std::mem::take(&mut clusters.by_name)
        };
        for cluster in clusters.into_values() {
            if let Some(postmaster) = cluster.go() {
                postmaster.shut_down();
            }
        }
    }

    fn find(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.lock().by_name.get(name).cloned()
    }
}

impl Clusters {
    /// A name that no cluster has.
    fn free_name(&mut self) -> String {
        loop {
            self.next += 1;
            let name = format!("cluster-{}", self.next);
            if !self.by_name.contains_key(&name) {
                return name;
            }
        }
    }
}

/// Whether `name` can be the name of a cluster.
fn is_name(name: &str) -> bool {
    (1..=NAME_LENGTH).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// A report as an error of the program.
fn in_words(report: ErrorResponse) -> anyhow::Error {
    match report.hint {
        Some(hint) => anyhow!("{}. {hint}", report.message),
        None => anyhow!(report.message),
    }
}

/// The error when there is no cluster of that name.
fn unknown(name: &str, severity: Severity) -> ErrorResponse {
    let message = format!("cluster \"{name}\" does not exist");
    let report = ErrorResponse { severity, ..ErrorResponse::error(sqlstate::INVALID_CATALOG_NAME, message) };
    report.with_hint("Create it: the request create_cluster, or in Elixir PgliteEx.branch/2.")
}
