//! Encrypted connections: certificates that clients verify, versions, reloads, and what goes wrong. The certificate
//! authority is made here.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    time::Instant,
};

use rustix::process::Signal;
use rustls::{
    ClientConnection, StreamOwned,
    version::{TLS12, TLS13},
};
use support::{
    PATIENCE,
    authority::{Authority, port, psql, session},
    program::Program,
    server::{Server, text},
    wire::{self, Message},
};

/// Runs a query in a new session; the values of its rows.
fn ask(stream: &mut StreamOwned<ClientConnection, TcpStream>, sql: &str) -> Vec<String> {
    stream.write_all(&wire::startup(&[("user", "postgres")])).expect("connected");
    until_ready(stream);
    query(stream, sql)
}

fn query(stream: &mut StreamOwned<ClientConnection, TcpStream>, sql: &str) -> Vec<String> {
    stream.write_all(&wire::query(sql)).expect("connected");
    wire::values(sql, &until_ready(stream))
}

fn until_ready(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Vec<Message> {
    let (mut received, mut messages, mut chunk) = (Vec::new(), Vec::new(), vec![0; 1 << 16]);
    while messages.last().is_none_or(|last: &Message| last.kind != b'Z') {
        let read = stream.read(&mut chunk).expect("an answer");
        assert_ne!(read, 0, "the connection has ended after {messages:?}");
        received.extend_from_slice(&chunk[..read]);
        messages.extend(std::iter::from_fn(|| Message::take(&mut received)));
    }
    messages
}

#[test]
fn psql_verifies_the_servers_name_and_certificate() {
    let authority = Authority::new();
    let stranger = Authority::new();
    for mode in ["shared", "isolated"] {
        let server = authority.serve(&["--mode", mode]);
        let full = |authority: &Authority| format!("sslmode=verify-full sslrootcert={}", authority.path("ca.pem"));
        assert_eq!(text(&psql(&server, &full(&authority), "select 1")), "1", "{mode}");
        let refused = psql(&server, &full(&stranger), "select 1");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("SSL error"), "{refused:?}");
        // Encryption is the client's choice.
        assert_eq!(text(&psql(&server, "sslmode=disable", "select 1")), "1", "{mode}");
        let mut large = psql(&server, &full(&authority), "select repeat('x', 10000000)");
        large.stdout.truncate(10_000_000);
        assert_eq!(text(&large).len(), 10_000_000, "{mode}");
    }
}

#[test]
fn a_server_without_a_certificate_refuses_to_encrypt() {
    let server = Server::with(&["--listen", "localhost:0"]);
    let refused = psql(&server, "sslmode=require", "select 1");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("server does not support SSL"), "{refused:?}");
}

#[test]
fn clients_ask_for_tls_or_begin_with_it_and_then_name_the_protocol() {
    let authority = Authority::new();
    let server = authority.serve(&[]);
    for version in [&[&TLS12][..], &[&TLS13]] {
        for protocols in [&[][..], &[&b"postgresql"[..]]] {
            let mut asked = session(&server, authority.client(version, protocols), false);
            assert_eq!(ask(&mut asked, "select 1"), ["1"]);
        }
        let mut direct = session(&server, authority.client(version, &[b"postgresql"]), true);
        assert_eq!(ask(&mut direct, "select 1"), ["1"]);
        let mut nameless = session(&server, authority.client(version, &[]), true);
        let _ = nameless.write_all(&wire::startup(&[("user", "postgres")]));
        assert!(!nameless.read(&mut [0; 99]).is_ok_and(|read| read > 0), "direct TLS needs the protocol's name");
        for is_direct in [false, true] {
            let mut other = session(&server, authority.client(version, &[b"h2"]), is_direct);
            assert!(other.write_all(&wire::startup(&[("user", "postgres")])).is_err() || other.read(&mut [0]).is_err());
        }
    }
}

#[test]
fn an_older_version_than_the_oldest_is_refused() {
    let authority = Authority::new();
    let server = authority.serve(&["--tls-min-version", "1.3"]);
    let mut old = session(&server, authority.client(&[&TLS12], &[]), false);
    assert!(old.write_all(&wire::startup(&[("user", "postgres")])).is_err() || old.read(&mut [0]).is_err());
    assert_eq!(ask(&mut session(&server, authority.client(&[&TLS13], &[]), false), "select 1"), ["1"]);
}

