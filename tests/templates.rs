//! Templates as the program's user meets them: prepared from SQL files, listed, removed, damaged, built by two at
//! once.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::channel},
    thread,
};

use pglite_port::{
    connection::Connections,
    databases::{Settings, Start},
    quota::Limits,
    session::{PendingTask, Task},
    template::{Recipe, Script, Shelf},
};
use postgres::NoTls;
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    program::Program,
    server::{Server, rows},
    session::errors,
    texts, wire,
};
use tempfile::TempDir;

/// The built program on a cache of its own.
struct CommandLine {
    cache: TempDir,
    files: TempDir,
}

impl CommandLine {
    fn new() -> Self {
        Self { cache: cache::own(), files: tempfile::tempdir().expect("a directory") }
    }

    fn spawn(&self, arguments: &[&str]) -> Program {
        let cache = self.cache.path().to_str().expect("a path");
        Program::spawn(&[&["--cache-dir", cache], arguments].concat())
    }

    /// Exit status, stdout and the last line of stderr.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let (status, stdout, stderr) = self.spawn(arguments).output();
        (status, stdout, stderr.lines().last().unwrap_or_default().to_owned())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// What preparing this SQL is refused with, without the directory of the file.
    fn refusal(&self, sql: impl AsRef<[u8]>) -> String {
        let path = self.file("a.sql", sql);
        let (status, stdout, stderr) = self.run(&["prepare", "refused", "--sql", path.to_str().expect("a path")]);
        assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
        let stderr = stderr.strip_prefix("pglite-port: ").expect("the program's own line");
        stderr.replace(&format!("{}/", self.files.path().display()), "")
    }
}

fn values(connections: &Arc<Connections>, database: &str, user: &str, sql: &str) -> Vec<String> {
    let parameters = &[("user", user), ("database", database)];
    Local::connect(connections, Connect { parameters, ..Connect::default() }).0.values(sql)
}

fn connections(cache: &Path) -> Arc<Connections> {
    Arc::new(Connections::new(Arc::new(cache::open_at(cache, Settings::default()))))
}

#[test]
fn a_template_is_prepared_from_sql_files_listed_and_removed() {
    let command_line = CommandLine::new();
    let schema = command_line.file(
        "schema.sql",
        "\u{feff}CREATE TABLE t (a int, owner name DEFAULT current_user);
        CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM t); END; $$;",
    );
    let seeds = command_line.file("seeds.sql", "INSERT INTO t (a) VALUES (1), (2)");
    let vacuum = command_line.file("vacuum.sql", "VACUUM t;");
    let mut arguments = vec!["prepare", "shop", "--database", "shop db", "--user", "alice"];
    for path in [&schema, &seeds, &vacuum] {
        arguments.extend(["--sql", path.to_str().expect("a path")]);
    }
    assert_eq!(command_line.run(&arguments).0, Some(0));
    assert_eq!(command_line.run(&["prepare", "empty"]).0, Some(0));

    let (status, stdout, _) = command_line.run(&["templates"]);
    assert_eq!(status, Some(0));
    let lines: Vec<Vec<&str>> =
        stdout.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(lines[0], ["NAME", "DATABASE", "SIZE", "MADE", "SOURCE"]);
    assert_eq!((lines[1][0], lines[1][1], lines[1][4]), ("empty", "empty", "recipe"));
    assert_eq!((lines[2][0], lines[2][1], lines[2][4]), ("shop", "shop db", "recipe"));

    let connections = connections(command_line.cache.path());
    let expected = ["2", "shop db", "alice"];
    // By the template's name and by the database's.
    for database in ["shop", "shop db"] {
        let seen = values(&connections, database, "alice", "SELECT f(), current_database(), min(owner) FROM t");
        assert_eq!(seen, expected);
    }
    // Prepared again while the program runs: the next connection gets the new one.
    assert_eq!(command_line.run(&["prepare", "shop"]).0, Some(0));
    assert_eq!(
        values(&connections, "shop", "postgres", "SELECT to_regclass('t') IS NULL, current_database()"),
        ["t", "shop"]
    );

    assert_eq!(command_line.run(&["templates", "--remove", "shop"]).0, Some(0));
    let (status, _, stderr) = command_line.run(&["templates", "--remove", "shop"]);
    assert_eq!((status, stderr.contains("there is no template \"shop\"")), (Some(1), true), "{stderr}");
    let local = Local::start(
        &connections,
        Connect { parameters: &[("user", "postgres"), ("database", "shop")], ..Connect::default() },
    );
    let report = local.report();
    assert_eq!((report.code, report.message.as_str()), ("3D000", "database \"shop\" does not exist"));
}

