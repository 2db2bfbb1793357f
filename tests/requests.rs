//! What the parent asks of connections that have a cluster of their own: reset, freeze, their memory, and the
//! templates there are; and of the program: clusters by name.

mod support;

use pglite_port::{
    databases::{Leave, Settings},
    port::frame::{Kind, Options},
    session::Mode,
};
use support::{
    cache,
    port::{Port, Received},
    session::errors,
    texts,
    wire::{self, Message},
};

/// A port with real databases and connections that are spoken to in SQL.
struct Databases {
    port: Port,
    next_request: u32,
}

impl Databases {
    fn open() -> Self {
        let leave = Leave { clock: true, seed: true };
        let databases = cache::open_at(&cache::shared(), Settings { leave, ..Settings::default() });
        Self { port: Port::with_sessions(databases), next_request: 1000 }
    }

    /// Opens a connection with these options and startup parameters; the messages of its startup.
    fn connect(&mut self, id: u32, options: &[(&str, &str)], parameters: &[(&str, &str)]) -> Vec<Message> {
        let mode = Options::new().with("mode", Mode::Isolated);
        let options = options.iter().fold(mode, |options, (key, value)| options.with(key, value));
        self.port.send_frame(Kind::Open, id, &options.to_bytes());
        self.port.data(id, &wire::startup(parameters));
        self.until_ready(id)
    }

    fn until_ready(&mut self, id: u32) -> Vec<Message> {
        let mut bytes = Vec::new();
        loop {
            let frame = self.next();
            assert_eq!((frame.kind, frame.id), (Kind::Data, id), "{frame:?}");
            bytes.extend(frame.payload);
            if matches!(bytes[..], [.., b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E']) {
                return Message::all(bytes);
            }
        }
    }

    /// The next frame that is no log line.
    fn next(&mut self) -> Received {
        loop {
            let frame = self.port.next();
            if frame.kind != Kind::Log {
                return frame;
            }
        }
    }

    fn query(&mut self, id: u32, sql: &str) -> Vec<Message> {
        self.port.data(id, &wire::query(sql));
        self.until_ready(id)
    }

    /// The values that the rows of a query consist of.
    fn values(&mut self, id: u32, sql: &str) -> Vec<String> {
        wire::values(sql, &self.query(id, sql))
    }

    fn send_request(&mut self, verb: &str, options: &[(&str, &str)]) -> u32 {
        let options = options.iter().fold(Options::new(), |options, (key, value)| options.with(key, value));
        self.next_request += 1;
        let payload = [verb.as_bytes(), b"\0", &options.to_bytes()].concat();
        self.port.send_frame(Kind::Request, self.next_request, &payload);
        self.next_request
    }

    /// The reply to a request; the ends of connections may come first, with the errors of those that it ends.
    fn request(&mut self, verb: &str, options: &[(&str, &str)]) -> Result<Options, (String, String)> {
        let id = self.send_request(verb, options);
        let mut frame = self.next();
        while [Kind::Close, Kind::Data].contains(&frame.kind) {
            frame = self.next();
        }
        assert_eq!((frame.kind, frame.id), (Kind::Reply, id), "{frame:?}");
        reply(&frame)
    }
}

fn reply(frame: &Received) -> Result<Options, (String, String)> {
    let (word, options) = frame.reply();
    if word == "ok" {
        return Ok(options);
    }
    let text = |key: &str| options.get(key).expect(key).to_owned();
    Err((text("code"), text("message")))
}

const POSTGRES: &[(&str, &str)] = &[("user", "postgres")];

#[test]
fn a_reset_puts_everything_back_that_the_session_has_done() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    let look = "SELECT (SELECT count(*) FROM pg_class), current_setting('work_mem'), pg_database_size('postgres'), \
                (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), \
                (SELECT count(*) FROM pg_listening_channels()), to_regclass('u') IS NULL, \
                (SELECT count(*) FROM pg_extension WHERE extname = 'plpgsql')";
    let before = databases.values(1, look);
    let differs = |now: &[String]| now.iter().zip(&before).all(|(now, before)| now != before);
    for _ in 0..3 {
        databases.values(1, "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 2000)");
        databases.values(1, "CREATE TEMPORARY TABLE u (a int); SET work_mem = '7MB'; PREPARE p AS SELECT 1");
        databases.values(1, "LISTEN l; SELECT pg_advisory_lock(1); DROP EXTENSION plpgsql");
        let changed = databases.values(1, look);
        assert!(differs(&changed), "{before:?} {changed:?}");
        databases.request("reset", &[("connection", "1")]).expect("it is reset");
        assert_eq!(databases.values(1, look), before);
        databases.values(1, "DO $$ BEGIN PERFORM 1; END $$");
    }
}

