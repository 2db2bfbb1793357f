//! The options of a shared cluster (`pglite-port serve --help`).

mod support;

use support::{peer::Peer, server::Server};

#[test]
fn as_many_sessions_as_max_connections_says_are_let_in_and_the_next_one_is_told_why_not() {
    let server = Server::with(&["--mode", "shared", "--max-connections", "3"]);
    let sessions = [(); 3].map(|()| Peer::connect(&server));
    for _ in 0..3 {
        assert_eq!(Peer::refused(&server.config()), "53300");
    }
    for session in &sessions {
        assert_eq!(session.value("select 1"), "1");
    }
    let [leaver, watcher, _stayer] = sessions;
    drop(leaver);
    watcher.until_sessions(2);
    let _successor = Peer::connect(&server);
    assert_eq!(Peer::refused(&server.config()), "53300");
}

#[test]
fn shared_buffers_and_further_settings_are_what_the_options_say() {
    let server = Server::with(&["--mode", "shared", "--shared-buffers", "16", "--set", "work_mem=5MB"]);
    let peer = Peer::connect(&server);
    assert_eq!(peer.run("show shared_buffers; show work_mem"), ["16MB", "5MB"]);
    // Twice as much as fits.
    peer.run("create table t as select n, repeat('x', 1000) filler from generate_series(1, 32000) n");
    assert_eq!(peer.value("select count(*), sum(length(filler)) from t"), "32000|32000000");
}

#[test]
fn a_setting_that_postgresql_does_not_know_keeps_the_server_from_starting() {
    let mut program =
        support::program::Program::spawn(&["serve", "--listen", "127.0.0.1:0", "--set", "no_such_setting=1"]);
    let (status, stdout, stderr) = program.output();
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("no_such_setting"), "{stderr}");
}
