//! Clusters that end or are reset while connections come and go.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, DEFAULT_CLUSTER, Lifetime, NewCluster},
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use support::{
    cache,
    local::{Connect, Local},
    session::errors,
};

/// The program with a cluster `copy` of the template `postgres`.
fn open(lifetime: Lifetime) -> (Arc<Databases>, Arc<Connections>) {
    open_with_log(lifetime, LogSink::to_own_log())
}

/// As [`open`]; what is not said by sessions goes to `log`.
fn open_with_log(lifetime: Lifetime, log: LogSink) -> (Arc<Databases>, Arc<Connections>) {
    let paths = Paths { cache: Some(cache::shared()), ..Paths::default() };
    let databases = Arc::new(Databases::open(&paths, Mode::Isolated, Settings::default(), log).expect("databases"));
    let connections = Arc::new(Connections::new(databases.clone()));
    let origin = ClusterOrigin::Template("postgres".to_owned());
    let new = NewCluster { name: Some("copy".to_owned()), origin, lifetime, ..NewCluster::default() };
    databases.create_cluster(new).expect("a cluster");
    (databases, connections)
}

fn names(databases: &Databases) -> Vec<String> {
    databases.clusters().into_iter().map(|cluster| cluster.name).collect()
}

#[test]
fn a_client_that_connects_while_its_cluster_is_reset_is_let_in_or_ended_but_never_told_that_there_is_none() {
    let (databases, connections) = open(Lifetime::Dropped);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let connecting = [(); 3].map(|()| {
            scope.spawn(|| {
                let connect = Connect { cluster: Some("copy"), ..Connect::default() };
                while !is_over.load(Ordering::SeqCst) {
                    let errors = errors(&Local::connect(&connections, connect).1);
                    assert!(errors.iter().all(|code| code.starts_with("57P0")), "{errors:?}");
                }
            })
        });
        for _ in 0..8 {
            databases.reset_cluster("copy").expect("it is reset");
            // Others connect meanwhile.
            Local::connect_to(&connections, "copy");
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(connecting.map(thread::ScopedJoinHandle::join).iter().all(Result::is_ok));
    });
}

#[test]
fn a_cluster_that_lives_as_long_as_its_connections_outlives_a_reset() {
    let (databases, connections) = open(Lifetime::Connections);
    let mut before = Local::connect_to(&connections, "copy");
    before.values("CREATE TABLE t ()");
    databases.reset_cluster("copy").expect("it is reset");
    assert_eq!(errors(&before.until_ready()), ["57P01"]);
    drop(before);
    let mut after = Local::connect_to(&connections, "copy");
    assert_eq!(after.values("SELECT to_regclass('t') IS NULL"), ["t"]);
    drop(after);
    assert_eq!(names(&databases), [DEFAULT_CLUSTER], "it ends with its last connection");
}

#[test]
fn a_cluster_that_lives_as_long_as_its_connections_ends_also_when_the_last_one_panics() {
    let (databases, connections) = open(Lifetime::Connections);
    let log = LogSink::new(|_, _, _, text| assert!(!text.contains("too much"), "the log has it"));
    let connect = Connect { cluster: Some("copy"), ..Connect::default() };
    let mut session = Local::start_with_log(&connections, connect, log);
    assert_eq!(errors(&session.until_ready()), [""; 0]);
    session.send(&support::wire::query("DO $$ BEGIN RAISE LOG 'too much'; END $$"));
    let report = session.report();
    assert!(report.message.contains("panicked"), "{report:?}");
    assert_eq!(names(&databases), [DEFAULT_CLUSTER]);
}

#[test]
fn a_client_that_was_not_let_in_changes_nothing_for_branches() {
    let lines = Arc::<Mutex<Vec<String>>>::default();
    let log = {
        let lines = lines.clone();
        LogSink::new(move |_, _, _, text| lines.lock().expect("no panic").push(text.to_owned()))
    };
    let (databases, connections) = open_with_log(Lifetime::Dropped, log);
    for parameters in
        [[("user", "missing"), ("database", "template1")], [("user", "postgres"), ("database", "missing")]]
    {
        let connect = Connect { cluster: Some("copy"), parameters: &parameters, ..Connect::default() };
        assert_eq!(errors(&Local::connect(&connections, connect).1).len(), 1, "{parameters:?}");
    }
    let origin = ClusterOrigin::Branch("copy".to_owned());
    databases.create_cluster(NewCluster { origin, ..NewCluster::default() }).expect("a cluster");
    // A session in the database of the last client has filled the caches of the branch.
    let lines = lines.lock().expect("no panic");
    assert!(!lines.iter().any(|line| line.contains("missing")), "{lines:?}");
}

#[test]
fn a_cluster_was_started_when_it_was_made_and_not_when_what_it_is_a_copy_of_was() {
    let (databases, connections) = open(Lifetime::Dropped);
    let mut session = Local::connect_to(&connections, "copy");
    let created = |name: &str, origin| NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() };
    let origins = [ClusterOrigin::Template("postgres".to_owned()), ClusterOrigin::Branch("copy".to_owned())];
    // The first branch makes the snapshot.
    databases.create_cluster(created("first", origins[1].clone())).expect("a cluster");
    for (name, origin) in ["of a template", "of a cluster"].into_iter().zip(origins) {
        for round in ["made", "reset"] {
            let before = session.values("SELECT clock_timestamp()").remove(0);
            match round {
                "made" => drop(databases.create_cluster(created(name, origin.clone())).expect("a cluster")),
                _ => databases.reset_cluster(name).expect("it is reset"),
            }
            let mut other = Local::connect_to(&connections, name);
            for time in ["pg_postmaster_start_time()", "pg_conf_load_time()"] {
                let sql = format!("SELECT {time} BETWEEN '{before}' AND clock_timestamp()");
                assert_eq!(other.values(&sql), ["t"], "{name} {round}: {time}");
            }
        }
    }
    session.values("SELECT pg_reload_conf()");
    let is_loaded = "SELECT pg_conf_load_time() > pg_postmaster_start_time()";
    while Local::connect_to(&connections, "copy").values(is_loaded) != ["t"] {}
}
