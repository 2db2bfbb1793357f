//! Backups of clusters that run and of those that are stopped, and what becomes of them when they are restored.

mod support;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    thread::{self, ScopedJoinHandle},
};

use pglite_port::port::frame::{Kind, Options};
use postgres::NoTls;
use rustix::process::Signal;
use support::{
    place::Place,
    port::Port,
    program::Program,
    server::{Server, rows},
};

/// Restores an archive into a new directory, and starts a server there.
fn restored(place: &Place, archive: &str, directory: &str) -> Server {
    Program::succeed(&["restore", &place.text(archive), &place.text(directory)]);
    Server::in_directory(&place.path(directory))
}

/// What is said to an archive that cannot be restored, after which there is no directory.
fn refused(place: &Place, archive: &str) -> String {
    let said = Program::fail(&["restore", &place.text(archive), &place.text("refused")]);
    assert!(!place.path("refused").exists(), "something was left");
    said
}

/// The files of an archive by their names.
fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(archive).expect("an archive"));
    let entries = archive.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").to_str().expect("text").to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        (name, content)
    });
    entries.collect()
}

/// Writes an archive of those files.
fn write_archive(path: &Path, files: &BTreeMap<String, Vec<u8>>) {
    let mut archive = tar::Builder::new(File::create(path).expect("a file"));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
        // Set directly, because the library refuses names that lead out of the archive.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, &content[..]).expect("it is written");
    }
    archive.finish().expect("it is written");
}

#[test]
fn a_backup_that_is_made_while_sessions_write_has_all_that_was_committed_before_and_no_half_transaction() {
    let place = Place::new();
    let server = Server::in_directory(&place.path("data"));
    rows(
        &mut server.connect(),
        "create extension amcheck; create table t (writer int, a int, primary key (writer, a))",
    );
    let (enough, committed) = (AtomicBool::new(false), [const { AtomicI64::new(0) }; 3]);
    let before = thread::scope(|scope| {
        let mut writers = Vec::new();
        for (writer, committed) in committed.iter().enumerate() {
            let (config, enough) = (server.config(), &enough);
            writers.push(scope.spawn(move || {
                let mut client = config.connect(NoTls).expect("a session");
                for number in (0..).take_while(|_| !enough.load(Ordering::Relaxed)) {
                    // Ten rows each, so that a half transaction would be seen.
                    let (first, last) = (10 * number, 10 * number + 9);
                    let sql = format!("insert into t select {writer}, a from generate_series({first}, {last}) a");
                    rows(&mut client, &sql);
                    if number % 50 == 0 {
                        rows(&mut client, "checkpoint");
                        rows(&mut client, "vacuum t");
                    }
                    committed.store(last, Ordering::Release);
                }
            }));
        }
        while committed.iter().any(|committed| committed.load(Ordering::Acquire) < 500) {
            assert!(!writers.iter().any(ScopedJoinHandle::is_finished), "a writer has failed");
            thread::yield_now();
        }
        let before: Vec<i64> = committed.iter().map(|committed| committed.load(Ordering::Acquire)).collect();
        Program::succeed(&["backup", &server.url, &place.text("backup.tar.gz")]);
        enough.store(true, Ordering::Relaxed);
        before
    });

    let restored = restored(&place, "backup.tar.gz", "restored");
    let mut client = restored.connect();
    let seen = rows(&mut client, "select writer, count(*), max(a) from t group by writer order by writer");
    for ((writer, seen), before) in seen.iter().enumerate().zip(before) {
        let numbers: Vec<i64> = seen.split('|').map(|number| number.parse().expect("a number")).collect();
        let [found, count, last] = numbers[..] else { panic!("{seen}") };
        assert_eq!((found, count), (i64::try_from(writer).expect("small"), last + 1), "rows without gaps");
        assert!(last >= before && (last + 1) % 10 == 0, "{last} instead of at least {before}");
    }
    rows(&mut client, "select bt_index_check('t_pkey', true)");
    rows(&mut client, "insert into t values (9, 9)");
}

