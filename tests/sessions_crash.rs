//! A session that crashes takes its cluster's other sessions with it, and the cluster recovers.

mod support;

use std::collections::HashMap;

use pglite_port::port::frame::Kind;
use support::{
    library,
    peer::{LOCKS_OF_OTHERS, Peer},
    port::Port,
    server::Server,
    wire::{self, Message},
};

/// Makes `boom()`, which reads outside of its memory: an internal function that is declared with other types than it
/// has.
const BOOM: &str = "create function boom(int, int) returns text language internal strict as 'textcat'";
const CRASH: &str = "select boom(2147483000, -1)";

/// Runs the statement, which ends the session with that SQLSTATE.
fn end(peer: &Peer, sql: &str, sqlstate: &str) {
    peer.send(sql);
    peer.assert_ended(sqlstate);
}

#[test]
fn after_a_crash_all_sessions_end_and_the_cluster_has_what_was_committed() {
    let server = Server::shared();
    let (crashing, idle, waiting, busy) =
        (Peer::connect(&server), Peer::connect(&server), Peer::connect(&server), Peer::connect(&server));
    crashing.run(BOOM);
    crashing.run("create table t (a int primary key, b text); insert into t select i, repeat('x', i) from generate_series(1, 1000) i");
    crashing.run("create database other");
    idle.run("begin; insert into t values (5000, 'not committed'); select pg_advisory_xact_lock(1)");
    waiting.send("select pg_advisory_lock(1)");
    // In a transaction pg_stat_activity stays as it was first looked at.
    Peer::connect(&server).until_waiting(&waiting, "Lock");
    busy.send("do $$ begin loop end loop; end $$");
    Peer::connect(&server).until_active(busy.process_id);
    crashing.run("update t set b = 'committed' where a = 1");
    end(&crashing, CRASH, "XX000");
    for peer in [&waiting, &busy] {
        peer.assert_ended("57P02");
    }
    end(&idle, "commit", "57P02");

    let after = Peer::connect(&server);
    assert_eq!(after.value("select concat(count(*), ' ', max(a), ' ', min(b)) from t"), "1000 1000 committed");
    assert_eq!(after.value(LOCKS_OF_OTHERS), "0");
    after.run("insert into t values (5000, 'now'); checkpoint");
    assert_eq!(Peer::of(&server, "postgres", "other").value("select current_database()"), "other");
}

#[test]
fn a_session_that_keeps_a_lock_of_the_cluster_for_ever_ends_with_a_recovery() {
    // With short slices the half minute that it has is a second.
    let server = Server::with(&["--mode", "shared", "--slice", "200", "--allow-user-libraries"]);
    let (keeps, other) = (Peer::connect(&server), Peer::connect(&server));
    keeps.run("create table t as select generate_series(1, 1000) a");
    keeps.run(&library::export(&library::that_keeps_a_lock(), "/tmp/keeps.so"));
    keeps.run("create function keep() returns int language c as '/tmp/keeps.so', 'keep'");
    keeps.send("select keep()");
    other.until_active(keeps.process_id);
    // It does not hear this, and to end it alone would leave the lock locked.
    assert_eq!(other.value(&format!("select pg_terminate_backend({})", keeps.process_id)), "t");
    other.send("select pg_sleep(3600)");
    other.assert_ended("57P02");
    keeps.assert_ended("57P01");
    assert_eq!(Peer::connect(&server).value("select count(*) from t"), "1000");
}

#[test]
fn a_cluster_recovers_from_crash_after_crash() {
    let server = Server::shared();
    Peer::connect(&server).run(BOOM);
    Peer::connect(&server).run("create table t (round int); create index on t (round)");
    for round in 1..=5 {
        let (peer, other) = (Peer::connect(&server), Peer::connect(&server));
        other.run("begin; insert into t select 0 from generate_series(1, 1000)");
        peer.run(&format!("insert into t values ({round})"));
        if round % 2 == 0 {
            peer.run("vacuum");
            peer.run("checkpoint");
        }
        end(&peer, CRASH, "XX000");
        end(&other, "select 1", "57P02");
    }
    let rows = Peer::connect(&server).run("select round from t order by round");
    assert_eq!(rows, ["1", "2", "3", "4", "5"]);
}