#[test]
fn a_reset_takes_back_libraries_that_were_loaded_since_as_often_as_that_happens() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    for _ in 0..3 {
        // Snowball and the encoding conversions are libraries.
        assert_eq!(databases.values(1, "SELECT to_tsvector('english', 'the dogs barked')"), ["'bark':3 'dog':2"]);
        assert_eq!(databases.values(1, "SELECT convert_to('ä', 'LATIN1')"), ["\\xe4"]);
        databases.values(1, "CREATE TABLE t (a int)");
        databases.request("reset", &[("connection", "1")]).expect("it is reset");
        assert_eq!(databases.values(1, "SELECT count(*) FROM pg_class WHERE relname = 't'"), ["0"]);
    }
}

#[test]
fn after_a_reset_the_session_is_as_after_its_startup_and_the_client_knows_what_changed() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    databases.values(1, "CREATE ROLE alice LOGIN");
    databases.request("freeze", &[("connection", "1"), ("name", "with_alice")]).expect("it is frozen");

    let startup = &[("user", "alice"), ("application_name", "mine"), ("options", "-c work_mem=5MB")];
    let messages = databases.connect(2, &[("template", "with_alice")], startup);
    let key = messages.iter().find(|message| message.kind == b'K').expect("a key").body.clone();
    let changed = databases.query(2, "SET application_name = 'other'; SET DateStyle = 'German'; SET work_mem = '9MB'");
    assert!(wire::parameters(&changed).contains(&("application_name".into(), "other".into())));
    databases.query(2, "BEGIN");

    let request = databases.send_request("reset", &[("connection", "2")]);
    let (mut told, mut answer) = (Vec::new(), None);
    while answer.is_none() || wire::parameters(&told).len() < 2 {
        let next = databases.next();
        if next.kind == Kind::Reply { answer = Some(next) } else { told.extend(Message::all(next.payload)) }
    }
    let answer = answer.expect("it was answered");
    assert_eq!((answer.kind, answer.id), (Kind::Reply, request));
    reply(&answer).expect("it is reset");
    assert!(told.iter().all(|message| message.kind == b'S'), "only what changed: {told:?}");
    let mut told = wire::parameters(&told);
    told.sort();
    let expected = [("DateStyle", "ISO, MDY"), ("application_name", "mine")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(told, expected);

    let now =
        databases.values(2, "SELECT current_user, current_setting('work_mem'), current_setting('application_name')");
    assert_eq!(now, ["alice", "5MB", "mine"]);
    let messages = databases.query(2, "SELECT 1");
    assert_eq!(messages.last().expect("ReadyForQuery").body, b"I", "the transaction is gone");

    // The cancel key is still the one that the client was given.
    let (process, secret) = key.split_at(4);
    let process = i32::from_be_bytes(process.try_into().expect("four bytes"));
    let asleep = "DO $$ BEGIN RAISE NOTICE 'falling asleep'; PERFORM pg_sleep(3600); END $$";
    databases.port.data(2, &wire::query(asleep));
    let mut answer = Vec::new();
    let mut until = |databases: &mut Databases, is_there: fn(&[u8]) -> bool| {
        while !is_there(&answer) {
            let frame = databases.next();
            if frame.id == 2 {
                answer.extend(frame.payload);
            }
        }
    };
    until(&mut databases, |answer| answer.windows(14).any(|part| part == b"falling asleep"));
    databases.port.open(3);
    databases.port.data(3, &wire::cancel_request(process, secret));
    until(&mut databases, |answer| answer.ends_with(b"Z\0\0\0\x05I"));
    assert_eq!(errors(&Message::all(answer)), ["57014"]);
    databases.request("drop_template", &[("name", "with_alice")]).expect("it is dropped");
}

