//! Where a client is, as its session, the log and `pg_hba.conf` see it: over TCP, over a unix socket, in frames.

mod support;

use std::net::TcpListener;

use pglite_port::port::frame::{Kind, Options};
use postgres::{Config, NoTls};
use support::{
    port::Port,
    program::Program,
    server::{Server, rows},
    session::Session,
    wire::{self, Message},
};

const MODES: [&str; 2] = ["shared", "isolated"];
const ADDRESSES: &str =
    "select host(inet_client_addr()), inet_client_port(), host(inet_server_addr()), inet_server_port()";
const ACTIVITY: &str = "select client_addr, client_port from pg_stat_activity where pid = pg_backend_pid()";

#[test]
fn a_session_over_tcp_knows_the_addresses_of_both_ends() {
    for mode in MODES {
        for host in ["127.0.0.1", "::1"].into_iter().filter(|host| TcpListener::bind((*host, 0)).is_ok()) {
            let listen = if host.contains(':') { format!("[{host}]:0") } else { format!("{host}:0") };
            let server = Server::with(&["--mode", mode, "--listen", &listen]);
            let mut session = Session::new(server.stream());
            let (client, program) = (session.stream().local_addr(), session.stream().peer_addr());
            let (client, program) = (client.expect("its address").port(), program.expect("its address").port());
            session.send(&wire::startup(&[("user", "postgres")]));
            session.until_ready();
            session.query(ADDRESSES);
            let expected = [host.to_owned(), client.to_string(), host.to_owned(), program.to_string()];
            assert_eq!(only_row(&session.until_ready()), expected, "{mode}");
        }
    }
}

#[test]
fn a_session_over_a_unix_socket_has_no_addresses() {
    for mode in MODES {
        let directory = tempfile::tempdir().expect("a directory");
        let listen = format!("unix:{}", directory.path().display());
        let mut program = Program::spawn(&["serve", "--mode", mode, "--listen", &listen]);
        let config: Config = program.first_line().parse().expect("a URL");
        let mut client = config.connect(NoTls).expect("a session");
        assert_eq!(rows(&mut client, ADDRESSES), ["NULL|NULL|NULL|NULL"], "{mode}");
    }
}

#[test]
fn pg_stat_activity_shows_where_the_clients_of_a_shared_cluster_are() {
    let server = Server::shared();
    let mut session = server.session(&[]);
    let port = session.stream().local_addr().expect("its address").port();
    session.query(ACTIVITY);
    assert_eq!(only_row(&session.until_ready()), ["127.0.0.1".to_owned(), port.to_string()]);

    let mut port = Port::spawn(&["--mode", "shared"]);
    assert_eq!(ask(&mut port, 1, &Options::new(), ACTIVITY), ["NULL", "-1"]);
}

#[test]
fn frames_carry_the_addresses_of_both_ends_or_none_as_of_a_unix_socket() {
    for mode in MODES {
        let mut port = Port::spawn(&["--mode", mode]);
        assert_eq!(ask(&mut port, 1, &Options::new(), ADDRESSES), ["NULL"; 4], "{mode}");
        let between = |peer: &str, local: &str| {
            Options::new()
                .with("peer_address", peer)
                .with("peer_port", 40_001)
                .with("local_address", local)
                .with("local_port", 5433)
        };
        let answer = ask(&mut port, 2, &between("192.0.2.7", "198.51.100.1"), ADDRESSES);
        assert_eq!(answer, ["192.0.2.7", "40001", "198.51.100.1", "5433"], "{mode}");
        let answer = ask(&mut port, 3, &between("2001:db8::7", "2001:db8::1"), ADDRESSES);
        assert_eq!(answer, ["2001:db8::7", "40001", "2001:db8::1", "5433"], "{mode}");
        let answer = ask(&mut port, 4, &between("::ffff:192.0.2.7", "::ffff:198.51.100.1"), ADDRESSES);
        assert_eq!(answer, ["192.0.2.7", "40001", "198.51.100.1", "5433"], "{mode}");
    }
}

#[test]
fn a_reset_leaves_the_addresses_as_they_were() {
    let mut port = Port::spawn(&["--mode", "isolated"]);
    let peer = Options::new().with("peer_address", "192.0.2.7").with("peer_port", 40_001);
    let address = "select host(inet_client_addr())";
    assert_eq!(ask(&mut port, 1, &peer, address), ["192.0.2.7"]);
    let payload = [&b"reset\0"[..], &Options::new().with("connection", 1).to_bytes()].concat();
    port.send_frame(Kind::Request, 9, &payload);
    while port.next().kind != Kind::Reply {}
    port.data(1, &wire::query(address));
    assert_eq!(only_row(&until_ready(&port, 1)), ["192.0.2.7"]);
}

