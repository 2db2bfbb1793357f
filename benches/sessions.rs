//! The cost of one session: inside the process, over a socket, and from the start of the program; compared with PGlite
//! on Node.js.

mod support;

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, SamplingMode};
use pglite_port::{
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    port::frame::{Frame, Kind, Parsed, parse},
    session::Mode,
};
use support::{
    conversation::{Script, converse},
    node,
    rows::{Aim, Figure, Row, Unit, leave},
    samples, wire,
};

const MODES: [Mode; 2] = [Mode::Shared, Mode::Isolated];
const PROGRAM: &str = env!("CARGO_BIN_EXE_pglite-port");
/// The name of the comparisons in criterion's files.
const NODE: &str = "PGlite on Node";
const INSERTS: usize = 25_000;

/// Each script with its name and the aim for the time of one round, in seconds.
fn scripts() -> Vec<(&'static str, Script, Option<f64>)> {
    let once = |message: Vec<u8>, answer| Script { setup: Vec::new(), round: vec![message], answer };
    vec![
        ("SELECT 1, simple", once(wire::query("SELECT 1"), b'T'), Some(6e-6)),
        (
            "SELECT 1, prepared",
            Script { setup: vec![wire::prepare("one", "SELECT 1")], round: vec![wire::execute("one")], answer: b'2' },
            Some(6e-6),
        ),
        ("SQL error", once(wire::query("SELECT 1/0"), b'E'), None),
        ("25,000 INSERTs in a transaction, one by one", inserts(), None),
        ("25,000 INSERTs in a transaction, as one script", script_of(&inserts()), None),
    ]
}

/// A transaction of single-row INSERTs into a new table, which is then dropped.
fn inserts() -> Script {
    let values = (0..INSERTS).map(|n| {
        let hash = n.wrapping_mul(2_654_435_761) % 1_000_000;
        format!("INSERT INTO numbers VALUES ({n}, {hash}, 'the number {n} is followed by {hash}')")
    });
    let first = ["CREATE TABLE numbers (a integer, b integer, c varchar(100))".to_owned(), "BEGIN".to_owned()];
    let last = ["COMMIT".to_owned(), "DROP TABLE numbers".to_owned()];
    let round = first.into_iter().chain(values).chain(last).map(|sql| wire::query(&sql)).collect();
    Script { setup: Vec::new(), round, answer: b'C' }
}

/// The same queries as a single message.
fn script_of(script: &Script) -> Script {
    // A query message is its type, its length, the SQL and a NUL.
    let sql: Vec<&[u8]> = script.round.iter().map(|message| &message[5..message.len() - 1]).collect();
    let round = wire::message(b'Q', &[&sql.join(&b"; "[..])[..], b"\0"].concat());
    Script { setup: Vec::new(), round: vec![round], answer: b'C' }
}

fn main() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("criterion");
    let mut criterion = Criterion::default().output_directory(&directory).without_plots().configure_from_args();
    let scripts = scripts();

    in_process(&mut criterion, &scripts);
    over_loopback(&mut criterion, &scripts);
    first_answer(&mut criterion);
    criterion.final_summary();

    // A run with a filter or a profiler does not replace the figures of the last whole run.
    if env::args().skip(1).all(|argument| argument == "--bench") {
        leave("sessions", &rows(&directory, &scripts));
    }
}

fn in_process(criterion: &mut Criterion, scripts: &[(&'static str, Script, Option<f64>)]) {
    for mode in MODES {
        let log = LogSink::to_own_log();
        let databases = Databases::open(&Paths::default(), mode, Settings::default(), log).expect("databases");
        let connections = Arc::new(Connections::new(Arc::new(databases)));
        let mut group = criterion.benchmark_group(format!("{mode} in process"));
        for (name, script, _) in scripts {
            set_effort(&mut group, script);
            group.bench_function(*name, |bencher| {
                bencher.iter_custom(|rounds| converse(&connections, mode, script, rounds));
            });
        }
        connections.shut_down();
    }
}

fn over_loopback(criterion: &mut Criterion, scripts: &[(&'static str, Script, Option<f64>)]) {
    for mode in MODES {
        let mut serve = Command::new(PROGRAM);
        serve.args(["serve", "--listen", "127.0.0.1:0", "--mode", &mode.to_string()]);
        over_socket(criterion, &mode.to_string(), &Server::start(serve), scripts);
    }
    over_socket(criterion, NODE, &Server::start(node::serve()), scripts);
}

fn over_socket(
    criterion: &mut Criterion,
    whose: &str,
    server: &Server,
    scripts: &[(&'static str, Script, Option<f64>)],
) {
    let mut group = criterion.benchmark_group(format!("{whose} over loopback"));
    for (name, script, _) in scripts {
        set_effort(&mut group, script);
        let mut socket = server.connect();
        for message in &script.setup {
            socket.ask(message);
        }
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                let answer = script.round.iter().fold(0, |_, message| socket.ask(message));
                assert_eq!(char::from(answer), char::from(script.answer));
            });
        });
    }
}

fn set_effort(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, script: &Script) {
    if script.round.len() > 1 || script.round[0].len() > 1 << 20 {
        group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(10));
    } else {
        group.sample_size(50).sampling_mode(SamplingMode::Auto).measurement_time(Duration::from_secs(4));
    }
}

/// From the start of the program, whose cache is filled, to the end of its first answer.
fn first_answer(criterion: &mut Criterion) {
    for mode in MODES {
        let mut group = criterion.benchmark_group(format!("{mode} start"));
        group.sample_size(20).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(5));
        group.bench_function("first answer", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| start_and_ask(mode)).sum());
        });
    }
}

