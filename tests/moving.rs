//! Moving a database to an installed PostgreSQL while it is in use.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use native::Native;
use postgres::{Client, NoTls};
use support::{
    extension::archive,
    place::Place,
    program::Program,
    server::{Server, answer, rows, wait_for_rows},
};

/// A schema with what a dump of it has to bring along.
const SCHEMA: &str = r#"
create schema "Other ""One";
create type mood as enum ('sad', 'ünïcode');
create table notes (id serial primary key, t text, m mood default 'sad', price money, f float8, j jsonb, at timestamptz,
    big bigint generated always as (id * 10) stored);
create table "Other ""One"."T" (k int, v text) partition by range (k);
create table "Other ""One".low partition of "Other ""One"."T" for values from (0) to (100);
alter table "Other ""One".low add primary key (k);
create table empty_one (id int primary key);
create table accounts (id int primary key, balance bigint not null);
create table transfers (id bigserial primary key, of_account int references accounts, amount bigint not null);
create view sums as select sum(balance) from accounts;
create materialized view counted as select count(*) from notes;
create sequence untouched start 42;
create function twice(int) returns int language sql as 'select 2 * $1';
insert into notes (t, price, f, j, at) select 'note ' || i, i, i / 3.0, '{"a": 1}', '2026-11-27' from generate_series(1, 500) i;
insert into "Other ""One"."T" select i, 'v' || i from generate_series(1, 50) i;
insert into accounts select i, 1000 from generate_series(1, 20) i;
refresh materialized view counted;
"#;

/// What has to be the same on both sides.
const QUERIES: [&str; 6] = [
    "select count(*), md5(string_agg(n::text, '|' order by id)) from notes n",
    "select count(*), md5(string_agg(t::text, '|' order by k)) from \"Other \"\"One\".\"T\" t",
    "select sum(balance) + (select coalesce(sum(amount), 0) from transfers), count(*) from accounts",
    "select count(*), sum(amount), max(id) from transfers",
    "select * from counted",
    "select twice(21), (select last_value from untouched), (select last_value from notes_id_seq)",
];

/// Waits until the tables are copied to a database that the move creates.
fn wait_until_copied(server: &str, target: &str) {
    let subscriptions = "select count(*) from pg_subscription";
    wait_for_rows(&mut connect(server), subscriptions, &["1"]);
    let copied = "select count(*) from pg_subscription_rel where srsubstate = 'r'";
    wait_for_rows(&mut connect(target), copied, &["5"]);
}

fn answers(client: &mut Client) -> Vec<Vec<String>> {
    QUERIES.iter().map(|query| rows(client, query)).collect()
}

fn server() -> Server {
    let server = Server::with(&["--set", "wal_level=logical"]);
    server.connect().batch_execute(SCHEMA).expect("the schema");
    server
}

/// Runs `move`; its exit status, stdout and stderr.
fn moved(server: &Server, to: &str, more: &[&str]) -> (Option<i32>, String, String) {
    Program::spawn(&[&["move", &server.url, "--to", to], more].concat()).output()
}

/// Another database of a server, which need not exist.
fn database(url: &str, name: &str) -> String {
    format!("{}/{name}", url.rsplit_once('/').expect("a URL").0)
}

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).expect("a session")
}

/// Starts a move that copies the tables and cannot stop the writes, because a session has a lock of one; the session, the
/// program, and the URL of the target.
fn held_up(native: &Native, server: &Server) -> (Client, Program, String) {
    let target = database(&native.url, "moved");
    let mut open = server.connect();
    open.batch_execute("begin; lock table accounts in row exclusive mode").expect("an open transaction");
    let program = Program::spawn(&["move", &server.url, "--to", &target]);
    wait_until_copied(&native.url, &target);
    (open, program, target)
}

/// A client that moves money between accounts until it cannot write any more; the number of its transfers that were
/// committed.
fn transfer(url: String, of: i32, is_over: Arc<AtomicBool>) -> thread::JoinHandle<i64> {
    thread::spawn(move || {
        let mut client = connect(&url);
        let mut committed = 0;
        while !is_over.load(Ordering::Relaxed) {
            let sql = format!(
                "begin; update accounts set balance = balance - 1 where id = {of}; insert into transfers (of_account, amount) \
                 values ({of}, 1); commit"
            );
            if client.batch_execute(&sql).is_err() {
                return committed;
            }
            committed += 1;
        }
        committed
    })
}

