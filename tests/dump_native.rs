//! Dumps of an installed PostgreSQL, which is another version with 64 bits, run here, and the way back.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use std::{io::BufRead, process::Command};

use native::Native;
use postgres::{Client, NoTls};
use support::{place::Place, program::Program, server::Server};

/// Rows of many types, with values at their limits, and large objects.
const OBJECTS: &str = r#"
create extension hstore;
create type mood as enum ('sad', 'it''s fine', 'ünïcode');
create table everything (
    id bigint primary key generated always as identity, n numeric, f4 real, f8 double precision, at timestamptz, d date,
    span interval, b bytea, t text, words text[], nested int[][], j jsonb, h hstore, u uuid, net cidr, mac macaddr,
    bits bit varying(9), range int4range, ranges datemultirange, at_point point, feels mood, search tsvector, money money);
insert into everything (n, f4, f8, at, d, span, b, t, words, nested, j, h, u, net, mac, bits, range, ranges, at_point,
        feels, search, money)
    values ('NaN', '-Infinity', 1e-307, 'infinity', '4713-01-01 BC', '-1 year 2 mons -3 days 04:05:06.789', '\x00ff5c0a',
            E'tab\t newline\n backslash\\ \\. quote'' €', array['a,b', null, '', 'NULL', E'\\'], '{{1,2},{3,4}}',
            '{"a": [1, 2.50, null, "\u00e9"]}', 'a=>1, b=>NULL', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '10.1.0.0/16',
            '08:00:2b:01:02:03', B'10101', '[1,)', '{[2020-01-01,2020-02-01)}', '(1.5,-2)', 'ünïcode', 'fat:2 cat:3A', 12.34),
        (-123456789012345678901234567890.0123456789, 3.4e38, 0.1, '2026-11-27 12:00:00.123456+02', '5874897-12-31', null, '',
            '', '{}', null, 'null', '', null, '::1/128', null, '', 'empty', '{}', null, 'sad', '', null);
create table parts (k int, v text) partition by range (k);
create table parts_low partition of parts for values from (0) to (1000);
create table parts_rest partition of parts default;
insert into parts select i * 7 % 3000, md5(i::text) from generate_series(1, 3000) i;
create index on parts (k, lower(v));
create view sums as select k % 10 as digit, count(*) as many from parts group by 1;
create materialized view kept as select * from sums with data;
create function twice(int) returns int language plpgsql as $$begin return 2 * $1; end$$;
create sequence numbers start 42 increment 3;
select nextval('numbers'), nextval('numbers');
select lo_from_bytea(77, decode(repeat('00ff', 5000), 'hex'));
"#;

/// What has to be the same everywhere, row by row.
const QUERIES: [&str; 8] = [
    "select * from everything order by id",
    "select tableoid::regclass, * from parts order by k, v",
    "select * from kept order by digit",
    "select loid, pageno, data from pg_largeobject order by 1, 2",
    "select last_value, is_called, twice(21) from numbers",
    "select * from pgbench_accounts order by aid",
    "select indexdef from pg_indexes where schemaname = 'public' order by 1",
    "select conname, pg_get_constraintdef(oid) from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n' \
     order by 1",
];

/// Fails at the first row that is not the same in both. They are read as they come, because there may be many.
fn compare(expected: &mut Client, found: &mut Client) {
    for query in QUERIES {
        let [expected, mut found] = [&mut *expected, &mut *found].map(|client| {
            let copied = client.copy_out(&format!("copy ({query}) to stdout")).expect(query);
            copied.lines().map(|row| row.expect(query))
        });
        let mut count = 0;
        for row in expected {
            assert_eq!(found.next().as_ref(), Some(&row), "{query}");
            count += 1;
        }
        assert_eq!(found.next(), None, "{query}");
        assert!(count > 0, "{query}");
    }
}

/// What an older PostgreSQL says to settings that a newer one writes at the beginning of a dump, and a newer one to a mark
/// of columns that PostgreSQL 15.20 keeps for its own `pg_dump`, and that of version 18.3 takes for an option.
const UNKNOWN: [&str; 2] = ["unrecognized configuration parameter", "unrecognized parameter \"pg_attver\""];

fn run(file: &str, url: &str) {
    let (status, _, said) = Program::spawn(&["run", file, url, "--on-error=continue"]).output();
    let errors: Vec<&str> = said.lines().filter(|line| line.contains(": ERROR: ")).collect();
    assert!(errors.iter().all(|error| UNKNOWN.iter().any(|unknown| error.contains(unknown))), "{said}");
    assert_eq!(status, Some(if errors.is_empty() { 0 } else { 3 }), "{said}");
}

/// Has a dump of an installed server run by `server`, and a dump of that by the installed one. The table of many types
/// has so many rows besides the unusual ones, each of about 250 bytes in a dump.
fn goes_there_and_back(server: &Server, many: u32) {
    let (native, place) = (Native::start(&[]), Place::new());
    let mut origin = native.config().connect(NoTls).expect("a session");
    origin.batch_execute(OBJECTS).expect("tables");
    let ordinary = format!(
        "insert into everything (n, f8, t) select i / 7::numeric, sqrt(i), repeat(chr(32 + i % 90), i % 300) \
         from generate_series(1, {many}) i"
    );
    origin.batch_execute(&ordinary).expect("rows");
    let made = Command::new("pgbench").args(["-i", "-q", &native.url]).output().expect("pgbench");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let file = place.text("dump.sql");
    Program::succeed(&["dump", &native.url, "--file", &file]);
    run(&file, &server.url);
    compare(&mut origin, &mut server.connect());

    Program::succeed(&["dump", &server.url, "--file", &file]);
    origin.batch_execute("create database copy").expect("a database");
    let copy = format!("{}/copy", native.url.rsplit_once('/').expect("a path").0);
    run(&file, &copy);
    compare(&mut origin, &mut native.config().dbname("copy").connect(NoTls).expect("a session"));
}

#[test]
fn a_dump_of_an_installed_postgresql_has_the_same_rows_here_and_back_there() {
    goes_there_and_back(&Server::shared(), 5000);
}

#[test]
#[ignore = "dumps a gigabyte twice: run by hand with some minutes and 10 GB of disk space"]
fn a_gigabyte_of_rows_goes_into_a_directory_and_back_in_dumps() {
    let data = Place::new();
    goes_there_and_back(&Server::in_directory(&data.path("data")), 4_200_000);
}