#[test]
fn a_cluster_in_memory_is_backed_up_too_without_what_a_crash_would_lose() {
    let place = Place::new();
    let server = Server::with(&["--mode", "shared"]);
    let mut client = server.connect();
    rows(&mut client, "create table t as select i as a from generate_series(1, 1000) i");
    rows(&mut client, "create database other");
    rows(&mut client, "create unlogged table unlogged as select 1 as a");
    rows(&mut client, "create temp table temporary as select 1 as a");
    let unlogged = rows(&mut client, "select pg_relation_filepath('unlogged')").remove(0);
    let temporary = rows(&mut client, "select pg_relation_filepath('temporary')").remove(0);
    Program::succeed(&["backup", &server.url, &place.text("backup.tar")]);
    let files = files(&place.path("backup.tar"));
    assert!(!files.contains_key(&unlogged) && files.contains_key(&format!("{unlogged}_init")), "{unlogged}");
    assert!(!files.contains_key(&temporary), "{temporary}");

    let restored = restored(&place, "backup.tar", "restored");
    let mut client = restored.connect();
    assert_eq!(rows(&mut client, "select count(*) from t"), ["1000"]);
    assert_eq!(rows(&mut client, "select count(*) from unlogged"), ["0"]);
    assert_eq!(rows(&mut client, "select datname from pg_database where datname = 'other'"), ["other"]);
    assert_eq!(rows(&mut client, "select count(*) from pg_replication_slots"), ["0"]);
}

#[test]
fn tablespaces_are_in_the_backup_and_one_outside_of_the_data_directory_is_refused() {
    let place = Place::new();
    Server::in_directory(&place.path("data")).stop();
    fs::create_dir(place.path("data/space")).expect("a directory");
    let server = Server::in_directory(&place.path("data"));
    let mut client = server.connect();
    rows(&mut client, "create tablespace linked location '/pglite/data/space'");
    rows(&mut client, "create table t tablespace linked as select generate_series(1, 1000) a");
    Program::succeed(&["backup", &server.url, &place.text("running.tar")]);
    server.stop();
    Program::succeed(&["backup", &place.text("data"), &place.text("stopped.tar")]);

    for (archive, directory) in [("running.tar", "one"), ("stopped.tar", "two")] {
        // Twice, because a backup of a running cluster has its links from recovery at first.
        let server = restored(&place, archive, directory);
        assert_eq!(rows(&mut server.connect(), "select count(*) from t"), ["1000"]);
        server.stop();
        let server = Server::in_directory(&place.path(directory));
        assert_eq!(rows(&mut server.connect(), "select count(*) from t"), ["1000"]);
    }

    let server = Server::with(&["--mode", "shared"]);
    rows(&mut server.connect(), "create tablespace elsewhere location '/tmp'");
    let said = Program::fail(&["backup", &server.url, &place.text("elsewhere.tar")]);
    assert!(said.contains("the tablespace at /tmp is outside of the data directory"), "{said}");
}

#[test]
fn a_directory_that_is_stopped_is_backed_up_as_it_is_and_one_in_use_is_not() {
    let place = Place::new();
    let server = Server::in_directory(&place.path("data"));
    rows(&mut server.connect(), "create table t as select i as a from generate_series(1, 1000) i");
    let said = Program::fail(&["backup", &place.text("data"), &place.text("backup.tar")]);
    assert!(said.contains(&format!("in use by process {}", server.program.id())), "{said}");
    assert!(said.contains("backed up by its URL"), "{said}");
    assert!(!place.path("backup.tar").exists());
    server.kill();

    Program::succeed(&["backup", &place.text("data"), &place.text("backup.tar")]);
    let restored = restored(&place, "backup.tar", "restored");
    assert_eq!(rows(&mut restored.connect(), "select count(*) from t"), ["1000"]);

    let said = Program::fail(&["backup", &place.text("elsewhere"), &place.text("backup.tar")]);
    assert!(said.contains("No such file"), "{said}");
    let said = Program::fail(&["backup", place.directory().to_str().expect("text"), &place.text("backup.tar")]);
    assert!(said.contains("it is no cluster"), "{said}");
    assert!(files(&place.path("backup.tar")).contains_key("PG_VERSION"), "the backup before is still there");
}

