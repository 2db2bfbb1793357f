//! The templates of one program: finds them, builds them if necessary, and keeps them open for all their clones.
//!
//! A template is labelled with the program that built it; when the program, `PostgreSQL` or the start parameters have
//! changed since, or a file of it is damaged, it is built again: from its recipe, or, if it was frozen from a running
//! database, from its files (a database started from them recovers as after a crash, so unlogged tables are empty
//! then).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::{
    build::{self, Builder},
    initdb,
    pool::Pool,
    recipe::Recipe,
    shelf::{Edition, Label, Shelf},
    snapshot::Snapshot,
    tools::Tools,
};
use crate::{
    backend::{Backend, program::Program},
    engine::{
        artefact::{Artefact, PGLITE_DATA, PGLITE_JS},
        cache::{Cache, InUse, Lock},
        on_wasm_stack, spinner,
    },
    extensions::{Extensions, Fit, MissingExtension, Offer},
    fs::{Console, FrozenTree, Tree, open_bundle},
    icu::IcuData,
    log::{LineConsole, LogSink},
    quota::Limits,
    sources::{self, hex_digest},
};

/// The template that needs no preparation: it is built when it is first used.
pub(crate) const DEFAULT: &str = "postgres";

/// The templates of one program.
pub struct Templates {
    program: Arc<Program>,
    artefact: Artefact,
    icu: IcuData,
    extensions: Extensions,
    cache: Cache,
    shelf: Shelf,
    log: LogSink,
    pool: Pool,
    /// The lock on the cache's entry for new clusters. It is kept once it was taken, because clusters that use the
    /// entry's files are not counted here.
    cluster: Mutex<Option<InUse>>,
    in_use: Mutex<HashMap<String, (Edition, Arc<Template>)>>,
}

/// A template, opened.
pub(crate) struct Template {
    pub(crate) name: String,
    /// The database in it, which its clones are connected to.
    pub(crate) database: String,
    /// The limits of clusters that are copies of it.
    pub(crate) limits: Limits,
    pub(crate) snapshot: Snapshot,
    _in_use: InUse,
}

impl Template {
    /// Boots a backend on the template's files, instead of cloning the snapshot.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn boot(&self, program: &Program, console: Box<dyn Console>) -> anyhow::Result<Backend> {
        let tree = Tree::from_frozen(self.snapshot.files().clone());
        build::boot(program, &Arc::new(Mutex::new(tree)), &self.database, console)
    }
}

/// Why there is no template to clone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// It was not prepared.
    #[error("there is no template {0:?}")]
    Unknown(String),
    /// It needs an extension that is not installed.
    #[error("the template {name:?} cannot be used: {missing}")]
    Lacks {
        /// Its name.
        name: String,
        /// The extension.
        missing: MissingExtension,
    },
    /// It cannot be built or opened.
    #[error(transparent)]
    Broken(#[from] anyhow::Error),
}

impl Templates {
    /// Opens the templates of the cache in `cache` (or the user's), for the PGlite files in `pglite` (or those found),
    /// with the ICU data in `icu` (if any) besides the generated data. `warm` clones of each template in use are kept
    /// ready. `user_libraries`: SQL can load libraries that did not come with the program. `extensions`: the bundles of
    /// the user's own extensions.
    ///
    /// # Errors
    /// When the artefact or ICU's data are missing or foreign, or the cache cannot be used; the message says what to
    /// do.
    pub fn open(
        pglite: Option<&Path>,
        cache: Option<&Path>,
        icu: Option<&Path>,
        warm: usize,
        user_libraries: bool,
        extensions: &[PathBuf],
        log: LogSink,
    ) -> anyhow::Result<Self> {
        let icu = IcuData::open(icu)?;
        let cache = Cache::open(cache)?;
        let artefact = Artefact::find(pglite, &cache)?;
        let program = Arc::new(Program::load(&artefact, &cache, user_libraries)?);
        let extensions = Extensions::open(&artefact, &program, &cache, extensions)?;
        let pool = Pool::new(program.clone(), warm)?;
        let shelf = Shelf::of(&cache)?;
        let (cluster, in_use) = Default::default();
        Ok(Self { program, artefact, icu, extensions, cache, shelf, log, pool, cluster, in_use })
    }

