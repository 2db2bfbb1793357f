//! A disk of which one operation fails: the client gets an error, or the cluster crashes and recovers. What was
//! acknowledged is there, and the next start is good.
//!
//! `PGLITE_PORT_FAULTS` says how many operations of each kind fail of a short run, one for each run: a few in the
//! suite, and 100, or all if there are fewer, in `make crash`.

mod support;

use std::sync::Arc;

use pglite_port::{connection::Connections, session::Mode};
use rustix::io::Errno;
use support::{
    local::{Connect, Local},
    panics,
    power::{self, Memory, Operation},
    wire::Message,
};

/// A session; none if the cluster does not let it in.
fn connect(connections: &Arc<Connections>) -> Option<Local> {
    let (local, messages) = Local::connect(connections, Connect { id: 1, mode: Mode::Shared, ..Connect::default() });
    messages.iter().any(|message| message.kind == b'Z').then_some(local)
}

/// Whether a simple query was acknowledged: it has no error, and the session goes on.
fn is_acknowledged(answer: &[Message]) -> bool {
    answer.iter().all(|message| message.kind != b'E') && answer.iter().any(|message| message.kind == b'Z')
}

/// How many operations of each kind fail, with each error.
const FAULTS: u64 = 2;

/// What is done while an operation fails. Each inserts its number, so that it can be seen whether it was done.
const STEPS: [&str; 10] = [
    "insert into t select 0, repeat('x', 4000) from generate_series(1, 200)",
    "checkpoint",
    "create table u as select generate_series(1, 5000) a; create index on u (a)",
    "update t set filler = 'short' where step = 0",
    "vacuum full t",
    "select pg_switch_wal()",
    "create database other",
    "drop table u",
    "drop database other",
    "checkpoint",
];

/// Runs the steps, of which each is followed by an insert of its number; returns the numbers that were acknowledged.
fn run(connections: &Arc<Connections>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut session = connect(connections);
    for (number, step) in (1..).zip(STEPS) {
        // After a crash the cluster recovers, and lets a new session in.
        let Some(local) = &mut session else {
            session = connect(connections);
            continue;
        };
        let done = is_acknowledged(&local.query(step));
        let marked = local.query(&format!("insert into t values ({number}, 'mark')"));
        if is_acknowledged(&marked) {
            acknowledged.push(number.to_string());
        }
        if !done && marked.iter().all(|message| message.kind != b'Z') {
            session = connect(connections);
        }
    }
    acknowledged
}

/// A cluster that was shut down, with the table that the steps use.
fn fresh() -> Memory {
    let fresh = Memory::default();
    let connections = power::open(&fresh, &[]).expect("a cluster");
    let mut client = connect(&connections).expect("a session");
    client.values("create table t (step int, filler text); create index on t (step); create extension amcheck");
    drop(client);
    connections.shut_down();
    fresh
}

/// Asserts that a cluster starts in which the marks of these steps are, and that indexes and tables agree.
fn assert_has(storage: &Memory, acknowledged: &[String], what: &str) {
    let connections = power::open(storage, &[]).unwrap_or_else(|error| panic!("{what}: it does not start: {error:#}"));
    let mut client = connect(&connections).expect("a session");
    let found = client.values("select step from t where filler = 'mark' order by step");
    assert!(acknowledged.iter().all(|step| found.contains(step)), "{what}: {acknowledged:?}, found {found:?}");
    client.values("select bt_index_check(indexrelid, true) from pg_index where indrelid = 't'::regclass");
    drop(client);
    connections.shut_down();
}

#[test]
fn whichever_operation_of_the_disk_fails_nothing_acknowledged_is_lost_and_the_next_start_is_good() {
    panics::watch();
    let fresh = fresh();
    let whole = fresh.copy();
    let connections = power::open(&whole, &[]).expect("a cluster");
    assert_eq!(run(&connections).len(), STEPS.len());
    connections.shut_down();
    let (mut faults, mut happened) = (0, 0);
    for operation in Operation::ALL {
        let count = whole.count(operation);
        assert!(count > 0, "{operation:?} is not used");
        let tried = usize::try_from(power::number("PGLITE_PORT_FAULTS", FAULTS)).expect("small").min(count);
        for (number, error) in (0..tried).flat_map(|fault| [Errno::NOSPC, Errno::IO].map(|error| (fault, error))) {
            let number = (2 * number + 1) * count / (2 * tried);
            let storage = fresh.copy();
            storage.fail(operation, number, error.raw_os_error());
            // A start may fail as well; it says so.
            let acknowledged = power::open(&storage, &[]).map_or_else(
                |_| vec![],
                |connections| {
                    let acknowledged = run(&connections);
                    connections.shut_down();
                    acknowledged
                },
            );
            faults += 1;
            happened += usize::from(!storage.has_failure());
            storage.calm();
            let what = format!("{error} at {operation:?} {number}");
            assert_has(&storage, &acknowledged, &what);
            panics::assert_none(&what);
        }
    }
    // A run does not have exactly as many operations as another one.
    assert!(happened > faults / 2, "{happened} of {faults} faults happened");
}

