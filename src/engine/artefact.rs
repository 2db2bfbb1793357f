//! The pinned PGlite files: their location, and the check that they are the supported version.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::verified::{self, VerifyError};
use crate::{engine::cache::Cache, sources::hex_digest};

mod extensions;
mod libraries;
mod packages;
mod tools;

pub use extensions::EXTENSIONS;
pub use libraries::LIBRARIES;
pub(crate) use libraries::library;
pub use packages::{PACKAGES, Package, PackageError};
pub(crate) use packages::{first_library, is_of_pglite};
pub use tools::{PG_DUMP_WASM, TOOLS_VERSION};

/// The version of the npm package `@electric-sql/pglite` whose files are hosted.
pub const PGLITE_VERSION: &str = "0.5.16";
/// The version of PostgreSQL in it.
pub const POSTGRES_VERSION: &str = "18.6";

/// Its major version, which is the format of a data directory.
pub const MAJOR_VERSION: &str = "18";

/// One file of the package's `dist` directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedFile {
    /// Its name in `dist`.
    pub name: &'static str,
    /// The SHA-256 of its content, in lower-case hexadecimal digits.
    pub sha256: &'static str,
}

const fn pinned(name: &'static str, sha256: &'static str) -> PinnedFile {
    PinnedFile { name, sha256 }
}

/// The PostgreSQL backend.
pub const PGLITE_WASM: PinnedFile =
    PinnedFile { name: "pglite.wasm", sha256: "5256d9ac379f631355f41ab30291e6a6d9f854242b5ee2a2d0940e28041d3fca" };
/// `initdb`, which makes a new cluster by running the backend.
pub const INITDB_WASM: PinnedFile =
    PinnedFile { name: "initdb.wasm", sha256: "63d8b9d54110f827711545a338a643621e65b5658f09e1acfcf36073be365ce2" };
/// The 699 files that the backend expects below `/pglite`, concatenated.
pub const PGLITE_DATA: PinnedFile =
    PinnedFile { name: "pglite.data", sha256: "d73cf4ba1b0bf92f80f088ce7d23b17f9bc175327d7584ec2a713b27e9758c31" };
/// Emscripten's JavaScript, of which only the index of `pglite.data` is read.
pub const PGLITE_JS: PinnedFile =
    PinnedFile { name: "pglite.js", sha256: "b4ee8cc358344c9e495a57b4301938178bec1a2c6d6fad10cd600f5f8632b2a0" };

/// The files that every backend needs to start.
pub const PINNED_FILES: [PinnedFile; 4] = [PGLITE_WASM, INITDB_WASM, PGLITE_DATA, PGLITE_JS];

/// A directory with the pinned files. Their hashes are checked when it is found, those of the extensions when they are
/// read.
#[derive(Clone, Debug)]
pub struct Artefact {
    directory: PathBuf,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// No place contains them.
    #[error(
        "PGlite {PGLITE_VERSION} was not found in {}; \
         run `npm ci` in pglite/, or name its dist directory with --pglite-dir or PGLITE_DIR",
        places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Missing {
        /// The places that were searched.
        places: Vec<PathBuf>,
    },
    /// A client program of PostgreSQL is in no place.
    #[error(
        "{name} was not found: neither {}; run `npm ci` in pglite/, or put that file of the npm package \
         @electric-sql/pglite-tools {TOOLS_VERSION} beside PGlite's files",
        places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" nor ")
    )]
    MissingTool {
        /// The file.
        name: &'static str,
        /// The paths that were tried.
        places: Vec<PathBuf>,
    },
    /// A file cannot be read.
    #[error(
        "{} cannot be read: {error}; install PGlite {PGLITE_VERSION} again with `npm ci` in pglite/",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// A file has a different hash.
    #[error(
        "{} is not the file of PGlite {PGLITE_VERSION}: its SHA-256 is {found}, expected {expected}; \
         install it again with `npm ci` in pglite/",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The pinned hash.
        expected: &'static str,
        /// The file's hash.
        found: String,
    },
}

