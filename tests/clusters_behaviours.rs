//! One list of behaviours, tried with every kind of cluster: what PostgreSQL promises does not depend on where a
//! cluster comes from and where it is kept.

mod support;

use std::{sync::Arc, time::Instant};

use pglite_port::{
    administration::{Administration, ClusterOrigin, DEFAULT_CLUSTER, NewCluster},
    connection::Connections,
    databases::{Databases, Settings, SharedSettings},
};
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    session::errors,
    wire::{self, Message},
};
use tempfile::TempDir;

/// Every kind of cluster that takes several sessions.
const SHARED: [Kind; 5] = [Kind::Default, Kind::Empty, Kind::Template, Kind::Branch, Kind::Directory];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The program's own, in memory.
    Default,
    Empty,
    /// Of a template, without a boot.
    Template,
    /// Of a cluster that runs, with an open transaction.
    Branch,
    /// Kept in a directory.
    Directory,
    /// One connection's.
    Isolated,
}

/// A program's databases, with one cluster of each kind.
struct World {
    databases: Arc<Databases>,
    connections: Arc<Connections>,
    directory: TempDir,
}

/// One cluster.
struct Cluster<'a> {
    kind: Kind,
    name: String,
    connections: &'a Arc<Connections>,
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    /// One whose clusters have these settings of PostgreSQL.
    fn with(settings: &[(&str, &str)]) -> Self {
        let further = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let shared = SharedSettings { further, ..SharedSettings::default() };
        let (databases, connections) = cache::administered(Settings { shared, ..Settings::default() });
        Self { databases, connections, directory: tempfile::tempdir().expect("a directory") }
    }

    fn cluster(&self, kind: Kind) -> Cluster<'_> {
        let of = |kind: Kind, name: String| Cluster { kind, name, connections: &self.connections };
        let mut new = NewCluster { name: Some(format!("{kind:?}")), ..NewCluster::default() };
        match kind {
            Kind::Default => return of(kind, DEFAULT_CLUSTER.to_owned()),
            Kind::Isolated => return of(kind, String::new()),
            Kind::Empty => {}
            Kind::Template => new.origin = ClusterOrigin::Template("postgres".to_owned()),
            Kind::Directory => new.data_directory = Some(self.directory.path().join("data")),
            Kind::Branch => {
                let template = ClusterOrigin::Template("postgres".to_owned());
                let origin = NewCluster { name: Some("origin".to_owned()), origin: template, ..NewCluster::default() };
                let name = self.databases.create_cluster(origin).expect("a cluster").name;
                let mut open = of(kind, name.clone()).session();
                open.values("BEGIN; CREATE TABLE never_committed ()");
                new.origin = ClusterOrigin::Branch(name);
                return of(kind, self.databases.create_cluster(new).expect("a cluster").name);
            }
        }
        of(kind, self.databases.create_cluster(new).expect("a cluster").name)
    }
}

impl Cluster<'_> {
    /// A session of the superuser.
    fn session(&self) -> Local {
        let (session, messages) = self.connect(&[("user", "postgres")]);
        assert!(errors(&messages).is_empty(), "{messages:?}");
        session
    }

    /// A session with these startup parameters, and the messages until it is ready or refused.
    fn connect(&self, parameters: &[(&str, &str)]) -> (Local, Vec<Message>) {
        let cluster = (self.kind != Kind::Isolated).then_some(&self.name[..]);
        Local::connect(self.connections, Connect { cluster, parameters, ..Connect::default() })
    }

    /// The SQLSTATEs with which a session is refused.
    fn refusal(&self, parameters: &[(&str, &str)]) -> Vec<String> {
        errors(&self.connect(parameters).1)
    }
}

