//! Clusters that are made from each other, changed and dropped in any order: each has what was committed in it and in
//! its origins, and nothing else.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    connection::Connections,
    databases::{Databases, Settings},
};
use support::{
    cache,
    local::{Connect, Local},
    power::{self, Dice},
    session::errors,
};

/// The first cluster, which has its table since after its beginning.
const FIRST: &str = "c1";
/// What every history begins with.
const TABLE: &str = "CREATE TABLE t (k int PRIMARY KEY, v int)";
/// All that the statements of [`statement`] change.
const CONTENTS: &str = "SELECT md5(string_agg(t::text, ',' ORDER BY k)), (SELECT string_agg(relname, ',' ORDER BY relname) \
    FROM pg_class WHERE relnamespace = 'public'::regnamespace) FROM t";
/// Ends the cluster's processes: an internal function that is declared with other types than it has.
const CRASH: &str = "CREATE OR REPLACE FUNCTION pg_temp.boom(int, int) RETURNS text LANGUAGE internal STRICT AS 'textcat'; \
    SELECT pg_temp.boom(2147483000, -1)";

/// A statement that changes the tables of a cluster.
fn statement(dice: &mut Dice) -> String {
    let (a, b) = (dice.below(2000), dice.below(100));
    match dice.below(8) {
        0 | 1 => format!("INSERT INTO t VALUES ({a}, {b}) ON CONFLICT (k) DO UPDATE SET v = excluded.v"),
        2 => format!("INSERT INTO t SELECT n, {b} FROM generate_series({a}, {a} + 500) n ON CONFLICT DO NOTHING"),
        3 => format!("UPDATE t SET v = v + {b} WHERE k < {a}"),
        4 => format!("DELETE FROM t WHERE k % 7 = {}", b % 7),
        5 => format!("CREATE TABLE IF NOT EXISTS extra{} AS SELECT count(*) FROM t", b % 5),
        6 => format!("ALTER TABLE t ADD COLUMN IF NOT EXISTS c{} int DEFAULT {b}", b % 4),
        _ => "VACUUM FULL t".to_owned(),
    }
}

/// The model of a cluster: the statements that were committed in it and in its origins.
type History = Vec<String>;

/// The clusters of a program, and what they should be.
struct Clusters {
    databases: Arc<Databases>,
    connections: Arc<Connections>,
    histories: BTreeMap<String, History>,
    /// How many statements of its history a cluster began with.
    beginnings: BTreeMap<String, usize>,
    /// Sessions with transactions that are never committed.
    open: BTreeMap<String, Vec<Local>>,
    isolated: (Local, History),
    made: u64,
}

impl Clusters {
    fn new() -> Self {
        let (databases, connections) = cache::administered(Settings::default());
        let isolated = Local::connect(&connections, Connect::default()).0;
        let (histories, beginnings, open) = Default::default();
        Self { databases, connections, histories, beginnings, open, isolated: (isolated, Vec::new()), made: 0 }
    }

    fn make(&mut self, origin: ClusterOrigin, history: History) {
        self.made += 1;
        let name = format!("c{}", self.made);
        let new = NewCluster { name: Some(name.clone()), origin, ..NewCluster::default() };
        self.databases.create_cluster(new).expect("a cluster");
        self.beginnings.insert(name.clone(), history.len());
        self.histories.insert(name, history);
    }

    /// Does something that the dice choose, and checks the cluster that it was done to; returns what it was.
    fn step(&mut self, dice: &mut Dice) -> String {
        let names: Vec<String> = self.histories.keys().cloned().collect();
        let name = names[usize::try_from(dice.below(names.len() as u64)).expect("a few")].clone();
        let connect = || Local::connect_to(&self.connections, &name);
        match dice.below(22) {
            0..=9 => {
                let sql = statement(dice);
                connect().values(&sql);
                self.history(&name).push(sql.clone());
                self.check(&name);
                format!("{name}: {sql}")
            }
            10 => {
                let sql = statement(dice);
                if !sql.starts_with("VACUUM") {
                    connect().values(&format!("BEGIN; {sql}; ROLLBACK"));
                }
                self.check(&name);
                format!("{name}: {sql}, rolled back")
            }
            11 => {
                let mut session = connect();
                // Of its own name: the second of two that create one table waits for the first.
                let number = self.open.get(&name).map_or(0, Vec::len);
                session.values(&format!("BEGIN; CREATE TABLE never{number} ()"));
                self.open.entry(name.clone()).or_default().push(session);
                format!("{name}: left open")
            }
            12..=15 => {
                let history = self.history(&name).clone();
                self.make(ClusterOrigin::Branch(name.clone()), history);
                let branch = format!("c{}", self.made);
                self.check(&branch);
                format!("{branch}: branch of {name}")
            }
            16 => {
                assert_eq!(errors(&connect().query(CRASH)), ["XX000"]);
                self.open.remove(&name);
                self.check(&name);
                format!("{name}: crashed")
            }
            17 if names.len() > 1 => {
                self.databases.drop_cluster(&name).expect("it is dropped");
                self.open.remove(&name);
                self.histories.remove(&name);
                format!("{name}: dropped")
            }
            18 | 19 if name != FIRST => {
                self.databases.reset_cluster(&name).expect("it is reset");
                self.open.remove(&name);
                let beginning = self.beginnings[&name];
                self.history(&name).truncate(beginning);
                self.check(&name);
                format!("{name}: reset")
            }
            20 => {
                self.isolated.0.reset();
                self.isolated.1.clear();
                "isolated: reset".to_owned()
            }
            _ => {
                let sql = if self.isolated.1.is_empty() { TABLE.to_owned() } else { statement(dice) };
                self.isolated.0.values(&sql);
                self.isolated.1.push(sql.clone());
                format!("isolated: {sql}")
            }
        }
    }

