//! Clusters that come and go leave nothing behind in the process. The only test of its file, because others in the same
//! process would change what it counts.

mod support;

use std::{
    process,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, Lifetime, NewCluster},
    connection::Connections,
    databases::{Databases, Settings},
};
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    power,
    process::{anonymous_memory, mappings, open_files, threads},
};

const MIB: u64 = 1 << 20;
/// How many come and go in the suite; `PGLITE_PORT_CLUSTERS` says another number, `make soak` 10,000.
const CLUSTERS: u64 = 200;
/// How many come and go before the first count: caches and the pools of allocators are full then.
const BEFORE: u64 = 40;
/// How many segments of shared memory of ended clusters are kept at most, each of which is a file descriptor.
const SEGMENTS: usize = 8;
/// How much more memory there may be afterwards, however many there were.
const TOLERANCE: u64 = 24 * MIB;

/// What the process has of the system.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory: u64,
    files: usize,
    threads: usize,
    mappings: usize,
}

impl Held {
    fn now() -> Self {
        let id = process::id();
        Self { memory: anonymous_memory(id), files: open_files(id), threads: threads(id), mappings: mappings(id) }
    }

    /// Whether there is no more than there was `before`. Allocators keep some memory and mappings.
    fn is_no_more_than(self, before: Self) -> bool {
        self.memory <= before.memory + TOLERANCE
            && self.files <= before.files + SEGMENTS
            && self.threads <= before.threads
            && self.mappings <= before.mappings + 32
    }
}

/// One cluster comes, is used, and goes.
fn come_and_go(databases: &Databases, connections: &Arc<Connections>, number: u64) {
    let passing = format!("passing{number}");
    let is_of_its_own = number.is_multiple_of(25);
    if is_of_its_own {
        Local::connect_to(connections, "origin").freeze(&passing);
    }
    let origin = match number % 3 {
        _ if is_of_its_own => ClusterOrigin::Template(passing.clone()),
        0 => ClusterOrigin::Template("postgres".to_owned()),
        _ => ClusterOrigin::Branch("origin".to_owned()),
    };
    if number.is_multiple_of(8) {
        // The next branches begin with other files.
        Local::connect_to(connections, "origin").values("UPDATE t SET a = a + 1");
    }
    let lifetime = if number % 4 == 1 { Lifetime::Connections } else { Lifetime::Dropped };
    let new = NewCluster { origin, lifetime, ..NewCluster::default() };
    let name = databases.create_cluster(new).expect("a cluster").name;
    let sessions = [(); 2].map(|()| {
        let mut session = Local::connect_to(connections, &name);
        session
            .values("BEGIN; CREATE TABLE mine AS SELECT n, repeat('x', 500) FROM generate_series(1, 200) n; ROLLBACK");
        session
    });
    if number % 5 == 2 {
        // As fast as its client goes on.
        let connect = Connect { cluster: Some(&name), ..Connect::default() };
        drop(Local::start(connections, connect));
    }
    if lifetime == Lifetime::Dropped {
        databases.drop_cluster(&name).expect("it is dropped");
    }
    drop(sessions);
    if is_of_its_own {
        databases.drop_template(&passing).expect("it is dropped");
    }
}

#[test]
fn clusters_come_and_go_and_memory_files_threads_and_mappings_are_where_they_were() {
    let (databases, connections) = cache::administered(Settings::default());
    let origin = NewCluster { name: Some("origin".to_owned()), ..NewCluster::default() };
    databases.create_cluster(origin).expect("a cluster");
    Local::connect_to(&connections, "origin").values("CREATE TABLE t AS SELECT 1 AS a");
    (0..BEFORE).for_each(|number| come_and_go(&databases, &connections, number));
    let before = Held::now();
    println!("before: {before:?}");
    let clusters = power::number("PGLITE_PORT_CLUSTERS", CLUSTERS);
    let started = Instant::now();
    for number in 1..=clusters {
        come_and_go(&databases, &connections, number);
        if number.is_multiple_of(500) {
            println!("{number} of {clusters} after {} s: {:?}", started.elapsed().as_secs(), Held::now());
        }
    }
    let deadline = Instant::now() + PATIENCE;
    // Threads end after their clients have heard of the end, and the system tells nobody of it.
    while !Held::now().is_no_more_than(before) {
        assert!(Instant::now() < deadline, "{:?} after {clusters} clusters, {before:?} before", Held::now());
        thread::sleep(Duration::from_millis(20));
    }
    println!("after: {:?}", Held::now());
    let left: Vec<_> = databases.clusters().into_iter().map(|cluster| cluster.name).collect();
    assert_eq!(left, ["default", "origin"]);
}
