//! Logical replication beside an installed PostgreSQL: it sends the same messages for the same changes, and an installed
//! PostgreSQL can subscribe.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use native::Native;
use postgres::{Client, NoTls};
use support::{
    logical::Decoder,
    place::Place,
    server::{Server, answer, rows, wait_for_rows},
};

const SETTINGS: [&str; 3] = ["wal_level=logical", "max_prepared_transactions=5", "logical_decoding_work_mem=64kB"];

fn server(arguments: &[&str]) -> Server {
    let settings = SETTINGS.iter().flat_map(|setting| ["--set", setting]);
    Server::with(&settings.chain(arguments.iter().copied()).collect::<Vec<_>>())
}

/// Tables of all kinds and their publications.
const TABLES: &str = r#"
create type mood as enum ('sad', 'ünïcode');
create domain positive as int check (value > 0);
create type pair as (a int, b text);
create schema "Other ""Schema";
create table plain (id int primary key, t text, n numeric, f float8, b bytea, at timestamptz, big bigint);
create table everything (id int, identified uuid not null, m mood, p positive, pr pair, j jsonb, words text[], r int4range,
    bits varbit(9), price numeric(10, 2), c char(5), v varchar(7));
create unique index everything_key on everything (identified);
alter table everything replica identity using index everything_key;
create table whole (x int, y text);
alter table whole replica identity full;
create table bare (x int);
create table "Other ""Schema"."Tä ble" (id int primary key, "Ünï" text);
create table dropped (id int primary key, gone int, stays text);
alter table dropped drop column gone;
create table filtered (id int, n int, secret text, primary key (id, n));
create table parts (k int, v text, primary key (k)) partition by range (k);
create table parts_low partition of parts for values from (0) to (100);
create table parts_high (v text, k int not null);
alter table parts attach partition parts_high for values from (100) to (200);
create table in_schema (id int primary key);
create schema published;
alter table in_schema set schema published;
create table long_values (id int primary key, t text, n int);
alter table long_values alter t set storage external;
create publication plain_ones for table plain, everything, whole, "Other ""Schema"."Tä ble", dropped, long_values;
create publication columns_and_rows for table filtered (id, n) where (n > 10 and n % 2 = 0), whole where (y like 'a%');
create publication via_root for table parts with (publish_via_partition_root);
create publication by_parts for table parts;
create publication schemas for tables in schema published;
create publication inserts for table bare, plain with (publish = 'insert');
create publication empty_one;
"#;

/// Changes of every kind.
const CHANGES: [&str; 26] = [
    "insert into plain values (1, 'é€\u{1f600}', 1.50, 0.1, '\\x00ff', '2026-11-27 12:00:00.123456+02', -9007199254740993),
     (2, null, 'NaN', '-Infinity', '', 'infinity', null)",
    "update plain set t = 'other' where id = 1",
    "update plain set id = 3, t = '' where id = 2",
    "delete from plain where id = 3",
    "insert into everything values (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ünïcode', 7, (1, 'a,b'), '{\"a\": [1, null]}',
     '{\"x y\", null}', '[1,5)', '101', 12.3, 'ab', 'abc')",
    "update everything set m = 'sad'",
    "update everything set identified = 'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "delete from everything",
    "insert into whole values (1, 'abc'), (null, 'xyz'), (3, null)",
    "update whole set y = 'a' || y",
    "delete from whole where x = 1",
    "insert into \"Other \"\"Schema\".\"Tä ble\" values (1, 'x'); insert into dropped values (1, 'there')",
    "insert into filtered select i, i, 'hidden' from generate_series(8, 14) i",
    "update filtered set n = n + 1",
    "update filtered set secret = 'still hidden'",
    "insert into parts values (5, 'low'), (150, 'high')",
    "update parts set k = 160, v = 'moved' where k = 5",
    "delete from parts where k = 150",
    "insert into published.in_schema values (1); insert into bare values (1)",
    "insert into long_values values (1, repeat('0123456789', 1000), 1)",
    "update long_values set n = 2",
    "begin; insert into plain (id) values (10); savepoint s; insert into plain (id) values (11); rollback to s;
     insert into plain (id) values (12); commit",
    "truncate plain, whole restart identity cascade; truncate parts",
    "begin; select pg_logical_emit_message(true, 'prefix', 'a message é'); commit;
     select pg_logical_emit_message(false, '', ''); select txid_current()",
    "select pg_replication_origin_create('elsewhere'); select pg_replication_origin_session_setup('elsewhere');
     begin; select pg_replication_origin_xact_setup('0/12345', '2026-11-27'); insert into plain (id) values (20); commit;
     select pg_replication_origin_session_reset()",
    "alter table plain add more text default 'yes'; insert into plain (id) values (30);; alter publication plain_ones drop
     table whole;; insert into whole values (7, 'a');; alter publication plain_ones add table whole;; insert into whole
     values (8, 'a')",
];

/// Transactions that are sent while they run, in several parts, one with a part that is rolled back, and prepared ones.
const LONG: [&str; 6] = [
    "begin; insert into long_values select i, md5(i::text), i from generate_series(100, 3000) i;
     insert into whole values (1, 'abc'); commit",
    "begin; insert into long_values select i, md5(i::text), i from generate_series(4000, 6000) i; savepoint s;
     update long_values set n = -n; rollback to s; delete from long_values where id > 5990; commit",
    "begin; insert into long_values select i, md5(i::text), i from generate_series(7000, 9000) i; rollback",
    "begin; insert into plain (id) values (40); prepare transaction 'first one';; commit prepared 'first one'",
    "begin; insert into plain (id) values (41); prepare transaction 'second';; rollback prepared 'second'",
    "begin; insert into long_values select i, md5(i::text), i from generate_series(10000, 12000) i;
     prepare transaction 'long';; commit prepared 'long'",
];

