//! The cost of sessions of one cluster, and of their turns; pgbench compared with native PostgreSQL.
//!
//! Except for pgbench, clients are in this process, so that sockets and frames are not measured, but the sessions'
//! threads are.

#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use rows::{Figure, Row, Unit, leave};
use support::{
    local::{Connect, Local},
    process::{self, installed},
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
    let native = Native::start();
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
    Row { what: format!("shared: {what}"), unit: Unit::Seconds, ours: Figure::of(seconds), other: None, aim }
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
        aim: Some(aim),
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
        transactions_per_second(&url, clients)
    };
    let theirs = transactions_per_second(&native.url, clients);
    Row {
        what: format!("shared: pgbench, {clients} clients, prepared"),
        unit: Unit::PerSecond,
        ours,
        other: Some((native.name.clone(), theirs)),
        aim: None,
    }
}

fn transactions_per_second(url: &str, clients: u32) -> Figure {
    let run = |arguments: &[&str]| {
        let output = installed("pgbench").args(arguments).arg(url).output().expect("pgbench is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    run(&["--initialize", "--quiet", "--scale=10"]);
    let client = format!("--client={clients}");
    let measure = || {
        let text = run(&["--time=5", &client, "--protocol=prepared"]);
        let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).expect("pgbench tells");
        line.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    };
    Figure::of((0..3).map(|_| measure()).collect())
}

/// A server of the installed `PostgreSQL`; dropping it ends it.
struct Native {
    server: Child,
    url: String,
    name: String,
    directory: tempfile::TempDir,
}

impl Native {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        let version = installed("postgres").arg("--version").output().expect("PostgreSQL is installed");
        let name = String::from_utf8_lossy(&version.stdout).split_ascii_whitespace().nth(2).map(str::to_owned);
        give_away(directory.path());
        let status = unprivileged("initdb")
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--pgdata"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(status.expect("initdb is installed").success());
        let socket = directory.path().to_str().expect("text").to_owned();
        let server = unprivileged("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={socket}"))
            .stderr(Stdio::null())
            .spawn()
            .expect("PostgreSQL starts");
        let url = format!("postgresql://postgres@/postgres?host={socket}");
        let ready = || installed("pg_isready").args(["-q", "-d", &url]).status().is_ok_and(|status| status.success());
        let start = Instant::now();
        while !ready() {
            assert!(start.elapsed() < support::PATIENCE, "PostgreSQL does not start");
        }
        Self { server, url, name: format!("PostgreSQL {}", name.unwrap_or_default()), directory }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SIGQUIT, because it has no data to keep.
        let pid = rustix::process::Pid::from_child(&self.server);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(self.directory.path());
    }
}

/// A command that runs as the user `postgres` if this is root, which must not run a server.
fn unprivileged(program: &str) -> Command {
    let mut command = installed(program);
    if let Some((user, group)) = substitute() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

fn give_away(directory: &Path) {
    if let Some((user, group)) = substitute() {
        std::os::unix::fs::chown(directory, Some(user), Some(group)).expect("root may");
    }
}

/// User and group of `postgres`, if this is root.
fn substitute() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("users");
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("Debian's packages make this user");
    let number = |field| line.split(':').nth(field).and_then(|number| number.parse().ok()).expect("a number");
    Some((number(2), number(3)))
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
