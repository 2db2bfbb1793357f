//! Limits of memory and disk: what would exceed one is an error of the statement that needs it, and of nothing else.

mod support;

use std::{fs, path::PathBuf, sync::Arc, thread};

use pglite_port::{
    administration::{Administration, ClusterOrigin, ClusterSummary, NewCluster},
    connection::Connections,
    databases::{Databases, Settings},
    quota::{LEAST_MEMORY, Limits},
    session::Task,
    template::{Recipe, Script},
};
use postgres::{Client, NoTls, error::SqlState};
use support::{
    cache,
    local::{Connect, Local},
    process,
    program::Program,
    server::{Server, rows},
    session::errors,
};

const MIB: u64 = 1 << 20;
/// `disk_full`: a file cannot grow.
const NO_ROOM: [&str; 1] = ["53100"];
/// `out_of_memory`: a session's memory cannot grow.
const NO_MEMORY: [&str; 1] = ["53200"];

/// Rows of a kilobyte each.
fn insert(rows: u64) -> String {
    format!("INSERT INTO t SELECT repeat(md5(n::text), 32) FROM generate_series(1, {rows}) n")
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS t (filler text)";
/// A value of 400 MB.
const LARGE: &str = "SELECT length(repeat('x', 400000000))";

fn memory(bytes: u64) -> Limits {
    Limits { memory: Some(bytes), disk: None }
}

fn disk(bytes: u64) -> Limits {
    Limits { memory: None, disk: Some(bytes) }
}

fn isolated(connections: &Arc<Connections>, limits: Limits) -> Local {
    Local::connect(connections, Connect { limits, ..Connect::default() }).0
}

fn summary(databases: &Databases, name: &str) -> ClusterSummary {
    databases.clusters().into_iter().find(|cluster| cluster.name == name).expect("it is listed")
}

fn make(databases: &Databases, name: &str, origin: ClusterOrigin, limits: Limits) {
    let new = NewCluster { name: Some(name.to_owned()), origin, limits, ..NewCluster::default() };
    databases.create_cluster(new).expect("a cluster");
}

#[test]
fn rows_beyond_the_limit_of_memory_are_an_error_of_their_statement_and_there_is_room_again_when_some_are_gone() {
    let connections = cache::connections(Settings::default());
    let mut session = isolated(&connections, memory(64 * MIB));
    session.values(TABLE);
    for _ in 0..2 {
        session.values(&insert(20_000));
        assert_eq!(errors(&session.query(&insert(100_000))), NO_ROOM);
        assert_eq!(session.values("SELECT count(*) FROM t"), ["20000"]);
        session.values("TRUNCATE t");
    }
    session.values(&insert(20_000));
}

#[test]
fn a_value_beyond_the_limit_of_memory_is_an_error_of_its_statement_and_the_session_goes_on() {
    let connections = cache::connections(Settings::default());
    let mut session = isolated(&connections, memory(64 * MIB));
    for _ in 0..3 {
        assert_eq!(errors(&session.query(LARGE)), NO_MEMORY);
        assert_eq!(session.values("SELECT length(repeat('x', 10000000))"), ["10000000"]);
    }
    assert_eq!(isolated(&connections, Limits::default()).values(LARGE), ["400000000"]);
}

#[test]
fn one_that_is_full_does_not_stop_its_neighbours() {
    let connections = cache::connections(Settings::default());
    let mut full = isolated(&connections, memory(32 * MIB));
    let mut neighbour = isolated(&connections, memory(256 * MIB));
    full.values(TABLE);
    neighbour.values(TABLE);
    assert_eq!(errors(&full.query(&insert(100_000))), NO_ROOM);
    neighbour.values(&insert(100_000));
    assert_eq!(neighbour.values("SELECT count(*) FROM t"), ["100000"]);
}

#[test]
fn files_of_every_kind_count() {
    let connections = cache::connections(Settings::default());
    for limits in [memory(48 * MIB), disk(150 * MIB)] {
        for sql in [
            "CREATE UNLOGGED TABLE other AS SELECT repeat(md5(n::text), 32) FROM generate_series(1, 200000) n",
            "CREATE TEMPORARY TABLE other AS SELECT repeat(md5(n::text), 32) FROM generate_series(1, 200000) n",
            "SET work_mem = '64kB'; \
                SELECT count(*) FROM (SELECT repeat(md5(n::text), 32) f FROM generate_series(1, 200000) n ORDER BY 1) s",
            "COPY (SELECT repeat(md5(n::text), 32) FROM generate_series(1, 200000) n) TO '/tmp/file'",
            "SELECT lo_from_bytea(0, string_agg(md5((n * m)::text), '')::bytea) \
                FROM generate_series(1, 300) n, generate_series(1, 20000) m GROUP BY n",
        ] {
            let error = errors(&isolated(&connections, limits).query(sql));
            // The memory that a statement needs beside its files counts as well.
            assert!(error == NO_ROOM || (error == NO_MEMORY && limits.memory.is_some()), "{limits:?} {sql}: {error:?}");
        }
    }
}

#[test]
fn many_empty_files_are_no_way_around_the_limit() {
    let connections = cache::connections(Settings::default());
    let mut session = isolated(&connections, memory(LEAST_MEMORY));
    let files =
        "DO $$ BEGIN FOR n IN 1..500000 LOOP EXECUTE format('COPY (SELECT) TO ''/tmp/%s''', n); END LOOP; END $$";
    assert_eq!(errors(&session.query(files)), NO_ROOM);
    assert_eq!(session.values("SELECT 1"), ["1"]);
}

#[test]
fn the_sessions_of_a_cluster_share_its_limit_and_none_ends_when_it_is_reached() {
    let (databases, connections) = cache::administered(Settings::default());
    make(&databases, "small", ClusterOrigin::Empty, memory(96 * MIB));
    let mut sessions = [0, 1].map(|_| Local::connect_to(&connections, "small"));
    sessions[0].values(TABLE);
    let started = sessions[0].values("SELECT pg_postmaster_start_time()");
    sessions[0].values("BEGIN; INSERT INTO t VALUES ('kept')");
    thread::scope(|scope| {
        for session in &mut sessions[1..] {
            scope.spawn(|| assert_eq!(errors(&session.query(&insert(200_000))), NO_ROOM));
        }
    });
    // A full cluster commits, updates, makes checkpoints, and removes what is not needed any more.
    sessions[0].values("COMMIT");
    sessions[1].values("UPDATE t SET filler = 'kept as well' WHERE filler = 'kept'; CHECKPOINT");
    assert_eq!(errors(&sessions[1].query(&insert(200_000))), NO_ROOM);
    sessions[1].values("VACUUM t");
    assert_eq!(sessions[0].values("SELECT filler FROM t"), ["kept as well"]);
    assert_eq!(sessions[0].values("SELECT pg_postmaster_start_time()"), started, "it did not have to recover");
    let cluster = summary(&databases, "small");
    assert_eq!(cluster.limits, memory(96 * MIB));
    assert!(cluster.memory > MIB && cluster.disk > MIB, "{cluster:?}");
}

#[test]
fn the_disk_of_a_cluster_in_a_directory_is_limited() {
    let (databases, connections) = cache::administered(Settings::default());
    let directory = tempfile::tempdir().expect("a directory");
    let new = NewCluster {
        name: Some("durable".to_owned()),
        data_directory: Some(directory.path().join("data")),
        limits: disk(150 * MIB),
        ..NewCluster::default()
    };
    databases.create_cluster(new).expect("a cluster");
    let mut session = Local::connect_to(&connections, "durable");
    session.values(TABLE);
    assert_eq!(errors(&session.query(&insert(200_000))), NO_ROOM);
    session.values("VACUUM t");
    session.values("INSERT INTO t VALUES ('kept')");
    assert_eq!(session.values("SELECT filler FROM t"), ["kept"]);
    assert!(summary(&databases, "durable").disk < 170 * MIB);
}

#[test]
fn a_branch_has_the_limits_of_its_origin_and_what_the_origin_had_already_does_not_count() {
    let (databases, connections) = cache::administered(Settings::default());
    make(&databases, "origin", ClusterOrigin::Empty, memory(160 * MIB));
    let connect = |name: &str| Local::connect_to(&connections, name);
    connect("origin").values(&format!("{TABLE}; {}", insert(40_000)));
    make(&databases, "branch", ClusterOrigin::Branch("origin".to_owned()), Limits::default());
    make(&databases, "larger", ClusterOrigin::Branch("origin".to_owned()), memory(400 * MIB));
    // The branch shares 40 MB with its origin, whose they still are.
    connect("branch").values(&insert(40_000));
    assert_eq!(errors(&connect("branch").query(&insert(150_000))), NO_ROOM);
    assert_eq!(errors(&connect("origin").query(&insert(150_000))), NO_ROOM);
    connect("larger").values(&insert(100_000));
    databases.reset_cluster("branch").expect("it is reset");
    assert_eq!(errors(&connect("branch").query(&insert(150_000))), NO_ROOM);
}

#[test]
fn copies_of_a_template_have_its_limits_also_after_a_reset() {
    let (databases, connections) = cache::administered(Settings::default());
    let recipe = Recipe { scripts: vec![Script { name: "t".into(), sql: TABLE.into() }], ..Recipe::empty("tight") };
    databases.templates().prepare("tight", &recipe, memory(32 * MIB)).expect("a template");
    let connect = |template| Local::connect(&connections, Connect { template: Some(template), ..Connect::default() }).0;
    let mut session = connect("tight");
    assert_eq!(errors(&session.query(&insert(100_000))), NO_ROOM);
    session.reset();
    assert_eq!(errors(&session.query(&insert(100_000))), NO_ROOM);
    make(&databases, "cluster", ClusterOrigin::Template("tight".to_owned()), Limits::default());
    let parameters = &[("user", "postgres"), ("database", "tight")];
    let in_cluster = Connect { cluster: Some("cluster"), parameters, ..Connect::default() };
    assert_eq!(errors(&Local::connect(&connections, in_cluster).0.query(&insert(100_000))), NO_ROOM);
    // One that is frozen gets its own.
    let task = Task::Freeze { name: "quotas_frozen".to_owned(), key: None, limits: memory(40 * MIB) };
    session.perform(task).expect("it is frozen");
    assert_eq!(errors(&connect("quotas_frozen").query(&insert(100_000))), NO_ROOM);
}

#[test]
fn copies_of_templates_and_branches_have_the_limit_of_disk_of_what_they_are_made_of() {
    let (databases, connections) = cache::administered(Settings::default());
    let recipe = Recipe { scripts: vec![Script { name: "t".into(), sql: TABLE.into() }], ..Recipe::empty("slim") };
    databases.templates().prepare("slim", &recipe, disk(150 * MIB)).expect("a template");
    let mut alone = Local::connect(&connections, Connect { template: Some("slim"), ..Connect::default() }).0;
    assert_eq!(errors(&alone.query(&insert(200_000))), NO_ROOM);
    make(&databases, "slim copy", ClusterOrigin::Template("slim".to_owned()), Limits::default());
    make(&databases, "slim branch", ClusterOrigin::Branch("slim copy".to_owned()), Limits::default());
    make(&databases, "slim twig", ClusterOrigin::Branch("slim branch".to_owned()), Limits::default());
    make(&databases, "wide", ClusterOrigin::Branch("slim copy".to_owned()), disk(900 * MIB));
    let parameters = &[("user", "postgres"), ("database", "slim")];
    let connect =
        |cluster| Local::connect(&connections, Connect { cluster: Some(cluster), parameters, ..Connect::default() }).0;
    for name in ["slim copy", "slim branch", "slim twig"] {
        let mut session = connect(name);
        assert_eq!(errors(&session.query(&insert(200_000))), NO_ROOM, "{name}");
        session.values("VACUUM t");
        session.values("INSERT INTO t VALUES ('kept')");
        assert_eq!(session.values("SELECT filler FROM t"), ["kept"], "{name}");
        assert_eq!(summary(&databases, name).limits.disk, Some(150 * MIB), "{name}");
    }
    connect("wide").values(&insert(200_000));
}

#[test]
fn a_long_statement_does_not_keep_all_of_its_wal() {
    let (databases, connections) = cache::administered(Settings::default());
    // 150 MB of rows, and as much WAL.
    let mut session = isolated(&connections, memory(260 * MIB));
    session.values(TABLE);
    session.values(&insert(150_000));
    let new = NewCluster {
        name: Some("shared".to_owned()),
        settings: vec![("max_wal_size".to_owned(), "32MB".to_owned())],
        limits: memory(300 * MIB),
        ..NewCluster::default()
    };
    databases.create_cluster(new).expect("a cluster");
    let mut session = Local::connect_to(&connections, "shared");
    session.values(TABLE);
    session.values(&insert(150_000));
    assert_eq!(session.values("SELECT sum(size) < 80 * 1024 * 1024 FROM pg_ls_waldir()"), ["t"]);
}

#[test]
fn limits_that_are_too_low_or_no_sizes_are_refused_in_words() {
    let text = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--cluster-memory-limit", "1MB"]);
    assert!(text.contains("a memory limit of 1MB is too low: a cluster needs 16MB"), "{text}");
    let text = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--memory-limit", "1MB"]);
    assert!(text.contains("a memory limit of 1MB is too low: the program needs 64MB"), "{text}");
    let text = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--memory-limit", "lots"]);
    assert!(text.contains("use a whole number and one of the units B, kB, MB, GB, TB, as in 512MB"), "{text}");
}

#[test]
fn wal_of_tables_that_are_gone_does_not_use_the_room_up() {
    let (databases, connections) = cache::administered(Settings::default());
    make(&databases, "busy", ClusterOrigin::Empty, memory(96 * MIB));
    for mut session in [Local::connect_to(&connections, "busy"), isolated(&connections, memory(64 * MIB))] {
        session.values(TABLE);
        for _ in 0..8 {
            session.values(&insert(12_000));
            session.values("TRUNCATE t");
        }
    }
}

#[test]
fn wal_that_a_slot_keeps_is_bounded() {
    let connections = cache::connections(Settings::default());
    let mut session = isolated(&connections, memory(128 * MIB));
    session.values("SELECT pg_create_physical_replication_slot('keeps', true)");
    session.values("ALTER SYSTEM SET wal_keep_size = '1TB'");
    session.values("SELECT pg_reload_conf()");
    let messages =
        "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))) FROM generate_series(1, 400)";
    let refused = errors(&session.query(messages));
    assert!(refused.is_empty() || refused == NO_ROOM, "{refused:?}");
    assert_eq!(session.values("SELECT sum(size) < 170 * 1024 * 1024 FROM pg_ls_waldir()"), ["t"]);
}

#[test]
fn a_transaction_that_has_failed_with_much_wal_is_rolled_back() {
    let connections = cache::connections(Settings::default());
    let mut session = isolated(&connections, Limits::default());
    session.values(TABLE);
    session.values("BEGIN; INSERT INTO t VALUES ('lost')");
    let failing = "SELECT pg_logical_emit_message(true, 'x', repeat('x', 40000000)), 1 / (random() * 0)::int";
    assert_eq!(errors(&session.query(failing)), ["22012"]);
    session.values("ROLLBACK");
    assert_eq!(session.values("SELECT count(*) FROM t"), ["0"]);
}

/// Inserts until it must not any more; the error.
fn fill(client: &mut Client) -> SqlState {
    client.batch_execute(TABLE).expect("a table");
    loop {
        if let Err(error) = client.batch_execute(&insert(10_000)) {
            return error.code().unwrap_or_else(|| panic!("{error}")).clone();
        }
    }
}

/// Clients that would fill more memory than the program may have get errors, small ones go on, and the program stays
/// below `limit` bytes.
fn withstands(server: &Server, limit: u64) {
    let mut small = server.connect();
    small.batch_execute("CREATE TABLE small (n int)").expect("a table");
    let config = server.config();
    let connect = || config.connect(NoTls).expect("a session");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = connect();
                let error = fill(&mut client);
                assert!([SqlState::DISK_FULL, SqlState::OUT_OF_MEMORY].contains(&error), "{error:?}");
                let error = client.batch_execute("SELECT length(repeat('x', 900000000))").expect_err("too much");
                assert_eq!(error.code(), Some(&SqlState::OUT_OF_MEMORY));
                assert!(rows(&mut client, "SELECT count(*) FROM t")[0].parse::<u64>().expect("a number") > 1000);
                small_work(&mut connect());
            });
        }
    });
    small_work(&mut small);
    assert!(process::most_memory(server.program.id()) < limit, "{}", process::most_memory(server.program.id()) / MIB);
}

