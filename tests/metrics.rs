//! The endpoint for Prometheus, over HTTP, and that its figures say what happens.

// Figures are counts, which `f64` has exactly.
#![allow(clippy::float_cmp)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    databases::Settings,
    metrics::Endpoint,
};
use rustix::process::{Resource, Rlimit, Signal, getrlimit};
use support::{
    DEAF, PATIENCE, cache,
    local::{Connect, Local},
    peer::Peer,
    program::Program,
    server::{Server, answer, rows},
    unstoppable,
};

/// A status and a body.
type Answer = (u16, String);

/// What comes back for these bytes.
fn exchange(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut response = String::new();
    // A connection that is closed at once is one too many.
    let _ = stream.write_all(request).and_then(|()| stream.read_to_string(&mut response));
    response
}

fn get(address: &str, path: &str) -> Answer {
    let response = exchange(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes());
    status_and_body(&response)
}

fn status_and_body(response: &str) -> Answer {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {response:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {head}")), body.to_owned())
}

/// Where the program's endpoint is, which its log says.
fn address_of(program: &Program) -> String {
    loop {
        let line = program.stderr_line();
        if let Some((_, rest)) = line.split_once("metrics: http://") {
            return rest.strip_suffix("/metrics").expect("the path").to_owned();
        }
    }
}

/// A server with an endpoint.
fn watched(arguments: &[&str]) -> (Server, String) {
    let server = Server::with(&[arguments, &["--metrics", "127.0.0.1:0"]].concat());
    let address = address_of(&server.program);
    (server, address)
}

/// The types of families by name, and the values of samples by name and labels.
#[derive(Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn of(address: &str) -> Self {
        let (status, text) = get(address, "/metrics");
        assert_eq!(status, 200, "{text}");
        Self::parse(&text)
    }

    /// Every sample stands below the HELP and TYPE of its family, and is there once.
    fn parse(text: &str) -> Self {
        let (mut scrape, mut helped, mut family) = (Self::default(), String::new(), String::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, meaning) = help.split_once(' ').expect("a help");
                assert!(meaning.ends_with('.'), "{line}");
                name.clone_into(&mut helped);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(name, helped, "each has a help");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(scrape.types.insert(name.to_owned(), kind.to_owned()), None, "{name} is there once");
                name.clone_into(&mut family);
            } else {
                let (sample, value) = line.rsplit_once(' ').expect("a value");
                let name = sample.split('{').next().expect("a name");
                let is_histogram = scrape.types[&family] == "histogram";
                let suffixes: &[&str] = if is_histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} below {family}");
                let value = value.parse().expect("a number");
                assert_eq!(scrape.samples.insert(sample.to_owned(), value), None, "{sample} is there once");
            }
        }
        scrape
    }

    fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {:?}", self.samples.keys()))
    }

    /// Of the default cluster.
    fn of_default(&self, name: &str) -> f64 {
        self.value(&format!("{name}{{mode=\"shared\",cluster=\"default\"}}"))
    }

    /// The samples that only grow.
    fn growing(&self) -> impl Iterator<Item = (&String, f64)> {
        let grows = |sample: &str| {
            let name = sample.split('{').next().expect("a name");
            let is = |name: &str, kind: &str| self.types.get(name).is_some_and(|it| it == kind);
            let of_histogram = ["_bucket", "_sum", "_count"].iter().filter_map(|end| name.strip_suffix(end));
            is(name, "counter") || of_histogram.into_iter().any(|name| is(name, "histogram"))
        };
        self.samples.iter().filter(move |(sample, _)| grows(sample)).map(|(sample, value)| (sample, *value))
    }
}

/// Scrapes until that is so.
fn until(address: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let scrape = Scrape::of(address);
        if is_so(&scrape) {
            return scrape;
        }
        assert!(Instant::now() < deadline, "{:?}", scrape.samples);
        // Prometheus gets no event either.
        thread::sleep(Duration::from_millis(5));
    }
}

/// The output of promtool, which ends with that status.
fn promtool(arguments: &[&str], input: &str, status: i32) -> String {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("promtool, of Debian's package prometheus");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("text");
    assert_eq!(output.status.code(), Some(status), "{text}");
    text
}

