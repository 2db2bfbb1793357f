//! Transactions, savepoints and errors in them.

mod support;

use support::server::{Server, rows, sqlstate};

#[test]
fn an_error_outside_a_transaction_undoes_its_statement_only() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (a int primary key); insert into t values (1), (2)").expect("a table");
    assert_eq!(sqlstate(client.simple_query("insert into t values (3), (1)")), "23505");
    assert_eq!(rows(&mut client, "select array_agg(a) from t"), ["{1,2}"]);
}

#[test]
fn an_error_inside_a_transaction_aborts_it_until_it_is_rolled_back() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("begin; create table t (a int)").expect("a transaction");
    assert_eq!(sqlstate(client.simple_query("select * from nothing")), "42P01");
    assert_eq!(sqlstate(client.simple_query("select 1")), "25P02");
    // COMMIT of an aborted transaction rolls back.
    client.simple_query("commit").expect("an end");
    assert_eq!(rows(&mut client, "select to_regclass('t') is null"), ["t"]);
}

#[test]
fn savepoints_undo_a_part_of_a_transaction() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (a int)").expect("a table");
    let mut transaction = client.transaction().expect("a transaction");
    transaction.batch_execute("insert into t values (1)").expect("a row");
    {
        let mut inner = transaction.savepoint("middle").expect("a savepoint");
        inner.batch_execute("insert into t values (2)").expect("a row");
        let mut innermost = inner.savepoint("innermost").expect("a savepoint");
        assert_eq!(sqlstate(innermost.batch_execute("insert into t values (1 / 0)")), "22012");
        innermost.rollback().expect("rolled back");
        inner.batch_execute("insert into t values (3)").expect("a row");
        inner.rollback().expect("rolled back");
    }
    transaction.batch_execute("savepoint s; insert into t values (4); release s").expect("a row");
    transaction.commit().expect("committed");
    assert_eq!(rows(&mut client, "select array_agg(a order by a) from t"), ["{1,4}"]);
}

#[test]
fn a_thousand_savepoints_inside_each_other_are_undone_one_by_one() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (a int); begin").expect("a transaction");
    for level in 0..1000 {
        client.batch_execute(&format!("savepoint s{level}; insert into t values ({level})")).expect("a savepoint");
    }
    client.batch_execute("rollback to s900; rollback to s500; commit").expect("committed");
    assert_eq!(rows(&mut client, "select count(*), max(a) from t"), ["500|499"]);
}

#[test]
fn ten_thousand_errors_one_after_the_other_leave_the_session_as_it_was() {
    let server = Server::start();
    let mut session = server.session(&[]);
    for _ in 0..100 {
        let errors = support::wire::query("select 1 / 0").repeat(100);
        session.send(&errors);
        for _ in 0..100 {
            assert_eq!(session.kinds(), "EZ");
        }
    }
    assert_eq!(session.values("select 'alive'"), ["alive"]);
}

#[test]
fn what_is_committed_is_read_by_every_isolation_level_and_read_only_is_kept() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (a int); insert into t values (1)").expect("a table");
    for level in ["read committed", "repeatable read", "serializable"] {
        client.batch_execute(&format!("begin isolation level {level} read only")).expect("a transaction");
        assert_eq!(rows(&mut client, "show transaction_isolation"), [level]);
        assert_eq!(rows(&mut client, "select a from t"), ["1"]);
        assert_eq!(sqlstate(client.simple_query("insert into t values (2)")), "25006");
        client.batch_execute("rollback").expect("an end");
    }
}

#[test]
fn deferred_constraints_are_checked_at_the_end() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create table parent (id int primary key);
             create table child (parent int references parent deferrable initially deferred);
             begin; insert into child values (1); insert into parent values (1); commit",
        )
        .expect("the parent is there in time");
    client.batch_execute("begin; insert into child values (2)").expect("not checked yet");
    assert_eq!(sqlstate(client.simple_query("commit")), "23503");
    assert_eq!(rows(&mut client, "select count(*) from child"), ["1"]);
}

#[test]
fn a_prepared_transaction_is_refused_as_postgresql_does_by_default() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("begin").expect("a transaction");
    assert_eq!(sqlstate(client.simple_query("prepare transaction 'x'")), "55000");
}
