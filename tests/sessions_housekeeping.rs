//! What a shared cluster does without being asked: checkpoints, VACUUM and ANALYZE (manual, chapters 24.1 and 28.5).

mod support;

use support::{peer::Peer, process, server::Server};

/// A server whose autovacuum looks once a second, with these arguments besides.
fn looking_every_second(arguments: &[&str]) -> Server {
    Server::with(&[&["--mode", "shared", "--set", "autovacuum_naptime=1s"], arguments].concat())
}

/// Has a session say now what it has changed, which it otherwise does after up to ten seconds.
const FLUSH: &str = "select pg_stat_force_next_flush()";

/// SQL that makes a table which needs both VACUUM and ANALYZE.
fn needy(table: &str) -> String {
    format!("create table {table} (n int); {}", changes(table))
}

/// SQL that makes so many changes to a table that it needs both.
fn changes(table: &str) -> String {
    format!("insert into {table} select n from generate_series(1, 1000) n; delete from {table} where n <= 900; {FLUSH}")
}

/// Of a table: whether it was looked after so many times.
fn is_done(table: &str, times: u32) -> String {
    format!(
        "select autovacuum_count >= {times} and autoanalyze_count >= {times} from pg_stat_user_tables where relname = '{table}'"
    )
}

/// Of a table: whether it is known to need something.
fn is_needed(table: &str) -> String {
    format!("select n_dead_tup = 900 and n_mod_since_analyze = 1900 from pg_stat_user_tables where relname = '{table}'")
}

fn counts(peer: &Peer, table: &str) -> String {
    peer.value(&format!(
        "select autovacuum_count, autoanalyze_count from pg_stat_user_tables where relname = '{table}'"
    ))
}

#[test]
fn checkpoints_come_when_much_was_written_and_remove_the_wal_that_is_no_longer_needed() {
    let server = Server::with(&["--mode", "shared", "--set", "max_wal_size=2MB", "--set", "checkpoint_timeout=1d"]);
    let peer = Peer::connect(&server);
    peer.run("create table t (n int, filler text)");
    let started = peer.value("select pg_current_wal_lsn()");
    for round in 1..=3 {
        let before = peer.value("select pg_current_wal_lsn()");
        peer.run("insert into t select n, repeat('x', 1000) from generate_series(1, 8000) n");
        peer.until(&format!("select redo_lsn > '{before}' from pg_control_checkpoint()"));
        // Not more than what was written since the last checkpoint and the segments that this begins and ends in.
        peer.until("select sum(size) <= 4 * 1024 * 1024 from pg_ls_waldir()");
        let written = format!("select pg_current_wal_lsn() - '{started}' > {round} * 8 * 1024 * 1024");
        assert_eq!(peer.value(&written), "t");
    }
    assert_eq!(peer.value("select count(*), sum(length(filler)) from t"), "24000|24000000");
}

#[test]
fn a_table_with_many_changes_is_vacuumed_and_analyzed_without_being_asked() {
    let server = looking_every_second(&[]);
    let peer = Peer::connect(&server);
    peer.run(&needy("t"));
    peer.until(&is_done("t", 1));
    let statistics = "select n_dead_tup, last_autovacuum is not null, last_autoanalyze is not null, vacuum_count, analyze_count \
        from pg_stat_user_tables where relname = 't'";
    assert_eq!(peer.value(statistics), "0|t|t|0|0");
    assert_eq!(peer.value("select reltuples from pg_class where relname = 't'"), "100");
    assert_eq!(peer.value("select count(*) from pg_stats where tablename = 't'"), "1");
    let size = peer.value("select pg_relation_size('t')");
    peer.run("insert into t select n from generate_series(1, 800) n");
    assert_eq!(peer.value("select pg_relation_size('t')"), size, "new rows take the room of dead ones");
}

#[test]
fn a_table_for_which_it_is_switched_off_is_left_alone() {
    let server = looking_every_second(&[]);
    let peer = Peer::connect(&server);
    peer.run("create table quiet (n int) with (autovacuum_enabled = false)");
    peer.run(&changes("quiet"));
    peer.until(&is_needed("quiet"));
    for times in 1..=2 {
        // It would come after the other one: tables are looked after in the order in which they were made.
        peer.run(&format!("drop table if exists later; {}", needy("later")));
        peer.until(&is_done("later", 1));
        assert_eq!(counts(&peer, "quiet"), "0|0", "after {times}");
    }
}

#[test]
fn nothing_is_vacuumed_or_analyzed_where_autovacuum_is_off() {
    let server = looking_every_second(&["--autovacuum", "off"]);
    let peer = Peer::connect(&server);
    assert_eq!(peer.value("show autovacuum"), "off");
    peer.run(&needy("t"));
    peer.until(&is_needed("t"));
    // One that has begun later has looked after its table twice.
    let other_server = looking_every_second(&[]);
    let other = Peer::connect(&other_server);
    assert_eq!(other.value("show autovacuum"), "on");
    for times in 1..=2 {
        other.run(&format!("drop table if exists t; {}", needy("t")));
        other.until(&is_done("t", 1));
        assert_eq!(counts(&peer, "t"), "0|0", "after {times}");
        peer.until(&is_needed("t"));
    }
}