/// Tries a behaviour of several sessions with every kind of cluster.
fn with_sessions(behaviour: impl Fn(&Cluster<'_>)) {
    with_kinds(&World::new(), &SHARED, behaviour);
}

/// Tries a behaviour of one session with every kind of cluster.
fn with_one_session(behaviour: impl Fn(&Cluster<'_>)) {
    with_kinds(&World::new(), &[&SHARED[..], &[Kind::Isolated]].concat(), behaviour);
}

fn with_kinds(world: &World, kinds: &[Kind], behaviour: impl Fn(&Cluster<'_>)) {
    for kind in kinds {
        // Shown if it fails.
        println!("{kind:?}");
        behaviour(&world.cluster(*kind));
    }
}

/// Sends a statement without waiting for its answer.
fn begin(session: &mut Local, sql: &str) {
    session.send(&wire::query(sql));
}

/// The SQLSTATEs of the answer to a statement.
fn failure(session: &mut Local, sql: &str) -> Vec<String> {
    errors(&session.query(sql))
}

/// Repeats a query until it returns true.
fn until(session: &mut Local, sql: &str) {
    let started = Instant::now();
    while session.values(sql) != ["t"] {
        assert!(started.elapsed() < PATIENCE, "never true: {sql}");
        std::thread::yield_now();
    }
}

/// The process id of a session.
fn process_id(session: &mut Local) -> String {
    session.values("SELECT pg_backend_pid()").remove(0)
}

/// Waits until the session with that process id runs a statement and its row meets the condition.
fn until_active(watcher: &mut Local, process_id: &str, condition: &str) {
    let row = format!("FROM pg_stat_activity WHERE pid = {process_id}");
    until(watcher, &format!("SELECT state = 'active' AND {condition} {row}"));
}

const WAITS_FOR_LOCK: &str = "wait_event_type = 'Lock'";

#[test]
fn what_is_committed_is_seen_and_what_is_rolled_back_is_not() {
    with_sessions(|cluster| {
        let [mut one, mut two] = [cluster.session(), cluster.session()];
        one.values("CREATE TABLE t (a int)");
        one.values("BEGIN");
        one.values("INSERT INTO t VALUES (1)");
        assert!(two.values("SELECT a FROM t").is_empty());
        one.values("COMMIT");
        assert_eq!(two.values("SELECT a FROM t"), ["1"]);
        one.values("BEGIN");
        one.values("INSERT INTO t VALUES (2)");
        one.values("ROLLBACK");
        for session in [&mut one, &mut two] {
            assert_eq!(session.values("SELECT a FROM t"), ["1"]);
        }
    });
}

#[test]
fn a_key_that_another_session_commits_first_is_a_violation() {
    with_sessions(|cluster| {
        let [mut one, mut two, mut watcher] = [cluster.session(), cluster.session(), cluster.session()];
        one.values("CREATE TABLE t (a int PRIMARY KEY)");
        one.values("BEGIN");
        one.values("INSERT INTO t VALUES (1)");
        let waiting = process_id(&mut two);
        begin(&mut two, "INSERT INTO t VALUES (1)");
        until_active(&mut watcher, &waiting, WAITS_FOR_LOCK);
        one.values("COMMIT");
        assert_eq!(errors(&two.until_ready()), ["23505"]);
    });
}

#[test]
fn a_deadlock_ends_with_an_error_for_one_and_a_lock_for_the_other() {
    with_sessions(|cluster| {
        let [mut one, mut two, mut watcher] = [cluster.session(), cluster.session(), cluster.session()];
        one.values("CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t VALUES (1, 0), (2, 0)");
        one.values("SET deadlock_timeout = '1h'");
        two.values("SET deadlock_timeout = '10ms'");
        for (session, row) in [(&mut one, 1), (&mut two, 2)] {
            session.values("BEGIN");
            session.values(&format!("UPDATE t SET b = {row} WHERE a = {row}"));
        }
        let waiting = process_id(&mut one);
        begin(&mut one, "UPDATE t SET b = 1 WHERE a = 2");
        until_active(&mut watcher, &waiting, WAITS_FOR_LOCK);
        assert_eq!(failure(&mut two, "UPDATE t SET b = 2 WHERE a = 1"), ["40P01"]);
        assert!(errors(&one.until_ready()).is_empty());
        one.values("COMMIT");
        assert_eq!(watcher.values("SELECT b FROM t"), ["1", "1"]);
    });
}

#[test]
fn a_notification_comes_with_the_commit() {
    with_sessions(|cluster| {
        let [mut listener, mut sender] = [cluster.session(), cluster.session()];
        listener.values("LISTEN news");
        sender.values("BEGIN; NOTIFY news, 'lost'; ROLLBACK");
        sender.values("BEGIN; NOTIFY news, 'kept'; COMMIT");
        listener.wait_for_answer();
        let heard = listener.unread();
        let [message] = &heard[..] else { panic!("{heard:?}") };
        assert!(message.body.ends_with(b"news\0kept\0"), "{message:?}");
    });
}

#[test]
fn a_session_hears_its_own_notifications() {
    with_one_session(|cluster| {
        let mut session = cluster.session();
        session.values("LISTEN news");
        let answer = session.query("NOTIFY news, 'mine'");
        assert!(answer.iter().any(|message| message.kind == b'A' && message.body.ends_with(b"news\0mine\0")));
    });
}

#[test]
fn an_advisory_lock_is_one_sessions_until_it_is_released() {
    with_sessions(|cluster| {
        let [mut one, mut two] = [cluster.session(), cluster.session()];
        one.values("SELECT pg_advisory_lock(7)");
        assert_eq!(two.values("SELECT pg_try_advisory_lock(7)"), ["f"]);
        drop(one);
        two.values("SELECT pg_advisory_lock(7)");
    });
}

#[test]
fn deferred_constraints_are_checked_at_the_commit() {
    with_one_session(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO t VALUES (1)");
        session.values("BEGIN; INSERT INTO t VALUES (1)");
        assert_eq!(failure(&mut session, "COMMIT"), ["23505"]);
        session.values("BEGIN; INSERT INTO t VALUES (1); UPDATE t SET a = 2 WHERE ctid > '(0,1)'; COMMIT");
        assert_eq!(session.values("SELECT count(DISTINCT a) FROM t"), ["2"]);
    });
}

#[test]
fn a_session_can_be_cancelled_and_ended_by_another_one() {
    with_sessions(|cluster| {
        let [mut victim, mut other] = [cluster.session(), cluster.session()];
        let target = process_id(&mut victim);
        for (function, sqlstate) in [("pg_cancel_backend", "57014"), ("pg_terminate_backend", "57P01")] {
            for sql in ["SELECT pg_sleep(1000)", "DO $$ BEGIN LOOP END LOOP; END $$"] {
                if function == "pg_terminate_backend" && sql.starts_with("DO") {
                    continue;
                }
                begin(&mut victim, sql);
                until_active(&mut other, &target, "true");
                assert_eq!(other.values(&format!("SELECT {function}({target})")), ["t"]);
                assert_eq!(errors(&victim.until_ready()), [sqlstate]);
            }
        }
        until(&mut other, &format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {target}"));
    });
}

#[test]
fn databases_are_made_entered_and_dropped() {
    with_sessions(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE DATABASE other");
        let parameters = [("user", "postgres"), ("database", "other")];
        let mut inside = cluster.connect(&parameters).0;
        assert_eq!(inside.values("SELECT current_database()"), ["other"]);
        inside.values("CREATE TABLE t ()");
        assert_eq!(session.values("SELECT to_regclass('t') IS NULL"), ["t"]);
        assert_eq!(failure(&mut session, "DROP DATABASE other"), ["55006"]);
        drop(inside);
        session.values("DROP DATABASE other");
        assert_eq!(cluster.refusal(&parameters), ["3D000"]);
    });
}

#[test]
fn vacuum_gives_the_room_of_deleted_rows_back() {
    with_one_session(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n; DELETE FROM t");
        assert_eq!(session.values("SELECT pg_relation_size('t') > 500000"), ["t"]);
        session.values("VACUUM t");
        assert_eq!(session.values("SELECT pg_relation_size('t')"), ["0"]);
    });
}

#[test]
fn a_checkpoint_moves_the_place_from_which_a_recovery_begins() {
    with_one_session(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE TABLE t AS SELECT generate_series(1, 100)");
        let written = session.values("SELECT pg_current_wal_insert_lsn()").remove(0);
        session.values("CHECKPOINT");
        assert_eq!(
            session.values(&format!("SELECT checkpoint_lsn >= '{written}' FROM pg_control_checkpoint()")),
            ["t"]
        );
    });
}

