//! A program that is killed at any moment: what was acknowledged is there, nothing else is, and the next start is
//! good. A restore that is killed leaves nothing, a part that no program opens, or a whole cluster.
//!
//! `PGLITE_PORT_KILLS` says how often; `make crash` kills a thousand times. A failure names the seed with which
//! `PGLITE_PORT_SEED` repeats the choices, though not the scheduling.

mod support;

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use pglite_port::backup;
use postgres::{Client, Config, NoTls};
use rustix::process::Signal;
use support::{
    PATIENCE,
    power::{self, Dice},
    program::Program,
    server::{Server, answer, rows},
};

const KILLS: u64 = 50;
const WRITERS: u64 = 4;
const ACCOUNTS: u64 = 20;
/// The longest time from a server's start to its end.
const LONGEST: u64 = 600;

/// What one writer knows of its rows: those before `acknowledged` are committed, that of `acknowledged` may be.
#[derive(Clone, Default)]
struct Writer {
    acknowledged: Arc<AtomicU64>,
}

/// What every cluster here begins with. It may have been begun before.
fn set_up(client: &mut Client) {
    rows(client, "create extension if not exists amcheck");
    rows(
        client,
        "begin;
         create table if not exists rows (writer int, n int, filler text, primary key (writer, n));
         create index if not exists rows_by_n on rows (n);
         create table if not exists accounts (id int primary key, balance int);
         insert into accounts select id, 100 from generate_series(1, 20) id on conflict do nothing;
         commit",
    );
}

/// Runs `work` with a session until that fails, as it does when the server is killed.
fn until_killed(
    config: &Config,
    stop: &Arc<AtomicBool>,
    mut work: impl FnMut(&mut Client) -> Result<(), postgres::Error> + Send + 'static,
) -> JoinHandle<()> {
    let (config, stop) = (config.clone(), stop.clone());
    thread::spawn(move || {
        let Ok(mut client) = config.connect(NoTls) else { return };
        while !stop.load(Ordering::SeqCst) {
            if let Err(error) = work(&mut client) {
                // A serialization failure or a deadlock is the load's own; anything without a code is the kill.
                if error.code().is_none() || client.is_closed() {
                    return;
                }
                let _ = client.simple_query("rollback");
            }
        }
    })
}

fn write(config: &Config, stop: &Arc<AtomicBool>, number: u64, writer: &Writer) -> JoinHandle<()> {
    let (acknowledged, mut dice) = (writer.acknowledged.clone(), Dice(number + 1));
    until_killed(config, stop, move |client| {
        let next = acknowledged.load(Ordering::SeqCst);
        let filler = "x".repeat(usize::try_from(dice.below(2000)).expect("small"));
        let (from, to) = (1 + dice.below(ACCOUNTS), 1 + dice.below(ACCOUNTS));
        client.simple_query(&format!(
            "begin; insert into rows values ({number}, {next}, '{filler}');
             update accounts set balance = balance - 1 where id = {from};
             update accounts set balance = balance + 1 where id = {to};
             commit"
        ))?;
        acknowledged.store(next + 1, Ordering::SeqCst);
        Ok(())
    })
}

/// What happens beside the writers.
const DISTURBANCES: [&str; 12] = [
    "checkpoint",
    "vacuum rows",
    "vacuum full accounts",
    "analyze",
    "create table if not exists passing as select generate_series(1, 2000) a",
    "drop table if exists passing",
    "create database passing",
    "drop database if exists passing",
    "reindex table rows",
    "alter table rows alter filler set storage external",
    "select pg_switch_wal()",
    "create unlogged table if not exists unlogged as select 1; truncate unlogged",
];

fn disturb(config: &Config, stop: &Arc<AtomicBool>, seed: u64) -> JoinHandle<()> {
    let mut dice = Dice(seed);
    until_killed(config, stop, move |client| {
        let choice = usize::try_from(dice.below(DISTURBANCES.len() as u64)).expect("small");
        client.simple_query(DISTURBANCES[choice]).map(drop)
    })
}

/// Makes backups until the server is killed. The last complete one is `file`; how many rows each writer had been
/// acknowledged when it was begun is returned with it. A message comes for each that is complete.
fn back_up(
    url: &str,
    file: &Path,
    stop: &Arc<AtomicBool>,
    writers: &[Writer],
) -> (JoinHandle<Option<Vec<u64>>>, Receiver<()>) {
    let (url, file, stop, writers) = (url.to_owned(), file.to_owned(), stop.clone(), writers.to_vec());
    let (completed, completions) = channel();
    let thread = thread::spawn(move || {
        let mut complete = None;
        while !stop.load(Ordering::SeqCst) {
            let before = acknowledged_by(&writers);
            match backup::back_up(&url, &file, true) {
                Ok(_) => {
                    complete = Some(before);
                    let _ = completed.send(());
                }
                Err(_) => break,
            }
        }
        complete
    });
    (thread, completions)
}

