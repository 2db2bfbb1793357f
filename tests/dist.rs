//! The archives of `make dist`: what `.ci/dist-pack` makes of the program that is tested, and what that does where it is
//! unpacked, without and with compiled code beside it.

mod support;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use postgres::{Client, NoTls};
use support::{
    program::Program,
    server::{rows, text},
};
use tempfile::TempDir;

/// What the shell `command` in the root of the project prints.
fn shell(command: &str, arguments: &[&Path]) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", command, "sh"]).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    text(&shell.output().expect("a shell")).to_owned()
}

/// A directory on the file system of the program, which can be linked into it.
fn place() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// The names of a directory's entries.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn the_archive_has_everything_and_serves_where_it_is_unpacked() {
    let (place, elsewhere) = (place(), place());
    let program = place.path().join("stripped");
    shell("strip -o \"$1\" \"$2\"", &[&program, Path::new(env!("CARGO_BIN_EXE_pglite-port"))]);
    let pack = |umask: &str, into: &Path| {
        let command = format!("umask {umask}; .ci/dist-pack \"$1\" {} \"$2\"", triple());
        PathBuf::from(shell(&command, &[&program, into]))
    };
    let archive = pack("022", place.path());
    let name = format!("pglite-port-{}-{}", env!("CARGO_PKG_VERSION"), triple());
    assert_eq!(archive, place.path().join(format!("{name}.tar.gz")));
    shell("cd \"$1\" && sha256sum --check --strict --quiet *.tar.gz.sha256", &[place.path()]);
    let listed = shell("tar tzvf \"$1\" --numeric-owner --full-time", &[&archive]);
    for line in listed.lines() {
        let [mode, owner, _, _, _, path] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let is_program = path == format!("{name}/pglite-port");
        let expected = if path.ends_with('/') {
            "drwxr-xr-x"
        } else if is_program {
            "-rwxr-xr-x"
        } else {
            "-rw-r--r--"
        };
        assert_eq!((mode, owner), (expected, "0/0"), "{line}");
    }

    shell("tar xzf \"$1\" -C \"$2\"", &[&archive, elsewhere.path()]);
    let unpacked = elsewhere.path().join(&name);
    assert_eq!(names(elsewhere.path()), [name]);
    assert_eq!(names(&unpacked), ["LICENSE", "README.md", "licenses", "pglite", "pglite-port"]);
    let files = names(&unpacked.join("pglite"));
    let others: Vec<_> = files.iter().filter(|name| !name.ends_with(".tar.gz")).collect();
    assert_eq!(others, ["initdb.wasm", "pg_dump.wasm", "pglite.data", "pglite.js", "pglite.wasm"]);
    let licenses = names(&unpacked.join("licenses"));
    let license = |name: &str| fs::read_to_string(unpacked.join("licenses").join(name)).expect("text");
    // Each with words of the text itself.
    for (name, words) in [
        ("Apache-2.0.txt", "TERMS AND CONDITIONS FOR USE"),
        ("GPL-3.txt", "GNU GENERAL PUBLIC LICENSE"),
        ("LGPL-2.1.txt", "GNU LESSER GENERAL PUBLIC LICENSE"),
        ("gcc.txt", "RUNTIME LIBRARY EXCEPTION"),
        ("glibc.txt", "Lesser General Public"),
        ("icu.txt", "Unicode"),
        ("libxml2.txt", "Daniel Veillard"),
        ("libxslt.txt", "Daniel Veillard"),
        ("musl.txt", "Rich Felker"),
        ("ossp-uuid.txt", "Ralf S. Engelschall"),
        ("pglite.txt", "TERMS AND CONDITIONS FOR USE"),
        ("postgresql-parts.txt", "Henry Spencer"),
        ("postgresql.txt", "REGENTS OF THE UNIVERSITY OF CALIFORNIA"),
        ("rust-packages.txt", "\nwasmtime 4"),
        ("unicode.txt", "UNICODE LICENSE V3"),
        ("zlib.txt", "Jean-loup Gailly"),
    ] {
        let text = license(name).to_lowercase();
        assert!(text.contains(&words.to_lowercase()), "{name}");
    }
    let named: Vec<_> = license("extensions.txt")
        .split_whitespace()
        .map(|word| word.trim_matches(|c| "(),;:.".contains(c)).to_owned())
        .collect();
    for name in licenses.iter().filter(|name| *name != "extensions.txt") {
        assert!(named.contains(name), "{name} is not mentioned");
    }
    let of_packages = license("rust-packages.txt");
    assert!(of_packages.contains("TERMS AND CONDITIONS") && of_packages.contains("LLVM Exceptions"), "{of_packages}");

    let program = unpacked.join("pglite-port");
    let mut server = Program::spawn_copy(&program, &["serve", "--listen", "127.0.0.1:0"]);
    let url = server.first_line();
    let mut client = Client::connect(&url, NoTls).expect("a session");
    rows(&mut client, "create extension vector; create extension citext; create table t (a vector(2), b citext)");
    let (status, dump, stderr) = Program::spawn_copy(&program, &["dump", "--", &url]).output();
    assert!(status == Some(0) && dump.contains("CREATE TABLE public.t"), "{stderr}");

    let again = elsewhere.path().join("again");
    fs::create_dir(&again).expect("a directory");
    assert!(fs::read(pack("077", &again)).expect("a file") == fs::read(archive).expect("a file"));
}

#[test]
fn the_first_start_compiles_nothing_that_lies_beside_the_program_and_says_why_if_it_does() {
    let place = place();
    let (program, code) = (place.path().join("pglite-port"), place.path().join("code"));
    fs::hard_link(env!("CARGO_BIN_EXE_pglite-port"), &program).expect("a second name");
    let pglite = Path::new(env!("CARGO_MANIFEST_DIR")).join("pglite/node_modules/@electric-sql/pglite/dist");
    let pglite = env::var_os("PGLITE_DIR").map_or(pglite, PathBuf::from);
    let pglite = pglite.to_str().expect("text");
    Program::succeed(&["--pglite-dir", pglite, "compile", &triple(), code.to_str().expect("text")]);

    let start = |cache: &str| {
        let cache = place.path().join(cache);
        let arguments = ["--pglite-dir", pglite, "--cache-dir", cache.to_str().expect("text")];
        Program::spawn_copy(&program, &[&arguments[..], &["serve", "--listen", "127.0.0.1:0"]].concat())
    };
    let mut server = start("used");
    let mut client = Client::connect(&server.first_line(), NoTls).expect("a session");
    // Libraries of PGlite, of a bundle of contrib and of a package.
    rows(&mut client, "do $$ begin perform crypt('', gen_salt('md5')); exception when others then null; end $$");
    rows(&mut client, "create extension pgcrypto; create extension vector; select digest('a', 'sha256')");
    assert_eq!(rows(&mut client, "select '[1,2]'::vector <-> '[1,3]'"), ["1"]);
    let kept = names(&place.path().join("used"));
    let compiled: Vec<_> = kept.iter().filter(|name| name.contains(".cwasm")).collect();
    assert_eq!(compiled, [""; 0], "the cache has nothing that was compiled here");
    server.signal(rustix::process::Signal::TERM);
    let said = server.wait_for_stderr();
    assert!(!said.iter().any(|line| line.contains("compil")), "{said:?}");

    fs::set_permissions(&code, fs::Permissions::from_mode(0o775)).expect("permissions");
    let server = start("not used");
    let line = server.stderr_line();
    assert!(line.contains("pglite is compiled here") && line.contains("can be written by others"), "{line}");
    let line = server.stderr_line();
    assert!(line.contains("compiling pglite (once)"), "{line}");
}
