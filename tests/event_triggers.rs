//! Event triggers fire, in isolated and in shared mode; those on `login` at the start of every session.

mod support;

use pglite_port::databases::Settings;
use support::{
    cache,
    local::{Connect, Local, frozen},
    peer::Peer,
    server::{Server, rows, sqlstate},
    session::{errors, kinds},
};

/// A trigger for every event of DDL, which notes what it is called for.
const TRIGGERS: &str = "CREATE TABLE log (n serial, event text, tag text);
    CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO log (event, tag) VALUES (tg_event, tg_tag); END $$;
    CREATE EVENT TRIGGER starts ON ddl_command_start EXECUTE FUNCTION note();
    CREATE EVENT TRIGGER ends ON ddl_command_end EXECUTE FUNCTION note();
    CREATE EVENT TRIGGER drops ON sql_drop EXECUTE FUNCTION note();
    CREATE EVENT TRIGGER rewrites ON table_rewrite EXECUTE FUNCTION note();";

/// A trigger on `login` that notes who comes, tells him, and lets nobody called `eve` in.
const ON_LOGIN: &str = "CREATE ROLE eve LOGIN; CREATE ROLE bob LOGIN;
    CREATE TABLE visits (who text);
    CREATE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN
            IF session_user = 'eve' THEN RAISE 'go away'; END IF;
            INSERT INTO visits VALUES (session_user);
            RAISE NOTICE 'welcome, %', session_user;
        END $$;
    CREATE EVENT TRIGGER greeting ON login EXECUTE FUNCTION greet();";

#[test]
fn they_fire_for_every_event_of_ddl() {
    for server in [Server::start(), Server::shared()] {
        let mut client = server.connect();
        rows(&mut client, TRIGGERS);
        rows(&mut client, "CREATE TABLE t (a int)");
        rows(&mut client, "ALTER TABLE t ALTER a TYPE bigint");
        rows(&mut client, "DROP TABLE t");
        let expected = [
            "ddl_command_start|CREATE TABLE",
            "ddl_command_end|CREATE TABLE",
            "ddl_command_start|ALTER TABLE",
            "table_rewrite|ALTER TABLE",
            "ddl_command_end|ALTER TABLE",
            "ddl_command_start|DROP TABLE",
            "sql_drop|DROP TABLE",
            "ddl_command_end|DROP TABLE",
        ];
        // Creating an event trigger fires none.
        assert_eq!(rows(&mut client, "SELECT event, tag FROM log ORDER BY n"), expected);
    }
}

#[test]
fn none_fires_while_a_template_is_warmed_up() {
    // A sequence goes on when the transaction that has used it is rolled back.
    let connections = frozen("counting", TRIGGERS);
    let mut clone = Local::connect_as(&connections, "counting", "postgres").0;
    assert_eq!(clone.values("SELECT is_called FROM log_n_seq"), ["f"]);
    clone.values("CREATE TABLE t (a int)");
    assert_eq!(clone.values("SELECT min(n), max(n), count(*) FROM log"), ["1", "2", "2"]);
}

#[test]
fn one_that_raises_an_error_forbids_the_command() {
    for server in [Server::start(), Server::shared()] {
        let mut client = server.connect();
        let forbid = "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
            CREATE EVENT TRIGGER forbids ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION forbid()";
        rows(&mut client, forbid);
        assert_eq!(sqlstate(client.batch_execute("CREATE TABLE t (a int)")), "P0001");
        assert_eq!(rows(&mut client, "SELECT to_regclass('t') IS NULL"), ["t"]);
    }
}

#[test]
fn the_login_of_a_clone_fires_before_its_session_is_ready() {
    let connections = frozen("greeting", ON_LOGIN);
    let (mut clone, startup) = Local::connect_as(&connections, "greeting", "bob");
    let kinds = kinds(&startup);
    assert!(kinds.starts_with("RS") && kinds.ends_with("KNZ"), "{kinds}");
    let notice = startup.iter().find(|message| message.kind == b'N').expect("a notice").fields();
    assert_eq!(notice[&'M'], "welcome, bob");
    clone.values("RESET ROLE");
    let (mut other, _) = Local::connect_as(&connections, "greeting", "postgres");
    assert_eq!(other.values("SELECT who FROM visits"), ["postgres"], "neither the template nor another clone counts");
}

#[test]
fn a_login_that_fails_ends_the_session_of_a_clone_before_it_is_ready() {
    let connections = frozen("doorman", ON_LOGIN);
    let (clone, startup) = Local::connect_as(&connections, "doorman", "eve");
    assert_eq!(errors(&startup), ["P0001"]);
    let error = startup.iter().find(|message| message.kind == b'E').expect("an error").fields();
    assert_eq!((error[&'S'].as_str(), error[&'M'].as_str()), ("FATAL", "go away"));
    assert!(!kinds(&startup).contains('Z'));
    drop(clone);
    assert_eq!(Local::connect_as(&connections, "doorman", "bob").0.values("SELECT session_user"), ["bob"]);
}

#[test]
fn a_template_whose_login_lets_nobody_in_can_be_made_and_entered_without_event_triggers() {
    let connections = cache::connections(Settings::default());
    let mut clone = Local::connect(&connections, Connect::default()).0;
    clone.values(
        "CREATE FUNCTION close() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed'; END $$; \
         CREATE EVENT TRIGGER closed ON login EXECUTE FUNCTION close()",
    );
    clone.freeze("closed");
    assert_eq!(errors(&Local::connect_as(&connections, "closed", "postgres").1), ["P0001"]);
    let parameters = &[("user", "postgres"), ("options", "-c event_triggers=off")];
    let enter = Connect { template: Some("closed"), parameters, ..Connect::default() };
    assert_eq!(Local::connect(&connections, enter).0.values("SELECT 1"), ["1"]);
}

#[test]
fn a_reset_begins_with_a_login() {
    let connections = frozen("reset_greeting", ON_LOGIN);
    let (mut clone, _) = Local::connect_as(&connections, "reset_greeting", "postgres");
    clone.values("INSERT INTO visits VALUES ('somebody')");
    clone.reset();
    assert_eq!(clone.values("SELECT who FROM visits"), ["postgres"]);
}

#[test]
fn the_login_of_every_session_of_a_shared_cluster_fires() {
    let (server, mut clients) = (Server::shared(), Vec::new());
    let first = Peer::connect(&server);
    first.run(ON_LOGIN);
    for user in ["bob", "postgres"] {
        clients.push(Peer::of(&server, user, "postgres"));
    }
    assert_eq!(first.run("SELECT who FROM visits ORDER BY 1"), ["bob", "postgres"]);
    assert_eq!(Peer::refused(server.config().user("eve")), "P0001");
}
