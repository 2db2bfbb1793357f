//! Isolation levels (PostgreSQL manual, chapter 13.2), between sessions of one cluster.

mod support;

use support::{peer::Peer, server::Server};

/// Two sessions, and a table with the accounts 1 and 2, each with a balance of 100.
fn two_sessions() -> (Server, Peer, Peer) {
    let (server, one, two) = Peer::two();
    one.run("create table account (id int primary key, balance int); insert into account values (1, 100), (2, 100)");
    (server, one, two)
}

const SUM: &str = "select sum(balance) from account";

#[test]
fn what_is_not_committed_is_seen_by_its_own_session_only() {
    let (_server, one, two) = two_sessions();
    for level in ["read uncommitted", "read committed", "repeatable read", "serializable"] {
        one.run("begin; update account set balance = 0");
        two.run(&format!("begin isolation level {level}"));
        assert_eq!((one.value(SUM), two.value(SUM)), ("0".into(), "200".into()), "{level}");
        one.run("rollback");
        two.run("commit");
        assert_eq!(one.value(SUM), "200");
    }
}

#[test]
fn at_read_committed_a_second_look_sees_what_was_committed_meanwhile() {
    let (_server, one, two) = two_sessions();
    two.run("begin isolation level read committed");
    assert_eq!(two.value(SUM), "200");
    one.run("update account set balance = 50 where id = 1");
    assert_eq!(two.value(SUM), "150");
    one.run("insert into account values (3, 7)");
    assert_eq!(two.value(SUM), "157");
}

#[test]
fn at_repeatable_read_a_transaction_sees_one_snapshot_without_phantoms() {
    let (_server, one, two) = two_sessions();
    for level in ["repeatable read", "serializable"] {
        two.run(&format!("begin isolation level {level}"));
        let before = two.run("select * from account order by id");
        one.run("update account set balance = balance + 1; insert into account select max(id) + 1, 7 from account");
        assert_eq!(two.run("select * from account order by id"), before, "{level}");
        two.run("commit");
        assert_ne!(two.run("select * from account order by id"), before, "{level}");
    }
}

#[test]
fn at_read_committed_an_update_that_waited_sees_the_new_row() {
    let (server, one, two) = two_sessions();
    one.run("begin; update account set balance = balance - 30 where id = 1");
    two.send("update account set balance = balance - 30 where id = 1 and balance > 50 returning balance");
    Peer::connect(&server).until_waiting(&two, "Lock");
    one.run("commit");
    assert_eq!(two.rows(), ["40"]);
    one.run("begin; update account set balance = 0 where id = 2");
    two.send("update account set balance = balance - 30 where id = 2 and balance > 50 returning balance");
    Peer::connect(&server).until_waiting(&two, "Lock");
    one.run("commit");
    assert!(two.rows().is_empty(), "the row no longer meets the condition");
}

#[test]
fn at_repeatable_read_an_update_of_a_row_that_changed_meanwhile_fails() {
    let (server, one, two) = two_sessions();
    two.run("begin isolation level repeatable read");
    two.run(SUM);
    one.run("begin; update account set balance = 1 where id = 1");
    two.send("update account set balance = 2 where id = 1");
    Peer::connect(&server).until_waiting(&two, "Lock");
    one.run("commit");
    assert_eq!(two.error(), "40001");
    two.run("rollback");
    // If the other one rolls back, nothing has changed.
    two.run("begin isolation level repeatable read");
    two.run(SUM);
    one.run("begin; update account set balance = 5 where id = 1");
    two.send("update account set balance = 2 where id = 1 returning balance");
    Peer::connect(&server).until_waiting(&two, "Lock");
    one.run("rollback");
    assert_eq!(two.rows(), ["2"]);
}

/// Either session may withdraw from the account that it is given as long as the sum stays positive; both read before
/// either writes. Returns how each commit ended.
fn withdraw_from_both(one: &Peer, two: &Peer, level: &str) -> [Option<String>; 2] {
    one.run("update account set balance = 100");
    for peer in [one, two] {
        peer.run(&format!("begin isolation level {level}"));
        assert_eq!(peer.value(SUM), "200");
    }
    let mut ends = [one, two].into_iter().zip([1, 2]).map(|(peer, account)| {
        peer.send(&format!("update account set balance = balance - 150 where id = {account}; commit"));
        peer.answer().err().map(|failure| failure.sqlstate().to_owned())
    });
    let ends = [ends.next().unwrap(), ends.next().unwrap()];
    for peer in [one, two] {
        peer.run("rollback");
    }
    ends
}

#[test]
fn write_skew_happens_at_repeatable_read_and_fails_at_serializable() {
    let (_server, one, two) = two_sessions();
    assert_eq!(withdraw_from_both(&one, &two, "repeatable read"), [None, None]);
    assert_eq!(one.value(SUM), "-100");
    let ends = withdraw_from_both(&one, &two, "serializable");
    assert!(matches!(&ends, [None, Some(code)] | [Some(code), None] if code == "40001"), "{ends:?}");
    assert_eq!(one.value(SUM), "50");
}

#[test]
fn a_serializable_transaction_that_only_reads_can_wait_for_a_safe_snapshot() {
    let (server, one, two) = two_sessions();
    one.run("begin isolation level serializable; update account set balance = 1 where id = 1");
    two.run("begin isolation level serializable read only deferrable");
    two.send(SUM);
    Peer::connect(&server).until_waiting(&two, "IPC");
    one.run("commit");
    let sum = two.rows();
    assert!(sum == ["200"] || sum == ["101"], "{sum:?}");
}
