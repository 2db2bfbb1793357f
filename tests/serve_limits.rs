//! Clients that the program or the system has no room for: each gets an answer, and the others go on.

mod support;

use std::{
    fs,
    io::{Read, Write},
};

use rustix::process::{Resource, Rlimit, geteuid, getrlimit};
use support::{
    process,
    program::Program,
    server::{Server, rows},
    session::Session,
    wire::{self, Message},
};

/// A session, or SQLSTATE and hint of the error that the client gets.
fn connect(server: &Server) -> Result<Session, (String, String)> {
    let mut session = server.unready_session(&[("user", "postgres")]);
    let first = session.next().expect("an answer");
    if first.kind == b'E' { Err(code_and_hint(&first)) } else { Ok(session) }
}

/// The error that the next client gets.
fn refusal(server: &Server) -> Option<(String, String)> {
    connect(server).err()
}

fn code_and_hint(message: &Message) -> (String, String) {
    let fields = message.fields();
    let field = |letter| fields.get(&letter).cloned().unwrap_or_default();
    (field('C'), field('H'))
}

/// As many sessions as there is room for, and the error that the next client gets.
fn fill(server: &Server) -> (Vec<Session>, (String, String)) {
    let mut sessions = Vec::new();
    loop {
        match connect(server) {
            Ok(session) => sessions.push(session),
            Err(refusal) => return (sessions, refusal),
        }
    }
}

/// Waits until the log says that clients are refused, and of what there is too much.
fn refused_in_log(server: &Server, what: &str) {
    let is_it = |line: String| line.contains("refused") && line.contains(what);
    while !is_it(server.program.stderr_line()) {}
}

#[test]
fn no_more_isolated_clients_are_let_in_than_the_limit_says() {
    let server = Server::with(&["--mode", "isolated", "--max-connections", "2"]);
    let (first, mut second) = (server.connect(), server.connect());
    assert_eq!(refusal(&server).expect("no room").0, "53300");
    assert_eq!(rows(&mut second, "select 1"), ["1"]);
    drop(first);
    server.wait_for_connections(1);
    let mut third = server.connect();
    assert_eq!(rows(&mut third, "select 1"), ["1"]);
    assert_eq!(refusal(&server).expect("no room").0, "53300");
}

#[test]
fn clients_are_refused_before_the_descriptors_are_used_up() {
    let server = Server::start();
    let mut before = server.connect();
    let inherited = getrlimit(Resource::Nofile);
    server.program.limit(Resource::Nofile, Rlimit { current: Some(160), ..inherited });
    // Sessions first, with a margin for clients that only connect.
    let (sessions, (code, hint)) = fill(&server);
    assert!(code == "53300" && hint.contains("ulimit"), "{code} {hint}");
    refused_in_log(&server, "open files");
    // Clients that only ask for encryption take the rest. The next one gets an answer all the same, in the place of the
    // oldest of them.
    let ask = || {
        let mut stream = server.stream();
        stream.write_all(&wire::ssl_request()).expect("connected");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, *b"N");
        stream
    };
    let mut silent = [(); 60].map(|()| ask());
    let mut answer = Vec::new();
    silent[0].read_to_end(&mut answer).expect("the end");
    assert_eq!(wire::error(answer)[1], "53300");
    assert!(process::open_files(server.program.id()) < 160);
    assert_eq!(rows(&mut before, "create table t as select 1 a; select a from t"), ["1"]);
    let count = sessions.len();
    drop((silent, sessions));
    assert!(count > 10, "{count}");
    server.wait_for_connections(1);
    assert_eq!(refusal(&server), None);
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let hard = getrlimit(Resource::Nofile).maximum.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let server = Server::of(Program::spawn_with_few_files(64, &["serve", "--listen", "127.0.0.1:0"]));
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.program.id())).expect("it runs");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    assert_eq!(files.split_whitespace().take(2).collect::<Vec<_>>(), [&hard, &hard]);
    let mut clients: Vec<_> = (0..80).map(|_| server.connect()).collect();
    assert_eq!(rows(&mut clients[79], "select 1"), ["1"]);
}

#[test]
fn clients_that_say_nothing_keep_nobody_out_where_descriptors_are_few() {
    let server = Server::start();
    let inherited = getrlimit(Resource::Nofile);
    server.program.limit(Resource::Nofile, Rlimit { current: Some(400), ..inherited });
    // Each takes two descriptors of the program, so that most of these are too many.
    let mut silent = Vec::new();
    for _ in 0..500 {
        let mut stream = server.stream();
        stream.write_all(&[0]).expect("connected");
        silent.push(stream);
        if silent.len() % 50 == 0 {
            assert_eq!(refusal(&server), None, "beside {}", silent.len());
        }
    }
    let mut client = server.connect();
    assert_eq!(rows(&mut client, "select 1"), ["1"]);
    assert!(process::open_files(server.program.id()) < 400);
}

#[test]
fn sessions_are_refused_before_the_threads_are_used_up() {
    if !geteuid().is_root() {
        eprintln!("the system itself counts the threads of all programs of this user");
        return;
    }
    let server = Server::start();
    let mut before = server.connect();
    let inherited = getrlimit(Resource::Nproc);
    let limit = process::threads(server.program.id()) + 100;
    let current = Some(limit.try_into().expect("a number"));
    server.program.limit(Resource::Nproc, Rlimit { current, ..inherited });
    let (sessions, (code, hint)) = fill(&server);
    assert!(code == "53300" && hint.contains("ulimit -u"), "{code} {hint}");
    refused_in_log(&server, "too many threads");
    assert!(process::threads(server.program.id()) < limit, "some are left");
    assert_eq!(rows(&mut before, "select 1"), ["1"]);
    drop(sessions);
    server.wait_for_connections(1);
    server.program.limit(Resource::Nproc, inherited);
    assert_eq!(refusal(&server), None);
}

#[test]
fn a_client_that_there_is_no_thread_for_is_told_so() {
    let server = Server::start();
    let mut before = server.connect();
    let inherited = getrlimit(Resource::As);
    let used = process::bytes(&format!("/proc/{}/status", server.program.id()), "VmSize");
    // Less than the stack of a thread.
    server.program.limit(Resource::As, Rlimit { current: Some(used + (8 << 20)), ..inherited });
    let (code, hint) = refusal(&server).expect("no thread");
    assert_eq!(code, "53300");
    assert!(hint.contains("limits on processes and memory"), "{hint}");
    assert_eq!(rows(&mut before, "select 1"), ["1"]);
    server.program.limit(Resource::As, inherited);
    assert_eq!(refusal(&server), None);
}
