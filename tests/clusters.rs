//! Clusters by name: made from nothing, from a template, or as a branch of another cluster; each takes several
//! sessions.

mod support;

use std::{
    sync::{Arc, Barrier, Mutex},
    thread,
};

use pglite_port::{
    administration::{
        Administration, ClusterOrigin, ClusterSummary, DEFAULT_CLUSTER, Lifetime, MadeCluster, NewCluster,
    },
    connection::Connections,
    databases::{Databases, Paths, Settings, SharedSettings},
    log::LogSink,
    protocol::error_response::ErrorResponse,
    session::Mode,
};
use support::{
    cache,
    local::{Connect, Local},
    session::errors,
    wire::Message,
};

/// The program's databases and connections, as in mode isolated.
fn open() -> (Arc<Databases>, Arc<Connections>) {
    cache::administered(Settings::default())
}

fn new(name: &str, origin: ClusterOrigin) -> NewCluster {
    NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() }
}

fn template(name: &str) -> ClusterOrigin {
    ClusterOrigin::Template(name.to_owned())
}

fn branch(name: &str) -> ClusterOrigin {
    ClusterOrigin::Branch(name.to_owned())
}

/// Makes a cluster of that name.
fn create(databases: &Databases, name: &str, origin: ClusterOrigin) -> MadeCluster {
    databases.create_cluster(new(name, origin)).expect("a cluster")
}

/// Makes a template of that name whose database `postgres` has the table `t`.
fn prepare(connections: &Arc<Connections>, name: &str) {
    let (mut session, _) = Local::connect(connections, Connect::default());
    session.values("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 3)");
    session.freeze(name);
}

fn names(databases: &Databases) -> Vec<String> {
    databases.clusters().into_iter().map(|cluster| cluster.name).collect()
}

fn summary(databases: &Databases, name: &str) -> ClusterSummary {
    databases.clusters().into_iter().find(|cluster| cluster.name == name).expect("it is listed")
}

/// Connects with these startup parameters besides the user; the answer to it.
fn start(connections: &Arc<Connections>, parameters: &[(&str, &str)]) -> (Local, Vec<Message>) {
    let parameters = &[&[("user", "postgres")], parameters].concat()[..];
    Local::connect(connections, Connect { parameters, ..Connect::default() })
}

#[test]
fn several_sessions_of_a_cluster_see_what_each_other_commit_and_other_clusters_do_not() {
    let (databases, connections) = open();
    for name in ["one", "two"] {
        create(&databases, name, ClusterOrigin::Empty);
    }
    let [mut a, mut b] = ["one", "one"].map(|name| Local::connect_to(&connections, name));
    let mut other = Local::connect_to(&connections, "two");
    a.values("CREATE TABLE t AS SELECT 1 AS a");
    assert_eq!(b.values("SELECT a FROM t"), ["1"]);
    assert_eq!(other.values("SELECT to_regclass('t') IS NULL"), ["t"]);
    let listed = summary(&databases, "one");
    assert_eq!((listed.connections, listed.origin, listed.lifetime), (2, ClusterOrigin::Empty, Lifetime::Dropped));
}

#[test]
fn a_cluster_of_a_template_has_its_database_and_nothing_of_other_clusters_of_it() {
    let (databases, connections) = open();
    prepare(&connections, "of_template");
    for name in ["one", "two"] {
        assert_eq!(create(&databases, name, template("of_template")).database, "postgres");
    }
    let [mut a, mut b, mut other] = ["one", "one", "two"].map(|name| Local::connect_to(&connections, name));
    a.values("BEGIN");
    a.values("INSERT INTO t VALUES (4)");
    assert_eq!(b.values("SELECT count(*) FROM t"), ["3"], "before the commit");
    a.values("COMMIT");
    assert_eq!(b.values("SELECT count(*) FROM t"), ["4"]);
    assert_eq!(other.values("SELECT count(*) FROM t"), ["3"]);
    assert_ne!(a.values("SELECT random()"), other.values("SELECT random()"));
}

