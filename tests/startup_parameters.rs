//! What a client may ask for when it connects, and what it is told.

mod support;

use std::collections::HashMap;

use postgres::NoTls;
use support::{
    server::{Server, rows, sqlstate},
    session::{Session, errors, kinds},
    wire,
};

/// Everything up to the first `ReadyForQuery` or the end of the connection.
fn start(server: &Server, parameters: &[(&str, &str)]) -> (Session, Vec<wire::Message>) {
    let mut session = server.unready_session(parameters);
    let mut messages = Vec::new();
    while let Some(message) = session.next() {
        let ready = message.kind == b'Z';
        messages.push(message);
        if ready {
            break;
        }
    }
    (session, messages)
}

#[test]
fn a_session_begins_as_every_driver_expects() {
    let server = Server::start();
    let (session, messages) = start(&server, &[("user", "postgres"), ("database", "postgres")]);
    let kinds = kinds(&messages);
    assert!(kinds.starts_with('R') && kinds.ends_with("KZ"), "{kinds}");
    assert_eq!(messages[0].body, [0, 0, 0, 0], "AuthenticationOk");
    let told: HashMap<String, String> = wire::parameters(&messages).into_iter().collect();
    for (name, value) in [
        ("server_version", "18.6"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("session_authorization", "postgres"),
        ("in_hot_standby", "off"),
        ("default_transaction_read_only", "off"),
        ("scram_iterations", "4096"),
        ("search_path", "\"$user\", public"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} of {told:?}");
    }
    assert_eq!(session.key().1.len(), 4);
}

#[test]
fn settings_in_the_startup_message_are_the_sessions() {
    let server = Server::start();
    let parameters = [
        ("user", "postgres"),
        ("application_name", "a test's name"),
        ("options", "-c work_mem=9MB -c geqo=off --enable_seqscan=off -c search_path=\"a\\ b\",public"),
        ("DateStyle", "German"),
        ("TimeZone", "Europe/Vienna"),
        ("extra_float_digits", "0"),
    ];
    let mut session = server.session(&parameters[1..]);
    for (setting, value) in [
        ("application_name", "a test's name"),
        ("work_mem", "9MB"),
        ("geqo", "off"),
        ("enable_seqscan", "off"),
        ("search_path", "\"a b\",public"),
        ("DateStyle", "German, DMY"),
        ("TimeZone", "Europe/Vienna"),
        ("extra_float_digits", "0"),
    ] {
        assert_eq!(session.values(&format!("show {setting}")), [value], "{setting}");
    }
    assert_eq!(session.values("select timestamptz '2026-07-01 12:00Z'"), ["01.07.2026 14:00:00 CEST"]);
    session.values("set work_mem = '1MB'; set datestyle = iso");
    session.query("reset all");
    session.until_ready();
    assert_eq!(session.values("show work_mem"), ["9MB"], "they are the session's defaults");
    let activity = "select application_name, datname from pg_stat_activity where pid = pg_backend_pid()";
    assert_eq!(
        rows(&mut server.config().application_name("driver").connect(NoTls).expect("a session"), activity),
        ["driver|postgres"]
    );
}

#[test]
fn text_goes_both_ways_in_the_clients_encoding() {
    let server = Server::start();
    let mut session = server.session(&[("client_encoding", "LATIN1")]);
    let mut query = b"select 'gr\xfc\xdfe', length('gr\xfc\xdfe')".to_vec();
    query.push(0);
    session.send(&wire::message(b'Q', &query));
    let messages = session.until_ready();
    assert_eq!(messages[1].body[6..11], *b"gr\xfc\xdfe");
    assert_eq!(messages[1].body[15..], *b"5");
    session.query("select '\\u20ac'::text, U&'\\20ac'");
    assert_eq!(errors(&session.until_ready()), ["22P05"]);
}

#[test]
fn what_cannot_be_is_refused_with_its_sqlstate() {
    let server = Server::start();
    for (parameters, sqlstate, message) in [
        (vec![("user", "nobody"), ("database", "postgres")], "28000", "role \"nobody\" does not exist"),
        (vec![("user", "postgres"), ("database", "nowhere")], "3D000", "database \"nowhere\" does not exist"),
        (vec![("user", "postgres"), ("no_such_setting", "1")], "42704", "unrecognized configuration parameter"),
        (vec![("user", "postgres"), ("options", "-c nonsense=1")], "42704", "unrecognized configuration parameter"),
        (vec![("user", "postgres"), ("options", "--nonsense")], "42601", "--nonsense requires a value"),
        (vec![("user", "postgres"), ("work_mem", "much")], "22023", "invalid value for parameter \"work_mem\""),
        (vec![("user", "postgres"), ("client_encoding", "nonsense")], "22023", "invalid value for parameter"),
        (vec![("user", "postgres"), ("shared_buffers", "1MB")], "55P02", "cannot be changed without restarting"),
        (vec![("database", "postgres")], "28000", "no PostgreSQL user name specified"),
        (
            vec![("user", "postgres"), ("options", "-c search_path=a\\ b")],
            "22023",
            "invalid value for parameter \"search_path\"",
        ),
    ] {
        let (_, messages) = start(&server, &parameters);
        let error = messages.iter().find(|message| message.kind == b'E');
        let fields = error.unwrap_or_else(|| panic!("{parameters:?} was not refused: {messages:?}")).fields();
        assert!(
            fields[&'S'] == "FATAL" && fields[&'C'].starts_with(sqlstate) && fields[&'M'].contains(message),
            "{parameters:?}: {fields:?}"
        );
        assert!(!kinds(&messages).contains('Z'), "{parameters:?}: {messages:?}");
    }
    assert_eq!(rows(&mut server.connect(), "select 'alive'"), ["alive"]);
}

#[test]
fn a_newer_minor_protocol_and_its_options_are_negotiated_down() {
    let server = Server::start();
    let mut session = Session::new(server.stream());
    session.send(&wire::packet(3 << 16 | 0x270f, b"user\0postgres\0_pq_.no_such_option\x001\0\0"));
    let messages = session.until_ready();
    assert_eq!(messages[0].kind, b'v', "{messages:?}");
    assert!(messages[0].body.windows(20).any(|part| part == b"_pq_.no_such_option\0"));
    assert_eq!(session.values("select 'alive'"), ["alive"]);
}

#[test]
fn the_driver_connects_with_everything_it_can_ask_for() {
    let server = Server::start();
    let mut config = server.config();
    config.application_name("test").options("-c statement_timeout=12345").dbname("postgres").password("ignored");
    let mut client = config.connect(NoTls).expect("a session");
    assert_eq!(rows(&mut client, "show statement_timeout"), ["12345ms"]);
    assert_eq!(sqlstate(config.user("nobody").connect(NoTls).map(drop)), "28000");
}