#[test]
fn a_temporary_table_is_its_sessions_own_and_gone_with_it() {
    with_sessions(|cluster| {
        let [mut one, mut two] = [cluster.session(), cluster.session()];
        for (session, value) in [(&mut one, 1), (&mut two, 2)] {
            session.values(&format!("CREATE TEMP TABLE mine AS SELECT {value} AS a"));
        }
        assert_eq!(one.values("SELECT a FROM mine"), ["1"]);
        assert_eq!(two.values("SELECT a FROM mine"), ["2"]);
        drop(one);
        assert_eq!(two.values("SELECT count(*) FROM pg_class WHERE relname = 'mine'"), ["1"]);
    });
}

#[test]
fn a_changed_setting_reaches_sessions_with_the_reload_and_those_that_come_later() {
    with_one_session(|cluster| {
        let mut session = cluster.session();
        session.values("ALTER SYSTEM SET work_mem = '7MB'");
        assert_eq!(session.values("SHOW work_mem"), ["4MB"]);
        session.values("SELECT pg_reload_conf()");
        until(&mut session, "SELECT current_setting('work_mem') = '7MB'");
        if cluster.kind != Kind::Isolated {
            assert_eq!(cluster.session().values("SHOW work_mem"), ["7MB"]);
        }
    });
}