#[test]
fn a_quota_that_is_used_up_and_a_disk_that_became_read_only_are_errors_of_the_statement() {
    let storage = fresh();
    let connections = power::open(&storage, &[("autovacuum", "off")]).expect("a cluster");
    let mut client = connect(&connections).expect("a session");
    for (error, code, text) in
        [(Errno::DQUOT, "XX000", "Quota exceeded"), (Errno::ROFS, "42501", "Read-only file system")]
    {
        for (operation, statement) in [
            (Operation::Create, "create table u as select 1"),
            (
                Operation::Allocate,
                "create table u as select i, repeat(md5(i::text), 60) from generate_series(1, 3000) i",
            ),
            (Operation::MakeName, "create database other"),
        ] {
            storage.fail(operation, 0, error.raw_os_error());
            let answer = client.query(statement);
            assert!(!storage.has_failure(), "{operation:?} was not used");
            let report = answer.iter().find(|message| message.kind == b'E').expect("an error").fields();
            assert_eq!(report[&'C'], code, "{statement}: {report:?}");
            assert!(report[&'M'].contains(text), "{statement}: {report:?}");
        }
        // The next attempt succeeds.
        client.values("create table u as select 1; drop table u");
        client.values("insert into t values (1, 'mark')");
    }
    drop(client);
    connections.shut_down();
    assert_has(&storage, &["1".to_owned()], "a statement failed");
}

#[test]
fn statements_that_need_room_on_a_full_disk_fail_and_the_cluster_goes_on() {
    let storage = fresh();
    let connections = power::open(&storage, &[]).expect("a cluster");
    let mut client = connect(&connections).expect("a session");
    client.values("insert into t values (1, 'mark')");
    client.values("checkpoint");
    storage.set_full(true);
    for statement in [
        "insert into t select 0, repeat('x', 4000) from generate_series(1, 300)",
        "create table u as select 1",
        "create database u",
    ] {
        let answer = client.query(statement);
        let error = answer.iter().find(|message| message.kind == b'E').expect("an error");
        assert_eq!(error.fields()[&'C'], "53100", "{statement}: {:?}", error.fields());
        assert_eq!(client.values("select count(*) from t where filler = 'mark'"), ["1"]);
    }
    storage.set_full(false);
    client.values(
        "insert into t values (2, 'mark'); insert into t select 0, repeat('x', 4000) from generate_series(1, 300)",
    );
    client.values("create table u as select 1; drop table u");
    drop(client);
    connections.shut_down();
    assert_has(&storage, &["1".to_owned(), "2".to_owned()], "it was full");
}

#[test]
fn a_cluster_without_room_for_wal_goes_on_when_there_is_room_again() {
    let storage = fresh();
    let connections = power::open(&storage, &[]).expect("a cluster");
    let mut client = connect(&connections).expect("a session");
    storage.set_full(true);
    let mut acknowledged = Vec::new();
    for step in 1..2000 {
        let sql = format!("select pg_logical_emit_message(true, '', repeat('x', 5000)); update t set step = {step}");
        if !is_acknowledged(&client.query(&sql)) {
            break;
        }
        acknowledged.push(step);
    }
    drop(client);
    assert!((1..1999).contains(&acknowledged.len()), "{} commits", acknowledged.len());
    storage.set_full(false);
    let mut client = connect(&connections).expect("a session");
    client.values("insert into t values (1, 'mark')");
    drop(client);
    connections.shut_down();
    assert_has(&storage, &["1".to_owned()], "it had no room for WAL");
}

#[test]
fn a_cluster_on_a_full_disk_starts_or_says_why_and_starts_when_there_is_room() {
    let storage = fresh();
    storage.set_full(true);
    if let Ok(connections) = power::open(&storage, &[]) {
        connections.shut_down();
    }
    storage.set_full(false);
    assert_has(&storage, &[], "it was full at its start");
    // There is nothing in an empty storage, and nothing half made after it had no room.
    let empty = Memory::default();
    empty.set_full(true);
    let message = format!("{:#}", power::open(&empty, &[]).err().expect("no cluster fits"));
    assert!(message.contains("No space left"), "{message}");
    empty.set_full(false);
    power::open(&empty, &[]).expect("a cluster").shut_down();
}
