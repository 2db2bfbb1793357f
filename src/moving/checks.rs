//! What has to be so before a move changes anything.

use anyhow::{Context, bail, ensure};

use super::sql::{Sql, literal};

/// The oldest version that a target may have: its subscriptions take transactions that still run.
const OLDEST_TARGET: u32 = 140_000;

/// Relations of users that belong to no extension, as `c` in the schema `n`.
pub(super) const OF_USERS: &str = "pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and not exists
        (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')";

/// Checks both sides, and returns the tables that are to be copied, as SQL names them.
///
/// # Errors
/// What is not as it has to be, and what to do about it.
pub(super) fn check(source: &mut Sql, target: &mut Sql) -> anyhow::Result<Vec<String>> {
    check_source(source)?;
    check_target(source, target)?;
    let tables = format!(
        "select format('%I.%I', n.nspname, c.relname) from {OF_USERS} and c.relkind = 'r' and c.relpersistence = 'p' order by 1"
    );
    source.column(&tables)
}

fn check_source(source: &mut Sql) -> anyhow::Result<()> {
    let level = source.value("show wal_level")?;
    ensure!(
        level == "logical",
        "wal_level of the source is {level}: start it with --set wal_level=logical (in Elixir, with the setting \
         wal_level: \"logical\")"
    );
    let is_superuser = source.value("select rolsuper from pg_roles where rolname = current_user")?;
    ensure!(is_superuser == "t", "the source is moved by a superuser: name one in its URL");
    refuse_any(
        source,
        &format!(
            "select format('%I.%I', n.nspname, c.relname) from {OF_USERS} and c.relkind = 'r' and c.relpersistence = 'p'
                and (c.relreplident = 'n' or c.relreplident = 'd' and not exists
                    (select from pg_index i where i.indrelid = c.oid and i.indisprimary))"
        ),
        |table| format!("alter table {table} replica identity full;"),
        "the rows of these tables cannot be told apart, because they have no primary key; run on the source:",
    )?;
    refuse_any(
        source,
        &format!(
            "select format('%I.%I', n.nspname, c.relname) from {OF_USERS} and c.relkind = 'r' and c.relpersistence = 'u'"
        ),
        |table| format!("alter table {table} set logged;"),
        "these tables are unlogged, so that their changes are not replicated; run on the source, or drop them:",
    )?;
    let objects = source.value("select count(*) from pg_largeobject_metadata")?;
    ensure!(
        objects == "0",
        "the source has {objects} large objects, which logical replication does not copy: move them into a column of \
         the type bytea, or move the database with pglite-port dump"
    );
    Ok(())
}

fn check_target(source: &mut Sql, target: &mut Sql) -> anyhow::Result<()> {
    let version: u32 = target.value("show server_version_num")?.parse().context("the version of the target")?;
    ensure!(
        version >= OLDEST_TARGET,
        "the target is PostgreSQL {}: it has to be version 14 or later",
        target.value("show server_version")?
    );
    let workers = target.value(
        "select least(current_setting('max_logical_replication_workers')::int,
        current_setting('max_worker_processes')::int)",
    )?;
    ensure!(workers != "0", "the target starts no workers for subscriptions: it has to be an ordinary PostgreSQL");
    let [from, to] = [&mut *source, &mut *target].map(|side| {
        side.value("select pg_encoding_to_char(encoding) from pg_database where datname = current_database()")
    });
    let (from, to) = (from?, to?);
    ensure!(from == to, "the source has the encoding {from}, and the target {to}: create the target with {from}");
    let may_subscribe = target.value(
        "select rolsuper or coalesce((select pg_has_role(oid, 'member') from pg_roles
            where rolname = 'pg_create_subscription'), false) from pg_roles where rolname = current_user",
    )?;
    ensure!(
        may_subscribe == "t",
        "the role of the target may not create subscriptions: it has to be a superuser, or from version 16 on a member of \
         pg_create_subscription"
    );
    refuse_any(
        target,
        &format!("select format('%I.%I', n.nspname, c.relname) from {OF_USERS} limit 10"),
        str::to_owned,
        "the target is not empty (what a move has left that was cut off is removed with --start-over):",
    )?;
    let extensions = source.column("select extname from pg_extension where extname <> 'plpgsql'")?;
    let available = target.column("select name from pg_available_extensions")?;
    let missing: Vec<String> = extensions.into_iter().filter(|name| !available.contains(name)).collect();
    ensure!(missing.is_empty(), "the target has no extension {}: install it there", missing.join(", "));
    let roles = source.column(
        "select distinct rolname from pg_shdepend d join pg_roles r on r.oid = d.refobjid
            where d.refclassid = 'pg_authid'::regclass and rolname !~ '^pg_' and rolname <> 'postgres'
                and d.dbid = (select oid from pg_database where datname = current_database())
            order by 1",
    )?;
    for role in roles {
        let exists = target.value(&format!("select count(*) from pg_roles where rolname = {}", literal(&role)))?;
        if exists == "0" {
            bail!("objects of the source belong to the role {role:?} or are granted to it: create it on the target");
        }
    }
    Ok(())
}

/// Refuses the move if there are such objects; `remedy` is a line about each.
fn refuse_any(side: &mut Sql, query: &str, remedy: impl Fn(&str) -> String, refusal: &str) -> anyhow::Result<()> {
    let objects = side.column(query)?;
    if objects.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = objects.iter().map(|object| format!("\n  {}", remedy(object))).collect();
    bail!("{refusal}{}", lines.concat())
}
