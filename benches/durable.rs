//! Clusters in a directory, with real syncs, beside native `PostgreSQL` on the same disk; each server on one
//! processor, its clients on the other.

#[path = "support/native.rs"]
mod native;
#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    env,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use native::{Native, initialize, new_directory, on_processor, transactions_per_second};
use postgres::Client;
use rows::{Aim, Figure, Row, Unit, leave};
use rustix::process::Signal;
use support::{process, server::Server};

/// How often each figure is measured, here and there in turns, because the machine is not alone.
const ROUNDS: usize = 5;
/// The processors of the servers and of their clients.
const SERVERS: usize = 0;
const CLIENTS: usize = 1;
/// Rows of the table that is copied.
const ROWS: usize = 1_000_000;
/// GB of the database that is larger than all memory that the program should need.
const LARGE: u32 = 5;

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut bench = Bench::start();
    bench.pgbench();
    bench.copy_and_scan();
    bench.starts();
    bench.new_clusters();
    let mut rows = std::mem::take(&mut bench.rows);
    drop(bench);
    rows.push(large_database());
    leave("durable", &rows);
}

/// Both servers, and what was measured.
struct Bench {
    directory: tempfile::TempDir,
    ours: Option<Server>,
    native: Native,
    rows: Vec<Row>,
}

impl Bench {
    fn start() -> Self {
        let directory = new_directory();
        let (ours, native) = on_processor(SERVERS, || {
            let ours = Server::in_directory(&directory.path().join("data"));
            (ours, Native::start(&["shared_buffers=64MB"]))
        });
        // Everything from here on is a client.
        on_processor(CLIENTS, || {});
        Self { directory, ours: Some(ours), native, rows: Vec::new() }
    }

    fn ours(&self) -> &Server {
        self.ours.as_ref().expect("it runs")
    }

    fn row(&mut self, what: &str, unit: Unit, figures: [Vec<f64>; 2], aim: Aim) {
        let [ours, native] = figures.map(Figure::of);
        let other = Some((self.native.name.clone(), native));
        self.rows.push(Row { what: format!("durable: {what}"), unit, ours, other, aim: Some(aim) });
    }

    /// Measures here and there in turns.
    fn compare(&self, mut ours: impl FnMut(&Server) -> f64, mut native: impl FnMut(&Native) -> f64) -> [Vec<f64>; 2] {
        let measure = |_| (ours(self.ours()), native(&self.native));
        let (ours, native) = (0..ROUNDS).map(measure).unzip();
        [ours, native]
    }

    fn pgbench(&mut self) {
        on_processor(CLIENTS, || {
            initialize(&self.ours().url);
            initialize(&self.native.url);
        });
        for (clients, aim) in [(1, 0.9), (16, 0.8)] {
            let before = syncs_and_commits(&mut self.ours().connect());
            let measure = |url: &str| on_processor(CLIENTS, || transactions_per_second(url, clients));
            let figures = self.compare(|ours| measure(&ours.url), |native| measure(&native.url));
            let after = syncs_and_commits(&mut self.ours().connect());
            self.row(&format!("pgbench, {clients} clients, prepared"), Unit::PerSecond, figures, Aim::Ratio(aim));
            let ours = Figure::of(vec![(after.0 - before.0) / (after.1 - before.1)]);
            let what = format!("durable: syncs of WAL for each commit, {clients} clients");
            let aim = (clients > 1).then_some(Aim::Figure(0.3));
            self.rows.push(Row { what, unit: Unit::Number, ours, other: None, aim });
        }
    }

    fn copy_and_scan(&mut self) {
        let line: Vec<u8> =
            (0..ROWS).flat_map(|n| format!("{n}\t{}\tthe number {n}\n", n % 977).into_bytes()).collect();
        let copy = |client: &mut Client| {
            client
                .batch_execute("drop table if exists copied; create table copied (a int, b int, c text)")
                .expect("SQL");
            let start = Instant::now();
            let mut copy = client.copy_in("copy copied from stdin").expect("COPY");
            copy.write_all(&line).expect("it reads");
            copy.finish().expect("it commits");
            rows_per_second(start.elapsed())
        };
        let scan = |client: &mut Client| {
            let start = Instant::now();
            client.query_one("select count(*) from copied", &[]).expect("a row");
            rows_per_second(start.elapsed())
        };
        let figures = self.compare(|ours| copy(&mut ours.connect()), |native| copy(&mut connect(native)));
        self.row("COPY of 1,000,000 rows, rows", Unit::PerSecond, figures, Aim::Ratio(0.7));
        // The first scan sets hint bits.
        for client in [&mut self.ours().connect(), &mut connect(&self.native)] {
            client.batch_execute("vacuum copied").expect("SQL");
            scan(client);
        }
        let figures = self.compare(|ours| scan(&mut ours.connect()), |native| scan(&mut connect(native)));
        self.row("sequential scan, rows", Unit::PerSecond, figures, Aim::Ratio(0.7));
    }

