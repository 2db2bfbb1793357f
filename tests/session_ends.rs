//! How sessions end from outside: clients that vanish, signals, a parent that is gone.

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
};

use pglite_port::port::frame::Kind;
use rustix::process::Signal;
use support::{
    PATIENCE,
    port::Port,
    program::Program,
    server::{Server, rows},
    session::errors,
    wire::{self, Message},
};

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_result_takes_its_backend_along() {
    let server = Server::start();
    let mut other = server.connect();
    let mut session = server.session(&[]);
    session.query("select repeat('x', 1000), generate_series(1, 1000000000)");
    session.until(b'D');
    drop(session);
    server.wait_for_connections(1);
    assert_eq!(rows(&mut other, "select 'alive'"), ["alive"]);
}

#[test]
fn a_client_that_vanishes_while_its_query_computes_or_sleeps_takes_its_backend_along() {
    let server = Server::start();
    for endless in ["loop null; end loop", "perform pg_sleep(1000000)"] {
        let mut session = server.session(&[]);
        session.query(&format!("do $$ begin raise notice 'begun'; {endless}; end $$"));
        session.until(b'N');
        drop(session);
        server.wait_for_connections(0);
    }
}

/// Tells that it begins, and then computes for long without a check for interrupts. What is computed with was made
/// before, because `repeat` checks for them.
fn begun_and_deaf() -> String {
    "do $$ declare a text := repeat('a', 1000000); b text := repeat('b', 1000000);
     begin raise notice 'begun'; a := translate(a, b, ''); end $$"
        .to_owned()
}

#[test]
fn a_backend_that_does_not_check_for_interrupts_ends_when_its_client_has_vanished_or_it_is_told_to() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.query(&begun_and_deaf());
    session.until(b'N');
    drop(session);
    server.wait_for_connections(0);

    let mut port = Port::spawn(&["--mode", "isolated"]);
    port.start(1, "postgres");
    port.data(1, &wire::query(&begun_and_deaf()));
    let mut answers = Vec::new();
    while !answers.windows(5).any(|text| text == b"begun") {
        answers.extend(port.next().payload);
    }
    port.request(2, "shutdown");
    while port.next().kind != Kind::Reply {}
    let (bytes, _) = port.until_closed(1);
    assert!(bytes.windows(6).any(|field| field == b"C57P01"), "{bytes:?}");
}

#[test]
fn a_backend_that_does_not_hear_a_cancel_ends() {
    let server = Server::start();
    let mut session = server.session(&[]);
    let (process_id, secret) = session.key();
    loop {
        session.query(&begun_and_deaf());
        session.until(b'N');
        server.cancel(process_id, &secret);
        let code = errors(&session.until(b'E')).remove(0);
        if code == "57P01" {
            break;
        }
        // It was heard before the statement that is to be cancelled had begun.
        assert_eq!(code, "57014");
        session.until_ready();
    }
    assert_eq!(session.until_closed().len(), 0);
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_message_or_a_transaction_takes_its_backend_along() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("begin; create table t (a int)");
    session.send(&wire::query("select 1")[..5]);
    drop(session);
    server.wait_for_connections(0);
}

/// What a client sends that has no more to say: a query that takes longer than a session may take to notice that its
/// client has hung up, and one whose result is larger than what the kernel buffers.
fn last_words() -> Vec<u8> {
    let queries = ["select pg_sleep(1.5)", "select repeat('x', 1000000) from generate_series(1, 20)", "select 'done'"];
    let startup = wire::startup(&[("user", "postgres")]);
    queries.iter().fold(startup, |bytes, sql| [bytes, wire::query(sql)].concat())
}

/// Asserts that everything is answered, then that the connection ends.
fn assert_answered(mut stream: impl Read) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an orderly end");
    let messages = Message::all(bytes);
    assert_eq!(errors(&messages), [""; 0]);
    let rows: Vec<_> = messages.iter().filter(|message| message.kind == b'D').collect();
    assert_eq!(rows.len(), 1 + 20 + 1);
    assert_eq!(rows[21].values(), ["done"]);
    assert_eq!(messages.last().expect("ReadyForQuery").kind, b'Z');
}

