//! Sessions of a copy of a cluster begin with caches that another session has made: the model. Nothing else of it is in
//! them, and they see every change of catalogs that was made since.

mod support;

use std::{
    collections::BTreeSet,
    env,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use pglite_port::session::{Choice, Task};
use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    connection::Connections,
    databases::{Databases, Leave, Settings},
};
use support::{
    cache,
    local::{Connect, Local},
    session::errors,
    wire::Message,
};

/// Has a table `t` with a primary key.
const TABLE: &str =
    "CREATE TABLE t (a int PRIMARY KEY, b text DEFAULT 'x'); INSERT INTO t SELECT generate_series(1, 3)";

/// Whether the session has had the index of `t` in its caches before it used it.
const HAS_CACHES: &str = "SELECT count(*) > 0 FROM pg_backend_memory_contexts WHERE ident = 't_pkey'";

struct World {
    databases: Arc<Databases>,
    connections: Arc<Connections>,
    /// Other tests have others in the same cache.
    template: &'static str,
}

impl World {
    /// With the template `name`, whose database `postgres` was made with that SQL.
    fn with_template(name: &'static str, sql: &str) -> Self {
        let leave = Leave { clock: true, seed: true };
        let mut settings = Settings { leave, ..Settings::default() };
        // As in `support::server`.
        if env::var("PGLITE_PORT_TEST_CLUSTER").is_ok_and(|kind| kind == "short-turns") {
            settings.shared.slice = Duration::from_micros(200);
        }
        let (databases, connections) = cache::administered(settings);
        let (mut session, _) = Local::connect(&connections, Connect::default());
        let failed = errors(&session.query(sql));
        assert!(failed.is_empty(), "{failed:?}");
        session.freeze(name);
        Self { databases, connections, template: name }
    }

    fn create(&self, name: &str, origin: ClusterOrigin) {
        let new = NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() };
        self.databases.create_cluster(new).expect("a cluster");
    }

    /// A cluster of that name, a copy of the template.
    fn copy(&self, name: &str) -> Local {
        self.create(name, ClusterOrigin::Template(self.template.to_owned()));
        self.session(name)
    }

    fn session(&self, cluster: &str) -> Local {
        Local::connect_to(&self.connections, cluster)
    }

    /// A session of the role `user`, and what it was refused with if it was.
    fn session_as(&self, cluster: &str, user: &str, database: &str) -> (Local, Vec<String>) {
        let parameters = &[("user", user), ("database", database)];
        let connect = Connect { cluster: Some(cluster), parameters, ..Connect::default() };
        let (session, messages) = Local::connect(&self.connections, connect);
        (session, errors(&messages))
    }
}

/// Waits for what other threads do.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
    }
}

#[test]
fn sessions_of_a_copy_of_a_template_begin_with_the_caches_of_its_model() {
    let world = World::with_template("models", TABLE);
    let mut first = world.copy("copy");
    let mut second = world.session("copy");
    for session in [&mut first, &mut second] {
        assert_eq!(session.values(HAS_CACHES), ["t"]);
        assert_eq!(session.values("SELECT a FROM t WHERE a > 1 ORDER BY a"), ["2", "3"]);
    }
    first.values("INSERT INTO t VALUES (4); UPDATE t SET b = 'y' WHERE a = 1; DELETE FROM t WHERE a = 2");
    assert_eq!(second.values("SELECT a || b FROM t ORDER BY a"), ["1y", "3x", "4x"]);
    // There are no caches of another database.
    first.values("CREATE DATABASE other");
    let (mut elsewhere, _) = world.session_as("copy", "postgres", "other");
    assert_eq!(elsewhere.values(HAS_CACHES), ["f"]);
    assert_eq!(elsewhere.values("SELECT current_database()"), ["other"]);
}