#[test]
fn what_a_database_and_a_role_were_given_as_settings_their_sessions_have() {
    let command_line = CommandLine::new();
    let settings = "CREATE ROLE alice LOGIN; \
        ALTER DATABASE app SET search_path TO tenant, public; ALTER DATABASE app SET work_mem TO '7MB'; \
        ALTER ROLE alice SET work_mem TO '8MB'; ALTER ROLE alice IN DATABASE app SET DateStyle TO 'German'; \
        ALTER ROLE ALL SET statement_timeout TO '1h'";
    let file = command_line.file("settings.sql", settings);
    let arguments = ["prepare", "app", "--database", "app", "--sql", file.to_str().expect("a path")];
    assert_eq!(command_line.run(&arguments).0, Some(0));

    let connections = connections(command_line.cache.path());
    let shown = "SELECT current_setting('search_path'), current_setting('work_mem'), current_setting('DateStyle'), \
        current_setting('statement_timeout')";
    assert_eq!(values(&connections, "app", "postgres", shown), ["tenant, public", "7MB", "ISO, MDY", "1h"]);
    assert_eq!(values(&connections, "app", "alice", shown), ["tenant, public", "8MB", "German, DMY", "1h"]);
    assert_eq!(values(&connections, "postgres", "postgres", shown), ["\"$user\", public", "4MB", "ISO, MDY", "0"]);

    let parameters = &[("user", "alice"), ("database", "app"), ("work_mem", "9MB")];
    let (mut clone, startup) = Local::connect(&connections, Connect { parameters, ..Connect::default() });
    assert!(wire::parameters(&startup).contains(&("DateStyle".to_owned(), "German, DMY".to_owned())), "{startup:?}");
    clone.values("SET search_path TO elsewhere; SET work_mem TO '1MB'; RESET ALL");
    assert_eq!(clone.values(shown), ["tenant, public", "9MB", "German, DMY", "1h"], "they are the session's defaults");
    let source =
        "SELECT source FROM pg_settings WHERE name IN ('search_path', 'statement_timeout', 'DateStyle') ORDER BY name";
    assert_eq!(clone.values(source), ["database user", "database", "global"]);
}

/// Has a connection carry out a task.
fn carry_out(local: &Local, task: Task) {
    let (sender, answer) = channel();
    local.control.assign(PendingTask::new(task, move |answer| sender.send(answer).expect("we wait")));
    answer.recv_timeout(PATIENCE).expect("an answer").expect("it is done");
}

