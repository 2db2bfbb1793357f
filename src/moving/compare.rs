//! Whether source and target have the same rows, as they were in the moment of the switch.

use std::sync::Arc;

use anyhow::Context;

use super::sql::{Sql, literal};
use crate::dial::Server;

/// How a table compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The table, as SQL names it.
    pub table: String,
    /// The number of its rows in the source.
    pub rows: u64,
    /// The number of its rows in the target.
    pub rows_in_target: u64,
    /// Whether the rows are the same, by their number and a sum of their digests.
    pub is_same: bool,
}

/// Both sides at one moment. The source can be read but not written as long as this is there.
pub(super) struct Snapshot {
    source: Sql,
    target: Sql,
}

impl Snapshot {
    /// `source` is in the transaction that holds the locks; the target is not written to yet.
    ///
    /// # Errors
    /// When the target cannot be reached.
    pub(super) fn of(source: Sql, server: &Arc<Server>) -> anyhow::Result<Self> {
        let mut target = Sql::begin(server)?;
        target.run("begin isolation level repeatable read read only; select 1")?;
        Ok(Self { source, target })
    }
}

/// The number of rows and the sum of the first half of the digest of each, which is the same on every version and machine.
/// `condition`: empty, or begins with `WHERE`.
///
/// # Errors
/// When they cannot be read.
pub(super) fn digest(side: &mut Sql, table: &str, columns: &str, condition: &str) -> anyhow::Result<(u64, String)> {
    let sql = format!(
        "select count(*), coalesce(sum(('x' || substr(md5(row({columns})::text), 1, 15))::bit(60)::bigint), 0)
            from only {table} {condition}"
    );
    let rows = side.rows(&sql).with_context(|| format!("{table} cannot be compared"))?;
    let row = rows.into_iter().next().unwrap_or_default();
    let [count, sum] = &row[..] else { anyhow::bail!("{table} cannot be compared") };
    Ok((count.parse()?, sum.clone()))
}

/// Compares all tables, and reads the materialized views of the target again.
///
/// # Errors
/// When one of them cannot be read.
pub(super) fn compare(
    Snapshot { mut source, mut target }: Snapshot,
    server: &Arc<Server>,
    tables: &[String],
) -> anyhow::Result<Vec<Compared>> {
    let refreshed = refresh_views(&mut source, server);
    let mut compared = Vec::with_capacity(tables.len());
    for table in tables {
        // In the order of the source, in which dropped columns leave gaps.
        let columns = source.value(&format!(
            "select coalesce(string_agg(quote_ident(attname), ', ' order by attnum), '') from pg_attribute
                where attrelid = {}::regclass and attnum > 0 and not attisdropped",
            literal(table)
        ))?;
        let (here, there) = (digest(&mut source, table, &columns, "")?, digest(&mut target, table, &columns, "")?);
        let is_same = here == there;
        compared.push(Compared { table: table.clone(), rows: here.0, rows_in_target: there.0, is_same });
    }
    refreshed.map(|()| compared)
}

/// Fills the materialized views of the target, in the order in which they were made.
fn refresh_views(source: &mut Sql, server: &Arc<Server>) -> anyhow::Result<()> {
    let views = "select format('refresh materialized view %I.%I', n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'm' and c.relispopulated order by c.oid";
    let mut target = Sql::begin(server)?;
    for refresh in source.column(views)? {
        target.run(&refresh)?;
    }
    Ok(())
}
