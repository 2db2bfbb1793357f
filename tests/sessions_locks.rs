//! Locks between sessions: rows, keys, tables, advisory locks, deadlocks.

mod support;

use support::{
    peer::{Failure, LOCKS_OF_OTHERS, Peer},
    server::Server,
};

/// That many sessions of one cluster, in which `setup` was run, and one that watches.
fn sessions<const N: usize>(setup: &str) -> (Server, [Peer; N], Peer) {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    watcher.run(setup);
    let peers = std::array::from_fn(|_| Peer::connect(&server));
    (server, peers, watcher)
}

const ROWS: &str =
    "create table item (id int primary key, n int); insert into item select i, 0 from generate_series(1, 5) i";

#[test]
fn a_locked_row_is_refused_with_nowait_left_out_with_skip_locked_and_waited_for_otherwise() {
    let (_server, [one, two], watcher) = sessions(ROWS);
    one.run("begin; select * from item where id <= 2 for update");
    assert_eq!(two.fail("select * from item where id = 2 for update nowait"), "55P03");
    assert_eq!(two.run("select id from item order by id for update skip locked"), ["3", "4", "5"]);
    assert_eq!(two.run("select id from item order by id limit 1"), ["1"], "readers do not wait");
    two.send("select n from item where id = 2 for update");
    watcher.until_waiting(&two, "Lock");
    one.run("update item set n = 7 where id = 2; commit");
    assert_eq!(two.rows(), ["7"]);
}

#[test]
fn share_locks_go_together_and_keep_writers_out() {
    let (_server, [one, two, three], watcher) = sessions(ROWS);
    one.run("begin; select * from item where id = 1 for share");
    two.run("begin; select * from item where id = 1 for key share");
    two.run("select * from item where id = 1 for share");
    three.send("update item set n = 1 where id = 1 returning n");
    watcher.until_waiting(&three, "Lock");
    one.run("commit");
    watcher.until_waiting(&three, "Lock");
    two.run("commit");
    assert_eq!(three.rows(), ["1"]);
}

#[test]
fn workers_that_skip_locked_rows_share_a_queue_without_losing_or_doubling_a_job() {
    let server = Server::shared();
    let watcher = Peer::connect(&server);
    watcher.run("create table job (id int primary key, done_by int); insert into job select generate_series(1, 200)");
    let next = "update job set done_by = pg_backend_pid() where id = (select id from job where done_by is null \
                order by id limit 1 for update skip locked) returning id";
    let config = server.config();
    let worker = || {
        let peer = Peer::with(&config).expect("a session");
        std::iter::from_fn(|| peer.run(next).pop()).count()
    };
    let done: Vec<usize> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(done.iter().sum::<usize>(), 200, "{done:?}");
    assert_eq!(watcher.value("select count(*) from job where done_by is null"), "0");
}

#[test]
fn a_unique_key_that_is_not_committed_is_waited_for() {
    let (_server, [one, two], watcher) = sessions("create table name (name text unique)");
    for (end, outcome) in [("commit", Some("23505")), ("rollback", None)] {
        one.run(&format!("begin; insert into name values ('{end}')"));
        two.send(&format!("insert into name values ('{end}')"));
        watcher.until_waiting(&two, "Lock");
        one.run(end);
        assert_eq!(two.answer().err().as_ref().map(Failure::sqlstate), outcome, "{end}");
    }
}

#[test]
fn an_insert_that_does_nothing_on_conflict_waits_for_the_other_insert_too() {
    let (_server, [one, two], watcher) = sessions("create table name (name text unique, n int default 1)");
    one.run("begin; insert into name values ('a')");
    two.send("insert into name values ('a') on conflict (name) do update set n = name.n + 1 returning n");
    watcher.until_waiting(&two, "Lock");
    one.run("commit");
    assert_eq!(two.rows(), ["2"]);
}