#[test]
fn cancel_requests_that_come_during_resets_do_nothing() {
    let mut databases = Databases::open();
    let startup = databases.connect(1, &[], POSTGRES);
    let key = startup.iter().find(|message| message.kind == b'K').expect("a key").body.clone();
    let (process, secret) = key.split_at(4);
    let process = i32::from_be_bytes(process.try_into().expect("four bytes"));
    for id in 2..50 {
        databases.port.open(id);
        databases.send_request("reset", &[("connection", "1")]);
        databases.port.data(id, &wire::cancel_request(process, secret));
        let (mut is_reset, mut is_sent) = (false, false);
        while !is_reset || !is_sent {
            let frame = databases.next();
            match frame.kind {
                Kind::Reply => is_reset = reply(&frame).is_ok(),
                Kind::Close => is_sent = frame.id == id,
                _ => {}
            }
        }
        assert_eq!(databases.values(1, "SELECT 1"), ["1"]);
    }
}

#[test]
fn random_numbers_go_on_differently_after_every_reset() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    // A sample is drawn with PostgreSQL's own generator, the other number with bytes of the system's.
    let look = "SELECT random(), (SELECT string_agg(oid::text, ' ') FROM pg_proc TABLESAMPLE BERNOULLI (50))";
    let mut seen = databases.values(1, look);
    for _ in 0..3 {
        databases.request("reset", &[("connection", "1")]).expect("it is reset");
        let numbers = databases.values(1, look);
        assert!(numbers.iter().all(|number| !seen.contains(number)), "{seen:?}");
        seen.extend(numbers);
    }
}

#[test]
fn a_reset_waits_for_the_command_that_the_client_has_begun() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    databases.values(1, "CREATE TABLE t (a int)");
    // A command of the extended protocol ends with Sync.
    databases.port.data(1, &[wire::parse("", "INSERT INTO t VALUES (1)"), wire::flush()].concat());
    let frame = databases.next();
    assert_eq!(Message::all(frame.payload)[0].kind, b'1');
    let request = databases.send_request("reset", &[("connection", "1")]);
    databases.port.data(1, &[wire::bind("", "", &[]), wire::execute("", 0), wire::sync()].concat());
    let messages = databases.until_ready(1);
    assert!(messages.iter().any(|message| message.body == b"INSERT 0 1\0"), "{messages:?}");
    let frame = databases.next();
    assert_eq!((frame.kind, frame.id), (Kind::Reply, request));
    reply(&frame).expect("it is reset");
    assert_eq!(databases.query(1, "SELECT FROM t")[0].fields()[&'C'], "42P01");
}

