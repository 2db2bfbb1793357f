//! Nothing that a client does ends a shared cluster: its own processes are PostgreSQL's, and out of reach of SQL.

mod support;

use rustix::process::{Resource, Rlimit, Signal};
use support::{peer::Peer, program::Program, server::Server, session::errors};

/// The processes that a cluster has for itself.
const OWN: [&str; 4] = ["autovacuum launcher", "background writer", "checkpointer", "walwriter"];
/// What they are among. Workers of autovacuum come and go, and are in a database.
const AMONG: &str = "from pg_stat_activity where backend_type not in ('client backend', 'autovacuum worker')";

/// Makes `boom()`, which reads outside of its memory: an internal function that is declared with other types than it
/// has.
const BOOM: &str = "create function boom(int, int) returns text language internal strict as 'textcat'";
const CRASH: &str = "select boom(2147483000, -1)";

/// Waits until the cluster has all of its own processes.
fn until_complete(peer: &Peer) {
    peer.until(&format!("select array_agg(backend_type order by backend_type) = '{{{}}}' {AMONG}", OWN.join(",")));
}

/// Asserts that clients are let in, that what was committed is there, and that checkpoints are made.
fn assert_whole(server: &Server) {
    let peer = Peer::connect(server);
    peer.run("set statement_timeout = 0; set transaction_timeout = 0");
    assert_eq!(peer.value("select count(*) from kept"), "1000");
    let before = peer.value("select num_done from pg_stat_checkpointer");
    peer.run("insert into kept select 0; checkpoint; delete from kept where n = 0");
    peer.until(&format!("select num_done > {before} from pg_stat_checkpointer"));
    until_complete(&peer);
}

/// A server whose database `postgres` has the table `kept`.
fn server(settings: &[&str]) -> Server {
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let server = Server::with(&[&["--mode", "shared"], &arguments[..]].concat());
    let peer = Peer::connect(&server);
    peer.run("set statement_timeout = 0; set transaction_timeout = 0");
    peer.run("create table kept as select generate_series(1, 1000) n");
    server
}

#[test]
fn the_processes_of_a_cluster_are_those_of_postgresql_and_in_no_database() {
    let server = server(&[]);
    let peer = Peer::connect(&server);
    until_complete(&peer);
    assert_eq!(peer.value(&format!("select count(datid), count(usesysid), count(client_addr) {AMONG}")), "0|0|0");
    // Not more for good: a worker of autovacuum counts while it is there.
    peer.until("select numbackends = 1 from pg_stat_database where datname = 'postgres'");
}

#[test]
fn terminating_every_other_process_again_and_again_ends_no_cluster() {
    let server = server(&[]);
    let peer = Peer::connect(&server);
    for round in 0..10 {
        until_complete(&peer);
        let others = ["", " and datname = 'postgres'", " and datname is null"][round % 3];
        peer.run(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid(){others}"
        ));
        peer.run(&format!("select pg_cancel_backend(pid) from pg_stat_activity where pid <> pg_backend_pid(){others}"));
    }
    for pid in ["42", "1", "0", "-1", "-42"] {
        assert_eq!(peer.value(&format!("select pg_terminate_backend({pid}), pg_cancel_backend({pid})")), "f|f");
    }
    assert_whole(&server);
    // The launcher is a backend to PostgreSQL, and the only one of them that comes again.
    let others = format!("select backend_type, pg_terminate_backend(pid) as done {AMONG}");
    let signalled = format!("select backend_type from ({others} offset 0) others where done");
    until_complete(&peer);
    assert_eq!(peer.run(&signalled), ["autovacuum launcher"]);
}

#[test]
fn a_process_that_is_no_backend_is_named_in_a_warning() {
    let server = server(&[]);
    let mut session = server.session(&[]);
    session.query("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'checkpointer'");
    let answers = session.until_ready();
    let warning = answers.iter().find(|message| message.kind == b'N').expect("a warning").fields();
    let message = &warning[&'M'];
    assert!(message.starts_with("PID ") && message.ends_with(" is not a PostgreSQL backend process"), "{message}");
}

#[test]
fn cancelling_everything_while_others_make_checkpoints_fails_no_checkpoint() {
    let server = server(&[]);
    let (canceller, busy) = (Peer::connect(&server), Peer::connect(&server));
    for round in 0..50 {
        busy.send(&format!("insert into kept select 0 from generate_series(1, {round}); checkpoint"));
        for _ in 0..20 {
            canceller.run("select pg_cancel_backend(pid) from pg_stat_activity where backend_type <> 'client backend'");
            canceller.run("select pg_cancel_backend(42)");
        }
        busy.rows();
    }
    busy.run("delete from kept where n = 0");
    assert_whole(&server);
}

