//! `pg_reload_conf()` in a cluster that has one session and no postmaster.

mod support;

use std::sync::mpsc::{Receiver, channel};

use pglite_port::{databases::Settings, log::LogSink};
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    wire::{self, Message},
};

/// A session in a clone of the default template, and its log.
fn connect() -> (Local, Receiver<String>) {
    connect_to(None)
}

fn connect_to(template: Option<&str>) -> (Local, Receiver<String>) {
    let connections = cache::connections(Settings::default());
    let (sender, lines) = channel();
    let log = LogSink::new(move |_, _, _, text| {
        // The test may have ended.
        let _ = sender.send(text.to_owned());
    });
    let mut session = Local::start_with_log(&connections, Connect { template, ..Connect::default() }, log);
    session.until_ready();
    (session, lines)
}

/// Waits for a log line that contains `text`.
fn wait_for(lines: &Receiver<String>, text: &str) {
    while !lines.recv_timeout(PATIENCE).expect("the line").contains(text) {}
}

#[test]
fn a_setting_counts_for_the_next_command_and_the_log_says_so() {
    let (mut session, log) = connect();
    session.values("ALTER SYSTEM SET work_mem = '7MB'");
    let in_same = session.values("BEGIN; SELECT pg_reload_conf(); SHOW work_mem");
    assert_eq!(in_same, ["t", "4MB"], "a message is answered as it began");
    assert_eq!(session.values("SHOW work_mem; COMMIT"), ["7MB"]);
    wait_for(&log, "parameter \"work_mem\" changed to \"7MB\"");
    session.values("ALTER SYSTEM RESET work_mem");
    session.values("SELECT pg_reload_conf()");
    assert_eq!(session.values("SHOW work_mem"), ["4MB"]);
    wait_for(&log, "parameter \"work_mem\" removed from configuration file, reset to default");
}

#[test]
fn what_the_session_has_set_itself_stays() {
    let (mut session, _log) = connect();
    session.values("SET work_mem = '5MB'");
    session.values("ALTER SYSTEM SET work_mem = '7MB'");
    session.values("SELECT pg_reload_conf()");
    assert_eq!(session.values("SHOW work_mem"), ["5MB"]);
    assert_eq!(session.values("RESET work_mem; SHOW work_mem"), ["7MB"]);
}

#[test]
fn a_parameter_that_clients_are_told_of_is_reported_again() {
    let (mut session, _log) = connect();
    session.values("ALTER SYSTEM SET intervalstyle = 'iso_8601'");
    session.values("SELECT pg_reload_conf()");
    let messages: Vec<Message> = session.query("SELECT 1");
    assert_eq!(wire::parameters(&messages), [("IntervalStyle".to_owned(), "iso_8601".to_owned())]);
}

#[test]
fn what_takes_a_restart_is_said_to_and_clones_of_the_cluster_have_it() {
    let (mut session, log) = connect();
    session.values("ALTER SYSTEM SET max_prepared_transactions = 3");
    session.values("SELECT pg_reload_conf()");
    let pending = "SELECT setting || pending_restart FROM pg_settings WHERE name = 'max_prepared_transactions'";
    assert_eq!(session.values(pending), ["0true"]);
    wait_for(&log, "parameter \"max_prepared_transactions\" cannot be changed without restarting the server");
    session.freeze("prepared_transactions");
    let (mut clone, _log) = connect_to(Some("prepared_transactions"));
    assert_eq!(clone.values(pending), ["3false"]);
}

#[test]
fn a_mistake_in_the_file_is_logged_and_nothing_of_it_counts() {
    let (mut session, log) = connect();
    session.values("COPY (SELECT 'work_mem = much') TO '/pglite/data/postgresql.auto.conf'");
    assert_eq!(session.values("SELECT pg_reload_conf()"), ["t"]);
    assert_eq!(session.values("SHOW work_mem"), ["4MB"]);
    wait_for(&log, "invalid value for parameter \"work_mem\": \"much\"");
    wait_for(&log, "contains errors; unaffected changes were applied");
}
