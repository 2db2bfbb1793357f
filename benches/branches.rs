//! The cost of clusters that are copies of a template, and of branches of a running cluster.
//!
//! Clients are in this process, so that sockets and frames are not measured, but the sessions' threads are.

#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, DEFAULT_CLUSTER, NewCluster},
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use rows::{Aim, Figure, Row, Unit, leave};
use support::{local::Local, process};

/// The number of measurements of short operations.
const ROUNDS: usize = 200;
/// The number of branches for measurements of memory.
const BRANCHES: u32 = 20;
/// The number of measurements with a large cluster.
const LARGE_ROUNDS: usize = 10;
/// Rows of a kilobyte, so that the table has about a gigabyte.
const ROWS: u32 = 900_000;
/// About ten megabytes of them.
const CHANGED: u32 = 9_000;
/// Branches of branches.
const DEPTH: u32 = 20;

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut rows = short();
    rows.extend(large());
    rows.push(deep());
    leave("branches", &rows);
}

/// A program with its default cluster in memory.
struct Program {
    databases: Arc<Databases>,
    connections: Arc<Connections>,
}

impl Program {
    fn start() -> Self {
        let log = LogSink::new(|_, _, _, _| {});
        let databases = Databases::open(&Paths::default(), Mode::Shared, Settings::default(), log);
        let databases = Arc::new(databases.expect("databases"));
        let connections = Arc::new(Connections::new(databases.clone()));
        Self { databases, connections }
    }

    fn create(&self, name: &str, origin: ClusterOrigin) {
        let new = NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() };
        self.databases.create_cluster(new).expect("a cluster");
    }

    fn drop_cluster(&self, name: &str) {
        self.databases.drop_cluster(name).expect("it is dropped");
    }

    /// A session that has answered once.
    fn session(&self, cluster: &str) -> Local {
        let mut session = Local::connect_to(&self.connections, cluster);
        assert_eq!(session.values("SELECT 1"), ["1"]);
        session
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.connections.shut_down();
    }
}

fn of_template() -> ClusterOrigin {
    ClusterOrigin::Template("postgres".to_owned())
}

fn of_default() -> ClusterOrigin {
    ClusterOrigin::Branch(DEFAULT_CLUSTER.to_owned())
}

fn row(what: &str, unit: Unit, figures: Vec<f64>, aim: f64) -> Row {
    let (what, aim) = (format!("branch {what}"), Some(Aim::Figure(aim)));
    Row { what, unit, ours: Figure::of(figures), other: None, aim }
}

/// Seconds that `work` takes, and its result.
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

/// The time and the memory of copies of a template, and of branches of a small cluster that does not change.
fn short() -> Vec<Row> {
    let program = Program::start();
    let mut rows = Vec::new();
    for (what, origin) in [("of a template", of_template()), ("of a cluster", of_default())] {
        program.create("first", origin.clone());
        program.drop_cluster("first");
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let name = format!("branch-{round}");
            let (took, first) = timed(|| {
                program.create(&name, origin.clone());
                program.session(&name)
            });
            firsts.push(took);
            let (took, second) = timed(|| program.session(&name));
            seconds.push(took);
            drop((first, second));
            program.drop_cluster(&name);
        }
        rows.push(row(&format!("{what}: made to its first SELECT 1"), Unit::Seconds, firsts, 1.5e-3));
        rows.push(row(&format!("{what}: second session to its first SELECT 1"), Unit::Seconds, seconds, 1.2e-3));
    }
    let names: Vec<String> = (0..BRANCHES).map(|number| format!("idle-{number}")).collect();
    // Shared memory that two sessions have mapped is not private to either mapping.
    let memory = || {
        // Far below 2^53.
        #[expect(clippy::cast_precision_loss)]
        let bytes = process::bytes("/proc/self/smaps_rollup", "Pss") as f64;
        bytes / f64::from(BRANCHES)
    };
    let before = memory();
    names.iter().for_each(|name| program.create(name, of_template()));
    let firsts: Vec<Local> = names.iter().map(|name| program.session(name)).collect();
    let with_one = memory();
    let seconds: Vec<Local> = names.iter().map(|name| program.session(name)).collect();
    let with_two = memory();
    drop((firsts, seconds));
    rows.push(row("of a template: private memory with one session", Unit::Bytes, vec![with_one - before], 1.5e6));
    rows.push(row(
        "of a template: private memory of its second session",
        Unit::Bytes,
        vec![with_two - with_one],
        1.1e6,
    ));
    rows
}