#[test]
fn a_cluster_whose_changes_are_followed_has_branches_and_they_have_no_slots() {
    let further = vec![("wal_level".to_owned(), "logical".to_owned())];
    let shared = SharedSettings { further, ..SharedSettings::default() };
    let (databases, connections) = cache::administered(Settings { shared, ..Settings::default() });
    create(&databases, "origin", ClusterOrigin::Empty);
    let mut origin = Local::connect_to(&connections, "origin");
    origin.values("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    origin.values("SELECT pg_create_physical_replication_slot('w', true)");
    create(&databases, "branch", branch("origin"));
    let mut branched = Local::connect_to(&connections, "branch");
    assert_eq!(branched.values("SELECT count(*) FROM pg_replication_slots"), ["0"]);
    assert_eq!(origin.values("SELECT count(*) FROM pg_replication_slots"), ["2"]);
}

#[test]
fn a_branch_has_what_was_committed_and_goes_its_own_way() {
    let (databases, connections) = open();
    create(&databases, "origin", ClusterOrigin::Empty);
    let [mut a, mut b] = ["origin"; 2].map(|name| Local::connect_to(&connections, name));
    a.values("CREATE TABLE t AS SELECT 1 AS a");
    b.values("BEGIN");
    b.values("INSERT INTO t VALUES (2)");
    create(&databases, "branch", branch("origin"));
    let mut branched = Local::connect_to(&connections, "branch");
    assert_eq!(branched.values("SELECT a FROM t"), ["1"], "the transaction is still open");
    branched.values("INSERT INTO t VALUES (3)");
    b.values("COMMIT");
    assert_eq!(a.values("SELECT a FROM t ORDER BY a"), ["1", "2"]);
    assert_eq!(branched.values("SELECT a FROM t ORDER BY a"), ["1", "3"]);
    create(&databases, "branch of a branch", branch("branch"));
    let mut deeper = Local::connect_to(&connections, "branch of a branch");
    assert_eq!(deeper.values("SELECT a FROM t ORDER BY a"), ["1", "3"]);
    databases.drop_cluster("branch").expect("it is dropped");
    assert_eq!(deeper.values("SELECT a FROM t ORDER BY a"), ["1", "3"], "its origin is gone");
}

#[test]
fn a_startup_packet_names_its_cluster_in_every_way_that_postgresql_takes_settings() {
    let (databases, connections) = open();
    create(&databases, "by name", ClusterOrigin::Empty);
    for parameters in [
        &[("pglite.cluster", "by name")][..],
        &[("PgLite.Cluster", "by name"), ("options", "-c pglite.cluster=other")],
        &[("options", "-c pglite.cluster=by\\ name")],
        &[("options", "-c work_mem=5MB --pglite.cluster=by\\ name")],
        &[("options", "-cpglite.cluster=other -cpglite.cluster=by\\ name")],
    ] {
        let (mut session, _) = start(&connections, parameters);
        assert_eq!(session.values("SHOW pglite.cluster"), ["by name"], "{parameters:?}");
        assert_eq!(summary(&databases, "by name").connections, 1, "{parameters:?}");
    }
}

#[test]
fn the_cluster_of_an_opening_precedes_that_of_the_startup_packet_and_show_says_it() {
    let (databases, connections) = open();
    create(&databases, "one", ClusterOrigin::Empty);
    let parameters = &[("user", "postgres"), ("pglite.cluster", "two")];
    let connect = Connect { cluster: Some("one"), parameters, ..Connect::default() };
    let (mut session, _) = Local::connect(&connections, connect);
    assert_eq!(session.values("SHOW pglite.cluster"), ["one"]);
}

#[test]
fn a_cluster_that_does_not_exist_is_an_error_that_says_what_to_do() {
    let (databases, connections) = open();
    let (_, messages) = start(&connections, &[("pglite.cluster", "nowhere")]);
    assert_eq!(errors(&messages), ["3D000"]);
    let fields = messages[0].fields();
    assert_eq!(fields[&'M'], "cluster \"nowhere\" does not exist");
    assert!(fields[&'H'].contains("create_cluster"), "{fields:?}");
    let is_unknown = |report: ErrorResponse| (report.code, report.hint.is_some());
    assert_eq!(is_unknown(databases.drop_cluster("nowhere").expect_err("unknown")), ("3D000", true));
    for origin in [template("nowhere"), branch("nowhere")] {
        let report = databases.create_cluster(new("one", origin)).expect_err("its origin is unknown");
        assert_eq!(is_unknown(report), ("3D000", true));
        assert_eq!(names(&databases), [DEFAULT_CLUSTER], "the name is free again");
    }
}

#[test]
fn names_are_unique_and_the_program_finds_some_if_none_is_given() {
    let (databases, _) = open();
    let named = create(&databases, "cluster-2", ClusterOrigin::Empty).name;
    let report = databases.create_cluster(new("cluster-2", ClusterOrigin::Empty)).expect_err("it is taken");
    assert_eq!((report.code, &report.message[..]), ("42710", "cluster \"cluster-2\" already exists"));
    let found = [(); 2].map(|()| databases.create_cluster(NewCluster::default()).expect("a cluster").name);
    assert_eq!(names(&databases), [&found[0], &named, &found[1], DEFAULT_CLUSTER]);
    for name in ["", "two\nlines", &"x".repeat(64)] {
        let report = databases.create_cluster(new(name, ClusterOrigin::Empty)).expect_err("no name");
        assert_eq!(report.code, "22023", "{name:?}");
    }
}

#[test]
fn dropping_a_cluster_ends_its_sessions_and_no_others() {
    let (databases, connections) = open();
    for name in ["dropped", "stays"] {
        create(&databases, name, ClusterOrigin::Empty);
    }
    let [mut idle, mut busy] = ["dropped"; 2].map(|name| Local::connect_to(&connections, name));
    let mut other = Local::connect_to(&connections, "stays");
    busy.send(&support::wire::query("SELECT pg_sleep(1000)"));
    // The other session sees the sleeping one, so that it has begun.
    while idle.values("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") != ["1"] {}
    databases.drop_cluster("dropped").expect("it is dropped");
    for session in [&mut idle, &mut busy] {
        assert_eq!(errors(&session.until_ready()), ["57P01"]);
    }
    assert_eq!(names(&databases), [DEFAULT_CLUSTER, "stays"]);
    assert_eq!(other.values("SELECT 1"), ["1"]);
    let report = databases.drop_cluster("dropped").expect_err("it is gone");
    assert_eq!(report.code, "3D000");
    assert_eq!(databases.drop_cluster(DEFAULT_CLUSTER).expect_err("the default cluster stays").code, "55006");
}

#[test]
fn clusters_are_made_and_dropped_while_connections_to_them_come_and_go() {
    let (databases, connections) = open();
    let rounds = 6;
    let together = Barrier::new(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                together.wait();
                create(&databases, "fleeting", ClusterOrigin::Empty);
                databases.drop_cluster("fleeting").expect("it is dropped");
                together.wait();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    together.wait();
                    for _ in 0..5 {
                        let connect = Connect { cluster: Some("fleeting"), ..Connect::default() };
                        let (_session, messages) = Local::connect(&connections, connect);
                        let errors = errors(&messages);
                        let is_expected = |error: &String| ["3D000", "57P01", "57P03"].contains(&&error[..]);
                        assert!(errors.iter().all(is_expected), "{errors:?}");
                    }
                    together.wait();
                }
            });
        }
    });
    assert_eq!(names(&databases), [DEFAULT_CLUSTER]);
}

