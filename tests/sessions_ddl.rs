//! Changes of the schema and maintenance of tables, beside sessions that use them.

mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use support::{PATIENCE, peer::Peer, server::Server};

#[test]
fn what_one_session_changes_in_the_schema_the_caches_of_the_other_know() {
    let (_server, one, two) = Peer::two();
    one.run("create table t (a int); insert into t values (1)");
    two.run("prepare q as select * from t; prepare w as insert into t (a) values (2)");
    assert_eq!(two.run("execute q"), ["1"]);
    one.run("alter table t add column b text default 'new'");
    assert_eq!(two.run("select * from t"), ["1|new"]);
    assert_eq!(two.fail("execute q"), "0A000", "its result would be another one");
    one.run("alter table t add constraint positive check (a < 2)");
    assert_eq!(two.fail("execute w"), "23514");
    one.run("alter table t rename to u");
    assert_eq!(two.fail("select * from t"), "42P01");
    assert_eq!(two.run("select * from u"), ["1|new"]);
    one.run("drop table u; create view u as select 'a view' as it");
    assert_eq!(two.run("select * from u"), ["a view"]);
    one.run("create function f() returns int language sql as 'select 1'");
    assert_eq!(two.value("select f()"), "1");
    one.run("create or replace function f() returns int language sql as 'select 2'");
    assert_eq!(two.value("select f()"), "2");
    one.run("create function g() returns int language plpgsql as 'begin return 1; end'");
    assert_eq!(two.value("select g()"), "1");
    one.run("create or replace function g() returns int language plpgsql as 'begin return 2; end'");
    assert_eq!(two.value("select g()"), "2");
    one.run("create type mood as enum ('bad')");
    assert_eq!(two.value("select 'bad'::mood"), "bad");
    one.run("alter type mood add value 'good'");
    assert_eq!(two.value("select 'good'::mood"), "good");
}

#[test]
fn a_session_that_slept_through_thousands_of_changes_knows_them_all() {
    let (_server, one, two) = Peer::two();
    two.run("create table t (a int); select * from t");
    // More messages than the queue of invalidations holds (MAXNUMMESSAGES is 4096): the sleeper is made to catch up,
    // or starts over.
    one.run(
        "do $$ begin for i in 1..1000 loop execute format('create table s%s (a int primary key)', i); end loop; end $$",
    );
    one.run("do $$ begin for i in 1..1000 loop execute format('drop table s%s', i); end loop; end $$; alter table t rename a to b");
    assert_eq!(two.fail("select a from t"), "42703");
    assert_eq!(two.value("select count(b) from t"), "0");
}

#[test]
fn ddl_of_a_transaction_is_seen_with_its_commit_and_waits_for_users_of_the_table() {
    let (server, one, two) = Peer::two();
    one.run("create table t (a int)");
    one.run("begin; create table fresh (a int); alter table t add column b int");
    assert_eq!(two.fail("select * from fresh"), "42P01");
    two.send("select * from t");
    Peer::connect(&server).until_waiting(&two, "Lock");
    one.run("rollback");
    assert!(two.rows().is_empty());
    assert_eq!(two.fail("select b from t"), "42703");
    one.run("begin; create table fresh (a int); alter table t add column b int; commit");
    assert_eq!(two.run("select a from fresh union select b from t"), [""; 0]);
    two.run("begin; select * from t");
    one.send("alter table t drop column b");
    Peer::connect(&server).until_waiting(&one, "Lock");
    two.run("select b from t; commit");
    one.rows();
    assert_eq!(two.fail("select b from t"), "42703");
}

