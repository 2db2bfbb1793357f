//! Sockets that systemd opens and passes on to `pglite-port serve --listen systemd`.

mod support;

use std::{
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixListener},
};

use postgres::{Client, NoTls};
use rustix::process::Signal;
use support::{program::Program, server::rows};

const SERVE: [&str; 5] = ["serve", "--mode", "isolated", "--listen", "systemd"];

/// A program with that socket serves at its URL, and ends in order.
fn serve(socket: OwnedFd) -> String {
    let mut program = Program::spawn_activated(socket, &SERVE);
    let url = program.first_line();
    let mut client = Client::connect(&url, NoTls).expect("a session");
    assert_eq!(rows(&mut client, "select 1"), ["1"]);
    drop(client);
    program.signal(Signal::TERM);
    assert!(program.wait().0.success());
    url
}

#[test]
fn one_program_after_the_other_serves_at_a_socket_of_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    for _ in 0..2 {
        let url = serve(listener.try_clone().expect("a descriptor").into());
        assert_eq!(url, format!("postgresql://postgres@{address}/postgres"));
    }
}

#[test]
fn a_unix_socket_stays_when_the_program_has_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(".s.PGSQL.5432");
    let listener = UnixListener::bind(&path).expect("a socket");
    for _ in 0..2 {
        serve(listener.try_clone().expect("a descriptor").into());
        assert!(path.exists());
    }
}

#[test]
fn without_a_socket_or_with_another_file_the_program_says_what_to_do() {
    let said = Program::fail(&SERVE);
    assert!(said.contains("passed no socket on") && said.contains("--listen HOST:PORT"), "{said}");
    let file = tempfile::tempfile().expect("a file");
    let (status, _, said) = Program::spawn_activated(file.into(), &SERVE).output();
    assert!(status == Some(1) && said.contains("no socket that listens"), "{said}");
}
