//! The snapshots from which clusters of templates start, one for each template in use.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::shared::{self, SharedSettings};
use crate::{
    backend::ClusterSnapshot,
    log::LogSink,
    template::{Template, TemplateError, Templates},
};

/// Snapshots, made when they are first needed.
pub(super) struct Snapshots {
    templates: Arc<Templates>,
    settings: SharedSettings,
    log: LogSink,
    by_template: Mutex<HashMap<String, Arc<Mutex<Option<Made>>>>>,
}

/// A snapshot of one edition of a template.
struct Made {
    template: Arc<Template>,
    snapshot: Arc<ClusterSnapshot>,
}

impl Snapshots {
    /// No snapshots yet. Those of clusters with `settings` will be made.
    pub(super) fn new(templates: Arc<Templates>, settings: SharedSettings, log: LogSink) -> Self {
        Self { templates, settings, log, by_template: Mutex::default() }
    }

    /// Gives back the snapshot of the template `name`, which was removed. Clusters that were made from it live on.
    pub(super) fn forget(&self, name: &str) {
        self.by_template.lock().remove(name);
    }

    /// The snapshot of a cluster with the template `name`.
    ///
    /// # Errors
    /// When there is no such template, or a cluster does not start from it.
    pub(super) fn of_template(&self, name: &str) -> Result<Arc<ClusterSnapshot>, TemplateError> {
        let template = self.templates.find(name)?;
        let slot = self.by_template.lock().entry(name.to_owned()).or_default().clone();
        // Locked, so that it is made once.
        let mut slot = slot.lock();
        if let Some(made) = slot.as_ref().filter(|made| Arc::ptr_eq(&made.template, &template)) {
            return Ok(made.snapshot.clone());
        }
        let files = self.templates.copy(name)?;
        let (program, settings, log) = (self.templates.program(), self.settings.clone(), self.log.clone());
        let snapshot = shared::capture(program, files, settings.clone(), &template.database, log.clone())?;
        // A template is made to be copied.
        shared::add_model(program, &snapshot, settings, &template.database, log);
        *slot = Some(Made { template, snapshot: snapshot.clone() });
        Ok(snapshot)
    }
}
