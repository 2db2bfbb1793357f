//! The program's own commands over encrypted connections, in libpq's words. The certificate authority is made here.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use std::{fs, path::Path};

use native::Native;
use postgres::NoTls;
use support::{
    authority::{Authority, port},
    program::Program,
    server::{Server, rows},
};

/// Rules that let nobody in without encryption.
const RULES: &str = "hostssl all all all trust\nhostnossl all all all reject\n";

/// A server that lets nobody in without encryption, and the directory of its rules.
fn encrypted_only(authority: &Authority) -> (Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let rules = directory.path().join("rules");
    fs::write(&rules, RULES).expect("a disk");
    let server = authority.serve(&["--mode", "shared", "--auth", rules.to_str().expect("text")]);
    (server, directory)
}

/// The URL of a server by a name of its host, with parameters.
fn url(server: &Server, host: &str, parameters: &str) -> String {
    format!("postgres://postgres@{host}:{}/postgres?{parameters}", port(server))
}

/// Exit status and stdout of `ready`; nothing is on stderr.
fn ready(url: &str) -> (i32, String) {
    let (status, stdout, stderr) = Program::spawn(&["ready", "--timeout", "60", url]).output();
    assert_eq!(stderr, "");
    (status.expect("it ends by itself"), stdout)
}

fn file(directory: &Path, content: &str) -> String {
    let path = directory.join("file.sql");
    fs::write(&path, content).expect("a disk");
    path.to_str().expect("text").to_owned()
}

#[test]
fn commands_encrypt_where_the_server_can_and_not_where_it_cannot() {
    let authority = Authority::new();
    let (server, _rules) = encrypted_only(&authority);
    assert_eq!(ready(&url(&server, "localhost", "")).0, 0);
    assert_eq!(ready(&url(&server, "localhost", "sslmode=require")).0, 0);
    let (status, said) = ready(&url(&server, "localhost", "sslmode=disable"));
    assert!(status != 0 && said.contains("28000"), "{said}");
    let plain = Server::with(&["--listen", "localhost:0"]);
    assert_eq!(ready(&url(&plain, "localhost", "sslmode=prefer")).0, 0);
    let (status, said) = ready(&url(&plain, "localhost", "sslmode=require"));
    assert!(status != 0 && said.contains("does not encrypt connections, which sslmode=require asks for"), "{said}");
}

#[test]
fn authorities_and_names_are_verified_as_the_address_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (server, _rules) = encrypted_only(&authority);
    let trusting =
        |mode: &str, authority: &Authority| format!("sslmode={mode}&sslrootcert={}", authority.path("ca.pem"));
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(ready(&url(&server, "localhost", &trusting(mode, &authority))).0, 0, "{mode}");
        let (status, said) = ready(&url(&server, "localhost", &trusting(mode, &stranger)));
        assert!(status != 0 && said.contains("no authority that is trusted has signed its certificate"), "{said}");
    }
    // The certificate is for localhost.
    assert_eq!(ready(&url(&server, "127.0.0.1", &trusting("verify-ca", &authority))).0, 0);
    let (status, said) = ready(&url(&server, "127.0.0.1", &trusting("verify-full", &authority)));
    assert!(status != 0 && said.contains("its certificate is for another name"), "{said}");
    let (status, said) = ready(&url(&server, "localhost", "sslmode=verify-full"));
    assert!(status != 0 && said.contains("sslmode=verify-full needs the certificates of authorities"), "{said}");
    let (status, said) = ready(&url(&server, "localhost", "sslrootcert=system"));
    assert!(status != 0 && said.contains("cannot be encrypted"), "{said}");
}

#[test]
fn a_certificate_of_the_client_lets_it_in() {
    let authority = Authority::new();
    authority.issue("alice", &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let rules = directory.path().join("rules");
    fs::write(&rules, "hostssl all alice all cert\nhostssl all postgres all trust\n").expect("a disk");
    let authorities = authority.path("ca.pem");
    let arguments = ["--mode", "shared", "--auth", rules.to_str().expect("text"), "--tls-client-ca", &authorities];
    let server = authority.serve(&arguments);
    let sql = file(directory.path(), "create role alice login;\n");
    Program::succeed(&["run", &sql, &url(&server, "localhost", "")]);
    let as_alice = |parameters: &str| url(&server, "localhost", parameters).replace("postgres@", "alice@");
    let identity = format!("sslcert={}&sslkey={}", authority.path("alice.pem"), authority.path("alice.key"));
    assert_eq!(ready(&as_alice(&identity)), (0, "the server is ready\n".to_owned()));
    let (status, said) = ready(&as_alice(""));
    assert!(status != 0 && said.contains("the server refuses clients"), "{said}");
}

#[test]
fn megabytes_are_dumped_and_run_over_an_encrypted_connection() {
    let authority = Authority::new();
    let (server, directory) = encrypted_only(&authority);
    let url = url(&server, "localhost", &format!("sslmode=verify-full&sslrootcert={}", authority.path("ca.pem")));
    let sql = "create table t as select n, repeat(md5(n::text), 30) as text from generate_series(1, 10000) n;\n";
    Program::succeed(&["run", &file(directory.path(), sql), &url]);
    let dump = dumped(&url);
    assert!(dump.len() > 9_000_000, "{} bytes", dump.len());
    let moved = file(directory.path(), &format!("drop table t;\n{dump}"));
    Program::succeed(&["run", &moved, &url]);
    let again = dumped(&url);
    assert_eq!(rows_of(&again), rows_of(&dump));
}

fn dumped(url: &str) -> String {
    let (status, dump, said) = Program::spawn(&["dump", url, "--table", "t"]).output();
    assert_eq!(status, Some(0), "{said}");
    dump
}

/// The rows in a dump, whose other lines may have keys that differ each time.
fn rows_of(dump: &str) -> Vec<&str> {
    dump.lines().filter(|line| line.contains('\t')).collect()
}

#[test]
fn a_database_moves_over_an_encrypted_connection() {
    let authority = Authority::new();
    // The server refuses a key of another user.
    let directory = native::new_directory();
    native::give_away(directory.path());
    let [certificate, key] = ["server.pem", "server.key"].map(|name| {
        let path = directory.path().join(name);
        fs::copy(authority.path(name), &path).expect("a disk");
        native::give_away(&path);
        path.display().to_string()
    });
    let native = Native::start(&["ssl=on", &format!("ssl_cert_file={certificate}"), &format!("ssl_key_file={key}")]);
    let server = Server::with(&["--set", "wal_level=logical"]);
    server
        .connect()
        .batch_execute("create table t (n int primary key); insert into t select generate_series(1, 1000)")
        .expect("a table");
    let parameters = format!("sslmode=verify-full&sslrootcert={}", authority.path("ca.pem"));
    let target = native.url.replace("127.0.0.1:", "localhost:");
    let target = target.strip_suffix("postgres").expect("its database");
    let (status, stdout, stderr) =
        Program::spawn(&["move", &server.url, "--to", &format!("{target}moved?{parameters}")]).output();
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    let mut there = native.config().dbname("moved").connect(NoTls).expect("a session");
    assert_eq!(rows(&mut there, "select count(*), sum(n) from t"), ["1000|500500"]);
}