#[test]
fn the_database_postgres_can_be_dropped_while_others_are_in_it_and_made_again() {
    let server = server(&[]);
    let inside = Peer::connect(&server);
    let other = Peer::of(&server, "postgres", "template1");
    assert_eq!(other.fail("drop database postgres"), "55006");
    other.run("create database copy template template1");
    other.run("drop database postgres with (force)");
    inside.send("select 1");
    inside.assert_ended("57P01");
    assert_eq!(Peer::refused(&server.config()), "3D000");
    other.run("create database postgres");
    Peer::connect(&server).run("create table kept as select generate_series(1, 1000) n");
    assert_whole(&server);
}

#[test]
fn the_database_postgres_can_be_a_template_while_nobody_is_in_it() {
    let server = server(&[]);
    let other = Peer::of(&server, "postgres", "template1");
    other.until("select count(*) = 0 from pg_stat_activity where datname = 'postgres'");
    other.run("create database copy template postgres");
    assert_eq!(Peer::of(&server, "postgres", "copy").value("select count(*) from kept"), "1000");
}

/// Settings that end sessions or statements after a moment.
const TIMEOUTS: [&str; 6] = [
    "idle_session_timeout=20ms",
    "idle_in_transaction_session_timeout=20ms",
    "transaction_timeout=20ms",
    "statement_timeout=1ms",
    "lock_timeout=1ms",
    "default_transaction_read_only=on",
];

/// A session that none of them is about.
const WITHOUT: &str = "-c statement_timeout=0 -c transaction_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off";

/// That session. It can take longer to begin than a transaction may, because its options count when it has begun.
fn without_timeouts(server: &Server) -> Peer {
    for _ in 0..100 {
        match Peer::with(server.config().options(WITHOUT)) {
            Ok(peer) => return peer,
            Err(failure) => assert_eq!(failure.sqlstate(), "25P04", "a transaction_timeout"),
        }
    }
    panic!("no session begins in time");
}

#[test]
fn timeouts_of_all_sessions_are_none_of_the_clusters_own_processes() {
    for setting in TIMEOUTS {
        let server = Server::with(&["--mode", "shared", "--set", setting, "--set", "autovacuum_naptime=1s"]);
        let peer = without_timeouts(&server);
        peer.run("create table kept as select generate_series(1, 1000) n");
        peer.run("create table needy as select generate_series(1, 1000) n; delete from needy");
        peer.run("select pg_stat_force_next_flush()");
        if setting.starts_with("idle_session") {
            // Its time has passed for everybody then.
            let mut victim = server.session(&[]);
            assert_eq!(errors(&victim.until_closed()), ["57P05"]);
        }
        peer.until("select autovacuum_count > 0 from pg_stat_user_tables where relname = 'needy'");
        assert_eq!(peer.value("select count(*) from kept"), "1000", "{setting}");
        peer.run("checkpoint");
        until_complete(&peer);
    }
}

#[test]
fn settings_of_the_database_and_of_the_role_are_none_of_the_clusters_own_processes() {
    let server = server(&["autovacuum_naptime=1s"]);
    let peer = Peer::connect(&server);
    for of in ["database postgres", "role postgres"] {
        for setting in ["statement_timeout = 1", "idle_session_timeout = 20", "search_path = nowhere"] {
            peer.run(&format!("alter {of} set {setting}"));
        }
    }
    // Whoever connects now has them.
    assert_eq!(errors(&server.session(&[]).until_closed()), ["57P05"]);
    peer.run("create table needy as select generate_series(1, 1000) n; delete from needy");
    peer.run("select pg_stat_force_next_flush()");
    peer.until("select autovacuum_count > 0 from pg_stat_user_tables where relname = 'needy'");
    peer.run("checkpoint");
    peer.run("alter database postgres reset all; alter role postgres reset all");
    assert_whole(&server);
}

/// A server in which the SQL was run, and which has crashed since.
fn crashed_after(arguments: &[&str], sql: &str) -> Server {
    let server = Server::with(&[&["--mode", "shared"], arguments].concat());
    let peer = Peer::connect(&server);
    peer.run("create table kept as select generate_series(1, 1000) n");
    peer.run(BOOM);
    peer.run(sql);
    peer.send(CRASH);
    peer.assert_ended("XX000");
    server
}

