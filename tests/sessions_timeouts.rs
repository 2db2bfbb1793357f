//! Every timeout of PostgreSQL's (manual, chapters 19.11 and 19.12).

mod support;

use std::time::{Duration, Instant};

use support::{peer::Peer, server::Server, session::errors};

#[test]
fn statement_timeout_ends_whatever_takes_too_long() {
    let server = Server::shared();
    let (peer, other) = (Peer::connect(&server), Peer::connect(&server));
    other.run("select pg_advisory_lock(1)");
    peer.run("set statement_timeout = '50ms'");
    for sql in [
        "select pg_sleep(1000)",
        "select count(*) from generate_series(1, 100000) a, generate_series(1, 100000) b",
        "do $$ begin loop end loop; end $$",
        "select pg_advisory_lock(1)",
    ] {
        let started = Instant::now();
        assert_eq!(peer.fail(sql), "57014", "{sql}");
        assert!(started.elapsed() >= Duration::from_millis(50), "{sql}: {:?}", started.elapsed());
    }
    assert_eq!(peer.run("select 1; select pg_sleep(0)"), ["1", ""]);
    peer.run("set statement_timeout = 0");
    peer.run("select pg_sleep(0.1)");
}

#[test]
fn transaction_timeout_ends_a_session_whose_transaction_takes_too_long() {
    let server = Server::shared();
    let mut session = server.session(&[("options", "-c transaction_timeout=50ms")]);
    session.values("begin");
    assert_eq!(errors(&session.until_closed()), ["25P04"]);
    let mut session = server.session(&[("options", "-c transaction_timeout=50ms")]);
    session.query("begin; select pg_sleep(1000)");
    assert_eq!(errors(&session.until_closed()), ["25P04"]);
}

#[test]
fn idle_in_transaction_session_timeout_ends_a_session_that_keeps_a_transaction_open() {
    let server = Server::shared();
    let other = Peer::connect(&server);
    other.run("create table t as select 1 as a");
    let mut session = server.session(&[("options", "-c idle_in_transaction_session_timeout=100ms")]);
    session.values("select 1");
    session.values("begin");
    session.values("update t set a = 2");
    other.send("update t set a = a + 10 returning a");
    assert_eq!(errors(&session.until_closed()), ["25P03"]);
    assert_eq!(other.rows(), ["11"], "rolled back, its lock is gone");
}

#[test]
fn idle_session_timeout_ends_a_session_that_says_nothing() {
    let server = Server::shared();
    let mut session = server.session(&[]);
    session.values("set idle_session_timeout = '50ms'");
    assert_eq!(errors(&session.until_closed()), ["57P05"]);
    // Not one in a transaction.
    let mut session = server.session(&[("options", "-c idle_session_timeout=30s")]);
    session.values("begin");
    session.values("set idle_session_timeout = '1ms'");
    assert_eq!(session.values("select 1"), ["1"]);
}

#[test]
fn lock_timeout_and_deadlock_timeout_run_side_by_side_with_statement_timeout() {
    let server = Server::shared();
    let (peer, other) = (Peer::connect(&server), Peer::connect(&server));
    other.run("create table t as select 1 as a");
    other.run("begin; lock table t");
    peer.run("set deadlock_timeout = '5ms'; set lock_timeout = '100ms'; set statement_timeout = '20s'");
    assert_eq!(peer.fail("select * from t"), "55P03");
    peer.run("set lock_timeout = '20s'; set statement_timeout = '100ms'");
    assert_eq!(peer.fail("select * from t"), "57014");
}

#[test]
fn many_sessions_have_their_timeouts_at_once() {
    let server = Server::shared();
    let peers: Vec<Peer> = (0..20).map(|_| Peer::connect(&server)).collect();
    let started = Instant::now();
    for peer in &peers {
        peer.send("set statement_timeout = '300ms'; select pg_sleep(1000)");
    }
    for peer in &peers {
        assert_eq!(peer.error(), "57014");
    }
    // Half of what they would take one after the other.
    assert!(started.elapsed() < Duration::from_millis(300) * 20 / 2, "{:?}", started.elapsed());
}