fn acknowledged_by(writers: &[Writer]) -> Vec<u64> {
    writers.iter().map(|writer| writer.acknowledged.load(Ordering::SeqCst)).collect()
}

/// Checks what a cluster has after it was killed, and corrects what its writers know.
fn check(client: &mut Client, writers: &[Writer], what: &str) {
    // A commit may have been made without its client's knowledge.
    let may_be: Vec<_> = acknowledged_by(writers).into_iter().map(|number| number..=number + 1).collect();
    for (writer, has) in writers.iter().zip(check_content(client, &may_be, what)) {
        writer.acknowledged.store(has, Ordering::SeqCst);
    }
}

/// Checks that the content of a cluster fits together, and that the number of each writer's rows may be; returns these
/// numbers.
fn check_content(client: &mut Client, may_be: &[RangeInclusive<u64>], what: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    for (number, may_be) in may_be.iter().enumerate() {
        let seen = rows(client, &format!("select count(*), coalesce(max(n) + 1, 0) from rows where writer = {number}"));
        let (count, next) = seen[0].split_once('|').expect("two columns");
        assert_eq!(count, next, "{what}: writer {number} has gaps");
        let next = next.parse::<u64>().expect("a number");
        assert!(may_be.contains(&next), "{what}: writer {number} has {next} rows instead of {may_be:?}");
        numbers.push(next);
    }
    let total = rows(client, "select sum(balance), count(*) from accounts");
    assert_eq!(total, [format!("{}|{ACCOUNTS}", 100 * ACCOUNTS)], "{what}: money was lost or made");
    let indexes = "select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
                   where a.amname = 'btree' and c.relpersistence = 'p' and c.relkind = 'i'";
    let checked = answer(client, indexes);
    assert!(checked.is_ok(), "{what}: {checked:?}");
    // Every page of every table can be read.
    rows(
        client,
        "do $$ declare t regclass; begin for t in select oid from pg_class where relkind in ('r', 'm') \
         and relpersistence = 'p' loop execute format('select count(t.*) from %s t', t); end loop; end $$",
    );
    numbers
}

/// Restores a backup that was begun when `before` rows were acknowledged and was complete before `after`.
fn check_backup(file: &Path, outer: &Path, before: &[u64], after: &[u64], what: &str) {
    let directory = outer.join("restored");
    backup::restore(file, &directory, true).expect("a whole backup");
    let server = Server::in_directory(&directory);
    let may_be: Vec<_> = before.iter().zip(after).map(|(before, after)| *before..=*after + 1).collect();
    check_content(&mut server.connect(), &may_be, what);
    drop(server);
    fs::remove_dir_all(directory).expect("it is ours");
}

/// Runs the program with these arguments, and kills it within `longest`, unless it ends before.
fn kill_within(longest: Duration, arguments: &[&str], dice: &mut Dice) {
    let mut program = Program::spawn(arguments);
    let longest = u64::try_from(longest.as_micros()).expect("small");
    thread::sleep(Duration::from_micros(dice.below(longest + 1)));
    program.signal(Signal::KILL);
    program.wait();
}

/// How many kills there are of what is done once in a cluster's life.
fn kills_of_beginnings() -> u64 {
    power::number("PGLITE_PORT_KILLS", KILLS) / 5
}

#[test]
fn whenever_a_restore_is_killed_it_leaves_nothing_or_a_part_that_is_refused_or_a_whole_cluster() {
    let seed = power::seed();
    let mut dice = Dice(seed | 1);
    let outer = tempfile::tempdir().expect("a directory");
    let text = |name: &str| outer.path().join(name).to_str().expect("text").to_owned();
    let (archive, data) = (text("backup.tar"), text("data"));
    {
        let server = Server::in_directory(&outer.path().join("source"));
        rows(&mut server.connect(), "create table t as select i as a from generate_series(1, 1000) i");
        backup::back_up(&server.url, Path::new(&archive), true).expect("a backup");
    }
    let begun = Instant::now();
    Program::succeed(&["restore", &archive, &text("whole")]);
    let longest = begun.elapsed();
    let restore = ["restore", &archive, &data];
    for kill in 0..kills_of_beginnings() {
        let what = format!("kill {kill} of seed {seed}");
        kill_within(longest, &restore, &mut dice);
        let is_empty = fs::read_dir(&data).map_or(true, |mut entries| entries.next().is_none());
        let is_part = !is_empty && !Path::new(&data).join("PG_VERSION").exists();
        if is_part {
            let said = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--data", &data]);
            assert!(said.contains("run pglite-port restore FILE DIRECTORY again"), "{what}: {said}");
        }
        let (status, _, stderr) = Program::spawn(&restore).output();
        let was_whole = !is_empty && !is_part && stderr.contains("is not empty");
        assert!(status == Some(0) || was_whole, "{what}: {stderr}");
        let server = Server::in_directory(Path::new(&data));
        assert_eq!(rows(&mut server.connect(), "select count(*) from t"), ["1000"], "{what}");
        drop(server);
        fs::remove_dir_all(&data).expect("it is ours");
    }
}

