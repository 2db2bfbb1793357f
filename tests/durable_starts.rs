//! How a cluster in a directory begins: as a copy of a template, or with a recovery whose progress is told; and the
//! time that a stop may take.

mod support;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{CWD, Mode, mkfifoat},
    process::Signal,
};
use support::{
    cache,
    program::Program,
    server::{Server, rows},
    wire,
};
use tempfile::TempDir;

/// What a template has in it, also in a table that recovery would empty.
const TEMPLATE: &str = "create table orders as select i from generate_series(1, 1000) i; \
    create unlogged table carts as select i from generate_series(1, 10) i";

/// Runs the program to its end.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let (status, _, stderr) = Program::spawn(arguments).output();
    (status, stderr)
}

/// Prepares the template of that name, with a database and a role of other names.
fn prepare(outer: &Path, name: &str) {
    let file = outer.join("template.sql");
    fs::write(&file, TEMPLATE).expect("a file");
    let sql = file.to_str().expect("text");
    let (status, stderr) = run(&["prepare", name, "--sql", sql, "--database", "shop", "--user", "keeper"]);
    assert_eq!(status, Some(0), "{stderr}");
}

/// A server whose cluster is a copy of a template, in a directory or in memory.
fn copy(template: &str, data: Option<&Path>) -> Server {
    let data: Vec<&str> = data.into_iter().flat_map(|path| ["--data", path.to_str().expect("text")]).collect();
    Server::with(&[&["--template", template], &data[..]].concat())
}

/// The rows of a query by the role and in the database of the template.
fn in_shop(server: &Server, sql: &str) -> Vec<String> {
    let mut config = server.config();
    rows(&mut config.user("keeper").dbname("shop").connect(postgres::NoTls).expect("a session"), sql)
}

#[test]
fn a_new_cluster_is_a_copy_of_a_template_with_an_identifier_of_its_own() {
    let outer = TempDir::new().expect("a directory");
    prepare(outer.path(), "durable_starts_copied");
    let identifier = "select system_identifier from pg_control_system()";
    let of_copy = |directory: &str| {
        let server = copy("durable_starts_copied", Some(&outer.path().join(directory)));
        assert_eq!(in_shop(&server, "select (select count(*) from orders), (select count(*) from carts)"), ["1000|10"]);
        assert_eq!(
            in_shop(&server, "select pg_get_userbyid(datdba) from pg_database where datname = 'shop'"),
            ["keeper"]
        );
        assert_eq!(in_shop(&server, "show max_wal_size"), ["1GB"]);
        let identifier = in_shop(&server, identifier).remove(0);
        in_shop(&server, "delete from orders where i = 1");
        assert!(!recovers(&server.stop()), "a copy was shut down");
        identifier
    };
    assert_ne!(of_copy("one"), of_copy("other"));
    // It is another cluster than the template.
    let server = copy("durable_starts_copied", Some(&outer.path().join("third")));
    assert_eq!(in_shop(&server, "select count(*) from orders"), ["1000"]);
}

#[test]
fn a_cluster_that_is_there_is_opened_as_it_is_and_the_log_says_so() {
    let outer = TempDir::new().expect("a directory");
    let path = outer.path().join("data");
    let server = Server::in_directory(&path);
    rows(&mut server.connect(), "create table kept ()");
    server.stop();
    // It need not be there any more.
    let server = copy("durable_starts_not_there", Some(&path));
    assert_eq!(rows(&mut server.connect(), "select count(*) from kept"), ["0"]);
    let told = server.stop();
    let sentence = "the template \"durable_starts_not_there\" is not used";
    assert!(told.iter().any(|line| line.contains(sentence)), "{told:?}");
}

#[test]
fn a_cluster_in_memory_may_be_a_copy_of_a_template_too() {
    let outer = TempDir::new().expect("a directory");
    prepare(outer.path(), "durable_starts_in_memory");
    let server = copy("durable_starts_in_memory", None);
    assert_eq!(in_shop(&server, "delete from orders returning 1").len(), 1000);
    assert_eq!(in_shop(&copy("durable_starts_in_memory", None), "select count(*) from orders"), ["1000"]);
}