    pub(crate) fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The extensions beyond those of PGlite.
    pub(crate) fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// What PostgreSQL's client programs are run with.
    #[must_use]
    pub fn tools(&self) -> Tools {
        Tools { program: self.program.clone(), artefact: self.artefact.clone() }
    }

    /// The clones that are kept ready.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The templates on disk.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// The template for connections to `database`: the template of this name, or else the latest template whose
    /// database has this name.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub(crate) fn find_for_database(&self, database: &str) -> Result<Arc<Template>, TemplateError> {
        match self.find(database) {
            Err(TemplateError::Unknown(_)) => match self.shelf.with_database(database)? {
                Some(name) => self.find(&name),
                None => Err(TemplateError::Unknown(database.to_owned())),
            },
            found => found,
        }
    }

    /// The template `name`, opened once for all its clones. If this or another process has replaced it since, the new
    /// one is opened; if it was removed, it is unknown, except for the default template, which is built again.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Template>, TemplateError> {
        let edition = self.shelf.edition(name);
        match self.in_use.lock().get(name) {
            Some((opened, template)) if Some(*opened) == edition && self.is_current(template) => {
                return Ok(template.clone());
            }
            None if edition.is_none() && name != DEFAULT => return Err(TemplateError::Unknown(name.to_owned())),
            _ => {}
        }
        let lock = self.shelf.lock(name)?;
        let template = self.open_or_build(name, &lock).map(Arc::new);
        // No other process can replace it meanwhile, because of the lock.
        let edition = self.shelf.edition(name);
        let mut in_use = self.in_use.lock();
        match (template, edition) {
            (Ok(template), Some(edition)) => {
                in_use.insert(name.to_owned(), (edition, template.clone()));
                Ok(template)
            }
            (result, _) => {
                in_use.remove(name);
                result
            }
        }
    }

    /// Whether it has the extensions that are installed now.
    fn is_current(&self, template: &Template) -> bool {
        template.snapshot.files().has_added(&self.extensions.offer().files)
    }

    /// Closes the template `name`, which was removed. Its clones live on.
    pub(crate) fn forget(&self, name: &str) {
        self.in_use.lock().remove(name);
    }

    /// The files of the cluster in `files`, which was not shut down, after it has recovered and was shut down.
    ///
    /// # Errors
    /// When it does not recover.
    pub(crate) fn recovered(&self, files: &Arc<FrozenTree>) -> anyhow::Result<Arc<FrozenTree>> {
        let tree = Arc::new(Mutex::new(Tree::from_frozen(files.clone())));
        let recover = || {
            let console = Box::new(LineConsole::new(self.log.clone(), "postgres"));
            build::boot(&self.program, &tree, DEFAULT, console)?.shut_down()
        };
        on_wasm_stack(recover)?.context("the copy of a cluster does not recover")?;
        let files = tree.lock().freeze();
        Ok(files)
    }

    /// The database of the template `name`, if there is a template and it says so; nothing is opened or built for this.
    pub(crate) fn database(&self, name: &str) -> Option<String> {
        self.shelf.label(name).ok().flatten().map(|label| label.database)
    }

    /// The limits of clusters that are copies of the template `name`; none if there is no such template.
    pub(crate) fn limits(&self, name: &str) -> Limits {
        self.shelf.limits(name).unwrap_or_default()
    }

    /// The files of a copy of the template `name` that was shut down, from which a cluster can be started.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub(crate) fn copy(&self, name: &str) -> Result<Arc<FrozenTree>, TemplateError> {
        let template = self.find(name)?;
        let copied = on_wasm_stack(|| template.snapshot.shut_down_files(&self.program)).map_err(anyhow::Error::from);
        let copied = copied.and_then(|files| files);
        Ok(copied.with_context(|| format!("the template {name:?} cannot be copied"))?)
    }

    /// The template `name`, opened or built; the caller holds its lock.
    pub(super) fn open_or_build(&self, name: &str, lock: &Lock) -> Result<Template, TemplateError> {
        let label = match self.shelf.label(name) {
            Ok(Some(label)) => label,
            Ok(None) if name == DEFAULT => {
                return Ok(self.build(lock, name, &Recipe::empty(DEFAULT), Limits::default())?);
            }
            Ok(None) => return Err(TemplateError::Unknown(name.to_owned())),
            Err(error) if name == DEFAULT => {
                tracing::warn!("building the template {name:?} again, because {error:#}");
                return Ok(self.build(lock, name, &Recipe::empty(DEFAULT), Limits::default())?);
            }
            Err(error) => return Err(unusable(name, error).into()),
        };
        let needed = self.shelf.needed(name).map_err(|error| unusable(name, error))?;
        let fit = self.extensions.offer().fit(&needed);
        let fit = fit.map_err(|missing| TemplateError::Lacks { name: name.to_owned(), missing })?;
        if let Fit::Changed(extension) = fit {
            tracing::info!("building the template {name:?} again, because the extension {extension:?} has changed");
        } else if label.program == self.key() {
            match self.open_built(&label) {
                Ok(template) => return Ok(template),
                Err(error) => tracing::warn!("building the template {name:?} again, because {error:#}"),
            }
        } else {
            tracing::info!("building the template {name:?} again, because the program has changed since");
        }
        match self.shelf.recipe(name) {
            Ok(Some(recipe)) => Ok(self.build(lock, name, &recipe, self.shelf.limits(name)?)?),
            Ok(None) => Ok(self.build_from_own_files(lock, label)?),
            Err(error) => Err(unusable(name, error).into()),
        }
    }

    /// Opens the template with this label; the caller holds its lock.
    fn open_built(&self, label: &Label) -> anyhow::Result<Template> {
        let directory = self.shelf.path(&label.name);
        let in_use = self.shelf.hold(&label.name)?.with_context(|| format!("{} is gone", directory.display()))?;
        self.shelf.check_built(&label.name)?;
        let snapshot = Snapshot::open(&self.program, &directory, &self.extensions.offer().files)?;
        let (name, database, limits) = (label.name.clone(), label.database.clone(), self.shelf.limits(&label.name)?);
        Ok(Template { name, database, limits, snapshot, _in_use: in_use })
    }

    /// Builds the template `name` from `recipe`, replacing one of the same name. `limits` are those of clusters that are
    /// copies of it.
    ///
    /// # Errors
    /// Those of its SQL, and when the cache cannot be written.
    pub fn prepare(&self, name: &str, recipe: &Recipe, limits: Limits) -> anyhow::Result<()> {
        self.build(&self.shelf.lock(name)?, name, recipe, limits).map(drop)
    }

    /// Makes the template `name` from the files of a cluster that has `database`, replacing one of the same name.
    /// `key` is chosen by the caller and listed with the template. The cluster should have been shut down; otherwise
    /// it recovers as after a crash.
    ///
    /// # Errors
    /// When `PostgreSQL` does not start on it, or the cache cannot be written.
    pub(crate) fn freeze(
        &self,
        name: &str,
        database: &str,
        key: Option<&str>,
        limits: Limits,
        files: &Arc<FrozenTree>,
    ) -> anyhow::Result<()> {
        let label = self.label(name, database, key);
        self.build_from_files(&self.shelf.lock(name)?, &label, None, limits, files, &ProgressBar::hidden()).map(drop)
    }

    fn label(&self, name: &str, database: &str, key: Option<&str>) -> Label {
        Label { name: name.to_owned(), database: database.to_owned(), key: key.map(str::to_owned), program: self.key() }
    }

    fn build(&self, lock: &Lock, name: &str, recipe: &Recipe, limits: Limits) -> anyhow::Result<Template> {
        let cluster = self.cluster()?;
        let progress = spinner(&format!("preparing the template {name}"));
        let offer = self.extensions.offer();
        let files = on_wasm_stack(|| self.builder(&offer, &progress).follow(recipe, &cluster))?;
        let built = files.and_then(|files| {
            let label = self.label(name, &recipe.database, None);
            self.build_from_files(lock, &label, Some(recipe), limits, &files, &progress)
        });
        progress.finish_and_clear();
        built
    }

    fn build_from_own_files(&self, lock: &Lock, label: Label) -> anyhow::Result<Template> {
        let files = self
            .shelf
            .check_files(&label.name)
            .and_then(|()| Snapshot::open_files(&self.shelf.path(&label.name)))
            .map_err(|error| unusable(&label.name, error))?;
        let limits = self.shelf.limits(&label.name)?;
        let label = Label { program: self.key(), ..label };
        self.build_from_files(lock, &label, None, limits, &files, &ProgressBar::hidden())
    }

    fn build_from_files(
        &self,
        lock: &Lock,
        label: &Label,
        recipe: Option<&Recipe>,
        limits: Limits,
        files: &Arc<FrozenTree>,
        progress: &ProgressBar,
    ) -> anyhow::Result<Template> {
        progress.set_message(format!("starting the template {}", label.name));
        let offer = self.extensions.offer();
        self.shelf
            .publish(lock, label, recipe, limits, |directory| {
                self.builder(&offer, progress).capture(files, &label.database, directory)
            })
            .with_context(|| format!("the template {:?} cannot be built", label.name))?;
        self.open_built(label)
    }

    fn builder<'a>(&'a self, offer: &'a Offer, progress: &'a ProgressBar) -> Builder<'a> {
        Builder { program: &self.program, offer, log: &self.log, progress }
    }

    /// The files of a new cluster, with the extensions that are installed.
    pub(crate) fn cluster(&self) -> anyhow::Result<Arc<FrozenTree>> {
        Ok(self.new_cluster()?.with(&self.extensions.offer().files)?)
    }

    /// The files of a new cluster, made once.
    fn new_cluster(&self) -> anyhow::Result<Arc<FrozenTree>> {
        let entry = format!("cluster-{}", &hex_digest(&[self.key().as_bytes()])[..32]);
        let directory = self.cache.path(&entry);
        let lock = self.cache.lock(&entry)?;
        let open = || -> anyhow::Result<Option<Arc<FrozenTree>>> {
            let Some(in_use) = self.cache.hold_intact(&entry)? else { return Ok(None) };
            let cluster = FrozenTree::open(&directory)?;
            *self.cluster.lock() = Some(in_use);
            Ok(Some(cluster))
        };
        match open() {
            Ok(Some(cluster)) => return Ok(cluster),
            Ok(None) => {}
            Err(error) => tracing::warn!("running initdb again, because {error:#}"),
        }
        let progress = spinner("running initdb (once)");
        let bundle = open_bundle(&self.artefact.path(PGLITE_DATA), &self.artefact.path(PGLITE_JS))?;
        let cluster =
            on_wasm_stack(|| initdb::make_cluster(&self.program, &self.artefact, &self.icu, bundle, &self.log))??;
        self.cache.publish_directory(&lock, |directory| Ok(cluster.write_to(directory)?))?;
        progress.finish_and_clear();
        open()?.with_context(|| format!("{} is gone again", directory.display()))
    }

    /// Identifies everything that a template depends on, besides its recipe or files.
    pub(super) fn key(&self) -> String {
        format!("{}-{}", self.icu_digest(), sources::contents_key(&Program::key()))
    }

    /// The digest of ICU's data.
    pub(super) fn icu_digest(&self) -> String {
        hex_digest(&[self.icu.digest()])
    }

    /// The last part of the key with which this program's templates are labelled. It does not depend on the ICU data.
    pub(crate) fn program_part() -> String {
        sources::contents_key(&Program::key())
    }
}

/// The error for a template that can neither be opened nor built again.
fn unusable(name: &str, error: anyhow::Error) -> anyhow::Error {
    error.context(format!("the template {name:?} cannot be used; prepare or freeze it again"))
}
