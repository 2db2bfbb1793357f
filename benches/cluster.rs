//! The cost of sessions of one cluster, and of their turns; pgbench compared with native PostgreSQL.
//!
//! Except for pgbench, clients are in this process, so that sockets and frames are not measured, but the sessions'
//! threads are.

#[path = "support/native.rs"]
mod native;
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

use native::{Native, transactions_per_second};
use pglite_port::{
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use rows::{Aim, Figure, Row, Unit, leave};
use support::{
    local::{Connect, Local},
    process,
};

/// The number of measurements of short operations.
const ROUNDS: usize = 200;
/// The number of sessions for measurements of memory and processor time.
const SESSIONS: u32 = 90;

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut rows = Vec::new();
    let connections = start();
    // Makes everything that is made only once.
    drop(connect(&connections, 1));

    rows.push(time("further session: connect to first SELECT 1", Some(2e-3), first_answers(&connections)));
    rows.extend(idle(&connections));
    rows.push(alternating(&connections));
    rows.push(beside_a_long_query(&connections));
    connections.shut_down();
    let native = Native::start(&["fsync=off"]);
    for clients in [1, 16] {
        rows.push(pgbench(clients, &native));
    }
    leave("cluster", &rows);
}

fn start() -> Arc<Connections> {
    let settings = Settings::default();
    let databases = Databases::open(&Paths::default(), Mode::Shared, settings, LogSink::new(|_, _, _, _| {}));
    Arc::new(Connections::new(Arc::new(databases.expect("databases"))))
}

fn connect(connections: &Arc<Connections>, id: u32) -> Local {
    let mut local = Local::connect(connections, Connect { id, mode: Mode::Shared, ..Connect::default() }).0;
    assert_eq!(local.values("SELECT 1"), ["1"]);
    local
}

fn time(what: &str, aim: Option<f64>, seconds: Vec<f64>) -> Row {
    let (what, aim) = (format!("shared: {what}"), aim.map(Aim::Figure));
    Row { what, unit: Unit::Seconds, ours: Figure::of(seconds), other: None, aim }
}

fn first_answers(connections: &Arc<Connections>) -> Vec<f64> {
    let measure = || {
        let start = Instant::now();
        let local = connect(connections, 1);
        let took = start.elapsed().as_secs_f64();
        drop(local);
        took
    };
    (0..ROUNDS).map(|_| measure()).collect()
}

/// Memory and processor time of sessions that have answered once and wait for their clients.
fn idle(connections: &Arc<Connections>) -> [Row; 2] {
    let before = private_memory();
    let sessions: Vec<Local> = (1..=SESSIONS).map(|id| connect(connections, id)).collect();
    let memory = (private_memory() - before) / f64::from(SESSIONS);
    let processor = || {
        let (time, start) = (processor_time(), Instant::now());
        thread::sleep(Duration::from_secs(2));
        (processor_time() - time) / start.elapsed().as_secs_f64() * 100.0 / f64::from(SESSIONS)
    };
    let processor = (0..3).map(|_| processor()).collect();
    drop(sessions);
    let row = |what: &str, unit, ours, aim| Row {
        what: format!("shared: {what}"),
        unit,
        ours: Figure::of(ours),
        other: None,
        aim: Some(Aim::Figure(aim)),
    };
    [
        row("private memory of an idle session", Unit::Bytes, vec![memory], 1.5e6),
        row("processor time of 100 idle sessions, of one core", Unit::Share, processor, 0.005),
    ]
}

/// The additional time of a query when two sessions take turns.
fn alternating(connections: &Arc<Connections>) -> Row {
    let mut sessions = [connect(connections, 1), connect(connections, 2)];
    let mut measure = |pattern: [usize; 2]| {
        let start = Instant::now();
        for _ in 0..500 {
            for session in pattern {
                sessions[session].query("SELECT 1");
            }
        }
        start.elapsed().as_secs_f64() / 1000.0
    };
    let extra = (0..30).map(|_| {
        let alone = measure([0, 0]);
        measure([0, 1]) - alone
    });
    time("extra time of SELECT 1 when two connections alternate", Some(10e-6), extra.collect())
}

/// The 99th percentile of a session's answers while another one computes.
fn beside_a_long_query(connections: &Arc<Connections>) -> Row {
    let (mut busy, mut other) = (connect(connections, 1), connect(connections, 2));
    let computes = Arc::new(AtomicBool::new(true));
    let busy_computes = computes.clone();
    let long = thread::spawn(move || {
        busy.values("SET statement_timeout = '10s'");
        // The timeout ends it; everything before that is measured.
        busy.query("SELECT count(*) FROM generate_series(1, 10000000000) n WHERE n % 7 = 3");
        busy_computes.store(false, Ordering::Release);
    });
    let mut answers = Vec::new();
    while computes.load(Ordering::Acquire) {
        // A client that asks again at once gets many answers before the other session has its processor back; those
        // would hide the answers that had to wait.
        thread::sleep(Duration::from_millis(1));
        let start = Instant::now();
        other.values("SELECT 1");
        answers.push(start.elapsed().as_secs_f64());
    }
    long.join().expect("no panic");
    answers.sort_by(f64::total_cmp);
    let percentile = answers[answers.len() * 99 / 100];
    time("SELECT 1 beside a query of 10 s, 99th percentile", Some(15e-3), vec![percentile])
}

/// Transactions per second of pgbench's standard script, here and in native `PostgreSQL` with `fsync` off.
fn pgbench(clients: u32, native: &Native) -> Row {
    let ours = {
        let listen = "127.0.0.1:0";
        let mut program = support::program::Program::spawn(&["serve", "--listen", listen, "--mode", "shared"]);
        let url = program.first_line();
        native::initialize(&url);
        Figure::of((0..3).map(|_| transactions_per_second(&url, clients)).collect())
    };
    native::initialize(&native.url);
    let theirs = Figure::of((0..3).map(|_| transactions_per_second(&native.url, clients)).collect());
    Row {
        what: format!("shared: pgbench, {clients} clients, prepared"),
        unit: Unit::PerSecond,
        ours,
        other: Some((native.name.clone(), theirs)),
        aim: None,
    }
}

/// `Private_Dirty` of this process, in bytes.
fn private_memory() -> f64 {
    // Far below 2^53.
    #[expect(clippy::cast_precision_loss)]
    let bytes = process::bytes("/proc/self/smaps_rollup", "Private_Dirty") as f64;
    bytes
}

/// Seconds of processor time that this process has used.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("positive").as_secs_f64()
}
