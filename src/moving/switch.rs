//! The switch: the writes to the source are stopped, and the target gets the rest.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::{
    Changed, Move, NAME, PAUSE, Progress, Switched, Watch, checks,
    compare::Snapshot,
    configuration::Configuration,
    schema::Target,
    sql::{APPLICATION, Sql, literal},
};
use crate::{dial::Report, protocol::error_response::sqlstate, template::quote_identifier};

/// How long one attempt may wait for the locks: as long as it waits, nobody gets further locks.
const LOCK_TIMEOUT: &str = "500ms";
/// How many attempts there are.
const LOCK_ATTEMPTS: usize = 40;

/// How long a slot may still be in use when its subscription is gone.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// The first version that counts the errors of subscriptions.
const COUNTS_ERRORS: u32 = 150_000;

/// How long the target may take for what is left when the writes are stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is moved.
pub(super) struct Moved<'a> {
    /// The tables, as SQL names them.
    pub(super) tables: &'a [String],
    /// Tables and sequences of extensions.
    pub(super) configuration: &'a [Configuration],
    /// What was defined in the source when the move began ([`checks::definitions`]).
    pub(super) definitions: &'a str,
}

/// Sets the sequences of the target to what those of the source are at.
fn set_sequences(source: &mut Sql, target: &mut Sql, of_extensions: &[Configuration]) -> anyhow::Result<()> {
    let of_users = source.column(&checks::names("c.relkind = 'S'"))?;
    let mut sequences = of_users;
    for sequence in of_extensions.iter().filter(|it| !it.is_table) {
        // One that nobody has used is as it was made.
        if sequence.has_rows(source)? {
            sequences.push(sequence.name.clone());
        }
    }
    for sequence in sequences {
        let name = literal(&sequence);
        let set = source.value(&format!(
            "select format('select setval(%L, %s, %L)', {name}, last_value, is_called) from {sequence}"
        ))?;
        target.run(&set)?;
    }
    Ok(())
}

/// The sessions that send to the subscription. Their names are those that its connection string gives them.
fn senders() -> String {
    format!(
        "pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid and s.slot_name = {}",
        literal(NAME)
    )
}

/// How many bytes of WAL the target has still to apply.
///
/// # Errors
/// When the source cannot be asked.
pub(super) fn lag(source: &mut Sql) -> anyhow::Result<u64> {
    let bytes = source.column(&format!(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn)::bigint from {} where r.replay_lsn is not null",
        senders()
    ))?;
    // The subscription's worker may just be starting again.
    Ok(bytes.first().and_then(|bytes| bytes.parse::<i64>().ok()).map_or(u64::MAX, |bytes| bytes.max(0).unsigned_abs()))
}

/// Notices that the target does not get on.
///
/// # Errors
/// When its slot is lost, or its workers fail.
pub(super) fn check_progress(source: &mut Sql, target: &mut Target) -> anyhow::Result<()> {
    let status = source.column(&format!(
        "select coalesce(wal_status, '') from pg_replication_slots where slot_name = {}",
        literal(NAME)
    ))?;
    ensure!(
        status.first().is_none_or(|status| status != "lost"),
        "the source has written more WAL than max_slot_wal_keep_size allows before the target had it: start the source \
         with a larger one"
    );
    if target.version >= COUNTS_ERRORS {
        let errors = target.sql.value(&format!(
            "select coalesce(sum(apply_error_count + sync_error_count), 0) from pg_stat_subscription_stats
                where subname = {}",
            literal(NAME)
        ))?;
        ensure!(errors == "0", "the subscription of the target fails: the log of the target's server says why");
    }
    Ok(())
}

/// Checks that the slot of the subscription is free.
///
/// # Errors
/// When somebody uses it.
pub(super) fn check_slot(source: &mut Sql) -> anyhow::Result<()> {
    let active = source
        .value(&format!("select count(*) from pg_replication_slots where active and slot_name = {}", literal(NAME)))?;
    // What a killed move has left is active as long as its target is there.
    ensure!(
        active == "0",
        "the slot {NAME} of the source is in use, by another move or by the target of one that was killed: on that \
         target, drop the database (alter subscription {NAME} disable; alter subscription {NAME} set (slot_name = none); \
         drop subscription {NAME})"
    );
    Ok(())
}