#[test]
fn settings_of_a_database_and_a_role_hold_after_a_reset_and_in_what_was_frozen_however_a_cluster_starts() {
    const SHOWN: &str =
        "SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('DateStyle')";
    let cache = cache::own();
    for start in [Start::Clone, Start::Boot] {
        let databases = cache::open_at(cache.path(), Settings { start, ..Settings::default() });
        let sql = "CREATE ROLE alice LOGIN; ALTER ROLE alice SET work_mem TO '8MB'; ALTER DATABASE app SET search_path TO tenant; \
            ALTER DATABASE app SET work_mem TO '7MB'";
        let script = Script { name: "a.sql".into(), sql: sql.into() };
        let recipe = Recipe { scripts: vec![script], ..Recipe::empty("app") };
        databases.templates().prepare("app", &recipe, Limits::default()).expect("it is prepared");
        let connections = Arc::new(Connections::new(Arc::new(databases)));
        let connect = |template: Option<&str>, user: &str, database: &str| {
            let parameters = &[("user", user), ("database", database)];
            Local::connect(&connections, Connect { template, parameters, ..Connect::default() }).0
        };

        let mut alice = connect(None, "alice", "app");
        let expected = texts(["8MB", "tenant", "ISO, MDY"]);
        assert_eq!(alice.values(SHOWN), expected, "{start:?}");
        for _ in 0..2 {
            alice.values(
                "SET work_mem TO '1MB'; SET search_path TO elsewhere; ALTER ROLE alice SET DateStyle TO 'German'",
            );
            carry_out(&alice, Task::Reset);
            assert_eq!(alice.values(SHOWN), expected, "{start:?}");
            assert_eq!(alice.values(&format!("SET work_mem TO '1MB'; RESET ALL; {SHOWN}")), expected, "{start:?}");
        }

        // What is frozen has had settings before, or none.
        for (template, database) in [("of app", "app"), ("of postgres", "postgres")] {
            let mut owner = connect(None, "postgres", database);
            owner.values("CREATE ROLE bob LOGIN");
            owner.values("ALTER ROLE bob SET DateStyle TO 'German'; ALTER ROLE bob SET work_mem TO '6MB'");
            owner.values(&format!("ALTER DATABASE {database} SET search_path TO frozen"));
            carry_out(&owner, Task::Freeze { name: template.to_owned(), key: None, limits: Limits::default() });
            let mut bob = connect(Some(template), "bob", database);
            let expected = texts(["6MB", "frozen", "German, DMY"]);
            assert_eq!(bob.values(SHOWN), expected, "{template} {start:?}");
            carry_out(&bob, Task::Reset);
            assert_eq!(bob.values(SHOWN), expected, "{template} after a reset {start:?}");
        }
    }
}

#[test]
fn a_database_that_does_not_let_itself_be_warmed_up_is_a_template_all_the_same() {
    let command_line = CommandLine::new();
    let file = command_line.file("read_only.sql", "ALTER SYSTEM SET default_transaction_read_only = on");
    let (status, _, stderr) = command_line.run(&["prepare", "read_only", "--sql", file.to_str().expect("a path")]);
    assert_eq!(status, Some(0), "{stderr}");
    let connections = connections(command_line.cache.path());
    let connect = Connect { template: Some("read_only"), ..Connect::default() };
    assert_eq!(errors(&Local::connect(&connections, connect).0.query("CREATE TABLE t (a int)")), ["25006"]);
}

#[test]
fn what_is_wrong_with_an_sql_file_is_said_in_one_line_with_its_place() {
    let command_line = CommandLine::new();
    let cases: [(&[u8], &str); 8] = [
        (b"SELECT 1;\nSELECT '\xc3\xa4', x", "a.sql:2:13: column \"x\" does not exist (SQLSTATE 42703)"),
        (b"SELECT 1;\n\xe4", "a.sql:2: this is not UTF-8; convert the file"),
        (
            b"CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (1)",
            "a.sql: statement 2: duplicate key value violates unique constraint \"t_pkey\" (SQLSTATE 23505); \
             detail: Key (a)=(1) already exists.",
        ),
        (
            b"SELECT 1; VACUUM",
            "a.sql: statement 2: VACUUM cannot run inside a transaction block (SQLSTATE 25001); \
             a file runs as one transaction: put this statement into a file of its own (another --sql)",
        ),
        (b"BEGIN; SELECT 1", "a.sql: the file ends in an open transaction; end it with COMMIT"),
        (
            b"\\connect x",
            "a.sql:1:1: syntax error at or near \"\\\" (SQLSTATE 42601); commands of psql are not SQL and cannot be used here",
        ),
        (
            b"COPY pg_class FROM STDIN",
            "a.sql: COPY from stdin failed: COPY FROM STDIN has no client here to send its rows; use INSERT (SQLSTATE 57014)",
        ),
        (
            b"SELECT nothing()",
            "a.sql:1:8: function nothing() does not exist (SQLSTATE 42883); \
             hint: No function matches the given name and argument types. You might need to add explicit type casts.",
        ),
    ];
    for (sql, expected) in cases {
        assert_eq!(command_line.refusal(sql), expected);
    }
    let list = Shelf::open(Some(command_line.cache.path())).expect("a shelf").list().expect("a list");
    assert!(list.is_empty(), "what failed leaves nothing behind: {list:?}");
    let (status, _, stderr) = command_line.run(&["prepare", "x", "--sql", "/nowhere.sql"]);
    assert_eq!(status, Some(1));
    assert!(stderr.starts_with("pglite-port: /nowhere.sql cannot be read"), "{stderr}");
}

