//! Building a template: a cluster with its database, prepared by SQL, and a backend that is booted and warm.

use std::{path::Path, sync::Arc};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    backend::{BOOTSTRAP_USER, Backend},
    fs::{Files, FrozenTree, Tree},
    guest::Setup,
    log::LogSink,
    program::Program,
};

use super::{console::LineConsole, snapshot::Snapshot};

/// What a template is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    /// The database in it, which clients ask for.
    pub(crate) database: String,
    /// The role that owns the database, made with `LOGIN` and `SUPERUSER` unless it is the bootstrap superuser.
    pub(crate) user: String,
    /// SQL to run in the database as that role, each as one simple query, with a name for error messages.
    pub(crate) sql: Vec<(String, String)>,
}

impl Recipe {
    /// A database of that name with nothing in it.
    pub(crate) fn empty(database: &str) -> Self {
        Self { database: database.to_owned(), user: BOOTSTRAP_USER.to_owned(), sql: Vec::new() }
    }
}

/// Databases that `initdb` has made.
const INITIAL_DATABASES: [&str; 2] = ["postgres", "template1"];

/// Queries that load what almost every session uses, so that clones have it: PL/pgSQL, catalog caches, the plan of a first query.
/// They leave nothing behind in the database.
const WARM_UP: [&str; 4] = [
    "DO $$ DECLARE n int := 0; BEGIN FOR i IN 1..3 LOOP BEGIN n := n / (i - 2); EXCEPTION WHEN division_by_zero THEN n := i; END; END LOOP; END $$",
    "SELECT 1",
    "CREATE TEMPORARY TABLE pglite_port_warm_up (id serial PRIMARY KEY, t text); INSERT INTO pglite_port_warm_up (t) VALUES ('a'), ('b'); \
     UPDATE pglite_port_warm_up SET t = 'c' WHERE id = 1; SELECT t, count(*) FROM pglite_port_warm_up GROUP BY t ORDER BY t; DROP TABLE pglite_port_warm_up",
    "DISCARD ALL",
];

/// Builds the template of `recipe` on the cluster in `cluster` into `directory`.
///
/// # Errors
/// When its SQL fails, with `PostgreSQL`'s message and the name of the SQL, or when the directory cannot be written.
pub(super) fn build(
    program: &Program,
    cluster: &Arc<FrozenTree>,
    recipe: &Recipe,
    log: &LogSink,
    directory: &Path,
) -> anyhow::Result<()> {
    let tree = Arc::new(Mutex::new(Tree::from_frozen(cluster.clone())));
    let start = |database: &str| -> anyhow::Result<Backend> {
        let files = Files::new(tree.clone(), Box::new(LineConsole::new(log.clone(), "postgres")))?;
        let mut backend = Backend::new(program, Setup::backend(program, files))?;
        backend.boot(database, &[])?;
        Ok(backend)
    };
    let is_new = !INITIAL_DATABASES.contains(&recipe.database.as_str());
    if is_new || recipe.user != BOOTSTRAP_USER {
        let mut backend = start(INITIAL_DATABASES[0])?;
        let user = quote_identifier(&recipe.user)?;
        if recipe.user != BOOTSTRAP_USER {
            backend.execute(&format!("CREATE ROLE {user} LOGIN SUPERUSER")).context("the role cannot be made")?;
        }
        if is_new {
            let database = quote_identifier(&recipe.database)?;
            backend
                .execute(&format!("CREATE DATABASE {database} OWNER {user}"))
                .context("the database cannot be made")?;
        }
        backend.shut_down()?;
    }
    let mut backend = start(&recipe.database)?;
    if !recipe.sql.is_empty() {
        backend.execute(&format!("SET SESSION AUTHORIZATION {}", quote_identifier(&recipe.user)?))?;
        for (name, sql) in &recipe.sql {
            backend.execute(sql).with_context(|| name.clone())?;
        }
        backend.execute("RESET SESSION AUTHORIZATION")?;
    }
    for sql in WARM_UP {
        backend.execute(sql).context("a warm-up query failed")?;
    }
    backend.execute("CHECKPOINT")?;
    Snapshot::capture(&mut backend, directory)
}

/// An identifier as SQL has it, whatever characters are in it.
fn quote_identifier(name: &str) -> anyhow::Result<String> {
    ensure!(!name.is_empty() && !name.contains('\0'), "{name:?} cannot be the name of a database or role");
    ensure!(name.len() < 64, "{name:?} is too long for the name of a database or role, the longest has 63 bytes");
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier(r#"a "b""#).unwrap(), r#""a ""b""""#);
        assert!(quote_identifier("").is_err());
        assert!(quote_identifier(&"x".repeat(64)).is_err());
    }
}
