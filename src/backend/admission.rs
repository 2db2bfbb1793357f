//! Checks whether a session may use its database, and loads libraries for it: what `InitPostgres` does after the
//! authentication (`PostgreSQL`, `src/backend/utils/init/postinit.c`), for a backend that is already connected to its
//! database.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Backend;
use crate::{
    guest::{memory, report},
    postgres::catalog::{ACL_CONNECT, ACLCHECK_OK, DATABASE},
    protocol::{error_response::sqlstate, messages::Rows},
};

/// Queries an [`Admission`].
const ADMISSION: &str = "SELECT datallowconn, \
    pg_catalog.has_database_privilege('public', oid, 'CONNECT'), \
    datconnlimit, \
    EXISTS (SELECT FROM pg_catalog.pg_db_role_setting) \
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";

/// The parts of a database's row in `pg_database` and of `pg_db_role_setting` that the start of a session needs. They
/// are read once for all clones of a template, because the query takes a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admission {
    /// `datallowconn`
    allows_connections: bool,
    /// Whether `PUBLIC` has the privilege `CONNECT`.
    admits_public: bool,
    /// `datconnlimit`; negative for none.
    connection_limit: i32,
    /// Whether `ALTER DATABASE` or `ALTER ROLE` have set anything.
    pub(super) has_settings: bool,
}

impl Admission {
    fn read(rows: &Rows) -> Option<Self> {
        let [row] = &rows[..] else { return None };
        let [allows_connections, admits_public, connection_limit, has_settings] = &row[..] else { return None };
        let is_true = |value: &Option<String>| value.as_deref() == Some("t");
        Some(Self {
            allows_connections: is_true(allows_connections),
            admits_public: is_true(admits_public),
            connection_limit: connection_limit.as_ref()?.parse().ok()?,
            has_settings: is_true(has_settings),
        })
    }
}

impl Backend {
    /// The [`Admission`] for sessions in the backend's database.
    ///
    /// # Errors
    /// When its catalogs cannot be read.
    pub(crate) fn admission(&mut self) -> anyhow::Result<Admission> {
        let rows = self.query(ADMISSION).context("pg_database and pg_db_role_setting cannot be read")?;
        Admission::read(&rows).context("the database is not in pg_database")
    }

    /// Marks the backend as a client backend, so that PostgreSQL counts it as a connection. When it took its place in
    /// shared memory, it was not a client backend yet.
    ///
    /// # Errors
    /// None in a backend that was booted.
    pub(crate) fn count_as_regular(&mut self) -> anyhow::Result<()> {
        let place = self.read_u32(self.facts().address("MyProc")?)?;
        self.write(place + self.facts().is_regular_backend, &[1])
    }

    /// Raises the error that `CheckMyDatabase` would raise for the session's user, if any. The error ends the session.
    pub(super) fn check_database(&mut self, admission: Admission, is_superuser: bool) -> anyhow::Result<()> {
        let Admission { allows_connections, admits_public, connection_limit, .. } = admission;
        if !allows_connections {
            let code = sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE;
            return self.refuse(
                code,
                |name| format!("database \"{name}\" is not currently accepting connections"),
                None,
            );
        }
        if is_superuser {
            return Ok(());
        }
        if !admits_public {
            let database = self.read_u32(self.facts().address("MyDatabaseId")?)?;
            let user: u32 = self.call("GetUserId", ())?;
            let checked: i32 = self.call("object_aclcheck", (DATABASE, database, user, ACL_CONNECT))?;
            if checked != ACLCHECK_OK {
                let detail = "User does not have CONNECT privilege.";
                let code = sqlstate::INSUFFICIENT_PRIVILEGE;
                return self.refuse(code, |name| format!("permission denied for database \"{name}\""), Some(detail));
            }
        }
        // The cluster has one session, this one.
        if (0..1).contains(&connection_limit) {
            let code = sqlstate::TOO_MANY_CONNECTIONS;
            return self.refuse(code, |name| format!("too many connections for database \"{name}\""), None);
        }
        Ok(())
    }

    fn refuse(&mut self, code: &str, message: impl FnOnce(&str) -> String, detail: Option<&str>) -> anyhow::Result<()> {
        let database = self.read_u32(self.facts().address("MyDatabaseId")?)?;
        let name: u32 = self.call("get_database_name", database)?;
        let name = memory::read_text(self.memory()?, name)?;
        Err(report::fatal(&mut self.store, code, &message(&name), detail).into())
    }

    /// Loads the libraries that `session_preload_libraries` and `local_preload_libraries` name, except for those that
    /// are already loaded.
    pub(super) fn preload_libraries(&mut self) -> anyhow::Result<()> {
        for preload in self.facts().preloads {
            let value = self.read_u32(preload.value)?;
            if !memory::read_bytes(self.memory()?, value, 1)?.starts_with(&[0]) {
                self.call::<(u32, u32, i32), ()>("load_libraries", (value, preload.name, preload.is_restricted))?;
            }
        }
        Ok(())
    }
}
