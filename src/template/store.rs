//! Templates on disk, and those in use.
//!
//! A template is one directory of the cache, built beside its place and renamed in whole. Its recipe is kept with it, and a key of everything
//! that went into it; when the program, `PostgreSQL` or the start parameters have changed since, or a file of it is damaged, it is built again from the recipe.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use anyhow::Context;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{build, build::Recipe, initdb, snapshot::Snapshot};
use crate::{
    artefact::{Artefact, PGLITE_DATA, PGLITE_JS, hex_digest},
    backend::{BOOTSTRAP_USER, START_PARAMETERS},
    cache::Cache,
    engine::{on_wasm_stack, spinner},
    fs::{FrozenTree, open_bundle},
    log::LogSink,
    program::Program,
};

/// What is kept beside a snapshot.
const LABEL: &str = "label";

/// The template that is there without being prepared.
const DEFAULT: &str = "postgres";

/// The templates of one program.
pub(crate) struct Templates {
    program: Arc<Program>,
    artefact: Artefact,
    cache: Cache,
    directory: Cache,
    log: LogSink,
    in_use: Mutex<HashMap<String, Arc<Snapshot>>>,
}

/// Why there is no template to clone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// Nobody has prepared it.
    #[error("there is no template {0:?}")]
    Unknown(String),
    /// It cannot be built or opened.
    #[error(transparent)]
    Broken(#[from] anyhow::Error),
}

/// What a template is, without its contents.
#[derive(Serialize, Deserialize)]
struct Label {
    key: String,
    recipe: Option<Recipe>,
}

impl Templates {
    pub(crate) fn new(program: Arc<Program>, artefact: Artefact, cache: Cache, log: LogSink) -> anyhow::Result<Self> {
        let directory = cache.subdirectory("templates")?;
        Ok(Self { program, artefact, cache, directory, log, in_use: Mutex::default() })
    }

    /// The template `name`, opened once for all its clones.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Snapshot>, TemplateError> {
        if let Some(snapshot) = self.in_use.lock().get(name) {
            return Ok(snapshot.clone());
        }
        let snapshot = Arc::new(self.open_or_build(name)?);
        Ok(self.in_use.lock().entry(name.to_owned()).or_insert(snapshot).clone())
    }

    fn open_or_build(&self, name: &str) -> Result<Snapshot, TemplateError> {
        let entry = entry(name);
        let _lock = self.directory.lock(&entry)?;
        let directory = self.directory.path(&entry);
        let label = read_label(&directory);
        let recipe = match &label {
            Ok(label) if label.key == self.key() => match Snapshot::open(&self.program, &directory) {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) => {
                    tracing::warn!("building the template {name:?} again, because {error:#}");
                    label.recipe.clone()
                }
            },
            Ok(label) => {
                tracing::info!("building the template {name:?} again, because the program has changed since");
                label.recipe.clone()
            }
            Err(error) => {
                if directory.exists() {
                    tracing::warn!("building the template {name:?} again, because {error:#}");
                }
                None
            }
        };
        let recipe = match recipe {
            Some(recipe) => recipe,
            None if name == DEFAULT => Recipe::empty(DEFAULT),
            None => return Err(TemplateError::Unknown(name.to_owned())),
        };
        Ok(self.build(name, recipe)?)
    }

    /// Builds the template `name` from `recipe`, replacing one of the same name.
    ///
    /// # Errors
    /// Those of its SQL, and when the cache cannot be written.
    pub(crate) fn prepare(&self, name: &str, recipe: Recipe) -> anyhow::Result<()> {
        let _lock = self.directory.lock(&entry(name))?;
        let snapshot = self.build(name, recipe)?;
        self.in_use.lock().insert(name.to_owned(), Arc::new(snapshot));
        Ok(())
    }

    fn build(&self, name: &str, recipe: Recipe) -> anyhow::Result<Snapshot> {
        let cluster = self.cluster()?;
        let progress = spinner(&format!("preparing the database {name}"));
        let label = Label { key: self.key(), recipe: Some(recipe.clone()) };
        let directory = self.directory.publish_directory(&entry(name), |directory| {
            on_wasm_stack(|| build::build(&self.program, &cluster, &recipe, &self.log, directory))??;
            Ok(fs::write(directory.join(LABEL), postcard::to_allocvec(&label)?)?)
        });
        progress.finish_and_clear();
        Snapshot::open(&self.program, &directory.with_context(|| format!("the template {name:?} cannot be built"))?)
    }

    /// The files of a new cluster, made once.
    fn cluster(&self) -> anyhow::Result<Arc<FrozenTree>> {
        let entry = format!("cluster-{}", &self.key()[..32]);
        let directory = self.cache.path(&entry);
        let _lock = self.cache.lock(&entry)?;
        match FrozenTree::open(&directory) {
            Ok(cluster) => return Ok(cluster),
            Err(error) if directory.exists() => tracing::warn!("running initdb again, because {error}"),
            Err(_) => {}
        }
        let progress = spinner("running initdb (once)");
        let bundle = open_bundle(&self.artefact.path(PGLITE_DATA), &self.artefact.path(PGLITE_JS))?;
        let cluster = on_wasm_stack(|| initdb::make_cluster(&self.program, &self.artefact, bundle, &self.log))??;
        self.cache.publish_directory(&entry, |directory| Ok(cluster.write_to(directory)?))?;
        progress.finish_and_clear();
        Ok(FrozenTree::open(&directory)?)
    }

    /// Everything besides its recipe that decides how a template looks.
    fn key(&self) -> String {
        hex_digest(&[
            self.program.key().as_bytes(),
            env!("CARGO_PKG_VERSION").as_bytes(),
            START_PARAMETERS.join(" ").as_bytes(),
            BOOTSTRAP_USER.as_bytes(),
        ])
    }
}

/// The name of a template's directory: a template may have any name that a database may have.
fn entry(name: &str) -> String {
    let readable: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect();
    format!("{readable}-{}", &hex_digest(&[name.as_bytes()])[..16])
}

fn read_label(directory: &Path) -> anyhow::Result<Label> {
    let bytes = fs::read(directory.join(LABEL)).context("its label cannot be read")?;
    postcard::from_bytes(&bytes).context("its label is damaged")
}
