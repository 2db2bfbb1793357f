//! Dumps by `pg_dump` as a guest, and what becomes of them when they are run.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use flate2::read::GzDecoder;
use native::Native;
use postgres::{Client, NoTls};
use rustix::process::Signal;
use support::{
    PATIENCE, cache,
    place::Place,
    port::Port,
    process,
    program::Program,
    server::{Server, answer, rows},
};

/// A schema with every kind of object that `pg_dump` knows and PGlite has.
const EVERYTHING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dump/everything.sql");

/// Without it, each dump has a key of its own.
const KEY: &str = "--restrict-key=key";

/// A plain dump on stdout.
fn dumped(arguments: &[&str]) -> String {
    let (status, stdout, stderr) = Program::spawn(&[&["dump", KEY], arguments].concat()).output();
    assert_eq!(status, Some(0), "{arguments:?}: {stderr}");
    stdout
}

/// The part of a dump behind the comment that begins an object or its rows, up to the next one.
fn part<'a>(dump: &'a str, name: &str) -> &'a str {
    let begin = dump.find(name).unwrap_or_else(|| panic!("no {name}"));
    let rest = &dump[begin..];
    &rest[..rest[1..].find("\n--\n").map_or(rest.len(), |end| end + 1)]
}

/// What is no text in a dump of [`EVERYTHING`], row by row.
const ROWS: [&str; 5] = [
    "select id, name, email::text, feels, tags operator(shop.->) 'n', upper_name, name_length, md5(raw) \
     from shop.customer order by id",
    "select * from shop.kinds",
    "select loid, pageno, md5(data) from pg_largeobject order by 1, 2",
    "select tableoid::regclass, * from shop.event order by at",
    "select nextval('shop.order_number'), shop.classify(1), shop.quoted(), shop.add_tax(100), shop.say('so')",
];

/// The roles of [`EVERYTHING`], which are in no dump of a database.
fn create_roles(client: &mut Client) {
    rows(client, "create role dump_owner; create role dump_reader");
}

/// Asserts that two dumps are the same.
fn assert_same(one: &str, other: &str) {
    let differing = one.lines().zip(other.lines()).find(|(one, other)| one != other);
    assert_eq!((differing, one.len()), (None, other.len()));
}

/// The block of a dump in the custom format, uncompressed, that begins with the same bytes as `content`. It consists of
/// pieces behind their lengths, of which the last is 0; a number is a sign and four bytes (`WriteInt` in
/// `src/bin/pg_dump/pg_backup_archiver.c`).
fn block(dump: &[u8], content: &[u8]) -> Vec<u8> {
    let begin = &content[..content.len().min(7)];
    // The bytes occur elsewhere as well, but not behind a small number.
    let is_begin = |window: &[u8]| window.ends_with(begin) && window[0] == 0 && window[3..5] == [0, 0];
    let mut at = dump.windows(5 + begin.len()).position(is_begin).expect("the block");
    let mut block = Vec::new();
    loop {
        let len = u32::from_le_bytes(dump[at + 1..at + 5].try_into().expect("four bytes")) as usize;
        if len == 0 {
            return block;
        }
        block.extend(&dump[at + 5..at + 5 + len]);
        at += 5 + len;
    }
}

/// A table with rows, and rows that need care in every format.
fn with_rows(server: &Server) -> Client {
    let mut client = server.connect();
    rows(
        &mut client,
        "create table t as select a, repeat('x', a % 100) || E'\\t\\n\\\\.' as b from generate_series(1, 2000) a",
    );
    rows(&mut client, "select lo_from_bytea(77, 'large')");
    client
}

