//! Sessions that are cancelled and ended from outside: by function, and by the protocol's cancel request.

mod support;

use std::time::{Duration, Instant};

use support::{
    peer::Peer,
    server::Server,
    session::{Session, errors, kinds},
    wire,
};

/// Statements that go on until somebody ends them, and what the view of activity shows when they are under way.
const ENDLESS: [(&str, &str); 8] = [
    ("select count(*) from generate_series(1, 100000) a, generate_series(1, 100000) b", "true"),
    ("select max(i) from (with recursive r as (select 1 as i union all select 1 from r) select * from r) x", "true"),
    ("do $$ begin loop end loop; end $$", "true"),
    ("do $$ begin loop begin perform 1 / 0; exception when division_by_zero then null; end; end loop; end $$", "true"),
    ("select pg_sleep(1000)", "wait_event = 'PgSleep'"),
    ("select pg_advisory_lock(1)", "wait_event_type = 'Lock'"),
    ("update t set a = 2", "wait_event_type = 'Lock'"),
    ("select count(regexp_replace(repeat('a', 100) || i, '(a*)*b', '')) from generate_series(1, 100000000) i", "true"),
];

/// A server, a session that holds what others wait for, and one that watches.
fn server() -> (Server, Peer, Peer) {
    let server = Server::shared();
    let (holder, watcher) = (Peer::connect(&server), Peer::connect(&server));
    holder.run("create table t as select 1 as a; select pg_advisory_lock(1)");
    holder.run("begin; update t set a = 3");
    (server, holder, watcher)
}

#[test]
fn whatever_a_session_does_it_can_be_cancelled_by_function_and_goes_on() {
    let (server, _holder, watcher) = server();
    let victim = Peer::connect(&server);
    for (sql, condition) in ENDLESS {
        victim.send(sql);
        watcher.until_active_and(victim.process_id, condition);
        assert_eq!(watcher.value(&format!("select pg_cancel_backend({})", victim.process_id)), "t");
        assert_eq!(victim.error(), "57014", "{sql}");
        assert_eq!(victim.value("select 1"), "1", "{sql}");
    }
}

#[test]
fn whatever_a_session_does_it_can_be_cancelled_by_its_key_within_milliseconds() {
    let (server, _holder, watcher) = server();
    let mut victim = server.session(&[]);
    let (process_id, key) = victim.key();
    for (sql, condition) in ENDLESS {
        let took = [(); 5].map(|()| {
            victim.query(sql);
            watcher.until_active_and(process_id, condition);
            let started = Instant::now();
            server.cancel(process_id, &key);
            assert_eq!(errors(&victim.until_ready()), ["57014"], "{sql}");
            let took = started.elapsed();
            assert_eq!(victim.values("select 1"), ["1"], "{sql}");
            took
        });
        // A busy machine may delay one of them, not all.
        assert!(took.iter().min() < Some(&Duration::from_millis(20)), "{sql}: {took:?}");
    }
}

#[test]
fn whatever_a_session_does_it_can_be_ended() {
    let (server, _holder, watcher) = server();
    for (sql, condition) in ENDLESS {
        let victim = Peer::connect(&server);
        victim.send(sql);
        watcher.until_active_and(victim.process_id, condition);
        assert_eq!(watcher.value(&format!("select pg_terminate_backend({}, 60000)", victim.process_id)), "t", "{sql}");
        victim.assert_ended("57P01");
    }
    assert_eq!(watcher.value("select count(*) from pg_stat_activity where backend_type = 'client backend'"), "2");
}

#[test]
fn a_session_that_waits_for_its_client_can_be_ended() {
    let (server, _holder, watcher) = server();
    for before in ["select 1", "begin", "begin; lock table pg_attribute; declare c cursor for select 1"] {
        let mut victim = server.session(&[]);
        victim.values(before);
        let (process_id, _) = victim.key();
        assert_eq!(watcher.value(&format!("select pg_terminate_backend({process_id}, 60000)")), "t");
        assert_eq!(errors(&victim.until_closed()), ["57P01"], "{before}");
    }
    assert_eq!(watcher.value("select pg_cancel_backend(1)"), "f");
    assert_eq!(watcher.value("select pg_terminate_backend(1)"), "f");
}

/// Starts `COPY FROM STDIN` and sends a part of its data.
fn copying_in(server: &Server) -> Session {
    let mut session = server.session(&[]);
    session.query("copy t from stdin");
    assert_eq!(kinds(&session.until(b'G')), "G");
    session.send(&wire::message(b'd', b"7\n8\n"));
    session
}

/// Starts `COPY TO STDOUT` of more than any buffer holds, and reads nothing of it.
fn copying_out(server: &Server, watcher: &Peer) -> Session {
    let mut session = server.session(&[]);
    session.query("copy (select repeat('x', 1000) from generate_series(1, 100000000)) to stdout");
    watcher.until_active_and(session.key().0, "wait_event = 'ClientWrite'");
    session
}