#[test]
fn a_client_that_only_stops_sending_gets_all_of_its_results() {
    for mode in ["isolated", "shared"] {
        let server = Server::with(&["--mode", mode]);
        let mut stream: TcpStream = server.stream();
        stream.write_all(&last_words()).expect("it listens");
        stream.shutdown(Shutdown::Write).expect("it is open");
        assert_answered(stream);

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listen = format!("unix:{}", path.display());
        let mut program = Program::spawn(&["serve", "--mode", mode, "--listen", &listen]);
        program.first_line();
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&last_words()).expect("it listens");
        stream.shutdown(Shutdown::Write).expect("it is open");
        assert_answered(stream);
    }
}

#[test]
fn a_client_that_stops_sending_and_vanishes_later_takes_its_backend_along() {
    let server = Server::start();
    let mut session = server.session(&[]);
    // The notice comes after it was found out that the client still reads.
    session.query("do $$ begin perform pg_sleep(1); raise notice 'still there'; perform pg_sleep(1000000); end $$");
    session.stream().shutdown(Shutdown::Write).expect("it is open");
    session.until(b'N');
    drop(session);
    server.wait_for_connections(0);
}

#[test]
fn sigterm_ends_sessions_that_are_idle_and_sessions_that_compute_and_then_the_program() {
    let mut server = Server::start();
    let mut idle = server.session(&[]);
    let mut in_transaction = server.session(&[]);
    in_transaction.values("begin");
    let mut computing = server.session(&[]);
    computing.query("do $$ begin raise notice 'begun'; loop null; end loop; end $$");
    computing.until(b'N');
    let mut sleeping = server.session(&[]);
    sleeping.query("do $$ begin raise notice 'begun'; perform pg_sleep(1000000); end $$");
    sleeping.until(b'N');
    server.program.signal(Signal::TERM);
    for session in [&mut idle, &mut in_transaction, &mut computing, &mut sleeping] {
        let messages = session.until_closed();
        assert_eq!(errors(&messages), ["57P01"]);
        let message = &messages.last().expect("the error").fields()[&'M'];
        assert_eq!(message, "terminating connection due to administrator command");
    }
    assert_eq!(server.program.wait().0.code(), Some(0));
}

/// A port with a session that has begun a query without end.
fn port_with_a_busy_session() -> Port {
    let mut port = Port::spawn(&["--mode", "isolated"]);
    port.start(1, "postgres");
    port.data(1, &wire::query("do $$ begin raise notice 'begun'; loop null; end loop; end $$"));
    let mut bytes = Vec::new();
    // The NOTICE comes after everything that a session begins with.
    while !bytes.windows(5).any(|part| part == b"begun") {
        let frame = port.next();
        assert!(matches!((frame.kind, frame.id), (Kind::Data | Kind::Window, 1)), "{frame:?}");
        if frame.kind == Kind::Data {
            bytes.extend(frame.payload);
        }
    }
    port
}

#[test]
fn the_end_of_stdin_ends_the_program_while_a_query_runs() {
    let mut port = port_with_a_busy_session();
    port.end_input();
    assert_eq!(port.exit_status().0, Some(0));
}

#[test]
fn sigterm_ends_the_port_in_order_while_a_query_runs() {
    let mut port = port_with_a_busy_session();
    port.signal(Signal::TERM);
    let (bytes, reason) = port.until_closed(1);
    assert_eq!(wire::error(bytes)[..2], ["FATAL", "57P01"]);
    assert_eq!(reason[1], "00000");
    assert_eq!(port.exit_status().0, Some(0));
}

#[test]
fn a_close_frame_ends_a_session_while_its_query_runs_and_is_answered_by_one() {
    let mut port = port_with_a_busy_session();
    port.close(1);
    assert_eq!(port.until_closed(1).1[1], "00000");
    port.start(2, "postgres");
    port.data(2, &wire::terminate());
    assert_eq!(port.until_closed(2).1[1], "00000");
    port.end_input();
    assert_eq!(port.exit_status().0, Some(0));
}
