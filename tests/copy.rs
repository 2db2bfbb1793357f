//! COPY in both directions.

mod support;

use std::{
    fmt::Write as _,
    io::{Read, Write},
};

use postgres::{
    binary_copy::{BinaryCopyInWriter, BinaryCopyOutIter},
    fallible_iterator::FallibleIterator,
    types::Type,
};
use support::{
    server::{Server, rows, sqlstate, text},
    session::{errors, kinds},
    wire,
};

#[test]
fn what_is_copied_in_comes_out_again() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (id int, name text)").expect("a table");
    let mut writer = client.copy_in("copy t from stdin").expect("it starts");
    let mut lines = String::new();
    for id in 0..100_000 {
        writeln!(lines, "{id}\tname\\t{id} €").expect("a string takes everything");
    }
    writer.write_all(lines.as_bytes()).expect("it takes the rows");
    assert_eq!(writer.finish().expect("it ends"), 100_000);
    let mut copied = String::new();
    let mut reader = client.copy_out("copy (select * from t order by id) to stdout").expect("it starts");
    reader.read_to_string(&mut copied).expect("the rows");
    drop(reader);
    assert!(copied == lines, "{} bytes instead of {}", copied.len(), lines.len());
    assert_eq!(rows(&mut client, "select count(*), max(length(name)) from t"), ["100000|12"]);
}

#[test]
fn binary_copies_keep_every_bit() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (id int8, bytes bytea, number float8)").expect("a table");
    let types = [Type::INT8, Type::BYTEA, Type::FLOAT8];
    let sink = client.copy_in("copy t from stdin (format binary)").expect("it starts");
    let mut writer = BinaryCopyInWriter::new(sink, &types);
    let row = |id: i64| {
        (id * 1_000_003, vec![u8::try_from(id % 256).expect("a byte"); 300], f64::from_bits(id.unsigned_abs()))
    };
    for id in 0..2000 {
        let (id, bytes, number) = row(id);
        writer.write(&[&id, &(id % 2 == 0).then_some(bytes), &number]).expect("it takes the row");
    }
    assert_eq!(writer.finish().expect("it ends"), 2000);
    let reader = client.copy_out("copy (select * from t order by id) to stdout (format binary)").expect("it starts");
    let mut copied = BinaryCopyOutIter::new(reader, &types);
    let mut count = 0;
    while let Some(copy) = copied.next().expect("a row") {
        let (id, bytes, number) = row(count);
        assert_eq!(copy.get::<i64>(0), id);
        assert_eq!(copy.get::<Option<Vec<u8>>>(1), (id % 2 == 0).then_some(bytes));
        assert_eq!(copy.get::<f64>(2).to_bits(), number.to_bits());
        count += 1;
    }
    assert_eq!(count, 2000);
}

#[test]
fn a_copy_that_the_client_gives_up_leaves_nothing_behind() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("create table t (a int)");
    session.query("copy t from stdin");
    assert_eq!(kinds(&session.until(b'G')), "G");
    session.send(&wire::message(b'd', b"1\n2\n"));
    session.send(&wire::message(b'f', b"changed my mind\0"));
    let messages = session.until_ready();
    assert_eq!((kinds(&messages), errors(&messages)), ("EZ".to_owned(), vec!["57014".to_owned()]));
    assert!(messages[0].fields()[&'M'].contains("changed my mind"));
    assert_eq!(session.values("select count(*) from t"), ["0"]);
}