#[test]
fn a_branch_that_is_made_often_has_a_model_and_the_first_one_does_not_wait_for_it() {
    let world = World::with_template("models of branches", TABLE);
    world.create("origin", ClusterOrigin::Empty);
    world.session("origin").values(TABLE);
    let of_origin = || ClusterOrigin::Branch("origin".to_owned());
    world.create("first", of_origin());
    assert_eq!(world.session("first").values(HAS_CACHES), ["f"]);
    for name in ["second", "third"] {
        world.create(name, of_origin());
    }
    // It is made on another thread meanwhile. Branches that were there before have it as well.
    until("no model was made", || world.session("first").values(HAS_CACHES) == ["t"]);
    assert_eq!(world.session("third").values(HAS_CACHES), ["t"]);
    world.session("origin").values("CREATE TABLE u AS SELECT 1 AS a");
    world.create("later", of_origin());
    let mut later = world.session("later");
    assert_eq!(later.values(HAS_CACHES), ["f"]);
    assert_eq!(later.values("SELECT a FROM u"), ["1"]);
}

#[test]
fn a_session_sees_every_change_of_catalogs_that_was_made_before_it() {
    let world = World::with_template("models and changes", TABLE);
    for (change, query, expected) in [
        ("ALTER TABLE t ADD COLUMN c int DEFAULT 7", "SELECT sum(c) FROM t", "21"),
        ("ALTER TABLE t RENAME TO u", "SELECT coalesce(to_regclass('t')::text, 'none') || count(*) FROM u", "none3"),
        ("DROP TABLE t; CREATE TABLE t (a text)", "SELECT count(*) || pg_typeof(max(a))::text FROM t", "0text"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 8; ALTER TABLE t ALTER b SET DEFAULT f()",
            "INSERT INTO t VALUES (9) RETURNING b",
            "8",
        ),
        (
            "CREATE SCHEMA s; CREATE TABLE s.t AS SELECT 5 AS a; ALTER ROLE postgres SET search_path = s",
            "SELECT a FROM t",
            "5",
        ),
        ("TRUNCATE t", "SELECT count(*) FROM t", "0"),
        ("CREATE RULE r AS ON INSERT TO t DO INSTEAD NOTHING; INSERT INTO t VALUES (9)", "SELECT max(a) FROM t", "3"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (3)", "SELECT count(*) FROM t WHERE a = 3", "2"),
    ] {
        let name = change.split(';').next().expect("a part");
        let mut session = world.copy(name);
        session.values(change);
        let mut later = world.session(name);
        assert_eq!(later.values(query), [expected], "{change}");
        drop(later);
        assert_eq!(world.session(name).values(query.replace("(9)", "(10)").as_str()), [expected], "again: {change}");
        drop(session);
        world.databases.drop_cluster(name).expect("it is dropped");
    }
}

#[test]
fn a_session_that_begins_while_catalogs_change_sees_what_was_committed() {
    const COPIES: usize = 40;
    let world = World::with_template("models while catalogs change", TABLE);
    for copy in 0..COPIES {
        let name = format!("copy {copy}");
        let mut changing = world.copy(&name);
        let (committed, begin) = (AtomicUsize::new(0), Barrier::new(4));
        thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                changing.values("ALTER TABLE t ADD COLUMN c int");
                committed.store(1, Ordering::SeqCst);
            });
            for _ in 0..3 {
                scope.spawn(|| {
                    begin.wait();
                    // Only those begin with the model that have begun before the change.
                    for _ in 0..3 {
                        let before = committed.load(Ordering::SeqCst);
                        let mut session = world.session(&name);
                        let answer = session.query("SELECT * FROM t LIMIT 0");
                        let row = answer.iter().find(|message| message.kind == b'T').expect("a description of rows");
                        let columns = usize::from(u16::from_be_bytes([row.body[0], row.body[1]]));
                        assert!(columns >= 2 + before, "{columns} columns after {before} were added");
                    }
                });
            }
        });
        world.databases.drop_cluster(&name).expect("it is dropped");
    }
}