#[test]
fn a_copy_from_the_client_can_be_cancelled_and_ended_while_it_waits_for_data() {
    let (server, _holder, watcher) = server();
    let mut victim = copying_in(&server);
    let (process_id, key) = victim.key();
    watcher.until_active_and(process_id, "wait_event = 'ClientRead'");
    server.cancel(process_id, &key);
    // PostgreSQL notices when the client sends the next message (src/backend/tcop/postgres.c,
    // ProcessClientReadInterrupt).
    victim.send(&[wire::message(b'd', b"9\n"), wire::message(b'c', b"")].concat());
    assert_eq!(errors(&victim.until_ready()), ["57014"]);
    assert_eq!(victim.values("select count(*) from t"), ["1"]);

    let mut victim = copying_in(&server);
    let (process_id, _) = victim.key();
    watcher.until_active_and(process_id, "wait_event = 'ClientRead'");
    assert_eq!(watcher.value(&format!("select pg_terminate_backend({process_id}, 60000)")), "t");
    assert_eq!(errors(&victim.until_closed()), ["57P01"]);
}

#[test]
fn a_copy_to_the_client_can_be_cancelled_while_the_client_takes_it_and_ended_while_it_does_not() {
    let (server, _holder, watcher) = server();
    let mut victim = copying_out(&server, &watcher);
    let (process_id, key) = victim.key();
    server.cancel(process_id, &key);
    assert_eq!(errors(&victim.until_ready()), ["57014"]);
    assert_eq!(victim.values("select 1"), ["1"]);

    let victim = copying_out(&server, &watcher);
    let (process_id, _) = victim.key();
    assert_eq!(watcher.value(&format!("select pg_terminate_backend({process_id}, 60000)")), "t");
    // The message that says why would have to wait for the client; the one under way is cut off.
    std::io::copy(&mut victim.stream(), &mut std::io::sink()).expect("the connection is closed");
}

#[test]
fn a_session_in_a_copy_hears_of_changes() {
    let (server, _holder, watcher) = server();
    let mut copying = copying_in(&server);
    let _reader = copying_out(&server, &watcher);
    watcher.run(
        "do $$ begin for i in 1..600 loop execute format('create table s%s (a int primary key)', i); end loop; end $$",
    );
    copying.send(&wire::message(b'c', b""));
    assert_eq!(kinds(&copying.until_ready()), "CZ");
    assert_eq!(copying.values("select count(*) from t"), ["3"]);
}

#[test]
fn a_cancel_request_that_comes_when_nothing_runs_does_not_hit_the_next_query() {
    let (server, _holder, _watcher) = server();
    let mut session = server.session(&[]);
    let (process_id, key) = session.key();
    for _ in 0..20 {
        server.cancel(process_id, &key);
        assert_eq!(session.values("select count(*) from generate_series(1, 1000)"), ["1000"]);
    }
    // Nor the rest of a transaction.
    session.values("begin");
    server.cancel(process_id, &key);
    assert_eq!(session.values("select 1"), ["1"]);
}

#[test]
fn a_cancel_request_with_a_wrong_key_does_nothing() {
    let (server, _holder, watcher) = server();
    let mut victim = server.session(&[]);
    let (process_id, key) = victim.key();
    let other = server.session(&[]);
    victim.query("select pg_sleep(1000)");
    watcher.until_active_and(process_id, "wait_event = 'PgSleep'");
    let mut wrong = key.clone();
    wrong[0] ^= 1;
    for (process_id, key) in [(process_id, wrong), (process_id, other.key().1), (process_id + 1000, key.clone())] {
        server.cancel(process_id, &key);
    }
    watcher.until_active_and(process_id, "wait_event = 'PgSleep'");
    server.cancel(process_id, &key);
    assert_eq!(errors(&victim.until_ready()), ["57014"]);
}

#[test]
fn all_keys_are_different() {
    let server = Server::shared();
    let sessions: Vec<_> = (0..10).map(|_| server.session(&[])).collect();
    let mut keys: Vec<_> = sessions.iter().map(Session::key).collect();
    keys.sort();
    keys.dedup_by(|a, b| a.0 == b.0 || a.1 == b.1);
    assert_eq!(keys.len(), 10);
}

#[test]
fn a_long_computation_leaves_the_others_their_turns() {
    let (server, _holder, watcher) = server();
    let victim = Peer::connect(&server);
    victim.send(ENDLESS[0].0);
    watcher.until_active_and(victim.process_id, "true");
    for _ in 0..100 {
        assert_eq!(watcher.value("select count(*) from generate_series(1, 10000)"), "10000");
    }
    assert!(victim.is_busy());
    watcher.run(&format!("select pg_cancel_backend({})", victim.process_id));
    assert_eq!(victim.error(), "57014");
}
