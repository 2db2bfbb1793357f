//! PostgreSQL 18's own programs that copy a running cluster and receive its WAL.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use postgres::Client;
use rustix::process::{Pid, Signal, kill_process};
use support::{
    place::Place,
    server::{Server, rows, wait_for_rows},
};

/// One of PostgreSQL 18's programs, with that server.
fn program(name: &str, server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(native::programs_18().join(name));
    command.arg(format!("--dbname={}", server.url)).args(arguments).env("LC_ALL", "C");
    command
}

/// A program that runs until it is told to end, or is killed with the test.
struct Running(Child);

impl Running {
    /// Tells it to end; its exit status.
    fn interrupt(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::INT).expect("it runs");
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients that insert 1, 2, 3, … each, one transaction after the other, and stop when they are told to.
struct Writers {
    is_over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<i64>>,
}

impl Writers {
    fn start(server: &Server, count: i32) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let write = |writer| {
            let (mut client, is_over) = (server.connect(), is_over.clone());
            thread::spawn(move || {
                let mut last = 0;
                while !is_over.load(Ordering::Relaxed) {
                    last += 1;
                    client
                        .execute("insert into t values ($1, $2, repeat('x', 500))", &[&writer, &last])
                        .expect("a row");
                }
                last
            })
        };
        Self { threads: (0..count).map(write).collect(), is_over }
    }

    /// Stops them; the last number of each.
    fn stop(self) -> Vec<i64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a writer")).collect()
    }
}

const TABLE: &str = "create table t (writer int, number bigint, filler text, primary key (writer, number))";
const LAST: &str = "select writer, max(number) from t group by 1 order by 1";

/// The last number of each writer, without a gap before it.
fn last_numbers(client: &mut Client) -> Vec<i64> {
    let complete = "select count(*) from (select from t group by writer having count(*) <> max(number)) incomplete";
    assert_eq!(rows(client, complete), ["0"]);
    let numbers = rows(client, LAST).into_iter();
    numbers.map(|row| row.split_once('|').and_then(|(_, number)| number.parse().ok()).expect("a number")).collect()
}

fn wait_until_all_write(client: &mut Client) {
    wait_for_rows(client, "select count(distinct writer) from t", &["4"]);
}

fn base_backup_of(server: &Server, place: &Place) {
    let mut client = server.connect();
    client.batch_execute(TABLE).expect("a table");
    let writers = Writers::start(server, 4);
    wait_until_all_write(&mut client);
    let before = last_numbers(&mut client);
    let data = place.path("copy");
    // The WAL comes over a second connection, with a slot that ends with it.
    let arguments = ["--checkpoint=fast", "--wal-method=stream", "--pgdata", data.to_str().expect("text")];
    let output = program("pg_basebackup", server, &arguments).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let after = writers.stop();
    assert_eq!(rows(&mut client, "select count(*) from pg_replication_slots"), ["0"]);
    let verified = Command::new(native::programs_18().join("pg_verifybackup"))
        .args(["--no-parse-wal", "--exit-on-error"])
        .arg(&data)
        .output()
        .expect("it runs");
    assert!(verified.status.success(), "{verified:?}");
    let copy = Server::in_directory(&data);
    let mut copied = copy.connect();
    let numbers = last_numbers(&mut copied);
    assert_eq!(numbers.len(), 4);
    for ((before, number), after) in before.iter().zip(&numbers).zip(&after) {
        assert!(before <= number && number <= after, "{before:?} {numbers:?} {after:?}");
    }
    // It is a cluster as any other.
    copied.batch_execute("insert into t values (9, 1, '')").expect("it can be written to");
    copied.batch_execute("vacuum t").expect("it can be vacuumed");
}

#[test]
fn pg_basebackup_copies_a_cluster_that_is_written_to_and_another_program_opens_the_copy() {
    base_backup_of(&Server::shared(), &Place::new());
}

#[test]
fn pg_basebackup_copies_a_cluster_in_a_directory() {
    let place = Place::new();
    base_backup_of(&Server::in_directory(&place.path("data")), &place);
}

/// The names of the files of a directory in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// Starts `pg_receivewal`, and waits until it receives.
fn receive(server: &Server, client: &mut Client, received: &Path) -> Running {
    let arguments = ["--slot=receiver", "--synchronous", "--directory", received.to_str().expect("text")];
    let mut command = program("pg_receivewal", server, &arguments);
    let running = Running(command.stderr(Stdio::null()).spawn().expect("it runs"));
    let streams = "select state from pg_stat_replication where application_name = 'pg_receivewal'";
    wait_for_rows(client, streams, &["streaming"]);
    running
}

/// Commits something, waits until the receiver has it on its disk, and returns where it is in the WAL.
fn commit(client: &mut Client, sql: &str) -> String {
    client.batch_execute(sql).expect(sql);
    let end = rows(client, "select pg_current_wal_insert_lsn()").remove(0);
    let flushed = format!("select count(*) from pg_stat_replication where flush_lsn >= '{end}'");
    wait_for_rows(client, &flushed, &["1"]);
    end
}

#[test]
fn pg_receivewal_receives_the_wal_while_commits_go_on_and_goes_on_after_a_restart() {
    // What was received is compared with what the cluster has.
    let (server, place) = (Server::with(&["--set", "wal_keep_size=1GB"]), Place::new());
    let mut client = server.connect();
    client.batch_execute(TABLE).expect("a table");
    let received: PathBuf = place.path("wal");
    fs::create_dir(&received).expect("a directory");
    let created = program("pg_receivewal", &server, &["--slot=receiver", "--create-slot"]).output().expect("it runs");
    assert!(created.status.success(), "{created:?}");
    let mut receiver = receive(&server, &mut client, &received);
    let writers = Writers::start(&server, 4);
    wait_until_all_write(&mut client);
    for round in 0..3 {
        commit(&mut client, &format!("insert into t values (10, {round}, ''); select pg_switch_wal()"));
    }
    assert_eq!(receiver.interrupt(), Some(0));
    // What was written meanwhile is sent when it comes again.
    writers.stop();
    receiver = receive(&server, &mut client, &received);
    let last = commit(&mut client, "insert into t values (11, 1, 'the last text in the WAL')");
    assert_eq!(receiver.interrupt(), Some(0));

    let segment = rows(&mut client, &format!("select pg_walfile_name('{last}')")).remove(0);
    let files = names(&received);
    assert_eq!(files.last(), Some(&format!("{segment}.partial")), "{files:?}");
    assert!(files.len() > 3, "{files:?}");
    let complete = &files[..files.len() - 1];
    for name in complete {
        let theirs = fs::read(received.join(name)).expect("a segment");
        let ours: Vec<u8> =
            client.query_one("select pg_read_binary_file('pg_wal/' || $1)", &[name]).expect("a segment").get(0);
        assert!(theirs == ours, "{name} differs");
    }
    let numbers: Vec<u64> = complete.iter().map(|name| u64::from_str_radix(&name[8..], 16).expect("a name")).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    let rest = fs::read(received.join(format!("{segment}.partial"))).expect("the last one");
    let text = b"the last text in the WAL";
    assert!(rest.windows(text.len()).any(|part| part == text), "the last commit was not received");
}