/// The directory of the only template in `cache`.
fn template_directory(cache: &Path) -> PathBuf {
    let entries =
        fs::read_dir(cache.join("templates")).expect("a directory").map(|entry| entry.expect("an entry").path());
    let directories: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert_eq!(directories.len(), 1, "{directories:?}");
    directories[0].clone()
}

#[test]
fn a_template_that_is_damaged_is_built_again_and_the_log_says_so() {
    let command_line = CommandLine::new();
    let sql = command_line.file("a.sql", "CREATE TABLE t AS SELECT 42 AS a");
    let prepare = ["prepare", "postgres", "--sql", sql.to_str().expect("a path")];
    assert_eq!(command_line.run(&prepare).0, Some(0));
    let truncate =
        |path: &Path| fs::File::options().write(true).open(path).and_then(|file| file.set_len(100)).expect("cut");
    let damages: [(&str, &dyn Fn(&Path)); 6] = [
        ("memory", &truncate),
        ("state", &truncate),
        ("state", &|path| fs::remove_file(path).expect("removed")),
        ("files/index", &|path| fs::write(path, b"something else").expect("written")),
        ("files/data", &truncate),
        ("memory", &|path| fs::remove_file(path).expect("removed")),
    ];
    for (file, damage) in damages {
        damage(&template_directory(command_line.cache.path()).join(file));
        let mut program = command_line.spawn(&["--mode", "isolated", "serve", "--listen", "127.0.0.1:0"]);
        assert!(program.first_line().starts_with("postgresql://"));
        program.signal(rustix::process::Signal::TERM);
        let log = program.wait_for_stderr();
        assert!(
            log.iter().any(|line| line.contains("building the template \"postgres\" again, because")),
            "{file}: {log:?}"
        );
        let connections = connections(command_line.cache.path());
        assert_eq!(values(&connections, "postgres", "postgres", "SELECT a FROM t"), ["42"], "the recipe is kept");
    }
}

#[test]
fn a_template_of_another_program_is_built_again_from_its_recipe_or_its_own_files() {
    let cache = cache::own();
    let databases = cache::open_at(cache.path(), Settings::default());
    let script = Script { name: "a.sql".into(), sql: "CREATE TABLE t AS SELECT 42 AS a".into() };
    let recipe = Recipe { scripts: vec![script], ..Recipe::empty("postgres") };
    databases.templates().prepare("postgres", &recipe, Limits::default()).expect("it is prepared");
    let directory = template_directory(cache.path());
    let read_label = || fs::read(directory.join("label")).expect("a label");
    let own = read_label();
    // Behind a magic number of eight bytes and a checksum; the program comes last.
    let mut foreign = own.clone();
    *foreign.last_mut().expect("a program") ^= 1;
    let checksum = crc32fast::hash(&foreign[12..]);
    foreign[8..12].copy_from_slice(&checksum.to_le_bytes());
    // Without its recipe it is like one that was frozen.
    for has_recipe in [true, false] {
        fs::write(directory.join("label"), &foreign).expect("written");
        if !has_recipe {
            fs::remove_file(directory.join("recipe")).expect("removed");
        }
        let connections = connections(cache.path());
        assert_eq!(values(&connections, "postgres", "postgres", "SELECT a FROM t"), ["42"]);
        assert!(read_label() == own, "it is this program's now");
        assert_eq!(directory.join("recipe").exists(), has_recipe);
    }
    fs::remove_dir_all(directory.join("files")).expect("removed");
    // The default database is there whatever happens; what was in it is lost only now.
    let mut program = Program::spawn(&[
        "--cache-dir",
        cache.path().to_str().expect("a path"),
        "--mode",
        "isolated",
        "serve",
        "--listen",
        "127.0.0.1:0",
    ]);
    let (status, _, stderr) = program.output();
    assert_eq!(status, Some(1));
    assert!(stderr.contains("the template \"postgres\" cannot be used; prepare or freeze it again"), "{stderr}");
}

