//! Clusters in a directory of the host: what is there after the program has ended, however it did.

mod support;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    connection::Connections,
    databases::{DataDirectory, Settings, SharedSettings},
    session::Mode,
};
use rustix::process::{Resource, Rlimit, getrlimit};
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    program::Program,
    server::{Server, answer, rows},
};
use tempfile::TempDir;

/// A data directory that is not there yet, in a directory of the test's.
fn place() -> (TempDir, PathBuf) {
    let outer = tempfile::tempdir().expect("a directory");
    let path = outer.path().join("data");
    (outer, path)
}

/// What a program says that cannot open the directory.
fn refusal(path: &Path) -> String {
    Program::fail(&["serve", "--listen", "127.0.0.1:0", "--data", path.to_str().expect("text")])
}

#[test]
fn what_was_committed_is_there_after_a_stop_and_after_a_kill() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    rows(&mut client, "create table t (a int primary key, b text)");
    rows(&mut client, "insert into t select i, repeat('x', i % 100) from generate_series(1, 10000) i");
    rows(&mut client, "create database other");
    drop(client);
    server.stop();

    let server = Server::in_directory(&path);
    let mut client = server.connect();
    assert_eq!(rows(&mut client, "select count(*), sum(length(b)) from t"), ["10000|495000"]);
    rows(&mut client, "update t set b = 'changed' where a <= 100");
    rows(&mut client, "begin; insert into t values (20000, 'not committed')");
    server.kill();

    let server = Server::in_directory(&path);
    let mut client = server.connect();
    let seen = "select count(*), count(*) filter (where b = 'changed'), max(a) from t";
    assert_eq!(rows(&mut client, seen), ["10000|100|10000"]);
    assert_eq!(rows(&mut client, "select datname from pg_database order by 1")[0], "other");
}

#[test]
fn an_asynchronous_commit_gets_to_the_disk_without_a_later_one() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    rows(&mut client, "create table t as select 1 as a");
    rows(&mut client, "set synchronous_commit = off");
    rows(&mut client, "insert into t values (2)");
    let committed = rows(&mut client, "select pg_current_wal_insert_lsn()").remove(0);
    let is_synced = format!("select pg_current_wal_flush_lsn() >= '{committed}'");
    let deadline = Instant::now() + PATIENCE;
    while rows(&mut client, &is_synced) == ["f"] {
        assert!(Instant::now() < deadline, "the WAL writer has not synced it");
        // PostgreSQL has no event for it.
        thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    let server = Server::in_directory(&path);
    assert_eq!(rows(&mut server.connect(), "select count(*) from t"), ["2"]);
}

#[test]
fn a_lock_file_that_a_power_loss_has_left_empty_is_no_obstacle() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    rows(&mut server.connect(), "create table t ()");
    server.kill();
    fs::write(path.join("postmaster.pid"), "").expect("a file");
    let server = Server::in_directory(&path);
    assert_eq!(rows(&mut server.connect(), "select count(*) from t"), ["0"]);
}

#[test]
fn an_orderly_stop_leaves_nothing_to_recover_and_a_kill_does() {
    let (_outer, path) = place();
    let recovers = |lines: Vec<String>| lines.iter().any(|line| line.contains("not properly shut down"));
    let server = Server::in_directory(&path);
    rows(&mut server.connect(), "create table t ()");
    server.stop();
    let server = Server::in_directory(&path);
    rows(&mut server.connect(), "create table u ()");
    assert!(!recovers(server.stop()), "it was shut down");
    Server::in_directory(&path).kill();
    assert!(recovers(Server::in_directory(&path).stop()), "it was killed");
}