#[test]
fn a_foreign_key_waits_for_what_happens_to_the_row_it_refers_to() {
    let (_server, [one, two], watcher) = sessions(
        "create table parent (id int primary key); create table child (parent int references parent); \
         insert into parent values (1), (2)",
    );
    one.run("begin; delete from parent where id = 1");
    two.send("insert into child values (1)");
    watcher.until_waiting(&two, "Lock");
    one.run("commit");
    assert_eq!(two.error(), "23503");

    one.run("begin; insert into child values (2)");
    two.send("delete from parent where id = 2");
    watcher.until_waiting(&two, "Lock");
    one.run("commit");
    assert_eq!(two.error(), "23503");
    // A key that stays as it is is nobody's concern.
    one.run("begin; insert into child values (2)");
    two.run("update parent set id = 2 where id = 2");
    one.run("commit");
}

#[test]
fn of_two_sessions_in_a_deadlock_one_fails_and_the_other_goes_on() {
    let (_server, [one, two], watcher) = sessions(ROWS);
    for peer in [&one, &two] {
        peer.run("set deadlock_timeout = '10ms'");
    }
    one.run("begin; update item set n = 1 where id = 1");
    two.run("begin; update item set n = 2 where id = 2");
    one.send("update item set n = 1 where id = 2");
    watcher.until_waiting(&one, "Lock");
    two.send("update item set n = 2 where id = 1");
    let (first, second) = (one.answer(), two.answer());
    let ((Ok(_), Err(error)) | (Err(error), Ok(_))) = (first, second) else { panic!("not exactly one failed") };
    assert_eq!(error.sqlstate(), "40P01");
    let detail = error.field('D');
    for peer in [&one, &two] {
        assert!(detail.contains(&format!("Process {}", peer.process_id)), "{detail}");
    }
}

#[test]
fn of_three_sessions_in_a_deadlock_one_fails_and_the_others_go_on() {
    let (_server, peers, watcher) = sessions::<3>(ROWS);
    for (peer, id) in peers.iter().zip(1..) {
        peer.run(&format!("set deadlock_timeout = '10ms'; begin; update item set n = 1 where id = {id}"));
    }
    for (peer, id) in peers.iter().zip([2, 3, 1]) {
        peer.send(&format!("update item set n = 1 where id = {id}; commit"));
    }
    let failed: Vec<_> = peers.iter().filter_map(|peer| peer.answer().err()).collect();
    assert_eq!(failed.iter().map(Failure::sqlstate).collect::<Vec<_>>(), ["40P01"]);
    assert_eq!(watcher.value(&format!("{LOCKS_OF_OTHERS} and not granted")), "0");
}

#[test]
fn lock_timeout_ends_a_wait_and_the_transaction_only() {
    let (_server, [one, two], _watcher) = sessions(ROWS);
    one.run("begin; lock table item in access exclusive mode");
    two.run("set lock_timeout = '20ms'");
    assert_eq!(two.fail("select * from item"), "55P03");
    assert_eq!(two.fail("insert into item values (9, 9)"), "55P03");
    assert_eq!(two.fail("begin; lock table item in share mode nowait"), "55P03");
    two.run("rollback");
    one.run("commit");
    assert_eq!(two.value("select count(*) from item"), "5");
}

#[test]
fn advisory_locks_last_as_long_as_their_session_or_transaction() {
    let (server, [one, two], watcher) = sessions("select 1");
    one.run("select pg_advisory_lock(1); begin; select pg_advisory_xact_lock(2)");
    for key in [1, 2] {
        assert_eq!(two.value(&format!("select pg_try_advisory_lock({key})")), "f");
    }
    assert_eq!(two.value("select pg_try_advisory_lock(1, 1)"), "t", "two keys are another space");
    one.run("commit");
    assert_eq!(two.value("select pg_try_advisory_lock(2)"), "t");
    two.send("select pg_advisory_lock(1)");
    watcher.until_waiting(&two, "Lock");
    one.run("select pg_advisory_unlock(1)");
    two.rows();
    one.send("select pg_advisory_lock_shared(1)");
    watcher.until_waiting(&one, "Lock");
    drop(two);
    one.rows();
    assert_eq!(Peer::connect(&server).value("select pg_try_advisory_lock_shared(1)"), "t");
}

