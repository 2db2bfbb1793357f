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
/// The statement that `SELECT 1` is measured beside before each of them, for comparison, because the machine has delays
/// of its own. It checks for interrupts all the time, and its timeout ends it.
const TAME: &str = "set statement_timeout = '1s'; select count(*) from generate_series(1, 100000) a, \
                    generate_series(1, 100000) b";
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
    let [middle, high, most, control_high] = ["p50 ms", "p99 ms", "max ms", "control"];
    println!("{middle:>8} {high:>8} {most:>8}  asked  took s {control_high:>8}  statement");
    let chosen = hostile::statements();
    let chosen = chosen.into_iter().filter(|it| filter.is_none_or(|part| it.what.contains(part)));
    for Hostile { what, setup, sql } in chosen {
        let (beside, ..) = measure(&mut hostile, &mut other, TAME);
        let allowed = percentile(&beside, 99);
        control.extend(beside);
        hostile.query(&format!("reset all; set statement_timeout = '{TIMEOUT}'"));
        if let Some(error) = error(&hostile.query(&setup)) {
            println!("{what}: {error}");
            continue;
        }
        let (waits, took, failed) = measure(&mut hostile, &mut other, &sql);
        if failed.is_some() {
            hostile.query("rollback");
        }
        worst.push(percentile(&waits, 99));
        let control = allowed * 1e3;
        println!("{} {control:8.1}  {what} {}", line(&waits, took), failed.unwrap_or_default());
    }
    control.sort_by(f64::total_cmp);
    println!("{}           all controls", line(&control, 0.0));
    drop((hostile, other));
    connections.shut_down();
    let within = worst.iter().filter(|wait| **wait <= AIM).count();
    println!("{within} of {} within {} ms", worst.len(), AIM * 1e3);
    if filter.is_none() {
        let what = "shared: SELECT 1 beside each hostile statement, 99th percentile, the worst".to_owned();
        let worst = worst.into_iter().max_by(f64::total_cmp).into_iter().collect();
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

/// Repeats the statement for [`TIME`], or until it fails. Returns how long `SELECT 1` of the `other` session takes
/// meanwhile, again and again, in ascending order, how long the statement takes, and how it failed.
fn measure(hostile: &mut Local, other: &mut Local, sql: &str) -> (Vec<f64>, f64, Option<String>) {
    let runs = AtomicBool::new(true);
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let (begun, mut times, mut failed) = (Instant::now(), 0, None);
            while times == 0 || (begun.elapsed() < TIME && failed.is_none()) {
                failed = error(&hostile.query(sql));
                times += 1;
            }
            runs.store(false, Ordering::Release);
            (begun.elapsed().as_secs_f64() / f64::from(times), failed)
        });
        let mut latencies = Vec::new();
        while runs.load(Ordering::Acquire) {
            // A client that asks again at once gets many answers before the other session has its processor back; those
            // would hide the answers that had to wait.
            thread::sleep(Duration::from_millis(1));
            let asked = Instant::now();
            other.values("SELECT 1");
            latencies.push(asked.elapsed().as_secs_f64());
        }
        latencies.sort_by(f64::total_cmp);
        let (took, failed) = busy.join().expect("no panic");
        (latencies, took, failed)
    })
}

/// The SQLSTATE and the message of an answer that is an error.
fn error(answer: &[Message]) -> Option<String> {
    let error = answer.iter().find(|message| message.kind == b'E')?.fields();
    Some(format!("[{}: {:.60}]", error.get(&'C')?, error.get(&'M')?))
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    rows::percentile(sorted, percent).expect("something was measured")
}

fn line(figures: &[f64], took: f64) -> String {
    let [middle, high, most] = [50, 99, 100].map(|percent| percentile(figures, percent) * 1e3);
    format!("{middle:8.1} {high:8.1} {most:8.1} {:6} {took:7.2}", figures.len())
}