    fn history(&mut self, name: &str) -> &mut History {
        self.histories.get_mut(name).expect("it is there")
    }

    /// Compares a cluster with the model.
    fn check(&self, name: &str) {
        let contents = Local::connect_to(&self.connections, name).values(CONTENTS);
        assert_eq!(contents, self.modelled(&self.histories[name]), "{name}");
    }

    /// What a cluster of its own contains after these statements.
    fn modelled(&self, history: &History) -> Vec<String> {
        let mut fresh = Local::connect(&self.connections, Connect::default()).0;
        history.iter().for_each(|sql| drop(fresh.values(sql)));
        fresh.values(CONTENTS)
    }
}

/// `PGLITE_PORT_SEED` repeats a history.
#[test]
fn every_cluster_has_its_own_history() {
    let mut dice = Dice(power::seed() | 1);
    let mut clusters = Clusters::new();
    clusters.make(ClusterOrigin::Template("postgres".to_owned()), vec![TABLE.to_owned()]);
    Local::connect_to(&clusters.connections, FIRST).values(TABLE);
    for _ in 0..power::number("PGLITE_PORT_STEPS", 80) {
        // Shown if it fails.
        println!("{}", clusters.step(&mut dice));
    }
    for name in clusters.histories.keys() {
        clusters.check(name);
    }
    let (isolated, history) = &mut clusters.isolated;
    if !history.is_empty() {
        let contents = isolated.values(CONTENTS);
        let history = history.clone();
        assert_eq!(contents, clusters.modelled(&history));
    }
}

/// SQL that changes both tables alike, and notes it.
const TRANSFER: &str = "BEGIN; UPDATE one SET n = n + 1; INSERT INTO noted SELECT n FROM one; \
    UPDATE two SET n = n + 1; COMMIT";
/// One row; the second value says whether both tables and the notes agree.
const AGREES: &str = "SELECT one.n, one.n = two.n AND one.n = (SELECT count(*) FROM noted) \
    AND one.n = (SELECT max(n) FROM noted) FROM one, two";

#[test]
fn branches_that_are_made_on_many_threads_while_their_origin_is_written_to_have_whole_transactions() {
    let (databases, connections) = cache::administered(Settings::default());
    let named = |name: &str, origin| NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() };
    databases.create_cluster(named("origin", ClusterOrigin::Empty)).expect("a cluster");
    let connect = |name: &str| Local::connect_to(&connections, name);
    connect("origin").values(
        "CREATE TABLE one AS SELECT 0 AS n; CREATE TABLE two AS SELECT 0 AS n; CREATE TABLE noted (n int PRIMARY KEY)",
    );
    let branches = usize::try_from(power::number("PGLITE_PORT_BRANCHES", 200)).expect("it fits");
    let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut session = connect("origin");
                while !is_over.load(Ordering::SeqCst) {
                    session.values(TRANSFER);
                }
            });
        }
        let branching = [(); 8].map(|()| {
            scope.spawn(|| {
                let mut origin = connect("origin");
                let mut committed = || origin.values("SELECT n FROM one").remove(0).parse::<u64>().expect("a number");
                let each = std::iter::repeat_with(|| next.fetch_add(1, Ordering::SeqCst));
                for number in each.take_while(|number| *number < branches) {
                    let name = format!("branch{number}");
                    let before = committed();
                    let origin = ClusterOrigin::Branch("origin".to_owned());
                    databases.create_cluster(named(&name, origin)).expect("a cluster");
                    let after = committed();
                    let values = connect(&name).values(AGREES);
                    let has: u64 = values[0].parse().expect("a number");
                    assert!(values[1] == "t" && (before..=after).contains(&has), "{before} {values:?} {after}");
                    databases.drop_cluster(&name).expect("it is dropped");
                }
            })
        });
        let ended = branching.map(thread::ScopedJoinHandle::join);
        is_over.store(true, Ordering::SeqCst);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert_eq!(connect("origin").values(AGREES)[1], "t");
}
