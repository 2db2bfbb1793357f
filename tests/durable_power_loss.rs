//! A power loss at any moment of a write-heavy run: whatever the disk was left with of what was not synced, recovery
//! finds every commit that was acknowledged, and no other.
//!
//! `PGLITE_PORT_POWER_LOSSES` says how many states of the disk are tried; `make crash` tries 2,000.

mod support;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    thread,
};

use pglite_port::{
    connection::Connections,
    databases::Settings,
    quota::Limits,
    session::Mode,
    template::{Recipe, Script},
};
use support::{
    cache,
    local::{Connect, Local},
    power::{self, Dice, Memory},
};

const POWER_LOSSES: u64 = 40;
const WRITERS: u32 = 4;
/// Commits of each writer.
const COMMITS: usize = 60;

const CHECK_INDEXES: &str = "select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
     where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence = 'p'";

/// Settings with which nothing is synced.
const NO_SYNCS: [(&str, &str); 1] = [("fsync", "off")];

/// One commit, with the numbers of changes that the storage had before it was asked for and after it was acknowledged.
struct Commit {
    writer: u32,
    n: usize,
    asked: usize,
    acknowledged: usize,
}

fn connect(connections: &Arc<Connections>, id: u32) -> Local {
    Local::connect(connections, Connect { id, mode: Mode::Shared, ..Connect::default() }).0
}

/// Statements beside the writers.
const OTHERS: [&str; 10] = [
    "checkpoint",
    "create table passing as select generate_series(1, 3000) a",
    "vacuum full accounts",
    "create index on passing (a)",
    "select pg_switch_wal()",
    "vacuum rows",
    "drop table passing",
    "create database passing",
    "checkpoint",
    "drop database passing",
];

/// Runs writers on a new cluster; its storage, and what was committed.
fn run(further: &[(&str, &str)]) -> (Memory, Vec<Commit>) {
    let storage = Memory::default();
    let connections = power::open(&storage, further).expect("a cluster");
    let mut client = connect(&connections, 1);
    client.values("create extension amcheck");
    client.values("create table rows (writer int, n int, filler text, primary key (writer, n))");
    client.values("create table accounts as select id, 100 as balance from generate_series(1, 20) id");
    client.values("checkpoint");
    storage.record();
    let commits = Arc::new(Mutex::new(Vec::new()));
    let writers = (0..WRITERS).map(|writer| {
        let (connections, storage, commits) = (connections.clone(), storage.clone(), commits.clone());
        thread::spawn(move || {
            let mut client = connect(&connections, 10 + writer);
            for n in 0..COMMITS {
                let (asked, filler) = (storage.moment(), "x".repeat(n * 37 % 1500));
                let (from, to) = (1 + n % 20, 1 + (n + 7) % 20);
                client.values(&format!(
                    "begin; insert into rows values ({writer}, {n}, '{filler}');
                     update accounts set balance = balance - 1 where id = least({from}, {to});
                     update accounts set balance = balance + 1 where id = greatest({from}, {to}); commit"
                ));
                let acknowledged = storage.moment();
                commits.lock().expect("no panic").push(Commit { writer, n, asked, acknowledged });
            }
        })
    });
    let threads: Vec<_> = writers.collect();
    OTHERS.iter().for_each(|statement| drop(client.values(statement)));
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    drop(client);
    let commits = std::mem::take(&mut *commits.lock().expect("no panic"));
    connections.shut_down();
    (storage, commits)
}

/// What is wrong with a cluster that was left with `storage` when there were `moment` changes; nothing if it is right.
fn fault(storage: &Memory, moment: usize, commits: &[Commit], further: &[(&str, &str)]) -> Option<String> {
    let connections = match power::open(storage, further) {
        Ok(connections) => connections,
        Err(error) => return Some(format!("it does not start: {error:#}")),
    };
    let mut client = connect(&connections, 1);
    let fault = (|| {
        let found: BTreeSet<String> = client.values("select writer || ' ' || n from rows").into_iter().collect();
        for Commit { writer, n, asked, acknowledged } in commits {
            let is_there = found.contains(&format!("{writer} {n}"));
            if *acknowledged <= moment && !is_there {
                return Some(format!("writer {writer} lacks {n}, acknowledged at {acknowledged} of {moment}"));
            }
            if *asked > moment && is_there {
                return Some(format!("writer {writer} has {n}, asked for at {asked}, after {moment}"));
            }
        }
        let total = client.values("select sum(balance) || ' ' || count(*) from accounts");
        if total != ["2000 20"] {
            return Some(format!("money was lost or made: {total:?}"));
        }
        client.values(CHECK_INDEXES);
        None
    })();
    drop(client);
    connections.shut_down();
    fault
}

