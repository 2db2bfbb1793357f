//! Extensions in use, and bundles of extensions that tests make.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use pglite_port::engine::artefact::{EXTENSIONS, PINNED_FILES};
use tempfile::TempDir;

use super::{session::errors, wire::Message};

/// What is loaded, what is done with it, and what comes out ([`outcome`]).
pub struct Use {
    pub load: &'static str,
    pub sql: &'static str,
    pub expected: &'static [&'static str],
}

/// A use of what `load` loads.
pub const fn extension(load: &'static str, sql: &'static str, expected: &'static [&'static str]) -> Use {
    Use { load, sql, expected }
}

/// What an answer consists of as text: the values of its rows, the SQLSTATE of its error, the last lines of its
/// notices, channel and payload of its notifications. Plans are not indented.
pub fn outcome(answer: &[Message]) -> Vec<String> {
    let texts = |message: &Message| match message.kind {
        b'D' => message.values().iter().map(|value| value.trim_start().to_owned()).collect(),
        b'E' => errors(std::slice::from_ref(message)),
        b'N' => message.fields()[&'M'].lines().last().map(str::to_owned).into_iter().collect(),
        // Behind a process id, both with a NUL at the end.
        b'A' => String::from_utf8_lossy(&message.body[4..]).split_terminator('\0').map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    answer.iter().flat_map(texts).collect()
}

/// A use of the extension, its notices left out, in a session that runs SQL with `run`.
pub fn try_one(used: &Use, mut run: impl FnMut(&str) -> Vec<Message>) {
    let Use { load, sql, expected } = used;
    assert_eq!(errors(&run(load)), [""; 0], "{load}");
    let answer: Vec<Message> = run(sql).into_iter().filter(|message| message.kind != b'N').collect();
    let mut found = outcome(&answer);
    // A plan may have more lines.
    found.truncate(expected.len());
    assert_eq!(found, *expected, "{load}; {sql}");
}

/// The directory of PGlite's package, with the packages of extensions beside it.
pub fn pglite() -> PathBuf {
    let npm = Path::new(env!("CARGO_MANIFEST_DIR")).join("pglite/node_modules/@electric-sql/pglite/dist");
    std::env::var_os("PGLITE_DIR").map_or(npm, PathBuf::from)
}

/// A directory with PGlite's files and without packages.
pub fn without_packages() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for file in PINNED_FILES.iter().chain(&EXTENSIONS) {
        symlink(pglite().join(file.name), directory.path().join(file.name)).expect("a link");
    }
    directory
}

/// A directory with PGlite's files and the bundle of PostGIS, which is installed for the tests only.
pub fn with_postgis() -> TempDir {
    let directory = without_packages();
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgis/node_modules/@electric-sql");
    let bundle = installed.join("pglite-postgis/dist/postgis.tar.gz");
    assert!(bundle.exists(), "{} is not there: run `npm ci` in tests/postgis", bundle.display());
    symlink(bundle, directory.path().join("postgis.tar.gz")).expect("a link");
    directory
}

/// A `.tar.gz` with these files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        // Written by hand: the crate itself refuses to write names that escape.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *bytes).expect("it is in memory");
    }
    builder.into_inner().and_then(GzEncoder::finish).expect("it is in memory")
}