#[test]
fn rules_tell_encrypted_connections_from_others() {
    let authority = Authority::new();
    let rules = authority.path("rules");
    for (kind, encrypted, plain) in [("hostssl", true, false), ("hostnossl", false, true), ("host", true, true)] {
        fs::write(&rules, format!("{kind} all all all trust\n")).expect("a disk");
        for mode in ["shared", "isolated"] {
            let server = authority.serve(&["--mode", mode, "--auth", &rules]);
            for (sslmode, expected) in [("require", encrypted), ("disable", plain)] {
                let output = psql(&server, &format!("sslmode={sslmode}"), "select 1");
                assert_eq!(output.status.success(), expected, "{kind} {mode} {sslmode}: {output:?}");
                let told = String::from_utf8_lossy(&output.stderr);
                assert!(expected || told.contains("no pg_hba.conf entry for host"), "{told}");
            }
        }
    }
}

#[test]
fn certificates_of_clients_are_verified_and_name_the_role_where_a_rule_says_so() {
    let authority = Authority::new();
    let stranger = Authority::new();
    for name in ["postgres", "alice"] {
        authority.issue(name, &[]);
        stranger.issue(name, &[]);
    }
    let holding = |authority: &Authority, name: &str| {
        format!(
            "sslmode=require sslcert={} sslkey={}",
            authority.path(&format!("{name}.pem")),
            authority.path(&format!("{name}.key"))
        )
    };
    let (rules, password) = (authority.path("rules"), authority.path("password"));
    fs::write(&password, "secret\n").expect("a disk");
    let ca = authority.path("ca.pem");
    for (rule, good, told) in [
        ("hostssl all all all cert", &["postgres"][..], "certificate authentication failed for user \"postgres\""),
        ("hostssl all all all trust clientcert=verify-ca", &["postgres", "alice"], ""),
        ("hostssl all all all trust clientcert=verify-full", &["postgres"], "certificate authentication failed"),
        ("hostssl all all all scram-sha-256 clientcert=verify-ca", &["postgres", "alice"], ""),
    ] {
        fs::write(&rules, format!("{rule}\nhostnossl all all all reject\n")).expect("a disk");
        for mode in ["shared", "isolated"] {
            let arguments = ["--mode", mode, "--auth", &rules, "--password-file", &password, "--tls-client-ca", &ca];
            let server = authority.serve(&arguments);
            let connect = |login: &str| psql(&server, &format!("{login} password=secret"), "select current_user");
            for name in ["postgres", "alice"] {
                let output = connect(&holding(&authority, name));
                assert_eq!(output.status.success(), good.contains(&name), "{rule} {mode} {name}: {output:?}");
                assert!(
                    output.status.success() || String::from_utf8_lossy(&output.stderr).contains(told),
                    "{output:?}"
                );
                assert!(!connect(&holding(&stranger, name)).status.success(), "{rule} {mode}: a stranger's");
            }
            let none = connect("sslmode=require");
            let stderr = String::from_utf8_lossy(&none.stderr);
            assert!(stderr.contains("connection requires a valid client certificate"), "{rule} {mode}: {stderr}");
        }
    }
}

#[test]
fn rules_for_certificates_that_are_not_possible_stop_the_start() {
    let authority = Authority::new();
    let rules = authority.path("rules");
    fs::write(&rules, "local all all trust\nhostssl all all all cert clientname=DN\n").expect("a disk");
    let told = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--auth", &rules]);
    assert!(told.contains("line 2: clientname=DN is not supported"), "{told}");
}

#[test]
fn passwords_go_over_tls() {
    let authority = Authority::new();
    fs::write(authority.path("password"), "secret\n").expect("a disk");
    let password = authority.path("password");
    let server = authority.serve(&["--auth", "scram-sha-256", "--password-file", &password]);
    let output = psql(&server, "sslmode=require password=secret", "select 1");
    assert_eq!(text(&output), "1");
    let output = psql(&server, "sslmode=require password=wrong", "select 1");
    assert!(String::from_utf8_lossy(&output.stderr).contains("password authentication failed"), "{output:?}");
}

