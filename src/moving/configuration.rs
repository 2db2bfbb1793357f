//! The rows that users have added to tables of extensions.
//!
//! The tables of an extension are made by the extension in the target, with the rows that come with it, so that they
//! are neither in the dump of the schema nor in the publication. Rows of users are those that `pg_dump` would dump: an
//! extension names its tables that have such rows, each with a condition for them (`pg_extension_config_dump`). They
//! are few. They are copied when the writes are stopped.

use anyhow::{Context, ensure};

use super::{
    compare::{Compared, digest},
    sql::{Sql, literal},
};

/// How many rows are sent to the target at a time.
const AT_A_TIME: usize = 500;

/// A table or a sequence of an extension, with rows of users.
pub(super) struct Configuration {
    /// Its name, as SQL has it.
    pub(super) name: String,
    /// Whether it is a table, and no sequence.
    pub(super) is_table: bool,
    /// Empty, or a condition that begins with `WHERE`.
    condition: String,
}

impl Configuration {
    /// Those of the extensions of the source, in the order in which they were made: a table comes before those that
    /// refer to it.
    ///
    /// # Errors
    /// When the source cannot be asked.
    pub(super) fn of(source: &mut Sql) -> anyhow::Result<Vec<Self>> {
        let rows = source.rows(
            "select format('%I.%I', n.nspname, c.relname), c.relkind, coalesce(condition, '')
                from pg_extension e, unnest(e.extconfig, e.extcondition) as configured (id, condition)
                join pg_class c on c.oid = configured.id join pg_namespace n on n.oid = c.relnamespace
                where c.relkind in ('r', 'S') and c.relpersistence = 'p' order by c.oid",
        )?;
        let of_row = |row: Vec<String>| {
            let [name, kind, condition] = <[String; 3]>::try_from(row).ok().context("a row of three values")?;
            Ok(Self { name, is_table: kind == "r", condition })
        };
        rows.into_iter().map(of_row).collect()
    }

    /// Checks that the target has the same table, before the writes are stopped.
    ///
    /// # Errors
    /// When it has not: the version of the extension differs.
    pub(super) fn check(&self, source: &mut Sql, target: &mut Sql) -> anyhow::Result<()> {
        let columns = format!(
            "select coalesce(string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attname), '')
                from pg_attribute where attrelid = to_regclass({}) and attnum > 0 and not attisdropped",
            literal(&self.name)
        );
        let (here, there) = (source.value(&columns)?, target.value(&columns)?);
        ensure!(
            here == there,
            "{} belongs to an extension and is not the same in the target ({there:?} instead of {here:?}): the target \
             needs the same version of the extension",
            self.name
        );
        // What a trusted extension makes belongs to the target's superuser.
        let name = literal(&self.name);
        let may_change = if self.is_table {
            format!("has_table_privilege({name}, 'SELECT') and has_table_privilege({name}, 'INSERT')")
        } else {
            format!("has_sequence_privilege({name}, 'UPDATE')")
        };
        ensure!(
            !self.has_rows(source)? || target.value(&format!("select {may_change}"))? == "t",
            "the role in the target may not change {}, which belongs to an extension: have its superuser grant that, or \
             move as a superuser",
            self.name
        );
        Ok(())
    }

    /// Whether there is anything to move.
    ///
    /// # Errors
    /// When the source cannot be asked.
    pub(super) fn has_rows(&self, source: &mut Sql) -> anyhow::Result<bool> {
        let Self { name, condition, .. } = self;
        let any = if self.is_table {
            format!("select exists (select from only {name} {condition})")
        } else {
            format!("select is_called from {name}")
        };
        Ok(source.value(&any)? == "t")
    }

    /// Copies the rows of users in one transaction, and returns how many they are on both sides.
    ///
    /// # Errors
    /// When they cannot be read, or the target does not take them.
    pub(super) fn copy(&self, source: &mut Sql, target: &mut Sql) -> anyhow::Result<Compared> {
        let Self { name, condition, .. } = self;
        let columns = source.rows(&format!(
            "select quote_ident(attname) from pg_attribute where attrelid = {}::regclass and attnum > 0
                and not attisdropped and attgenerated = '' order by attnum",
            literal(name)
        ))?;
        let columns: Vec<String> = columns.into_iter().flatten().collect();
        let values: Vec<String> = columns.iter().map(|column| format!("quote_nullable({column}::text)")).collect();
        let (row, columns) = (values.join(" || ', ' || "), columns.join(", "));
        // Texts without a type become values of the columns' types in the target.
        let rows = match &columns[..] {
            "" => Vec::new(),
            _ => source.column(&format!("select '(' || {row} || ')' from only {name} {condition}"))?,
        };
        target.run("begin")?;
        for some in rows.chunks(AT_A_TIME) {
            let insert = format!("insert into {name} ({columns})");
            let added = target.run(&format!("{insert} overriding system value values {}", some.join(", ")));
            added
                .with_context(|| format!("the rows that users have added to {name}, which belongs to an extension"))?;
        }
        let (here, there) = (digest(source, name, &columns, condition)?, digest(target, name, &columns, condition)?);
        ensure!(
            here == there,
            "{name}, which belongs to an extension, has {} rows of users in the source and {} in the target, or they \
             differ: empty the table in the target, or in the source",
            here.0,
            there.0
        );
        target.run("commit")?;
        Ok(Compared { table: name.clone(), rows: here.0, rows_in_target: there.0, is_same: true })
    }
}
