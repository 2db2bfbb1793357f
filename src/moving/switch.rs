//! The switch: the writes to the source are stopped, and the target gets the rest.

use std::{
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::{
    Move, NAME, PAUSE, Progress, Tell, checks,
    compare::Snapshot,
    pause,
    sql::{Sql, literal},
};
use crate::template::quote_identifier;

/// How long one attempt may wait for the locks: as long as it waits, nobody gets further locks.
const LOCK_TIMEOUT: &str = "500ms";
/// How many attempts there are.
const LOCK_ATTEMPTS: usize = 40;
/// SQLSTATE of a lock that was not got in time (`ERRCODE_LOCK_NOT_AVAILABLE`).
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// How long a slot may still be in use when its subscription is gone.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// How long the target may take for what is left when the writes are stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sets the sequences of the target to what those of the source are at.
fn set_sequences(source: &mut Sql, target: &mut Sql) -> anyhow::Result<()> {
    let sequences =
        format!("select format('%I.%I', n.nspname, c.relname) from {} and c.relkind = 'S'", checks::OF_USERS);
    for sequence in source.column(&sequences)? {
        let name = literal(&sequence);
        let set = source.value(&format!(
            "select format('select setval(%L, %s, %L)', {name}, last_value, is_called) from {sequence}"
        ))?;
        target.run(&set)?;
    }
    Ok(())
}

/// What describes the columns of all tables, to notice that they have been changed.
fn columns() -> String {
    format!(
        "select md5(string_agg(format('%I.%I.%I %s', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)),
                ',' order by n.nspname, c.relname, a.attnum))
            from {} and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped",
        checks::OF_USERS.replacen("pg_class c", "pg_class c join pg_attribute a on a.attrelid = c.oid", 1)
    )
}

/// How many bytes of WAL the target has still to apply.
///
/// # Errors
/// When the source cannot be asked.
pub(super) fn lag(source: &mut Sql) -> anyhow::Result<u64> {
    let bytes = source.column(&format!(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint from pg_stat_replication
            where application_name = {} and replay_lsn is not null",
        literal(NAME)
    ))?;
    // The subscription's worker may just be starting again.
    Ok(bytes.first().and_then(|bytes| bytes.parse::<i64>().ok()).map_or(u64::MAX, |bytes| bytes.max(0).unsigned_abs()))
}

/// Drops the slot that a move has left whose target was lost.
///
/// # Errors
/// When it cannot be dropped, or a subscription still uses it.
pub(super) fn drop_slot(source: &mut Sql) -> anyhow::Result<()> {
    let slot = format!("from pg_replication_slots where slot_name = {}", literal(NAME));
    let begun = Instant::now();
    // Its session may just be ending.
    while source.value(&format!("select count(*) {slot} and active"))? != "0" {
        ensure!(
            begun.elapsed() < SLOT_PATIENCE,
            "another move of the source is under way: its slot {NAME} is in use (pg_replication_slots)"
        );
        thread::sleep(PAUSE);
    }
    source.run(&format!("select pg_drop_replication_slot(slot_name) {slot}"))
}

/// Switches: stops the writes to the source, waits until the target has everything, sets its sequences, ends the
/// replication, and leaves the source to readers. Returns the rows of the source at that moment.
///
/// # Errors
/// When the locks are not got, the target does not follow, or somebody has broken the move off. Then the source goes
/// on as before.
pub(super) fn switch(
    moving: &Move,
    source: &mut Sql,
    target: &mut Sql,
    tables: &[String],
    tell: Tell<'_>,
    is_broken_off: &AtomicBool,
) -> anyhow::Result<Snapshot> {
    let [before, after] = [&mut *source, &mut *target].map(|side| side.value(&columns()));
    ensure!(before? == after?, "the tables of the source have been changed since the move began: begin again");
    let mut locks = Sql::begin(&moving.source)?;
    let begun = lock(&mut locks, tables, is_broken_off)?;
    tell(&Progress::WritesStopped);
    // A commit of its own, so that there is something behind everything that was written before.
    let end = source.value("select pg_logical_emit_message(true, 'pglite-port move', '')")?;
    let applied = format!(
        "select count(*) from pg_stat_replication where application_name = {} and replay_lsn > {}",
        literal(NAME),
        literal(&end)
    );
    while source.value(&applied)? == "0" {
        ensure!(begun.elapsed() < PATIENCE, "the target has not applied the last changes within {PATIENCE:?}");
        pause(is_broken_off)?;
    }
    let [before, after] = [&mut *source, &mut *target].map(|side| side.value(&columns()));
    ensure!(before? == after?, "the tables of the source have been changed since the move began: begin again");
    set_sequences(&mut locks, target)?;
    // From here on the target is the database.
    let snapshot = Snapshot::of(locks, &moving.target)?;
    let database = quote_identifier(&source.value("select current_database()")?)?;
    source.run(&format!("alter database {database} set default_transaction_read_only = on"))?;
    if let Err(error) = target.run(&format!("drop subscription {NAME}")) {
        source.run(&format!("alter database {database} reset default_transaction_read_only"))?;
        return Err(error);
    }
    source.run(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
            and backend_type = 'client backend' and application_name <> 'pglite-port move'",
    )?;
    tell(&Progress::Switched { stopped: begun.elapsed() });
    Ok(snapshot)
}

/// Begins a transaction with locks of all tables, with which nobody else can write; returns since when.
fn lock(locks: &mut Sql, tables: &[String], is_broken_off: &AtomicBool) -> anyhow::Result<Instant> {
    let list = tables.join(", ");
    for _ in 0..LOCK_ATTEMPTS {
        locks.run(&format!("begin isolation level repeatable read; set local lock_timeout = '{LOCK_TIMEOUT}'"))?;
        let begun = Instant::now();
        let locked =
            if tables.is_empty() { Ok(()) } else { locks.run(&format!("lock table {list} in exclusive mode")) };
        let Err(error) = locked else {
            // The snapshot has everything that was committed before.
            locks.run("select 1")?;
            return Ok(begun);
        };
        locks.run("rollback")?;
        let report = error.downcast_ref::<crate::dial::Report>();
        if report.is_none_or(|report| report.code != LOCK_NOT_AVAILABLE) {
            return Err(error).context("the tables of the source cannot be locked");
        }
        pause(is_broken_off)?;
    }
    bail!(
        "the tables of the source cannot be locked, because a transaction that writes to them stays open: \
         select * from pg_stat_activity where state like 'idle in transaction%'"
    )
}