#[test]
fn a_frozen_database_is_a_template_with_its_key_until_it_is_dropped() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    databases.values(1, "CREATE TABLE t (a int); CREATE UNLOGGED TABLE u AS SELECT 7 AS a; SET search_path = nowhere");
    databases.values(1, "CREATE TEMPORARY TABLE temporary (a int); PREPARE p AS SELECT 1; LISTEN l");
    databases.values(1, "INSERT INTO public.t VALUES (1)");
    let options = [("connection", "1"), ("name", "frozen one"), ("key", "hash of migrations")];
    databases.request("freeze", &options).expect("it is frozen");
    // The session goes on as it was, and what it does now is not in the template.
    assert_eq!(databases.values(1, "EXECUTE p; SHOW search_path"), ["1", "nowhere"]);
    databases.values(1, "INSERT INTO public.t VALUES (2)");

    databases.connect(2, &[("template", "frozen one")], POSTGRES);
    assert_eq!(databases.values(2, "SELECT a FROM t"), ["1"]);
    assert_eq!(databases.values(2, "SELECT a FROM u"), ["7"]);
    assert_eq!(databases.values(2, "SHOW search_path"), ["\"$user\", public"]);
    let leftovers = "SELECT (SELECT count(*) FROM pg_prepared_statements), \
                     (SELECT count(*) FROM pg_class WHERE relname = 'temporary'), (SELECT count(*) FROM pg_listening_channels())";
    assert_eq!(databases.values(2, leftovers), ["0", "0", "0"]);

    let templates = databases.request("templates", &[]).expect("a list");
    let listed: Vec<_> = templates.iter().map(|(_, value)| value).collect();
    let at = listed.iter().position(|value| *value == "frozen one").expect("it is listed");
    assert_eq!(listed[at..at + 3], ["frozen one", "postgres", "hash of migrations"]);

    databases.request("drop_template", &[("name", "frozen one")]).expect("it is dropped");
    let (code, _) = databases.request("drop_template", &[("name", "frozen one")]).expect_err("it is gone");
    assert_eq!(code, "42704");
    assert_eq!(databases.values(2, "SELECT a FROM t"), ["1"], "its clones live on");
    databases.port.send_frame(
        Kind::Open,
        3,
        &Options::new().with("mode", "isolated").with("template", "frozen one").to_bytes(),
    );
    databases.port.data(3, &wire::startup(POSTGRES));
    assert_eq!(databases.port.until_closed(3).1[1], "3D000");
}

#[test]
fn a_database_is_not_frozen_in_the_middle_of_a_transaction() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    for begin in ["BEGIN", "BEGIN; SELECT 1 / 0"] {
        databases.query(1, begin);
        let refused = databases.request("freeze", &[("connection", "1"), ("name", "never")]);
        assert_eq!(refused.expect_err("it is open").0, "55006");
        databases.query(1, "ROLLBACK");
    }
    let list = databases.request("templates", &[]).expect("a list");
    assert!(list.iter().all(|(_, value)| value != "never"));
}

#[test]
fn requests_that_make_no_sense_are_refused_with_a_reason() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    let refused = |result: Result<Options, (String, String)>| result.expect_err("it makes no sense").0;
    assert_eq!(refused(databases.request("reset", &[])), "22023");
    assert_eq!(refused(databases.request("reset", &[("connection", "2")])), "08003");
    assert_eq!(refused(databases.request("reset", &[("connection", "one")])), "08003");
    assert_eq!(refused(databases.request("freeze", &[("connection", "1")])), "22023");
    assert_eq!(refused(databases.request("drop_template", &[("name", "")])), "22023");
}

#[test]
fn memory_is_told_for_each_connection_and_in_all_and_goes_down_with_a_reset() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    databases.connect(2, &[], POSTGRES);
    let sum = |databases: &mut Databases, key: &str| -> u64 {
        let memory = databases.request("memory", &[]).expect("figures");
        let sums: Vec<u64> =
            memory.iter().filter(|(k, _)| *k == "sum").map(|(_, v)| v.parse().expect("bytes")).collect();
        let total = memory.get("total").expect("a total").parse().expect("bytes");
        assert_eq!((sums.len(), sums.iter().sum::<u64>()), (2, total));
        if key == "1" { sums[0] } else { sums[1] }
    };
    databases.values(1, "SELECT 1");
    let before = sum(&mut databases, "1");
    databases.values(1, "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)");
    let full = sum(&mut databases, "1");
    assert!(full > before + (4 << 20), "{before} {full}");
    databases.request("reset", &[("connection", "1")]).expect("it is reset");
    let after = sum(&mut databases, "1");
    assert!(after < before + (1 << 20), "{before} {after}");
}

