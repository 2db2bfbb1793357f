//! How a cluster starts: from its origin, once.

use std::{sync::Arc, time::Instant};

use super::{
    super::shared::{DATABASE, DataDirectory, Postmaster, data_directory::PG_VERSION},
    Cluster, Registry, State, in_words, unknown,
};
use crate::{
    administration::{ClusterOrigin, DEFAULT_CLUSTER},
    backend::ClusterSnapshot,
    databases::PREPARE,
    fs::FrozenTree,
    protocol::error_response::{ErrorResponse, Severity, sqlstate},
    template::TemplateError,
};

impl Registry {
    /// What runs `cluster`, which is started if necessary; `None` if it is gone. If it cannot be started, it is gone,
    /// except for the default cluster.
    pub(super) fn postmaster(&self, cluster: &Arc<Cluster>) -> Result<Option<Arc<Postmaster>>, ErrorResponse> {
        // Without the lock for those that run. A cluster is never new again.
        let is_new = matches!(*cluster.state.lock(), State::New(_));
        let _starting = is_new.then(|| cluster.starting.lock());
        let state = cluster.state.lock().clone();
        let branch_of = match state {
            State::Started(postmaster) => return Ok(Some(postmaster)),
            State::Gone => return Ok(None),
            State::New(branch_of) => branch_of,
        };
        let begun = Instant::now();
        let started = self.start(cluster, branch_of.as_ref());
        if started.is_ok() {
            let starts = match cluster.origin {
                ClusterOrigin::Empty => &self.starts.empty,
                ClusterOrigin::Template(_) => &self.starts.template,
                ClusterOrigin::Branch(_) => &self.starts.branch,
            };
            starts.observe(begun.elapsed());
        }
        match started {
            Ok(postmaster) => Ok(if cluster.has_started(&postmaster) {
                Some(postmaster)
            } else {
                postmaster.end();
                None
            }),
            Err(report) => {
                if cluster.name != DEFAULT_CLUSTER {
                    *cluster.state.lock() = State::Gone;
                    self.remove(cluster);
                }
                let is_gone = |origin: &Arc<Cluster>| matches!(*origin.state.lock(), State::Gone);
                Err(branch_of.filter(is_gone).map_or(report, |origin| unknown(&origin.name, Severity::Error)))
            }
        }
    }

    /// What runs `cluster` from now on.
    fn start(&self, cluster: &Cluster, branch_of: Option<&Arc<Cluster>>) -> Result<Arc<Postmaster>, ErrorResponse> {
        let (settings, log, on_failure) = (cluster.settings.clone(), self.log.clone(), cluster.on_failure.clone());
        let simulation = cluster.simulation.clone();
        let start = |new: &mut dyn FnMut() -> anyhow::Result<Arc<FrozenTree>>| {
            let (settings, simulation) = (settings.clone(), simulation.clone());
            let tally = cluster.tally.clone();
            Postmaster::start(&self.templates, new, settings, simulation, tally, log.clone(), on_failure.clone())
        };
        let database = match &cluster.origin {
            // A cluster that is in its directory already does not need its template any more.
            ClusterOrigin::Template(name) => self.templates.database(name),
            ClusterOrigin::Empty | ClusterOrigin::Branch(_) => branch_of.map(|origin| origin.database().to_owned()),
        };
        // Set before, if an earlier start failed.
        let _ = cluster.database.set(database.unwrap_or_else(|| DATABASE.to_owned()));
        let fits_snapshots = settings.data_directory.is_none() && !cluster.has_own_settings;
        let postmaster = match &cluster.origin {
            ClusterOrigin::Template(name) if fits_snapshots => {
                self.go_on(cluster, self.snapshots.of_template(name).map_err(no_template)?)?
            }
            ClusterOrigin::Template(name) => {
                start(&mut || self.templates.copy(name).map_err(|error| in_words(no_template(error))))?
            }
            ClusterOrigin::Empty => start(&mut || self.templates.cluster())?,
            ClusterOrigin::Branch(name) => {
                if let Some(DataDirectory::Host(path)) = &settings.data_directory
                    && path.join(PG_VERSION).exists()
                {
                    let message = format!("there is a cluster in the data directory {} already", path.display());
                    let report = ErrorResponse::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
                    return Err(report.with_hint("Choose a new directory for the branch."));
                }
                let origin = branch_of.map(|origin| self.postmaster(origin)).transpose()?.flatten();
                let origin = origin.ok_or_else(|| unknown(name, Severity::Error))?;
                if fits_snapshots {
                    self.go_on(cluster, origin.snapshot()?)?
                } else {
                    let files = origin.branch()?;
                    start(&mut || Ok(files.clone()))?
                }
            }
        };
        cluster.limit(&postmaster);
        // They may have changed while it started.
        postmaster.offer_extensions();
        Ok(Arc::new(postmaster))
    }

    /// What runs `cluster` from now on, which begins as a copy of `snapshot`.
    pub(super) fn go_on(&self, cluster: &Cluster, snapshot: Arc<ClusterSnapshot>) -> anyhow::Result<Postmaster> {
        let copy = self.warm.take(&snapshot)?;
        *cluster.beginning.lock() = Some(snapshot);
        let Cluster { settings, simulation, on_failure, .. } = cluster;
        let (settings, simulation, tally) = (settings.clone(), simulation.clone(), cluster.tally.clone());
        let (log, on_failure) = (self.log.clone(), on_failure.clone());
        Postmaster::from_snapshot(&self.templates, copy, settings, simulation, tally, log, on_failure)
    }
}

/// The error when a template cannot be used.
fn no_template(error: TemplateError) -> ErrorResponse {
    match error {
        TemplateError::Unknown(name) => {
            let message = format!("template \"{name}\" does not exist");
            ErrorResponse::error(sqlstate::INVALID_CATALOG_NAME, message).with_hint(PREPARE)
        }
        TemplateError::Lacks { ref missing, .. } => {
            let report = ErrorResponse::error(sqlstate::UNDEFINED_FILE, error.to_string());
            report.with_hint(missing.advice())
        }
        TemplateError::Broken(error) => error.into(),
    }
}
