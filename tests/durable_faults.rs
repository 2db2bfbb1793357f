//! A disk of which one operation fails: the client gets an error, or the cluster crashes and recovers. What was
//! acknowledged is there, and the next start is good.
//!
//! Every seventh operation of a short run fails in the suite, and every one in `make crash` (`PGLITE_PORT_FAULTS=1`).

mod support;

use std::sync::Arc;

use pglite_port::{connection::Connections, session::Mode};
use rustix::io::Errno;
use support::{
    local::{Connect, Local},
    power::{self, Memory},
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

/// What is done while an operation fails. Each inserts its number, so that it can be seen whether it was done.
const STEPS: [&str; 8] = [
    "insert into t select 0, repeat('x', 4000) from generate_series(1, 200)",
    "checkpoint",
    "create table u as select generate_series(1, 5000) a; create index on u (a)",
    "update t set filler = 'short' where step = 0",
    "vacuum full t",
    "select pg_switch_wal()",
    "drop table u",
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

#[test]
fn whichever_operation_of_the_disk_fails_nothing_acknowledged_is_lost_and_the_next_start_is_good() {
    let every = usize::try_from(power::number("PGLITE_PORT_FAULTS", 7)).expect("small");
    let fresh = Memory::default();
    let connections = power::open(&fresh, &[]).expect("a cluster");
    let mut client = connect(&connections).expect("a session");
    client.values("create table t (step int, filler text); create index on t (step)");
    drop(client);
    connections.shut_down();
    for (error, name) in [(Errno::NOSPC, "ENOSPC"), (Errno::IO, "EIO")] {
        let mut operation = 0;
        loop {
            let storage = fresh.copy();
            storage.fail_after(operation, error.raw_os_error());
            let what = format!("{name} at operation {operation}");
            // A start may fail as well; it says so.
            let acknowledged = power::open(&storage, &[]).map_or_else(
                |_| vec![],
                |connections| {
                    let acknowledged = run(&connections);
                    connections.shut_down();
                    acknowledged
                },
            );
            if storage.has_failure() {
                assert!(operation > 50, "{operation} operations are few");
                break;
            }
            let connections =
                power::open(&storage, &[]).unwrap_or_else(|error| panic!("{what}: it does not start: {error:#}"));
            let mut client = connect(&connections).expect("a session");
            let found = client.values("select step from t where filler = 'mark' order by step");
            assert!(acknowledged.iter().all(|step| found.contains(step)), "{what}: {acknowledged:?}, found {found:?}");
            client.values("create extension amcheck");
            client.values("select bt_index_check(indexrelid, true) from pg_index where indrelid = 't'::regclass");
            drop(client);
            connections.shut_down();
            operation += every;
        }
    }
}