#[test]
fn connection_limits_of_roles_and_databases_hold() {
    with_sessions(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE ROLE guest LOGIN CONNECTION LIMIT 1; CREATE ROLE other LOGIN");
        session.values("CREATE DATABASE small CONNECTION LIMIT 1");
        let limited = [[("user", "guest"), ("database", "postgres")], [("user", "other"), ("database", "small")]];
        for parameters in limited {
            let (first, messages) = cluster.connect(&parameters);
            assert!(errors(&messages).is_empty(), "{messages:?}");
            assert_eq!(cluster.refusal(&parameters), ["53300"], "{parameters:?}");
            drop(first);
            assert!(cluster.refusal(&parameters).is_empty(), "{parameters:?}");
        }
    });
}

#[test]
fn rules_for_connections_hold_after_a_reload() {
    with_sessions(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE ROLE guest LOGIN");
        let guest = [("user", "guest"), ("database", "postgres")];
        assert!(cluster.refusal(&guest).is_empty());
        let rules = "SELECT unnest(ARRAY['local all guest reject', 'local all all trust'])";
        session.values(&format!("COPY ({rules}) TO '/pglite/data/pg_hba.conf'"));
        session.values("SELECT pg_reload_conf()");
        let started = Instant::now();
        while cluster.refusal(&guest).is_empty() {
            assert!(started.elapsed() < PATIENCE, "the rules were not read");
        }
        assert_eq!(cluster.refusal(&guest), ["28000"]);
        assert_eq!(cluster.session().values("SELECT 1"), ["1"]);
    });
}

#[test]
fn an_event_trigger_on_login_fires_for_every_session() {
    with_sessions(|cluster| {
        let mut session = cluster.session();
        session.values(
            "CREATE TABLE logins (process_id int); \
             CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO logins VALUES (pg_backend_pid()); END $$; \
             CREATE EVENT TRIGGER note ON login EXECUTE FUNCTION note()",
        );
        let mut later = [cluster.session(), cluster.session()];
        let mut came: Vec<_> = later.iter_mut().map(process_id).collect();
        came.sort();
        assert_eq!(session.values("SELECT process_id::text FROM logins ORDER BY 1"), came);
    });
}