#[test]
fn a_template_that_is_not_there_is_refused_with_the_command_that_makes_it() {
    let outer = TempDir::new().expect("a directory");
    let data = outer.path().join("data");
    let data = data.to_str().expect("text");
    let sentence = "template \"durable_starts_unknown\" does not exist. Prepare it: pglite-port prepare";
    let serve = ["serve", "--listen", "127.0.0.1:0", "--template", "durable_starts_unknown"];
    for further in [&[][..], &["--data", data]] {
        let (status, stderr) = run(&[&serve, further].concat());
        assert_eq!(status, Some(1), "{stderr}");
        assert!(stderr.contains(sentence), "{stderr}");
    }
    // The directory is as good as before.
    Server::with(&["--data", data]).stop();
    let (status, stderr) = run(&[&serve[..], &["--mode", "isolated"]].concat());
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("--template is for mode shared"), "{stderr}");
}

#[test]
fn a_recovery_that_takes_long_tells_how_far_it_has_come() {
    let outer = TempDir::new().expect("a directory");
    let data = outer.path().join("data");
    let server = Server::in_directory(&data);
    let mut client = server.connect();
    assert_eq!(rows(&mut client, "show log_startup_progress_interval"), ["1s"]);
    rows(&mut client, "create table t (a int primary key, b text)");
    rows(&mut client, "insert into t select i, repeat('x', 50) from generate_series(1, 100000) i");
    server.kill();
    let data = data.to_str().expect("text");
    let told = Server::with(&["--data", data, "--set", "log_startup_progress_interval=1"]).stop();
    let place = |line: &String| line.split("redo in progress").nth(1).map(str::to_owned);
    let places: Vec<_> = told.iter().filter_map(place).collect();
    assert!(places.len() > 5, "{told:?}");
}

#[test]
fn a_terminal_shows_that_a_cluster_recovers_and_a_pipe_only_gets_the_log() {
    let outer = TempDir::new().expect("a directory");
    let data = outer.path().join("data");
    Server::in_directory(&data).kill();
    let words = [env!("CARGO_BIN_EXE_pglite-port"), "port", "--data", data.to_str().expect("text")];
    let shown = "recovering the cluster in the data directory";
    let cache = cache::shared();
    let cache = ["--cache-dir", cache.to_str().expect("text")];
    // It starts, and ends at the end of its stdin. Frames go elsewhere.
    let command = format!("{} < /dev/null > /dev/null", [&words[..], &cache].concat().join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]).stdin(Stdio::null());
    // Without a name, a terminal is taken for one that shows no progress.
    terminal.env("TERM", "xterm");
    let terminal = terminal.output().expect("script is installed");
    assert_eq!(terminal.status.code(), Some(0));
    Server::in_directory(&data).kill();
    let stderr = Server::in_directory(&data).stop().join("\n");
    let terminal = String::from_utf8_lossy(&terminal.stdout);
    assert!(terminal.contains(shown), "{terminal}");
    // A line of the log erases what is shown, and is not appended to it.
    let line = terminal.lines().find(|line| line.contains("database system was interrupted")).expect("a line");
    assert!(!line.rsplit("\r\u{1b}[K").next().expect("a part").contains(shown), "{line:?}");
    assert!(!stderr.contains(shown) && stderr.contains("opening the data directory"), "{stderr}");
}

#[test]
fn a_stop_without_time_loses_nothing_and_says_that_the_next_start_recovers() {
    let outer = TempDir::new().expect("a directory");
    let data = outer.path().join("data");
    let arguments = ["--data", data.to_str().expect("text"), "--shutdown-timeout", "0"];
    for round in 1..=3 {
        let server = Server::with(&arguments);
        let mut client = server.connect();
        rows(&mut client, "create table if not exists t (a int)");
        rows(&mut client, "insert into t select generate_series(1, 10000)");
        assert_eq!(rows(&mut client, "select count(*) from t"), [(round * 10000).to_string()]);
        let told = server.stop();
        assert!(told.iter().any(|line| line.contains("recovers at its next start")), "{told:?}");
        assert_eq!(recovers(&told), round > 1, "{told:?}");
    }
}

#[test]
fn a_time_for_the_stop_that_is_no_number_of_seconds_is_refused() {
    // The last one is a number of seconds that the system's clock does not reach.
    for seconds in ["soon", "-1", "NaN", "1e30", "1e19"] {
        let (status, stderr) = run(&["serve", &format!("--shutdown-timeout={seconds}")]);
        assert_eq!(status, Some(1), "{stderr}");
        assert!(stderr.contains("--shutdown-timeout"), "{stderr}");
    }
}