#[test]
fn an_archive_that_was_changed_is_refused_and_nothing_is_left() {
    let place = Place::new();
    let server = Server::with(&["--mode", "shared"]);
    let mut client = server.connect();
    rows(&mut client, "create table t as select i as a from generate_series(1, 10000) i");
    let table = rows(&mut client, "select pg_relation_filepath('t')").remove(0);
    Program::succeed(&["backup", &server.url, &place.text("backup.tar")]);
    let whole = files(&place.path("backup.tar"));
    let refused_with = |change: &dyn Fn(&mut BTreeMap<String, Vec<u8>>)| {
        let mut files = whole.clone();
        change(&mut files);
        write_archive(&place.path("changed.tar"), &files);
        refused(&place, "changed.tar")
    };

    let flip = |files: &mut BTreeMap<String, Vec<u8>>, name: &str, at: usize| {
        files.get_mut(name).expect("a file")[at] ^= 1;
    };
    let said = refused_with(&|files| flip(files, &table, 3 * 8192 + 5000));
    assert!(said.contains(&format!("1 pages have a wrong checksum: {table} page 3")), "{said}");
    let said = refused_with(&|files| flip(files, "pg_xact/0000", 0));
    assert!(said.contains("pg_xact/0000 has other content"), "{said}");
    let wal = whole.keys().find(|name| name.starts_with("pg_wal/0")).expect("WAL").clone();
    let said = refused_with(&|files| flip(files, &wal, 100));
    assert!(said.contains(&format!("{wal} has other content")), "{said}");
    let said = refused_with(&|files| drop(files.insert("base/new".to_owned(), Vec::new())));
    assert!(said.contains("base/new is not listed"), "{said}");
    let said = refused_with(&|files| drop(files.remove("backup_manifest")));
    assert!(said.contains("has no backup_manifest"), "{said}");
    let said = refused_with(&|files| flip(files, "backup_manifest", 200));
    assert!(said.contains("backup_manifest does not fit the files"), "{said}");
    let said = refused_with(&|files| drop(files.remove("pg_xact/0000")));
    assert!(said.contains("pg_xact/0000 is missing"), "{said}");
    let said = refused_with(&|files| files.get_mut(&table).expect("a file").truncate(8192));
    assert!(said.contains("8192 bytes instead of"), "{said}");
    let said = refused_with(&|files| drop(files.remove("PG_VERSION")));
    assert!(said.contains("no PG_VERSION"), "{said}");
    let said = refused_with(&|files| files.retain(|name, _| !name.starts_with("pg_wal/0")));
    assert!(said.contains("lacks pg_wal/0"), "{said}");
    let said = refused_with(&|files| drop(files.insert("PG_VERSION".to_owned(), b"17\n".to_vec())));
    assert!(said.contains("PostgreSQL 17"), "{said}");
    let said = refused_with(&|files| drop(files.insert("../outside".to_owned(), b"x".to_vec())));
    assert!(said.contains("leads out of it"), "{said}");
    assert!(!place.path("outside").exists());

    let archive = fs::read(place.path("backup.tar")).expect("an archive");
    fs::write(place.path("short.tar"), &archive[..archive.len() / 2]).expect("it is written");
    let said = refused(&place, "short.tar");
    assert!(said.contains("damaged or not complete"), "{said}");
    // At the end of a file, where the format alone does not show it.
    let manifest = archive.windows(15).rposition(|bytes| bytes == b"backup_manifest").expect("a manifest");
    fs::write(place.path("cut.tar"), &archive[..manifest]).expect("it is written");
    let said = refused(&place, "cut.tar");
    assert!(said.contains("damaged or not complete"), "{said}");
    fs::write(place.path("longer.tar"), [&archive[..], b"more"].concat()).expect("it is written");
    let said = refused(&place, "longer.tar");
    assert!(said.contains("damaged or not complete"), "{said}");
    Program::succeed(&["backup", &server.url, &place.text("backup.tar.gz")]);
    let mut compressed = fs::read(place.path("backup.tar.gz")).expect("an archive");
    // The checksum is in the last eight bytes (RFC 1952).
    let checksum = compressed.len() - 8;
    compressed[checksum] ^= 1;
    fs::write(place.path("changed.tar.gz"), &compressed).expect("it is written");
    let said = refused(&place, "changed.tar.gz");
    assert!(said.contains("damaged or not complete"), "{said}");
    fs::write(place.path("cut.tar.gz"), &compressed[..checksum]).expect("it is written");
    let said = refused(&place, "cut.tar.gz");
    assert!(said.contains("damaged or not complete"), "{said}");
    fs::write(place.path("text.tar"), "no archive").expect("it is written");
    let said = refused(&place, "text.tar");
    assert!(said.contains("it is no tar archive") || said.contains("no PG_VERSION"), "{said}");

    let mut link = tar::Builder::new(File::create(place.path("link.tar")).expect("a file"));
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    link.append_link(&mut header, "pg_tblspc", "/etc").expect("it is written");
    link.finish().expect("it is written");
    let said = refused(&place, "link.tar");
    assert!(said.contains("leads out of it"), "{said}");

    // A directory that was there stays, empty.
    fs::create_dir(place.path("empty")).expect("a directory");
    Program::fail(&["restore", &place.text("short.tar"), &place.text("empty")]);
    assert_eq!(fs::read_dir(place.path("empty")).expect("a directory").count(), 0);
    Program::succeed(&["restore", &place.text("backup.tar"), &place.text("empty")]);
    let said = Program::fail(&["restore", &place.text("backup.tar"), &place.text("empty")]);
    assert!(said.contains("is not empty"), "{said}");
}

