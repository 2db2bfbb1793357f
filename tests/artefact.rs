//! What is missing or not as it should be when the program starts: one line that says what to do, exit status 1.

mod support;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use support::program::Program;
use tempfile::TempDir;

/// Runs `serve` with these arguments and returns the line that it fails with.
fn failure(arguments: &[&str]) -> String {
    let anywhere: &[&str] = if arguments.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
    let mut program = Program::spawn(&[&["serve", "--mode", "isolated"], anywhere, arguments].concat());
    let (status, stdout, stderr) = program.output();
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    // Its log of what it did before is on stderr, too.
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains(" INFO ")).collect();
    let [line] = lines[..] else { panic!("not one line: {lines:?}") };
    let line = line.strip_prefix("pglite-port: ").expect("the name of the program");
    line.to_owned()
}

/// The installed files of PGlite.
fn installed() -> PathBuf {
    let npm = Path::new(env!("CARGO_MANIFEST_DIR")).join("pglite/node_modules/@electric-sql/pglite/dist");
    std::env::var_os("PGLITE_DIR").map_or(npm, PathBuf::from)
}

/// A directory with links to all of PGlite's files but one.
fn all_but(missing: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for file in ["pglite.wasm", "initdb.wasm", "pglite.data", "pglite.js"] {
        if file != missing {
            symlink(installed().join(file), directory.path().join(file)).expect("a link");
        }
    }
    directory
}

#[test]
fn a_missing_file_is_named_with_what_to_do() {
    let directory = all_but("pglite.data");
    let path = directory.path().to_str().expect("text");
    let line = failure(&["--pglite-dir", path]);
    assert!(line.contains("pglite.data") && line.contains(path) && line.contains("npm ci"), "{line}");
    let line = failure(&["--pglite-dir", "/nonexistent"]);
    assert!(line.contains("/nonexistent"), "{line}");
}

#[test]
fn a_file_with_other_contents_is_named_with_the_expected_and_the_found_hash() {
    let directory = all_but("initdb.wasm");
    let mut wasm = fs::read(installed().join("initdb.wasm")).expect("a file");
    wasm[1000] ^= 1;
    fs::write(directory.path().join("initdb.wasm"), wasm).expect("a file");
    let line = failure(&["--pglite-dir", directory.path().to_str().expect("text")]);
    let expected = "63d8b9d54110f827711545a338a643621e65b5658f09e1acfcf36073be365ce2";
    assert!(line.contains("initdb.wasm") && line.contains(expected), "{line}");
    let hashes = line.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
    assert_eq!(hashes, 2, "{line}");
}

#[test]
fn a_cache_that_cannot_be_written_or_that_others_can_write_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("a file");
    // A path below a file cannot be made by anybody, not even by root.
    let below = file.join("cache");
    let line = failure_with_cache(&below);
    assert!(line.contains(below.to_str().expect("text")), "{line}");
    let open = directory.path().join("open");
    fs::create_dir(&open).expect("a directory");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("permissions");
    let line = failure_with_cache(&open);
    assert!(line.contains(open.to_str().expect("text")), "{line}");
}

fn failure_with_cache(cache: &Path) -> String {
    failure(&["--cache-dir", cache.to_str().expect("text")])
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let line = failure(&["--listen", &address]);
    assert!(line.contains(&address), "{line}");
}