#[test]
fn an_idle_session_is_ended_and_told_so_over_tls() {
    let authority = Authority::new();
    for mode in ["shared", "isolated"] {
        let mut server = authority.serve(&["--mode", mode]);
        let mut stream = session(&server, authority.client(&[&TLS13], &[]), false);
        assert_eq!(ask(&mut stream, "select 1"), ["1"], "{mode}");
        server.program.signal(Signal::TERM);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("the end of the encrypted stream");
        assert_eq!(wire::error(bytes)[..2], ["FATAL", "57P01"], "{mode}");
        server.program.wait();
    }
}

#[test]
fn a_client_that_reads_late_gets_everything_of_a_session_that_has_ended() {
    let authority = Authority::new();
    let server = authority.serve(&[]);
    let mut stream = session(&server, authority.client(&[&TLS13], &[]), false);
    assert_eq!(ask(&mut stream, "select 1"), ["1"]);
    stream.write_all(&wire::query("select repeat('x', 3000000)")).expect("connected");
    stream.write_all(&wire::terminate()).expect("connected");
    // The program has the connection until all of it is read.
    server.wait_for_connections(1);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the end of the encrypted stream");
    let messages = Message::all(bytes);
    assert_eq!(messages.iter().find(|message| message.kind == b'D').map(|row| row.values()[0].len()), Some(3_000_000));
}

#[test]
fn files_are_read_again_at_a_reload_and_wrong_ones_change_nothing() {
    let authority = Authority::new();
    let server = authority.serve(&[]);
    let held = || {
        let mut stream = session(&server, authority.client(&[&TLS13], &[]), false);
        assert_eq!(ask(&mut stream, "select 1"), ["1"]);
        stream.conn.peer_certificates().expect("certificates")[0].clone()
    };
    let first = held();
    assert_eq!(held(), first);
    authority.issue("server", &["localhost"]);
    server.program.signal(Signal::HUP);
    let started = Instant::now();
    while held() == first {
        assert!(started.elapsed() < PATIENCE, "the files were not read");
    }
    let second = held();
    fs::write(authority.path("server.pem"), "nonsense").expect("a disk");
    server.program.signal(Signal::HUP);
    while !server.program.stderr_line().contains("TLS goes on with the files from before") {}
    assert_eq!(held(), second);
}

#[test]
fn files_that_cannot_be_used_stop_the_start_and_are_named() {
    let authority = Authority::new();
    let other = Authority::new();
    let fail = |certificate: &str, key: &str| {
        Program::fail(&["serve", "--listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key])
    };
    let (certificate, key) = (authority.path("server.pem"), authority.path("server.key"));
    for (certificate, key, told) in [
        ("/nowhere.pem", &key[..], "/nowhere.pem cannot be read as certificates"),
        (&key, &key, "has no certificate"),
        (&certificate, "/nowhere.key", "/nowhere.key cannot be read"),
        (&certificate, &other.path("server.key"), "cannot be used"),
    ] {
        let stderr = fail(certificate, key);
        assert!(stderr.contains(told), "{told}: {stderr}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("a disk");
    let stderr = fail(&certificate, &key);
    let told = format!("others can read the private key in {key} (mode 0644): chmod 600 {key}, or 640 if it is root's");
    assert!(stderr.contains(&told), "{stderr}");
}

#[test]
fn bytes_that_are_no_tls_end_their_connection_only() {
    let authority = Authority::new();
    let server = authority.serve(&[]);
    for beginning in [&b"\x16\x03\x01\xff\xffnonsense, and much of it"[..], b"\x16", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(format!("localhost:{}", port(&server))).expect("it listens");
        stream.write_all(beginning).expect("it listens");
        stream.shutdown(std::net::Shutdown::Write).expect("connected");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the end");
        assert!(answer.is_empty() || answer[0] == 0x15, "nothing but an alert of TLS: {answer:?}");
    }
    // What follows the request for TLS unencrypted is not taken for encrypted.
    let mut stream = TcpStream::connect(format!("localhost:{}", port(&server))).expect("it listens");
    stream.write_all(&[wire::ssl_request(), wire::startup(&[("user", "postgres")])].concat()).expect("it listens");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer.first(), Some(&b'S'));
    assert!(!answer.contains(&b'R'), "{answer:?}");
    assert_eq!(ask(&mut session(&server, authority.client(&[&TLS13], &[]), false), "select 1"), ["1"]);
}
