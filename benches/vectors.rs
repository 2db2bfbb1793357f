//! pgvector on this program and on native PostgreSQL: making an index (HNSW) of 50,000 vectors of 384 dimensions, and
//! searching by it.
//!
//! `PGLITE_PORT_VECTORS` says how many vectors. Native PostgreSQL, which `PGLITE_PORT_BENCH_POSTGRES` names, is measured
//! if it has pgvector (Debian's `postgresql-15-pgvector`).

#[path = "support/native.rs"]
mod native;
#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{env, time::Instant};

use native::Native;
use postgres::{Client, Config, NoTls};
use rows::{Aim, Figure, Row, Unit, leave};
use support::server::Server;

/// The number of vectors.
const VECTORS: u32 = 50_000;
/// The number of searches.
const SEARCHES: u32 = 300;

/// One process makes the index, in memory, as one does here in any case.
const SETTINGS: &str =
    "SET maintenance_work_mem = '512MB'; SET max_parallel_maintenance_workers = 0; SET work_mem = '64MB'";

/// What one server takes, in seconds.
struct Taken {
    version: String,
    index: f64,
    searches: Vec<f64>,
}

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let count = env::var("PGLITE_PORT_VECTORS").map_or(VECTORS, |text| text.parse().expect("a number of vectors"));
    let ours = {
        let server = Server::with(&["--mode", "shared", "--set", "shared_buffers=128MB"]);
        measure(&server.config(), count).expect("pgvector is installed beside PGlite")
    };
    let native = {
        // As a cluster in memory, which has no syncs.
        let server = Native::start(&["fsync=off", "shared_buffers=128MB"]);
        measure(&server.config(), count)
            .map(|taken| (format!("{} with pgvector {}", server.name, taken.version), taken))
    };
    if native.is_none() {
        eprintln!("native PostgreSQL has no pgvector, and is not measured: install postgresql-15-pgvector, say");
    }
    println!("pgvector {} here, {count} vectors", ours.version);
    leave("vectors", &rows(&ours, native.as_ref(), count));
}

/// Makes the vectors, the index, and searches; `None` without pgvector.
fn measure(config: &Config, count: u32) -> Option<Taken> {
    let mut client = config.connect(NoTls).expect("a session");
    let version = client
        .query_opt("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'", &[])
        .expect("a list")?
        .get(0);
    client.batch_execute(SETTINGS).expect("settings");
    client.batch_execute(&tables(count)).expect("vectors");
    let started = Instant::now();
    client.batch_execute("CREATE INDEX ON items USING hnsw (v vector_l2_ops)").expect("an index");
    let index = started.elapsed().as_secs_f64();
    Some(Taken { version, index, searches: searches(&mut client, count) })
}

/// The same random vectors on every server.
fn tables(count: u32) -> String {
    let random = "(SELECT array_agg((random() - 0.5)::real) FROM generate_series(1, 384) WHERE n = n)::vector";
    format!(
        "CREATE EXTENSION vector; SELECT setseed(0.5); CREATE TABLE items (id int PRIMARY KEY, v vector(384) NOT NULL);
         INSERT INTO items SELECT n, {random} FROM generate_series(1, {count}) n;
         CREATE TABLE searched AS SELECT n AS id, {random} AS v FROM generate_series(1, {SEARCHES}) n;
         ANALYZE items"
    )
}

/// How long each search for the ten nearest vectors takes.
fn searches(client: &mut Client, count: u32) -> Vec<f64> {
    // Otherwise a small table would be read from its beginning to its end and sorted. What is avoided looks expensive to
    // the planner, so that the native server would compile the query each time.
    client.batch_execute("SET enable_seqscan = off; SET enable_sort = off; SET jit = off").expect("settings");
    let sql =
        |id: &str| format!("SELECT id FROM items ORDER BY v <-> (SELECT v FROM searched WHERE id = {id}) LIMIT 10");
    let plan = client.query(&format!("EXPLAIN {}", sql("1")), &[]).expect("a plan");
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert!(plan.iter().any(|line| line.contains("items_v_idx")), "{plan:#?}");
    let statement = client.prepare(&sql("$1")).expect("a statement");
    let mut search = |number: u32| {
        let number = i32::try_from(number).expect("it fits");
        let started = Instant::now();
        let found = client.query(&statement, &[&number]).expect("rows");
        assert_eq!(found.len(), usize::try_from(count.min(10)).expect("it fits"));
        started.elapsed().as_secs_f64()
    };
    // The first ones fill caches.
    for number in 1..=10 {
        search(number);
    }
    (1..=SEARCHES).map(search).collect()
}

fn rows(ours: &Taken, native: Option<&(String, Taken)>, count: u32) -> [Row; 2] {
    let row = |what: &str, figure: fn(&Taken) -> Figure| Row {
        what: format!("{what} {count} vectors of 384 dimensions (HNSW)"),
        unit: Unit::Seconds,
        ours: figure(ours),
        other: native.map(|(name, taken)| (name.clone(), figure(taken))),
        aim: None::<Aim>,
    };
    [
        row("an index of", |taken| Figure::of(vec![taken.index])),
        row("a search in", |taken| Figure::of(taken.searches.clone())),
    ]
}