#[test]
fn every_kind_of_object_is_in_a_dump_and_the_same_in_that_of_where_it_was_run() {
    let (origin, copy, place) = (Server::shared(), Server::shared(), Place::new());
    Program::succeed(&["run", EVERYTHING, &origin.url]);
    let first = dumped(&[&origin.url]);
    for kind in [
        "ACCESS METHOD",
        "ACL",
        "AGGREGATE",
        "BLOBS",
        "CAST",
        "CHECK CONSTRAINT",
        "COLLATION",
        "COMMENT",
        "CONSTRAINT",
        "CONVERSION",
        "DEFAULT",
        "DEFAULT ACL",
        "DOMAIN",
        "EVENT TRIGGER",
        "EXTENSION",
        "FK CONSTRAINT",
        "FOREIGN DATA WRAPPER",
        "FOREIGN TABLE",
        "FUNCTION",
        "INDEX",
        "INDEX ATTACH",
        "MATERIALIZED VIEW",
        "MATERIALIZED VIEW DATA",
        "OPERATOR",
        "OPERATOR CLASS",
        "OPERATOR FAMILY",
        "POLICY",
        "PROCEDURAL LANGUAGE",
        "PROCEDURE",
        "PUBLICATION",
        "PUBLICATION TABLE",
        "PUBLICATION TABLES IN SCHEMA",
        "ROW SECURITY",
        "RULE",
        "SCHEMA",
        "SEQUENCE",
        "SEQUENCE OWNED BY",
        "SEQUENCE SET",
        "SERVER",
        "SHELL TYPE",
        "STATISTICS",
        "SUBSCRIPTION",
        "TABLE",
        "TABLE ATTACH",
        "TABLE DATA",
        "TEXT SEARCH CONFIGURATION",
        "TEXT SEARCH DICTIONARY",
        "TEXT SEARCH PARSER",
        "TEXT SEARCH TEMPLATE",
        "TRANSFORM",
        "TRIGGER",
        "TYPE",
        "USER MAPPING",
        "VIEW",
    ] {
        assert!(first.contains(&format!("; Type: {kind}; ")), "no {kind}");
    }
    assert!(first.contains("CREATE TYPE shop.unfinished;"));
    // No library is there for labels, so that nothing has one.
    let refused = answer(&mut origin.connect(), "security label on schema shop is 'x'").expect_err("no provider");
    let refused = refused.as_db_error().expect("an SQL error").message();
    assert!(refused.contains("no security label providers have been loaded"), "{refused}");
    create_roles(&mut copy.connect());
    fs::write(place.path("dump.sql"), &first).unwrap();
    Program::succeed(&["run", &place.text("dump.sql"), &copy.url]);
    assert_same(&first, &dumped(&[&copy.url]));
    for query in ROWS {
        assert_eq!(rows(&mut origin.connect(), query), rows(&mut copy.connect(), query), "{query}");
    }
}

#[test]
fn the_formats_of_pg_dump_have_the_same_rows_in_a_file_and_on_stdout() {
    let (server, place) = (Server::shared(), Place::new());
    let _client = with_rows(&server);
    let plain = dumped(&[&server.url]);
    let copied = part(&plain, "COPY public.t ");
    let expected = copied.split_once('\n').expect("rows").1.split_once("\n\\.\n").expect("an end").0.to_owned() + "\n";
    assert_eq!(expected.lines().count(), 2000);

    Program::succeed(&["dump", &server.url, KEY, "-f", &place.text("plain.sql")]);
    assert_eq!(fs::read_to_string(place.path("plain.sql")).unwrap(), plain);

    Program::succeed(&["dump", "-Ft", &server.url, "--file", &place.text("dump.tar")]);
    let mut tar = tar::Archive::new(File::open(place.path("dump.tar")).unwrap());
    let entries = tar.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let (name, mut content) = (entry.path().expect("a path").display().to_string(), String::new());
        let read = entry.read_to_string(&mut content);
        (name, read.map(|_| content).unwrap_or_default())
    });
    let entries: BTreeMap<String, String> = entries.collect();
    assert!(entries["restore.sql"].contains("CREATE TABLE public.t"));
    assert!(entries.values().any(|content| content.strip_suffix("\\.\n\n\n") == Some(&expected)), "no rows");

    Program::succeed(&["dump", &format!("--file={}", place.text("directory")), "--format=directory", &server.url]);
    let files = fs::read_dir(place.path("directory")).unwrap().map(|entry| entry.unwrap().path());
    let (mut rows_found, mut large_objects) = (0, 0);
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "gz")) {
        let mut content = String::new();
        GzDecoder::new(File::open(&file).unwrap()).read_to_string(&mut content).expect("text");
        rows_found += usize::from(content.strip_suffix("\\.\n\n\n") == Some(&expected));
        large_objects += usize::from(content == "large");
    }
    assert_eq!((rows_found, large_objects), (1, 1));

    let of_custom = ["dump", "-Fc", "--compress=none", &server.url];
    Program::succeed(&[&of_custom[..], &["-f", &place.text("dump.custom")]].concat());
    let custom = fs::read(place.path("dump.custom")).unwrap();
    let mut program = Program::spawn(&of_custom);
    let mut streamed = Vec::new();
    program.take_stdout().read_to_end(&mut streamed).unwrap();
    assert!(program.wait().0.success());
    // Magic, version, sizes of numbers and offsets, format.
    assert_eq!((&custom[..5], &custom[..11]), (&b"PGDMP"[..], &streamed[..11]));
    for dump in [&custom, &streamed] {
        assert!(block(dump, expected.as_bytes()).starts_with(expected.as_bytes()), "other rows");
        assert_eq!(block(dump, b"large"), b"large");
    }
    assert_eq!(place.names(), ["directory", "dump.custom", "dump.tar", "plain.sql"]);
}

