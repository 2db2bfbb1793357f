//! Clients that the program or the system has no room for: each gets an answer, and the others go on.

mod support;

use std::io::{Read, Write};

use rustix::process::{Resource, Rlimit, getrlimit};
use support::{
    process,
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
    let mut sessions = Vec::new();
    let (code, hint) = loop {
        match connect(&server) {
            Ok(session) => sessions.push(session),
            Err(refusal) => break refusal,
        }
    };
    assert!(code == "53300" && hint.contains("ulimit"), "{code} {hint}");
    let line = server.program.stderr_line();
    assert!(line.contains("refused") && line.contains("open files"), "{line}");
    // Clients that only ask for encryption take the rest, and the next one gets an answer all the same.
    let ask = || {
        let mut stream = server.stream();
        stream.write_all(&wire::ssl_request()).expect("connected");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, *b"N");
        stream
    };
    let silent = [(); 40].map(|()| ask());
    let (mut refused, mut answer) = (ask(), Vec::new());
    refused.read_to_end(&mut answer).expect("the end");
    assert_eq!(wire::error(answer)[1], "53300");
    while !server.program.stderr_line().contains("new clients are refused") {}
    assert!(process::open_files(server.program.id()) < 160);
    assert_eq!(rows(&mut before, "create table t as select 1 a; select a from t"), ["1"]);
    let count = sessions.len();
    drop((silent, sessions));
    assert!(count > 10, "{count}");
    server.wait_for_connections(1);
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