#[test]
fn settings_of_the_model_s_role_and_database_are_not_those_of_other_sessions() {
    let world = World::with_template(
        "models with settings",
        &format!(
            "{TABLE}; CREATE ROLE app LOGIN; GRANT pg_read_all_stats TO app; ALTER ROLE postgres SET work_mem = '77MB'; \
         ALTER DATABASE postgres SET statement_timeout = '91s'; ALTER ROLE ALL SET lock_timeout = '92s'; \
         ALTER ROLE app SET default_transaction_isolation = 'serializable'"
        ),
    );
    let show = |session: &mut Local| {
        let names = ["work_mem", "statement_timeout", "lock_timeout", "default_transaction_isolation"];
        names.map(|name| session.values(&format!("SHOW {name}")).concat())
    };
    let mut owner = world.copy("copy");
    assert_eq!(owner.values(HAS_CACHES), ["t"]);
    assert_eq!(show(&mut owner), ["77MB", "91s", "92s", "read committed"]);
    let (mut app, refused) = world.session_as("copy", "app", "postgres");
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(app.values(HAS_CACHES), ["t"]);
    assert_eq!(show(&mut app), ["4MB", "91s", "92s", "serializable"]);
    assert_eq!(
        app.values("SELECT session_user || current_user || (SELECT rolsuper FROM pg_roles WHERE rolname = 'app')"),
        ["appappfalse"]
    );
    assert_eq!(errors(&app.query("SELECT a FROM t")), ["42501"]);
    owner.values("ALTER DATABASE postgres RESET ALL; ALTER ROLE ALL RESET ALL; ALTER ROLE postgres RESET ALL");
    let (mut later, _) = world.session_as("copy", "app", "postgres");
    assert_eq!(show(&mut later), ["4MB", "0", "0", "serializable"]);
    assert_eq!(show(&mut world.session("copy")), ["4MB", "0", "0", "read committed"]);
    let unset = "SELECT count(*) FROM pg_settings WHERE source NOT IN ('default', 'override', 'command line', \
                 'configuration file', 'environment variable')";
    assert_eq!(world.session("copy").values(unset), ["0"]);
}

#[test]
fn refused_are_the_roles_and_databases_that_are_refused_elsewhere() {
    let world = World::with_template(
        "models that refuse",
        &format!(
            "{TABLE}; CREATE ROLE nobody NOLOGIN; CREATE ROLE app LOGIN; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC"
        ),
    );
    let mut session = world.copy("copy");
    assert_eq!(session.values(HAS_CACHES), ["t"]);
    for (user, database, expected) in [
        ("nobody", "postgres", "28000"),
        ("missing", "postgres", "28000"),
        ("app", "postgres", "42501"),
        ("postgres", "missing", "3D000"),
    ] {
        assert_eq!(world.session_as("copy", user, database).1, [expected], "{user} in {database}");
    }
    session.values("CREATE DATABASE other");
    let (mut other, _) = world.session_as("copy", "postgres", "other");
    drop(session);
    let refused = || world.session_as("copy", "postgres", "postgres").1;
    // As soon as the session has ended.
    until("it is not done", || errors(&other.query("ALTER DATABASE postgres RENAME TO renamed")).is_empty());
    assert_eq!(refused(), ["3D000"]);
    let (mut renamed, _) = world.session_as("copy", "postgres", "renamed");
    assert_eq!(renamed.values("SELECT current_database() || count(*) FROM t"), ["renamed3"]);
}

