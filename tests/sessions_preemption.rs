//! Sessions whose statements do not check for interrupts: other sessions have their turns all the same.

mod support;

use std::time::{Duration, Instant};

use support::{
    DEAF,
    peer::{LOCKS_OF_OTHERS, Peer},
    server::Server,
    unstoppable,
};

/// The length of a chain that takes seconds.
const SECONDS: u32 = 400;

/// A session that runs a statement without checks for interrupts, and another one.
fn busy_and_other() -> (Server, Peer, Peer) {
    let (server, busy, other) = Peer::two();
    busy.send(&unstoppable(SECONDS));
    other.until_active(busy.process_id);
    (server, busy, other)
}

fn is_active(watcher: &Peer, peer: &Peer) -> bool {
    watcher.value(&format!("select state from pg_stat_activity where pid = {}", peer.process_id)) == "active"
}

#[test]
fn a_statement_that_does_not_check_for_interrupts_holds_no_other_session_up() {
    let (server, busy, other) = busy_and_other();
    other.run("create table t (a int)");
    for round in 1..=10 {
        other.run(&format!("insert into t values ({round})"));
        assert_eq!(other.value("select count(*) from t"), round.to_string());
    }
    assert_eq!(Peer::connect(&server).value("select count(*) from t"), "10");
    assert!(is_active(&other, &busy), "it would have had to end first");
    assert_eq!(busy.rows(), ["1"]);
}

#[test]
fn several_of_them_share_the_processor() {
    let server = Server::shared();
    let (busy, watcher) = ([(); 3].map(|()| Peer::connect(&server)), Peer::connect(&server));
    busy.iter().for_each(|peer| peer.send(&unstoppable(SECONDS)));
    busy.iter().for_each(|peer| watcher.until_active(peer.process_id));
    assert!(busy.iter().all(|peer| is_active(&watcher, peer)), "none had to wait for the end of another");
    busy.iter().for_each(|peer| assert_eq!(peer.rows(), ["1"]));
}

#[test]
fn a_conversion_of_a_long_text_holds_no_other_session_up() {
    let (_server, busy, other) = Peer::two();
    let begun = Instant::now();
    busy.send("select length(convert_to(repeat('語', 30000000), 'EUC_JP'))");
    other.until_active(busy.process_id);
    let mut longest = Duration::ZERO;
    loop {
        let asked = Instant::now();
        let goes_on = is_active(&other, &busy);
        longest = longest.max(asked.elapsed());
        if !goes_on {
            break;
        }
    }
    assert_eq!(busy.rows(), ["60000000"]);
    let took = begun.elapsed();
    assert!(longest < took / 4, "an answer took {longest:?} of {took:?}");
}

#[test]
fn such_a_session_ends_with_its_cluster_when_another_one_crashes() {
    let (server, busy, crashing) = busy_and_other();
    crashing.run("create function boom(int, int) returns text language internal strict as 'textcat'");
    crashing.send("select boom(2147483000, -1)");
    crashing.assert_ended("XX000");
    busy.assert_ended("57P02");
    assert_eq!(Peer::connect(&server).value("select 1"), "1");
}

/// A session that has a lock and runs `statement` in its transaction, and another one.
fn busy_with_lock_and_other(statement: &str) -> (Server, Peer, Peer) {
    let (server, busy, other) = Peer::two();
    busy.run("create table t (a int); insert into t values (1)");
    busy.run("begin; lock table t; insert into t values (2); declare c cursor for select * from t; fetch c");
    busy.send(statement);
    other.until_active(busy.process_id);
    (server, busy, other)
}

/// Asserts that nothing is left of the transaction of a session that has been stopped.
fn assert_rolled_back(other: &Peer) {
    other.run("begin; lock table t; insert into t values (3); commit");
    assert_eq!(other.value("select array_agg(a) from t"), "{1,3}");
    other.run("vacuum (full, freeze) t");
    assert_eq!(other.value(LOCKS_OF_OTHERS), "0");
}

#[test]
fn a_cancel_is_heard_by_a_statement_that_only_allocates_memory() {
    // Its planning takes minutes.
    let (_server, busy, other) = busy_with_lock_and_other(&unstoppable(2000));
    assert_eq!(other.value(&format!("select pg_cancel_backend({})", busy.process_id)), "t");
    assert_eq!(busy.error(), "57014");
    busy.run("rollback");
    assert_eq!(busy.value("select 1"), "1");
    assert_rolled_back(&other);
}

#[test]
fn a_session_that_only_allocates_memory_ends_when_it_is_told_to() {
    let (_server, busy, other) = busy_with_lock_and_other(&unstoppable(2000));
    assert_eq!(other.value(&format!("select pg_terminate_backend({}, 60000)", busy.process_id)), "t");
    busy.assert_ended("57P01");
    assert_rolled_back(&other);
}

#[test]
fn a_session_that_hears_nothing_ends_with_its_transaction_and_no_other_session_does() {
    let (_server, busy, other) = busy_with_lock_and_other(DEAF);
    assert_eq!(other.value(&format!("select pg_terminate_backend({}, 60000)", busy.process_id)), "t");
    busy.assert_ended("57P01");
    assert_rolled_back(&other);
}

#[test]
fn a_session_whose_statement_hears_no_cancel_ends() {
    loop {
        let (_server, busy, other) = busy_with_lock_and_other(DEAF);
        assert_eq!(other.value(&format!("select pg_cancel_backend({})", busy.process_id)), "t");
        let failure = busy.answer().expect_err("it is cancelled");
        if failure.has_ended {
            assert_eq!(failure.sqlstate(), "57P01");
            return assert_rolled_back(&other);
        }
        // It was heard before the statement computed.
        assert_eq!(failure.sqlstate(), "57014");
    }
}

#[test]
fn a_program_that_is_told_to_stop_does_not_wait_for_sessions_that_hear_nothing() {
    let (server, busy, _other) = busy_with_lock_and_other(DEAF);
    server.stop();
    busy.assert_ended("57P01");
}

#[test]
fn a_statement_that_only_allocates_memory_hears_its_timeout() {
    let (_server, busy, other) = Peer::two();
    busy.run("set statement_timeout = '1s'");
    assert_eq!(busy.fail(&unstoppable(2000)), "57014");
    assert_eq!(busy.value("select 1"), other.value("select 1"));
}

#[test]
fn a_session_ends_whose_client_has_left_and_whose_statement_does_not_check_for_interrupts() {
    for statement in [&unstoppable(2000), DEAF] {
        let server = Server::shared();
        let other = Peer::connect(&server);
        let mut session = server.session(&[]);
        let (process_id, _) = session.key();
        session.query(statement);
        other.until_active(process_id);
        drop(session);
        other.until(&format!("select not exists (select from pg_stat_activity where pid = {process_id})"));
        assert_eq!(other.value(LOCKS_OF_OTHERS), "0");
    }
}
