//! Extensions in npm packages of their own, which an installation may leave out.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Artefact, ArtefactError, EXTENSIONS, LIBRARIES, PinnedFile, pinned, verify};
use crate::engine::cache::Cache;

/// A package with the bundle of an extension, or of several.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in npm, in the scope of PGlite's.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The bundle in its `dist` directory, in the form of those of contrib.
    pub bundle: PinnedFile,
    /// Whether `pglite/package.json` has it, so that it is installed with PGlite unless somebody leaves it out.
    pub is_usual: bool,
    /// The extensions in it.
    pub extensions: &'static [&'static str],
    /// The side modules in it.
    pub libraries: &'static [PinnedFile],
    /// The one of them that the others need, without saying so in their files.
    pub first: Option<&'static str>,
}

/// The scope of PGlite's packages in npm.
const SCOPE: &str = "@electric-sql";

/// Every package that is offered where it is installed.
pub const PACKAGES: [Package; 9] = [
    Package {
        name: "pglite-age",
        version: "0.0.15",
        bundle: pinned("age.tar.gz", "07802702d313f4d690f058328ce85bfe6fc8110bae5821635bdf6a4a620bfe06"),
        is_usual: true,
        extensions: &["age"],
        libraries: &[pinned("age.so", "14f6ab67e65984aa2b74a84691de5fae29e1cf8e0deddbc6cb45bc8153448091")],
        first: None,
    },
    Package {
        name: "pglite-pg_hashids",
        version: "0.0.15",
        bundle: pinned("pg_hashids.tar.gz", "3d90da8586395c5afb2153db1a452a90e749f5ee284737ffdb8a253b55067f79"),
        is_usual: true,
        extensions: &["pg_hashids"],
        libraries: &[pinned("pg_hashids.so", "858917ec7e2d099aff0cac6e6169d19740fd1f023e15136489ad97359c5891b7")],
        first: None,
    },
    Package {
        name: "pglite-pg_ivm",
        version: "0.0.15",
        bundle: pinned("pg_ivm.tar.gz", "755b58ee42a9eed1c28b4c60b46665b8696b203e17d32b28cd502a8052bc8a78"),
        is_usual: true,
        extensions: &["pg_ivm"],
        libraries: &[pinned("pg_ivm.so", "1049453791f67c096646dff1b07485a330753ca8522e74d2f380c4b44e753f6f")],
        first: None,
    },
    Package {
        name: "pglite-pg_textsearch",
        version: "0.0.16",
        bundle: pinned("pg_textsearch.tar.gz", "1b5e0ef070c3cf1e04e8f3093f1ff3aa95d0b45397ff6b8f352c0d2904800127"),
        is_usual: true,
        extensions: &["pg_textsearch"],
        libraries: &[pinned("pg_textsearch.so", "fc394817dfe706c2994d95b4be39e618ba7a05b0e607ea4d4f035de48c2c70c0")],
        first: None,
    },
    Package {
        name: "pglite-pg_uuidv7",
        version: "0.0.15",
        bundle: pinned("pg_uuidv7.tar.gz", "bb301748c125863505aad7cde53f5fd1b16497934461c1f4dfe21bae7c0ffc4c"),
        is_usual: true,
        extensions: &["pg_uuidv7"],
        libraries: &[pinned("pg_uuidv7.so", "a86d90460f3be67b9a7ea7c8e84e5d6708a7507ab9992fa67096f1cc5f4c8400")],
        first: None,
    },
    Package {
        name: "pglite-pgmq",
        version: "0.0.6",
        bundle: pinned("pgmq.tar.gz", "b89077890854d85eeaf16a5691638874831df8fd17aed770a9753119b605d0ac"),
        is_usual: true,
        extensions: &["pgmq"],
        libraries: &[],
        first: None,
    },
    Package {
        name: "pglite-pgtap",
        version: "0.0.15",
        bundle: pinned("pgtap.tar.gz", "1f221b4d7c59f58bb49d9d84c884c82cddc5389d75fc1d2db855a408774daf36"),
        is_usual: true,
        extensions: &["pgtap"],
        libraries: &[],
        first: None,
    },
    Package {
        name: "pglite-pgvector",
        version: "0.0.15",
        bundle: pinned("vector.tar.gz", "770cd826597c693a8ae5688b6b7beb0df5a593a1f482e48b84673954cbd69c13"),
        is_usual: true,
        extensions: &["vector"],
        libraries: &[pinned("vector.so", "d217e7640cb47d854288731c8a03cd0046a05a55797979ee3ea2f8e2ad40db75")],
        first: None,
    },
    Package {
        name: "pglite-postgis",
        version: "0.2.8",
        bundle: pinned("postgis.tar.gz", "d46efee2dd5866127338b0ff1b085ec2ec4ae951d6b093891c33b9c28554581a"),
        is_usual: false,
        extensions: &["postgis", "postgis_raster", "postgis_tiger_geocoder", "postgis_topology"],
        libraries: &[
            pinned("postgis-3.so", "b30660ec1a4e4b4e8ec10e816c36d94c0af26e5339aff41309d3721ed9414661"),
            pinned("postgis_topology-3.so", "9a1aa4ef6e52c0dd270458c5a86b07cc464b3321f473ad142366d609d0d12a08"),
            pinned("postgis_raster-3.so", "0844bd39ef13beaaa3f0c0ca3708a1103f818d30446648e6f7eef3c2a3347b7e"),
        ],
        first: Some("postgis-3.so"),
    },
];

