//! SQL files that are run in a session.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{
    PATIENCE,
    program::Program,
    server::{Server, rows},
};

/// A file with that content.
struct Script {
    directory: tempfile::TempDir,
}

impl Script {
    fn new(content: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("file.sql"), content).expect("a file");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("file.sql")
    }

    fn text(&self) -> String {
        self.path().to_str().expect("text").to_owned()
    }
}

/// Runs a file of which a statement fails, and returns what was reported.
fn fail(arguments: &[&str]) -> String {
    Program::fail_with(3, arguments)
}

/// Two tables, and between them an error in the second line of a statement.
const WITH_ERROR: &str = "create table a ();\n\nselect 1,\n  missing;\ncreate table b ();\n";

const TABLES: &str = "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1";

#[test]
fn the_first_error_stops_a_file_and_is_reported_with_its_place() {
    let (server, script) = (Server::shared(), Script::new(WITH_ERROR));
    let said = fail(&["run", &script.text(), &server.url]);
    assert!(said.contains("file.sql:4: ERROR: column \"missing\" does not exist (42703)"), "{said}");
    assert_eq!(rows(&mut server.connect(), TABLES), ["a"]);
}

#[test]
fn after_an_error_the_others_run_if_that_is_asked_for() {
    let (server, script) = (Server::shared(), Script::new(WITH_ERROR));
    let said = fail(&["run", "--on-error", "continue", &script.text(), &server.url]);
    assert!(said.contains("file.sql:4: ERROR") && said.contains("a statement of"), "{said}");
    assert_eq!(rows(&mut server.connect(), TABLES), ["a", "b"]);
}

#[test]
fn one_transaction_has_all_or_nothing() {
    let (server, script) = (Server::shared(), Script::new(WITH_ERROR));
    fail(&["run", "--single-transaction", &script.text(), &server.url]);
    assert_eq!(rows(&mut server.connect(), TABLES), [""; 0]);
    fs::write(script.path(), WITH_ERROR.replace("missing", "2")).unwrap();
    Program::succeed(&["run", "-1", &script.text(), &server.url]);
    assert_eq!(rows(&mut server.connect(), TABLES), ["a", "b"]);
}

#[test]
fn rows_behind_a_copy_are_copied_and_wrong_ones_are_an_error_with_their_context() {
    let content = "create table t (a int, b text);\ncopy t from stdin;\n1\tone\n2\t\\N\n\\.\nselect 1;\n\
        COPY t (b) FROM stdin WITH (format csv);\n\"two\nlines\"\n\\.\n";
    let (server, script) = (Server::shared(), Script::new(content));
    Program::succeed(&["run", &script.text(), &server.url]);
    let expected = ["1|one", "2|NULL", "NULL|two\nlines"];
    assert_eq!(rows(&mut server.connect(), "select * from t"), expected);

    fs::write(script.path(), "select 1;\ncopy t from stdin;\n1\tone\nx\ttwo\n\\.\ncreate table after ();\n").unwrap();
    let said = fail(&["run", &script.text(), &server.url, "--on-error=continue"]);
    assert!(said.contains("file.sql:2: ERROR: invalid input syntax for type integer: \"x\""), "{said}");
    assert!(said.contains("CONTEXT: COPY t, line 2, column a: \"x\""), "{said}");
    assert_eq!(rows(&mut server.connect(), TABLES), ["after", "t"]);
    // What follows a COPY that is refused has its own answers, and its own rows.
    let content =
        "copy missing from stdin;\n1\tone\n\\.\ncreate table later ();\ncopy t from stdin;\n7\tx\n\\.\nselect 1/0;";
    fs::write(script.path(), content).unwrap();
    let said = fail(&["run", &script.text(), &server.url, "--on-error=continue"]);
    assert!(said.contains("file.sql:1: ERROR: relation \"missing\" does not exist"), "{said}");
    assert!(said.contains("file.sql:8: ERROR: division by zero") && said.contains("2 statements of"), "{said}");
    assert_eq!(rows(&mut server.connect(), TABLES), ["after", "later", "t"]);
    assert_eq!(rows(&mut server.connect(), "select count(*) from t where a = 7"), ["1"]);
}

