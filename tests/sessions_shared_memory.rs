//! Dynamic shared memory: segments that any session makes, maps, grows and gives back, the same bytes for all.
//!
//! What PostgreSQL has in it in every cluster are the statistics, as soon as they have no room any more in the main
//! segment.

mod support;

use std::thread;

use support::{peer::Peer, server::Server};

/// Servers in which hardly anything has room in the main segment.
fn small_server() -> Server {
    Server::with(&["--mode", "shared", "--set", "min_dynamic_shared_memory=0", "--set", "autovacuum_naptime=1s"])
}

/// SQL that makes tables with a row each, whose names begin with `prefix`.
fn tables(prefix: &str, count: usize) -> String {
    format!(
        "do $$ begin for i in 1..{count} loop \
             execute format('create table {prefix}_%s as select i from generate_series(1, 2) i', i); \
             if i % 1000 = 0 then commit; end if; \
         end loop; end $$"
    )
}

/// How many tables whose names begin with `prefix` have statistics.
fn counted(prefix: &str) -> String {
    format!("select count(*) from pg_stat_user_tables where relname like '{prefix}\\_%' and n_tup_ins = 2")
}

#[test]
fn a_new_session_sees_the_statistics_of_more_tables_than_the_main_segment_has_room_for() {
    let server = small_server();
    let peer = Peer::connect(&server);
    peer.run(&tables("t", 3000));
    peer.run("select pg_stat_force_next_flush()");
    assert_eq!(peer.value(&counted("t")), "3000");
    assert_eq!(Peer::connect(&server).value(&counted("t")), "3000");
    let segments = "from pg_ls_dir('/dev/shm') name where name like 'PostgreSQL.%'";
    assert_eq!(peer.value(&format!("select count(*) > 1 {segments}")), "t");
    // Autovacuum sees them, too.
    peer.run("delete from t_1; create table needy as select generate_series(1, 1000) n; delete from needy");
    peer.run("select pg_stat_force_next_flush()");
    peer.until("select autovacuum_count > 0 from pg_stat_user_tables where relname = 'needy'");
}

#[test]
fn many_sessions_at_once_make_and_drop_tables_and_reset_statistics() {
    let server = small_server();
    let config = server.config();
    thread::scope(|scope| {
        for number in 0..12 {
            let connect = || Peer::with(&config).expect("a session");
            scope.spawn(move || {
                for round in 0..3 {
                    let peer = connect();
                    let prefix = format!("t_{number}");
                    peer.run(&tables(&prefix, 60));
                    peer.run("select pg_stat_force_next_flush()");
                    match (number + round) % 4 {
                        0 => drop(peer.run("select pg_stat_reset()")),
                        1 => drop(peer.run(&format!("vacuum {prefix}_1, {prefix}_2"))),
                        _ => {
                            let other = connect();
                            other.run("select sum(n_tup_ins) from pg_stat_user_tables");
                        }
                    }
                    let drop = format!(
                        "do $$ begin for i in 1..60 loop execute format('drop table {prefix}_%s', i); end loop; end $$"
                    );
                    peer.run(&drop);
                }
            });
        }
    });
    let peer = Peer::connect(&server);
    assert_eq!(peer.value("select count(*) from pg_stat_user_tables"), "0");
    peer.run(&tables("after", 100));
    peer.run("select pg_stat_force_next_flush()");
    assert_eq!(Peer::connect(&server).value(&counted("after")), "100");
}

#[test]
fn a_session_that_dies_while_it_has_segments_attached_takes_no_statistics_with_it_that_are_made_later() {
    let server = small_server();
    let peer = Peer::connect(&server);
    peer.run("create function boom(int, int) returns text language internal strict as 'textcat'");
    for round in 1..=3 {
        let (victim, crashing) = (Peer::connect(&server), Peer::connect(&server));
        victim.run(&tables(&format!("v{round}"), 400));
        victim.run("select pg_stat_force_next_flush(); select sum(n_tup_ins) from pg_stat_user_tables");
        crashing.send("select boom(2147483000, -1)");
        crashing.assert_ended("XX000");
        let prefix = format!("after{round}");
        let after = Peer::connect(&server);
        after.run(&tables(&prefix, 400));
        after.run("select pg_stat_force_next_flush()");
        assert_eq!(Peer::connect(&server).value(&counted(&prefix)), "400", "{round}");
        let leftover = "select count(*) from pg_ls_dir('/dev/shm') where pg_ls_dir like 'PostgreSQL.%'";
        let segments: usize = after.value(leftover).parse().expect("a number");
        assert!(segments < 20, "{segments} segments after crash {round}");
    }
}

#[test]
fn sql_cannot_write_into_segments_or_cut_them_off() {
    let server = small_server();
    let peer = Peer::connect(&server);
    peer.run(&tables("t", 400));
    peer.run("select pg_stat_force_next_flush()");
    let segments = peer.run("select pg_ls_dir from pg_ls_dir('/dev/shm') where pg_ls_dir like 'PostgreSQL.%'");
    assert!(segments.len() > 1, "{segments:?}");
    peer.run("select lo_from_bytea(77, 'short')");
    for segment in segments {
        let path = format!("/dev/shm/{segment}");
        assert_eq!(peer.fail(&format!("copy (select 'short') to '{path}'")), "XX000", "{segment}");
        assert_eq!(peer.fail(&format!("select lo_export(77, '{path}')")), "XX000", "{segment}");
    }
    assert_eq!(Peer::connect(&server).value(&counted("t")), "400");
}

#[test]
fn a_hundred_thousand_tables_have_statistics_that_every_session_sees() {
    let server = Server::shared();
    let peer = Peer::connect(&server);
    peer.run(&tables("t", 100_000));
    peer.run("select pg_stat_force_next_flush()");
    assert_eq!(Peer::connect(&server).value(&counted("t")), "100000");
}