impl Artefact {
    /// Finds the files in `directory`, or if that is `None` in `pglite/` beside the executable, beside it, in `priv/`
    /// above it, or in `pglite/node_modules` of the source tree, and checks their hashes.
    ///
    /// A file whose hash was checked before is not read again if its inode, size and times are the same; `cache`
    /// stores these.
    ///
    /// # Errors
    /// See [`ArtefactError`].
    pub fn find(directory: Option<&Path>, cache: &Cache) -> Result<Self, ArtefactError> {
        let places = match directory {
            Some(directory) => vec![directory.to_path_buf()],
            None => default_places(),
        };
        let directory = places
            .iter()
            .find(|place| place.join(PGLITE_WASM.name).is_file())
            .cloned()
            // If a given directory has only some of the files, the error names the missing file.
            .or_else(|| directory.filter(|named| named.is_dir()).map(Path::to_path_buf))
            .ok_or(ArtefactError::Missing { places })?;
        for file in PINNED_FILES {
            verify(&directory.join(file.name), file, cache)?;
        }
        Ok(Self { directory })
    }

    /// The path of `file`.
    #[must_use]
    pub fn path(&self, file: PinnedFile) -> PathBuf {
        self.directory.join(file.name)
    }

    /// The content of `file`.
    ///
    /// # Errors
    /// When it cannot be read, or has changed since it was found.
    pub fn read(&self, file: PinnedFile) -> Result<Vec<u8>, ArtefactError> {
        let path = self.path(file);
        let content = fs::read(&path).map_err(|error| ArtefactError::Unreadable { path: path.clone(), error })?;
        check_hash(&path, file, &content)?;
        Ok(content)
    }
}

fn default_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Ok(executable) = std::env::current_exe() {
        // `pglite-port` with `pglite/` beside it, as in an archive of the program; `priv/pglite-port` with the files
        // beside it; or `<root>/target/<profile>/pglite-port`.
        places.extend(executable.parent().into_iter().flat_map(|beside| [beside.join("pglite"), beside.to_path_buf()]));
        places.extend(executable.ancestors().skip(1).take(4).map(|above| above.join("priv")));
        places.extend(
            executable
                .ancestors()
                .skip(1)
                .take(4)
                .map(|above| above.join("pglite/node_modules/@electric-sql/pglite/dist")),
        );
    }
    places.push("pglite/node_modules/@electric-sql/pglite/dist".into());
    places
}

fn verify(path: &Path, file: PinnedFile, cache: &Cache) -> Result<(), ArtefactError> {
    let path_of = || path.to_path_buf();
    verified::verify(path, file.sha256, cache).map_err(|error| match error {
        VerifyError::Unreadable(error) => ArtefactError::Unreadable { path: path_of(), error },
        VerifyError::Foreign(found) => ArtefactError::Foreign { path: path_of(), expected: file.sha256, found },
    })
}

fn check_hash(path: &Path, file: PinnedFile, content: &[u8]) -> Result<(), ArtefactError> {
    let found = hex_digest(&[content]);
    if found == file.sha256 {
        Ok(())
    } else {
        Err(ArtefactError::Foreign { path: path.to_path_buf(), expected: file.sha256, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(outer: &tempfile::TempDir) -> Cache {
        Cache::open(Some(&outer.path().join("cache"))).unwrap()
    }

    #[test]
    fn a_missing_artefact_names_the_places_and_what_to_do() {
        let outer = tempfile::tempdir().unwrap();
        let error = Artefact::find(Some(Path::new("/nowhere")), &cache(&outer)).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("npm ci") && error.contains("--pglite-dir"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_named_with_the_expected_and_the_found_hash() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("pglite.wasm"), "not wasm").unwrap();
        let error = Artefact::find(Some(outer.path()), &cache(&outer)).unwrap_err().to_string();
        assert!(error.contains("pglite.wasm"), "{error}");
        assert!(error.contains(PGLITE_WASM.sha256), "{error}");
        assert!(error.contains(&hex_digest(&[b"not wasm"])), "{error}");
    }
}
