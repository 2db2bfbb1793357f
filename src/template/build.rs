//! Building a template: a cluster with its database, prepared by SQL, and a backend on it that is booted and warm.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::{recipe::Recipe, snapshot::Snapshot};
use crate::{
    backend::{BOOTSTRAP_USER, Backend, program::Program},
    extensions::{Needed, Offer},
    fs::{Console, Files, FrozenTree, Tree},
    guest::Setup,
    log::{LineConsole, LogSink},
    protocol::messages::SqlError,
};

/// Databases that `initdb` has made and that take connections.
const INITIAL_DATABASES: [&str; 2] = ["postgres", "template1"];

/// Settings of clusters that exist in memory only and have one session. They take precedence over the cluster's own
/// configuration.
const SETTINGS: [&str; 8] = [
    // Pages that do not fit are read from files in memory, which takes little longer.
    "-cshared_buffers=16MB",
    // This setting protects from torn pages after a power loss, which a cluster in memory does not survive.
    "-cfull_page_writes=off",
    // Segments that are filled with zeros or kept for reuse would only take up memory.
    "-cwal_init_zero=off",
    "-cwal_recycle=off",
    // WAL is in memory until the next checkpoint, which takes some milliseconds, and is not spread over time.
    "-cmax_wal_size=32MB",
    "-ccheckpoint_completion_target=0",
    // Nothing else keeps WAL from being removed, which would be memory without a limit.
    "-cwal_keep_size=0",
    "-cmax_slot_wal_keep_size=64MB",
];

/// Queries that fill the caches that almost every session uses, so that clones start with them: catalog caches, the
/// plan of a first query. They change nothing in the database, and fire no event triggers.
const WARM_UP: [&str; 4] = [
    "SET event_triggers = off",
    "SELECT 1",
    // Not a temporary table: a session that has used one cannot change temp_buffers any more.
    "BEGIN; CREATE SCHEMA pglite_port_warm_up; SET LOCAL search_path TO pglite_port_warm_up; \
     CREATE TABLE t (id serial PRIMARY KEY, t text); \
     INSERT INTO t (t) VALUES ('a'), ('b'); UPDATE t SET t = 'c' WHERE id = 1; \
     SELECT t, count(*) FROM t GROUP BY t ORDER BY t; ROLLBACK",
    "DISCARD ALL",
];

/// Whether the database has functions in PL/pgSQL. With PL/pgSQL's library, making a clone takes a seventh longer, so
/// it is loaded only where sessions are likely to use it.
const HAS_PLPGSQL: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc p \
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE l.lanname = 'plpgsql')";

/// The extensions that were created in the database.
const EXTENSIONS: &str = "SELECT extname FROM pg_catalog.pg_extension ORDER BY 1";

/// Loads PL/pgSQL and what it uses.
const WARM_UP_PLPGSQL: &str = "DO $$ DECLARE n int := 0; BEGIN FOR i IN 1..3 LOOP \
    BEGIN n := n / (i - 2); EXCEPTION WHEN division_by_zero THEN n := i; END; END LOOP; END $$";

/// Makes templates.
pub(super) struct Builder<'a> {
    pub(super) program: &'a Program,
    /// What is installed.
    pub(super) offer: &'a Offer,
    pub(super) log: &'a LogSink,
    /// Shows the current step.
    pub(super) progress: &'a ProgressBar,
}

impl Builder<'_> {
    /// The files of `cluster`, shut down, after everything in `recipe` has been done.
    ///
    /// # Errors
    /// When its SQL fails, with `PostgreSQL`'s message and the place in the SQL.
    pub(super) fn follow(&self, recipe: &Recipe, cluster: &Arc<FrozenTree>) -> anyhow::Result<Arc<FrozenTree>> {
        let tree = Arc::new(Mutex::new(Tree::from_frozen(cluster.clone())));
        let exists = INITIAL_DATABASES.contains(&recipe.database.as_str());
        if !exists || recipe.user != BOOTSTRAP_USER {
            let mut backend = self.boot(&tree, INITIAL_DATABASES[0])?;
            recipe.make_database(&mut backend, exists)?;
            backend.shut_down()?;
        }
        if !recipe.scripts.is_empty() {
            let mut backend = self.boot(&tree, &recipe.database)?;
            recipe.run_scripts(&mut backend, self.progress)?;
            backend.shut_down()?;
        }
        Ok(tree.lock().freeze())
    }

    /// Boots a backend on the cluster in `files`, connected to `database`, runs the warm-up queries in it, and
    /// captures it into `directory`. Returns what it needs of the extensions that are installed.
    ///
    /// # Errors
    /// When it does not start, or the directory cannot be written.
    pub(super) fn capture(
        &self,
        files: &Arc<FrozenTree>,
        database: &str,
        directory: &Path,
    ) -> anyhow::Result<Vec<Needed>> {
        let tree = Arc::new(Mutex::new(Tree::from_frozen(files.with(&self.offer.files)?)));
        let mut backend = self.boot(&tree, database)?;
        let extensions = backend.query(EXTENSIONS).context("pg_extension cannot be read")?;
        let extensions: Vec<String> = extensions.into_iter().flatten().flatten().collect();
        let needed = self.offer.needed(&extensions);
        let has_plpgsql = backend.is_true(HAS_PLPGSQL).context("pg_proc cannot be read")?;
        for sql in has_plpgsql.then_some(WARM_UP_PLPGSQL).into_iter().chain(WARM_UP) {
            match backend.execute(sql).map_err(anyhow::Error::downcast::<SqlError>) {
                Ok(()) => {}
                // For example, the owner may have dropped PL/pgSQL. Clones then start with fewer caches filled.
                Err(Ok(error)) => {
                    tracing::info!("a warm-up query of database {database:?} failed: {error}");
                    backend.execute("ROLLBACK").context("a warm-up query cannot be rolled back")?;
                }
                Err(Err(trapped)) => return Err(trapped.context("a warm-up query failed")),
            }
        }
        backend.execute("CHECKPOINT").context("no checkpoint can be made")?;
        Snapshot::capture(&mut backend, directory)?;
        drop(backend);
        Snapshot::rehearse(self.program, directory, &self.offer.files, database)?;
        Ok(needed)
    }

    fn boot(&self, tree: &Arc<Mutex<Tree>>, database: &str) -> anyhow::Result<Backend> {
        boot(self.program, tree, database, Box::new(LineConsole::new(self.log.clone(), "postgres")))
    }
}

/// A new backend on the cluster in the files of `tree`, connected to `database`.
///
/// # Errors
/// When it does not start.
pub(super) fn boot(
    program: &Program,
    tree: &Arc<Mutex<Tree>>,
    database: &str,
    console: Box<dyn Console>,
) -> anyhow::Result<Backend> {
    let files = Files::new(tree.clone(), console)?;
    let mut backend = Backend::new(program, Setup::backend(program, files))?;
    backend.boot(database, &SETTINGS.map(str::to_owned))?;
    backend.count_as_regular()?;
    Ok(backend)
}
