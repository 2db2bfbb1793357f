//! How long `SELECT 1` waits beside statements that do everything to keep their turn.
//!
//! The clients are in this process, so that only the sessions' threads are measured. The caches are new, so that
//! libraries are compiled when they are first used. An argument restricts the statements to those with it in their
//! description: `cargo bench --bench preemption -- CREATE`.

#[path = "support/hostile.rs"]
mod hostile;
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

use hostile::Hostile;
use pglite_port::{
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use rows::{Aim, Figure, Row, Unit, leave};
use support::{
    local::{Connect, Local},
    wire::Message,
};

/// For how long each statement is repeated.
const TIME: Duration = Duration::from_secs(2);
/// `statement_timeout`; what does not check for interrupts takes longer.
const TIMEOUT: &str = "5s";
/// For how long `SELECT 1` is measured beside nothing before each statement, for comparison: the machine has its own
/// delays.
const CONTROL: Duration = Duration::from_millis(300);
/// How long the 99th percentile may be.
const AIM: f64 = 20e-3;

fn main() {
    // `cargo test --benches` only checks that it runs.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let cache = tempfile::tempdir().expect("a directory");
    let paths = Paths { cache: Some(cache.path().to_owned()), ..Paths::default() };
    let databases = Databases::open(&paths, Mode::Shared, Settings::default(), LogSink::new(|_, _, _, _| {}));
    let connections = Arc::new(Connections::new(Arc::new(databases.expect("databases"))));
    let admin = "create role hostile login; grant create on schema public to hostile; \
                 grant create on database postgres to hostile";
    connect(&connections, "postgres").query(admin);
    let mut hostile = connect(&connections, "hostile");
    let mut other = connect(&connections, "postgres");

    let (mut control, mut worst) = (Vec::new(), Vec::new());
    println!("{:>8} {:>8} {:>8} {:>6} {:>7}  statement", "p50 ms", "p99 ms", "max ms", "asked", "took s");
    let chosen = hostile::statements();
    let chosen = chosen.into_iter().filter(|it| filter.is_none_or(|part| it.what.contains(part)));
    for Hostile { what, setup, sql } in chosen {
        hostile.query(&format!("reset all; set statement_timeout = '{TIMEOUT}'"));
        if let Some(error) = error(&hostile.query(&setup)) {
            println!("{what}: {error}");
            continue;
        }
        control.extend(latencies(&mut other, |begun| begun.elapsed() < CONTROL));
        let runs = AtomicBool::new(true);
        let (mut waits, took, failed) = thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let (begun, mut times, mut failed) = (Instant::now(), 0, None);
                while times == 0 || (begun.elapsed() < TIME && failed.is_none()) {
                    failed = error(&hostile.query(&sql));
                    times += 1;
                }
                runs.store(false, Ordering::Release);
                (begun.elapsed().as_secs_f64() / f64::from(times), failed)
            });
            let waits = latencies(&mut other, |_| runs.load(Ordering::Acquire));
            let (took, failed) = busy.join().expect("no panic");
            (waits, took, failed)
        });
        if failed.is_some() {
            hostile.query("rollback");
        }
        waits.sort_by(f64::total_cmp);
        println!("{}  {what} {}", line(&waits, took), failed.unwrap_or_default());
        worst.push(percentile(&waits, 99));
    }
    control.sort_by(f64::total_cmp);
    println!("{}  nothing", line(&control, 0.0));
    drop((hostile, other));
    connections.shut_down();
    let within = worst.iter().filter(|wait| **wait <= AIM).count();
    println!("{within} of {} within {} ms", worst.len(), AIM * 1e3);
    if filter.is_none() {
        let what = "shared: SELECT 1 beside hostile statements, 99th percentile of each".to_owned();
        leave(
            "preemption",
            &[Row { what, unit: Unit::Seconds, ours: Figure::of(worst), other: None, aim: Some(Aim::Figure(AIM)) }],
        );
    }
}

fn connect(connections: &Arc<Connections>, user: &str) -> Local {
    let parameters = &[("user", user), ("database", "postgres")];
    Local::connect(connections, Connect { mode: Mode::Shared, parameters, ..Connect::default() }).0
}

/// How long `SELECT 1` takes, again and again.
fn latencies(session: &mut Local, goes_on: impl Fn(Instant) -> bool) -> Vec<f64> {
    let (begun, mut latencies) = (Instant::now(), Vec::new());
    while goes_on(begun) {
        // A client that asks again at once gets many answers before the other session has its processor back; those
        // would hide the answers that had to wait.
        thread::sleep(Duration::from_millis(1));
        let asked = Instant::now();
        session.values("SELECT 1");
        latencies.push(asked.elapsed().as_secs_f64());
    }
    latencies
}

/// The SQLSTATE and the message of an answer that is an error.
fn error(answer: &[Message]) -> Option<String> {
    let error = answer.iter().find(|message| message.kind == b'E')?.fields();
    Some(format!("[{}: {:.60}]", error.get(&'C')?, error.get(&'M')?))
}

/// That percentile of sorted figures.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[sorted.len() * percent / 100]
}

fn line(sorted: &[f64], took: f64) -> String {
    let milliseconds = |seconds: f64| seconds * 1e3;
    let [middle, high] = [50, 99].map(|percent| milliseconds(percentile(sorted, percent)));
    let most = milliseconds(sorted[sorted.len() - 1]);
    format!("{middle:8.1} {high:8.1} {most:8.1} {:6} {took:7.2}", sorted.len())
}