#[test]
fn two_programs_that_need_a_template_at_once_build_it_once() {
    let command_line = CommandLine::new();
    let serve = ["--mode", "isolated", "serve", "--listen", "127.0.0.1:0"];
    let mut programs = [command_line.spawn(&serve), command_line.spawn(&serve)];
    for program in &mut programs {
        assert!(program.first_line().starts_with("postgresql://"));
        program.signal(rustix::process::Signal::TERM);
    }
    let logs = programs.map(|mut program| program.wait_for_stderr());
    let built = logs.iter().flatten().filter(|line| line.contains("preparing the template postgres")).count();
    assert_eq!(built, 1, "{logs:?}");
}

#[test]
fn a_program_that_is_killed_half_way_leaves_nothing_that_the_next_one_minds() {
    let command_line = CommandLine::new();
    let sql = command_line.file("slow.sql", "CREATE TABLE t (); SELECT pg_sleep(3600)");
    let templates = command_line.cache.path().join("templates");
    let mut program = command_line.spawn(&["prepare", "postgres", "--sql", sql.to_str().expect("a path")]);
    // The lock is the first thing that it leaves.
    while !program.stderr_line().contains("preparing the template postgres") {}
    program.signal(rustix::process::Signal::KILL);
    program.wait();
    // As if it had been killed while it wrote.
    let lock = fs::read_dir(&templates).expect("a directory").next().expect("a lock").expect("an entry").file_name();
    let entry = lock.to_str().expect("a name").strip_suffix(".lock").expect("a lock").to_owned();
    fs::create_dir(templates.join(format!(".new-{entry}"))).expect("a directory");
    fs::write(templates.join(format!(".new-{entry}")).join("memory"), "half").expect("a file");
    let connections = connections(command_line.cache.path());
    assert_eq!(values(&connections, "postgres", "postgres", "SELECT to_regclass('t') IS NULL"), ["t"]);
    let mut names: Vec<String> = fs::read_dir(&templates)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, [entry.clone(), format!("{entry}.lock")]);
}

#[test]
fn connections_that_come_at_once_wait_for_one_template_and_all_get_it() {
    let cache = cache::own();
    let directory = cache.path().to_str().expect("a path");
    let mut server = Server::with(&["--mode", "isolated", "--cache-dir", directory]);
    fs::remove_dir_all(template_directory(cache.path())).expect("removed");
    thread::scope(|scope| {
        for _ in 0..4 {
            let config = server.config();
            scope.spawn(move || {
                let mut client = config.connect(NoTls).expect("a session");
                assert_eq!(rows(&mut client, "SELECT 1"), ["1"]);
            });
        }
    });
    server.program.signal(rustix::process::Signal::TERM);
    let log = server.program.wait_for_stderr();
    let built = log.iter().filter(|line| line.contains("preparing the template postgres")).count();
    assert_eq!(built, 2, "once when the program started, and once for them: {log:?}");
}

#[test]
fn a_startup_that_asks_for_a_role_that_is_not_there_is_refused_as_postgresql_does() {
    let connections = cache::connections(Settings::default());
    let parameters = &[("user", "nobody"), ("database", "postgres")];
    let local = Local::start(&connections, Connect { parameters, ..Connect::default() });
    local.report();
    assert_eq!(errors(&local.unread()), ["28000"]);
}