/// SQL that writes what no cluster starts with, what is said about it then, and the file that is put away.
const BROKEN: [(&str, &[&str], &str); 4] = [
    ("alter system set shared_preload_libraries = 'nope'", &["could not access file \"nope\""], "postgresql.auto.conf"),
    (
        "copy (select unnest(array['work_mem = 5MB', 'nonsense nonsense'])) to '/pglite/data/postgresql.auto.conf'",
        &["postgresql.auto.conf\" line 2", "nonsense"],
        "postgresql.auto.conf",
    ),
    ("copy (select '') to '/pglite/data/recovery.signal'", &[], "recovery.signal"),
    ("copy (select '') to '/pglite/data/standby.signal'", &[], "standby.signal"),
];

#[test]
fn what_keeps_a_cluster_from_starting_again_is_named_and_put_away() {
    for (sql, told, file) in BROKEN {
        let server = crashed_after(&[], sql);
        assert_whole(&server);
        let kept = format!("select count(*) from pg_ls_dir('.') name where name = '{file}.ignored'");
        assert_eq!(Peer::connect(&server).value(&kept), "1", "{sql}");
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains(&format!("{file}.ignored"))) {
            lines.push(server.program.stderr_line());
        }
        for told in told {
            assert!(lines.iter().any(|line| line.contains(told)), "{sql}: {told:?} is not in {lines:?}");
        }
    }
}

#[test]
fn settings_can_be_put_away_before_every_start() {
    let server = crashed_after(&["--ignore-auto-conf"], "alter system set work_mem = '7MB'");
    assert_whole(&server);
    assert_eq!(Peer::connect(&server).value("show work_mem"), "4MB");
}

#[test]
fn a_cluster_that_cannot_start_again_ends_the_program_with_what_is_wrong() {
    let mut server = crashed_after(&[], "copy (select 'local nonsense') to '/pglite/data/pg_hba.conf'");
    let (status, _) = server.program.wait();
    let stderr = server.program.wait_for_stderr().join("\n");
    assert_eq!(status.code(), Some(3), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    for told in ["pg_hba.conf", "line 1"] {
        assert!(last.contains(told), "{told:?} is not in {last:?}");
    }
}

#[test]
fn what_this_program_cannot_do_is_refused_as_an_option_and_without_effect_in_sql() {
    for setting in ["io_method=worker", "dynamic_shared_memory_type=sysv", "max_parallel_workers=8", "Summarize_WAL=on"]
    {
        let (status, stdout, stderr) = Program::spawn(&["serve", "--listen", "127.0.0.1:0", "--set", setting]).output();
        assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
        let name = setting.split('=').next().unwrap_or_default();
        assert!(stderr.contains(&format!("{name} cannot be set")), "{stderr}");
    }
    for setting in ["dynamic_shared_memory_type = sysv", "shared_memory_type = sysv", "summarize_wal = on"] {
        let server = crashed_after(&[], &format!("alter system set {setting}"));
        assert_whole(&server);
        let (name, value) = setting.split_once(" = ").expect("a setting");
        assert_ne!(Peer::connect(&server).value(&format!("show {name}")), value);
    }
}

#[test]
fn a_program_that_is_stopped_while_its_cluster_starts_again_ends_in_order() {
    for _ in 0..3 {
        let mut server = crashed_after(&[], "select 1");
        server.program.signal(Signal::TERM);
        let (status, _) = server.program.wait();
        let stderr = server.program.wait_for_stderr().join("\n");
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("the program ends before"), "{stderr}");
    }
}

#[test]
fn a_reload_without_files_to_spare_ends_no_cluster() {
    let server = server(&[]);
    let peer = Peer::connect(&server);
    until_complete(&peer);
    // Those that are open stay open.
    let limits = rustix::process::getrlimit(Resource::Nofile);
    server.program.limit(Resource::Nofile, Rlimit { current: Some(3), maximum: limits.maximum });
    peer.run("alter system set work_mem = '7MB'");
    peer.run("select pg_reload_conf()");
    while !server.program.stderr_line().contains("configuration from before the reload") {}
    server.program.limit(Resource::Nofile, limits);
    assert_whole(&server);
    assert_eq!(peer.value("show work_mem"), "7MB");
}

#[test]
fn a_setting_that_keeps_a_cluster_from_starting_is_named_at_the_first_start_too() {
    let (status, stdout, stderr) =
        Program::spawn(&["serve", "--listen", "127.0.0.1:0", "--set", "shared_preload_libraries=nope"]).output();
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.lines().last().unwrap_or_default().contains("could not access file \"nope\""), "{stderr}");
}