#[test]
fn what_sql_does_is_counted() {
    let (server, address) = watched(&[]);
    let before = Scrape::of(&address);
    let mut client = server.connect();
    rows(&mut client, "create table t (a int primary key)");
    for statement in ["insert into t select generate_series(1, 10)", "update t set a = -a where a < 4"] {
        rows(&mut client, statement);
    }
    rows(&mut client, "delete from t where a < 0");
    rows(&mut client, "begin; insert into t values (100); rollback");
    for wrong in ["insert into t values (10)", "select * from nowhere", "select 1 / 0", "select 2 / 0"] {
        answer(&mut client, wrong).expect_err("an error");
    }
    answer(&mut client, "do $$ begin raise exception 'x' using errcode = 'ZZ999'; end $$").expect_err("an error");
    let active = "pg_stat_activity_count{mode=\"shared\",cluster=\"default\",state=\"idle\"}";
    assert_eq!(until(&address, |scrape| scrape.value(active) > 0.0).value(active), 1.0);
    drop(client);
    let inserted = |scrape: &Scrape| scrape.of_default("pg_stat_database_tup_inserted");
    let after = until(&address, |scrape| scrape.value(active) == 0.0 && inserted(scrape) > inserted(&before) + 10.0);
    let grown = |name: &str| after.of_default(name) - before.of_default(name);
    // Those of catalogs are among them, and of the statements of the cluster's own processes.
    assert!(grown("pg_stat_database_tup_updated") >= 3.0 && grown("pg_stat_database_tup_deleted") >= 3.0);
    assert!(grown("pg_stat_database_xact_commit") >= 4.0);
    assert_eq!(grown("pg_stat_database_xact_rollback"), 6.0, "one by hand, five by errors");
    assert!(grown("pg_stat_database_blks_hit") > 0.0 && grown("pg_stat_database_tup_returned") > 0.0);
    assert_eq!(grown("pglite_port_sessions_total"), 1.0);
    assert!(grown("pglite_port_received_bytes_total") > 400.0 && grown("pglite_port_sent_bytes_total") > 400.0);
    assert!(grown("pglite_port_turns_total") > 0.0 && grown("pglite_port_wal_bytes_total") > 500.0);
    let errors = |class| {
        after.value(&format!("pglite_port_errors_total{{mode=\"shared\",cluster=\"default\",class=\"{class}\"}}"))
    };
    assert_eq!(["23", "42", "22", "other"].map(errors), [1.0, 1.0, 2.0, 1.0]);
    let starts = "pglite_port_session_start_seconds_count{mode=\"shared\",cluster=\"default\"}";
    assert_eq!(after.value(starts) - before.value(starts), 1.0);
}

/// Columns of `pg_stat_database` that are counted.
const COLUMNS: [&str; 12] = [
    "xact_commit",
    "xact_rollback",
    "blks_read",
    "blks_hit",
    "tup_returned",
    "tup_fetched",
    "tup_inserted",
    "tup_updated",
    "tup_deleted",
    "temp_files",
    "temp_bytes",
    "deadlocks",
];

#[test]
fn statistics_are_those_of_postgresql() {
    let (server, address) = watched(&["--autovacuum", "off"]);
    let mut client = server.connect();
    let sums = COLUMNS.map(|column| format!("sum({column})")).join(", ");
    let mut both = || {
        rows(&mut client, "select pg_stat_force_next_flush()");
        let scrape = Scrape::of(&address);
        let shown = rows(&mut client, &format!("select {sums} from pg_stat_database")).pop().expect("a row");
        let shown: Vec<f64> = shown.split('|').map(|value| value.parse().expect("a number")).collect();
        (COLUMNS.map(|column| scrape.of_default(&format!("pg_stat_database_{column}"))), shown)
    };
    let (counted, shown) = both();
    let mut other = server.connect();
    rows(&mut other, "create table t as select generate_series(1, 1000) a; set work_mem = '64kB'");
    rows(&mut other, "select count(*) from (select a from generate_series(1, 20000) a order by 1 offset 0)");
    rows(&mut other, "update t set a = a + 1 where a < 100; delete from t where a > 900; create index on t (a)");
    rows(&mut other, "select * from t where a = 500; begin; insert into t values (1); rollback");
    rows(&mut other, "select pg_stat_force_next_flush()");
    let (counted_later, shown_later) = both();
    for (column, name) in COLUMNS.iter().enumerate() {
        let [counted, shown] = [counted_later[column] - counted[column], shown_later[column] - shown[column]];
        assert!(counted == shown, "{name}: {counted} were counted, PostgreSQL shows {shown}");
        assert!(counted > 0.0 || ["deadlocks", "blks_read"].contains(name), "{name}");
    }
}