#[test]
fn a_cluster_that_lives_as_long_as_its_connections_ends_with_the_last_one() {
    let (databases, connections) = open();
    let fleeting = NewCluster { lifetime: Lifetime::Connections, ..new("fleeting", ClusterOrigin::Empty) };
    databases.create_cluster(fleeting).expect("a cluster");
    assert_eq!(names(&databases), [DEFAULT_CLUSTER, "fleeting"], "it waits for its first connection");
    let [mut first, second] = ["fleeting"; 2].map(|name| Local::connect_to(&connections, name));
    drop(second);
    assert_eq!(first.values("SELECT 1"), ["1"]);
    drop(first);
    assert_eq!(names(&databases), [DEFAULT_CLUSTER]);
}

#[test]
fn a_cluster_in_a_directory_is_there_again_after_it_was_dropped() {
    let (databases, connections) = open();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let durable = |name| NewCluster { data_directory: Some(path.clone()), ..new(name, ClusterOrigin::Empty) };
    databases.create_cluster(durable("first")).expect("a cluster");
    let report = databases.create_cluster(durable("second")).expect_err("it has an owner");
    assert!(report.message.contains("in use"), "{report:?}");
    Local::connect_to(&connections, "first").values("CREATE TABLE t AS SELECT 1 AS a");
    create(&databases, "in memory", branch("first"));
    assert_eq!(Local::connect_to(&connections, "in memory").values("SELECT a FROM t"), ["1"]);
    databases.drop_cluster("first").expect("it is dropped");
    databases.create_cluster(durable("again")).expect("a cluster");
    assert_eq!(Local::connect_to(&connections, "again").values("SELECT a FROM t"), ["1"]);
    assert_eq!(summary(&databases, "again").data_directory, Some(path.clone()));
}

