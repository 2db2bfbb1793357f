//! Fifty clients of a small web application, on native PostgreSQL, sessions of one cluster, branches, and clusters of
//! their own.
//!
//! Each client makes one request after the other, over TCP and with the driver's prepared statements: it finds the user
//! of a token, lists the last 20 items with their authors, inserts one, and counts the request, in one transaction.
//! `PGLITE_PORT_LOAD_SECONDS` says for how long (a minute).

#[path = "support/native.rs"]
mod native;
#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    env, fs,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use native::Native;
use pglite_port::{
    administration::{Administration, ClusterOrigin, DEFAULT_CLUSTER, NewCluster},
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use postgres::{Client, Config, Error, NoTls, Statement};
use rows::{Aim, Figure, Row, Unit, leave};
use support::{cache, program::Program, server::Server, serving::Serving};

/// The number of clients.
const CLIENTS: usize = 50;
/// The number of branches that they share.
const BRANCHES: usize = 5;
/// The number of users, each with a token and a counter.
const USERS: i64 = 10_000;
/// The name of the template with the tables, and of the database in it.
const TEMPLATE: &str = "load";

/// The tables.
const TABLES: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, token text NOT NULL UNIQUE, name text NOT NULL);
    CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, author bigint NOT NULL REFERENCES users,
      title text NOT NULL, made timestamptz NOT NULL DEFAULT now());
    CREATE TABLE counters (author bigint PRIMARY KEY REFERENCES users, requests bigint NOT NULL);
    INSERT INTO users SELECT n, md5(n::text), 'user ' || n FROM generate_series(1, 10000) n;
    INSERT INTO items (author, title) SELECT 1 + n % 10000, 'item ' || n FROM generate_series(1, 50000) n;
    INSERT INTO counters SELECT id, 0 FROM users;
    ANALYZE;
";

/// The statements of a request.
const STATEMENTS: [&str; 4] = [
    "SELECT id FROM users WHERE token = md5($1::bigint::text)",
    "SELECT items.id, title, made, name FROM items JOIN users ON users.id = author ORDER BY items.id DESC LIMIT 20",
    "INSERT INTO items (author, title) VALUES ($1, $2)",
    "UPDATE counters SET requests = requests + 1 WHERE author = $1",
];

/// What the clients of one kind of cluster have measured.
struct Load {
    kind: &'static str,
    /// How long each request took that succeeded, in seconds, in ascending order.
    requests: Vec<f64>,
    failures: usize,
    /// How many requests succeeded in each second.
    throughput: Vec<f64>,
}

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let sql = directory.path().join("tables.sql");
    fs::write(&sql, TABLES).expect("a disk");
    Program::succeed(&["prepare", TEMPLATE, "--sql", sql.to_str().expect("text")]);
    let loads = [native(), shared(), branches(), isolated()];
    print(&loads);
    let [native, ours @ ..] = &loads;
    leave("load", &ours.iter().flat_map(|load| rows(load, native)).collect::<Vec<_>>());
}

fn native() -> Load {
    // As a cluster in memory, which has no syncs.
    let server = Native::start(&["fsync=off"]);
    server.config().connect(NoTls).and_then(|mut client| client.batch_execute(TABLES)).expect("the tables");
    load("native", &vec![server.config(); CLIENTS])
}

fn shared() -> Load {
    let server = Server::with(&["--mode", "shared", "--template", TEMPLATE]);
    load("shared", &vec![of_template(&server); CLIENTS])
}

fn isolated() -> Load {
    let server = Server::with(&["--mode", "isolated"]);
    load("isolated", &vec![of_template(&server); CLIENTS])
}

fn of_template(server: &Server) -> Config {
    let mut config = server.config();
    config.dbname(TEMPLATE).clone()
}

/// Ten clients on each of five branches of a cluster. The program makes branches for its parent, so it is this process.
fn branches() -> Load {
    let mut settings = Settings::default();
    settings.shared.template = Some(TEMPLATE.to_owned());
    let log = LogSink::new(|_, _, _, _| {});
    // The cache of the programs that the other servers are.
    let paths = Paths { cache: Some(cache::shared()), ..Paths::default() };
    let databases = Databases::open(&paths, Mode::Shared, settings, log).expect("databases");
    for number in 0..BRANCHES {
        let (name, origin) = (Some(branch(number)), ClusterOrigin::Branch(DEFAULT_CLUSTER.to_owned()));
        databases.create_cluster(NewCluster { name, origin, ..NewCluster::default() }).expect("a branch");
    }
    let server = Serving::start(Arc::new(databases));
    let on_branch = |client: usize| {
        let mut config = server.config.clone();
        config.dbname(TEMPLATE).options(&format!("-c pglite.cluster={}", branch(client % BRANCHES))).clone()
    };
    let load = load("branch", &(0..CLIENTS).map(on_branch).collect::<Vec<_>>());
    server.stop();
    load
}

