//! The schema in the target, and how the target becomes empty again.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    sync::Arc,
};

use anyhow::{Context, ensure};

use super::{
    NAME,
    sql::{Sql, literal},
};
use crate::{
    dial::{Report, Server},
    dump::{self, Options},
    script::{self, Choices},
    template::{Tools, quote_identifier},
};

/// SQLSTATE of a database that does not exist (`ERRCODE_UNDEFINED_DATABASE`).
const NO_SUCH_DATABASE: &str = "3D000";

/// The database that every server has.
const MAINTENANCE: &str = "postgres";

/// Schemas that are not a server's own, but for `public`.
const SCHEMAS: &str =
    "select nspname from pg_namespace where nspname !~ '^pg_' and nspname not in ('information_schema', 'public')";
const EXTENSIONS: &str = "select extname from pg_extension";

/// Drops what is in the schema `public`, but no extension and nothing that belongs to one.
const EMPTY_PUBLIC: &str = "do $$
declare
    object record;
begin
    for object in
        select found.* from pg_depend d, pg_identify_object(d.classid, d.objid, 0) found
            where d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'public'::regnamespace and d.deptype = 'n'
                and d.classid <> 'pg_extension'::regclass
                and not exists (select from pg_depend e where e.classid = d.classid and e.objid = d.objid and e.deptype = 'e')
    loop
        -- It may have gone with another one.
        continue when object.identity is null;
        execute format('drop %s if exists %s cascade',
            case object.type when 'composite type' then 'type' else object.type end, object.identity);
    end loop;
end
$$";

/// The setting in dumps that servers before version 17 do not know.
const NEW_SETTING: &[u8] = b"SET transaction_timeout = 0;\n";
const KNOWS_NEW_SETTING: u32 = 170_000;

/// The target, and what it was before.
pub(super) struct Target {
    pub(super) sql: Sql,
    /// Its database, if it was created for the move.
    created: Option<String>,
    schemas: Vec<String>,
    extensions: Vec<String>,
}

impl Target {
    /// Opens the target, whose database is created if it is not there. `starts_over`: what an earlier move has left in
    /// it is removed.
    ///
    /// # Errors
    /// When the server cannot be reached, or does not create the database.
    pub(super) fn open(server: &Arc<Server>, starts_over: bool) -> anyhow::Result<Self> {
        let (mut sql, created) = match Sql::begin(server) {
            Err(error) if error.downcast_ref::<Report>().is_some_and(|report| report.code == NO_SUCH_DATABASE) => {
                let name = server.database().to_owned();
                let create = format!("create database {} template template0 encoding 'UTF8'", quote_identifier(&name)?);
                Sql::begin(&server.in_database(MAINTENANCE))?
                    .run(&create)
                    .context("the target's database is missing")?;
                (Sql::begin(server)?, Some(name))
            }
            opened => (opened.context("the target cannot be reached")?, None),
        };
        if starts_over && has_subscription(&mut sql)? {
            drop_subscription(&mut sql)?;
            empty(&mut sql, &[], &["plpgsql".to_owned()])?;
        }
        let (schemas, extensions) = (sql.column(SCHEMAS)?, sql.column(EXTENSIONS)?);
        Ok(Self { sql, created, schemas, extensions })
    }

    /// Copies the schema of `source`, as one transaction.
    ///
    /// # Errors
    /// When it cannot be dumped, or a statement fails: the target may be older than what the schema uses.
    pub(super) fn copy_schema(
        &mut self,
        tools: &Tools,
        source: &Arc<Server>,
        target: &Arc<Server>,
    ) -> anyhow::Result<()> {
        let directory = tempfile::tempdir().context("there is no temporary directory for the schema")?;
        let file = directory.path().join("schema.sql");
        let choices = ["--schema-only", "--no-publications", "--no-subscriptions", "--no-tablespaces", "--file"];
        let arguments: Vec<String> =
            choices.into_iter().map(str::to_owned).chain([file.to_string_lossy().into_owned()]).collect();
        let dumped = dump::dump(tools, Some(source.clone()), &Options::read(&arguments)?, false, |_| {})?;
        ensure!(dumped.status == 0, "the schema of the source cannot be dumped: {}", dumped.messages);
        let version: u32 = self.sql.value("show server_version_num")?.parse()?;
        let mut input: Box<dyn BufRead> = Box::new(BufReader::new(File::open(&file)?));
        if version < KNOWS_NEW_SETTING {
            let mut text = Vec::new();
            input.read_to_end(&mut text)?;
            if let Some(at) = text.windows(NEW_SETTING.len()).position(|line| line == NEW_SETTING) {
                text.drain(at..at + NEW_SETTING.len());
            }
            input = Box::new(std::io::Cursor::new(text));
        }
        let choices = Choices { in_one_transaction: true, ..Choices::default() };
        script::run(target, input, "the schema", choices, Arc::new(|_| {}), |_| {})
            .context("the target does not take the schema of the source")?;
        Ok(())
    }

    /// Makes the target what it was.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(super) fn undo(self, server: &Arc<Server>) -> anyhow::Result<()> {
        let Self { sql, created, schemas, extensions } = self;
        // It may be in a transaction, or lost.
        drop(sql);
        let mut sql = Sql::begin(server)?;
        drop_subscription(&mut sql)?;
        if let Some(name) = created {
            drop(sql);
            let drop_database = format!("drop database if exists {} with (force)", quote_identifier(&name)?);
            return Sql::begin(&server.in_database(MAINTENANCE))?.run(&drop_database);
        }
        empty(&mut sql, &schemas, &extensions)
    }
}

fn has_subscription(target: &mut Sql) -> anyhow::Result<bool> {
    let count = target.value(&format!(
        "select count(*) from pg_subscription s join pg_database d on d.oid = s.subdbid
            where d.datname = current_database() and s.subname = {}",
        literal(NAME)
    ))?;
    Ok(count != "0")
}

/// Drops the subscription. Its slot is left to the source, which may not be there.
fn drop_subscription(target: &mut Sql) -> anyhow::Result<()> {
    if has_subscription(target)? {
        for statement in ["disable", "set (slot_name = none)"] {
            target.run(&format!("alter subscription {NAME} {statement}"))?;
        }
        target.run(&format!("drop subscription {NAME}"))?;
    }
    Ok(())
}

/// Drops everything but these schemas and extensions.
fn empty(target: &mut Sql, schemas: &[String], extensions: &[String]) -> anyhow::Result<()> {
    target.run(EMPTY_PUBLIC)?;
    for (kind, query, kept) in [("schema", SCHEMAS, schemas), ("extension", EXTENSIONS, extensions)] {
        for name in target.column(query)?.iter().filter(|name| !kept.contains(name)) {
            target.run(&format!("drop {kind} if exists {} cascade", quote_identifier(name)?))?;
        }
    }
    Ok(())
}