#[test]
fn a_server_that_has_much_to_say_about_rows_takes_them_all() {
    // 1,000 notices of a kilobyte each fill the buffers between server and client many times, as do the rows.
    let mut content = "create table t (a text); create function f() returns trigger language plpgsql as \
        $$begin raise notice '%', repeat('x', 1000); return new; end$$; \
        create trigger t before insert on t for each row execute function f();\ncopy t from stdin;\n"
        .to_owned();
    for _ in 0..1000 {
        content += &"y".repeat(1000);
        content += "\n";
    }
    let (server, script) = (Server::shared(), Script::new(&(content + "\\.\n")));
    let (status, _, stderr) = Program::spawn(&["run", &script.text(), &server.url]).output();
    assert_eq!((status, stderr.matches(": NOTICE: xxx").count()), (Some(0), 1000));
    assert_eq!(rows(&mut server.connect(), "select count(*) from t"), ["1000"]);
}

#[test]
fn commands_of_psql_that_pg_dump_does_not_write_are_refused() {
    let (server, script) = (Server::shared(), Script::new(""));
    for (content, said) in [
        ("select 1;\n\\connect other\n", "file.sql:2: \\connect would go on in another database"),
        ("\\set a 1\n", "file.sql:1: \\set is a command of psql"),
        ("\\restrict a\n\\unrestrict b\n", "file.sql:2: \\unrestrict has another key"),
        ("\\restrict a\n\\! ls\n", "file.sql:2: \\! is a command of psql"),
    ] {
        fs::write(script.path(), content).unwrap();
        let found = fail(&["run", &script.text(), &server.url]);
        assert!(found.contains(said), "{content:?}: {found}");
    }
}

#[test]
fn a_file_comes_from_stdin_as_well_and_notices_are_shown_unless_they_are_not_wanted() {
    let server = Server::shared();
    for (more, is_shown) in [(&[][..], true), (&["--quiet"], false)] {
        let mut program = Program::spawn(&[&["run", "-", &server.url], more].concat());
        let mut stdin = program.take_stdin();
        stdin.write_all(b"do $$begin raise notice 'seen'; end$$").unwrap();
        drop(stdin);
        let (status, _, stderr) = program.output();
        assert_eq!((status, stderr.contains("-:1: NOTICE: seen")), (Some(0), is_shown), "{stderr}");
    }
}

#[test]
fn rows_are_printed_if_that_is_asked_for() {
    let (server, script) = (
        Server::shared(),
        Script::new(
            "select 1, null, 'a';\nselect from pg_class where false;\ncopy (values (1, 2)) to stdout;\nshow port",
        ),
    );
    let (status, stdout, stderr) = Program::spawn(&["run", "--rows", &script.text(), &server.url]).output();
    assert_eq!((status, stdout.as_str()), (Some(0), "1||a\n1\t2\n5432\n"), "{stderr}");
    assert_eq!(Program::spawn(&["run", &script.text(), &server.url]).output().1, "");
}