#[test]
fn a_session_is_in_the_database_that_has_the_name_now() {
    let world = World::with_template("models and databases", TABLE);
    for (number, (changes, expected)) in [
        (&["DROP DATABASE postgres"][..], Err("3D000")),
        (&["DROP DATABASE postgres", "CREATE DATABASE postgres"], Ok("")),
        (&["ALTER DATABASE postgres RENAME TO old", "CREATE DATABASE postgres"], Ok("")),
        (&["ALTER DATABASE postgres RENAME TO old", "CREATE DATABASE postgres TEMPLATE old"], Ok("t")),
        (&["ALTER DATABASE postgres ALLOW_CONNECTIONS false"], Err("55000")),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("copy {number}");
        drop(world.copy(&name));
        let (mut other, _) = world.session_as(&name, "postgres", "template1");
        for change in changes {
            // The first session may still be leaving, and `template1` is in use by this one.
            let change = change.replace("CREATE DATABASE postgres", "CREATE DATABASE postgres TEMPLATE template0");
            let change = change.replace("TEMPLATE template0 TEMPLATE", "TEMPLATE");
            until("it is not done", || errors(&other.query(&change)).is_empty());
        }
        let (mut session, refused) = world.session_as(&name, "postgres", "postgres");
        match expected {
            Ok(table) => {
                assert!(refused.is_empty(), "{changes:?}: {refused:?}");
                assert_eq!(session.values("SELECT coalesce(to_regclass('t')::text, '')"), [table], "{changes:?}");
                let same = "SELECT oid = (SELECT database FROM pg_locks WHERE pid = pg_backend_pid() LIMIT 1) \
                            FROM pg_database WHERE datname = current_database()";
                assert_eq!(session.values(same), ["t"], "{changes:?}");
                session.values("CREATE TABLE u (a int)");
                assert_eq!(world.session(&name).values("SELECT count(*) FROM u"), ["0"], "{changes:?}");
            }
            Err(code) => assert_eq!(refused, [code], "{changes:?}"),
        }
        drop(session);
        world.databases.drop_cluster(&name).expect("it is dropped");
    }
}

#[test]
fn the_encoding_of_a_client_is_its_own() {
    let world = World::with_template(
        "models and encodings",
        &format!("{TABLE}; CREATE ROLE latin LOGIN; ALTER ROLE latin SET client_encoding = 'LATIN1'"),
    );
    assert_eq!(world.copy("copy").values(HAS_CACHES), ["t"]);
    for parameters in [
        &[("user", "postgres"), ("client_encoding", "LATIN1")][..],
        &[("user", "latin"), ("database", "postgres")],
        &[("user", "postgres"), ("options", "-c client_encoding=LATIN1")],
    ] {
        let connect = Connect { cluster: Some("copy"), parameters, ..Connect::default() };
        let (mut session, _) = Local::connect(&world.connections, connect);
        let answer = session.query("SELECT U&'\\00e4'");
        let row = answer.iter().find(|message| message.kind == b'D').expect("a row");
        assert_eq!(row.body, b"\0\x01\0\0\0\x01\xe4", "{parameters:?}");
    }
    assert_eq!(world.session("copy").values("SHOW client_encoding"), ["UTF8"]);
}

#[test]
fn timeouts_of_a_session_end_its_statements_also_just_after_the_model_was_made() {
    let world = World::with_template("models and timeouts", TABLE);
    let mut session = world.copy("copy");
    session.values("SET statement_timeout = '1500ms'");
    assert_eq!(errors(&session.query("SELECT pg_sleep(100)")), ["57014"]);
    let mut other = world.session("copy");
    session.values("BEGIN; LOCK TABLE t");
    other.values("SET lock_timeout = '1200ms'");
    assert_eq!(errors(&other.query("SELECT count(*) FROM t")), ["55P03"]);
}