#[test]
fn a_cluster_is_made_listed_connected_to_and_dropped() {
    let mut databases = Databases::open();
    let made = databases.request("create_cluster", &[("set", "work_mem=7MB"), ("set", "max_connections=9")]);
    let made = made.expect("a cluster");
    let [name, database] = ["name", "database"].map(|key| made.get(key).expect(key).to_owned());
    assert_eq!(database, "postgres");
    databases.connect(1, &[("cluster", &name)], POSTGRES);
    databases.connect(2, &[], &[POSTGRES, &[("pglite.cluster", &name[..])]].concat());
    databases.values(1, "CREATE TABLE t AS SELECT 1 AS a");
    assert_eq!(databases.values(2, "SELECT a FROM t"), ["1"]);
    assert_eq!(
        databases.values(1, "SELECT current_setting('work_mem'), current_setting('max_connections')"),
        ["7MB", "9"]
    );

    let branched =
        databases.request("create_cluster", &[("branch", &name), ("name", "b"), ("lifetime", "connections")]);
    assert_eq!(branched.expect("a branch").get("name"), Some("b"));
    let listed = databases.request("clusters", &[]).expect("a list");
    let texts = |key| listed.iter().filter(move |(other, _)| *other == key).map(|(_, value)| value).collect::<Vec<_>>();
    assert_eq!(texts("name"), ["b", &name, "default"]);
    assert_eq!(texts("origin"), [&format!("branch of {name}")[..], "empty", "empty"]);
    assert_eq!(texts("lifetime"), ["connections", "dropped", "program"]);
    assert_eq!(texts("connections"), ["0", "2", "0"]);
    assert_eq!(texts("data"), [""; 3]);

    databases.request("drop_cluster", &[("name", &name)]).expect("it is dropped");
    let refused = databases.request("drop_cluster", &[("name", &name)]).expect_err("it is gone");
    assert_eq!(refused, ("3D000".to_owned(), format!("cluster \"{name}\" does not exist")));
}

#[test]
fn requests_for_clusters_that_cannot_be_are_refused_with_the_value_that_is_wrong() {
    let mut databases = Databases::open();
    for (options, problem) in [
        (&[("lifetime", "forever")][..], "\"forever\""),
        (&[("set", "work_mem")], "\"work_mem\""),
        (&[("data", "relative/path")], "relative/path"),
        (&[("template", "a"), ("branch", "b")], "template and branch"),
        (&[("name", "")], "\"\""),
    ] {
        let (code, message) = databases.request("create_cluster", options).expect_err("it is refused");
        assert_eq!(code, "22023", "{options:?}");
        assert!(message.contains(problem), "{message}");
    }
}

#[test]
fn a_clock_is_set_by_request_with_times_in_microseconds_and_whatever_else_is_asked_is_refused() {
    let mut databases = Databases::open();
    databases.connect(1, &[], POSTGRES);
    let mut set = |options: &[(&str, &str)]| databases.request("clock", &[&[("connection", "1")], options].concat());
    set(&[("set", "freeze"), ("at", "1893456000123456")]).expect("it is set");
    for options in [
        &[][..],
        &[("set", "stop")],
        &[("set", "travel")],
        &[("set", "travel"), ("at", "1"), ("by", "1")],
        &[("set", "travel"), ("at", "2030-01-01")],
        &[("set", "travel"), ("by", "")],
        &[("set", "freeze"), ("by", "1")],
        &[("set", "back"), ("at", "1")],
    ] {
        assert_eq!(set(options).expect_err("it is refused").0, "22023", "{options:?}");
    }
    assert_eq!(set(&[("set", "travel"), ("at", "9223372036854775807")]).expect_err("out of range").0, "22008");
    let now = "SELECT clock_timestamp()";
    assert_eq!(databases.values(1, now), ["2030-01-01 00:00:00.123456+00"]);
    for (options, since) in [
        (&[("set", "travel"), ("by", "86400000000")][..], "2030-01-02"),
        (&[("set", "travel"), ("at", "0")], "1970-01-01"),
        (&[("set", "freeze")], "1970-01-01"),
    ] {
        databases.request("clock", &[&[("connection", "1")], options].concat()).expect("it is set");
        let near = format!("SELECT clock_timestamp() BETWEEN '{since}' AND timestamptz '{since}' + interval '1 min'");
        assert_eq!(databases.values(1, &near), ["t"], "{options:?}");
    }
    assert_eq!(databases.values(1, now), databases.values(1, now));
    databases.request("clock", &[("connection", "1"), ("set", "back")]).expect("it is set");
    assert_eq!(databases.values(1, "SELECT now() > '2024-01-01'"), ["t"]);
}

