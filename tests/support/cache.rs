//! Caches for tests: a shared one, because compiling PostgreSQL takes seconds, and copies of it to damage.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use pglite_port::{
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use tempfile::TempDir;

/// The cache that all tests share, which contains the default template.
pub fn shared() -> PathBuf {
    static FILLED: OnceLock<PathBuf> = OnceLock::new();
    FILLED
        .get_or_init(|| {
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
            open_at(&directory, Settings::default());
            directory
        })
        .clone()
}

/// Databases in that cache.
pub fn open_at(cache: &Path, settings: Settings) -> Databases {
    let paths = Paths { cache: Some(cache.to_owned()), ..Paths::default() };
    Databases::open(&paths, Mode::Isolated, settings, LogSink::to_own_log()).expect("databases")
}

/// Connections to databases in the shared cache.
pub fn connections(settings: Settings) -> Arc<Connections> {
    administered(settings).1
}

/// Databases in the shared cache, and connections to them.
pub fn administered(settings: Settings) -> (Arc<Databases>, Arc<Connections>) {
    let databases = Arc::new(open_at(&shared(), settings));
    (databases.clone(), Arc::new(Connections::new(databases)))
}

/// A cache for one test, with compiled code but without templates.
pub fn own() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    copy(&shared(), directory.path());
    directory
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == "templates" || entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            fs::create_dir(&target).expect("a directory");
            copy(&path, &target);
        } else if fs::hard_link(&path, &target).is_err() {
            // Another filesystem.
            fs::copy(&path, &target).expect("a copy");
        }
    }
}