/// Branches of a cluster with a gigabyte, of which ten megabytes have changed since the last one, and how long its other
/// session waits for an answer meanwhile.
fn large() -> Vec<Row> {
    let program = Program::start();
    let mut writer = program.session(DEFAULT_CLUSTER);
    writer.values("CREATE TABLE large (id int PRIMARY KEY, n int, filler text) WITH (fillfactor = 50)");
    // Text that is not compressed.
    writer.values(&format!(
        "INSERT INTO large SELECT n, 0, (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 30) i) \
         FROM generate_series(1, {ROWS}) n"
    ));
    writer.values("CHECKPOINT");
    let (mut firsts, mut unchanged, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=LARGE_ROUNDS {
        let first_id = round * ROWS as usize / (LARGE_ROUNDS + 1);
        writer.values(&format!("UPDATE large SET n = n + 1 WHERE id > {first_id} AND id <= {first_id} + {CHANGED}"));
        let name = format!("branch-{round}");
        let asks = Arc::new(AtomicBool::new(true));
        let asking = thread::spawn({
            let (asks, mut session) = (asks.clone(), program.session(DEFAULT_CLUSTER));
            move || {
                let mut longest = 0_f64;
                while asks.load(Ordering::Acquire) {
                    longest = longest.max(timed(|| session.values("SELECT 1")).0);
                    thread::sleep(Duration::from_millis(1));
                }
                longest
            }
        });
        let (took, mut session) = timed(|| {
            program.create(&name, of_default());
            program.session(&name)
        });
        asks.store(false, Ordering::Release);
        let waited = asking.join().expect("no panic");
        assert_eq!(session.values("SELECT sum(n) FROM large"), [((round + 1) * CHANGED as usize).to_string()]);
        drop(session);
        program.drop_cluster(&name);
        let (again, session) = timed(|| {
            program.create(&name, of_default());
            program.session(&name)
        });
        drop(session);
        program.drop_cluster(&name);
        // The first one takes along all that has been written before.
        if round > 0 {
            firsts.push(took);
            longest.push(waited);
            unchanged.push(again);
        }
    }
    vec![
        row("of 1 GB, 10 MB changed: made to its first SELECT 1", Unit::Seconds, firsts, 50e-3),
        row("of 1 GB, 10 MB changed: longest wait of its origin's session", Unit::Seconds, longest, 5e-3),
        row("of 1 GB, unchanged: made to its first SELECT 1", Unit::Seconds, unchanged, 50e-3),
    ]
}

/// Reading in a branch of a branch of a branch, compared with the first of them.
fn deep() -> Row {
    let program = Program::start();
    let mut session = program.session(DEFAULT_CLUSTER);
    session.values("CREATE TABLE t AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 500000) n");
    session.values("VACUUM ANALYZE t");
    let mut origin = DEFAULT_CLUSTER.to_owned();
    for depth in 1..=DEPTH {
        let name = format!("depth-{depth}");
        program.create(&name, ClusterOrigin::Branch(origin));
        // Pages all over the table.
        program.session(&name).values(&format!("UPDATE t SET n = -n WHERE n % 1000 = {depth}"));
        origin = name;
    }
    let mut sessions = ["depth-1", &origin].map(|name| program.session(name));
    // 70 MB, of which shared buffers hold no more than an eighth, so that each reads from the files.
    let mut read = |session: usize| timed(|| sessions[session].values("SELECT count(*), sum(length(filler)) FROM t")).0;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 0..=20 {
        let took = [read(0), read(1)];
        if round > 0 {
            first.push(took[0]);
            last.push(took[1]);
        }
    }
    Row {
        what: format!("branch of a branch, {DEPTH} deep: reading 500,000 rows"),
        unit: Unit::Seconds,
        ours: Figure::of(last),
        other: Some(("the first of them".to_owned(), Figure::of(first))),
        aim: Some(Aim::Ratio(1.2)),
    }
}