#[test]
fn a_database_moves_while_it_is_written_to_and_no_row_is_lost_or_doubled() {
    let (native, server) = (Native::start(&[]), server());
    let target = database(&native.url, "moved");
    let is_over = Arc::<AtomicBool>::default();
    let writers: Vec<_> = (1..=4).map(|of| transfer(server.url.clone(), of, is_over.clone())).collect();
    let (status, compared, said) = moved(&server, &target, &[]);
    // The sessions of the source were ended, so that none of them goes on to write there.
    let committed: i64 = writers.into_iter().map(|writer| writer.join().expect("a writer")).sum();
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(status, Some(0), "{compared}{said}");
    assert!(compared.lines().skip(1).all(|line| line.ends_with("yes")), "{compared}");
    assert_eq!(compared.lines().count(), 6, "{compared}");
    let (mut here, mut there) = (server.connect(), connect(&target));
    assert_eq!(answers(&mut there), answers(&mut here));
    assert!(committed > 0, "nothing was written meanwhile");
    assert_eq!(rows(&mut there, "select count(*) from transfers"), [committed.to_string()]);
    // The target goes on where the source was, and the source can be read only.
    there.batch_execute("insert into notes (t) values ('new')").expect("the sequence was set");
    let error = here.batch_execute("insert into notes (t) values ('too late')").expect_err("it is read-only");
    assert_eq!(error.code().expect("an SQLSTATE").code(), "25006");
    // Nothing of the move is left.
    for (client, query) in [
        (&mut here, "select (select count(*) from pg_replication_slots), (select count(*) from pg_publication)"),
        (&mut there, "select (select count(*) from pg_subscription), (select count(*) from pg_publication)"),
    ] {
        assert_eq!(rows(client, query), ["0|0"]);
    }
}

#[test]
fn a_move_that_is_broken_off_leaves_both_sides_as_they_were() {
    let (native, server) = (Native::start(&[]), server());
    let (mut open, mut program, target) = held_up(&native, &server);
    program.signal(rustix::process::Signal::INT);
    let said = program.wait_for_stderr();
    assert!(said.last().is_some_and(|line| line.contains("the move was broken off")), "{said:?}");
    open.batch_execute("commit").expect("the transaction was not disturbed");
    let databases = "select string_agg(datname, ',' order by datname) from pg_database";
    let mut there = connect(&native.url);
    assert_eq!(rows(&mut there, databases), ["postgres,template0,template1"]);
    assert_eq!(rows(&mut there, "select count(*) from pg_subscription"), ["0"]);
    let mut here = server.connect();
    let left = "select (select count(*) from pg_replication_slots), (select count(*) from pg_publication)";
    assert_eq!(rows(&mut here, left), ["0|0"]);
    here.batch_execute("insert into accounts values (100, 0)").expect("it can be written to");
    // The next one succeeds.
    let (status, compared, said) = moved(&server, &target, &[]);
    assert_eq!(status, Some(0), "{compared}{said}");
    assert_eq!(rows(&mut connect(&target), "select count(*) from accounts"), ["21"]);
}

#[test]
fn a_move_that_waits_for_an_open_transaction_can_be_broken_off() {
    let (native, server) = (Native::start(&[]), server());
    let mut open = server.connect();
    open.batch_execute("begin; insert into accounts values (99, 0)").expect("an open transaction");
    let mut program = Program::spawn(&["move", &server.url, "--to", &database(&native.url, "moved")]);
    let mut here = server.connect();
    // The slot begins when the transaction has ended.
    wait_for_rows(&mut here, "select active from pg_replication_slots", &["t"]);
    program.signal(rustix::process::Signal::INT);
    let said = program.wait_for_stderr();
    assert!(said.last().is_some_and(|line| line.contains("the move was broken off")), "{said:?}");
    let left = "select (select count(*) from pg_replication_slots), (select count(*) from pg_publication)";
    assert_eq!(rows(&mut here, left), ["0|0"]);
    open.batch_execute("commit").expect("the transaction was not disturbed");
    assert_eq!(rows(&mut connect(&native.url), "select count(*) from pg_database"), ["3"]);
}