#[test]
fn a_damaged_page_is_found_by_the_backup() {
    let place = Place::new();
    let server = Server::in_directory(&place.path("data"));
    let mut client = server.connect();
    rows(&mut client, "create table t as select i as a from generate_series(1, 10000) i; checkpoint");
    let table = rows(&mut client, "select pg_relation_filepath('t')").remove(0);
    let file = place.path("data").join(&table);
    let mut content = fs::read(&file).expect("the table's file");
    content[2 * 8192 + 4000] ^= 1;
    fs::write(&file, content).expect("it is written");

    let said = Program::fail(&["backup", &server.url, &place.text("backup.tar")]);
    assert!(said.contains(&format!("1 pages have a wrong checksum: {table} page 2")), "{said}");
    assert!(said.contains("--no-verify-checksums"), "{said}");
    assert_eq!(fs::read_dir(place.directory()).expect("a directory").count(), 1, "nothing was left");
    Program::succeed(&["backup", "--no-verify-checksums", &server.url, &place.text("backup.tar")]);
    let said = refused(&place, "backup.tar");
    assert!(said.contains("--no-verify-checksums"), "{said}");
    Program::succeed(&["restore", "--no-verify-checksums", &place.text("backup.tar"), &place.text("restored")]);
    assert_eq!(rows(&mut client, "select count(*) from pg_replication_slots"), ["0"], "its session has ended");
}

