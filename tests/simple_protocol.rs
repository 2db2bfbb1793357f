//! Simple queries, through a driver, psql and raw messages.

mod support;

use support::{
    server::{Server, rows, sqlstate, text},
    session::{errors, kinds},
    wire,
};

#[test]
fn psql_is_told_the_version_of_postgresql() {
    let server = Server::start();
    let version = server.psql(&["--command=select version()"]);
    assert!(text(&version).starts_with("PostgreSQL 18.6 "), "{version:?}");
}

#[test]
fn several_statements_in_one_query_are_one_transaction() {
    let server = Server::start();
    let mut client = server.connect();
    let failed = client.simple_query("create table t (a int); insert into t values (1); select 1 / 0");
    assert_eq!(sqlstate(failed), "22012");
    assert_eq!(rows(&mut client, "select to_regclass('t') is null"), ["t"]);
    assert_eq!(rows(&mut client, "select 1; select 2 as two, null as nothing; select 3"), ["1", "2|NULL", "3"]);
}

#[test]
fn every_query_is_answered_by_exactly_the_messages_of_the_protocol() {
    let server = Server::start();
    let mut session = server.session(&[]);
    for (sql, answer) in [
        ("select 1", "TDCZ"),
        ("", "IZ"),
        (";;", "IZ"),
        ("select", "TDCZ"),
        ("create table t (a int)", "CZ"),
        ("insert into t select generate_series(1, 3)", "CZ"),
        ("select a from t; select 1 where false; insert into t values (4)", "TDDDCTCCZ"),
        ("syntax error", "EZ"),
        ("select 1; select 1 / 0; select 2", "TDCEZ"),
        ("set application_name = 'a name'", "CSZ"),
        ("do $$ begin raise notice 'said'; end $$", "NCZ"),
        ("select 1 / 0", "EZ"),
        ("select 1 / (random() * 0)", "TEZ"),
    ] {
        session.query(sql);
        assert_eq!(session.kinds(), answer, "{sql}");
    }
}

#[test]
fn ready_for_query_tells_the_state_of_the_transaction() {
    let server = Server::start();
    let mut session = server.session(&[]);
    for (sql, state) in
        [("select 1", b'I'), ("begin", b'T'), ("select 1 / 0", b'E'), ("select 1", b'E'), ("rollback", b'I')]
    {
        session.query(sql);
        let messages = session.until_ready();
        assert_eq!(messages.last().expect("ReadyForQuery").body, [state], "{sql}");
    }
}

#[test]
fn errors_carry_their_fields() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.query("create table t (a int constraint positive check (a > 0))");
    session.until_ready();
    session.query("insert into t values (-1)");
    let messages = session.until_ready();
    let fields = messages[0].fields();
    for (field, value) in [
        ('S', "ERROR"),
        ('V', "ERROR"),
        ('C', "23514"),
        ('s', "public"),
        ('t', "t"),
        ('n', "positive"),
        ('F', "execMain.c"),
    ] {
        assert_eq!(fields.get(&field).map(String::as_str), Some(value), "{field}");
    }
    assert_eq!(fields[&'D'], "Failing row contains (-1).");
    session.query("select 1 fro t");
    assert_eq!(session.until_ready()[0].fields()[&'P'], "14");
}

#[test]
fn queries_that_arrive_in_one_packet_are_answered_in_order() {
    let server = Server::start();
    let mut session = server.session(&[]);
    let queries: Vec<u8> = ["select 1", "select 1 / 0", "select 2"].map(wire::query).concat();
    session.send(&queries);
    for (answer, values) in [("TDCZ", "1"), ("EZ", ""), ("TDCZ", "2")] {
        let messages = session.until_ready();
        let rows = messages.iter().filter(|message| message.kind == b'D').flat_map(wire::Message::values);
        assert_eq!((kinds(&messages), rows.collect()), (answer.to_owned(), values.to_owned()));
    }
}

#[test]
fn a_query_that_arrives_byte_by_byte_is_answered_all_the_same() {
    let server = Server::start();
    let mut session = server.session(&[]);
    let sql = "select 'one byte at a time'";
    for byte in wire::query(sql) {
        session.send(&[byte]);
    }
    assert_eq!(wire::values(sql, &session.until_ready()), ["one byte at a time"]);
}

#[test]
fn a_message_of_an_unknown_type_ends_the_session_with_a_protocol_violation() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.send(&wire::message(b'?', b""));
    let messages = session.until_closed();
    assert_eq!((kinds(&messages), errors(&messages)), ("E".to_owned(), vec!["08P01".to_owned()]));
}

#[test]
fn terminate_ends_the_session_without_another_word() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.send(&wire::terminate());
    assert_eq!(session.until_closed(), []);
}

#[test]
fn psql_describes_tables_and_reports_errors_with_their_place() {
    let server = Server::start();
    let script = b"create table person (id int primary key, name text not null);\n\\d person\n\\dt\n\\df now\n";
    let output = server.psql_with_input(&["--pset=tuples_only=off"], script);
    assert!(text(&output).contains("name|text||not null|") && text(&output).contains("\"person_pkey\" PRIMARY KEY"));
    let failed = server.psql(&["--command=select nothing"]);
    assert!(!failed.status.success());
    let message = String::from_utf8_lossy(&failed.stderr);
    assert!(message.contains("column \"nothing\" does not exist") && message.contains("LINE 1"), "{message}");
}
