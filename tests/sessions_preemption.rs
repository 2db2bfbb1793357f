//! Sessions whose statements do not check for interrupts: other sessions have their turns all the same.

mod support;

use std::time::{Duration, Instant};

use support::{
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
fn such_a_session_ends_when_it_is_told_to_or_cancelled_or_left_and_leaves_nothing_behind() {
    let server = Server::shared();
    let other = Peer::connect(&server);
    let [told, cancelled, left] = ["of_told", "of_cancelled", "of_left"].map(|table| {
        other.run(&format!("create table {table} (a int)"));
        let busy = Peer::connect(&server);
        // This takes minutes.
        let endless = unstoppable(2000);
        busy.send(&format!("begin; insert into {table} values (1); lock {table}; {endless}"));
        other.until(&format!(
            "select count(*) > 0 from pg_locks where pid = {} and mode = 'AccessExclusiveLock'",
            busy.process_id
        ));
        busy
    });
    assert_eq!(other.value(&format!("select pg_terminate_backend({})", told.process_id)), "t");
    assert_eq!(other.value(&format!("select pg_cancel_backend({})", cancelled.process_id)), "t");
    let process_id = left.process_id;
    drop(left);
    told.assert_ended("57P01");
    cancelled.assert_ended("57P01");
    other.until(&format!("select count(*) = 0 from pg_stat_activity where pid = {process_id}"));
    assert_eq!(other.value(LOCKS_OF_OTHERS), "0");
    for table in ["of_told", "of_cancelled", "of_left"] {
        other.run(&format!("insert into {table} values (2)"));
        assert_eq!(other.value(&format!("select sum(a) from {table}")), "2");
    }
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

#[test]
fn a_cancel_of_such_a_statement_is_heard_when_it_checks_in_time() {
    let (_server, busy, other) = Peer::two();
    busy.send(&unstoppable(250));
    other.until_active(busy.process_id);
    assert_eq!(other.value(&format!("select pg_cancel_backend({})", busy.process_id)), "t");
    assert_eq!(busy.error(), "57014");
    assert_eq!(busy.value("select 1"), "1");
}
