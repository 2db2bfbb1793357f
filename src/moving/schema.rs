//! The database in the target: created, given the schema of the source, and dropped again if the move is broken off.

use std::{fs, sync::Arc};

use anyhow::{Context, bail, ensure};

use super::{
    NAME,
    sql::{Sql, literal},
};
use crate::{
    dial::Server,
    dump::{self, Options},
    script::{self, Choices},
    template::{Tools, quote_identifier},
};

/// The database that every server has.
const MAINTENANCE: &str = "postgres";

/// The comment on a database whose move is not complete.
const UNFINISHED: &str = "pglite-port move: not complete";

/// The setting in dumps that servers before version 17 do not know.
const NEW_SETTING: &[u8] = b"SET transaction_timeout = 0;\n";
const KNOWS_NEW_SETTING: u32 = 170_000;

/// The target: a database that is created for the move, so that undoing it is dropping the database.
pub(super) struct Target {
    pub(super) sql: Sql,
    /// The version of its server (`server_version_num`).
    pub(super) version: u32,
    /// Whether its role is no superuser: then everything that is created belongs to that role.
    pub(super) owns_all: bool,
}

impl Target {
    /// Creates the database of the target with that encoding. `starts_over`: one that an earlier move has left unfinished
    /// is dropped before.
    ///
    /// # Errors
    /// When the server cannot be reached, there is a database of that name, or it cannot be created.
    pub(super) fn create(server: &Arc<Server>, encoding: &str, starts_over: bool) -> anyhow::Result<Self> {
        let name = server.database();
        let quoted = quote_identifier(name)?;
        let mut maintenance = Sql::begin(&server.in_database(MAINTENANCE))?;
        let comments = maintenance.column(&format!(
            "select coalesce(shobj_description(oid, 'pg_database'), '') from pg_database where datname = {}",
            literal(name)
        ))?;
        match comments.first().map(|comment| comment == UNFINISHED) {
            None => {}
            Some(true) if starts_over => drop_database(server, &mut maintenance)?,
            Some(true) => {
                bail!("the target's database {quoted} is what an earlier move has left: add --start-over to drop it")
            }
            Some(false) => bail!(
                "the target has a database {quoted} already: name one that is not there yet, which the move creates, or drop it"
            ),
        }
        maintenance.run(&format!("create database {quoted} template template0 encoding {}", literal(encoding)))?;
        maintenance.run(&format!("comment on database {quoted} is {}", literal(UNFINISHED)))?;
        let version = maintenance.value("show server_version_num")?.parse().context("its version")?;
        let is_superuser = maintenance.value("select rolsuper from pg_roles where rolname = current_user")?;
        Ok(Self { sql: Sql::begin(server)?, version, owns_all: is_superuser != "t" })
    }

    /// The database is complete.
    ///
    /// # Errors
    /// When the mark cannot be removed.
    pub(super) fn finish(&mut self, server: &Arc<Server>) -> anyhow::Result<()> {
        self.sql.run(&format!("comment on database {} is null", quote_identifier(server.database())?))
    }

    /// Copies the schema of `source`, as one transaction.
    ///
    /// # Errors
    /// When it cannot be dumped, or a statement fails: the target may be older than what the schema uses.
    pub(super) fn copy_schema(&self, tools: &Tools, source: &Arc<Server>, target: &Arc<Server>) -> anyhow::Result<()> {
        let directory = tempfile::tempdir().context("there is no temporary directory for the schema")?;
        let file = directory.path().join("schema.sql");
        let choices = ["--schema-only", "--no-publications", "--no-subscriptions", "--no-tablespaces", "--file"];
        let mut arguments: Vec<String> =
            choices.into_iter().map(str::to_owned).chain([file.to_string_lossy().into_owned()]).collect();
        if self.owns_all {
            arguments.push("--no-owner".to_owned());
        }
        let dumped = dump::dump(tools, Some(source.clone()), &Options::read(&arguments)?, false, |_| {})?;
        ensure!(dumped.status == 0, "the schema of the source cannot be dumped: {}", dumped.messages);
        let mut text = fs::read(&file).context("the dump of the schema cannot be read")?;
        if self.version < KNOWS_NEW_SETTING
            && let Some(at) = text.windows(NEW_SETTING.len()).position(|line| line == NEW_SETTING)
        {
            text.drain(at..at + NEW_SETTING.len());
        }
        let choices = Choices { in_one_transaction: true, ..Choices::default() };
        script::run(target, &text[..], "the schema", choices, Arc::new(|_| {}), |_| {})
            .context("the target does not take the schema of the source")?;
        Ok(())
    }

    /// Drops the database.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub(super) fn undo(self, server: &Arc<Server>) -> anyhow::Result<()> {
        // It may be in a transaction, or lost.
        drop(self);
        drop_database(server, &mut Sql::begin(&server.in_database(MAINTENANCE))?)
    }
}

/// Drops the database of a move that is not complete, with its subscription. The slot is left to the source, which may
/// not be there.
fn drop_database(server: &Arc<Server>, maintenance: &mut Sql) -> anyhow::Result<()> {
    let mut sql = Sql::begin(server)?;
    let subscription = "select count(*) from pg_subscription s join pg_database d on d.oid = s.subdbid
        where d.datname = current_database() and s.subname = ";
    if sql.value(&format!("{subscription}{}", literal(NAME)))? != "0" {
        for statement in ["disable", "set (slot_name = none)"] {
            sql.run(&format!("alter subscription {NAME} {statement}"))?;
        }
        sql.run(&format!("drop subscription {NAME}"))?;
    }
    drop(sql);
    maintenance.run(&format!("drop database {} with (force)", quote_identifier(server.database())?))
}