fn small_work(client: &mut Client) {
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS small (n int); INSERT INTO small VALUES (1)")
        .expect("there is room");
}

#[test]
fn the_program_stays_below_its_limit_whatever_its_clients_do() {
    let server = Server::with(&["--mode", "isolated", "--memory-limit", "700MB", "--cluster-memory-limit", "400MB"]);
    // The files that are mapped, such as the compiled code, are no memory that the program uses up.
    withstands(&server, 900 * MIB);
}

#[test]
fn at_its_limit_the_program_refuses_clients_and_says_what_to_do() {
    let server = Server::with(&["--mode", "isolated", "--memory-limit", "96MB"]);
    let mut clients = Vec::new();
    let refused = loop {
        match server.config().connect(NoTls) {
            Ok(client) => clients.push(client),
            Err(refused) => break refused,
        }
        // Clusters as small as this one may use all that there is.
        clients.iter_mut().for_each(|client| drop(client.batch_execute(&format!("{TABLE}; {}", insert(4_000)))));
    };
    let report = refused.as_db_error().expect("a report");
    assert_eq!(report.code(), &SqlState::TOO_MANY_CONNECTIONS);
    assert!(report.message().ends_with("of 96MB") && report.message().starts_with("out of memory"), "{report:?}");
    assert_eq!(report.hint(), Some("End sessions, drop clusters, or raise the limit (--memory-limit)."));
    let log = server.stop();
    assert!(log.iter().any(|line| line.contains("new sessions and clusters are refused: out of memory")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("PANIC")), "sessions end without a checkpoint: {log:?}");
}

