//! Clones of a template: what they share with each other, which is nothing that anybody can see, and what becomes of
//! their memory.

mod support;

use std::{collections::HashSet, sync::Arc, thread, time::Instant};

use pglite_port::{
    administration::{Administration, Figure, PrivateBytes, figure},
    connection::Connections,
    databases::{Databases, Settings},
    quota::Limits,
    template::{Recipe, Script},
};
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    wire,
};

fn connect(connections: &Arc<Connections>, id: u32) -> Local {
    Local::connect(connections, Connect { id, ..Connect::default() }).0
}

/// The body of the `BackendKeyData` among the messages of a startup.
fn backend_key(messages: &[wire::Message]) -> Vec<u8> {
    messages.iter().find(|message| message.kind == b'K').expect("a key").body.clone()
}

/// What every clone must have for itself, asked of a new one.
fn identity(connections: &Arc<Connections>) -> Vec<String> {
    let (mut clone, startup) = Local::connect(connections, Connect::default());
    // A sample is drawn with PostgreSQL's own generator, the others with bytes of the system's.
    let mut values = clone.values(
        "SELECT (SELECT string_agg(oid::text, ' ') FROM pg_proc TABLESAMPLE BERNOULLI (50)), random(), gen_random_uuid(), (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()), pg_postmaster_start_time()",
    );
    values.push(format!("{:?}", backend_key(&startup)));
    values
}

#[test]
fn random_numbers_start_times_and_cancel_keys_differ_between_clones_whether_they_were_kept_ready_or_not() {
    for warm in [0, 2] {
        let connections = cache::connections(Settings { warm, ..Settings::default() });
        let clones: Vec<Vec<String>> = (0..5).map(|_| identity(&connections)).collect();
        for kind in 0..clones[0].len() {
            let distinct: HashSet<&String> = clones.iter().map(|clone| &clone[kind]).collect();
            assert_eq!(distinct.len(), clones.len(), "{clones:?}");
        }
    }
}

#[test]
fn a_clone_from_the_pool_has_started_when_it_was_taken_and_not_when_it_was_made() {
    let (databases, connections) = cache::administered(Settings { warm: 1, ..Settings::default() });
    wait_until_warm(&databases, 1);
    let mut other = connect(&connections, 1);
    wait_until_warm(&databases, 1);
    // The one that is taken next has been made by now.
    let before = other.values("SELECT clock_timestamp()").remove(0);
    let mut clone = connect(&connections, 2);
    let later = format!("SELECT backend_start > '{before}' FROM pg_stat_activity WHERE pid = pg_backend_pid()");
    assert_eq!(clone.values(&later), ["t"]);
}

#[test]
fn clones_that_were_kept_ready_of_a_template_that_is_replaced_nobody_gets_and_those_of_one_that_is_gone_go_too() {
    let cache = cache::own();
    let databases = Arc::new(cache::open_at(cache.path(), Settings { warm: 1, ..Settings::default() }));
    let connections = Arc::new(Connections::new(databases.clone()));
    for edition in ["one", "two"] {
        let sql = format!("CREATE TABLE edition AS SELECT '{edition}' AS name");
        let recipe = Recipe { scripts: vec![Script { name: "a.sql".into(), sql }], ..Recipe::empty("postgres") };
        databases.templates().prepare("postgres", &recipe, Limits::default()).expect("it is prepared");
        assert_eq!(connect(&connections, 1).values("SELECT name FROM edition"), [edition]);
        wait_until_warm(&databases, 1);
    }
    databases.templates().prepare("other", &Recipe::empty("other"), Limits::default()).expect("it is prepared");
    let start = || Local::start(&connections, Connect { template: Some("other"), ..Connect::default() });
    drop(start());
    wait_until_warm(&databases, 2);
    assert!(databases.templates().shelf().remove("other").expect("a cache that can be written"));
    assert_eq!(start().report().code, "3D000");
    drop(connect(&connections, 1));
    wait_until_warm(&databases, 1);
}

fn wait_until_warm(databases: &Databases, clones: u64) {
    let deadline = Instant::now() + PATIENCE;
    let wanted: Figure = figure::WARM_CLONES.figure(clones);
    while !databases.figures().contains(&wanted) {
        assert!(Instant::now() < deadline, "{:?}", databases.figures());
        thread::yield_now();
    }
}

#[test]
fn fifty_clones_that_write_over_the_same_pages_never_see_each_other() {
    let connections = cache::connections(Settings::default());
    let threads: Vec<_> = (0..50_u32)
        .map(|number| {
            let connections = connections.clone();
            thread::spawn(move || {
                let mut clone = connect(&connections, number);
                // A new table gets the same file, the same blocks and the same catalogue rows in every clone.
                clone.values("CREATE TABLE t (id int PRIMARY KEY, owner int)");
                clone.values(&format!("INSERT INTO t SELECT n, {number} FROM generate_series(1, 500) n"));
                clone.values(&format!("COMMENT ON DATABASE postgres IS 'of {number}'"));
                for _ in 0..3 {
                    clone.values("UPDATE t SET id = id + 1000 WHERE id % 7 = 0");
                    clone.values("VACUUM t");
                    let expected = ["500".to_owned(), number.to_string(), number.to_string(), format!("of {number}")];
                    let seen = clone.values(
                        "SELECT count(*), min(owner), max(owner), (SELECT shobj_description(oid, 'pg_database') \
                         FROM pg_database WHERE datname = current_database()) FROM t",
                    );
                    assert_eq!(seen, expected);
                }
                clone
            })
        })
        .collect();
    // All of them are alive at once until here.
    let clones: Vec<Local> = threads.into_iter().map(|thread| thread.join().expect("no clone sees another")).collect();
    let template = connect(&connections, 100).values("SELECT count(*) FROM pg_class WHERE relname = 't'");
    assert_eq!(template, ["0"], "nor does the template");
    drop(clones);
}

