//! Branches of a cluster in a directory: its files are copied while its sessions go on.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, DEFAULT_CLUSTER, NewCluster},
    connection::Connections,
    databases::{Databases, SharedSettings},
};
use support::{
    local::Local,
    power::{self, Memory, Operation},
};

fn open(storage: &Memory) -> (Arc<Databases>, Arc<Connections>) {
    let further = vec![("autovacuum".to_owned(), "off".to_owned())];
    power::administered(storage, SharedSettings { further, ..SharedSettings::default() }).expect("a cluster")
}

fn branch(databases: &Databases, name: &str) {
    let origin = ClusterOrigin::Branch(DEFAULT_CLUSTER.to_owned());
    let new = NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() };
    databases.create_cluster(new).expect("a branch");
}

fn connect(connections: &Arc<Connections>) -> Local {
    Local::connect_to(connections, DEFAULT_CLUSTER)
}

/// How long a session that does not have to wait may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Makes a branch, and has a session commit while a file of the origin's databases is being read for it.
fn commits_meanwhile(
    storage: &Memory,
    databases: &Arc<Databases>,
    mut session: Local,
    name: &'static str,
    insert: &'static str,
) -> Local {
    storage.hold(Operation::Read, b"base");
    let making = thread::spawn({
        let databases = databases.clone();
        move || branch(&databases, name)
    });
    storage.wait_until_one_is_held();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        session.values(insert);
        done.send(session)
    });
    let session = is_done.recv_timeout(PATIENCE);
    storage.release();
    making.join().expect("no panic");
    session.expect("it commits while the files are read")
}

#[test]
fn sessions_commit_while_the_files_are_copied_and_the_branch_has_it() {
    let storage = Memory::default();
    let (databases, connections) = open(&storage);
    let mut session = connect(&connections);
    session.values("create table t as select n from generate_series(1, 1000) n");
    // From now on it reads nothing from the disk.
    session.values("insert into t values (0)");
    let mut session = commits_meanwhile(&storage, &databases, session, "first", "insert into t values (-1)");
    let count = "select count(*), min(n) from t";
    assert_eq!(Local::connect_to(&connections, "first").values(count), ["1002", "-1"]);
    // The next branch reads a table that was made since, and one that was cut.
    session.values("create table u as select repeat('x', 500) from generate_series(1, 5000)");
    session.values("delete from t where n > 500");
    session.values("vacuum t");
    let session = commits_meanwhile(&storage, &databases, session, "second", "insert into t values (-2)");
    let mut second = Local::connect_to(&connections, "second");
    assert_eq!(second.values(count), ["503", "-2"]);
    assert_eq!(second.values("select count(*) from u"), ["5000"]);
    drop((session, second));
    connections.shut_down();
}

#[test]
fn a_second_branch_reads_only_what_has_changed() {
    let storage = Memory::default();
    let (databases, connections) = open(&storage);
    let mut session = connect(&connections);
    session.values("create table t as select n, repeat('x', 500) filler from generate_series(1, 50000) n");
    session.values("create index on t (n)");
    // Later it would write hints into all pages.
    session.values("vacuum freeze t");
    let mut reads_for = |name: &str, sum: u32| {
        let before = storage.count(Operation::Read);
        branch(&databases, name);
        let reads = storage.count(Operation::Read) - before;
        let mut branch = Local::connect_to(&connections, name);
        assert_eq!(branch.values("select sum(n), count(*) from t where n < 11"), [sum.to_string(), "10".to_owned()]);
        session.values("update t set n = 0 where n = 1");
        reads
    };
    let (first, second) = (reads_for("first", 55), reads_for("second", 54));
    assert!(first > storage.files() / 2, "the first one reads all files: {first} reads");
    assert!(second < first / 4, "{first} and {second} reads");
    assert_eq!(Local::connect_to(&connections, "first").values("select sum(n) from t where n < 11"), ["55"]);
    drop(session);
    connections.shut_down();
}

#[test]
fn branches_have_all_that_was_committed_and_no_half_of_a_transaction() {
    let storage = Memory::default();
    let (databases, connections) = open(&storage);
    let mut session = connect(&connections);
    session.values("create table a (id int primary key, n bigint); create table b (id int primary key, n bigint)");
    session.values("insert into a select n, 0 from generate_series(1, 2) n; insert into b select * from a");
    let (committed, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (1..=2)
        .map(|id| {
            let (committed, ends, mut session) = (committed.clone(), ends.clone(), connect(&connections));
            thread::spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    session.values(&format!(
                        "begin; update a set n = n + 1 where id = {id}; update b set n = n + 1 where id = {id}; commit"
                    ));
                    committed.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for number in 0..8 {
        let name = format!("branch-{number}");
        let at_least = committed.load(Ordering::SeqCst);
        branch(&databases, &name);
        let mut branch = Local::connect_to(&connections, &name);
        let sums = branch.values("select (select sum(n) from a), (select sum(n) from b)");
        assert_eq!(sums[0], sums[1], "of each transaction there is all or nothing");
        let found: u64 = sums[0].parse().expect("a number");
        assert!(found >= at_least, "{found} of {at_least} transactions that were committed before");
        branch.values("vacuum");
        branch.values("update a set n = 0");
        drop(branch);
        databases.drop_cluster(&name).expect("it is dropped");
    }
    ends.store(true, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
    let sum = session.values("select sum(n) from a");
    assert_eq!(sum, [committed.load(Ordering::SeqCst).to_string()], "branches change nothing in their origin");
    drop(session);
    connections.shut_down();
}