#[test]
fn planning_for_a_model_changes_nothing_for_others() {
    // What planning calls is as it says while the index is made, and something else later.
    let world = World::with_template(
        "models and functions",
        &format!(
            "{TABLE}; CREATE TABLE planned (a int PRIMARY KEY); \
         CREATE FUNCTION f(int) RETURNS bool IMMUTABLE LANGUAGE sql RETURN true; \
         CREATE INDEX ON planned (a) WHERE f(1); \
         CREATE OR REPLACE FUNCTION f(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM set_config('models.planned', 'yes', false), set_config('work_mem', '66MB', false), setseed(0.5); \
         RETURN true; END $$"
        ),
    );
    let mut sessions = [world.copy("one"), world.copy("two")];
    let setting = "SELECT coalesce(current_setting('models.planned', true), '') || current_setting('work_mem')";
    for session in &mut sessions {
        assert_eq!(session.values(setting), ["4MB"]);
        assert_eq!(session.values("SELECT a FROM planned WHERE a = 1"), [""; 0]);
        assert_eq!(session.values(setting), ["yes66MB"], "planning calls it");
    }
}

#[test]
fn operators_of_users_are_not_called_for_a_model() {
    let world = World::with_template(
        "models and operators",
        &format!(
            "{TABLE}; CREATE FUNCTION called(text, int2) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$; \
             CREATE OPERATOR || (LEFTARG = text, RIGHTARG = int2, FUNCTION = called)"
        ),
    );
    let mut session = world.copy("copy");
    assert_eq!(session.values(HAS_CACHES), ["t"]);
    assert_eq!(errors(&session.query("SELECT '$' || 1::int2")), ["P0001"]);
}

#[test]
fn a_function_that_does_not_end_keeps_no_copy_waiting() {
    for (name, body) in [
        ("models and time", "BEGIN LOOP END LOOP; END"),
        (
            "models and patience",
            "BEGIN LOOP BEGIN LOOP END LOOP; EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END",
        ),
    ] {
        let world = World::with_template(
            name,
            &format!(
                "{TABLE}; CREATE FUNCTION f(int) RETURNS bool IMMUTABLE LANGUAGE sql RETURN true; \
                 DO $$ BEGIN FOR i IN 1..50 LOOP \
                 EXECUTE format('CREATE TABLE late%s (a int PRIMARY KEY); CREATE INDEX ON late%s (a) WHERE f(1)', i, i); \
                 END LOOP; END $$; \
                 CREATE OR REPLACE FUNCTION f(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $$ {body} $$"
            ),
        );
        let (done, copied) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| done.send(world.copy("copy").values("SELECT count(*) FROM t")));
            // Each of the two hundred statements could take two seconds, or for ever.
            assert_eq!(copied.recv_timeout(Duration::from_mins(1)).expect("a copy in time"), ["3"], "{body}");
        });
    }
}

#[test]
fn a_seed_decides_what_follows_it_and_not_the_keys_of_sessions() {
    let world = World::with_template("models and seeds", TABLE);
    let key =
        |messages: &[Message]| messages.iter().find(|message| message.kind == b'K').expect("a key").body[4..].to_vec();
    let mut keys = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for name in ["one", "two"] {
        let mut first = world.copy(name);
        assert_eq!(first.values(HAS_CACHES), ["t"]);
        first.perform(Task::Choose(Choice::Seed(7))).expect("a seed");
        let connect = Connect { cluster: Some(name), ..Connect::default() };
        let (mut second, messages) = Local::connect(&world.connections, connect);
        keys.insert(key(&messages));
        numbers.insert(second.values("SELECT gen_random_uuid() || random()::text"));
    }
    assert_eq!((keys.len(), numbers.len()), (2, 1));
}