/// The program with these arguments in the middle of its start, which waits for the rest of a file.
fn in_its_start(outer: &Path, arguments: &[&str]) -> (Program, File) {
    let pipe = outer.join("icu.dat");
    if !pipe.exists() {
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("a named pipe");
    }
    let program = Program::spawn(&[arguments, &["--icu-data", pipe.to_str().expect("text")]].concat());
    // Returns when the program reads it.
    (program, File::options().write(true).open(pipe).expect("the program reads it"))
}

#[test]
fn a_signal_ends_a_start() {
    let outer = TempDir::new().expect("a directory");
    let socket = outer.path().join("socket");
    let listen = format!("unix:{}", socket.display());
    for arguments in [&["serve", "--listen", &listen][..], &["port"]] {
        let (mut program, _unread) = in_its_start(outer.path(), arguments);
        let _stdin = program.take_stdin();
        assert_eq!(socket.exists(), arguments[0] == "serve");
        program.signal(Signal::TERM);
        let (status, stdout, stderr) = program.output();
        assert_eq!((status, stdout.as_str()), (Some(0), ""), "{stderr}");
        assert!(stderr.contains("the program ends before it has started"), "{stderr}");
        assert!(!socket.exists());
    }
}

#[test]
fn clients_of_a_server_that_starts_are_refused_as_by_postgresql() {
    let outer = TempDir::new().expect("a directory");
    let socket = outer.path().join("socket");
    let (data, listen) = (outer.path().join("data"), format!("unix:{}", socket.display()));
    let (mut program, unread) =
        in_its_start(outer.path(), &["serve", "--listen", &listen, "--data", data.to_str().expect("text")]);
    let mut client = UnixStream::connect(&socket).expect("it listens");
    client.write_all(&wire::startup(&[("user", "postgres")])).expect("it reads");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("an end");
    assert_eq!(wire::error(answer), ["FATAL", "57P03", "the database system is starting up"]);
    assert!(!data.exists(), "it is still in its start");
    drop(unread);
    program.output();
}

#[test]
fn the_end_of_the_parent_ends_a_start_unless_stdin_has_unread_bytes() {
    let outer = TempDir::new().expect("a directory");
    let (mut program, unread) = in_its_start(outer.path(), &["port"]);
    drop(program.take_stdin());
    assert_eq!(program.output().0, Some(0));
    drop(unread);

    let (mut program, pipe) = in_its_start(outer.path(), &["port"]);
    let mut stdin = program.take_stdin();
    stdin.write_all(&[0; 9]).expect("it runs");
    drop((stdin, pipe));
    let (status, _, stderr) = program.output();
    // The pipe was no ICU data.
    assert!(status == Some(1) && stderr.contains("is not data of ICU"), "{status:?} {stderr}");
}

#[test]
fn an_address_that_is_in_use_is_found_before_a_cluster_is_opened() {
    let outer = TempDir::new().expect("a directory");
    let data = outer.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (status, stderr) = run(&["serve", "--listen", &address, "--data", data.to_str().expect("text")]);
    assert!(status == Some(1) && stderr.contains("cannot listen on"), "{status:?} {stderr}");
    assert!(!data.exists());
}

#[test]
fn a_directory_for_a_standby_or_for_a_recovery_from_an_archive_is_refused() {
    let outer = TempDir::new().expect("a directory");
    let data = outer.path().join("data");
    Server::in_directory(&data).stop();
    for name in ["standby.signal", "recovery.signal"] {
        let file = data.join(name);
        fs::write(&file, "").expect("a file");
        let (status, stderr) = run(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().expect("text")]);
        assert_eq!(status, Some(1), "{stderr}");
        assert!(stderr.contains(&format!("has the file {name}: there is no archive")), "{stderr}");
        fs::remove_file(file).expect("it is there");
    }
    assert!(!recovers(&Server::in_directory(&data).stop()));
}

/// Whether a server that said this has recovered its cluster.
fn recovers(lines: &[String]) -> bool {
    lines.iter().any(|line| line.contains("not properly shut down"))
}