#[test]
fn a_directory_has_one_owner_by_whatever_name_it_is_called() {
    let (outer, path) = place();
    let server = Server::in_directory(&path);
    let link = outer.path().join("link");
    symlink(&path, &link).expect("a link");
    let detour = outer.path().join("link/../data/.");
    for name in [&path, &link, &detour] {
        let message = refusal(name);
        let owner = format!("is in use by process {}", server.program.id());
        assert!(message.contains(&owner), "{}: {message}", name.display());
    }
    rows(&mut server.connect(), "select 1");
    server.kill();
    // No file of the killed program is in the way.
    assert!(path.join("postmaster.pid").exists());
    rows(&mut Server::in_directory(&link).connect(), "select 1");
}

#[test]
fn only_its_owner_may_look_into_it() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    rows(&mut server.connect(), "create table t as select 1");
    let mut unseen = vec![path.clone()];
    while let Some(at) = unseen.pop() {
        let mode = fs::symlink_metadata(&at).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode, if at.is_dir() { 0o700 } else { 0o600 }, "{}", at.display());
        if at.is_dir() {
            unseen.extend(fs::read_dir(&at).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
    }
}

#[test]
fn a_directory_with_something_else_in_it_is_left_alone_and_named() {
    let (_outer, path) = place();
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("letter.txt"), "dear").expect("a file");
    let message = refusal(&path);
    assert!(message.contains("it is not empty, and it is no cluster"), "{message}");
    assert_eq!(fs::read_dir(&path).expect("a directory").count(), 1);
    let missing = path.join("no/such/parent");
    assert!(refusal(&missing).contains("cannot be made"));
    assert!(refusal(&path.join("letter.txt")).contains("cannot be used"));
}

#[test]
fn clusters_that_this_program_cannot_run_are_refused_with_what_they_are() {
    let (_outer, path) = place();
    Server::in_directory(&path).stop();
    let version = path.join("PG_VERSION");
    fs::write(&version, "17\n").expect("a file");
    let message = refusal(&path);
    assert!(message.contains("it is a cluster of PostgreSQL 17"), "{message}");
    fs::write(&version, "18\n").expect("a file");

    let control = path.join("global/pg_control");
    let whole = fs::read(&control).expect("a file");
    let mut other = whole.clone();
    // float8ByVal follows the floating-point number and eight words.
    let format = 1_234_567_f64.to_le_bytes();
    let place = other.windows(8).position(|bytes| bytes == format).expect("it is in there");
    other[place + 40] = 1;
    fs::write(&control, other).expect("a file");
    let message = refusal(&path);
    assert!(message.contains("64-bit PostgreSQL"), "{message}");
    fs::remove_file(&control).expect("a file");
    let message = refusal(&path);
    assert!(message.contains("a part of the cluster is missing"), "{message}");
    fs::write(&control, whole).expect("a file");
    for part in ["base", "pg_wal", "postgresql.conf"] {
        fs::rename(path.join(part), path.with_extension("aside")).expect("it is there");
        let message = refusal(&path);
        assert!(message.contains(&format!("{part} is missing, so it is only a part of a cluster")), "{message}");
        fs::rename(path.with_extension("aside"), path.join(part)).expect("it is ours");
    }
    rows(&mut Server::in_directory(&path).connect(), "select 1");
}

#[test]
fn a_cluster_that_was_not_finished_is_made_again() {
    let (_outer, path) = place();
    fs::create_dir_all(path.join("base/1")).expect("a directory");
    fs::write(path.join("base/1/1259"), "half of it").expect("a file");
    fs::write(path.join("pglite-port.unfinished"), "").expect("a file");
    let server = Server::in_directory(&path);
    assert_eq!(rows(&mut server.connect(), "select count(*) > 300 from pg_class"), ["t"]);
    assert!(!path.join("pglite-port.unfinished").exists());
}

#[test]
fn a_cluster_is_not_made_again_because_somebody_has_written_the_mark() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    rows(&mut client, "create table t as select 1 as a");
    rows(&mut client, "copy (select 1) to '/pglite/data/pglite-port.unfinished'");
    server.stop();
    let server = Server::in_directory(&path);
    assert_eq!(rows(&mut server.connect(), "select a from t"), ["1"]);
    assert!(!path.join("pglite-port.unfinished").exists());
}