#[test]
fn a_model_runs_no_trigger_and_is_nowhere_to_be_seen() {
    let world = World::with_template(
        "models without triggers",
        &format!(
            "{TABLE}; CREATE TABLE logins (process_id int); \
         CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO logins VALUES (pg_backend_pid()); \
         IF session_user = 'postgres' THEN PERFORM set_config('models.login', 'postgres', false); END IF; END $$; \
         CREATE ROLE app LOGIN; GRANT INSERT ON logins TO app; \
         CREATE EVENT TRIGGER note ON login EXECUTE FUNCTION note(); ALTER EVENT TRIGGER note ENABLE ALWAYS"
        ),
    );
    let before = world.copy("one").values("SELECT count(*) FROM logins").concat();
    let mut session = world.copy("two");
    assert_eq!(session.values(HAS_CACHES), ["t"]);
    assert_eq!(session.values("SELECT count(*) FROM logins").concat(), before, "each copy has its own");
    world.session("two");
    let noted = before.parse::<u32>().expect("a number") + 1;
    assert_eq!(session.values("SELECT count(*) FROM logins"), [noted.to_string()]);
    let setting = "SELECT coalesce(current_setting('models.login', true), 'none')";
    assert_eq!(session.values(setting), ["postgres"]);
    assert_eq!(world.session_as("two", "app", "postgres").0.values(setting), ["none"]);
    let seen =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    until("it is not done", || session.values(seen) == ["0"]);
    assert_eq!(session.values("SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid()"), ["0"]);
    assert_eq!(session.values("SELECT count(*) FROM pg_prepared_statements"), ["0"]);
    assert_eq!(session.values("SELECT count(*) FROM pg_cursors"), ["0"]);
}

#[test]
fn sessions_with_the_same_caches_have_other_random_numbers_and_keys() {
    let world = World::with_template("models by chance", TABLE);
    let mut sessions: Vec<Local> = ["one", "two"].map(|name| world.copy(name)).into();
    sessions.extend(["one", "two"].map(|name| world.session(name)));
    let random = "SELECT random()::text || gen_random_uuid() || pg_backend_pid()";
    let numbers: BTreeSet<String> = sessions.iter_mut().flat_map(|session| session.values(random)).collect();
    assert_eq!(numbers.len(), sessions.len());
    let startup = |name| {
        let connect = Connect { cluster: Some(name), ..Connect::default() };
        let (_session, messages) = Local::connect(&world.connections, connect);
        messages.into_iter().find(|message| message.kind == b'K').expect("a key").body[4..].to_vec()
    };
    assert_ne!(startup("one"), startup("two"));
}

#[test]
fn a_table_that_no_statement_can_be_planned_for_is_left_out() {
    let columns: Vec<String> = (1..=1_500).map(|column| format!("\"Column {column}\" int")).collect();
    let world = World::with_template(
        "models without plans",
        &format!(
            "{TABLE}; CREATE TABLE nothing (); CREATE TABLE \"a \"\"table\" (\"$1\" int PRIMARY KEY, \"\u{e4}\" text); \
             CREATE TABLE wide ({}); \
             CREATE TABLE computed (a int GENERATED ALWAYS AS IDENTITY, b int GENERATED ALWAYS AS (1) STORED); \
             CREATE TABLE refused (a int PRIMARY KEY); CREATE FUNCTION refuse(int) RETURNS bool IMMUTABLE LANGUAGE sql \
             RETURN true; CREATE INDEX ON refused (a) WHERE refuse(1); \
             CREATE OR REPLACE FUNCTION refuse(int) RETURNS bool IMMUTABLE LANGUAGE sql RETURN 1 / 0 = 1; \
             CREATE TABLE parted (a int PRIMARY KEY) PARTITION BY RANGE (a); \
             CREATE TABLE part PARTITION OF parted FOR VALUES FROM (1) TO (10)",
            columns.join(", "),
        ),
    );
    let mut session = world.copy("copy");
    assert_eq!(session.values(HAS_CACHES), ["t"]);
    session.values("INSERT INTO \"a \"\"table\" VALUES (1, 'b'); INSERT INTO parted VALUES (5)");
    assert_eq!(session.values("SELECT \"\u{e4}\" FROM \"a \"\"table\""), ["b"]);
    assert_eq!(session.values("SELECT count(*) FROM part"), ["1"]);
    assert_eq!(errors(&session.query("SELECT a FROM refused WHERE a = 1")), ["22012"]);
}
