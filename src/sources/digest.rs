//! Digests of the program's own sources. The build script and a test include this file, so it depends on no other file
//! of the program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Parts of `src/` that decide the compiled code, the initial memory of a program, and how both are stored.
pub(crate) const CODE: [&str; 5] = ["backend/program", "engine", "image", "instrument", "postgres"];

/// Parts of `src/` that do not affect clusters and templates, because they are above them: they serve clients.
pub(crate) const ABOVE: [&str; 24] = [
    "administration",
    "backup",
    "command_line",
    "connection",
    "databases",
    "dial",
    "dump",
    "dumps",
    "lib",
    "list",
    "main",
    "metrics",
    "moves",
    "moving",
    "port",
    "precompile",
    "pruning",
    "ready",
    "script",
    "serve",
    "session",
    "start",
    "stop",
    "top",
];

/// Parts of `src/` that many parts may use and that do not affect what is stored: what the system allows, the cache
/// directory, inputs of tests, logging, quotas, and counting.
pub(crate) const ASIDE: [&str; 6] = ["capacity", "engine/cache", "fuzz", "log", "quota", "tally"];

/// Parts within other parts that are in another list.
const INNER: [&str; 3] = ["backend/program", "engine/artefact", "engine/cache"];

/// Packages whose versions decide the compiled code and its storage format; prefixes of their names.
const PACKAGES: [&str; 7] = ["cranelift", "icu_", "postcard", "regalloc2", "wasm-encoder", "wasmparser", "wasmtime"];

/// Whether compiled code and its initial memory depend on a part of `src/`.
pub(crate) fn decides_code(part: &str) -> bool {
    CODE.contains(&part)
}

/// Whether anything that is stored depends on a part of `src/`. A part that is in no list counts.
pub(crate) fn decides_contents(part: &str) -> bool {
    !ABOVE.contains(&part) && !ASIDE.contains(&part)
}

/// The SHA-256 of the files in those parts of `src/` for which `is_wanted` is true, without tests, and of the versions
/// of [`PACKAGES`], for the package in the directory `root`.
/// # Errors
/// When a file cannot be read.
pub(crate) fn of(root: &Path, is_wanted: fn(&str) -> bool) -> io::Result<String> {
    let mut hash = Sha256::new();
    // Lengths separate the texts from each other.
    let mut add = |text: &[u8]| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    let source = root.join("src");
    for path in files(&source)? {
        let place = path.strip_prefix(&source).map_err(io::Error::other)?;
        if part(place).is_some_and(is_wanted) {
            add(place.as_os_str().as_encoded_bytes());
            add(&read(&path)?);
        }
    }
    let lock = String::from_utf8(read(&root.join("Cargo.lock"))?).map_err(io::Error::other)?;
    packages(&lock).for_each(|package| add(package.as_bytes()));
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The part of `src/` that the file at `place` below it belongs to: the name of its top-level module, or one of
/// [`INNER`].
pub(crate) fn part(place: &Path) -> Option<&str> {
    let path = place.to_str()?;
    let is_in = |part: &&str| path.strip_prefix(*part).is_some_and(|rest| rest.starts_with('/') || rest == ".rs");
    if let Some(inner) = INNER.into_iter().find(is_in) {
        return Some(inner);
    }
    path.split('/').next().map(|name| name.strip_suffix(".rs").unwrap_or(name))
}

/// All source files below `directory` without tests, always in the same order.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(|error| naming(directory, &error))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !is_test {
            files.extend(self::files(&path)?);
        } else if !is_test && path.extension().is_some_and(|extension| extension == "rs" || extension == "txt") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The entries of [`PACKAGES`] in a `Cargo.lock`, in the order of that file.
fn packages(lock: &str) -> impl Iterator<Item = &str> {
    lock.split("[[package]]").filter(|package| {
        let name = package.lines().find_map(|line| line.strip_prefix("name = \""));
        name.is_some_and(|name| PACKAGES.iter().any(|package| name.starts_with(package)))
    })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| naming(path, &error))
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::other(format!("{} cannot be read: {error}", path.display()))
}