#[test]
fn temporary_files_of_a_kill_are_gone_after_the_next_start() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    rows(&mut client, "set temp_buffers = '800kB'; set work_mem = '64kB'");
    rows(&mut client, "create temp table t as select i, repeat('x', 1000) from generate_series(1, 5000) i");
    rows(&mut client, "begin; declare c cursor for select * from t order by md5(i::text)");
    rows(&mut client, "fetch 10 from c");
    let temporary = || {
        let names = |directory: &Path| -> Vec<String> {
            let entries = fs::read_dir(directory).into_iter().flatten();
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
        };
        let base = path.join("base");
        let tables = names(&base).into_iter().flat_map(|database| names(&base.join(database)));
        tables.filter(|name| name.starts_with('t') || name.starts_with("pgsql_tmp")).count()
    };
    assert!(temporary() >= 2, "a table and a sort: {}", temporary());
    server.kill();
    rows(&mut Server::in_directory(&path).connect(), "select 1");
    assert_eq!(temporary(), 0);
}

#[test]
fn symbolic_links_in_the_directory_lead_to_no_file_of_the_host() {
    let (outer, path) = place();
    Server::in_directory(&path).stop();
    let secret = outer.path().join("secret");
    fs::write(&secret, "secret").expect("a file");
    symlink(&secret, path.join("file")).expect("a link");
    symlink(outer.path(), path.join("directory")).expect("a link");
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    for name in ["file", "directory/secret", "../secret", secret.to_str().expect("text")] {
        let read = answer(&mut client, &format!("select pg_read_file('{name}')"));
        assert!(read.is_err(), "{name}: {read:?}");
        let written = answer(&mut client, &format!("copy (select 1) to '/pglite/data/{name}'"));
        assert_ne!(fs::read_to_string(&secret).expect("a file"), "1\n", "{name}: {written:?}");
    }
    assert_eq!(fs::read_to_string(&secret).expect("a file"), "secret");
    assert_eq!(fs::read_dir(outer.path()).expect("a directory").count(), 2);
}

#[test]
fn names_are_changed_and_synced_while_there_are_no_descriptors_to_spare() {
    let (_outer, path) = place();
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    rows(&mut client, "create database other");
    rows(&mut client, "create table t as select generate_series(1, 1000) a");
    rows(&mut client, "create table kept as select 1");
    rows(&mut client, "select pg_switch_wal()");
    let file = path.join(&rows(&mut client, "select pg_relation_filepath('t')")[0]);
    let database = path.join("base").join(&rows(&mut client, "select oid from pg_database where datname = 'other'")[0]);
    rows(&mut client, "checkpoint");
    assert!(file.metadata().expect("a file").len() > 0 && database.exists());

    let inherited = getrlimit(Resource::Nofile);
    let open = fs::read_dir(format!("/proc/{}/fd", server.program.id())).expect("it runs");
    let open: Vec<_> = open.map(|entry| entry.expect("an entry").file_name()).collect();
    let lowest =
        (0..=open.len() as u64).find(|number| !open.contains(&number.to_string().into())).expect("one is free");
    server.program.limit(Resource::Nofile, Rlimit { current: Some(lowest), ..inherited });
    rows(&mut client, "drop table t");
    rows(&mut client, "drop database other");
    rows(&mut client, "insert into kept values (2)");
    rows(&mut client, "checkpoint");
    server.program.limit(Resource::Nofile, inherited);
    assert_eq!(rows(&mut client, "select count(*) from kept"), ["2"]);
    drop(client);
    let lines = server.stop();
    let fault = lines.iter().find(|line| line.contains("PANIC") || line.contains("could not"));
    assert_eq!(fault, None);
    assert!(!file.exists() && !database.exists());
}

