//! The start of a session in a clone, whose backend has been running for long: it is as that of a new backend.

mod support;

use std::sync::Arc;

use pglite_port::{connection::Connections, databases::Settings};
use support::{
    cache,
    local::{Connect, Local, frozen},
    process,
    server::Server,
    session::errors,
};

#[test]
fn a_timeout_of_more_than_ten_seconds_ends_a_query_though_its_template_was_only_just_made() {
    // PostgreSQL arms a timer of ten seconds for statistics, and none that is due later while that one is on its way.
    let connections = frozen("just_made", "CREATE TABLE t (a int)");
    let mut clone = Local::connect_as(&connections, "just_made", "postgres").0;
    let messages = clone.query("SET statement_timeout = '10500ms'; SELECT pg_sleep(3600)");
    assert_eq!(errors(&messages), ["57014"]);
}

#[test]
fn a_setting_that_has_become_wrong_is_warned_of_after_the_authentication() {
    let connections = frozen(
        "wrong_setting",
        "CREATE ROLE alice LOGIN; CREATE TEXT SEARCH CONFIGURATION mine (COPY = simple); \
         ALTER ROLE alice SET default_text_search_config = 'public.mine'; DROP TEXT SEARCH CONFIGURATION mine",
    );
    let (mut clone, startup) = Local::connect_as(&connections, "wrong_setting", "alice");
    let kinds: String = startup.iter().map(|message| char::from(message.kind)).collect();
    assert!(kinds.starts_with("RN"), "{kinds}");
    assert_eq!((kinds.matches('R').count(), kinds.matches('Z').count()), (1, 1), "{kinds}");
    assert_eq!(clone.values("SELECT current_user"), ["alice"]);
}

#[test]
fn what_can_only_be_set_before_the_first_temporary_table_can_be_set() {
    let connections = cache::connections(Settings::default());
    let mut clone = Local::connect(&connections, Connect::default()).0;
    clone.values("SET temp_buffers = '800kB'; CREATE TEMPORARY TABLE t (a int)");
    assert_eq!(clone.values("SHOW temp_buffers"), ["800kB"]);
}

#[test]
fn a_role_that_may_not_log_in_is_refused() {
    let connections = frozen("roles", "CREATE ROLE nobody NOLOGIN");
    assert_eq!(errors(&Local::connect_as(&connections, "roles", "nobody").1), ["28000"]);
}

/// The SQLSTATE with which sessions of that role are refused, if they are.
fn refusal(connections: &Arc<Connections>, template: &str, user: &str) -> Vec<String> {
    errors(&Local::connect_as(connections, template, user).1)
}

#[test]
fn limits_of_roles_and_of_the_database_count_for_all_but_superusers() {
    let connections =
        frozen("role_limits", "CREATE ROLE nil LOGIN CONNECTION LIMIT 0; CREATE ROLE one LOGIN CONNECTION LIMIT 1");
    assert_eq!(refusal(&connections, "role_limits", "nil"), ["53300"]);
    assert_eq!(refusal(&connections, "role_limits", "one"), [""; 0]);
    let connections = frozen("no_sessions", "CREATE ROLE somebody LOGIN; ALTER DATABASE postgres CONNECTION LIMIT 0");
    assert_eq!(refusal(&connections, "no_sessions", "somebody"), ["53300"]);
    assert_eq!(refusal(&connections, "no_sessions", "postgres"), [""; 0]);
    let connections = frozen("one_session", "CREATE ROLE somebody LOGIN; ALTER DATABASE postgres CONNECTION LIMIT 1");
    assert_eq!(refusal(&connections, "one_session", "somebody"), [""; 0]);
}

#[test]
fn only_roles_with_the_privilege_are_let_into_a_database() {
    let connections = frozen(
        "by_privilege",
        "CREATE ROLE member LOGIN; CREATE ROLE stranger LOGIN; \
         REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO member",
    );
    assert_eq!(refusal(&connections, "by_privilege", "member"), [""; 0]);
    assert_eq!(refusal(&connections, "by_privilege", "postgres"), [""; 0]);
    let startup = Local::connect_as(&connections, "by_privilege", "stranger").1;
    let fields = startup.last().expect("an error").fields();
    let told = ['S', 'C', 'M', 'D'].map(|field| fields[&field].as_str());
    let detail = "User does not have CONNECT privilege.";
    assert_eq!(told, ["FATAL", "42501", "permission denied for database \"postgres\"", detail]);
}

#[test]
fn a_database_that_takes_no_connections_lets_nobody_in() {
    // One's own database can be closed in the catalog only.
    let connections = frozen("closed", "UPDATE pg_database SET datallowconn = false WHERE datname = 'postgres'");
    let startup = Local::connect_as(&connections, "closed", "postgres").1;
    let fields = startup.last().expect("an error").fields();
    assert_eq!(fields[&'C'], "55000");
    assert_eq!(fields[&'M'], "database \"postgres\" is not currently accepting connections");
}

#[test]
fn libraries_that_a_role_wants_at_the_start_are_loaded() {
    let connections = frozen(
        "preload",
        "CREATE ROLE slow LOGIN SUPERUSER; ALTER ROLE slow SET session_preload_libraries = 'auto_explain'; \
         CREATE ROLE lost LOGIN; ALTER ROLE lost SET local_preload_libraries = 'nowhere'",
    );
    let setting = "SHOW auto_explain.log_min_duration";
    assert_eq!(errors(&Local::connect_as(&connections, "preload", "postgres").0.query(setting)), ["42704"]);
    assert_eq!(Local::connect_as(&connections, "preload", "slow").0.values(setting), ["-1"]);
    assert_eq!(refusal(&connections, "preload", "lost"), ["58P01"]);
}

#[test]
fn a_client_that_never_asks_anything_is_sent_away_when_it_is_idle_for_too_long() {
    let server = Server::start();
    let mut session = server.session(&[("options", "-c idle_session_timeout=50ms")]);
    assert_eq!(errors(&session.until_closed()), ["57P05"]);
    // One that asks in time is not, while it waits for its answer.
    let mut session = server.session(&[("options", "-c idle_session_timeout=1s")]);
    assert_eq!(session.values("SELECT pg_sleep(1.5)"), [""]);
}

#[test]
fn resets_one_after_the_other_leave_no_memory_behind() {
    const RESETS: usize = 2000;
    let connections = cache::connections(Settings { warm: 2, ..Settings::default() });
    let mut clone = Local::connect(&connections, Connect::default()).0;
    let usage = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
        (process::anonymous_memory(std::process::id()), maps.lines().count())
    };
    let before = usage();
    for _ in 0..RESETS {
        clone.reset();
    }
    assert_eq!(clone.values("SELECT 1"), ["1"]);
    let after = usage();
    // Each has about 0.5 MB for itself, and ten mappings; other tests have a few.
    assert!(after.0 < before.0 + (64 << 20) && after.1 < before.1 + 500, "{before:?}, after {RESETS} resets {after:?}");
}