#[test]
fn a_restore_that_was_killed_is_no_cluster_until_it_is_done_again() {
    let place = Place::new();
    let server = Server::with(&["--mode", "shared"]);
    rows(&mut server.connect(), "create table t as select i as a from generate_series(1, 1000) i");
    Program::succeed(&["backup", &server.url, &place.text("backup.tar")]);
    let archive = fs::read(place.path("backup.tar")).expect("an archive");

    let mut restore = Program::spawn(&["restore", "-", &place.text("data")]);
    let mut stdin = restore.take_stdin();
    // More than a pipe holds, so the restore has begun when this returns.
    stdin.write_all(&archive[..archive.len() / 2]).expect("it reads");
    restore.signal(Signal::KILL);
    restore.wait();
    assert!(fs::read_dir(place.path("data")).expect("a directory").count() > 1, "a part is there");

    let said = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--data", &place.text("data")]);
    assert!(said.contains("run pglite-port restore FILE DIRECTORY again"), "{said}");
    let restored = restored(&place, "backup.tar", "data");
    assert_eq!(rows(&mut restored.connect(), "select count(*) from t"), ["1000"]);
}

#[test]
fn a_backup_needs_a_superuser_and_a_server_of_this_kind() {
    let place = Place::new();
    let server = Server::with(&["--mode", "shared"]);
    rows(&mut server.connect(), "create role bob login");
    let url = server.url.replace("postgres@", "bob@");
    let said = Program::fail(&["backup", &url, &place.text("backup.tar")]);
    assert!(said.contains("the role must be a superuser"), "{said}");
    let said = Program::fail(&["backup", "postgres://u:secret@127.0.0.1:1/x", &place.text("backup.tar")]);
    assert!(said.contains("the server cannot be connected to") && !said.contains("secret"), "{said}");
    let said = Program::fail(&["backup", &server.url, &place.text("missing/backup.tar")]);
    assert!(said.contains("missing/backup.tar cannot be written"), "{said}");
}

#[test]
fn what_a_role_has_set_changes_no_backup() {
    let place = Place::new();
    let server = Server::with(&["--mode", "shared"]);
    let mut client = server.connect();
    rows(&mut client, "create table t as select i as a from generate_series(1, 1000) i");
    rows(&mut client, "create schema evil; create role low");
    rows(
        &mut client,
        "create function evil.pg_ls_dir(text, bool, bool) returns setof text language sql \
         as $$ select 'PG_VERSION' where $1 = '.' $$",
    );
    rows(
        &mut client,
        "alter role postgres set search_path = evil, pg_catalog; alter role postgres set role = low; \
         alter role postgres set default_transaction_read_only = on; alter role postgres set statement_timeout = 1",
    );
    Program::succeed(&["backup", &server.url, &place.text("backup.tar")]);
    let server = restored(&place, "backup.tar", "data");
    let mut client = server.config().options("-c role=none -c statement_timeout=0").connect(NoTls).expect("a session");
    assert_eq!(rows(&mut client, "select count(*) from public.t"), ["1000"]);
}

#[test]
fn a_file_that_is_no_regular_one_is_not_replaced_and_a_link_is_followed() {
    let place = Place::new();
    Server::in_directory(&place.path("data")).stop();
    let data = place.text("data");
    fs::create_dir(place.path("directory")).expect("a directory");
    let said = Program::fail(&["backup", &data, &place.text("directory")]);
    assert!(said.contains("is a directory"), "{said}");
    let said = Program::fail(&["backup", &data, &place.text("data/backup.tar")]);
    assert!(said.contains("would be inside of what is backed up"), "{said}");

    let fifo = place.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("coreutils").success());
    let reader = thread::spawn(move || fs::read(fifo).expect("a pipe").len());
    Program::succeed(&["backup", &data, &place.text("fifo")]);
    assert!(reader.join().expect("no panic") > 1_000_000);
    assert!(!fs::metadata(place.path("fifo")).expect("it is there").is_file());

    fs::write(place.path("old.tar"), "old").expect("a file");
    symlink(place.path("old.tar"), place.path("link.tar")).expect("a link");
    Program::succeed(&["backup", &data, &place.text("link.tar")]);
    assert!(fs::symlink_metadata(place.path("link.tar")).expect("it is there").is_symlink());
    assert!(files(&place.path("old.tar")).contains_key("PG_VERSION"));

    symlink("/etc", place.path("data/pg_tblspc/1")).expect("a link");
    let said = Program::fail(&["backup", &data, &place.text("backup.tar")]);
    assert!(said.contains("pg_tblspc/1 leads out of the directory, to /etc"), "{said}");
    fs::remove_file(place.path("data/pg_tblspc/1")).expect("a link");
    let odd = place.path("data").join(OsStr::from_bytes(b"odd\xff"));
    fs::write(&odd, "").expect("a file");
    let said = Program::fail(&["backup", &data, &place.text("backup.tar")]);
    assert!(said.contains("has a name that is not UTF-8"), "{said}");
    let server = Server::in_directory(&place.path("data"));
    let said = Program::fail(&["backup", &server.url, &place.text("backup.tar")]);
    assert!(said.contains("has a name that is not UTF-8"), "{said}");
    let left = |name: &str| name.contains(".partial");
    let names = fs::read_dir(place.directory()).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    assert!(!names.into_iter().any(|name| left(&name.to_string_lossy())), "something was left");
}

