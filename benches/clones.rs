//! The cost of isolated connections: time to the first answer, private memory, reset. The aims are the project's.
//!
//! `cargo bench --bench clones -- first|warm|memory|live|process|reset` measures only that.
//!
//! Memory is `Private_Dirty` and `Pss` of `/proc/self/smaps_rollup`. Clients are in this process, so that sockets and
//! frames are not measured, but the connection's thread is.

#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use pglite_port::{
    administration::{Administration, figure},
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    port::frame::{Kind, Options},
    session::Mode,
};
use rows::{Aim, Figure, Row, Unit, leave};
use support::{
    local::{Connect, Local},
    port::Port,
    process, wire,
};

/// The number of measurements of short operations.
const ROUNDS: usize = 300;
/// The number of clones for measurements of memory.
const CLONES: u32 = 50;

fn main() -> ExitCode {
    // `cargo test --benches` only checks that it runs.
    let is_test = !std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_test { 3 } else { ROUNDS };
    // As in Criterion: only measurements whose name contains the argument, for profiling.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let wanted = |what: &str| what.contains(&only);
    let mut table = Table::default();
    let plain = open(0);
    let connections = Arc::new(Connections::new(plain.clone()));
    // Makes everything that is made only once.
    first_answer(&connections, 1);

    if wanted("first") {
        table.times("clone to first SELECT 1", Some(0.5e-3), &sample(rounds, || first_answer(&connections, 1)));
    }
    if wanted("warm") {
        table.times("clone to first SELECT 1, warm pool", Some(0.1e-3), &warm(rounds));
    }
    if wanted("memory") {
        memory(&mut table, &plain, &connections);
    }
    if wanted("live") {
        many(&mut table, &connections, if is_test { 10 } else { 1000 });
    }
    if wanted("process") {
        table.times("process start to first answer", Some(25e-3), &sample(rounds.min(20), process_start));
    }
    if wanted("reset") {
        table.times("reset with 1 MB changed", Some(0.2e-3), &reset(rounds, &connections, || {}));
        let pool = Pool::open();
        let sample = reset(rounds, &pool.connections, || pool.wait_until_full());
        table.times("reset with 1 MB changed, warm pool", Some(0.2e-3), &sample);
    }
    if !is_test {
        leave("clones", &table.0);
    }
    ExitCode::SUCCESS
}

fn open(warm: usize) -> Arc<Databases> {
    let settings = Settings { warm, ..Settings::default() };
    let log = LogSink::new(|_, _, _, _| {});
    Arc::new(Databases::open(&Paths::default(), Mode::Isolated, settings, log).expect("databases"))
}

fn connect(connections: &Arc<Connections>, id: u32) -> Local {
    let mut local = Local::connect(connections, Connect { id, ..Connect::default() }).0;
    assert_eq!(local.values("SELECT 1"), ["1"]);
    local
}

fn first_answer(connections: &Arc<Connections>, id: u32) -> Duration {
    let start = Instant::now();
    let local = connect(connections, id);
    let took = start.elapsed();
    drop(local);
    took
}

fn sample(rounds: usize, mut measure: impl FnMut() -> Duration) -> Vec<Duration> {
    (0..rounds).map(|_| measure()).collect()
}

fn warm(rounds: usize) -> Vec<Duration> {
    let pool = Pool::open();
    sample(rounds, || {
        pool.wait_until_full();
        first_answer(&pool.connections, 1)
    })
}

/// Connections with a pool of clones that are kept ready.
struct Pool {
    databases: Arc<Databases>,
    connections: Arc<Connections>,
}

impl Pool {
    fn open() -> Self {
        let databases = open(8);
        Self { connections: Arc::new(Connections::new(databases.clone())), databases }
    }

