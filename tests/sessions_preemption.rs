//! Sessions whose statements do not check for interrupts: other sessions have their turns all the same.

mod support;

use support::{peer::Peer, server::Server};

/// A statement whose planning takes seconds and does not check for interrupts.
fn unstoppable() -> String {
    let chain: String = (1..=400).map(|n| format!(", c{n} as (select x from c{})", n - 1)).collect();
    format!("with c0 as (select 1 as x){chain} select x from c400")
}

fn is_active(watcher: &Peer, peer: &Peer) -> bool {
    watcher.value(&format!("select state from pg_stat_activity where pid = {}", peer.process_id)) == "active"
}

#[test]
fn a_statement_that_does_not_check_for_interrupts_holds_no_other_session_up() {
    let server = Server::shared();
    let (busy, other) = (Peer::connect(&server), Peer::connect(&server));
    other.run("create table t (a int)");
    busy.send(&unstoppable());
    other.until_active(busy.process_id);
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
    busy.iter().for_each(|peer| peer.send(&unstoppable()));
    busy.iter().for_each(|peer| watcher.until_active(peer.process_id));
    assert!(busy.iter().all(|peer| is_active(&watcher, peer)), "none had to wait for the end of another");
    busy.iter().for_each(|peer| assert_eq!(peer.rows(), ["1"]));
}

#[test]
fn such_a_session_ends_with_its_cluster_when_another_one_crashes() {
    let server = Server::shared();
    let (busy, crashing) = (Peer::connect(&server), Peer::connect(&server));
    crashing.run("create function boom(int, int) returns text language internal strict as 'textcat'");
    busy.send(&unstoppable());
    crashing.until_active(busy.process_id);
    crashing.send("select boom(2147483000, -1)");
    crashing.assert_ended("XX000");
    busy.assert_ended("57P02");
    assert_eq!(Peer::connect(&server).value("select 1"), "1");
}

#[test]
fn a_cancel_of_such_a_statement_is_heard_when_it_checks_again() {
    let server = Server::shared();
    let (busy, other) = (Peer::connect(&server), Peer::connect(&server));
    busy.send(&unstoppable());
    other.until_active(busy.process_id);
    assert_eq!(other.value(&format!("select pg_cancel_backend({})", busy.process_id)), "t");
    assert_eq!(busy.error(), "57014");
    assert_eq!(busy.value("select 1"), "1");
}
