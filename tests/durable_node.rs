//! Data directories and backups, used by this program and by PGlite on Node.js, one after the other.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use support::{
    program::Program,
    server::{Server, rows},
};

/// Runs statements in PGlite on Node.js, on a directory or with an archive, and returns the rows of each as JSON.
fn node(origin: &Path, statements: &[&str]) -> Vec<String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/pglite.mjs");
    let output = Command::new("node").arg(script).arg(origin).args(statements).output().expect("node is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn a_directory_of_pglites_opens_here_and_goes_back() {
    let outer = tempfile::tempdir().expect("a directory");
    let data = outer.path().join("data");
    let made = "create table t (a int primary key, b text); insert into t select i, 'node ' || i from generate_series(1, 1000) i";
    node(&data, &[made]);

    let server = Server::in_directory(&data);
    let mut client = server.connect();
    assert_eq!(rows(&mut client, "select count(*), min(b) from t"), ["1000|node 1"]);
    assert_eq!(rows(&mut client, "show wal_segment_size"), ["16MB"]);
    rows(&mut client, "update t set b = 'here ' || a where a > 500; create index on t (b)");
    drop(client);
    server.stop();

    let seen = node(&data, &["select count(*)::int, count(*) filter (where b like 'here %')::int from t"]);
    assert_eq!(seen, ["[[1000,500]]"]);
}

#[test]
fn a_directory_of_this_program_opens_in_pglite_also_after_a_kill() {
    let outer = tempfile::tempdir().expect("a directory");
    let data = outer.path().join("data");
    let server = Server::in_directory(&data);
    let mut client = server.connect();
    rows(&mut client, "create table t as select i as a from generate_series(1, 1000) i");
    server.kill();

    assert_eq!(node(&data, &["select count(*)::int from t", "insert into t values (1001)"])[0], "[[1000]]");
    let server = Server::in_directory(&data);
    assert_eq!(rows(&mut server.connect(), "select count(*), max(a) from t"), ["1001|1001"]);
}

#[test]
fn an_archive_of_pglites_is_restored_here() {
    let outer = tempfile::tempdir().expect("a directory");
    for name in ["dumped.tar", "dumped.tar.gz"] {
        let (archive, data) = (outer.path().join(name), outer.path().join(name.replace(".tar", "-restored")));
        let made = "create table t (a int primary key); insert into t select i from generate_series(1, 1000) i";
        node(&outer.path().join(name.replace(".tar", "-of-node")), &[made, &format!("dump:{}", archive.display())]);

        let said = Program::succeed(&["restore", archive.to_str().expect("text"), data.to_str().expect("text")]);
        assert!(said.contains("pages with a right checksum"), "{said}");
        let server = Server::in_directory(&data);
        assert_eq!(rows(&mut server.connect(), "select count(*), max(a) from t"), ["1000|1000"]);
    }
}

#[test]
fn a_backup_is_loaded_by_pglite() {
    let outer = tempfile::tempdir().expect("a directory");
    let server = Server::in_directory(&outer.path().join("data"));
    rows(&mut server.connect(), "create table t as select i as a from generate_series(1, 1000) i");
    for name in ["backup.tar", "backup.tar.gz"] {
        let archive = outer.path().join(name);
        Program::succeed(&["backup", &server.url, archive.to_str().expect("text")]);
        let seen = node(&archive, &["insert into t values (1001)", "select count(*)::int from t"]);
        assert_eq!(seen[1], "[[1001]]");
    }
}
