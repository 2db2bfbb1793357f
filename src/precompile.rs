//! Compiles what the program runs in advance, for the archives in which it is given away.

use std::{collections::HashSet, fs, path::Path};

use anyhow::Context;
use wasmparser::{Parser, Payload};

use crate::{
    backend::program::{self, INITDB, PG_DUMP, PGLITE},
    engine::{
        Precompiler,
        artefact::{
            Artefact, EXTENSIONS, INITDB_WASM, PACKAGES, PG_DUMP_WASM, PGLITE_DATA, PGLITE_JS, PGLITE_WASM, library,
        },
        cache::Cache,
    },
    fs::{Archived, open_bundle, read_archive},
    instrument,
    sources::{code_key, hex_digest},
};

/// Compiles `PostgreSQL`, `initdb`, `pg_dump` and all libraries of PGlite and the packages beside it for the machines of
/// `triple`, such as `aarch64-unknown-linux-gnu`, into the new directory `into`. A program that has it as `code/` beside
/// itself compiles nothing at its first start. PGlite's files are those in `pglite`, or those that [`Artefact::find`]
/// finds; `cache` is the cache directory, for the results of checks. Returns the size of the code in bytes.
///
/// # Errors
/// When PGlite's files are not there, this program has no compiler for that machine, or the directory cannot be made.
pub fn precompile(pglite: Option<&Path>, cache: Option<&Path>, triple: &str, into: &Path) -> anyhow::Result<u64> {
    let cache = Cache::open(cache)?;
    let artefact = Artefact::find(pglite, &cache)?;
    let mut compiler = Precompiler::new(triple, into)?;
    let backend = program::backend_wasm(&artefact)?;
    let mut size = compiler.add(PGLITE, &code_key(PGLITE_WASM.sha256), &backend)?;
    let initdb = program::initdb_wasm(&artefact)?;
    size += compiler.add(INITDB, &code_key(INITDB_WASM.sha256), &initdb)?;
    let pg_dump = program::pg_dump_wasm(&artefact)?;
    size += compiler.add(PG_DUMP, &code_key(PG_DUMP_WASM.sha256), &pg_dump)?;
    let mut done = exports(&backend)?;
    for wasm in libraries(&artefact, &cache)? {
        let hash = hex_digest(&[&wasm]);
        let Some(file) = library(&hash).filter(|_| done.insert(hash.clone())) else { continue };
        let wasm = instrument::instrument_side_module(&wasm)?;
        size += compiler.add(file.name, &code_key(&hash), &wasm)?;
        // What linking it compiles besides (`guest/dylink/compiled.rs`).
        for name in imports(&wasm)?.into_iter().filter(|name| instrument::is_invoke(name)) {
            let Some(wasm) = instrument::invoke_module(&[&name]).filter(|_| done.insert(name.clone())) else {
                continue;
            };
            size += compiler.add(&name, &code_key(&name), &wasm)?;
        }
    }
    compiler.finish()?;
    Ok(size)
}

/// The contents of all files that are libraries.
fn libraries(artefact: &Artefact, cache: &Cache) -> anyhow::Result<Vec<Vec<u8>>> {
    let is_library = |path: &str| Path::new(path).extension().is_some_and(|extension| extension == "so");
    let tree = open_bundle(&artefact.path(PGLITE_DATA), &artefact.path(PGLITE_JS))?;
    let paths = tree.paths().into_iter().filter(|path| is_library(path));
    let mut found: Vec<Vec<u8>> = paths.filter_map(|path| tree.read(&path)).collect();
    let mut bundles = EXTENSIONS.iter().map(|bundle| artefact.read(*bundle)).collect::<Result<Vec<_>, _>>()?;
    for package in &PACKAGES {
        if let Some(path) = artefact.bundle(package, cache)? {
            bundles.push(fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?);
        }
    }
    for bundle in bundles {
        for file in read_archive(&bundle[..])?.into_iter().filter(|file| is_library(&file.path)) {
            if let Archived::File { bytes, .. } = file.content {
                found.push(bytes);
            }
        }
    }
    Ok(found)
}

/// The names that a module exports.
fn exports(wasm: &[u8]) -> anyhow::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::ExportSection(section) = payload? {
            for export in section {
                names.insert(export?.name.to_owned());
            }
        }
    }
    Ok(names)
}

/// The names that a module imports.
fn imports(wasm: &[u8]) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::ImportSection(section) = payload? {
            for import in section.into_imports() {
                names.push(import?.name.to_owned());
            }
        }
    }
    Ok(names)
}