    fn wait_until_full(&self) {
        while !self.databases.figures().contains(&figure::WARM_CLONES.figure(8)) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn memory(table: &mut Table, databases: &Databases, connections: &Arc<Connections>) {
    let before = smaps();
    let mut clones: Vec<Local> = (0..CLONES).map(|id| connect(connections, id)).collect();
    table.bytes("private memory after SELECT 1", Some(0.8e6), (smaps() - before).private / u64::from(CLONES));
    table.bytes("  of it linear memory and files, as told by `memory`", None, told(databases));
    for clone in &mut clones {
        clone.values("CREATE TABLE t (id int PRIMARY KEY, name text)");
        clone.values("INSERT INTO t SELECT n, 'name ' || n FROM generate_series(1, 100) n");
        assert_eq!(clone.values("SELECT count(*) FROM t"), ["100"]);
    }
    let each = (smaps() - before).private / u64::from(CLONES);
    table.bytes("private memory after CREATE TABLE and 100 rows", Some(2.5e6), each);
    table.bytes("  of it linear memory and files, as told by `memory`", None, told(databases));
}

/// The median of the sums that the request `memory` returns.
fn told(databases: &Databases) -> u64 {
    let connections = databases.memory().expect("figures");
    let mut sums: Vec<u64> = connections.into_iter().map(|(_, bytes)| bytes.sum()).collect();
    sums.sort_unstable();
    sums[sums.len() / 2]
}

fn many(table: &mut Table, connections: &Arc<Connections>, count: u32) {
    let before = smaps();
    let start = Instant::now();
    let clones: Vec<Local> = (0..count).map(|id| connect(connections, id)).collect();
    let took = start.elapsed();
    let memory = (smaps() - before).pss;
    let start = Instant::now();
    drop(clones);
    let ended = start.elapsed();
    table.times(&format!("{count} live clones, each answered"), Some(1.0), &[took]);
    table.bytes("  in all", Some(1.2e9), memory);
    table.times("  until they are gone", None, &[ended]);
}

fn process_start() -> Duration {
    let start = Instant::now();
    let mut port = Port::spawn(&["--mode", "isolated"]);
    port.send_frame(Kind::Open, 1, &Options::new().to_bytes());
    port.data(1, &[wire::startup(&[("user", "postgres")]), wire::query("SELECT 1")].concat());
    let mut bytes = Vec::new();
    let is_answered =
        |bytes: &[u8]| bytes.ends_with(b"Z\0\0\0\x05I") && bytes.windows(8).any(|part| part == b"SELECT 1");
    while !is_answered(&bytes) {
        let frame = port.next();
        assert!(matches!(frame.kind, Kind::Data | Kind::Log), "{frame:?}");
        if frame.kind == Kind::Data {
            bytes.extend(frame.payload);
        }
    }
    start.elapsed()
}

fn reset(rounds: usize, connections: &Arc<Connections>, prepare: impl Fn()) -> Vec<Duration> {
    let mut local = connect(connections, 1);
    sample(rounds, || {
        // Far more than 1 MB in shared buffers and files, so that the figure is not too good.
        local.values("CREATE TABLE t AS SELECT n, repeat('x', 1000) FROM generate_series(1, 512) n");
        prepare();
        let start = Instant::now();
        local.reset();
        start.elapsed()
    })
}

#[derive(Clone, Copy)]
struct Smaps {
    private: u64,
    pss: u64,
}

impl std::ops::Sub for Smaps {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { private: self.private.saturating_sub(other.private), pss: self.pss.saturating_sub(other.pss) }
    }
}

fn smaps() -> Smaps {
    let bytes = |field| process::bytes("/proc/self/smaps_rollup", field);
    Smaps { private: bytes("Private_Dirty"), pss: bytes("Pss") }
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn times(&mut self, what: &str, aim: Option<f64>, sample: &[Duration]) {
        let ours = Figure::of(sample.iter().map(Duration::as_secs_f64).collect());
        self.0.push(Row { what: what.to_owned(), unit: Unit::Seconds, ours, other: None, aim: aim.map(Aim::Figure) });
    }

    fn bytes(&mut self, what: &str, aim: Option<f64>, bytes: u64) {
        // Far below 2^53.
        #[expect(clippy::cast_precision_loss)]
        let ours = Figure::of(vec![bytes as f64]);
        self.0.push(Row { what: what.to_owned(), unit: Unit::Bytes, ours, other: None, aim: aim.map(Aim::Figure) });
    }
}