#[test]
fn deadlocks_crashes_and_preemptions_are_counted() {
    let (server, address) = watched(&[]);
    let [one, other, watcher] = [(); 3].map(|()| Peer::connect(&server));
    one.run("create table t as select generate_series(1, 2) a");
    one.run("begin; update t set a = a where a = 1");
    other.run("begin; update t set a = a where a = 2");
    one.send("update t set a = a where a = 2");
    // A transaction shows what sessions did when it looked first.
    watcher.until_waiting(&one, "Lock");
    other.send("update t set a = a where a = 1");
    let ended = [one.answer(), other.answer()];
    assert_eq!(ended.iter().filter(|answer| answer.is_err()).count(), 1, "one of them is the victim");
    for peer in [&one, &other] {
        peer.run("rollback");
        peer.run("select pg_stat_force_next_flush()");
    }
    until(&address, |scrape| scrape.of_default("pg_stat_database_deadlocks") == 1.0);

    one.send(&unstoppable(300));
    other.until_active(one.process_id);
    assert_eq!(other.value("select 1"), "1");
    one.rows();
    let scrape = Scrape::of(&address);
    assert!(scrape.of_default("pglite_port_preemptions_total") > 0.0);
    assert!(scrape.of_default("pglite_port_slices_total") >= scrape.of_default("pglite_port_preemptions_total"));
    assert!(scrape.of_default("pglite_port_turn_wait_seconds_count") > 0.0);

    one.run("create function boom(int, int) returns text language internal strict as 'textcat'");
    one.send("select boom(2147483000, -1)");
    one.assert_ended("XX000");
    assert_eq!(Peer::connect(&server).value("select 1"), "1");
    let after = Scrape::of(&address);
    let counted = ["traps", "restarts"].map(|it| after.of_default(&format!("pglite_port_{it}_total")));
    assert_eq!(counted, [1.0, 1.0]);
    for (sample, value) in scrape.growing() {
        assert!(after.value(sample) >= value, "{sample} goes on growing after a crash");
    }
}

#[test]
fn sessions_that_were_ended_by_force_are_counted() {
    let name = "pglite_port_unresponsive_sessions_total";
    // With short slices the seconds that a session has to hear are less than one.
    let (server, address) = watched(&["--slice", "200"]);
    let [hears, deaf, other] = [(); 3].map(|()| Peer::connect(&server));
    hears.send("select pg_advisory_lock(1), pg_sleep(3600)");
    // It does not check for interrupts after it has the lock.
    deaf.send(
        "select pg_advisory_lock(2), length(translate(a, repeat('b', 1000000), ''))
            from (select repeat('a', 1000000) as a offset 0)",
    );
    for (peer, count) in [(&hears, 0.0), (&deaf, 1.0)] {
        other.until(&format!(
            "select exists (select from pg_locks where locktype = 'advisory' and pid = {})",
            peer.process_id
        ));
        other.run(&format!("select pg_terminate_backend({})", peer.process_id));
        peer.assert_ended("57P01");
        assert_eq!(Scrape::of(&address).of_default(name), count);
    }
}

#[test]
fn isolated_sessions_that_were_ended_by_force_are_counted() {
    let (server, address) = watched(&["--mode", "isolated"]);
    let counted = || Scrape::of(&address).value("pglite_port_unresponsive_sessions_total{mode=\"isolated\"}");
    assert_eq!(counted(), 0.0);
    for attempt in 1.. {
        let mut deaf = server.session(&[]);
        deaf.query(DEAF);
        until(&address, |scrape| scrape.value("pg_stat_activity_count{mode=\"isolated\",state=\"active\"}") == 1.0);
        drop(deaf);
        server.wait_for_connections(0);
        if counted() == 1.0 {
            break;
        }
        assert!(attempt < 10, "it has always heard before it computed");
    }
}