#[test]
fn a_directory_that_is_refused_keeps_its_permissions() {
    let place = Place::new();
    fs::create_dir(place.path("other")).expect("a directory");
    fs::set_permissions(place.path("other"), Permissions::from_mode(0o755)).expect("it is ours");
    fs::write(place.path("other/file"), "").expect("a file");
    fs::write(place.path("backup.tar"), "").expect("a file");
    Program::fail(&["backup", &place.text("other"), &place.text("backup.tar")]);
    Program::fail(&["restore", &place.text("backup.tar"), &place.text("other")]);
    Program::fail(&["serve", "--listen", "127.0.0.1:0", "--data", &place.text("other")]);
    let mode = fs::metadata(place.path("other")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn a_backup_on_stdout_is_one_on_stdin() {
    let place = Place::new();
    let server = Server::with(&["--mode", "shared"]);
    rows(&mut server.connect(), "create table t as select i as a from generate_series(1, 1000) i");
    let mut backup = Program::spawn(&["backup", &server.url, "-"]);
    let mut archive = Vec::new();
    backup.take_stdout().read_to_end(&mut archive).expect("an archive");
    let mut restore = Program::spawn(&["restore", "-", &place.text("data")]);
    restore.take_stdin().write_all(&archive).expect("it reads");
    assert!(restore.wait().0.success());
    let restored = Server::in_directory(&place.path("data"));
    assert_eq!(rows(&mut restored.connect(), "select count(*) from t"), ["1000"]);
}

#[test]
fn the_parent_of_a_port_asks_for_a_backup() {
    let place = Place::new();
    let mut port = Port::spawn(&["--data", &place.text("data")]);
    let mut ask = |options: &[(&str, &str)]| {
        let options = options.iter().fold(Options::new(), |all, (key, value)| all.with(key, value));
        port.send_frame(Kind::Request, 7, &[b"backup\0", &options.to_bytes()[..]].concat());
        // Lines of the cluster's log come as well.
        std::iter::repeat_with(|| port.next()).find(|frame| frame.kind == Kind::Reply).expect("a reply").reply()
    };
    let (word, options) = ask(&[("path", &place.text("backup.tar"))]);
    assert_eq!(word, "ok", "{options:?}");
    let files = files(&place.path("backup.tar")).into_keys().filter(|name| !name.ends_with('/')).count();
    // The manifest is not one of the files.
    assert_eq!(options.get("files").expect("a number"), (files - 1).to_string());
    assert!(options.get("pages").is_some_and(|pages| pages != "0"), "{options:?}");
    restored(&place, "backup.tar", "restored");

    for (wrong, said) in [
        (&[("path", "")][..], "the option path is missing"),
        (&[("path", "-")], "not an absolute path"),
        (&[("path", "/nowhere/backup.tar")], "cannot be written"),
        (&[("path", &place.text("x.tar")), ("database", "missing")], "database \"missing\" does not exist"),
    ] {
        let (word, options) = ask(wrong);
        assert_eq!(word, "error");
        assert!(options.get("message").is_some_and(|message| message.contains(said)), "{options:?}");
    }
}
