//! pgbench (Debian: postgresql-contrib) with sixteen clients.

mod support;

use support::{peer::Peer, process::installed, server::Server};

/// Runs it; what it wrote.
fn run(server: &Server, arguments: &[&str]) -> String {
    let output = installed("pgbench").args(arguments).arg(&server.url).output().expect("pgbench is installed");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

fn runs_clean(protocol: &str) {
    let server = Server::shared();
    run(&server, &["--initialize", "--quiet", "--foreign-keys", "--scale=2"]);
    let text = run(&server, &["--client=16", "--jobs=2", "--transactions=60", &format!("--protocol={protocol}")]);
    assert!(text.contains("number of transactions actually processed: 960/960"), "{text}");
    assert!(text.contains("number of failed transactions: 0 "), "{text}");
    let peer = Peer::connect(&server);
    assert_eq!(peer.value("select count(*) from pgbench_history"), "960");
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) \
                and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history) \
                and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)";
    assert_eq!(peer.value(sums), "t");
}

#[test]
fn sixteen_clients_of_pgbench_run_clean_with_simple_queries() {
    runs_clean("simple");
}

#[test]
fn sixteen_clients_of_pgbench_run_clean_with_prepared_statements() {
    runs_clean("prepared");
}