#[test]
fn temporary_and_unlogged_tables_are_empty_or_gone_after_a_crash() {
    let server = Server::shared();
    let (peer, other) = (Peer::connect(&server), Peer::connect(&server));
    peer.run(BOOM);
    peer.run("create unlogged table u as select generate_series(1, 100)");
    other.run("create temp table mine as select 1");
    end(&peer, CRASH, "XX000");
    let after = Peer::connect(&server);
    assert_eq!(after.value("select count(*) from u"), "0");
    after.run("create temp table mine as select 2 as a");
    assert_eq!(after.value("select a from mine"), "2");
}

#[test]
fn clusters_of_other_connections_notice_nothing() {
    let mut framed = Framed::new();
    framed.open(1, "shared");
    framed.open(2, "isolated");
    framed.open(3, "isolated");
    assert_eq!(framed.run(2, "create table mine as select 7 as a"), "CZ");
    for id in [1, 3] {
        assert_eq!(framed.run(id, BOOM), "CZ");
        framed.port.data(id, &wire::query(CRASH));
        assert_eq!(framed.until(id, b'E'), "E");
        framed.until_closed(id, "XX000");
        assert_eq!(framed.run(2, "select a from mine"), "TDCZ", "{id}");
    }
    framed.open(4, "shared");
    assert_eq!(framed.run(4, "drop function boom"), "CZ");
}

/// Sessions of one program in different modes, through frames.
struct Framed {
    port: Port,
    received: HashMap<u32, Vec<u8>>,
}

impl Framed {
    fn new() -> Self {
        Self { port: Port::spawn(&[]), received: HashMap::new() }
    }

    /// Opens a session and waits until it is ready.
    fn open(&mut self, id: u32, mode: &str) {
        self.port.send_frame(Kind::Open, id, format!("mode\0{mode}\0\0").as_bytes());
        self.port.data(id, &wire::startup(&[("user", "postgres")]));
        assert!(self.until(id, b'Z').starts_with('R'));
    }

    /// Runs a query; the types of the messages that answer it, apart from the status of parameters.
    fn run(&mut self, id: u32, sql: &str) -> String {
        self.port.data(id, &wire::query(sql));
        self.until(id, b'Z').replace('S', "")
    }

    /// The types of the session's messages up to the next one of type `last`.
    fn until(&mut self, id: u32, last: u8) -> String {
        let mut kinds = String::new();
        loop {
            while let Some(message) = Message::take(self.received.entry(id).or_default()) {
                kinds.push(message.kind.into());
                if message.kind == last {
                    return kinds;
                }
            }
            let frame = self.port.next();
            assert!(frame.kind != Kind::Close, "{id}: {:?}", frame.reason());
            if frame.kind == Kind::Data {
                self.received.entry(frame.id).or_default().extend(frame.payload);
            }
        }
    }

    /// Waits until the program has closed the connection, for that reason.
    fn until_closed(&mut self, id: u32, sqlstate: &str) {
        let closed = std::iter::from_fn(|| Some(self.port.next())).find(|frame| frame.kind == Kind::Close);
        let closed = closed.expect("an endless iterator");
        assert_eq!((closed.id, &closed.reason()[1][..]), (id, sqlstate));
    }
}

#[test]
fn the_program_shuts_down_in_order_after_a_crash() {
    let mut server = Server::shared();
    let peer = Peer::connect(&server);
    peer.run(BOOM);
    end(&peer, CRASH, "XX000");
    Peer::connect(&server).run("select 1");
    server.program.signal(rustix::process::Signal::TERM);
    assert_eq!(server.program.wait().0.code(), Some(0));
}