/// A storage as it could be if the power failed a second time, while the cluster in `storage` recovered.
fn lost_again(storage: &Memory, dice: &mut Dice) -> Memory {
    let recovering = storage.copy();
    recovering.record();
    if let Ok(connections) = power::open(&recovering, &[]) {
        connections.shut_down();
    }
    let moment = usize::try_from(dice.below(recovering.moment() as u64 + 1)).expect("small");
    recovering.after_power_loss(moment, dice)
}

#[test]
fn every_state_that_a_power_loss_can_leave_recovers_to_what_was_acknowledged() {
    let seed = power::seed();
    let mut dice = Dice(seed | 1);
    let (storage, commits) = run(&[]);
    let end = storage.moment();
    assert!(storage.syncs() > COMMITS, "{} syncs", storage.syncs());
    let losses = power::number("PGLITE_PORT_POWER_LOSSES", POWER_LOSSES);
    for loss in 1..=losses {
        let moment = usize::try_from(dice.below(end as u64 + 1)).expect("small");
        let mut left = storage.after_power_loss(moment, &mut dice);
        if dice.below(4) == 0 {
            left = lost_again(&left, &mut dice);
        }
        if let Some(fault) = fault(&left, moment, &commits, &[]) {
            panic!("state {loss} of seed {seed}, after {moment} of {end} changes: {fault}");
        }
        if loss % 100 == 0 {
            println!("{loss} of {losses}");
        }
    }
}

#[test]
fn without_syncs_the_same_losses_are_seen() {
    let (storage, commits) = run(&NO_SYNCS);
    let end = storage.moment();
    let mut dice = Dice(1);
    // A cluster that starts, and has lost a commit that was acknowledged.
    let sees = (0..60).any(|_| {
        let moment = usize::try_from(dice.below(end as u64 + 1)).expect("small");
        let fault = fault(&storage.after_power_loss(moment, &mut dice), moment, &commits, &NO_SYNCS);
        fault.is_some_and(|fault| fault.contains("lacks"))
    });
    assert!(sees, "the test above cannot see what it is for");
}

/// Loses the power while `open` makes a cluster, at several moments, after each of which it is opened again and must
/// have the content that `check` looks at.
fn lose_power_while_made(
    open: impl Fn(&Memory) -> anyhow::Result<Arc<Connections>>,
    check: impl Fn(&Arc<Connections>, &str),
) {
    let seed = power::seed();
    let mut dice = Dice(seed | 1);
    let storage = Memory::default();
    storage.record();
    open(&storage).expect("a cluster").shut_down();
    let (made, end) = (storage.moment_of(b"PG_VERSION"), storage.moment());
    // The moments at which it is decided whether there is a cluster, and others.
    let others = power::number("PGLITE_PORT_POWER_LOSSES", POWER_LOSSES) / 4;
    let moments = (made.saturating_sub(1)..made + 7)
        .chain((0..others).map(|_| usize::try_from(dice.below(end as u64 + 1)).expect("small")))
        .collect::<Vec<_>>();
    for (loss, moment) in (1..).zip(moments) {
        let what = format!("state {loss} of seed {seed}, after {moment} of {end} changes");
        let left = storage.after_power_loss(moment, &mut dice);
        let connections = open(&left).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        check(&connections, &what);
        let mut client = connect(&connections, 1);
        client.values("create extension amcheck");
        client.values(CHECK_INDEXES);
        drop(client);
        connections.shut_down();
    }
}

#[test]
fn a_power_loss_while_a_cluster_is_made_leaves_nothing_or_a_whole_one() {
    lose_power_while_made(
        |storage| power::open(storage, &[]),
        |connections, what| {
            let mut client = connect(connections, 1);
            assert_eq!(client.values("select count(*) > 300 from pg_class"), ["t"], "{what}");
        },
    );
}

#[test]
fn a_power_loss_while_a_template_is_copied_leaves_nothing_or_a_whole_copy() {
    const TEMPLATE: &str = "durable_power_loss";
    let sql = "create table orders as select i from generate_series(1, 1000) i; create index on orders (i)";
    let script = Script { name: "orders.sql".into(), sql: sql.into() };
    let recipe = Recipe { scripts: vec![script], ..Recipe::empty(TEMPLATE) };
    cache::open_at(&cache::shared(), Settings::default())
        .templates()
        .prepare(TEMPLATE, &recipe, Limits::default())
        .expect("a template");
    lose_power_while_made(
        |storage| power::open_copy(storage, TEMPLATE),
        |connections, what| {
            let parameters = [("user", "postgres"), ("database", TEMPLATE)];
            let connect = Connect { id: 1, mode: Mode::Shared, parameters: &parameters, ..Connect::default() };
            let mut client = Local::connect(connections, connect).0;
            assert_eq!(client.values("select count(*) from orders where i > 0"), ["1000"], "{what}");
            client.values("create extension amcheck");
            client.values(CHECK_INDEXES);
        },
    );
}
