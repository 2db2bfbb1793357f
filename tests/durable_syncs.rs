//! What goes on in a cluster while one of its processes waits for the disk.

mod support;

use std::{sync::Arc, thread};

use pglite_port::{connection::Connections, session::Mode};
use support::{
    local::{Connect, Local},
    power::{self, Memory, Operation},
};

const WRITERS: u32 = 16;

fn connect(connections: &Arc<Connections>, id: u32) -> Local {
    Local::connect(connections, Connect { id, mode: Mode::Shared, ..Connect::default() }).0
}

/// Waits until that many sessions wait for that event.
fn wait_until(client: &mut Local, event: &str, sessions: usize) {
    let waiting = format!("select count(*) from pg_stat_activity where wait_event = '{event}'");
    while client.values(&waiting) != [sessions.to_string()] {}
}

#[test]
fn sessions_that_commit_while_another_one_syncs_share_the_next_sync() {
    let storage = Memory::default();
    let connections = power::open(&storage, &[("autovacuum", "off")]).expect("a cluster");
    let mut observer = connect(&connections, 1);
    observer.values("create table t (a int)");
    observer.values("checkpoint");
    let insert = |writer: u32| {
        let mut client = connect(&connections, 10 + writer);
        move || client.values(&format!("insert into t values ({writer})"))
    };
    let (first, others) = (insert(0), (1..WRITERS).map(insert).collect::<Vec<_>>());
    let before = storage.syncs();
    storage.hold(Operation::SyncFile, b"pg_wal");
    let mut threads = vec![thread::spawn(first)];
    storage.wait_until_one_is_held();
    threads.extend(others.into_iter().map(thread::spawn));
    wait_until(&mut observer, "WALWrite", WRITERS as usize - 1);
    storage.release();
    threads.into_iter().for_each(|thread| drop(thread.join().expect("no panic")));
    let syncs = storage.syncs() - before;
    assert!((2..=4).contains(&syncs), "{WRITERS} commits, {syncs} syncs");
    assert_eq!(observer.values("select count(*) from t"), [WRITERS.to_string()]);
    drop(observer);
    connections.shut_down();
}

#[test]
fn a_start_after_a_crash_syncs_each_file_once() {
    let storage = Memory::default();
    let connections = power::open(&storage, &[("autovacuum", "off")]).expect("a cluster");
    let crashed = storage.copy();
    connections.shut_down();
    let recovered = power::open(&crashed, &[("autovacuum", "off")]).expect("it recovers");
    let (files, syncs) = (crashed.files(), crashed.count(Operation::SyncFile));
    // Those of recovery itself are few: pg_control, WAL, the files of its checkpoint.
    assert!((files..files + files / 4).contains(&syncs), "{files} files, {syncs} syncs");
    recovered.shut_down();
}

#[test]
fn sessions_go_on_while_a_checkpoint_syncs() {
    let storage = Memory::default();
    let connections = power::open(&storage, &[("autovacuum", "off")]).expect("a cluster");
    let (mut observer, mut writer) = (connect(&connections, 1), connect(&connections, 2));
    observer.values("create table t as select i, repeat('x', 500) from generate_series(1, 10000) i");
    storage.hold(Operation::SyncFile, b"base");
    let writing = thread::spawn(move || writer.values("checkpoint"));
    storage.wait_until_one_is_held();
    assert_eq!(observer.values("select count(*) from t"), ["10000"]);
    observer.values("begin; create table u as select 1; rollback");
    storage.release();
    writing.join().expect("no panic");
    connections.shut_down();
}