impl Package {
    /// How to get it where it is missing.
    #[must_use]
    pub fn advice(&self) -> String {
        let Self { name, version, bundle, is_usual, .. } = self;
        let command = if *is_usual {
            "`npm ci` in pglite/ without --omit=optional".to_owned()
        } else {
            format!("`npm install --no-save {SCOPE}/{name}@{version}` in pglite/")
        };
        format!(
            "Install {SCOPE}/{name} {version} beside PGlite: {command}, or put its {} into the directory with PGlite's \
             files.",
            bundle.name
        )
    }

    /// The package with a library in a file of this name.
    #[must_use]
    pub fn with_library(file: &str) -> Option<&'static Self> {
        PACKAGES.iter().find(|package| package.has_library(file))
    }

    /// Whether it has a library in a file of this name.
    #[must_use]
    pub fn has_library(&self, file: &str) -> bool {
        self.libraries.iter().any(|library| library.name == file)
    }

    /// The package with this extension.
    #[must_use]
    pub fn with_extension(extension: &str) -> Option<&'static Self> {
        PACKAGES.iter().find(|package| package.extensions.contains(&extension))
    }
}

/// Why the bundle of a package that is there cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// It cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// It has a different hash.
    #[error(
        "{} is not the file of {SCOPE}/{} {}: its SHA-256 is {found}, expected {}; for another version, give it with \
         --extension",
        path.display(), package.name, package.version, package.bundle.sha256
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The package.
        package: &'static Package,
        /// The file's hash.
        found: String,
    },
}

impl Artefact {
    /// The file with the bundle of `package`, or `None` if it is not installed. It is looked for beside PGlite's files,
    /// in the package's directory beside PGlite's package, and beside the executable. As with PGlite's own files, the
    /// hash of one that was checked before is not computed again.
    ///
    /// # Errors
    /// [`PackageError`]
    pub fn bundle(&self, package: &'static Package, cache: &Cache) -> Result<Option<PathBuf>, PackageError> {
        let name = package.bundle.name;
        let beside_package = self.directory.join("../..").join(package.name).join("dist").join(name);
        let executable = std::env::current_exe().ok();
        let beside_executable = executable.as_deref().and_then(Path::parent).map(|directory| directory.join(name));
        let places = [Some(self.directory.join(name)), Some(beside_package), beside_executable];
        let Some(path) = places.into_iter().flatten().find(|path| path.exists()) else { return Ok(None) };
        match verify(&path, package.bundle, cache) {
            Ok(()) => Ok(Some(path)),
            Err(ArtefactError::Foreign { path, found, .. }) => Err(PackageError::Foreign { path, package, found }),
            Err(ArtefactError::Unreadable { path, error }) => Err(PackageError::Unreadable { path, error }),
            Err(ArtefactError::Missing { .. } | ArtefactError::MissingTool { .. }) => Ok(None),
        }
    }
}

/// Whether PGlite itself has the extension `extension`, or a library of that name.
pub(crate) fn is_of_pglite(extension: &str) -> bool {
    let is_bundle = |file: &PinnedFile| file.name.strip_suffix(".tar.gz") == Some(extension);
    let is_library = |file: &PinnedFile| file.name.strip_suffix(".so") == Some(extension);
    EXTENSIONS.iter().any(is_bundle) || LIBRARIES.iter().any(is_library)
}

/// The file name of the library that the one whose file has this SHA-256 needs, besides those that its file names.
pub(crate) fn first_library(sha256: &str) -> Option<&'static str> {
    let package = PACKAGES.iter().find(|package| package.libraries.iter().any(|library| library.sha256 == sha256))?;
    package.first.filter(|first| package.libraries.iter().any(|it| it.name == *first && it.sha256 != sha256))
}

/// The library of a package whose file has this SHA-256.
pub(super) fn library(sha256: &str) -> Option<PinnedFile> {
    let mut libraries = PACKAGES.iter().flat_map(|package| package.libraries);
    libraries.find(|library| library.sha256 == sha256).copied()
}