#[test]
fn a_file_is_run_in_the_cluster_of_a_directory() {
    let script = Script::new("create table t as select 7 as a;");
    let data = script.directory.path().join("data");
    let text = data.to_str().expect("text");
    Program::succeed(&["run", &script.text(), "--data", text]);
    let server = Server::in_directory(&data);
    assert_eq!(rows(&mut server.connect(), "select a from t"), ["7"]);
    let said = Program::fail(&["run", &script.text(), "--data", text]);
    assert!(said.contains(&server.program.id().to_string()), "{said}");
    let said = Program::fail(&["run", &script.text(), "--data", text, "--dbname", "postgres://u:secret@h/d"]);
    assert!(said.contains("leave out one of them") && !said.contains("secret"), "{said}");
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_named() {
    let (server, script) = (Server::shared(), Script::new(""));
    assert!(Program::fail(&["run", "/nowhere.sql", &server.url]).contains("/nowhere.sql cannot be read"));
    fs::write(script.path(), b"select 1;\nselect '\xff';\n").unwrap();
    let said = fail(&["run", &script.text(), &server.url]);
    assert!(said.contains("file.sql:2: the statement is not UTF-8"), "{said}");
}

#[test]
fn a_signal_ends_a_file_and_what_it_has_not_committed_is_gone() {
    let (server, script) = (Server::shared(), Script::new("create table a (); select pg_sleep(1000);"));
    let mut program = Program::spawn(&["run", "--single-transaction", &script.text(), &server.url]);
    let (mut client, deadline) = (server.connect(), Instant::now() + PATIENCE);
    let sleeps = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
    while rows(&mut client, sleeps) != ["1"] {
        assert!(Instant::now() < deadline, "the file does not run");
        // The server sends no event when a statement begins.
        thread::sleep(Duration::from_millis(2));
    }
    program.signal(Signal::INT);
    assert_eq!(program.wait().0.code(), Some(1));
    assert_eq!(rows(&mut client, TABLES), [""; 0]);
}

#[test]
fn a_signal_has_the_server_cancel_a_statement_that_it_would_commit() {
    let (server, script) = (Server::shared(), Script::new("create table a as select 1 from pg_sleep(1000);"));
    let mut program = Program::spawn(&["run", &script.text(), &server.url]);
    let (mut client, deadline) = (server.connect(), Instant::now() + PATIENCE);
    let sleeps = "select count(*) from pg_stat_activity where query like 'create table a as select 1%'";
    for expected in ["1", "0"] {
        while rows(&mut client, sleeps) != [expected] {
            assert!(Instant::now() < deadline, "not {expected} statements run");
            // The server sends no event when a statement begins or ends.
            thread::sleep(Duration::from_millis(2));
        }
        if expected == "1" {
            program.signal(Signal::INT);
            assert_eq!(program.wait().0.code(), Some(1));
        }
    }
    assert_eq!(rows(&mut client, TABLES), [""; 0]);
}

#[test]
fn a_signal_ends_it_while_nobody_reads_its_rows_or_writes_its_file() {
    // The pipe takes a small part of the rows.
    let (server, script) = (
        Server::shared(),
        Script::new("select repeat('x', 1000) from generate_series(1, 1000); select pg_sleep(1000);"),
    );
    let mut program = Program::spawn(&["run", "--rows", &script.text(), &server.url]);
    let mut stdout = program.take_stdout();
    stdout.read_exact(&mut [0]).expect("the first row");
    program.signal(Signal::TERM);
    assert_eq!(program.wait().0.code(), Some(1));

    let data = script.directory.path().join("data");
    let data = data.to_str().expect("text");
    let mut program = Program::spawn(&["run", "--rows", "-", "--data", data]);
    let (mut stdin, mut stdout) = (program.take_stdin(), program.take_stdout());
    stdin.write_all(b"create table a (); select 7;\n").unwrap();
    stdout.read_exact(&mut [0; 2]).expect("the row");
    program.signal(Signal::TERM);
    assert_eq!(program.wait().0.code(), Some(1));
    drop(stdin);
    // It was shut down.
    assert_eq!(rows(&mut Server::in_directory(&script.directory.path().join("data")).connect(), TABLES), ["a"]);
}

#[test]
fn what_is_no_message_ends_it_before_it_fills_the_memory() {
    for said in [&b"R\x7f\xff\xff\xff"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("postgres://postgres:secret@{}/postgres", listener.local_addr().unwrap());
        let answer = move || {
            let (mut session, _) = listener.accept().expect("a session");
            let _ = session.read(&mut [0; 1024]);
            let _ = session.write_all(said);
            // Until the client leaves.
            let _ = session.read(&mut [0; 1024]);
        };
        let server = thread::spawn(answer);
        let script = Script::new("select 1");
        let message = Program::fail(&["run", &script.text(), &url]);
        assert!(message.contains("does not speak PostgreSQL's protocol"), "{message}");
        server.join().expect("a server");
    }
}

#[test]
fn a_file_that_was_cut_off_is_an_error_with_its_place_and_no_transaction() {
    let server = Server::shared();
    // The rows that are missing are an error of their statement, after which there is nothing more to run.
    for (content, said, status) in [
        ("create table a (a int);\ncopy a from stdin;\n1\n", "file.sql:2: ", 3),
        ("\\restrict key\ncreate table b ();\n", "file.sql:2: the file was cut off: the \\unrestrict", 1),
    ] {
        let script = Script::new(content);
        let found = fail(&["run", "-1", &script.text(), &server.url]);
        assert!(found.contains(said) && found.contains("cut off"), "{found}");
        let found = Program::fail_with(status, &["run", "--on-error=continue", &script.text(), &server.url]);
        assert!(found.contains(said) && found.contains("cut off"), "{found}");
    }
    // Without one transaction, what was complete is there.
    let mut client = server.connect();
    assert_eq!(
        (rows(&mut client, TABLES), rows(&mut client, "select * from a")),
        (vec!["a".to_owned(), "b".to_owned()], vec![])
    );
}

#[test]
fn a_file_is_run_at_a_url_without_pglites_files() {
    let (server, script) = (Server::shared(), Script::new("create table a ();"));
    Program::succeed(&["--pglite-dir", "/nowhere", "run", &script.text(), &server.url]);
    assert_eq!(rows(&mut server.connect(), TABLES), ["a"]);
}