#[test]
fn whenever_a_copy_of_a_template_is_killed_the_next_start_has_the_whole_of_it() {
    const TEMPLATE: &str = "durable_crash";
    let seed = power::seed();
    let mut dice = Dice(seed | 1);
    let outer = tempfile::tempdir().expect("a directory");
    let sql = outer.path().join("template.sql");
    fs::write(&sql, "create table orders as select i from generate_series(1, 1000) i").expect("a file");
    Program::succeed(&["prepare", TEMPLATE, "--sql", sql.to_str().expect("text")]);
    let data = outer.path().join("data");
    let arguments = ["--data", data.to_str().expect("text"), "--template", TEMPLATE];
    let serve = [&["serve", "--listen", "127.0.0.1:0"], &arguments[..]].concat();
    let begun = Instant::now();
    drop(Server::with(&arguments));
    let longest = begun.elapsed();
    for kill in 0..kills_of_beginnings() {
        fs::remove_dir_all(&data).expect("it is ours");
        kill_within(longest, &serve, &mut dice);
        let server = Server::with(&arguments);
        let mut config = server.config();
        let mut client = config.dbname(TEMPLATE).connect(NoTls).expect("a session");
        assert_eq!(rows(&mut client, "select count(*) from orders"), ["1000"], "kill {kill} of seed {seed}");
    }
}

/// A directory, and what its writers know.
struct Round {
    path: PathBuf,
    writers: Vec<Writer>,
}

impl Round {
    fn new(outer: &Path, number: u64) -> Self {
        let path = outer.join(format!("data-{number}"));
        Self { path, writers: (0..WRITERS).map(|_| Writer::default()).collect() }
    }
}

fn acknowledged(round: &Round) -> u64 {
    acknowledged_by(&round.writers).iter().sum()
}

#[test]
fn whenever_the_program_is_killed_what_was_acknowledged_is_there_and_nothing_else() {
    let seed = power::seed();
    let kills = power::number("PGLITE_PORT_KILLS", KILLS);
    let mut dice = Dice(seed | 1);
    let outer = tempfile::tempdir().expect("a directory");
    let mut round = Round::new(outer.path(), 0);
    let (mut acknowledged_before, mut backups_checked) = (0, 0);
    let backup_file = outer.path().join("backup.tar");
    for kill in 0..kills {
        let what = format!("kill {kill} of seed {seed}");
        if dice.below(10) == 0 {
            acknowledged_before += acknowledged(&round);
            round = Round::new(outer.path(), kill + 1);
            // A first start, killed while it makes the cluster.
            let data = round.path.to_str().expect("text");
            let mut program = Program::spawn(&["serve", "--listen", "127.0.0.1:0", "--data", data]);
            thread::sleep(Duration::from_millis(dice.below(400)));
            program.signal(Signal::KILL);
            program.wait();
        }
        let server = Server::in_directory(&round.path);
        let config = server.config();
        let mut client = server.connect();
        set_up(&mut client);
        check(&mut client, &round.writers, &what);
        drop(client);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads: Vec<_> =
            (0_u64..).zip(&round.writers).map(|(number, writer)| write(&config, &stop, number, writer)).collect();
        threads.push(disturb(&config, &stop, dice.below(u64::MAX) | 1));
        let backups = (kill % 3 == 0).then(|| back_up(&server.url, &backup_file, &stop, &round.writers));
        // The other kills come in the middle of one.
        if let Some((_, completions)) = backups.as_ref().filter(|_| kill % 9 == 0) {
            completions.recv_timeout(PATIENCE).expect("a backup");
        }
        thread::sleep(Duration::from_millis(dice.below(LONGEST)));
        let lines = server.kill();
        let fault = lines.iter().find(|line| line.contains("PANIC") || line.contains("has crashed"));
        assert!(fault.is_none(), "{what}: before the kill: {fault:?}");
        stop.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        if let Some(before) = backups.and_then(|(thread, _)| thread.join().expect("no panic")) {
            let after = acknowledged_by(&round.writers);
            check_backup(&backup_file, outer.path(), &before, &after, &format!("the backup before {what}"));
            backups_checked += 1;
        }
        if (kill + 1) % 100 == 0 {
            println!("{} of {kills}", kill + 1);
        }
    }
    let server = Server::in_directory(&round.path);
    check(&mut server.connect(), &round.writers, "at the end");
    assert!(acknowledged_before + acknowledged(&round) > 5 * kills, "there was little load");
    assert!(backups_checked > 0, "no backup was checked");
}