#[test]
fn a_table_that_somebody_has_locked_is_left_for_another_time_and_others_are_not() {
    let server = looking_every_second(&[]);
    let (peer, holder) = (Peer::connect(&server), Peer::connect(&server));
    peer.run("create table locked (n int)");
    holder.run("begin; lock table locked in share update exclusive mode");
    peer.run(&changes("locked"));
    peer.until(&is_needed("locked"));
    for times in 1..=2 {
        peer.run(&format!("drop table if exists later; {}", needy("later")));
        peer.until(&is_done("later", 1));
        assert_eq!(counts(&peer, "locked"), "0|0", "after {times}");
        assert_eq!(holder.value("delete from locked where n = 999; select count(*) from locked"), "99");
        holder.run("insert into locked values (999)");
    }
    holder.run("commit");
    peer.until(&is_done("locked", 1));
}

#[test]
fn whoever_wants_a_lock_on_a_table_that_is_being_vacuumed_gets_it_at_once() {
    // Each page takes longer than the test is patient for.
    let server = looking_every_second(&[
        "--set",
        "autovacuum_vacuum_cost_delay=100ms",
        "--set",
        "vacuum_cost_limit=1",
        "--set",
        "deadlock_timeout=10ms",
    ]);
    let (peer, watcher) = (Peer::connect(&server), Peer::connect(&server));
    peer.run("create table t (n int, filler text)");
    peer.run(
        "insert into t select n, repeat('x', 1000) from generate_series(1, 20000) n; delete from t where n <= 19000",
    );
    peer.run(FLUSH);
    watcher.until("select count(*) = 1 from pg_stat_progress_vacuum where relid = 't'::regclass");
    let worker = watcher.value("select backend_type from pg_stat_activity join pg_stat_progress_vacuum using (pid)");
    assert_eq!(worker, "autovacuum worker");
    peer.run("begin; lock table t");
    assert_eq!(counts(&watcher, "t").split('|').next(), Some("0"), "the lock was waited for until VACUUM had ended");
    watcher.until("select count(*) = 0 from pg_stat_progress_vacuum where relid = 't'::regclass");
    assert_eq!(peer.value("select count(*) from t"), "1000");
}

#[test]
fn a_table_of_many_pages_is_vacuumed_too() {
    let server = looking_every_second(&[]);
    let peer = Peer::connect(&server);
    peer.run("create table t (n int, filler text)");
    peer.run(
        "insert into t select n, repeat('x', 1000) from generate_series(1, 20000) n; delete from t where n <= 19000",
    );
    peer.run(FLUSH);
    peer.until(&is_done("t", 1));
    // As a client's VACUUM with a delay is.
    assert_eq!(peer.run("set vacuum_cost_delay = '1ms'"), [""; 0]);
    peer.run("update t set n = n");
    peer.run("vacuum t");
}

#[test]
fn autovacuum_has_the_costs_of_any_vacuum_where_it_is_told_so() {
    // Its own delay would be 2 ms.
    for (delay, is_delayed) in [("0", false), ("1ms", true)] {
        let server = looking_every_second(&[
            "--set",
            "autovacuum_vacuum_cost_delay=-1",
            "--set",
            &format!("vacuum_cost_delay={delay}"),
            "--set",
            "vacuum_cost_limit=1",
            "--set",
            "track_cost_delay_timing=on",
        ]);
        let (peer, reader) = (Peer::connect(&server), Peer::connect(&server));
        peer.run("create table t (n int)");
        // When everything else is done, VACUUM waits for seconds to be alone, which it needs to shorten the file.
        reader.run("begin; lock table t in access share mode");
        peer.run(&format!("insert into t select generate_series(1, 1000); delete from t; {FLUSH}"));
        let delayed = format!("select (delay_time > 0) = {is_delayed} from pg_stat_progress_vacuum");
        peer.until(&format!("{delayed} where relid = 't'::regclass and phase = 'truncating heap'"));
    }
}

#[test]
fn an_idle_cluster_with_a_client_wakes_up_almost_never() {
    // The background writer sleeps for long when it has seen all buffers, after two minutes; or when it has no work.
    let no_work = "bgwriter_lru_maxpages=0";
    let server = Server::with(&["--mode", "shared", "--set", "autovacuum_naptime=1d", "--set", no_work]);
    let peer = Peer::connect(&server);
    peer.run("create table t as select generate_series(1, 1000) n");
    // The clock is another program, so that the client does nothing at all.
    let clock_server = Server::start();
    let clock = Peer::connect(&clock_server);
    let id = server.program.id();
    let mut before = process::all_pauses(id);
    // The threads that woke up more than twice in five seconds.
    let awake = || {
        clock.run("select pg_sleep(5)");
        let after = process::all_pauses(id);
        let times = after.iter().map(|(thread, count)| (&thread.1, count - before.get(thread).unwrap_or(&0)));
        let awake: Vec<_> = times.filter(|(_, times)| *times > 2).map(|(name, times)| (name.clone(), times)).collect();
        before = after;
        awake
    };
    // At first its processes write what there is to write; then they sleep for longer and longer.
    let awake: Vec<_> = std::iter::repeat_with(awake).take(12).take_while(|awake| !awake.is_empty()).collect();
    assert!(awake.len() < 12, "in every five seconds: {awake:?}");
}