#[test]
fn clocks_and_seeds_are_those_of_the_cluster_that_the_request_names() {
    let mut databases = Databases::open();
    let made = databases.request("create_cluster", &[("name", "c")]).expect("a cluster");
    assert_eq!(made.get("name"), Some("c"));
    databases.connect(1, &[("cluster", "c")], POSTGRES);
    databases.connect(2, &[("mode", "shared")], POSTGRES);
    databases.request("clock", &[("cluster", "c"), ("set", "freeze"), ("at", "0")]).expect("it is set");
    let now = "SELECT now() = '1970-01-01'";
    assert_eq!([databases.values(1, now), databases.values(2, now)], [["t"], ["f"]]);
    let roll = "SELECT random(), gen_random_uuid()";
    let rolled = [(); 2].map(|()| {
        databases.request("seed", &[("cluster", "c"), ("seed", "7")]).expect("it is seeded");
        databases.values(1, roll)
    });
    assert_eq!(rolled[0], rolled[1]);
    let refused = databases.request("clock", &[("cluster", "d"), ("set", "back")]);
    assert_eq!(refused.expect_err("there is none").0, "3D000");
}

#[test]
fn random_numbers_are_seeded_by_request() {
    let mut databases = Databases::open();
    let mut rolled = Vec::new();
    for (id, seed) in [(1, "0"), (2, "18446744073709551615"), (3, "0")] {
        databases.connect(id, &[], POSTGRES);
        databases.request("seed", &[("connection", &id.to_string()), ("seed", seed)]).expect("it is seeded");
        rolled.push(databases.values(id, "SELECT random(), gen_random_uuid()"));
    }
    assert_eq!(rolled[0], rolled[2]);
    assert_ne!(rolled[0], rolled[1]);
    for seed in ["", "-1", "18446744073709551616", "x"] {
        let refused = databases.request("seed", &[("connection", "1"), ("seed", seed)]);
        assert_eq!(refused.expect_err("it is refused").0, "22023", "{seed}");
    }
}

#[test]
fn a_clock_can_be_set_before_the_session_has_begun() {
    let mut databases = Databases::open();
    databases.port.send_frame(Kind::Open, 1, b"mode\0isolated\0\0");
    databases.send_request("clock", &[("connection", "1"), ("set", "freeze"), ("at", "0")]);
    databases.port.data(1, &wire::startup(POSTGRES));
    // The reply comes when there is a session, before or between its first messages.
    let (mut bytes, mut replies) = (Vec::new(), 0);
    while !matches!(bytes[..], [.., b'Z', 0, 0, 0, 5, b'I']) || replies == 0 {
        let frame = databases.next();
        match frame.kind {
            Kind::Reply => replies += usize::from(reply(&frame).is_ok()),
            _ => bytes.extend(frame.payload),
        }
    }
    assert_eq!(databases.values(1, "SELECT now()"), ["1970-01-01 00:00:00+00"]);
}

#[test]
fn the_program_gives_leave_for_each_by_its_options() {
    for (arguments, allowed) in [
        (&[][..], [false, false]),
        (&["--allow-clock"], [true, false]),
        (&["--allow-seed"], [false, true]),
        (&["--allow-clock", "--allow-seed"], [true, true]),
    ] {
        let port = Port::spawn(&[&["--mode", "isolated"], arguments].concat());
        let mut databases = Databases { port, next_request: 1000 };
        databases.connect(1, &[], POSTGRES);
        let asked = [
            databases.request("clock", &[("connection", "1"), ("set", "freeze"), ("at", "0")]),
            databases.request("seed", &[("connection", "1"), ("seed", "1")]),
        ];
        for (asked, (is_allowed, what)) in
            asked.into_iter().zip(allowed.into_iter().zip(["set the clock", "seed random numbers"]))
        {
            match asked {
                Ok(_) => assert!(is_allowed, "{arguments:?}: {what}"),
                Err((code, message)) => {
                    assert!(!is_allowed, "{arguments:?}: {what}");
                    assert_eq!([code, message], texts(["42501", &format!("permission denied to {what}")])[..]);
                }
            }
        }
    }
}