#[test]
fn a_branch_can_be_kept_in_a_directory_and_is_a_cluster_of_its_own() {
    let (databases, connections) = open();
    let directory = tempfile::tempdir().expect("a directory");
    create(&databases, "origin", ClusterOrigin::Empty);
    let mut origin = Local::connect_to(&connections, "origin");
    origin.values("CREATE TABLE t AS SELECT 1 AS a");
    let data_directory = Some(directory.path().join("data"));
    databases.create_cluster(NewCluster { data_directory, ..new("kept", branch("origin")) }).expect("a cluster");
    let mut kept = Local::connect_to(&connections, "kept");
    assert_eq!(kept.values("SELECT a FROM t"), ["1"]);
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(kept.values(identifier), origin.values(identifier));
}

#[test]
fn settings_of_a_cluster_apply_to_it_and_wrong_ones_are_refused() {
    let (databases, connections) = open();
    let with = |name, setting: (&str, &str)| NewCluster {
        settings: vec![(setting.0.to_owned(), setting.1.to_owned())],
        ..new(name, ClusterOrigin::Empty)
    };
    databases.create_cluster(with("set", ("max_connections", "7"))).expect("a cluster");
    assert_eq!(Local::connect_to(&connections, "set").values("SHOW max_connections"), ["7"]);
    for setting in [("io_method", "worker"), ("no_such_setting", "1")] {
        databases.create_cluster(with("wrong", setting)).expect_err("it is refused");
    }
    assert_eq!(names(&databases), [DEFAULT_CLUSTER, "set"]);
}

#[test]
fn connections_of_other_modes_are_what_they_were() {
    let (databases, connections) = open();
    let (mut isolated, _) = Local::connect(&connections, Connect::default());
    let (mut shared, _) = Local::connect(&connections, Connect { mode: Mode::Shared, ..Connect::default() });
    let mut default = Local::connect_to(&connections, DEFAULT_CLUSTER);
    shared.values("CREATE TABLE t AS SELECT 1 AS a");
    assert_eq!(default.values("SELECT a FROM t"), ["1"]);
    assert_eq!(isolated.values("SELECT to_regclass('t') IS NULL"), ["t"]);
    assert_eq!(summary(&databases, DEFAULT_CLUSTER).lifetime, Lifetime::Program);
}