#[test]
fn unlogged_and_temporary_tables_of_one_clone_no_other_clone_sees() {
    let connections = cache::connections(Settings::default());
    let mut clones = [connect(&connections, 1), connect(&connections, 2), connect(&connections, 3)];
    let [one, two, bystander] = &mut clones;
    for (clone, rows) in [(&mut *one, "1, 300000"), (&mut *two, "300001, 550000")] {
        clone.values(&format!("CREATE UNLOGGED TABLE u AS SELECT n FROM generate_series({rows}) n"));
        // More than temp_buffers.
        clone.values(&format!("CREATE TEMPORARY TABLE t AS SELECT n FROM generate_series({rows}) n"));
        clone.values("CREATE EXTENSION pg_buffercache");
        clone.values("CHECKPOINT");
    }
    let files = "SELECT pg_relation_filepath('u'), pg_relation_filepath('t')";
    assert_eq!(one.values(files), two.values(files), "they could be taken for each other");
    for clone in [&mut *one, &mut *two] {
        clone.values("SELECT pg_buffercache_evict_all()");
    }
    let look = "SELECT count(*), min(n), max(n) FROM u UNION ALL SELECT count(*), min(n), max(n) FROM t";
    assert_eq!(one.values(look), ["300000", "1", "300000", "300000", "1", "300000"]);
    assert_eq!(two.values(look), ["250000", "300001", "550000", "250000", "300001", "550000"]);
    assert_eq!(bystander.values("SELECT to_regclass('u') IS NULL, to_regclass('t') IS NULL"), ["t", "t"]);
}

#[test]
fn temporary_files_of_one_clone_are_no_other_clones() {
    let connections = cache::connections(Settings::default());
    let [mut one, mut two] = [connect(&connections, 1), connect(&connections, 2)];
    let listed = "SELECT name FROM pg_ls_tmpdir()";
    let sort = |clone: &mut Local, rows: &str| {
        clone.values("SET work_mem = '64kB'; BEGIN");
        clone.values(&format!("DECLARE c CURSOR FOR SELECT n FROM generate_series({rows}) n ORDER BY md5(n::text)"));
        clone.values("FETCH c");
    };
    sort(&mut one, "1, 50000");
    let files = one.values(listed);
    assert!(!files.is_empty(), "what does not fit is written to a file");
    assert_eq!(two.values(listed), [""; 0]);
    sort(&mut two, "50001, 100000");
    assert_eq!(two.values(listed), files, "they could be taken for each other");
    for (clone, smallest, largest) in [(&mut one, 1, 50_000), (&mut two, 50_001, 100_000)] {
        let rows = clone.values("MOVE BACKWARD ALL FROM c; FETCH ALL FROM c");
        let rows: HashSet<u32> = rows.iter().map(|row| row.parse().expect("a number")).collect();
        assert_eq!((rows.len(), rows.iter().min(), rows.iter().max()), (50_000, Some(&smallest), Some(&largest)));
    }
    one.values("COMMIT");
    assert_eq!((one.values(listed), two.values(listed)), (vec![], files), "only its own are gone");
}

/// What a connection has for itself.
fn private_bytes(databases: &Databases, id: u32) -> PrivateBytes {
    let connections = databases.memory().expect("figures");
    connections.into_iter().find(|(connection, _)| *connection == id).expect("it is listed").1
}

#[test]
fn private_memory_is_told_by_connection_and_grows_with_what_it_writes_and_no_other() {
    let (databases, connections) = cache::administered(Settings::default());
    let (mut writer, _idle) = (connect(&connections, 7), connect(&connections, 8));
    let told = |id: u32| private_bytes(&databases, id);
    let (before, idle_before) = (told(7), told(8));
    assert!(before.memory > 0);
    writer.values("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 2000)");
    let (after, idle_after) = (told(7), told(8));
    assert!(after.memory > before.memory + (1 << 20), "{before:?} {after:?}");
    assert!(after.files > before.files + (2 << 20), "the table has 2 MB: {before:?} {after:?}");
    assert_eq!(idle_after, idle_before);
    drop(writer);
    let listed: Vec<u32> = databases.memory().expect("figures").into_iter().map(|(id, _)| id).collect();
    assert_eq!(listed, [8], "a closed connection is not listed");
}

#[test]
fn a_clone_takes_no_more_memory_for_its_first_query_when_its_template_is_older() {
    let cache = cache::own();
    let databases = Arc::new(cache::open_at(cache.path(), Settings::default()));
    let connections = Arc::new(Connections::new(databases.clone()));
    let after_a_query = |id: u32| {
        let mut clone = connect(&connections, id);
        clone.values("SELECT 1");
        (clone, private_bytes(&databases, id).memory)
    };
    let (mut first, early) = after_a_query(1);
    // Statistics, for one, are told once a second, and a clone has its template's memory of when that was.
    let deadline = Instant::now() + PATIENCE;
    while first.values("SELECT now() - pg_postmaster_start_time() > interval '1.5 seconds'") != ["t"] {
        assert!(Instant::now() < deadline, "its clock stands still");
        thread::yield_now();
    }
    let (_second, late) = after_a_query(2);
    // To write statistics takes some seven pages.
    assert!(late < early + (16 << 10), "{early} bytes, and later {late}");
}