#[test]
fn addresses_that_are_none_are_refused() {
    let mut port = Port::spawn(&[]);
    for (id, options) in [
        (1, Options::new().with("peer_address", "localhost").with("peer_port", 1)),
        (2, Options::new().with("local_address", "::1").with("local_port", 65_536)),
        (3, Options::new().with("peer_address", "::1")),
        (4, Options::new().with("local_port", 1)),
    ] {
        port.send_frame(Kind::Open, id, &options.to_bytes());
        assert_eq!(port.until_closed(id).1[..2], ["FATAL", "22023"], "{options:?}");
    }
}

#[test]
fn rules_in_pg_hba_conf_see_the_real_address() {
    let mut port = Port::spawn(&["--mode", "shared"]);
    let from = |address: &str| Options::new().with("peer_address", address).with("peer_port", 40_001);
    let rules = "copy (values ('local all all trust'), ('host all all 192.0.2.0/24 reject'), \
                 ('host all all all trust')) to '/pglite/data/pg_hba.conf'";
    assert_eq!(ask(&mut port, 1, &Options::new(), &format!("{rules}; select 1")), ["1"]);
    let setting = "copy (select 'work_mem = 7MB') to '/pglite/data/postgresql.auto.conf'; select 4";
    assert_eq!(ask(&mut port, 4, &Options::new(), setting), ["4"]);
    assert_eq!(ask(&mut port, 5, &Options::new(), "select pg_reload_conf()"), ["t"]);
    // The postmaster reads all of its configuration, then forks.
    let mut id = 6;
    while ask(&mut port, id, &Options::new(), "show work_mem") != ["7MB"] {
        id += 1;
    }
    port.send_frame(Kind::Open, 3, &from("192.0.2.7").to_bytes());
    port.data(3, &wire::startup(&[("user", "postgres")]));
    let (bytes, _) = port.until_closed(3);
    let [_, code, message] = wire::error(bytes);
    assert_eq!(code, "28000");
    assert!(message.starts_with("pg_hba.conf rejects connection for host \"192.0.2.7\""), "{message}");
}

#[test]
fn lines_of_the_log_begin_with_the_real_address() {
    let mut port = Port::spawn(&["--mode", "shared", "--set", "log_line_prefix=<%r> "]);
    for (id, options, prefix) in [
        (1, Options::new(), "<[local]> WARNING"),
        (2, Options::new().with("peer_address", "192.0.2.7").with("peer_port", 40_001), "<192.0.2.7(40001)> WARNING"),
    ] {
        port.send_frame(Kind::Open, id, &options.to_bytes());
        port.data(
            id,
            &[wire::startup(&[("user", "postgres")]), wire::query("do $$ begin raise warning 'x'; end $$")].concat(),
        );
        let line = loop {
            let frame = port.next();
            assert!(frame.kind != Kind::Close, "{frame:?}");
            if (frame.kind, frame.id) == (Kind::Log, id) {
                break frame.options().get("text").expect("text").to_owned();
            }
        };
        assert!(line.starts_with(prefix), "{line}");
    }
}

/// Opens the connection `id` with these options and runs one query on it; its row.
fn ask(port: &mut Port, id: u32, options: &Options, sql: &str) -> Vec<String> {
    port.send_frame(Kind::Open, id, &options.to_bytes());
    port.data(id, &wire::startup(&[("user", "postgres")]));
    until_ready(port, id);
    port.data(id, &wire::query(sql));
    only_row(&until_ready(port, id))
}

/// The messages of the connection `id` up to its next `ReadyForQuery`.
fn until_ready(port: &Port, id: u32) -> Vec<Message> {
    let (mut bytes, mut messages) = (Vec::new(), Vec::new());
    while messages.last().is_none_or(|message: &Message| message.kind != b'Z') {
        let frame = port.next();
        assert!(frame.kind != Kind::Close, "{frame:?} after {messages:?}");
        if (frame.kind, frame.id) == (Kind::Data, id) {
            bytes.extend(frame.payload);
            messages.extend(std::iter::from_fn(|| Message::take(&mut bytes)));
        }
    }
    messages
}

fn only_row(messages: &[Message]) -> Vec<String> {
    let rows: Vec<_> = messages.iter().filter(|message| message.kind == b'D').collect();
    let [row] = &rows[..] else { panic!("{messages:?}") };
    row.values()
}
