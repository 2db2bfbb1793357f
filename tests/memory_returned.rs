//! What PostgreSQL has freed goes back to the operating system: its sessions' memory while they wait, and its files'
//! at once.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use postgres::Client;
use support::{
    PATIENCE, process,
    server::{Server, rows},
};

const MIB: u64 = 1 << 20;

fn servers() -> [Server; 2] {
    [Server::shared(), Server::start()]
}

/// What the program has in memory that is no file's, in bytes.
fn memory(server: &Server) -> u64 {
    process::anonymous_memory(server.program.id())
}

/// Waits until the program has no more than `limit` bytes in memory.
fn wait_for_memory(server: &Server, limit: u64) {
    let deadline = Instant::now() + PATIENCE;
    while memory(server) > limit {
        assert!(Instant::now() < deadline, "{} MiB instead of {} MiB", memory(server) / MIB, limit / MIB);
        // The operating system tells nobody when a program has given memory back.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `sql`, which uses more than `used` bytes, and waits until they have gone back, but for a few: memory that is
/// still on its way would count as used before the next query.
fn use_and_wait(server: &Server, client: &mut Client, used: u64, sql: &str) -> Vec<String> {
    let before = memory(server);
    process::forget_most_memory(server.program.id());
    let resident = process::most_memory(server.program.id());
    let answer = rows(client, sql);
    assert!(process::most_memory(server.program.id()) > resident + used, "{sql:.60} used less");
    wait_for_memory(server, before + (used / 10).min(12 * MIB));
    answer
}

#[test]
fn a_session_that_waits_gives_the_memory_of_its_last_query_back() {
    for server in servers() {
        let mut client = server.connect();
        client.batch_execute("set work_mem = '1GB'").expect("a setting");
        let sort =
            "select md5(string_agg(t, '')) from (select md5(i::text) t from generate_series(1, 300000) i order by 1) s";
        let hash = "select count(*), sum(c) from (select count(*) c from generate_series(1, 400000) i group by md5(i::text)) h";
        let value = "select length(repeat(repeat('0123456789abcdef', 1000), 20000))";
        // Caches have what they want after this.
        let sorted = rows(&mut client, sort);
        wait_for_memory(&server, 20 * MIB);
        assert_eq!(use_and_wait(&server, &mut client, 300 * MIB, value), ["320000000"]);
        assert_eq!(use_and_wait(&server, &mut client, 30 * MIB, sort), sorted);
        assert_eq!(use_and_wait(&server, &mut client, 30 * MIB, hash), ["400000|400000"]);
        // What belongs to a message is freed before the next one comes.
        let literal = format!("select length('{}')", "0123456789abcdef".repeat(4 << 20));
        assert_eq!(use_and_wait(&server, &mut client, 60 * MIB, &literal), ["67108864"]);
    }
}

#[test]
fn what_a_waiting_session_still_uses_stays_as_it_is() {
    for server in servers() {
        let mut client = server.connect();
        let query = |number: u32| {
            format!("select i, md5((i * {number})::text) from generate_series(1, 100000) i order by 2 desc")
        };
        let numbers = 1..7;
        let expected: Vec<_> = numbers.clone().map(|number| rows(&mut client, &query(number))).collect();
        client.batch_execute("begin; set local work_mem = '1GB'").expect("a transaction");
        // Sorts of some ten megabytes each, every other one of which is then freed.
        for number in numbers.clone() {
            let declare = format!("declare c{number} cursor for {}; fetch 1 from c{number}", query(number));
            client.batch_execute(&declare).expect("a cursor");
        }
        let before = memory(&server);
        client.batch_execute("close c1; close c3; close c5").expect("three cursors");
        wait_for_memory(&server, before - 20 * MIB);
        for (number, expected) in numbers.clone().zip(&expected).filter(|(number, _)| number % 2 == 0) {
            assert!(rows(&mut client, &format!("fetch all from c{number}")) == expected[1..], "cursor {number}");
        }
        // What was given back is as good as new.
        for (number, expected) in numbers.zip(&expected) {
            assert!(rows(&mut client, &query(number)) == *expected, "query {number}");
        }
        client.batch_execute("commit").expect("the transaction is whole");
    }
}

/// What makes a table of some 200 MB, with nothing in the write-ahead log.
const TABLE: &str = "create unlogged table t as select i, repeat(md5(i::text), 31) from generate_series(1, 200000) i";

#[test]
fn a_file_that_is_removed_or_cut_off_gives_its_memory_back() {
    for server in servers() {
        let mut client = server.connect();
        client.batch_execute(TABLE).expect("a table");
        client.batch_execute("drop table t").expect("it is gone");
        wait_for_memory(&server, 250 * MIB);
        for end in ["drop table t", "truncate t", "begin; insert into t select * from t; rollback; drop table t"] {
            use_and_wait(&server, &mut client, 180 * MIB, &format!("drop table if exists t; {TABLE}; {end}"));
        }
        // Rewritten without what was deleted.
        client.batch_execute(&format!("drop table if exists t; {TABLE}")).expect("a table");
        let before = memory(&server);
        client.batch_execute("delete from t where i % 4 > 0").expect("rows");
        client.batch_execute("vacuum full t").expect("rewritten");
        wait_for_memory(&server, before - 120 * MIB);
        assert_eq!(rows(&mut client, "select count(*), sum(i) from t"), ["50000|5000100000"]);
    }
}

#[test]
fn temporary_files_give_their_memory_back_with_the_query() {
    for server in servers() {
        let mut client = server.connect();
        client.batch_execute("set work_mem = '1MB'").expect("a setting");
        let sort = "select count(distinct t) from (select repeat(md5(i::text), 10) t from generate_series(1, 200000) i order by 1) s";
        assert_eq!(use_and_wait(&server, &mut client, 50 * MIB, sort), ["200000"]);
    }
}

#[test]
fn a_database_that_is_dropped_gives_its_memory_back() {
    let server = Server::shared();
    let mut client = server.connect();
    client.batch_execute("create database d").expect("a database");
    let mut inside = server.config().dbname("d").connect(postgres::NoTls).expect("a session");
    inside.batch_execute(TABLE).expect("a table");
    drop(inside);
    let full = memory(&server);
    client.batch_execute("drop database d with (force)").expect("it is gone");
    wait_for_memory(&server, full - 180 * MIB);
}

#[test]
fn a_connection_with_a_cluster_of_its_own_gives_everything_back_when_it_closes() {
    let server = Server::start();
    let connect = || server.connect();
    drop(connect());
    let before = memory(&server);
    let mut client = connect();
    client.batch_execute(TABLE).expect("a table");
    assert!(memory(&server) > before + 200 * MIB);
    drop(client);
    wait_for_memory(&server, before + 8 * MIB);
}
