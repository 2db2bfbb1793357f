//! Prepared statements, portals and pipelines.

mod support;

use postgres::types::Type;
use support::{
    server::{Server, rows, sqlstate},
    session::{errors, kinds},
    wire,
};

#[test]
fn values_of_many_types_survive_the_way_there_and_back_in_binary() {
    let server = Server::start();
    let mut client = server.connect();
    let sql = "select $1::int2, $2::int4, $3::int8, $4::float8, $5::bool, $6::text, $7::bytea, $8::int4[]";
    let (bytes, numbers) = (vec![0_u8, 255, 7], vec![1, -2, 3]);
    let row = client
        .query_one(sql, &[&-7_i16, &42_i32, &i64::MIN, &0.1_f64, &true, &"größer als 4 €", &bytes, &numbers])
        .expect("a row");
    assert_eq!((row.get::<_, i16>(0), row.get::<_, i32>(1), row.get::<_, i64>(2)), (-7, 42, i64::MIN));
    assert_eq!((row.get::<_, f64>(3).to_bits(), row.get::<_, bool>(4)), (0.1_f64.to_bits(), true));
    assert_eq!(row.get::<_, &str>(5), "größer als 4 €");
    assert_eq!((row.get::<_, Vec<u8>>(6), row.get::<_, Vec<i32>>(7)), (bytes, numbers));
    assert_eq!(client.query_one("select $1::text", &[&None::<&str>]).expect("a row").get::<_, Option<&str>>(0), None);
}

#[test]
fn a_statement_that_was_prepared_is_executed_any_number_of_times() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (id int primary key, name text)").expect("a table");
    let insert = client.prepare_typed("insert into t values ($1, $2)", &[Type::INT4, Type::TEXT]).expect("a statement");
    for id in 0..500 {
        assert_eq!(client.execute(&insert, &[&id, &format!("name {id}")]).expect("a row"), 1);
    }
    assert_eq!(rows(&mut client, "select count(*), max(name) from t"), ["500|name 99"]);
    assert_eq!(sqlstate(client.execute(&insert, &[&7, &"again"])), "23505");
    assert_eq!(client.execute(&insert, &[&500, &"after the error"]).expect("it is still there"), 1);
}

#[test]
fn statements_of_a_session_are_its_own_and_are_deallocated() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("prepare p (int) as select $1 + 1").expect("a statement");
    assert_eq!(rows(&mut client, "execute p (41)"), ["42"]);
    assert_eq!(rows(&mut client, "select name, from_sql from pg_prepared_statements"), ["p|t"]);
    assert_eq!(sqlstate(server.connect().simple_query("execute p (1)")), "26000");
    client.batch_execute("deallocate all").expect("done");
    assert_eq!(sqlstate(client.simple_query("execute p (1)")), "26000");
}

#[test]
fn a_portal_gives_its_rows_in_portions() {
    let server = Server::start();
    let mut client = server.connect();
    let mut transaction = client.transaction().expect("a transaction");
    let portal = transaction.bind("select generate_series(1, 10)", &[]).expect("a portal");
    let mut portions = Vec::new();
    loop {
        let portion = transaction.query_portal(&portal, 4).expect("rows");
        portions.push(portion.iter().map(|row| row.get(0)).collect::<Vec<i32>>());
        if portion.len() < 4 {
            break;
        }
    }
    assert_eq!(portions, [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]);
}

#[test]
fn each_message_of_the_extended_protocol_has_its_answer() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.send(&[wire::parse("s", "select $1::int + 1"), wire::describe(b'S', "s"), wire::sync()].concat());
    assert_eq!(session.kinds(), "1tTZ");
    let three = [wire::bind("p", "s", &[Some("41")]), wire::describe(b'P', "p"), wire::execute("p", 0)].concat();
    session.send(&[three, wire::close(b'P', "p"), wire::close(b'S', "s"), wire::sync()].concat());
    assert_eq!(session.kinds(), "2TDC33Z");
    let no_rows = [wire::parse("", "set work_mem = '1MB'"), wire::bind("", "", &[]), wire::describe(b'P', "")].concat();
    session.send(&[no_rows, wire::execute("", 0), wire::sync()].concat());
    assert_eq!(session.kinds(), "12nCZ");
    session.send(&[wire::parse("", ""), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()].concat());
    assert_eq!(session.kinds(), "12IZ");
    let suspended = [wire::parse("", "select generate_series(1, 3)"), wire::bind("", "", &[])].concat();
    session.send(&[suspended, wire::execute("", 2), wire::execute("", 2), wire::sync()].concat());
    assert_eq!(session.kinds(), "12DDsDCZ");
}