#[test]
fn rows_that_are_still_on_their_way_after_an_error_are_skipped() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("create table t (a int)");
    session.query("copy t from stdin");
    session.until(b'G');
    let mut rows = wire::message(b'd', b"1\nnot a number\n");
    rows.extend(wire::message(b'd', b"2\n").repeat(10_000));
    session.send(&[rows, wire::message(b'c', b"")].concat());
    let messages = session.until_ready();
    assert_eq!((kinds(&messages), errors(&messages)), ("EZ".to_owned(), vec!["22P02".to_owned()]));
    assert!(messages[0].fields()[&'W'].contains("COPY t, line 2, column a"));
    assert_eq!(session.values("select count(*) from t"), ["0"]);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_copy_takes_only_its_own_session_along() {
    let server = Server::start();
    let mut other = server.connect();
    let mut session = server.session(&[]);
    session.values("create table t (a int)");
    session.query("copy t from stdin");
    session.until(b'G');
    session.send(&wire::message(b'd', b"1\n2\n"));
    // A message that never becomes whole.
    session.send(&wire::message(b'd', b"3\n4\n")[..7]);
    drop(session);
    server.wait_for_connections(1);
    assert_eq!(rows(&mut other, "select 'alive'"), ["alive"]);
}

#[test]
fn a_copy_in_the_extended_protocol_goes_on_to_its_sync() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("create table t (a int)");
    let copy = [wire::parse("", "copy t from stdin"), wire::bind("", "", &[]), wire::execute("", 0)].concat();
    session.send(&copy);
    assert_eq!(kinds(&session.until(b'G')), "12G");
    session.send(&[wire::message(b'd', b"1\n"), wire::message(b'c', b""), wire::sync()].concat());
    assert_eq!(session.kinds(), "CZ");
    // Everything at once, as a pipeline: a Sync that comes while COPY wants rows is skipped.
    session.send(&[copy, wire::message(b'd', b"2\n"), wire::message(b'c', b""), wire::sync()].concat());
    assert_eq!(session.kinds(), "12GCZ");
    assert_eq!(session.values("select sum(a) from t"), ["3"]);
}

#[test]
fn csv_with_a_header_and_conditions_is_read_and_psql_copies_too() {
    let server = Server::start();
    let mut rows_file = tempfile::NamedTempFile::new().expect("a file");
    rows_file.write_all(b"id,name\n1,\"a, b\"\n2,c\n").expect("rows");
    let script = format!(
        "create table t (id int, name text);
\\copy t from '{}' with (format csv, header match)
select count(*), string_agg(name, '/' order by id) from t;
\\copy (select * from t order by id desc) to pstdout with (format csv, force_quote (name))
",
        rows_file.path().display()
    );
    let output = server.psql_with_input(&[], script.as_bytes());
    assert_eq!(text(&output), "2|a, b/c\n2,\"c\"\n1,\"a, b\"");
}

#[test]
fn neither_programs_nor_files_of_the_host_are_within_reach() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (a text)").expect("a table");
    assert_eq!(sqlstate(client.simple_query("copy t from '/etc/hostname'")), "58P01");
    assert_eq!(sqlstate(client.simple_query("select pg_read_file('/etc/hostname')")), "58P01");
    assert_eq!(sqlstate(client.simple_query("copy t from program 'echo from the host'")), "58P01");
    assert_eq!(sqlstate(client.simple_query("copy t to program 'cat > /tmp/from-the-guest'")), "58P01");
    assert_eq!(rows(&mut client, "select count(*) from t"), ["0"]);
    client
        .batch_execute("insert into t values ('kept'); copy t to '/tmp/t'; copy t from '/tmp/t'")
        .expect("its own files");
    assert_eq!(rows(&mut client, "select * from t"), ["kept", "kept"]);
}

#[test]
fn a_program_for_copy_is_missing_as_on_a_system_without_a_shell() {
    for server in [Server::start(), Server::shared()] {
        let mut client = server.connect();
        for copy in ["copy (select 1) to program 'cat'", "copy pg_temp.t from program 'cat'"] {
            client.batch_execute("create temp table if not exists t (a text)").expect("a table");
            let error = client.simple_query(copy).expect_err("there is no program");
            let error = error.as_db_error().expect("an error of the server");
            assert_eq!(error.message(), "could not execute command \"cat\": No such file or directory", "{copy}");
            assert_eq!(error.code().code(), "58P01", "{copy}");
        }
    }
}
