//! Reading the configuration again: `pg_reload_conf()`, a `SIGHUP` to the program, and the request `reload`.

mod support;

use pglite_port::frame::{Kind, Options};
use rustix::process::Signal;
use support::{
    peer::{Peer, code},
    port::Port,
    server::Server,
    wire::{self, Message},
};

#[test]
fn a_setting_reaches_the_session_itself_those_that_wait_and_those_that_come_later() {
    let server = Server::shared();
    let (peer, idle) = (Peer::connect(&server), Peer::connect(&server));
    peer.run("alter system set work_mem = '7MB'");
    assert_eq!(peer.value("show work_mem"), "4MB");
    assert_eq!(peer.value("select pg_reload_conf()"), "t");
    for session in [&peer, &idle] {
        session.until("select current_setting('work_mem') = '7MB'");
    }
    assert_eq!(Peer::connect(&server).value("show work_mem"), "7MB");
    peer.run("alter system reset work_mem; select pg_reload_conf()");
    idle.until("select current_setting('work_mem') = '4MB'");
    let later = Peer::connect(&server);
    later.until("select current_setting('work_mem') = '4MB'");
}

#[test]
fn a_setting_that_takes_a_restart_says_so() {
    let server = Server::shared();
    let peer = Peer::connect(&server);
    peer.run("alter system set max_prepared_transactions = 5; select pg_reload_conf()");
    peer.until("select pending_restart from pg_settings where name = 'max_prepared_transactions'");
    assert_eq!(peer.value("show max_prepared_transactions"), "0");
    let told = "parameter \"max_prepared_transactions\" cannot be changed without restarting the server";
    while !server.program.stderr_line().contains(told) {}
    // What the program's options say is no change of the file.
    assert_eq!(peer.run("select name from pg_settings where pending_restart"), ["max_prepared_transactions"]);
}

#[test]
fn the_clusters_own_processes_follow_a_reload() {
    let server = Server::with(&["--mode", "shared", "--set", "autovacuum_naptime=1s"]);
    let peer = Peer::connect(&server);
    let launchers = "from pg_stat_activity where backend_type = 'autovacuum launcher'";
    peer.until(&format!("select count(*) = 1 {launchers}"));
    peer.run("alter system set track_counts = off; select pg_reload_conf()");
    peer.until(&format!("select count(*) = 0 {launchers}"));
    peer.run("alter system reset track_counts; select pg_reload_conf()");
    peer.until(&format!("select count(*) = 1 {launchers}"));
}

/// What becomes of a connection of the role `guest`.
fn connect_as_guest(server: &Server) -> Result<(), String> {
    Peer::with(server.config().user("guest")).map(drop).map_err(|error| code(&error))
}

/// SQL that gives `pg_hba.conf` these lines.
fn rules(lines: &[&str]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("'{line}'")).collect();
    format!("copy (select unnest(array[{}])) to '/pglite/data/pg_hba.conf'", lines.join(", "))
}

#[test]
fn rules_for_connections_count_when_they_have_been_read_and_mistakes_in_them_never() {
    let server = Server::shared();
    let peer = Peer::connect(&server);
    peer.run("create role guest login");
    assert_eq!(connect_as_guest(&server), Ok(()));
    peer.run(&rules(&["host all guest all reject", "host all all all trust"]));
    assert_eq!(connect_as_guest(&server), Ok(()), "the rules have not been read yet");
    peer.run("select pg_reload_conf()");
    let refused = Err("28000".to_owned());
    while connect_as_guest(&server) != refused {}
    peer.run(&rules(&["host all all all no_such_method"]));
    peer.run("select pg_reload_conf()");
    while !server.program.stderr_line().contains("pg_hba.conf was not reloaded") {}
    assert_eq!(connect_as_guest(&server), refused, "the rules before stay in use");
    assert_eq!(Peer::connect(&server).value("select 1"), "1");
}

#[test]
fn a_hangup_signal_to_the_program_reads_the_configuration_again_in_both_modes() {
    for mode in ["shared", "isolated"] {
        let server = Server::with(&["--mode", mode]);
        let peer = Peer::connect(&server);
        peer.run("alter system set work_mem = '7MB'");
        server.program.signal(Signal::HUP);
        peer.until("select current_setting('work_mem') = '7MB'");
    }
}

#[test]
fn the_parent_can_ask_for_the_configuration_to_be_read_again() {
    for mode in ["shared", "isolated"] {
        let mut port = Port::spawn(&[]);
        port.send_frame(Kind::Open, 1, &Options::new().with("mode", mode).to_bytes());
        port.data(1, &wire::startup(&[("user", "postgres")]));
        let until_ready = |port: &mut Port| {
            let mut bytes = Vec::new();
            while !matches!(bytes[..], [.., b'Z', 0, 0, 0, 5, b'I']) {
                let frame = port.next();
                if frame.kind == Kind::Data {
                    bytes.extend(frame.payload);
                }
            }
            Message::all(bytes)
        };
        until_ready(&mut port);
        port.data(1, &wire::query("alter system set work_mem = '7MB'"));
        until_ready(&mut port);
        port.send_frame(Kind::Request, 7, b"reload\0\0");
        let reply = std::iter::from_fn(|| Some(port.next())).find(|frame| frame.kind == Kind::Reply);
        assert_eq!(reply.expect("an endless iterator").reply().0, "ok");
        loop {
            port.data(1, &wire::query("show work_mem"));
            if wire::values("show work_mem", &until_ready(&mut port)) == ["7MB"] {
                break;
            }
        }
    }
}