/// A memory group of its own for a program; `None` where this user may make none.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, limit: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let (root, path, file) = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            match controllers {
                "memory" => Some(("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")),
                "" => Some(("/sys/fs/cgroup", path, "memory.max")),
                _ => None,
            }
        })?;
        let group = PathBuf::from(format!("{root}{path}/pglite-port-test-{name}-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        let group = Self(group);
        fs::write(group.0.join(file), limit.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn in_a_memory_group_smaller_than_its_load_the_program_is_not_killed() {
    let Some(group) = Group::new("isolated", 1200 * MIB) else {
        eprintln!("no memory group can be made here; the limit alone is tested");
        return;
    };
    let processes = group.0.join("cgroup.procs");
    let server = Server::within(&processes, &["--mode", "isolated"]);
    let limit = fs::read_to_string(&processes).expect("its processes");
    assert!(limit.contains(&server.program.id().to_string()), "it is in the group");
    withstands(&server, 1200 * MIB);
    // The group can be removed when it has no processes.
    server.stop();
}

#[test]
fn in_a_memory_group_smaller_than_its_load_a_shared_cluster_keeps_what_was_committed() {
    let Some(group) = Group::new("shared", 800 * MIB) else {
        eprintln!("no memory group can be made here; the limit alone is tested");
        return;
    };
    let server = Server::within(&group.0.join("cgroup.procs"), &["--mode", "shared"]);
    let mut other = server.connect();
    other.batch_execute("CREATE TABLE small AS SELECT 1 AS n").expect("a table");
    let started = rows(&mut other, "SELECT pg_postmaster_start_time()");
    let config = server.config();
    let committed: Vec<u64> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|number| {
                let mut client = config.connect(NoTls).expect("a session");
                scope.spawn(move || {
                    client
                        .batch_execute(&format!("CREATE SCHEMA s{number}; SET search_path = s{number}; {TABLE}"))
                        .expect("room");
                    for committed in 0.. {
                        if let Err(error) = client.batch_execute(&insert(10_000)) {
                            let full = [Some(&SqlState::DISK_FULL), Some(&SqlState::OUT_OF_MEMORY)];
                            assert!(full.contains(&error.code()), "{error:?}");
                            return committed * 10_000;
                        }
                    }
                    unreachable!("something ends it")
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });
    assert!(committed.iter().sum::<u64>() > 100_000, "{committed:?}");
    for (number, rows_committed) in committed.iter().enumerate() {
        assert_eq!(rows(&mut other, &format!("SELECT count(*) FROM s{number}.t")), [rows_committed.to_string()]);
    }
    // WAL is never refused, so that it may have used up what is kept for TRUNCATE until there is a checkpoint.
    server.wait_for_connections(1);
    other.batch_execute("CHECKPOINT").expect("a checkpoint needs no room");
    other.batch_execute("TRUNCATE s0.t, s1.t; CHECKPOINT; UPDATE small SET n = 2").expect("there is room again");
    assert_eq!(rows(&mut other, "SELECT n FROM small"), ["2"]);
    assert_eq!(rows(&mut other, "SELECT pg_postmaster_start_time()"), started, "it has not crashed");
    drop(other);
    server.stop();
}