#[test]
fn what_a_killed_move_has_left_is_dropped_when_it_starts_over() {
    let (native, server) = (Native::start(&[]), server());
    let (mut open, mut program, target) = held_up(&native, &server);
    let (status, _, said) = moved(&server, &database(&native.url, "other"), &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("another move of this database is under way"), "{said}");
    program.signal(rustix::process::Signal::KILL);
    program.wait_for_stderr();
    open.batch_execute("rollback").expect("it ends");
    connect(&target).batch_execute("alter subscription pglite_port_move disable").expect("a subscription");
    wait_for_rows(&mut server.connect(), "select active from pg_replication_slots", &["f"]);
    let (status, _, said) = moved(&server, &target, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("--start-over"), "{said}");
    let (status, compared, said) = moved(&server, &target, &["--start-over"]);
    assert_eq!(status, Some(0), "{compared}{said}");
    assert_eq!(answers(&mut connect(&target)), answers(&mut server.connect()));
    // What is complete is not dropped.
    let mut back = server.connect();
    let writable =
        "set default_transaction_read_only = off; alter database postgres reset default_transaction_read_only";
    writable.split("; ").for_each(|sql| back.batch_execute(sql).expect(sql));
    server.connect().batch_execute("insert into accounts values (100, 0)").expect("it can be written to again");
    let (status, _, said) = moved(&server, &target, &["--start-over"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("has a database \"moved\" already"), "{said}");
}

#[test]
fn a_schema_that_is_changed_meanwhile_ends_the_move_and_the_source_can_be_written_to() {
    let (native, server) = (Native::start(&[]), server());
    let (mut open, mut program, _) = held_up(&native, &server);
    let mut here = server.connect();
    here.batch_execute("create or replace function twice(int) returns int language sql as 'select $1 + $1'")
        .expect("it");
    open.batch_execute("commit").expect("it ends");
    let said = program.wait_for_stderr();
    assert!(said.last().is_some_and(|line| line.contains("has been changed since the move began")), "{said:?}");
    server.connect().batch_execute("insert into accounts values (100, 0)").expect("it can be written to");
    assert_eq!(rows(&mut connect(&native.url), "select count(*) from pg_database"), ["3"]);
}

#[test]
fn what_cannot_be_moved_is_said_before_anything_is_changed() {
    let (native, server) = (Native::start(&[]), server());
    let refused = |server: &Server, to: &str, expected: &str| {
        let (status, _, said) = moved(server, to, &[]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    let mut here = server.connect();
    let target = database(&native.url, "moved");
    let mut with = |sql: &str, expected: &str, undo: &str| {
        here.batch_execute(sql).expect(sql);
        refused(&server, &target, expected);
        here.batch_execute(undo).expect(undo);
    };
    with(
        "create table d (i int primary key deferrable)",
        "alter table public.d replica identity full;",
        "drop table d",
    );
    with("create table bare (i int)", "alter table public.bare replica identity full;", "drop table bare");
    with("create unlogged table u (i int primary key)", "alter table public.u set logged;", "drop table u");
    with("select lo_from_bytea(7, 'x')", "1 large objects", "select lo_unlink(7)");
    with(
        "create extension hstore; create extension pg_hashids",
        "no extension pg_hashids",
        "drop extension pg_hashids, hstore",
    );
    with(
        "create role \"an owner\"; alter view sums owner to \"an owner\"",
        "role \"an owner\"",
        "alter view sums owner to postgres",
    );
    refused(&server, &native.url, "has a database \"postgres\" already");
    refused(&Server::with(&["--mode", "shared"]), &native.url, "wal_level of the source is replica");
    refused(&server, &database(&Server::with(&["--mode", "shared"]).url, "x"), "an ordinary PostgreSQL");
    assert_eq!(answer(&mut here, "select count(*) from pg_publication").expect("an answer"), ["0"]);
    let nobody = database("postgresql://postgres@127.0.0.1:1/postgres", "postgres");
    refused(&server, &nobody, "the target: no server answers");
    let databases = "select string_agg(datname, ',' order by datname) from pg_database";
    assert_eq!(rows(&mut connect(&native.url), databases), ["postgres,template0,template1"]);
}

/// A bundle of the extension `parts`, and a directory with it for an installed PostgreSQL. A table of it has rows of
/// the extension's own, and rows of users, which refer to each other.
fn extension(place: &Place) -> [String; 2] {
    let control = "default_version = '1.0'\nrelocatable = false\nschema = parts\ntrusted = true\n";
    let script = "create table parts.kinds (id int primary key, name text, known bool not null default false);
        create table parts.uses (kind int references parts.kinds, note text, at timestamptz,
            twice int generated always as (kind * 2) stored);
        create sequence parts.numbers;
        create table parts.own (n int);
        insert into parts.kinds values (1, 'of the extension', true); insert into parts.own values (1);
        select pg_extension_config_dump('parts.kinds', 'where not known');
        select pg_extension_config_dump('parts.uses', ''); select pg_extension_config_dump('parts.numbers', '')";
    let files = [("parts.control", control), ("parts--1.0.sql", script)];
    let beside = files.map(|(name, text)| (format!("share/postgresql/extension/{name}"), text.as_bytes()));
    let bundled: Vec<(&str, &[u8])> = beside.iter().map(|(name, bytes)| (&name[..], *bytes)).collect();
    fs::write(place.path("parts.tar.gz"), archive(&bundled)).expect("a bundle");
    let directory = place.path("share");
    fs::create_dir_all(directory.join("extension")).expect("a directory");
    for (name, text) in files {
        fs::write(directory.join("extension").join(name), text).expect("a file");
    }
    // The installed server runs as another user if this is root.
    fs::set_permissions(place.directory(), fs::Permissions::from_mode(0o755)).expect("an own directory");
    [place.text("parts.tar.gz"), place.text("share")]
}

#[test]
fn what_users_have_added_to_tables_of_extensions_moves_to_version_18_as_in_a_dump() {
    let place = Place::new();
    let [bundle, directory] = extension(&place);
    let native = Native::start_18(&[&format!("extension_control_path={directory}:$system")]);
    let server = Server::with(&["--set", "wal_level=logical", "--extension", &bundle]);
    let mut here = server.connect();
    here.batch_execute(SCHEMA).expect("the schema");
    here.batch_execute(
        r"create extension parts; insert into parts.kinds values (2, E'of a user''s \ own'), (3, null);
         insert into parts.uses (kind, note, at) values (2, 'a note', '2026-11-27 12:00+01'), (3, null, null);
         insert into parts.own values (2); select setval('parts.numbers', 77)",
    )
    .expect("the extension");
    let target = database(&native.url, "moved");
    let (status, compared, said) = moved(&server, &target, &[]);
    assert_eq!(status, Some(0), "{compared}{said}");
    // The sessions of the source were ended.
    let (mut here, mut there) = (server.connect(), connect(&target));
    assert_eq!(answers(&mut there), answers(&mut here));
    for query in [
        "select * from parts.kinds order by id",
        "select kind, note, at at time zone 'UTC', twice from parts.uses order by kind",
        "select last_value from parts.numbers",
    ] {
        assert_eq!(rows(&mut there, query), rows(&mut here, query), "{query}");
    }
    assert_eq!(rows(&mut there, "select n from parts.own"), ["1"], "the extension says nothing about these");
    assert!(compared.lines().any(|line| line.starts_with("parts.kinds ") && line.ends_with("yes")), "{compared}");
    drop(there);
    // Another version of the extension is noticed before anything is stopped.
    connect(&native.url).batch_execute("drop database moved").expect("it");
    let script = fs::read_to_string(place.path("share/extension/parts--1.0.sql")).expect("a file");
    fs::write(
        place.path("share/extension/parts--1.0.sql"),
        script.replace("default false)", "default false, more int)"),
    )
    .expect("a file");
    let writable =
        "set default_transaction_read_only = off; alter database postgres reset default_transaction_read_only";
    let mut back = server.connect();
    writable.split("; ").for_each(|sql| back.batch_execute(sql).expect(sql));
    let (status, _, said) = moved(&server, &target, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("parts.kinds belongs to an extension and is not the same in the target"), "{said}");
    assert_eq!(rows(&mut connect(&native.url), "select count(*) from pg_database"), ["3"]);
}

#[test]
fn a_move_whose_slot_is_lost_says_so_and_is_undone() {
    let native = Native::start(&[]);
    let server = Server::with(&["--set", "wal_level=logical", "--set", "max_slot_wal_keep_size=1MB"]);
    server.connect().batch_execute(SCHEMA).expect("the schema");
    let (mut open, mut program, target) = held_up(&native, &server);
    // Nothing is applied any more, and more is written than the slot may keep.
    connect(&target).batch_execute("alter subscription pglite_port_move disable").expect("a subscription");
    let mut here = server.connect();
    wait_for_rows(&mut here, "select active from pg_replication_slots where slot_name = 'pglite_port_move'", &["f"]);
    let status = "select wal_status from pg_replication_slots where slot_name = 'pglite_port_move'";
    // The move drops the slot as soon as it notices.
    while !["lost", ""].contains(&rows(&mut here, status).join("").as_str()) {
        for sql in ["select pg_switch_wal()", "create table filler (i int)", "drop table filler", "checkpoint"] {
            here.batch_execute(sql).expect(sql);
        }
    }
    open.batch_execute("commit").expect("it ends");
    let said = program.wait_for_stderr();
    assert!(said.last().is_some_and(|line| line.contains("max_slot_wal_keep_size")), "{said:?}");
    here.batch_execute("insert into accounts values (100, 0)").expect("it can be written to");
    let left = "select (select count(*) from pg_replication_slots), (select count(*) from pg_publication)";
    assert_eq!(rows(&mut here, left), ["0|0"]);
    assert_eq!(rows(&mut connect(&native.url), "select count(*) from pg_database"), ["3"]);
}

#[test]
fn a_role_of_the_target_that_is_no_superuser_owns_what_it_gets_if_the_source_asks_it_for_a_password() {
    let native = Native::start_18(&[]);
    connect(&native.url)
        .batch_execute("create role mover login createdb in role pg_create_subscription")
        .expect("a role");
    let target = database(&native.url, "moved").replace("postgres@", "mover@");
    let trusting = server();
    let (status, _, said) = moved(&trusting, &target, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("password"), "{said}");
    assert_eq!(rows(&mut connect(&native.url), "select count(*) from pg_database"), ["3"], "it was undone");

    let place = Place::new();
    fs::write(place.path("password"), "secret").expect("a file");
    let asks = ["--auth", "scram-sha-256", "--password-file", &place.text("password")];
    let source = Server::with(&[&["--set", "wal_level=logical"][..], &asks].concat());
    let url = source.url.replace("postgres@", "postgres:secret@");
    connect(&url).batch_execute(SCHEMA).expect("the schema");
    let (status, compared, said) = Program::spawn(&["move", &url, "--to", &target]).output();
    assert_eq!(status, Some(0), "{compared}{said}");
    let mut there = connect(&target);
    assert_eq!(answers(&mut there), answers(&mut connect(&url)));
    let owners = "select distinct pg_get_userbyid(relowner) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(rows(&mut there, owners), ["mover"]);
}

#[test]
#[ignore = "moves a gigabyte: run by hand with the time on a quiet machine"]
fn a_gigabyte_moves_while_pgbench_writes() {
    let (native, server) = (Native::start(&[]), Server::with(&["--set", "wal_level=logical"]));
    let target = database(&native.url, "moved");
    let pgbench = |arguments: &[&str]| {
        let mut command = Command::new("pgbench");
        command.args(arguments).arg(&server.url);
        command
    };
    assert!(pgbench(&["--initialize", "--scale=70", "--quiet"]).status().expect("pgbench is installed").success());
    server.connect().batch_execute("alter table pgbench_history replica identity full").expect("the table");
    let mut load = pgbench(&["--no-vacuum", "--client=4", "--time=600"]).spawn().expect("pgbench is installed");
    let (status, compared, said) = moved(&server, &target, &[]);
    let _ = load.wait();
    println!("{compared}{said}");
    assert_eq!(status, Some(0), "{said}");
}