#[test]
fn a_scrape_needs_no_turn() {
    let (server, address) = watched(&[]);
    let (busy, watcher) = (Peer::connect(&server), Peer::connect(&server));
    busy.send(&unstoppable(400));
    watcher.until_active(busy.process_id);
    drop(watcher);
    let of_busy = "pg_stat_activity_count{mode=\"shared\",cluster=\"default\",state=\"active\"}";
    let scrape = until(&address, |scrape| scrape.of_default("pglite_port_sessions_total") == 2.0);
    assert_eq!((scrape.value(of_busy), busy.is_busy()), (1.0, true));
    assert_eq!(get(&address, "/readyz").0, 200);
    // Turns that begin are those of other processes, and of the session itself after them.
    let turns = scrape.of_default("pglite_port_turns_total");
    for _ in 0..100 {
        Scrape::of(&address);
    }
    let later = Scrape::of(&address);
    assert!(busy.is_busy() && later.of_default("pglite_port_turns_total") - turns < 50.0);
    assert_eq!(busy.rows(), ["1"]);
}

#[test]
fn the_text_is_in_the_format_of_prometheus() {
    let (server, address) = watched(&[]);
    let mut client = server.connect();
    rows(&mut client, "select 1");
    answer(&mut client, "select").ok();
    answer(&mut client, "nonsense").expect_err("an error");
    let response = exchange(&address, format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes());
    assert!(response.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{response}");
    let (_, text) = status_and_body(&response);
    // 3 is its status for names that are not as the conventions want them: those of postgres_exporter.
    let complaints = promtool(&["check", "metrics"], &text, 3);
    for complaint in complaints.lines() {
        let is_exporters = complaint.starts_with("pg_stat_database_")
            && complaint.ends_with("counter metrics should have \"_total\" suffix")
            || complaint
                == "pg_stat_activity_count non-histogram and non-summary metrics should not have \"_count\" suffix";
        assert!(is_exporters, "{complaint}");
    }
    let scrape = Scrape::parse(&text);
    let later = Scrape::of(&address);
    for (sample, value) in scrape.growing() {
        assert!(later.value(sample) >= value, "{sample} went down");
    }
    assert!(scrape.value("process_resident_memory_bytes") > 1e6 && scrape.value("pglite_port_cache_bytes") > 1e6);
    let head = exchange(&address, format!("HEAD /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes());
    assert!(head.ends_with("\r\n\r\n") && head.starts_with("HTTP/1.1 200"), "{head}");
}

#[test]
fn a_program_that_has_no_files_to_spare_is_not_ready() {
    let (server, address) = watched(&[]);
    let mut before = server.connect();
    assert_eq!(get(&address, "/readyz").0, 200);
    let open = fs::read_dir(format!("/proc/{}/fd", server.program.id())).expect("Linux").count() as u64;
    let inherited = getrlimit(Resource::Nofile);
    // An eighth is kept from sessions; the endpoint has some of it.
    let (status, reason) = (open / 2..=open * 2)
        .rev()
        .map(|limit| {
            server.program.limit(Resource::Nofile, Rlimit { current: Some(limit), ..inherited });
            get(&address, "/readyz")
        })
        .find(|(status, _)| *status != 200)
        .expect("there is such a limit");
    assert!(status == 503 && reason.starts_with("too many open files"), "{status} {reason}");
    assert_eq!(rows(&mut before, "select 1"), ["1"]);
    server.program.limit(Resource::Nofile, inherited);
    assert_eq!(get(&address, "/readyz").0, 200);
}

#[test]
fn isolated_connections_are_counted_together_and_clusters_each() {
    let (databases, connections) = cache::administered(Settings::default());
    let endpoint = Endpoint::start("127.0.0.1:0", || Ok(1)).expect("it listens");
    let address = endpoint.address().to_string();
    assert_eq!(get(&address, "/healthz").0, 200);
    let (status, reason) = get(&address, "/readyz");
    assert_eq!((status, reason.as_str()), (503, "the program starts\n"));
    assert_eq!(Scrape::of(&address).value("pglite_port_ready"), 0.0);
    endpoint.watch(databases.clone());
    assert_eq!(get(&address, "/readyz").0, 200);

    let connect = |id| Local::connect(&connections, Connect { id, ..Connect::default() }).0;
    let (mut one, mut other) = (connect(1), connect(2));
    one.values("create table t as select 1 a; select pg_stat_force_next_flush()");
    other.values("select 1");
    let scrape = until(&address, |scrape| scrape.value("pg_stat_database_tup_inserted{mode=\"isolated\"}") > 0.0);
    assert_eq!(scrape.value("pglite_port_sessions_total{mode=\"isolated\"}"), 2.0);
    assert_eq!(scrape.value("pglite_port_session_start_seconds_count{mode=\"isolated\"}"), 2.0);
    one.reset();
    other.values("create table t as select 1 a; select pg_stat_force_next_flush()");
    one.values("create table t as select 1 a; select pg_stat_force_next_flush()");
    let wal = |scrape: &Scrape| scrape.value("pglite_port_wal_bytes_total{mode=\"isolated\"}");
    let (inserted, written) = (scrape.value("pg_stat_database_tup_inserted{mode=\"isolated\"}"), wal(&scrape));
    until(&address, |scrape| scrape.value("pg_stat_database_tup_inserted{mode=\"isolated\"}") >= inserted + 2.0);

    // Two megabytes of rows, of which the log has a little more.
    other
        .values("insert into t select n from generate_series(1, 30000) n; select pg_stat_force_next_flush(); select 1");
    let scrape = until(&address, |scrape| wal(scrape) > written + 1.5e6);
    assert!(wal(&scrape) < written + 8e6, "what the template has written is not counted: {}", wal(&scrape));
    let memory =
        ["all", "largest"].map(|of| scrape.value(&format!("pglite_port_isolated_memory_bytes{{of=\"{of}\"}}")));
    let disk = ["all", "largest"].map(|of| scrape.value(&format!("pglite_port_isolated_disk_bytes{{of=\"{of}\"}}")));
    assert!(memory[0] > memory[1] && memory[1] > 2e6 && disk[0] > disk[1] && disk[1] > 2e7, "{memory:?} {disk:?}");
    // So much WAL that a checkpoint is due.
    for _ in 0..5 {
        other.values("insert into t select n from generate_series(1, 200000) n");
    }
    assert!(Scrape::of(&address).value("pglite_port_checkpoints_total{mode=\"isolated\"}") > 0.0);

    let origin = ClusterOrigin::Template("postgres".to_owned());
    let name = Some("a \"b\\".to_owned());
    databases.create_cluster(NewCluster { name, origin, ..NewCluster::default() }).expect("a cluster");
    let origin = ClusterOrigin::Branch("a \"b\\".to_owned());
    let name = Some("branch".to_owned());
    databases.create_cluster(NewCluster { name, origin, ..NewCluster::default() }).expect("a branch");
    let scrape = Scrape::of(&address);
    assert_eq!(scrape.value("pg_up{cluster=\"a \\\"b\\\\\"}"), 1.0);
    for origin in ["template", "branch"] {
        let count = format!("pglite_port_cluster_start_seconds_count{{origin=\"{origin}\"}}");
        assert_eq!(scrape.value(&count), 1.0);
    }
    databases.drop_cluster("branch").expect("it is there");
    assert!(!Scrape::of(&address).samples.contains_key("pg_up{cluster=\"branch\"}"));
}

#[test]
fn syncs_and_checkpoints_are_counted() {
    let data = tempfile::tempdir().expect("a directory");
    let (server, address) = watched(&["--data", data.path().to_str().expect("text")]);
    let mut client = server.connect();
    let before = Scrape::of(&address).of_default("pglite_port_sync_seconds_count");
    rows(&mut client, "create table t (a int)");
    let scrape = Scrape::of(&address);
    assert!(scrape.of_default("pglite_port_sync_seconds_count") > before, "a commit is synced");
    rows(&mut client, "checkpoint");
    let checkpoints = |scrape: &Scrape| scrape.of_default("pglite_port_checkpoints_total");
    until(&address, |later| checkpoints(later) > checkpoints(&scrape));
}

#[test]
fn connections_without_a_session_and_those_that_are_refused_are_counted() {
    let (server, address) = watched(&["--mode", "isolated", "--max-connections", "1"]);
    let half_open = "pglite_port_half_open_connections";
    assert_eq!(Scrape::of(&address).value(half_open), 0.0);
    let silent = [(); 3].map(|()| server.stream());
    until(&address, |now| now.value(half_open) == 3.0);
    let client = server.connect();
    assert!(server.config().connect(postgres::NoTls).is_err());
    let now = until(&address, |now| now.value(half_open) == 3.0);
    assert_eq!(now.value("pglite_port_refused_connections_total{class=\"53\"}"), 1.0);
    drop((silent, client));
    until(&address, |now| now.value(half_open) == 0.0);
}

#[test]
fn clients_that_say_nothing_or_too_much_hold_nothing_up_for_long() {
    let (_server, address) = watched(&["--mode", "isolated"]);
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&address).expect("it listens")).collect();
    let deadline = Instant::now() + PATIENCE;
    // Those that are silent leave, or have to, and then there is room.
    while !exchange(&address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
    drop(silent);
    let status = |request: &str| status_and_body(&exchange(&address, request.as_bytes())).0;
    let answered = [
        status("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        status("GET /metrics HTTP/1.1\r\n\r\n"),
        status("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"),
        status("GET /etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        status(&format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(8 << 10))),
        status("\0\0\0\u{8}\u{4}\u{2}\n"),
    ];
    assert_eq!(answered, [421, 421, 405, 404, 431, 400]);
}

#[test]
fn a_program_that_ends_is_not_ready() {
    let (server, address) = watched(&[]);
    let (busy, watcher) = (Peer::connect(&server), Peer::connect(&server));
    busy.send(DEAF);
    watcher.until_active(busy.process_id);
    assert_eq!(get(&address, "/readyz").0, 200);
    server.program.signal(Signal::TERM);
    // The program waits for the session, which does not check for interrupts for some seconds.
    let deadline = Instant::now() + PATIENCE;
    while get(&address, "/readyz").0 == 200 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(get(&address, "/readyz"), (503, "the program ends\n".to_owned()));
    assert_eq!(get(&address, "/healthz").0, 200);
}

#[test]
fn the_port_has_an_endpoint_too_and_an_address_in_use_is_refused() {
    let program = Program::spawn(&["port", "--metrics", "127.0.0.1:0"]);
    let address = address_of(&program);
    assert_eq!(get(&address, "/healthz").0, 200);
    until(&address, |scrape| scrape.value("pglite_port_ready") == 1.0);
    assert_eq!(Scrape::of(&address).value("pg_up{cluster=\"default\"}"), 1.0);
    let stderr = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--metrics", &address]);
    assert!(stderr.contains("--metrics HOST:PORT") && stderr.contains(&address), "{stderr}");
}

#[test]
fn memory_is_counted_by_cluster_and_by_kind_beside_its_limits() {
    let (server, address) = watched(&["--cluster-memory-limit", "300MB", "--memory-limit", "2GB"]);
    let names =
        ["pglite_port_cluster_memory_bytes{cluster=\"default\"}", "pglite_port_allocated_bytes{kind=\"files\"}"];
    let before = Scrape::of(&address);
    let rows = "create table t as select repeat(md5(n::text), 32) from generate_series(1, 20000) n";
    server.connect().batch_execute(rows).expect("a table");
    let after = Scrape::of(&address);
    for name in names {
        assert!(after.value(name) - before.value(name) > 20e6, "{name}");
    }
    let limits = ["pglite_port_cluster_memory_limit_bytes{cluster=\"default\"}", "pglite_port_memory_limit_bytes"];
    assert_eq!(limits.map(|name| after.value(name)), [314_572_800.0, 2_147_483_648.0]);
    let no_limit = "pglite_port_cluster_disk_limit_bytes{cluster=\"default\"}";
    assert!(!after.samples.contains_key(no_limit), "there is none");
}

/// What Prometheus is given of this project.
fn monitoring(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of metrics in an expression: words in it that begin as those of the program do.
fn names_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let begins = ["pglite_port_", "pg_", "process_"];
    words.filter(|word| begins.iter().any(|begin| word.starts_with(begin))).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_use_metrics_that_there_are() {
    let data = tempfile::tempdir().expect("a directory");
    let data_directory = data.path().to_str().expect("text");
    let (server, address) = watched(&["--data", data_directory, "--cluster-memory-limit", "1GB"]);
    answer(&mut server.connect(), "nonsense").expect_err("an error");
    let scrape = Scrape::of(&address);
    let there: BTreeSet<&str> = scrape.samples.keys().filter_map(|sample| sample.split('{').next()).collect();

    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yml");
    let checked = promtool(&["check", "rules", alerts.to_str().expect("text")], "", 0);
    assert!(checked.contains("SUCCESS"), "{checked}");
    let dashboard = monitoring("grafana/dashboards/pglite-port.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("an expression")).collect();
    assert!(expressions.len() > 20);
    let queries = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let queries = queries.map(|variable| variable["definition"].as_str().expect("a query"));
    let alerts = monitoring("alerts.yml");
    let used: BTreeSet<String> =
        expressions.iter().copied().chain(queries).chain([&*alerts]).flat_map(names_in).collect();
    assert!(used.len() > 20);
    for name in used {
        assert!(there.contains(&*name), "{name} is in no scrape");
    }
    for expression in expressions {
        let rule = expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$cluster", ".*");
        let file = data.path().with_extension("rules.yml");
        let rules = serde_json::json!({"groups": [{"name": "a", "rules": [{"record": "a", "expr": rule}]}]});
        fs::write(&file, rules.to_string()).expect("a file");
        promtool(&["check", "rules", file.to_str().expect("text")], "", 0);
        fs::remove_file(&file).expect("it is there");
    }
}

#[test]
fn prometheus_takes_the_example_of_its_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["prometheus/prometheus.yml", "alerts.yml"] {
        let file = directory.path().join(Path::new(name).file_name().expect("a name"));
        fs::write(file, monitoring(name)).expect("a file");
    }
    let configuration = directory.path().join("prometheus.yml");
    promtool(&["check", "config", configuration.to_str().expect("text")], "", 0);
}

#[test]
fn top_prints_the_figures_once_without_a_terminal() {
    let (server, address) = watched(&[]);
    let mut client = server.connect();
    rows(&mut client, "select 1");
    for arguments in [&["--once"][..], &[]] {
        let arguments = [&["top", &address, "--interval", "0.1"], arguments].concat();
        let (status, stdout, stderr) = Program::spawn(&arguments).output();
        assert_eq!(status, Some(0), "{stderr}");
        let lines: Vec<&str> = stdout.lines().collect();
        assert!(lines[0].starts_with("pglite-port ") && lines[0].ends_with(", ready"), "{stdout}");
        let columns: Vec<&str> = lines.last().expect("a cluster").split_whitespace().collect();
        assert_eq!(columns[..3], ["default", "1", "0"], "{stdout}");
        assert!(columns.len() == 12 && columns[8].ends_with("MB"), "{stdout}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{stdout}");
        assert!(!stdout.contains('\x1b'), "{stdout:?}");
    }
    drop(server);
    let stderr = Program::fail(&["top", &address]);
    assert!(stderr.contains(&address) && stderr.contains("--metrics"), "{stderr}");
}

#[test]
fn top_draws_in_a_terminal_and_puts_it_back() {
    let (_server, address) = watched(&[]);
    let program = env!("CARGO_BIN_EXE_pglite-port");
    let before = "before=$(stty -g)";
    let after = "test \"$before\" = \"$(stty -g)\" && echo put back";
    // Ctrl-C is a signal for the shell as well, and some shells end by it.
    let command = format!(
        "trap : INT; stty cols 70 rows 5; {before}; {program} top {address} --interval 0.1; echo status $?; {after}"
    );
    for key in [b'q', 3] {
        let mut terminal = Command::new("script")
            .args(["--quiet", "--flush", "--command", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script, of Debian's package bsdutils");
        let (mut keys, mut screen) = (terminal.stdin.take().expect("piped"), terminal.stdout.take().expect("piped"));
        let (mut seen, mut piece) = (String::new(), [0; 1024]);
        // Drawn, and drawn again.
        while seen.matches("COM/s").count() < 2 {
            let count = screen.read(&mut piece).expect("a screen");
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        keys.write_all(&[key]).expect("a key");
        screen.read_to_string(&mut seen).expect("text");
        terminal.wait().expect("it ends");
        assert!(seen.contains("\x1b[?1049h") && seen.contains("\x1b[?1049l"), "{seen:?}");
        assert!(seen.contains("status 0") && seen.contains("put back"), "{seen:?}");
        let drawn = seen.split("\x1b[H").nth(1).expect("a screen").split("\x1b[J").next().expect("its end");
        let lines: Vec<&str> = drawn.split("\r\n").map(|line| line.trim_start_matches("\x1b[K").trim_end()).collect();
        assert!(lines.len() <= 5 && lines.iter().all(|line| line.chars().count() <= 70), "{lines:?}");
    }
}
