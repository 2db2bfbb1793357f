//! `pglite-port ready`: whether a server takes clients.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use support::{program::Program, server::Server};

/// Exit status and stdout of `ready`, which has a minute; nothing is on stderr.
fn ready(url: &str) -> (i32, String) {
    ready_within("60", url)
}

fn ready_within(timeout: &str, url: &str) -> (i32, String) {
    let (status, stdout, stderr) = Program::spawn(&["ready", "--timeout", timeout, url]).output();
    assert_eq!(stderr, "");
    (status.expect("it ends by itself"), stdout)
}

/// The URL of a server that gives its first client, which sends something, this answer and is then silent.
fn answering(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("postgres://postgres@{}/postgres", listener.local_addr().expect("its address"));
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut packet = [0; 256];
        assert!(client.read(&mut packet).expect("a startup packet") > 0);
        client.write_all(answer).expect("it listens");
        // Until it hangs up.
        let _ = client.read(&mut packet);
    });
    url
}

#[test]
fn a_server_that_lets_clients_in_is_ready() {
    for server in [Server::start(), Server::shared()] {
        assert_eq!(ready(&server.url), (0, "the server is ready\n".to_owned()));
    }
}

#[test]
fn a_server_on_a_unix_socket_is_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_str().expect("text");
    let mut program = Program::spawn(&["serve", "--mode", "isolated", "--listen", &format!("unix:{place}")]);
    let url = program.first_line();
    assert_eq!(ready(&url).0, 0);
    assert_eq!(ready(&format!("host={place} user=postgres dbname=postgres")).0, 0);
}

#[test]
fn a_server_that_asks_for_a_password_is_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    fs::write(&file, "secret\n").expect("a file");
    let server = Server::with(&["--auth", "scram-sha-256", "--password-file", file.to_str().expect("text")]);
    assert_eq!(ready(&server.url), (0, "the server is ready, and asks for a password\n".to_owned()));
}

#[test]
fn a_server_that_refuses_clients_is_not_ready_and_says_why() {
    let starting = b"E\0\0\0\x3fSFATAL\0C57P03\0Mthe database system is starting up\0\0";
    let mut answer = starting.to_vec();
    let length = u32::try_from(answer.len() - 1).expect("short");
    answer[1..5].copy_from_slice(&length.to_be_bytes());
    let said = ready(&answering(answer.leak()));
    assert_eq!(said, (1, "the server refuses clients: the database system is starting up (57P03)\n".to_owned()));
    let server = Server::start();
    let (status, said) = ready(&server.url.replace("/postgres", "/nowhere"));
    assert!(status == 1 && said.contains("\"nowhere\" does not exist (3D000)"), "{status}: {said}");
}

#[test]
fn what_answers_nothing_in_time_or_something_else_gives_no_answer() {
    let silent = answering(b"");
    let (status, said) = ready_within("0.2", &silent);
    assert!(status == 2 && said.contains("nothing came within 0.2 seconds"), "{status}: {said}");
    let (status, said) = ready(&answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    assert!(status == 2 && said.contains("not one of PostgreSQL's"), "{status}: {said}");
    let unused = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let (status, said) = ready(&format!("postgres://postgres@{unused}/postgres"));
    assert!(status == 2 && said.contains("no server answers at"), "{status}: {said}");
    let (status, said) = ready("postgres://host:port/");
    assert!(status == 2 && said.contains("address of the server"), "{status}: {said}");
}