/// Sets a flag when it is dropped, be it because a test has failed: those who wait for the flag end in any case.
struct SetAtTheEnd<'a>(&'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs the statements while others insert, update and delete rows of `t`, who get to write during each of them or
/// before the next.
fn beside_writers(server: &Server, statements: &[&str]) {
    let (config, done, written) = (server.config(), AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for writer in 0..3 {
            let (config, done, written) = (&config, &done, &written);
            scope.spawn(move || {
                let peer = Peer::with(config).expect("a session");
                for id in (0..100).map(|count| writer + 3 * count).cycle() {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    peer.run(&format!("insert into t (k) values ({id}); update t set k = k + 1000 where k = {id}"));
                    peer.run(&format!("delete from t where k = {id} + 1000 and id % 2 = 0"));
                    written.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _done = SetAtTheEnd(&done);
        let peer = Peer::connect(server);
        // Rows that only the writers make.
        peer.until("select count(*) > 10 from t where k between 1000 and 1099");
        for statement in statements {
            let before = written.load(Ordering::SeqCst);
            peer.run(statement);
            let started = Instant::now();
            while written.load(Ordering::SeqCst) == before {
                assert!(started.elapsed() < PATIENCE, "nobody writes after {statement}");
                thread::yield_now();
            }
        }
    });
}

/// Asserts that the index on `t (k)` has the rows that the table has.
fn assert_index_agrees(peer: &Peer) {
    let rows = |scan: &str, other: &str, planned: &str| {
        peer.run(&format!("set enable_{scan} = on; set enable_{other} = off; set enable_bitmapscan = off"));
        let query = "select k, id from t where k >= 0 order by k, id";
        let plan = peer.run(&format!("explain (costs off) {query}")).join("\n");
        assert!(plan.contains(planned), "{plan}");
        peer.run(query)
    };
    let (in_table, in_index) =
        (rows("seqscan", "indexscan", "Seq Scan on t"), rows("indexscan", "seqscan", "using t_k"));
    assert!(in_table.len() > 2000 && in_table == in_index, "the index has other rows than its table");
}

#[test]
fn an_index_is_created_and_rebuilt_concurrently_beside_writers() {
    let (server, one, _) = Peer::two();
    one.run("create table t (id bigserial primary key, k int); insert into t (k) select i from generate_series(2000, 4000) i");
    let statements = [
        "create index concurrently t_k on t (k)",
        "reindex index concurrently t_k",
        "reindex table concurrently t",
        "drop index concurrently t_k",
        "create index concurrently t_k on t (k)",
    ];
    beside_writers(&server, &statements);
    assert_eq!(one.value("select count(*) from pg_index where not indisvalid or not indisready"), "0");
    assert_index_agrees(&one);
}

#[test]
fn tables_are_vacuumed_rewritten_and_clustered_beside_writers() {
    let (server, one, _) = Peer::two();
    one.run("create table t (id bigserial primary key, k int); create index t_k on t (k)");
    one.run("insert into t (k) select i from generate_series(2000, 4000) i");
    let statements = [
        "vacuum t",
        "vacuum full t",
        "cluster t using t_k",
        "vacuum (analyze, freeze) t",
        "alter table t alter column k type bigint",
    ];
    beside_writers(&server, &statements);
    assert_index_agrees(&one);
}

#[test]
fn vacuum_removes_what_no_session_can_see_and_nothing_else() {
    let (_server, one, two) = Peer::two();
    one.run("create table t with (autovacuum_enabled = false) as select i from generate_series(1, 1000) i");
    two.run("begin isolation level repeatable read; select count(*) from t");
    one.run("delete from t where i > 10");
    one.run("vacuum t");
    assert_eq!(two.value("select count(*) from t"), "1000");
    two.run("commit");
    one.run("vacuum t");
    assert_eq!(one.value("select pg_relation_size('t') < 8192 * 2"), "t");
    assert_eq!(two.value("select count(*) from t"), "10");
}

#[test]
fn concurrent_indexes_wait_for_older_transactions_and_an_interrupted_one_stays_invalid() {
    let (server, one, two) = Peer::two();
    let watcher = Peer::connect(&server);
    one.run("create table t (k int)");
    one.run("begin; insert into t values (1)");
    two.send("create unique index concurrently t_k on t (k)");
    watcher.until_waiting(&two, "Lock");
    assert_eq!(watcher.value("select indisvalid from pg_index where indexrelid = 't_k'::regclass"), "f");
    assert_eq!(watcher.value(&format!("select pg_cancel_backend({})", two.process_id)), "t");
    assert_eq!(two.error(), "57014");
    one.run("commit");
    assert_eq!(watcher.value("select indisvalid from pg_index where indexrelid = 't_k'::regclass"), "f");
    two.run("reindex index concurrently t_k");
    assert_eq!(watcher.value("select indisvalid from pg_index where indexrelid = 't_k'::regclass"), "t");
}

#[test]
fn five_thousand_tables_have_statistics_that_every_session_sees() {
    let (_server, one, two) = Peer::two();
    // The entries of the shared statistics outgrow their first segment of dynamic shared memory.
    for from in (0..5000).step_by(500) {
        let create = "create table s%s (a int); insert into s%s values (1)";
        one.run(&format!(
            "do $$ begin for i in {from}..{from} + 499 loop execute format('{create}', i, i); end loop; end $$"
        ));
    }
    one.run("select pg_stat_force_next_flush()");
    one.run("select 1");
    assert_eq!(two.value("select sum(n_tup_ins) from pg_stat_user_tables where relname ~ '^s[0-9]+$'"), "5000");
}