#[test]
fn a_template_can_be_frozen_from_it() {
    let (_outer, path) = place();
    let settings = Settings {
        shared: SharedSettings { data_directory: Some(DataDirectory::Host(path)), ..SharedSettings::default() },
        ..Settings::default()
    };
    let own = cache::own();
    let databases = cache::open_at(own.path(), settings);
    let connections = Arc::new(Connections::new(Arc::new(databases)));
    let shared = Connect { id: 1, mode: Mode::Shared, ..Connect::default() };
    let mut original = Local::connect(&connections, shared).0;
    original.values("create table t as select i, repeat('x', i) from generate_series(1, 1000) i");
    original.freeze("frozen");
    original.values("insert into t values (1001, 'later')");
    let mut clone = Local::connect_as(&connections, "frozen", "postgres").0;
    assert_eq!(clone.values("select count(*) || ' ' || sum(length(repeat)) from t"), ["1000 500500"]);
    clone.values("drop table t");
    assert_eq!(original.values("select count(*) from t"), ["1001"]);
    drop((original, clone));
    connections.shut_down();
}

#[test]
fn every_cluster_has_an_identifier_and_settings_of_its_own_which_it_keeps() {
    let ((_one, first), (_other, second)) = (place(), place());
    let identifier = |path: &Path| {
        let server = Server::in_directory(path);
        let identifier = rows(&mut server.connect(), "select system_identifier from pg_control_system()").remove(0);
        server.kill();
        // The secret is behind float8ByVal, data_checksum_version and default_char_signedness.
        let control = fs::read(path.join("global/pg_control")).expect("a file");
        let format = 1_234_567_f64.to_le_bytes();
        let place = control.windows(8).position(|bytes| bytes == format).expect("it is in there") + 49;
        (identifier, control[place..place + 32].to_vec())
    };
    let server = Server::in_directory(&first);
    assert_eq!(rows(&mut server.connect(), "show max_wal_size"), ["1GB"]);
    rows(&mut server.connect(), "alter system set max_wal_size = '2GB'");
    server.stop();
    assert_eq!(rows(&mut Server::in_directory(&first).connect(), "show max_wal_size"), ["2GB"]);
    let (one, other) = (identifier(&first), identifier(&second));
    assert_ne!(one.0, other.0);
    assert_ne!(one.1, other.1);
    assert_eq!(identifier(&first), one);
}

#[test]
fn a_tablespace_is_in_the_directory_or_refused() {
    let (_outer, path) = place();
    Server::in_directory(&path).stop();
    fs::create_dir_all(path.join("spaces/fast")).expect("a directory");
    let server = Server::in_directory(&path);
    let mut client = server.connect();
    // It would be in memory.
    let refused = answer(&mut client, "create tablespace space location '/tmp'").expect_err("it would be lost");
    let message = refused.as_db_error().expect("of the server").message().to_owned();
    assert!(message.starts_with("could not create symbolic link") && message.ends_with("not permitted"), "{message}");
    rows(&mut client, "create tablespace space location '/pglite/data/spaces/fast'");
    rows(&mut client, "set allow_in_place_tablespaces = on");
    rows(&mut client, "create tablespace in_place location ''");
    rows(&mut client, "create table one tablespace space as select generate_series(1, 1000) a");
    rows(&mut client, "create table two tablespace in_place as select generate_series(1, 1000) a");
    server.kill();
    let server = Server::in_directory(&path);
    assert_eq!(rows(&mut server.connect(), "select count(*) from one join two using (a)"), ["1000"]);
}

#[test]
fn isolated_connections_have_no_directory() {
    let (_outer, path) = place();
    let data = path.to_str().expect("text");
    let mut program = Program::spawn(&["serve", "--mode", "isolated", "--listen", "127.0.0.1:0", "--data", data]);
    let (status, _, stderr) = program.output();
    assert_eq!(status, Some(1));
    assert!(stderr.contains("--data is for mode shared"), "{stderr}");
    assert!(!path.exists());
}
