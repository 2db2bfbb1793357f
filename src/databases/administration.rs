//! What administers the clusters: figures, templates, the clusters themselves, reloading.

use std::{
    io::{Read, Write},
    sync::atomic::Ordering,
};

use super::Databases;
use crate::{
    administration::{
        Administration, ClusterSummary, Exported, Figure, Imported, MadeCluster, NewCluster, PrivateBytes, Summary,
        Watched, figure,
    },
    capacity,
    protocol::error_response::{ErrorResponse, sqlstate},
    quota::{self, Usage},
    session::{Choice, Mode, Outcome},
    template::{ParcelError, TemplateError, Tools},
};

impl Administration for Databases {
    fn tools(&self) -> Result<Tools, ErrorResponse> {
        Ok(self.templates.tools())
    }

    fn figures(&self) -> Vec<Figure> {
        let ready = (self.templates.pool().ready() + self.clusters.warm().ready()) as u64;
        let running = self.clusters.running();
        let sessions: usize = running.iter().map(|postmaster| postmaster.sessions()).sum();
        let mut figures = vec![
            figure::WARM_CLONES.figure(ready),
            figure::CLUSTERS.figure(running.len() as u64),
            figure::SHARED_SESSIONS.figure(sessions as u64),
        ];
        // Before the usage, because this counts the shared memory that clusters have by now.
        let watched = self.clusters.watched();
        let tallies = watched.iter().map(|cluster| &cluster.tally).chain([self.isolated.tally()]);
        let turns = tallies.map(|tally| tally.turns.get()).sum();
        let Usage { linear_memory, files, shared_memory, images, used, limit } = quota::usage();
        figures.extend([
            figure::LINEAR_MEMORY.figure(linear_memory),
            figure::FILES_IN_MEMORY.figure(files),
            figure::SHARED_MEMORY.figure(shared_memory),
            figure::IMAGES.figure(images),
            figure::MEMORY_USED.figure(used),
            figure::TURNS.figure(turns),
            figure::READY.figure(self.readiness().is_ok().into()),
        ]);
        figures.extend(limit.map(|limit| figure::MEMORY_LIMIT.figure(limit)));
        if let Ok(connections) = self.isolated.private_bytes() {
            let total: PrivateBytes = connections.into_iter().map(|(_, bytes)| bytes).sum();
            figures.extend([
                figure::PRIVATE_MEMORY.figure(total.memory),
                figure::PRIVATE_FILES.figure(total.files),
                figure::PRIVATE.figure(total.sum()),
            ]);
        }
        figures
    }

    fn watched(&self) -> Watched {
        let (isolated_memory, isolated_disk) = self.isolated.used();
        Watched {
            clusters: self.clusters.watched(),
            isolated: self.isolated.tally().clone(),
            isolated_memory,
            isolated_disk,
            starts: self.clusters.starts().clone(),
            warm: self.templates.pool().ready() + self.clusters.warm().ready(),
        }
    }

    fn readiness(&self) -> Result<(), String> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err("the program ends".to_owned());
        }
        if self.mode == Mode::Shared && !self.clusters.is_default_running() {
            return Err("the default cluster takes no sessions at the moment: it starts or recovers".to_owned());
        }
        capacity::check_for_session().map_err(|report| report.message)
    }

    fn memory(&self) -> Result<Vec<(u32, PrivateBytes)>, ErrorResponse> {
        self.isolated.private_bytes().map_err(|error| {
            ErrorResponse::error(sqlstate::IO_ERROR, format!("private memory cannot be counted: {error}"))
        })
    }

    fn templates(&self) -> Result<Vec<Summary>, ErrorResponse> {
        self.templates.shelf().list().map_err(unusable)
    }

    fn drop_template(&self, name: &str) -> Result<(), ErrorResponse> {
        if self.templates.shelf().remove(name).map_err(unusable)? {
            self.templates.forget(name);
            self.clusters.forget_template(name);
            return Ok(());
        }
        Err(no_template(name))
    }

    fn export_template(&self, name: &str, out: &mut dyn Write) -> Result<Exported, ErrorResponse> {
        self.templates.export(name, out).map_err(|error| match error.downcast_ref::<TemplateError>() {
            Some(TemplateError::Unknown(name)) => no_template(name),
            Some(TemplateError::Lacks { missing, .. }) => {
                let report = ErrorResponse::error(sqlstate::UNDEFINED_FILE, error.to_string());
                report.with_hint(missing.advice())
            }
            _ => unusable(error),
        })
    }

    fn import_template(&self, input: &mut dyn Read) -> Result<Imported, ErrorResponse> {
        self.templates.import(input).map_err(|error| {
            let code = match error {
                ParcelError::Foreign => sqlstate::INVALID_PARAMETER_VALUE,
                ParcelError::OtherFormat | ParcelError::Unfit { .. } => sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
                ParcelError::Damaged(_) => sqlstate::DATA_CORRUPTED,
                ParcelError::Unreadable(_) | ParcelError::Unwritable(_) => sqlstate::IO_ERROR,
            };
            let advice = error.advice();
            let report = ErrorResponse::error(code, format!("{:#}", anyhow::Error::from(error)));
            advice.into_iter().fold(report, ErrorResponse::with_hint)
        })
    }

    fn create_cluster(&self, new: NewCluster) -> Result<MadeCluster, ErrorResponse> {
        capacity::check_for_cluster()?;
        self.clusters.create(new)
    }

    fn reset_cluster(&self, name: &str) -> Result<(), ErrorResponse> {
        self.clusters.reset(name)
    }

    fn drop_cluster(&self, name: &str) -> Result<(), ErrorResponse> {
        self.clusters.drop(name)
    }

    fn choose(&self, cluster: &str, choice: Choice) -> Outcome {
        self.clusters.choose(cluster, choice)
    }

    fn clusters(&self) -> Vec<ClusterSummary> {
        self.clusters.list()
    }

    fn reload(&self) {
        if let Err(error) = self.templates.extensions().look_again() {
            tracing::error!("the same extensions are offered as before: {error:#}");
        }
        // A cluster that is being started reads its configuration anyway.
        for postmaster in self.clusters.running() {
            postmaster.offer_extensions();
            postmaster.reload();
        }
        self.isolated.reload();
    }
}

fn no_template(name: &str) -> ErrorResponse {
    ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, format!("template \"{name}\" does not exist"))
}

/// The directory of templates cannot be read or written.
fn unusable(error: anyhow::Error) -> ErrorResponse {
    ErrorResponse::error(sqlstate::IO_ERROR, format!("{error:#}"))
}