    fn starts(&mut self) {
        for (what, signal, aim) in [("a stop", Signal::INT, 60e-3), ("a kill", Signal::KILL, 200e-3)] {
            let mut figures = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                let work = "drop table if exists small; create table small as select generate_series(1, 10000)";
                self.ours().connect().batch_execute(work).expect("SQL");
                connect(&self.native).batch_execute(work).expect("SQL");
                let ours = self.ours.take().expect("it runs");
                if signal == Signal::KILL {
                    ours.kill()
                } else {
                    ours.stop()
                };
                let (ours, took) = on_processor(SERVERS, || start(&self.directory.path().join("data")));
                self.ours = Some(ours);
                figures[0].push(took.as_secs_f64());
                figures[1].push(on_processor(SERVERS, || self.native.restart(signal)).as_secs_f64());
            }
            self.row(&format!("start to first answer after {what}"), Unit::Seconds, figures, Aim::Figure(aim));
        }
    }

    fn new_clusters(&mut self) {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let directory = new_directory();
            let (ours, took) = on_processor(SERVERS, || start(&directory.path().join("data")));
            drop(ours);
            figures[0].push(took.as_secs_f64());
            let began = Instant::now();
            let native = on_processor(SERVERS, || Native::start(&["shared_buffers=64MB"]));
            figures[1].push(began.elapsed().as_secs_f64());
            drop(native);
        }
        self.row("new cluster to first answer", Unit::Seconds, figures, Aim::Figure(0.5));
    }
}

/// Starts a server on a directory; the time until it has answered.
fn start(data: &Path) -> (Server, Duration) {
    let began = Instant::now();
    let server = Server::in_directory(data);
    server.connect().query_one("select 1", &[]).expect("an answer");
    (server, began.elapsed())
}

fn connect(native: &Native) -> Client {
    native.config().connect(postgres::NoTls).expect("a session")
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn rows_per_second(took: Duration) -> f64 {
    ROWS as f64 / took.as_secs_f64()
}

/// `PostgreSQL`'s own counts since the cluster was made.
fn syncs_and_commits(client: &mut Client) -> (f64, f64) {
    let sql = "select (select sum(fsyncs) from pg_stat_io where object = 'wal')::float8,
                      (select sum(xact_commit) from pg_stat_database)::float8";
    // Sessions report their counts when they have been idle for a moment.
    std::thread::sleep(Duration::from_secs(2));
    let row = client.query_one(sql, &[]).expect("figures");
    (row.get(0), row.get(1))
}

/// What the program holds of a database that it has read whole and at random, beyond what it holds of an empty one: its
/// `shared_buffers` of 16 MB, which are full then, and what else it needs.
fn large_database() -> Row {
    let directory = new_directory();
    let data = directory.path().join("data");
    let server = Server::with(&["--data", data.to_str().expect("text"), "--shared-buffers", "16"]);
    let memory = || process::bytes(&format!("/proc/{}/smaps_rollup", server.program.id()), "Pss_Dirty");
    let mut client = server.connect();
    client.query_one("select count(*) from pg_class", &[]).expect("a row");
    let empty = memory();
    client.batch_execute("create table large (id int primary key, filler text)").expect("SQL");
    for part in 0..LARGE {
        let (first, last) = (part * 1_000_000 + 1, (part + 1) * 1_000_000);
        let insert = format!(
            "insert into large select i, repeat(md5(i::text), 29) from generate_series({first}, {last}) i; checkpoint"
        );
        client.batch_execute(&insert).expect("SQL");
    }
    client.query_one("select count(filler) from large", &[]).expect("a row");
    let by_id = client.prepare("select filler from large where id = $1").expect("SQL");
    // A multiplication by a prime leads all over the table.
    let ids = (0..10_000_u64).map(|n| n * 2_654_435_761 % (u64::from(LARGE) * 1_000_000) + 1);
    for id in ids {
        client.query_one(&by_id, &[&i32::try_from(id).expect("small")]).expect("a row");
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let beyond = memory().saturating_sub(empty) as f64;
    Row {
        what: format!("durable: memory for a database of {LARGE} GB that was read"),
        unit: Unit::Bytes,
        ours: Figure::of(vec![beyond]),
        other: None,
        aim: Some(Aim::Figure(32e6)),
    }
}
