//! VACUUM and ANALYZE without being asked: what `PostgreSQL`'s autovacuum launcher and its workers do.
//!
//! A thread looks once in `autovacuum_naptime`, if anything has happened since. It opens a session in every database that runs as an autovacuum worker:
//! it does not count against `max_connections`, gives way to every other session at once, and is cancelled when somebody waits for a lock of its.
//! Which tables need it is decided as in `relation_needs_vacanalyze` (`PostgreSQL`, `src/backend/postmaster/autovacuum.c`).

use std::{
    sync::{Arc, Weak},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{Postmaster, conversation::Conversation};
use crate::answer::first_value;

/// How long to wait before the first look, when `autovacuum_naptime` is not known yet.
const FIRST_NAP: Duration = Duration::from_secs(1);

/// The databases that can be connected to.
const DATABASES: &str = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate";

/// The session as a worker's.
const PREPARE: &str = "SELECT pg_catalog.set_config(name, value, false) FROM (VALUES \
    ('statement_timeout', '0'), ('lock_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'), \
    ('search_path', ''), ('default_transaction_isolation', 'read committed'), ('synchronous_commit', 'local')) AS settings (name, value)";

/// Every table that needs it, with the statement, and the one that sets what it may cost before (-1 is for what any VACUUM may). Storage parameters of a table come before the settings.
const NEEDED: &str = "
WITH tables AS (
    SELECT c.oid, n.nspname, c.relname, c.relkind, greatest(c.reltuples, 0)::float8 AS tuples,
        CASE WHEN c.relpages > 0 THEN 1 - least(c.relallfrozen, c.relpages)::float8 / c.relpages ELSE 1 END AS unfrozen,
        pg_catalog.age(c.relfrozenxid) AS age, pg_catalog.mxid_age(c.relminmxid) AS multixact_age,
        pg_catalog.pg_stat_get_dead_tuples(c.oid) AS dead,
        pg_catalog.pg_stat_get_ins_since_vacuum(c.oid) AS inserted,
        pg_catalog.pg_stat_get_mod_since_analyze(c.oid) AS modified,
        (SELECT pg_catalog.jsonb_object_agg(option_name, option_value)
            FROM pg_catalog.pg_options_to_table(c.reloptions)) AS options
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'
), settings AS (
    SELECT pg_catalog.jsonb_object_agg(name, setting) AS settings FROM pg_catalog.pg_settings WHERE name LIKE 'autovacuum%'
), limits AS (
    SELECT t.*,
        coalesce(t.options ->> 'autovacuum_enabled', 'true')::boolean AS enabled,
        least(coalesce(t.options ->> 'autovacuum_vacuum_threshold', s.settings ->> 'autovacuum_vacuum_threshold')::float8
            + coalesce(t.options ->> 'autovacuum_vacuum_scale_factor', s.settings ->> 'autovacuum_vacuum_scale_factor')::float8 * t.tuples,
            nullif(coalesce(t.options ->> 'autovacuum_vacuum_max_threshold', s.settings ->> 'autovacuum_vacuum_max_threshold'), '-1')::float8)
            AS dead_limit,
        coalesce(t.options ->> 'autovacuum_vacuum_insert_threshold', s.settings ->> 'autovacuum_vacuum_insert_threshold')::float8
            AS insert_threshold,
        coalesce(t.options ->> 'autovacuum_vacuum_insert_scale_factor', s.settings ->> 'autovacuum_vacuum_insert_scale_factor')::float8
            * t.tuples * t.unfrozen AS insert_share,
        coalesce(t.options ->> 'autovacuum_analyze_threshold', s.settings ->> 'autovacuum_analyze_threshold')::float8
            + coalesce(t.options ->> 'autovacuum_analyze_scale_factor', s.settings ->> 'autovacuum_analyze_scale_factor')::float8 * t.tuples
            AS analyze_limit,
        t.age > coalesce(t.options ->> 'autovacuum_freeze_max_age', s.settings ->> 'autovacuum_freeze_max_age')::float8
            OR t.multixact_age > coalesce(t.options ->> 'autovacuum_multixact_freeze_max_age',
                s.settings ->> 'autovacuum_multixact_freeze_max_age')::float8 AS wraparound
    FROM tables t CROSS JOIN settings s
), verdicts AS (
    SELECT l.*,
        l.wraparound OR (l.enabled AND (l.dead > l.dead_limit
            OR (l.insert_threshold >= 0 AND l.inserted > l.insert_threshold + l.insert_share))) AS needs_vacuum,
        l.enabled AND l.relkind <> 't' AND l.modified > l.analyze_limit AS needs_analyze
    FROM limits l
)
SELECT CASE WHEN needs_vacuum THEN pg_catalog.format('VACUUM (SKIP_LOCKED%s) %I.%I', CASE WHEN needs_analyze THEN ', ANALYZE' END, nspname, relname)
            ELSE pg_catalog.format('ANALYZE (SKIP_LOCKED) %I.%I', nspname, relname) END,
    pg_catalog.format('SELECT pg_catalog.set_config(''vacuum_cost_delay'', %L, false), pg_catalog.set_config(''vacuum_cost_limit'', %L, false)',
        coalesce(nullif(coalesce(options ->> 'autovacuum_vacuum_cost_delay', pg_catalog.current_setting('autovacuum_vacuum_cost_delay')), '-1'),
            (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'vacuum_cost_delay')),
        coalesce(nullif(coalesce(options ->> 'autovacuum_vacuum_cost_limit', pg_catalog.current_setting('autovacuum_vacuum_cost_limit')), '-1'),
            (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'vacuum_cost_limit')))
FROM verdicts WHERE needs_vacuum OR needs_analyze ORDER BY wraparound DESC, oid";

/// The thread that looks.
pub(super) struct Autovacuum {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Autovacuum {
    /// Starts it for that postmaster.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub(super) fn start(postmaster: Weak<Postmaster>) -> anyhow::Result<Self> {
        let (stop, stopped) = bounded(1);
        let thread = thread::Builder::new().name("autovacuum".into()).spawn(move || run(&postmaster, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Stops it, and waits for the statement that is running.
    pub(super) fn stop(self) {
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("autovacuum panicked");
        }
    }
}

/// Looks until it is stopped. What goes wrong is tried again the next time.
fn run(postmaster: &Weak<Postmaster>, stopped: &Receiver<()>) {
    let mut nap = FIRST_NAP;
    let mut turns = 0;
    while stopped.recv_timeout(nap) == Err(RecvTimeoutError::Timeout) {
        let Some(postmaster) = postmaster.upgrade() else { return };
        if postmaster.turns() == turns {
            continue;
        }
        match look(&postmaster, stopped) {
            Ok(next) => nap = next,
            Err(error) => tracing::debug!("autovacuum: {error:#}"),
        }
        // Its own turns are nothing to look after.
        turns = postmaster.turns();
    }
}

/// Looks after every database; returns how long to wait before the next time.
fn look(postmaster: &Arc<Postmaster>, stopped: &Receiver<()>) -> anyhow::Result<Duration> {
    let session = postmaster.open_worker("postgres")?;
    let nap = nap_time(&session)?;
    let databases = session.query(DATABASES)?;
    drop(session);
    for row in databases {
        let Some(Some(database)) = row.first() else { continue };
        if !stopped.is_empty() {
            break;
        }
        if let Err(error) = look_after_database(&postmaster.open_worker(database)?) {
            tracing::debug!("autovacuum: database {database}: {error:#}");
        }
    }
    Ok(nap)
}

/// How long to wait before the next look.
///
/// # Errors
/// When the session has ended.
fn nap_time(session: &Conversation) -> anyhow::Result<Duration> {
    let rows = session.query("SELECT extract(epoch FROM current_setting('autovacuum_naptime')::interval)")?;
    let seconds = first_value(&rows).and_then(|seconds| seconds.parse().ok());
    Ok(Duration::from_secs_f64(seconds.context("autovacuum_naptime is no interval")?))
}

/// Vacuums and analyzes what needs it in the session's database.
///
/// # Errors
/// When the session has ended, or its catalogs cannot be read.
fn look_after_database(session: &Conversation) -> anyhow::Result<()> {
    session.query(PREPARE)?;
    for row in session.query(NEEDED).context("the tables that need VACUUM cannot be found")? {
        let [Some(statement), Some(costs)] = &row[..] else { continue };
        match session.query(costs).and_then(|_| session.query(statement)) {
            Ok(_) => tracing::debug!("autovacuum: {statement}"),
            // Somebody wants the table: another time.
            Err(error) => tracing::debug!("autovacuum: {statement}: {error:#}"),
        }
    }
    Ok(())
}