#[test]
fn a_cluster_is_put_back_to_its_beginning_and_its_sessions_end() {
    let (databases, connections) = open();
    prepare(&connections, "of_reset");
    create(&databases, "of a template", template("of_reset"));
    create(&databases, "a branch", branch("of a template"));
    create(&databases, "empty", ClusterOrigin::Empty);
    for name in ["of a template", "a branch"] {
        for _ in 0..2 {
            let mut session = Local::connect_to(&connections, name);
            assert_eq!(session.values("SELECT count(*) FROM t"), ["3"], "{name}");
            session.values("INSERT INTO t VALUES (4); CREATE TABLE u AS SELECT 1");
            databases.reset_cluster(name).expect("it is reset");
            assert_eq!(errors(&session.until_ready()), ["57P01"]);
        }
    }
    for (name, code) in [("empty", "0A000"), (DEFAULT_CLUSTER, "0A000"), ("nowhere", "3D000")] {
        assert_eq!(databases.reset_cluster(name).expect_err("it is refused").code, code);
    }
}

#[test]
fn branches_share_a_snapshot_until_their_origin_changes() {
    let (databases, connections) = open();
    create(&databases, "origin", ClusterOrigin::Empty);
    let mut origin = Local::connect_to(&connections, "origin");
    origin.values("CREATE TABLE t (a int)");
    for round in 1..=3 {
        origin.values(&format!("INSERT INTO t VALUES ({round})"));
        for name in ["one", "two"] {
            create(&databases, name, branch("origin"));
            let mut branched = Local::connect_to(&connections, name);
            assert_eq!(branched.values("SELECT count(*) FROM t"), [round.to_string()]);
            branched.values("DELETE FROM t");
        }
        // This changes nothing that a file has, and has its turns.
        assert_eq!(origin.values("SELECT count(*) FROM t"), [round.to_string()]);
        for name in ["one", "two"] {
            databases.drop_cluster(name).expect("it is dropped");
        }
    }
    // An asynchronous commit may not be in a file yet.
    origin.values("SET synchronous_commit = off; INSERT INTO t VALUES (4)");
    create(&databases, "one", branch("origin"));
    assert_eq!(Local::connect_to(&connections, "one").values("SELECT count(*) FROM t"), ["4"]);
}

#[test]
fn copies_are_kept_ready_of_clusters_that_branches_are_made_of() {
    let (databases, connections) = cache::administered(Settings { warm: 2, ..Settings::default() });
    prepare(&connections, "of_warm");
    let ready = || databases.figures().iter().find(|figure| figure.metric.name == "warm").expect("it is counted").value;
    // Those of the template `postgres`, of which this connection is a clone.
    let (_isolated, _) = Local::connect(&connections, Connect::default());
    while ready() < 2 {
        thread::yield_now();
    }
    for round in 0..4 {
        let name = format!("next-{round}");
        create(&databases, &name, template("of_warm"));
        let mut session = Local::connect_to(&connections, &name);
        session.values(&format!("INSERT INTO t VALUES ({})", 10 + round));
        assert_eq!(session.values("SELECT count(*) FROM t"), ["4"], "it shares nothing with the one before");
        while ready() < 4 {
            thread::yield_now();
        }
    }
}

#[test]
fn a_branch_has_all_that_was_committed_also_when_a_template_was_frozen_since() {
    let (databases, connections) = open();
    create(&databases, "origin", ClusterOrigin::Empty);
    let mut origin = Local::connect_to(&connections, "origin");
    origin.values("CREATE TABLE t AS SELECT 1 AS a");
    create(&databases, "before", branch("origin"));
    origin.values("INSERT INTO t VALUES (2)");
    origin.freeze("frozen_meanwhile");
    create(&databases, "after", branch("origin"));
    assert_eq!(Local::connect_to(&connections, "after").values("SELECT a FROM t ORDER BY a"), ["1", "2"]);
}

