//! A bundle: a `.tar.gz` with the files of extensions, in the form of those that come with PGlite.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};

use super::unpacked::Unpacked;
use crate::{
    backend::program::Program,
    engine::{
        artefact::{self, Package},
        cache::Cache,
    },
    fs::{FrozenTree, read_archive, tree_of},
    sources::hex_digest,
};

/// Where control files and scripts are.
const SCRIPTS: &str = "/share/postgresql/extension/";
/// Where all files but libraries are, and those of them that no SQL reads.
const SHARE: &str = "share/";
const DOCUMENTATION: &str = "share/doc/";
/// Where libraries are.
const LIBRARIES: &str = "/lib/postgresql/";

/// How many unresolved symbols a message names.
const NAMED: usize = 10;

/// Where a bundle is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Package(&'static Package),
    /// A file of the user's own.
    File(PathBuf),
}

/// What is in a bundle.
pub(super) struct Bundle {
    pub(super) origin: Origin,
    /// The SHA-256 of its file.
    pub(super) digest: String,
    /// The names of its extensions, those of control files.
    extensions: Vec<String>,
    /// File name and SHA-256 of each library.
    pub(super) libraries: Vec<(String, String)>,
    unpacked: Unpacked,
}

impl Bundle {
    /// The bundle of `package` in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or was replaced after its hash was compared.
    pub(super) fn of_package(package: &'static Package, path: &Path, cache: &Cache) -> anyhow::Result<Self> {
        let digest = package.bundle.sha256;
        let unpacked = Unpacked::open(cache, digest, &Program::key(), || {
            let archive = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
            // The comparison before may be one of another run of the program, and what is unpacked here stays.
            let found = hex_digest(&[&archive]);
            ensure!(found == digest, "the SHA-256 of {} is {found}, expected {digest}", path.display());
            unpack(&archive)
        })?;
        let libraries = package.libraries.iter().map(|file| (file.name.to_owned(), file.sha256.to_owned())).collect();
        let extensions = package.extensions.iter().map(|&name| name.to_owned()).collect();
        Ok(Self { origin: Origin::Package(package), digest: digest.to_owned(), extensions, libraries, unpacked })
    }

    /// The bundle in the file at `path`. `others` are those that are offered already.
    ///
    /// # Errors
    /// When it cannot be read, is no bundle, or does not work with this program; the message says what is wrong.
    pub(super) fn of_file(path: &Path, program: &Program, cache: &Cache, others: &[Self]) -> anyhow::Result<Self> {
        let archive = fs::read(path).context("the file cannot be read")?;
        let digest = hex_digest(&[&archive]);
        let unpacked = Unpacked::open(cache, &digest, &Program::key(), || {
            let tree = unpack(&archive)?;
            check(&tree, program)?;
            Ok(tree)
        })?;
        let tree = unpacked.tree();
        let extensions = extensions(tree).collect();
        let libraries = libraries(tree).map(|(name, wasm)| (name, hex_digest(&[&wasm]))).collect();
        let bundle = Self { origin: Origin::File(path.to_owned()), digest, extensions, libraries, unpacked };
        bundle.check_names(others)?;
        Ok(bundle)
    }

    /// # Errors
    /// When a name is that of something that PGlite or another bundle has.
    fn check_names(&self, others: &[Self]) -> anyhow::Result<()> {
        for name in self.names() {
            ensure!(!artefact::is_of_pglite(name), "PGlite has {name:?} itself: give it another name");
            match others.iter().find(|other| other.names().any(|other| other == name)).map(|other| &other.origin) {
                Some(Origin::Package(package)) => {
                    bail!("{name:?} is that of the installed package {}: remove that, or rename this", package.name)
                }
                Some(Origin::File(path)) => bail!("{name:?} is in {} as well", path.display()),
                None => {}
            }
        }
        Ok(())
    }

    /// The names of its extensions and of its libraries.
    fn names(&self) -> impl Iterator<Item = &str> {
        let libraries = self.libraries.iter().map(|(name, _)| name.trim_end_matches(".so"));
        self.extensions.iter().map(String::as_str).chain(libraries)
    }

    pub(super) fn has(&self, extension: &str) -> bool {
        self.extensions.iter().any(|name| name == extension)
    }

    /// Its files, and a text that identifies them.
    pub(super) fn files(&self) -> (&FrozenTree, &str) {
        (self.unpacked.tree(), &self.digest)
    }
}

/// The files of an archive.
fn unpack(archive: &[u8]) -> anyhow::Result<Arc<FrozenTree>> {
    let files = read_archive(archive)?;
    let is_shared = |path: &str| path.starts_with(SHARE) && !path.starts_with(DOCUMENTATION);
    let is_wanted = |path: &str| is_shared(path) || path.starts_with(&LIBRARIES[1..]);
    let has_control = files.iter().any(|file| control_name(&format!("/{}", file.path)).is_some());
    let elsewhere = files.iter().find(|file| has_extension(&file.path, "control"));
    let elsewhere = elsewhere.map(|file| format!(" ({} is at another place)", file.path)).unwrap_or_default();
    ensure!(has_control, "it has no control file {}NAME.control{elsewhere}", &SCRIPTS[1..]);
    Ok(tree_of(files, is_wanted)?)
}

/// Checks that the extensions in a bundle can be created with this program.
///
/// # Errors
/// When they cannot; the message says what is wrong.
fn check(tree: &FrozenTree, program: &Program) -> anyhow::Result<()> {
    let paths = tree.paths();
    for extension in extensions(tree) {
        let start = format!("{SCRIPTS}{extension}--");
        let has_script = paths.iter().any(|path| path.starts_with(&start) && has_extension(path, "sql"));
        ensure!(has_script, "the extension {extension:?} has no script {}--VERSION.sql", &start[1..start.len() - 2]);
    }
    let mut symbols = HashSet::new();
    for (name, wasm) in libraries(tree) {
        symbols.extend(program.libraries().symbols(&wasm).with_context(|| format!("the library {name}"))?);
    }
    for (name, wasm) in libraries(tree) {
        let unresolved = program.unresolved(&wasm, &symbols)?;
        let (named, more) = unresolved.split_at(unresolved.len().min(NAMED));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let named = named.join(", ");
        ensure!(
            unresolved.is_empty(),
            "the library {name} needs {named}{more}, which PGlite does not have: build it for this version of PGlite"
        );
    }
    Ok(())
}

/// The names of the extensions whose control files are in a tree.
fn extensions(tree: &FrozenTree) -> impl Iterator<Item = String> {
    tree.paths().into_iter().filter_map(|path| control_name(&path).map(str::to_owned))
}

/// File name and content of the libraries in a tree.
fn libraries(tree: &FrozenTree) -> impl Iterator<Item = (String, Vec<u8>)> {
    let paths = tree.paths().into_iter().filter(|path| has_extension(path, "so"));
    paths.filter_map(|path| Some((path.strip_prefix(LIBRARIES)?.to_owned(), tree.read(&path)?)))
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// The name of the extension whose control file has this path. Secondary control files, for one version, have `--` in
/// their names.
fn control_name(path: &str) -> Option<&str> {
    let name = path.strip_prefix(SCRIPTS)?.strip_suffix(".control")?;
    (!name.is_empty() && !name.contains('/') && !name.contains("--")).then_some(name)
}