#[test]
fn libraries_are_loaded_for_the_sessions_that_ask_for_them() {
    with_sessions(|cluster| {
        let mut session = cluster.session();
        let setting = "SHOW auto_explain.log_analyze";
        session.values("CREATE ROLE slow LOGIN; ALTER ROLE slow SET session_preload_libraries = 'auto_explain'");
        assert_eq!(failure(&mut session, setting), ["42704"]);
        let (mut slow, _) = cluster.connect(&[("user", "slow"), ("database", "postgres")]);
        assert_eq!(slow.values(setting), ["off"]);
    });
}

#[test]
fn statistics_are_collected() {
    with_one_session(|cluster| {
        let mut session = cluster.session();
        session.values("CREATE TABLE t AS SELECT n, n % 3 AS m FROM generate_series(1, 900) n; ANALYZE t");
        assert_eq!(session.values("SELECT n_distinct FROM pg_stats WHERE attname = 'm' AND tablename = 't'"), ["3"]);
        session.values("SELECT pg_stat_force_next_flush()");
        until(&mut session, "SELECT n_tup_ins = 900 FROM pg_stat_user_tables WHERE relname = 't'");
        assert_eq!(session.values("SELECT stats_reset FROM pg_stat_database WHERE datname = 'postgres'"), ["NULL"]);
    });
}

#[test]
fn wal_does_not_grow_with_what_was_written() {
    // Checkpoints are made at once, and not spread over minutes as in a directory.
    let settings = [("max_wal_size", "4MB"), ("min_wal_size", "2MB"), ("checkpoint_completion_target", "0")];
    let world = World::with(&settings);
    with_kinds(&world, &SHARED, |cluster| {
        let mut session = cluster.session();
        session.values("CREATE TABLE t (n int, filler text)");
        let started = session.values("SELECT pg_current_wal_lsn()").remove(0);
        for _ in 0..4 {
            session.values("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 8000) n");
            until(&mut session, "SELECT sum(size) <= 16 * 1024 * 1024 FROM pg_ls_waldir()");
        }
        let written = format!("SELECT pg_current_wal_lsn() - '{started}' > 30 * 1024 * 1024");
        assert_eq!(session.values(&written), ["t"]);
        assert_eq!(session.values("SELECT count(*) FROM t"), ["32000"]);
    });
}

#[test]
fn the_autovacuum_launcher_comes() {
    with_sessions(|cluster| {
        let mut session = cluster.session();
        until(&mut session, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'autovacuum launcher'");
    });
}

/// Makes `boom()`, which reads outside of its memory: an internal function that is declared with other types than it
/// has.
const BOOM: &str = "CREATE FUNCTION boom(int, int) RETURNS text LANGUAGE internal STRICT AS 'textcat'";
const CRASH: &str = "SELECT boom(2147483000, -1)";

#[test]
fn a_crash_ends_all_sessions_and_loses_nothing_that_was_committed() {
    with_sessions(|cluster| {
        for round in 1..=2 {
            let [mut crashing, mut other] = [cluster.session(), cluster.session()];
            if round == 1 {
                crashing.values(BOOM);
                crashing.values("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
            }
            other.values("BEGIN; INSERT INTO t SELECT 0 FROM generate_series(1, 1000)");
            crashing.values(&format!("INSERT INTO t VALUES (1000 + {round})"));
            assert_eq!(failure(&mut crashing, CRASH), ["XX000"]);
            assert_eq!(failure(&mut other, "COMMIT"), ["57P02"]);
            let rows = cluster.session().values("SELECT min(n), max(n), count(*) FROM t");
            assert_eq!(rows, ["1".to_owned(), (1000 + round).to_string(), (1000 + round).to_string()]);
        }
    });
}

#[test]
fn a_crash_of_an_isolated_session_ends_that_one_only() {
    let world = World::new();
    let isolated = world.cluster(Kind::Isolated);
    let [mut crashing, mut other] = [isolated.session(), isolated.session()];
    crashing.values(BOOM);
    assert_eq!(failure(&mut crashing, CRASH), ["XX000"]);
    assert_eq!(other.values("SELECT 1"), ["1"]);
}
