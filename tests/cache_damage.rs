//! A cache that is damaged: what is wrong is noticed, made again, and never used.

mod support;

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use pglite_port::{connection::Connections, databases::Settings};
use postgres::{Client, NoTls};
use support::{
    cache,
    local::{Connect, Local},
    power::{self, Dice},
    server::{Server, rows, text},
};
use tempfile::TempDir;

/// A cache with all that a start needs, which shares no file with any other.
fn full_cache() -> TempDir {
    let cache = cache::own();
    start(&cache);
    // Without what other tests have used, and what earlier versions of the program have made.
    for entry in fs::read_dir(cache.path()).expect("a directory") {
        let path = entry.expect("an entry").path();
        let is_used = path.join(".compared").exists() || path.ends_with("templates");
        if path.is_dir() && !is_used {
            fs::remove_dir_all(path).expect("removed");
        } else if path.extension().is_some_and(|extension| extension == "cwasm") && !is_used {
            fs::remove_file(path).expect("removed");
        }
    }
    for path in files(cache.path()) {
        let copy = path.with_extension("own");
        fs::copy(&path, &copy).expect("a copy");
        fs::rename(copy, path).expect("its place");
    }
    cache
}

/// All files of a cache but those of locks.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_none_or(|extension| extension != "lock") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Starts the program with that cache, uses what is in it, and stops it; what it has logged.
fn start(cache: &TempDir) -> Vec<String> {
    let server = Server::with(&["--mode", "isolated", "--cache-dir", cache.path().to_str().expect("text")]);
    let sql = "do $$ begin perform upper('a'); end $$; select sum(n), to_tsvector('english', 'cats') \
               from generate_series(1, 1000) n";
    assert_eq!(text(&server.psql(&["--command", sql])), "500500|'cat':1");
    server.stop()
}

/// `PGLITE_PORT_SEED` repeats the places, `PGLITE_PORT_FLIPS` says how many there are, `make soak` 200.
#[test]
fn a_start_answers_correctly_whichever_bit_of_the_cache_was_flipped() {
    let cache = full_cache();
    let mut dice = Dice(power::seed() | 1);
    let below = |dice: &mut Dice, limit: usize| usize::try_from(dice.below(limit as u64)).expect("it fits");
    for _ in 0..power::number("PGLITE_PORT_FLIPS", 8) {
        // Compiled code, the rewritten program, a new cluster, a template.
        let files = files(cache.path());
        assert!(files.len() > 25, "{files:?}");
        let path = &files[below(&mut dice, files.len())];
        let mut bytes = fs::read(path).expect("a file");
        if let Some(place) = (!bytes.is_empty()).then(|| below(&mut dice, bytes.len())) {
            bytes[place] ^= 1 << dice.below(8);
            fs::write(path, bytes).expect("written");
            println!("{}: byte {place}", path.display());
        }
        start(&cache);
    }
    let log = start(&cache);
    assert!(!log.iter().any(|line| line.contains("again, because")), "nothing is made twice: {log:?}");
}

#[test]
fn code_that_others_can_write_to_is_made_again() {
    let cache = full_cache();
    let is_code = |path: &PathBuf| path.ends_with("code") && path.to_string_lossy().contains("plpgsql");
    let code = files(cache.path()).into_iter().find(is_code).expect("compiled code");
    fs::set_permissions(&code, Permissions::from_mode(0o666)).expect("a mode");
    let log = start(&cache);
    let line = log.iter().find(|line| line.contains("compiling again")).unwrap_or_else(|| panic!("{log:?}"));
    assert!(line.contains("others can write to it") && line.contains("plpgsql"), "{line}");
    assert_eq!(fs::metadata(&code).expect("it is there").permissions().mode() & 0o777, 0o600);
}

/// Makes a cache one that its owner cannot write, who is not root: root can write everything.
fn without_writing(cache: &TempDir) -> Option<u32> {
    const NOBODY: u32 = 65_534;
    let user = rustix::process::geteuid().is_root().then_some(NOBODY);
    let mut paths = vec![cache.path().to_owned()];
    while let Some(path) = paths.pop() {
        if user.is_some() {
            chown(&path, user, None).expect("root can");
        }
        let is_directory = path.is_dir();
        if is_directory {
            paths.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
        let mode = if is_directory { 0o500 } else { 0o400 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
    }
    user
}

/// Starts the program as that user with that cache; it is killed at the end of the test.
fn serve_as(user: Option<u32>, cache: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pglite-port"));
    command.args(["serve", "--mode", "isolated", "--listen", "127.0.0.1:0", "--cache-dir"]).arg(cache);
    user.map(|user| command.uid(user));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

#[test]
fn a_warm_cache_need_not_be_writable_and_a_cold_one_says_what_to_do() {
    let cache = full_cache();
    let user = without_writing(&cache);
    let mut program = serve_as(user, cache.path());
    let mut url = String::new();
    BufReader::new(program.stdout.take().expect("piped")).read_line(&mut url).expect("a line");
    let mut client = Client::connect(url.trim_end(), NoTls).expect("it serves");
    assert_eq!(rows(&mut client, "select 1"), ["1"]);
    // What is not in it is compiled all the same.
    client.batch_execute("create extension citext").expect("an extension");
    assert_eq!(rows(&mut client, "select 'A'::citext = 'a'"), ["t"]);
    program.kill().expect("it runs");
    program.wait().expect("it ends");
    let cold = tempfile::tempdir().expect("a directory");
    let user = without_writing(&cold);
    let output = serve_as(user, cold.path()).wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(cold.path().to_str().expect("text")) && said.contains("--cache-dir"), "{said}");
}

#[test]
fn a_client_is_told_nothing_of_the_files_of_the_host() {
    let cache = cache::own();
    let connections = Arc::new(Connections::new(Arc::new(cache::open_at(cache.path(), Settings::default()))));
    Local::connect(&connections, Connect::default()).0.freeze("damaged");
    let directory = fs::read_dir(cache.path().join("templates")).expect("a directory").find_map(|entry| {
        let entry = entry.expect("an entry");
        let is_it = entry.file_name().to_string_lossy().starts_with("damaged") && entry.path().is_dir();
        is_it.then(|| entry.path())
    });
    let directory = directory.expect("the template");
    for name in ["label", "label.copy"] {
        fs::write(directory.join(name), "what is this").expect("written");
    }
    let (_session, messages) =
        Local::connect(&connections, Connect { template: Some("damaged"), ..Connect::default() });
    let fields = messages[0].fields();
    assert_eq!((&fields[&'C'][..], &fields[&'M'][..]), ("XX000", "the session could not be started"));
    assert!(fields[&'H'].contains("log"), "{fields:?}");
}