#[test]
fn flush_brings_answers_before_sync() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.send(&[wire::parse("", "select 1"), wire::flush()].concat());
    assert_eq!(kinds(&session.until(b'1')), "1");
    session.send(&[wire::bind("", "", &[]), wire::execute("", 0), wire::flush()].concat());
    assert_eq!(kinds(&session.until(b'C')), "2DC");
    session.send(&wire::sync());
    assert_eq!(session.kinds(), "Z");
}

#[test]
fn after_an_error_everything_up_to_the_next_sync_is_skipped() {
    let server = Server::start();
    let mut session = server.session(&[]);
    let run = |sql: &str| [wire::parse("", sql), wire::bind("", "", &[]), wire::execute("", 0)].concat();
    session.send(
        &[run("select 1"), run("select 1 / 0"), run("select 2"), wire::sync(), run("select 3"), wire::sync()].concat(),
    );
    let first = session.until_ready();
    assert_eq!((kinds(&first), errors(&first)), ("12DC1EZ".to_owned(), vec!["22012".to_owned()]));
    assert_eq!(session.kinds(), "12DCZ");
    // Not even a simple query in between is answered.
    session.send(&[run("nonsense"), wire::query("select 4"), run("select 5"), wire::sync(), wire::sync()].concat());
    assert_eq!(session.kinds(), "EZ");
    assert_eq!(session.kinds(), "Z");
    session.send(&wire::query("select 6"));
    assert_eq!(session.kinds(), "TDCZ");
}

#[test]
fn a_pipeline_of_a_thousand_statements_with_their_syncs_in_one_packet_is_answered_one_by_one() {
    let server = Server::start();
    let mut session = server.session(&[]);
    let mut pipeline = wire::parse("s", "select $1::int");
    for number in 0..1000 {
        pipeline.extend(wire::bind("", "s", &[Some(&number.to_string())]));
        pipeline.extend(wire::execute("", 0));
        // Every seventh transaction fails in its second statement.
        if number % 7 == 0 {
            pipeline.extend(wire::bind("", "s", &[Some("x")]));
            pipeline.extend(wire::execute("", 0));
        }
        pipeline.extend(wire::sync());
    }
    session.send(&pipeline);
    for number in 0..1000 {
        let expected = if number % 7 == 0 { "2DCEZ" } else { "2DCZ" };
        let messages = session.until_ready();
        assert_eq!(kinds(&messages).trim_start_matches('1'), expected, "{number}");
        let row = messages.iter().find(|message| message.kind == b'D').expect("a row");
        assert_eq!(row.values(), [number.to_string()]);
    }
}

#[test]
fn a_pipeline_without_a_sync_between_is_one_transaction() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("create table t (a int primary key)");
    let insert = |value: &str| [wire::bind("", "i", &[Some(value)]), wire::execute("", 0)].concat();
    let pipeline = [wire::parse("i", "insert into t values ($1)"), insert("1"), insert("2"), insert("1"), wire::sync()];
    session.send(&pipeline.concat());
    assert_eq!(session.kinds(), "12C2C2EZ");
    assert_eq!(session.values("select count(*) from t"), ["0"]);
}

#[test]
fn parameters_that_do_not_fit_are_refused_and_the_session_goes_on() {
    let server = Server::start();
    let mut session = server.session(&[]);
    for (messages, sqlstate) in [
        (vec![wire::bind("", "no such statement", &[])], "26000"),
        (vec![wire::execute("no such portal", 0)], "34000"),
        (vec![wire::parse("s", "select $1::int"), wire::bind("", "s", &[])], "08P01"),
        (vec![wire::parse("", "select $1"), wire::bind("", "", &[Some("1"), Some("2")])], "08P01"),
        (vec![wire::parse("", "select $1::int"), wire::bind("", "", &[Some("x")])], "22P02"),
        (vec![wire::parse("", "select 1; select 2")], "42601"),
    ] {
        session.send(&[messages.concat(), wire::sync()].concat());
        assert_eq!(errors(&session.until_ready()), [sqlstate]);
    }
    assert_eq!(session.values("select 'alive'"), ["alive"]);
}

#[test]
fn a_statement_is_planned_again_when_its_table_has_changed() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (a int); insert into t values (1)").expect("a table");
    let count = client.prepare("select count(*) from t where a > $1").expect("a statement");
    let star = client.prepare("select * from t").expect("a statement");
    client.batch_execute("alter table t add column b text default 'new'; create index on t (a)").expect("altered");
    assert_eq!(client.query_one(&count, &[&0_i32]).expect("a row").get::<_, i64>(0), 1);
    assert_eq!(sqlstate(client.query(&star, &[])), "0A000", "cached plan must not change result type");
}