fn start_and_ask(mode: Mode) -> Duration {
    let mode = mode.to_string();
    let start = Instant::now();
    let mut child = Command::new(PROGRAM)
        .args(["port", "--mode", &mode])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let data = [wire::startup(&[("user", "postgres"), ("database", "postgres")]), wire::query("SELECT 1")].concat();
    let mut frames = Vec::new();
    for (kind, payload) in [(Kind::Open, &b"\0"[..]), (Kind::Data, &data)] {
        Frame { kind, id: 1, payload }.encode(&mut frames).expect("short enough");
    }
    stdin.write_all(&frames).expect("the program reads");
    let (mut received, mut answer, mut chunk) = (Vec::new(), Vec::new(), vec![0; 1 << 16]);
    // One ReadyForQuery for the startup packet, one for the query.
    let mut ready = 0;
    while ready < 2 {
        let read = stdout.read(&mut chunk).expect("the program writes");
        assert_ne!(read, 0, "the program ended");
        received.extend_from_slice(&chunk[..read]);
        while let Parsed::Frame { frame, consumed } = parse(&received).expect("frames") {
            assert_ne!(frame.kind, Kind::Close, "{:?}", String::from_utf8_lossy(frame.payload));
            if frame.kind == Kind::Data {
                answer.extend_from_slice(frame.payload);
            }
            received.drain(..consumed);
        }
        ready = answer.windows(5).filter(|bytes| *bytes == b"Z\0\0\0\x05").count();
    }
    let took = start.elapsed();
    drop(stdin);
    child.wait().expect("the program ends");
    took
}

/// A server that prints its address and runs until it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("an address");
        let address = line.trim().trim_start_matches("postgresql://postgres@").trim_end_matches("/postgres").to_owned();
        Self { child, address }
    }

    fn connect(&self) -> Socket {
        let stream = TcpStream::connect(&self.address).expect("the program listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let mut socket = Socket { stream, answer: vec![0; 1 << 16] };
        socket.ask(&wire::startup(&[("user", "postgres"), ("database", "postgres")]));
        socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has no data to keep.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client on a TCP socket with as little overhead as possible.
struct Socket {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Socket {
    /// Sends a message and reads until the server is ready for the next one. Returns the type of the first message of
    /// its answer.
    fn ask(&mut self, message: &[u8]) -> u8 {
        self.stream.write_all(message).expect("the server reads");
        let (mut filled, mut first) = (0, None);
        loop {
            let read = self.stream.read(&mut self.answer[filled..]).expect("the server answers");
            assert_ne!(read, 0, "the server hung up");
            filled += read;
            let first = *first.get_or_insert(self.answer[0]);
            if wire::is_ready_for_query(&self.answer[..filled]) {
                return first;
            }
            if filled == self.answer.len() {
                // Only the end is checked.
                self.answer.copy_within(filled - 8.., 0);
                filled = 8;
            }
        }
    }
}

/// The lines of the table.
fn rows(directory: &Path, scripts: &[(&'static str, Script, Option<f64>)]) -> Vec<Row> {
    let read = |group: &str, name: &str| {
        let figure = samples::read(directory, &format!("{}/{}", id(group), id(name)));
        figure.unwrap_or_else(|| panic!("{group}/{name} was not measured"))
    };
    let named: Vec<_> = scripts.iter().map(|(name, script, _)| (*name, script)).collect();
    let in_node = node::converse(&named, 10, 0.5);
    let start_of_node = node::first_answer(5);
    let node = node::name();
    let row = |what: String, ours: Figure, other: Figure, aim: Option<f64>| Row {
        what,
        unit: Unit::Seconds,
        ours,
        other: Some((node.clone(), other)),
        aim: aim.map(Aim::Figure),
    };
    let mut rows = Vec::new();
    for mode in MODES {
        let start = read(&format!("{mode} start"), "first answer");
        rows.push(row(format!("{mode}: start of the program to first answer"), start, start_of_node, Some(0.15)));
        for (name, _, aim) in scripts {
            let ours = read(&format!("{mode} in process"), name);
            rows.push(row(format!("{mode}: {name}, in process"), ours, in_node[*name], *aim));
        }
        for (name, _, _) in scripts {
            let ours = read(&format!("{mode} over loopback"), name);
            let other = read(&format!("{NODE} over loopback"), name);
            rows.push(row(format!("{mode}: {name}, over loopback"), ours, other, None));
        }
    }
    rows
}

/// A name in the form of criterion's directories.
fn id(name: &str) -> String {
    name.replace(['?', '"', '/', '\\', '*', '<', '>', ':', '|', '^'], "_")
}