#[test]
fn a_branch_has_nothing_that_its_origin_does_not_have() {
    let (databases, connections) = open();
    create(&databases, "origin", ClusterOrigin::Empty);
    let mut origin = Local::connect_to(&connections, "origin");
    origin.values("CREATE TABLE logins (database name)");
    origin.values(
        "CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO logins VALUES (current_database()); END $$",
    );
    origin.values("CREATE EVENT TRIGGER note ON login EXECUTE FUNCTION note()");
    origin.values("ALTER EVENT TRIGGER note ENABLE ALWAYS");
    drop(Local::connect_to(&connections, "origin"));
    assert_eq!(origin.values("SELECT count(*) FROM logins"), ["1"]);
    create(&databases, "branch", branch("origin"));
    let mut branched = Local::connect_to(&connections, "branch");
    assert_eq!(branched.values("SELECT count(*) FROM logins"), ["2"], "that of the origin, and its own");
}

#[test]
fn clusters_can_be_branches_of_clusters_that_had_each_others_names() {
    let (databases, connections) = open();
    create(&databases, "one", ClusterOrigin::Empty);
    Local::connect_to(&connections, "one").values("CREATE TABLE t AS SELECT 1 AS a");
    create(&databases, "two", branch("one"));
    databases.drop_cluster("one").expect("it is dropped");
    assert_eq!(create(&databases, "one", branch("two")).database, "postgres");
    assert_eq!(Local::connect_to(&connections, "one").values("SELECT a FROM t"), ["1"]);
}

#[test]
fn a_cluster_is_no_branch_of_itself() {
    let (databases, _) = open();
    let report = databases.create_cluster(new("one", branch("one"))).expect_err("there is no origin");
    assert_eq!((report.code, &report.message[..]), ("3D000", "cluster \"one\" does not exist"));
    create(&databases, "one", ClusterOrigin::Empty);
    let report = databases.create_cluster(new("one", branch("one"))).expect_err("it exists");
    assert_eq!(report.code, "42710");
}

#[test]
fn two_clusters_that_are_made_as_branches_of_each_other_at_once_are_refused() {
    let (databases, _) = open();
    let together = Barrier::new(2);
    for _ in 0..50 {
        thread::scope(|scope| {
            for (name, origin) in [("one", "two"), ("two", "one")] {
                let (databases, together) = (&databases, &together);
                scope.spawn(move || {
                    together.wait();
                    let report = databases.create_cluster(new(name, branch(origin))).expect_err("no origin");
                    assert_eq!(report.code, "3D000");
                });
            }
        });
    }
}

#[test]
fn every_connection_to_a_cluster_that_is_being_made_gets_that_one_cluster() {
    let (databases, connections) = open();
    prepare(&connections, "for_all");
    for round in 0..6 {
        let name = &format!("made{round}")[..];
        let together = Barrier::new(5);
        let met = thread::scope(|scope| {
            let connecting = [(); 4].map(|()| {
                scope.spawn(|| {
                    together.wait();
                    loop {
                        let connect = Connect { cluster: Some(name), ..Connect::default() };
                        let (mut session, messages) = Local::connect(&connections, connect);
                        if errors(&messages).is_empty() {
                            session.values("INSERT INTO t SELECT coalesce(max(a), 0) + 100 + pg_backend_pid() FROM t");
                            return session;
                        }
                    }
                })
            });
            together.wait();
            create(&databases, name, template("for_all"));
            connecting.map(|thread| thread.join().expect("no panic"))
        });
        let mut seen = Local::connect_to(&connections, name);
        assert_eq!(seen.values("SELECT count(*) FROM t"), ["7"], "{round}");
        assert_eq!(summary(&databases, name).connections, 5);
        drop(met);
    }
}

#[test]
fn lists_that_are_made_at_once_miss_no_cluster_that_runs() {
    let (databases, connections) = open();
    create(&databases, "busy", ClusterOrigin::Empty);
    let _stays = Local::connect_to(&connections, "busy");
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    assert_eq!(summary(&databases, "busy").connections, 1);
                }
            });
        }
    });
}

