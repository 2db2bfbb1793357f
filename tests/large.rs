//! Large results, large parameters, many connections.

mod support;

use std::thread;

use postgres::NoTls;
use support::server::{Server, rows, sqlstate};

#[test]
fn a_value_of_eight_kilobytes_to_128_megabytes_comes_whole() {
    let server = Server::start();
    let mut client = server.connect();
    for length in [8 << 10, 8191, 1 << 20, 16 << 20, 128 << 20] {
        let row = client.query_one("select repeat('0123456789abcdef', $1 / 16)", &[&length]).expect("a row");
        let value: &str = row.get(0);
        assert_eq!(value.len(), usize::try_from(length / 16 * 16).expect("positive"));
        assert!(value.as_bytes().chunks(16).all(|chunk| chunk == b"0123456789abcdef"));
    }
}

#[test]
fn a_million_rows_come_in_order() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.query("select i, repeat('x', 20) from generate_series(0, 999999) i");
    let mut expected = 0;
    loop {
        let message = session.next().expect("the session goes on");
        match message.kind {
            b'D' => {
                let number = expected.to_string();
                assert_eq!(message.body[6..6 + number.len()], *number.as_bytes());
                expected += 1;
            }
            b'Z' => break,
            kind => assert!(b"TC".contains(&kind), "{message:?}"),
        }
    }
    assert_eq!(expected, 1_000_000);
}

#[test]
fn a_parameter_of_64_megabytes_arrives_whole_and_is_stored() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (b bytea); alter table t alter b set storage external").expect("a table");
    let bytes: Vec<u8> = (0..64_u32 << 20).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect();
    client.execute("insert into t values ($1)", &[&bytes]).expect("stored");
    let row = client.query_one("select length(b), b from t", &[]).expect("a row");
    assert_eq!(row.get::<_, i32>(0), 64 << 20);
    assert!(row.get::<_, &[u8]>(1) == bytes);
}

#[test]
fn a_query_of_a_megabyte_and_a_row_of_1600_columns_are_nothing_special() {
    let server = Server::start();
    let mut client = server.connect();
    let text = "x".repeat(1 << 20);
    assert_eq!(rows(&mut client, &format!("select length('{text}')")), ["1048576"]);
    let columns: Vec<String> = (0..1600).map(|number| format!("{number}")).collect();
    assert_eq!(rows(&mut client, &format!("select {}", columns.join(","))), [columns.join("|")]);
    let list = (0..50_000).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(
        rows(&mut client, &format!("select count(*) from generate_series(1, 100) i where i in ({list})")),
        ["100"]
    );
}

#[test]
fn memory_that_the_guest_does_not_have_is_an_error_and_not_its_end() {
    let server = Server::start();
    let mut client = server.connect();
    // More than a value may have, and more than the memory of the guest.
    assert_eq!(sqlstate(client.simple_query("select length(repeat('x', 1073741824))")), "54000");
    let too_much = "select length(string_agg(repeat(chr(65 + i), 268435455), '')) from generate_series(1, 9) i";
    assert_eq!(sqlstate(client.simple_query(too_much)), "53200");
    client.batch_execute("set work_mem = '2000MB'").expect("a setting");
    let sets =
        "select count(*) from (select i, repeat(md5(i::text), 10) t from generate_series(1, 6000000) i order by 2) x";
    assert_eq!(sqlstate(client.simple_query(sets)), "53200");
    assert_eq!(rows(&mut client, "select 'alive'"), ["alive"]);
}

#[test]
fn twenty_connections_at_once_each_have_a_database_of_their_own() {
    let server = Server::start();
    thread::scope(|scope| {
        for number in 0..20_i64 {
            let config = server.config();
            scope.spawn(move || {
                let mut client = config.connect(NoTls).expect("a session");
                client.batch_execute("create table t (a int8 primary key)").expect("nobody else has it");
                for round in 0..50 {
                    client.execute("insert into t values ($1)", &[&(number * 1000 + round)]).expect("a row");
                }
                let sum: i64 = client.query_one("select sum(a)::int8 from t", &[]).expect("a row").get(0);
                assert_eq!(sum, number * 50_000 + 49 * 25);
            });
        }
    });
}