#[test]
fn truncate_waits_for_readers_of_the_table_and_is_waited_for() {
    let (_server, [one, two, three], watcher) = sessions(ROWS);
    one.run("begin; select * from item");
    two.run("begin");
    two.send("truncate item");
    watcher.until_waiting(&two, "Lock");
    three.send("select count(*) from item");
    watcher.until_waiting(&three, "Lock");
    one.run("commit");
    two.rows();
    watcher.until_waiting(&three, "Lock");
    two.run("commit");
    assert_eq!(three.rows(), ["0"]);
}

#[test]
fn who_waits_for_whom_is_told_by_the_system_views() {
    let (_server, [one, two, three], watcher) = sessions(ROWS);
    one.run("begin; update item set n = 1 where id = 1");
    for waiter in [&two, &three] {
        waiter.send("update item set n = 2 where id = 1");
        watcher.until_waiting(waiter, "Lock");
    }
    let blocking = |peer: &Peer| watcher.value(&format!("select pg_blocking_pids({})::text", peer.process_id));
    assert_eq!(blocking(&one), "{}");
    assert_eq!(blocking(&two), format!("{{{}}}", one.process_id));
    assert!(blocking(&three).contains(&two.process_id.to_string()), "{}", blocking(&three));
    let waiting = "select pid from pg_locks where not granted order by pid";
    assert_eq!(watcher.run(waiting), [two.process_id.to_string(), three.process_id.to_string()]);
    let locked =
        format!("select mode from pg_locks where pid = {} and relation = 'item'::regclass and granted", one.process_id);
    assert_eq!(watcher.run(&locked), ["RowExclusiveLock"]);
    let activity = |peer: &Peer| {
        let columns = "state, wait_event_type, query, datname, usename, backend_type";
        watcher
            .value(&format!("select concat_ws('|', {columns}) from pg_stat_activity where pid = {}", peer.process_id))
    };
    let update = "begin; update item set n = 1 where id = 1";
    assert_eq!(activity(&one), format!("idle in transaction|Client|{update}|postgres|postgres|client backend"));
    let update = "update item set n = 2 where id = 1";
    assert_eq!(activity(&two), format!("active|Lock|{update}|postgres|postgres|client backend"));
    one.run("commit");
    two.rows();
    three.rows();
}

#[test]
fn a_migration_that_holds_a_lock_on_one_connection_while_another_creates_tables_goes_through() {
    // As Ecto.Migrator does: the lock on the table of versions is held by a connection of its own.
    let (_server, [migrator, worker, second], watcher) =
        sessions("create table schema_migrations (version bigint primary key, inserted_at timestamp)");
    let lock = "begin; lock table schema_migrations in share update exclusive mode";
    migrator.run(lock);
    second.send(lock);
    watcher.until_waiting(&second, "Lock");
    worker.run("select version from schema_migrations");
    worker
        .run("begin; create table post (id bigserial primary key, title text not null); create index on post (title)");
    worker.run("insert into schema_migrations values (20240101000000, now()); commit");
    migrator.run("commit");
    second.rows();
    assert_eq!(second.run("select version from schema_migrations"), ["20240101000000"]);
}

/// An index whose comparisons sleep in sessions that ask for it: they happen while a page of the index is locked.
const SLOW_INDEX: &str = "\
    create function slow_compare(a int, b int) returns int language plpgsql immutable as $$ begin \
        perform pg_sleep(coalesce(nullif(current_setting('my.delay', true), ''), '0')::float8); \
        return case when a < b then -1 else (a > b)::int end; end $$; \
    create operator class slow for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, \
        operator 5 >, function 1 slow_compare(int, int); \
    create table page (k int); create index on page (k slow); insert into page values (10), (20), (30)";

#[test]
fn a_lightweight_lock_of_a_session_that_sleeps_is_waited_for() {
    let (_server, [one, two, three], watcher) = sessions(SLOW_INDEX);
    one.run("set my.delay = 0.2");
    one.send("insert into page values (25)");
    watcher.until_waiting(&one, "Timeout");
    two.send("insert into page values (15)");
    three.send("insert into page values (35)");
    // Others do not depend on the page.
    assert_eq!(watcher.value("select count(*) from generate_series(1, 1000)"), "1000");
    for peer in [&one, &two, &three] {
        peer.rows();
    }
    assert_eq!(watcher.run("select k from page order by k"), ["10", "15", "20", "25", "30", "35"]);
}
