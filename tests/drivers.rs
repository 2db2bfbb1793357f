//! Drivers of other languages, which verify the server's certificate.

mod support;

use std::{fs, process::Command};

use support::{
    authority::{Authority, port},
    server::text,
};

/// What node-postgres says when it connects; `sslnegotiation` is `postgres` or `direct`.
fn node_postgres(arguments: [&str; 6]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/drivers/node_postgres.mjs");
    let output = Command::new("node").arg(script).args(arguments).output().expect("node is installed");
    text(&output).to_owned()
}

#[test]
fn node_postgres_verifies_the_server_and_binds_its_password() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    fs::write(authority.path("password"), "secret\n").expect("a disk");
    let file = authority.path("password");
    let (own, strange) = (authority.path("ca.pem"), stranger.path("ca.pem"));
    let modes = ["shared", "isolated"];
    let servers = modes
        .map(|mode| (mode, authority.serve(&["--mode", mode, "--auth", "scram-sha-256", "--password-file", &file])));
    for ((mode, server), negotiation) in servers.iter().flat_map(|it| ["postgres", "direct"].map(|how| (it, how))) {
        let port = port(server);
        let connect = |host, authority, password, is_bound| {
            node_postgres([host, &port, authority, password, negotiation, is_bound])
        };
        assert_eq!(connect("localhost", &own, "secret", "false"), "1", "{mode} {negotiation}");
        assert_eq!(connect("localhost", &own, "secret", "true"), "1", "{mode} {negotiation}");
        assert_eq!(connect("localhost", &own, "wrong", "true"), "28P01", "{mode} {negotiation}");
        // Node's name for it depends on what OpenSSL looks at first.
        let refused = connect("localhost", &strange, "secret", "false");
        assert!(refused.starts_with("CERT_") || refused.starts_with("UNABLE_TO_VERIFY"), "{refused}");
        assert_eq!(connect("127.0.0.1", &own, "secret", "false"), "ERR_TLS_CERT_ALTNAME_INVALID");
    }
}

/// What PostgreSQL's JDBC driver says when it connects.
fn jdbc(arguments: [&str; 4]) -> String {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/drivers/Jdbc.java");
    // Where Debian has it.
    let driver = "/usr/share/java/postgresql.jar";
    let output = Command::new("java").args(["-cp", driver, program]).args(arguments).output();
    let output = output.expect("java is installed");
    text(&output).to_owned()
}

#[test]
fn jdbc_verifies_the_server() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    fs::write(authority.path("password"), "secret\n").expect("a disk");
    let file = authority.path("password");
    let (own, strange) = (authority.path("ca.pem"), stranger.path("ca.pem"));
    for mode in ["shared", "isolated"] {
        let server = authority.serve(&["--mode", mode, "--auth", "scram-sha-256", "--password-file", &file]);
        let port = port(&server);
        assert_eq!(jdbc(["localhost", &port, &own, "secret"]), "1", "{mode}");
        let refused = jdbc(["localhost", &port, &own, "wrong"]);
        assert!(refused.starts_with("28P01 "), "{mode}: {refused}");
        let not_trusted = jdbc(["localhost", &port, &strange, "secret"]);
        assert!(not_trusted.starts_with("08006 SSL error"), "{mode}: {not_trusted}");
        let another_host = jdbc(["127.0.0.1", &port, &own, "secret"]);
        assert!(another_host.contains("hostname") && another_host.contains("127.0.0.1"), "{mode}: {another_host}");
    }
}