fn branch(number: usize) -> String {
    format!("branch_{number}")
}

/// Has a client for each of `configs` make requests.
fn load(kind: &'static str, configs: &[Config]) -> Load {
    let seconds = env::var("PGLITE_PORT_LOAD_SECONDS").map_or(60, |text| text.parse().expect("a number of seconds"));
    let duration = Duration::from_secs(seconds);
    let begin = Barrier::new(configs.len());
    let client = |number: usize, config: &Config| {
        let (mut session, mut failures) = (Session::open(config), 0);
        // Caches are filled, as in a pool that has been there for a while.
        for request in 0..5 {
            session = session.and_then(|mut session| session.request(number, request).map(|()| session));
        }
        begin.wait();
        let start = Instant::now();
        let mut requests = Vec::new();
        while start.elapsed() < duration {
            let sent = Instant::now();
            let done = match &mut session {
                Ok(session) => session.request(number, requests.len()),
                Err(_) => Session::open(config).map(|opened| session = Ok(opened)),
            };
            match done {
                Ok(()) => requests.push((start.elapsed(), sent.elapsed().as_secs_f64())),
                Err(error) => {
                    eprintln!("{kind}: {error}");
                    failures += 1;
                    // As a pool does, instead of finding out what state the connection is in.
                    session = Err(error);
                }
            }
        }
        (requests, failures)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let client = &client;
        let threads: Vec<_> =
            configs.iter().enumerate().map(|(number, config)| scope.spawn(move || client(number, config))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut throughput = vec![0.0; usize::try_from(seconds).expect("it fits")];
    for (end, _) in results.iter().flat_map(|(requests, _)| requests) {
        // Those that were sent in the last moment end later.
        if let Some(second) = throughput.get_mut(usize::try_from(end.as_secs()).expect("it fits")) {
            *second += 1.0;
        }
    }
    let mut requests: Vec<f64> = results.iter().flat_map(|(requests, _)| requests).map(|(_, took)| *took).collect();
    requests.sort_by(f64::total_cmp);
    Load { kind, requests, failures: results.iter().map(|(_, failures)| failures).sum(), throughput }
}

/// A client's connection with its prepared statements.
struct Session {
    client: Client,
    statements: Vec<Statement>,
}

impl Session {
    fn open(config: &Config) -> Result<Self, Error> {
        let mut client = config.connect(NoTls)?;
        let statements = STATEMENTS.iter().map(|sql| client.prepare(sql)).collect::<Result<_, _>>()?;
        Ok(Self { client, statements })
    }

    fn request(&mut self, client: usize, request: usize) -> Result<(), Error> {
        let [token, list, insert, count] = &self.statements[..] else { panic!("there are four") };
        let user = 1 + i64::try_from(client * 7919 + request * 31).expect("it fits") % USERS;
        let mut transaction = self.client.transaction()?;
        let user: i64 = transaction.query_one(token, &[&user])?.get(0);
        let items = transaction.query(list, &[])?;
        assert_eq!(items.len(), 20);
        transaction.execute(insert, &[&user, &format!("item of request {request}")])?;
        transaction.execute(count, &[&user])?;
        transaction.commit()
    }
}

impl Load {
    /// The time within which so many percent of the requests were answered.
    fn percentile(&self, percent: usize) -> f64 {
        rows::percentile(&self.requests, percent).unwrap_or(f64::NAN)
    }
}

fn rows(load: &Load, native: &Load) -> [Row; 2] {
    let row = |what: &str, unit, figure: fn(&Load) -> Figure| Row {
        what: format!("{}: {what} of {CLIENTS} clients", load.kind),
        unit,
        ours: figure(load),
        other: Some(("native".to_owned(), figure(native))),
        aim: None::<Aim>,
    };
    [
        row("requests", Unit::PerSecond, |load| Figure::of(load.throughput.clone())),
        row("one request", Unit::Seconds, |load| Figure::of(load.requests.clone())),
    ]
}

/// Prints a table in Markdown.
fn print(loads: &[Load]) {
    println!("| {CLIENTS} clients | requests a second | median | p95 | p99 | failures |");
    println!("|---|---:|---:|---:|---:|---:|");
    for load in loads {
        let requests =
            load.throughput.iter().sum::<f64>() / f64::from(u32::try_from(load.throughput.len()).expect("few"));
        let [median, p95, p99] = [50, 95, 99].map(|percent| format!("{:.1} ms", load.percentile(percent) * 1e3));
        println!("| {} | {requests:.0} | {median} | {p95} | {p99} | {} |", load.kind, load.failures);
    }
}