/// The names of the slots, and the options with which their messages are read.
const SUBSCRIPTIONS: [(&str, &str, &str); 6] = [
    ("plain", "f", "'proto_version', '1', 'publication_names', 'plain_ones'"),
    (
        "several",
        "f",
        "'proto_version', '2', 'publication_names', 'columns_and_rows,by_parts,schemas', 'messages', 'true'",
    ),
    ("root", "f", "'proto_version', '1', 'publication_names', 'via_root,inserts,empty_one', 'binary', 'true'"),
    ("binary", "f", "'proto_version', '1', 'publication_names', 'plain_ones', 'binary', 'true'"),
    ("streamed", "f", "'proto_version', '2', 'publication_names', 'plain_ones,columns_and_rows', 'streaming', 'on'"),
    ("prepared", "t", "'proto_version', '3', 'publication_names', 'plain_ones', 'two_phase', 'on', 'streaming', 'on'"),
];

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// What each slot sends, as text.
fn messages(client: &mut Client) -> Vec<Vec<String>> {
    let of = |(slot, _, options): &(&str, &str, &str)| {
        let mut decoder = Decoder::default();
        let sql = format!("select data from pg_logical_slot_get_binary_changes('{slot}', null, null, {options})");
        let changes = client.query(&sql, &[]).unwrap_or_else(|error| panic!("{slot}: {error:?}"));
        changes.iter().flat_map(|row| decoder.read(row.get(0))).collect()
    };
    SUBSCRIPTIONS.iter().map(of).collect()
}

#[test]
fn the_messages_for_the_same_changes_are_those_of_an_installed_postgresql() {
    compare_messages(&Native::start(&SETTINGS));
}

#[test]
fn the_messages_for_the_same_changes_are_those_of_postgresql_18() {
    compare_messages(&Native::start_18(&SETTINGS));
}

fn compare_messages(native: &Native) {
    let server = server(&[]);
    let mut clients = [native.config(), server.config()].map(|config| config.connect(NoTls).expect("a session"));
    for client in &mut clients {
        run(client, TABLES);
        for (slot, is_two_phase, _) in SUBSCRIPTIONS {
            let sql = "select pg_create_logical_replication_slot($1, 'pgoutput', false, $2)";
            client.query(sql, &[&slot, &(is_two_phase == "t")]).expect("a slot");
        }
    }
    for changes in [&CHANGES[..], &LONG] {
        for sql in changes {
            for client in &mut clients {
                // Some cannot be together in the transaction that a message with several statements is.
                sql.split(";;").for_each(|sql| run(client, sql));
            }
        }
        let [theirs, ours] = clients.each_mut().map(messages);
        for (((slot, ..), theirs), ours) in SUBSCRIPTIONS.iter().zip(theirs).zip(ours) {
            for (at, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
                assert_eq!(ours, theirs, "message {at} of slot {slot:?}");
            }
            assert_eq!(ours.len(), theirs.len(), "slot {slot:?}: {:?}", &ours[theirs.len().min(ours.len())..]);
            assert!(!ours.is_empty(), "slot {slot:?}");
        }
    }
}

#[test]
fn an_installed_postgresql_subscribes_and_has_every_row_also_after_a_restart() {
    const TABLE: &str = "create table notes (id int primary key, t text, n bigint)";
    const ALL: &str = "select count(*), sum(n), md5(string_agg(t, ',' order by id)) from notes";
    let (native, place) = (Native::start(&[]), Place::new());
    let mut subscriber = native.config().connect(NoTls).expect("a session");
    let data = place.path("data").to_str().expect("text").to_owned();
    let mut origin = server(&["--data", &data]);
    let mut client = origin.connect();
    run(&mut client, TABLE);
    run(&mut client, "create publication all_notes for table notes");
    run(&mut client, "insert into notes select i, 'before ' || i, i from generate_series(1, 500) i");
    run(&mut subscriber, TABLE);
    let url = origin.url.clone();
    let subscribe = format!("create subscription away connection '{url}' publication all_notes with (streaming = on)");
    run(&mut subscriber, &subscribe);
    run(&mut client, "update notes set t = t || '!' where id % 2 = 0; delete from notes where id % 7 = 0");
    run(&mut client, "insert into notes select i, repeat('long', 100), i from generate_series(1000, 5000) i");
    wait_for_rows(&mut subscriber, ALL, &rows(&mut client, ALL));
    // What is committed last is sent before the program ends.
    run(&mut client, "insert into notes values (9999, 'the last one', 1)");
    let last = rows(&mut client, ALL);
    drop(client);
    let address = url.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
    origin.stop();
    assert_eq!(rows(&mut subscriber, ALL), last);
    origin = server(&["--data", &data, "--listen", &address]);
    let mut client = origin.connect();
    run(&mut client, "insert into notes values (10000, 'after the restart', 2)");
    wait_for_rows(&mut subscriber, ALL, &rows(&mut client, ALL));
    // The slot goes with the subscription.
    run(&mut subscriber, "drop subscription away");
    assert_eq!(answer(&mut client, "select count(*) from pg_replication_slots").expect("an answer"), ["0"]);
}