#[test]
fn pg_restore_makes_the_same_database_of_a_dump_in_each_of_its_formats() {
    let (origin, place) = (Server::shared(), Place::new());
    Program::succeed(&["run", EVERYTHING, &origin.url]);
    let expected = dumped(&[&origin.url]);
    // Before the first of the queries has counted a sequence further.
    for format in ["custom", "tar", "directory"] {
        Program::succeed(&["dump", &origin.url, "--format", format, "-f", &place.text(format)]);
    }
    let found = ROWS.map(|query| rows(&mut origin.connect(), query));
    for (format, options) in [("custom", &[][..]), ("tar", &["--single-transaction"]), ("directory", &["--jobs=2"])] {
        let copy = Server::shared();
        create_roles(&mut copy.connect());
        let mut restore = Command::new(native::programs_18().join("pg_restore"));
        let restored = restore.args(["--exit-on-error", "--dbname", &copy.url]).args(options).arg(place.path(format));
        let restored = restored.output().expect("pg_restore");
        assert!(restored.status.success(), "{format}: {}", String::from_utf8_lossy(&restored.stderr));
        assert_same(&expected, &dumped(&[&copy.url]));
        for (query, found) in ROWS.iter().zip(&found) {
            assert_eq!(&rows(&mut copy.connect(), query), found, "{format}: {query}");
        }
    }
}

#[test]
fn every_kind_of_object_comes_to_a_native_postgresql_and_back() {
    let (origin, copy, place) = (Server::shared(), Server::shared(), Place::new());
    let native = Native::start_18(&["max_logical_replication_workers=0"]);
    // It is built without libxml2 and ICU.
    let mut everything = fs::read_to_string(EVERYTHING).expect("the schema");
    for (with, without) in
        [("(a xml, ", "(a text, "), ("(PROVIDER = icu, LOCALE = 'und-u-kn-true', DETERMINISTIC = false)", "FROM plain")]
    {
        assert!(everything.contains(with), "{with}");
        everything = everything.replace(with, without);
    }
    let (schema, file) = (place.text("everything.sql"), place.text("dump.sql"));
    fs::write(&schema, everything).expect("a file");
    Program::succeed(&["run", &schema, &origin.url]);
    create_roles(&mut native.config().connect(NoTls).expect("a session"));
    create_roles(&mut copy.connect());
    let mut dumps = Vec::new();
    for (from, to) in [(&origin.url, &native.url), (&native.url, &copy.url)] {
        let dump = dumped(&[from]);
        fs::write(&file, &dump).expect("a file");
        let mut psql = Command::new(native::programs_18().join("psql"));
        let ran = psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", &file, to]).output().expect("psql");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        dumps.push(without_versions(&dump));
    }
    dumps.push(without_versions(&dumped(&[&copy.url])));
    assert_same(&dumps[0], &dumps[1]);
    assert_same(&dumps[0], &dumps[2]);
    let mut sessions = [origin.connect(), native.config().connect(NoTls).expect("a session"), copy.connect()];
    for query in ROWS {
        let [here, there, back] = sessions.each_mut().map(|session| rows(session, query));
        assert!(here == there && here == back, "{query}: {here:?}, {there:?}, {back:?}");
    }
}