/// Drops the slot of the subscription, which was free when the move began.
///
/// # Errors
/// When it cannot be dropped.
pub(super) fn drop_slot(source: &mut Sql) -> anyhow::Result<()> {
    let slot = format!("from pg_replication_slots where slot_name = {}", literal(NAME));
    // The session that makes it may wait for a transaction, and does not notice that its client has gone.
    source.run(&format!("select pg_terminate_backend(active_pid) {slot} and active"))?;
    let begun = Instant::now();
    while source.value(&format!("select count(*) {slot} and active"))? != "0" {
        ensure!(begun.elapsed() < SLOT_PATIENCE, "the slot {NAME} of the source is in use (pg_replication_slots)");
        thread::sleep(PAUSE);
    }
    source.run(&format!("select pg_drop_replication_slot(slot_name) {slot}"))
}

/// Switches: stops the writes to the source, waits until the target has everything, leaves the source to readers and
/// ends its other sessions, sets the target's sequences, copies what users have added to tables of extensions, and ends
/// the replication. Returns the rows of the source at that moment. What comes before the end of the replication can be
/// undone.
///
/// # Errors
/// When the locks are not got, the target does not follow, the schema was changed, or somebody has broken the move off.
pub(super) fn switch(
    moving: &Move,
    source: &mut Sql,
    target: &mut Target,
    moved: &Moved<'_>,
    watch: &Watch<'_>,
    changed: &mut Changed,
) -> anyhow::Result<Switched> {
    let mut locks = Sql::begin(&moving.source)?;
    let of_extensions = moved.configuration.iter().filter(|it| it.is_table);
    let tables: Vec<&str> =
        moved.tables.iter().chain(of_extensions.clone().map(|it| &it.name)).map(String::as_str).collect();
    let begun = lock(&mut locks, &tables, watch)?;
    watch.tell(&Progress::WritesStopped);
    // A commit of its own, so that there is something behind everything that was written before.
    let end = source.value(&format!("select pg_logical_emit_message(true, {}, '')", literal(APPLICATION)))?;
    let applied = format!("select count(*) from {} where r.replay_lsn > {}", senders(), literal(&end));
    while source.value(&applied)? == "0" {
        ensure!(begun.elapsed() < PATIENCE, "the target has not applied the last changes within {PATIENCE:?}");
        check_progress(source, target)?;
        watch.pause()?;
    }
    let database = quote_identifier(&source.value("select current_database()")?)?;
    changed.is_read_only = true;
    source.run(&format!("alter database {database} set default_transaction_read_only = on"))?;
    end_others(source)?;
    ensure!(
        checks::definitions(source)? == moved.definitions,
        "the schema of the source has been changed since the move began: begin again"
    );
    set_sequences(&mut locks, &mut target.sql, moved.configuration)?;
    let configuration =
        of_extensions.map(|table| table.copy(&mut locks, &mut target.sql)).collect::<anyhow::Result<_>>()?;
    let snapshot = Snapshot::of(locks, &moving.target)?;
    // From here on the target is the database.
    target.sql.run(&format!("drop subscription {NAME}"))?;
    watch.tell(&Progress::Switched { stopped: begun.elapsed() });
    Ok(Switched { snapshot, configuration })
}

/// Ends the other sessions of the source's database, which could write, and waits until they are gone. Their clients may
/// connect again, and can read.
fn end_others(source: &mut Sql) -> anyhow::Result<()> {
    let others = format!(
        "from pg_stat_activity where datname = current_database() and backend_type = 'client backend'
            and application_name <> {} and backend_start < {}",
        literal(APPLICATION),
        literal(&source.value("select now()")?)
    );
    source.run(&format!("select pg_terminate_backend(pid) {others}"))?;
    let begun = Instant::now();
    while source.value(&format!("select count(*) {others}"))? != "0" {
        ensure!(begun.elapsed() < PATIENCE, "sessions of the source do not end within {PATIENCE:?}");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Makes the source writable again.
///
/// # Errors
/// When it cannot be asked.
pub(super) fn allow_writes(source: &mut Sql) -> anyhow::Result<()> {
    let database = quote_identifier(&source.value("select current_database()")?)?;
    source.run(&format!("alter database {database} reset default_transaction_read_only"))
}

/// Begins a transaction with locks of all tables, with which nobody else can write; returns since when.
fn lock(locks: &mut Sql, tables: &[&str], watch: &Watch<'_>) -> anyhow::Result<Instant> {
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
        let report = error.downcast_ref::<Report>();
        if report.is_none_or(|report| report.code != sqlstate::LOCK_NOT_AVAILABLE) {
            return Err(error).context("the tables of the source cannot be locked");
        }
        watch.pause()?;
    }
    bail!(
        "the tables of the source cannot be locked, because a transaction that writes to them stays open: \
         select * from pg_stat_activity where state like 'idle in transaction%'"
    )
}
