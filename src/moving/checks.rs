//! What has to be so before a move changes anything.

use anyhow::{bail, ensure};

use super::{
    schema::Target,
    sql::{Sql, literal},
};

/// The oldest version that a target may have: its subscriptions take transactions that still run.
const OLDEST_TARGET: u32 = 140_000;

/// Relations of users that belong to no extension, as `c` in the schema `n`.
const OF_USERS: &str = "pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and not exists
        (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')";

/// A query for the names of the relations of users for which `condition` is true, as SQL has them.
pub(super) fn names(condition: &str) -> String {
    format!("select format('%I.%I', n.nspname, c.relname) from {OF_USERS} and {condition} order by 1")
}

/// The tables that are to be copied, as SQL names them.
///
/// # Errors
/// When the source cannot be asked.
pub(super) fn tables(source: &mut Sql) -> anyhow::Result<Vec<String>> {
    source.column(&names("c.relkind = 'r' and c.relpersistence = 'p'"))
}

/// What the definitions of everything in the schema are, to notice that they have been changed.
///
/// # Errors
/// When the source cannot be asked.
pub(super) fn definitions(source: &mut Sql) -> anyhow::Result<String> {
    let of_users = format!("select c.oid from {OF_USERS}");
    // A row of a catalog is another one when it has been changed.
    let changed = ["pg_proc", "pg_attrdef", "pg_constraint", "pg_trigger", "pg_policy", "pg_namespace", "pg_extension"]
        .map(|catalog| format!("select '{catalog}', oid::text || ' ' || xmin from {catalog} where oid >= 16384"));
    source.value(&format!(
        "select md5(string_agg(d::text, ',' order by d::text)) from (
            select 'class', (c.oid, c.relname, n.nspname, c.relkind, c.relreplident, c.relowner, c.relacl)::text from {OF_USERS}
            union all select 'column', (attrelid, attnum, attname, atttypid, atttypmod, attnotnull, attisdropped)::text
                from pg_attribute where attrelid in ({of_users})
            union all select 'rule', oid::text || ' ' || xmin from pg_rewrite where ev_class in ({of_users})
            union all select 'type', oid::text || ' ' || xmin from pg_type where oid >= 16384 and typtype in ('d', 'e', 'r')
            union all select 'label', oid::text || ' ' || xmin from pg_enum where oid >= 16384
            union all select 'large object', oid::text from pg_largeobject_metadata
            union all {}
        ) d",
        changed.join(" union all ")
    ))
}

/// Checks the source.
///
/// # Errors
/// What is not as it has to be, and what to do about it.
pub(super) fn check_source(source: &mut Sql) -> anyhow::Result<()> {
    let others = source.value("select pg_try_advisory_lock(hashtext('pglite-port move'))")?;
    ensure!(others == "t", "another move of this database is under way");
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
        &names(
            "c.relkind = 'r' and c.relpersistence = 'p'
                and not case c.relreplident
                    when 'f' then true
                    when 'd' then exists (select from pg_index i
                        where i.indrelid = c.oid and i.indisprimary and i.indimmediate and i.indisvalid)
                    when 'i' then exists (select from pg_index i
                        where i.indrelid = c.oid and i.indisreplident and i.indimmediate and i.indisvalid)
                    else false end",
        ),
        |table| format!("alter table {table} replica identity full;"),
        "the rows of these tables cannot be told apart, because they have no primary key, or one that is deferrable; run on the source:",
    )?;
    refuse_any(
        source,
        &names("c.relkind = 'r' and c.relpersistence = 'u'"),
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

/// Checks the target, which is empty.
///
/// # Errors
/// What is not as it has to be, and what to do about it.
pub(super) fn check_target(source: &mut Sql, target: &mut Target) -> anyhow::Result<()> {
    let Target { sql: target, version, owns_all } = target;
    ensure!(
        *version >= OLDEST_TARGET,
        "the target is PostgreSQL {}: it has to be version 14 or later",
        target.value("show server_version")?
    );
    let workers = target.value(
        "select least(current_setting('max_logical_replication_workers')::int,
        current_setting('max_worker_processes')::int)",
    )?;
    ensure!(workers != "0", "the target starts no workers for subscriptions: it has to be an ordinary PostgreSQL");
    let may_subscribe = target.value(
        "select rolsuper or coalesce((select pg_has_role(oid, 'member') from pg_roles
            where rolname = 'pg_create_subscription'), false) from pg_roles where rolname = current_user",
    )?;
    ensure!(
        may_subscribe == "t",
        "the role of the target may not create subscriptions: it has to be a superuser, or from version 16 on a member of \
         pg_create_subscription"
    );
    let extensions = source.column("select extname from pg_extension where extname <> 'plpgsql'")?;
    let available = target.column("select name from pg_available_extensions")?;
    let missing: Vec<String> = extensions.into_iter().filter(|name| !available.contains(name)).collect();
    ensure!(missing.is_empty(), "the target has no extension {}: install it there", missing.join(", "));
    // An owner is a dependency of the kind `o`, and one that is granted something of another kind.
    let owners = if *owns_all { "and d.deptype <> 'o'" } else { "" };
    let roles = source.column(&format!(
        "select distinct rolname from pg_shdepend d join pg_roles r on r.oid = d.refobjid
            where d.refclassid = 'pg_authid'::regclass and rolname !~ '^pg_' {owners}
                and d.dbid = (select oid from pg_database where datname = current_database())
         union select distinct pg_get_userbyid(c.relowner) from {OF_USERS} and {}
         order by 1",
        !*owns_all
    ))?;
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
