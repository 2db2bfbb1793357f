//! How sessions end, what they leave behind, and how many there can be.

mod support;

use std::{
    net::Shutdown,
    time::{Duration, Instant},
};

use postgres::NoTls;
use support::{
    PATIENCE,
    peer::{LOCKS_OF_OTHERS, Peer},
    process::{anonymous_memory, open_files, threads},
    server::Server,
    wire,
};

#[test]
fn a_session_that_leaves_in_the_middle_of_a_transaction_leaves_no_trace() {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    watcher.run("create table t as select 1 as a");
    let ways: [fn(&mut support::session::Session); 4] = [
        |session| session.send(&wire::terminate()),
        |session| session.stream().shutdown(Shutdown::Both).expect("it is open"),
        // In the middle of a message.
        |session| {
            session.send(&wire::query("select 1")[..7]);
            session.stream().shutdown(Shutdown::Both).expect("it is open");
        },
        // In the middle of a COPY.
        |session| {
            session.query("copy t from stdin");
            session.until(b'G');
            session.send(&wire::message(b'd', b"5\n"));
            session.stream().shutdown(Shutdown::Both).expect("it is open");
        },
    ];
    for leave in ways {
        let mut session = server.session(&[]);
        session.values("begin");
        session.values("update t set a = 2");
        session.values("select pg_advisory_lock(7)");
        session.values("create temp table mine as select generate_series(1, 10)");
        session.values("declare c cursor for select * from t");
        leave(&mut session);
        watcher.run("set lock_timeout = '30s'");
        assert_eq!(watcher.run("update t set a = a + 10 returning a - 10"), ["1"]);
        watcher.run("update t set a = 1");
        watcher.until_sessions(1);
        assert_eq!(watcher.value(LOCKS_OF_OTHERS), "0");
        assert_eq!(watcher.value("select pg_try_advisory_lock(7)"), "t");
        watcher.run("select pg_advisory_unlock(7)");
        assert_eq!(watcher.value("select count(*) from pg_class where relname = 'mine'"), "0");
    }
}

#[test]
fn what_a_client_sent_before_it_left_is_still_carried_out() {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    watcher.run("create table t (a int)");
    let mut session = server.session(&[]);
    session.send(&[wire::query("insert into t select generate_series(1, 10000)"), wire::terminate()].concat());
    session.stream().shutdown(Shutdown::Write).expect("it is open");
    watcher.until("select count(*) = 10000 from t");
}

#[test]
fn temporary_files_are_gone_with_the_session_that_made_them() {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    let files = "select count(*) = {} from pg_ls_tmpdir()";
    let mut session = server.session(&[("options", "-c work_mem=64kB")]);
    session.values("begin");
    session.values("declare c cursor for select i from generate_series(1, 300000) i order by i desc");
    assert_eq!(session.values("fetch c"), ["300000"]);
    assert_eq!(watcher.run("select count(*) > 0 from pg_ls_tmpdir()"), ["t"]);
    session.stream().shutdown(Shutdown::Both).expect("it is open");
    watcher.until(&files.replace("{}", "0"));
}

#[test]
fn a_fatal_error_ends_its_session_and_no_other() {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    watcher.run("create table t as select 1 as a");
    let mut session = server.session(&[]);
    session.values("begin");
    session.values("update t set a = 2");
    // A message of a type that there is not.
    session.send(&wire::message(b'!', b""));
    assert_eq!(support::session::errors(&session.until_closed()), ["08P01"]);
    assert_eq!(watcher.run("update t set a = a + 10 returning a"), ["11"]);
    watcher.until_sessions(1);
}

#[test]
fn a_hundred_sessions_work_at_once_and_the_next_one_is_told_that_there_are_too_many() {
    let server = Server::shared();
    let mut peers: Vec<Peer> = (0..100).map(|_| Peer::connect(&server)).collect();
    peers[0].run("create table t (a int)");
    assert_eq!(Peer::refused(&server.config()), "53300");
    for (number, peer) in peers.iter().enumerate() {
        peer.send(&format!("insert into t values ({number}); select count(*) from generate_series(1, 1000)"));
    }
    for peer in &peers {
        assert_eq!(peer.rows(), ["1000"]);
    }
    assert_eq!(peers[99].value("select count(distinct a) from t"), "100");
    assert_eq!(peers[50].value("select count(*) from pg_stat_activity where backend_type = 'client backend'"), "100");
    peers.truncate(1);
    peers[0].until_sessions(1);
    assert_eq!(Peer::connect(&server).value("select count(*) from t"), "100");
}

#[test]
fn connections_that_come_and_go_leave_neither_memory_nor_slots_behind() {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    let config = server.config();
    let visit = |sessions| {
        for _ in 0..sessions {
            let mut client = config.connect(NoTls).expect("a session");
            let sum: i64 = client.query_one("select sum(i) from generate_series(1, 10) i", &[]).unwrap().get(0);
            assert_eq!(sum, 55);
        }
    };
    let churn = |sessions: u32| {
        std::thread::scope(|scope| {
            scope.spawn(|| visit(sessions / 2));
            scope.spawn(|| visit(sessions / 2));
        });
        watcher.until_sessions(1);
    };
    let id = server.program.id();
    let held = || (anonymous_memory(id), threads(id), open_files(id));
    churn(400);
    let before = held();
    churn(10_000);
    let deadline = Instant::now() + PATIENCE;
    // Threads end after their sessions, and the system tells nobody of it.
    loop {
        let after = held();
        if after.0 < before.0 + (8 << 20) && after.1 <= before.1 + 2 && after.2 <= before.2 + 2 {
            break;
        }
        let what = "memory, threads and files are";
        assert!(Instant::now() < deadline, "{what} {before:?} after 400 sessions, {after:?} after 10,000 more");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn prepared_transactions_are_refused_as_by_default() {
    let server = Server::shared();
    let peer = Peer::connect(&server);
    peer.run("create table t (a int)");
    // As in PostgreSQL's own default.
    assert_eq!(peer.value("show max_prepared_transactions"), "0");
    assert_eq!(peer.fail("begin; insert into t values (1); prepare transaction 'p'"), "55000");
}

#[test]
fn the_program_ends_in_order_while_sessions_run() {
    let mut server = Server::shared();
    let (busy, idle, waiting) = (Peer::connect(&server), Peer::connect(&server), Peer::connect(&server));
    idle.run("begin; select pg_advisory_xact_lock(1)");
    waiting.send("select pg_advisory_lock(1)");
    // In a transaction pg_stat_activity stays as it was first looked at.
    let watcher = Peer::connect(&server);
    watcher.until_waiting(&waiting, "Lock");
    busy.send("do $$ begin loop end loop; end $$");
    watcher.until_active(busy.process_id);
    server.program.signal(rustix::process::Signal::TERM);
    busy.assert_ended("57P01");
    waiting.assert_ended("57P01");
    let (status, _) = server.program.wait();
    assert_eq!(status.code(), Some(0));
}