#[test]
fn a_directory_is_free_again_as_soon_as_a_cluster_in_it_was_refused_or_dropped() {
    let (databases, _) = open();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let durable =
        |settings| NewCluster { data_directory: Some(path.clone()), settings, ..new("durable", ClusterOrigin::Empty) };
    for _ in 0..3 {
        let wrong = vec![("no_such_setting".to_owned(), "1".to_owned())];
        let report = databases.create_cluster(durable(wrong)).expect_err("it is refused");
        assert!(report.message.contains("no_such_setting"), "{report:?}");
        databases.create_cluster(durable(Vec::new())).expect("a cluster");
        databases.drop_cluster("durable").expect("it is dropped");
    }
}

#[test]
fn a_directory_has_one_cluster_by_whatever_path_it_is_named() {
    let (databases, _) = open();
    let directory = tempfile::tempdir().expect("a directory");
    let (path, link) = (directory.path().join("data"), directory.path().join("link"));
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let durable = |name, path: &std::path::Path| NewCluster {
        data_directory: Some(path.to_owned()),
        ..new(name, ClusterOrigin::Empty)
    };
    databases.create_cluster(durable("first", &path)).expect("a cluster");
    for other in [&link, &directory.path().join("link/../data")] {
        let report = databases.create_cluster(durable("second", other)).expect_err("it has an owner");
        assert!(report.message.contains("in use"), "{report:?}");
    }
}

#[test]
fn a_branch_does_not_take_over_the_cluster_that_is_in_its_directory() {
    let (databases, connections) = open();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let kept = |name, origin| NewCluster { data_directory: Some(path.clone()), ..new(name, origin) };
    databases.create_cluster(kept("old", ClusterOrigin::Empty)).expect("a cluster");
    Local::connect_to(&connections, "old").values("CREATE TABLE old AS SELECT 1 AS a");
    databases.drop_cluster("old").expect("it is dropped");
    create(&databases, "origin", ClusterOrigin::Empty);
    let report = databases.create_cluster(kept("branch", branch("origin"))).expect_err("the directory is not empty");
    assert_eq!(report.code, "55000", "{report:?}");
    databases.create_cluster(kept("again", ClusterOrigin::Empty)).expect("a cluster");
    assert_eq!(Local::connect_to(&connections, "again").values("SELECT a FROM old"), ["1"]);
}

/// As [`open`], and the lines that PostgreSQL logs, but for those of sessions.
fn open_with_log() -> (Arc<Databases>, Arc<Connections>, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::<Mutex<Vec<String>>>::default();
    let log = {
        let lines = lines.clone();
        LogSink::new(move |_, _, _, text| lines.lock().expect("no panic").push(text.to_owned()))
    };
    let paths = Paths { cache: Some(cache::shared()), ..Paths::default() };
    let opened = Databases::open(&paths, Mode::Isolated, Settings::default(), log).expect("databases");
    let databases = Arc::new(opened);
    (databases.clone(), Arc::new(Connections::new(databases)), lines)
}

fn assert_none_contains(lines: &Mutex<Vec<String>>, text: &str) {
    let lines = lines.lock().expect("no panic");
    assert!(!lines.iter().any(|line| line.contains(text)), "{lines:?}");
}

#[test]
fn a_cluster_that_is_dropped_is_not_started_again_while_a_session_does_not_end() {
    let (databases, connections, lines) = open_with_log();
    create(&databases, "dropped", ClusterOrigin::Empty);
    let mut busy = Local::connect_to(&connections, "dropped");
    busy.values("CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'now'; RETURN 1; END $$");
    // PostgreSQL checks for interrupts between rows, and not within one.
    let hashes = vec!["sha512(x)"; 60].join(", ");
    let row = "(SELECT repeat('x', 20000000)::bytea AS x OFFSET 0) one";
    busy.send(&support::wire::query(&format!("SELECT tell(), {hashes} FROM {row}")));
    busy.wait_for_answer();
    // Takes longer than the way from the notice to the row.
    create(&databases, "other", ClusterOrigin::Empty);
    databases.drop_cluster("dropped").expect("it is dropped");
    assert!(!errors(&busy.until_ready()).is_empty());
    assert_none_contains(&lines, "not properly shut down");
}