/// A dump without the line about the version of the server.
fn without_versions(dump: &str) -> String {
    let lines = dump.lines().filter(|line| !line.starts_with("-- Dumped from database version"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Rows of a table, each of [`ROW`] bytes, which take little space in the server.
fn with_long_rows(server: &Server, table: &str, count: u32) {
    let sql = format!("create table {table} as select repeat('x', {ROW}) from generate_series(1, {count})");
    rows(&mut server.connect(), &sql);
}

const ROW: usize = 100_000;

/// The maximum of the memory of a process that dumps so many long rows to a pipe, when it has written most of them.
fn most_memory(arguments: &[&str], count: u32) -> u64 {
    let mut program = Program::spawn(&[&["dump"], arguments].concat());
    let mut dump = program.take_stdout();
    // What is left does not fit into the pipe, so that it runs.
    let most = u64::from(count - 10) * ROW as u64;
    assert_eq!(io::copy(&mut (&mut dump).take(most), &mut io::sink()).expect("rows"), most, "{arguments:?}");
    let memory = process::most_memory(program.id());
    io::copy(&mut dump, &mut io::sink()).expect("the rest");
    assert!(program.wait().0.success(), "{arguments:?}");
    memory
}

#[test]
fn a_dump_takes_the_same_memory_however_many_rows_there_are() {
    let server = Server::shared();
    for (table, count) in [("small", 20), ("large", 2000)] {
        with_long_rows(&server, table, count);
    }
    for format in ["--format=plain", "--format=custom", "--format=tar"] {
        let of = |table, count| {
            let compression: &[&str] = if format.ends_with("custom") { &["--compress=none"] } else { &[] };
            most_memory(&[&[&server.url, format, "-t", table], compression].concat(), count)
        };
        let (small, large) = (of("small", 20), of("large", 2000));
        // The rows of one table are 2 MB and those of the other one 200 MB.
        assert!(large < small + (16 << 20), "{format}: {small} and {large}");
    }
}

#[test]
fn a_terminal_shows_how_much_is_dumped_and_a_pipe_gets_nothing() {
    let (server, place) = (Server::shared(), Place::new());
    with_long_rows(&server, "t", 1000);
    let (file, cache) = (place.text("dump.sql"), cache::shared());
    let words = [env!("CARGO_BIN_EXE_pglite-port"), "--cache-dir", cache.to_str().expect("text"), "dump"];
    let command = [&words[..], &[&server.url, "-f", &file]].concat().join(" ");
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]).stdin(Stdio::null());
    // Without a name, a terminal is taken for one that shows no progress.
    let terminal = terminal.env("TERM", "xterm").output().expect("script is installed");
    let shown = String::from_utf8_lossy(&terminal.stdout);
    assert_eq!(terminal.status.code(), Some(0), "{shown}");
    assert!(shown.contains("dumping") && shown.contains(" MB/s "), "{shown:?}");
    assert!(shown.ends_with("\r\u{1b}[2K"), "nothing is left of it: {shown:?}");
    assert!(fs::metadata(&file).expect("a dump").len() > 1000 * ROW as u64);
    let told = Program::succeed(&["dump", &server.url, "-f", &file]);
    assert!(!told.contains("dumping"), "{told}");
}

#[test]
fn a_dump_that_fails_leaves_what_was_there_and_ends_with_the_status_and_the_words_of_pg_dump() {
    let (server, place) = (Server::shared(), Place::new());
    let _client = with_rows(&server);
    fs::write(place.path("dump"), "before").unwrap();
    let nothing = ["dump", &server.url, "-f", &place.text("dump"), "-t", "nothing"];
    assert!(Program::fail(&nothing).contains("no matching tables were found"));
    let wrong = format!("{}/missing", server.url.rsplit_once('/').expect("a path").0);
    assert!(
        Program::fail(&["dump", &wrong, "-f", &place.text("dump")]).contains("database \"missing\" does not exist")
    );
    assert!(Program::fail(&["dump", &server.url, "--no-such-option"]).contains("no-such-option"));
    let directory = place.text("directory");
    assert!(Program::fail(&["dump", "-Fd", &server.url, "-f", &directory, "-t", "x"]).contains("no matching tables"));
    assert_eq!(place.names(), ["dump"]);
    assert_eq!(fs::read_to_string(place.path("dump")).unwrap(), "before");
}

#[test]
fn a_dump_that_is_stopped_leaves_nothing_that_looks_whole() {
    let (server, place) = (Server::shared(), Place::new());
    let mut client = with_rows(&server);
    for format in ["-Fc", "-Fd"] {
        let mut transaction = client.transaction().expect("a transaction");
        transaction.batch_execute("lock table t in access exclusive mode").expect("a lock");
        let mut program = Program::spawn(&["dump", format, &server.url, "-f", &place.text("dump")]);
        wait_for_locks(&server, "1");
        program.signal(Signal::TERM);
        let (status, _) = program.wait();
        assert_eq!(status.code(), Some(1), "{format}");
        assert_eq!(place.names(), [""; 0], "{format}");
        // As in PostgreSQL, the session notices that its client is gone when it has the lock.
        transaction.rollback().expect("an end");
        wait_for_locks(&server, "0");
    }
}

#[test]
fn a_dump_that_nobody_reads_is_stopped_as_well() {
    let (server, place) = (Server::shared(), Place::new());
    let mut client = with_rows(&server);
    rows(&mut client, "insert into t select a, repeat('y', 1000) from generate_series(1, 1000) a");
    let data = place.path("data");
    let of_directory = Server::in_directory(&data);
    drop(with_rows(&of_directory));
    of_directory.stop();
    let data = place.text("data");
    for arguments in [&["dump", &server.url][..], &["dump", "--data", &data, "-d", "postgres"]] {
        let mut program = Program::spawn(arguments);
        let mut stdout = program.take_stdout();
        stdout.read_exact(&mut [0; 100]).expect("the beginning");
        program.signal(Signal::TERM);
        assert_eq!(program.wait().0.code(), Some(1), "{arguments:?}");
    }
}

/// Waits until so many locks are waited for.
fn wait_for_locks(server: &Server, count: &str) {
    let (mut client, deadline) = (server.connect(), Instant::now() + PATIENCE);
    while rows(&mut client, "select count(*) from pg_locks where not granted") != [count] {
        assert!(Instant::now() < deadline, "not {count} locks are waited for");
        // The server sends no event when a session begins to wait.
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_cluster_in_a_directory_is_dumped_unless_somebody_has_it_open() {
    let place = Place::new();
    let server = Server::in_directory(&place.path("data"));
    let _client = with_rows(&server);
    let (data, url) = (place.text("data"), server.url.clone());
    let owner = server.program.id().to_string();
    let said = Program::fail(&["dump", "--data", &data]);
    assert!(said.contains(&data) && said.contains(&owner), "{said}");
    let running = dumped(&[&url]);
    server.stop();
    assert_eq!(dumped(&["--data", &data]), running);
    // It was shut down, and is opened again without a recovery.
    assert_eq!(dumped(&["-d", "postgres", "-U", "postgres", &format!("--data={data}")]), running);

    let said = Program::fail(&["dump", "--data", &place.text("nowhere")]);
    assert!(said.contains("nowhere is no data directory"), "{said}");
    assert!(!place.path("nowhere").exists());
}

#[test]
fn a_password_is_that_of_the_url_or_the_environment() {
    let place = Place::new();
    fs::write(place.path("password"), "se'cret\\").unwrap();
    let server = Server::with(&["--auth", "scram-sha-256", "--password-file", &place.text("password")]);
    let said = Program::fail(&["dump", "--no-password", &server.url]);
    assert!(said.contains("no password supplied"), "{said}");
    let with_password = server.url.replace("postgres@", "postgres:se'cret%5C@");
    assert!(dumped(&[&with_password]).contains("PostgreSQL database dump complete"));
    let wrong = server.url.replace("postgres@", "postgres:wrong@");
    assert!(Program::fail(&["dump", &wrong]).contains("password authentication failed"));
    fs::write(place.path("one.sql"), "select 1;").unwrap();
    Program::succeed(&["run", &place.text("one.sql"), &with_password]);
    assert!(Program::fail(&["run", &place.text("one.sql"), &wrong]).contains("password authentication failed"));
}

#[test]
fn what_cannot_work_is_refused() {
    let place = Place::new();
    let nobody = "postgres://postgres@127.0.0.1:1/postgres";
    assert!(Program::fail(&["dump", nobody, "-j", "2"]).contains("--jobs=2"));
    assert!(Program::fail(&["dump", nobody, "-Fd"]).contains("--file DIRECTORY"));
    assert!(Program::fail(&["dump", nobody]).contains("no server answers at 127.0.0.1:1"));
    let bound = format!("{nobody}?channel_binding=require");
    assert!(Program::fail(&["dump", &bound]).contains("use channel_binding=disable"));
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/file"), "").unwrap();
    let server = Server::shared();
    let said = Program::fail(&["dump", &server.url, "-Fd", "-f", &place.text("full")]);
    assert!(said.contains("full is not empty"), "{said}");
}

#[test]
fn pg_dump_tells_about_itself() {
    let version = Program::spawn(&["dump", "--version"]).output();
    assert_eq!((version.0, version.1.as_str()), (Some(0), "pg_dump (PostgreSQL) 18.3\n"));
    let help = Program::spawn(&["dump", "--", "--help"]).output().1;
    assert!(help.contains("--exclude-table-data"), "{help}");
    // A file that is named all the same stays as it is.
    let place = Place::new();
    fs::write(place.path("dump.sql"), "a dump").unwrap();
    let told = Program::spawn(&["dump", "--version", "--file", &place.text("dump.sql")]).output();
    assert_eq!((told.0, told.1), (Some(0), version.1));
    assert_eq!(fs::read_to_string(place.path("dump.sql")).unwrap(), "a dump");
}

#[test]
fn a_server_that_says_nothing_or_anything_ends_no_dump_with_a_crash() {
    let place = Place::new();
    let dump = place.text("dump.sql");
    for said in [
        // Not a message of the protocol, one of 4 GB, one that is cut off, one that the client does not expect.
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"R\xff\xff\xff\xff\0\0\0\0",
        b"R\0\0\0\x08\0\0",
        b"D\0\0\0\x0b\0\x01\0\0\0\x01x",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I",
        b"",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("postgres://postgres@{}/postgres", listener.local_addr().unwrap());
        let answer = move || {
            // The first session finds out whether the server wants a password, the second is that of the dump.
            for mut session in listener.incoming().take(2).flatten() {
                // The startup packet.
                let _ = session.read(&mut [0; 1024]);
                let _ = session.write_all(said);
            }
        };
        let server = thread::spawn(answer);
        let message = Program::fail(&["dump", &url, "-f", &dump]);
        assert!(message.contains("pg_dump: error: ") && !message.contains("trap"), "{said:?}: {message}");
        server.join().expect("a server");
    }
    assert_eq!(place.names(), [""; 0]);

    // Whoever waits for a silent one can leave.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("postgres://postgres@{}/postgres", listener.local_addr().unwrap());
    fs::write(place.path("one.sql"), "select 1").unwrap();
    for command in [&["dump", "-f", &dump][..], &["dump", "-w", "-f", &dump], &["run", &place.text("one.sql")]] {
        let mut program = Program::spawn(&[command, &[&url]].concat());
        let (mut session, _) = listener.accept().expect("a session");
        assert!(session.read(&mut [0; 1024]).expect("a startup packet") > 0);
        program.signal(Signal::INT);
        assert_eq!(program.wait().0.code(), Some(1), "{command:?}");
    }
    assert_eq!(place.names(), ["one.sql"]);
}

#[test]
fn a_filter_is_a_file_of_the_host() {
    let (server, place) = (Server::shared(), Place::new());
    let mut client = with_rows(&server);
    rows(&mut client, "create table other ()");
    fs::write(place.path("filter"), "exclude table t\n").unwrap();
    let dump = dumped(&[&server.url, "--filter", &place.text("filter")]);
    assert!(dump.contains("public.other") && !dump.contains("public.t "), "{dump}");
}

#[test]
fn the_tables_of_pgbench_are_the_same_where_their_dump_was_run() {
    let (origin, copy, place) = (Server::shared(), Server::shared(), Place::new());
    let made = std::process::Command::new("pgbench").args(["-i", "-q", &origin.url]).output().expect("pgbench");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Program::succeed(&["dump", &origin.url, "-f", &place.text("dump.sql")]);
    Program::succeed(&["run", &place.text("dump.sql"), &copy.url, "--single-transaction"]);
    let digest = "select count(*), md5(string_agg(a::text, ';' order by aid)) from pgbench_accounts a";
    let found = rows(&mut origin.connect(), digest);
    assert!(found[0].starts_with("100000|"));
    assert_eq!(rows(&mut copy.connect(), digest), found);
}

#[test]
fn a_parent_has_databases_dumped_and_files_run() {
    let place = Place::new();
    let mut port = Port::spawn(&["--mode", "shared"]);
    let request = |verb: &str, more: &str| {
        format!("{verb}\0path\0{}\0database\0postgres\0{more}\0", place.text("dump.sql")).into_bytes()
    };
    fs::write(place.path("dump.sql"), "create table t as select 1 as a;\nselect 2;").unwrap();
    let mut asked = |verb: &str, more: &str| {
        port.send_frame(pglite_port::port::frame::Kind::Request, 1, &request(verb, more));
        loop {
            let frame = port.next();
            if frame.kind != pglite_port::port::frame::Kind::Log {
                return frame.reply();
            }
        }
    };
    let (word, options) = asked("run", "single_transaction\0true\0");
    assert_eq!((word.as_str(), options.get("statements")), ("ok", Some("2")));
    let (word, options) = asked("run", "single_transaction\0true\0");
    let message = options.get("message").unwrap_or_default();
    assert_eq!((word.as_str(), options.get("code")), ("error", Some("58030")));
    assert!(message.contains("dump.sql:1: ERROR: relation \"t\" already exists (42P07)"), "{message}");
    let (word, options) = asked("dump", "options\0--inserts\n--no-owner\0");
    assert_eq!(word, "ok", "{options:?}");
    let dump = fs::read_to_string(place.path("dump.sql")).unwrap();
    assert_eq!(options.get("bytes"), Some(dump.len().to_string().as_str()));
    assert!(dump.contains("INSERT INTO public.t VALUES (1);") && !dump.contains("OWNER TO"), "{dump}");
    let (word, options) = asked("dump", "options\0--filter=-\0");
    assert_eq!(word, "error");
    assert!(options.get("message").unwrap_or_default().contains("absolute path"), "{options:?}");
    for (option, said) in [
        ("--help", "--version"),
        ("--dbname=other", "database and user"),
        ("other", "database and user"),
        ("-U\nme", "database and user"),
        ("--data=/nowhere", "database and user"),
        ("--filter=relative", "absolute path"),
        ("--filter=/proc/self/environ", "absolute path"),
        ("--filter=/", "regular file"),
    ] {
        let (word, options) = asked("dump", &format!("options\0{option}\0"));
        assert_eq!(word, "error", "{option}");
        assert!(options.get("message").unwrap_or_default().contains(said), "{option}: {options:?}");
    }
    let (word, options) = asked("dump", "options\0--table=nothing\0");
    assert_eq!(word, "error");
    assert!(options.get("message").unwrap_or_default().contains("no matching tables were found"), "{options:?}");
    assert_eq!(fs::read_to_string(place.path("dump.sql")).unwrap(), dump);
}
