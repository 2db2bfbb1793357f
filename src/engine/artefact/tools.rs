//! PostgreSQL's client programs, which come in an npm package of their own.

use std::{fs, path::PathBuf};

use super::{Artefact, ArtefactError, PinnedFile, check_hash, pinned};

/// The version of the npm package `@electric-sql/pglite-tools`.
pub const TOOLS_VERSION: &str = "0.4.8";

/// `pg_dump` of PostgreSQL 18.3.
pub const PG_DUMP_WASM: PinnedFile =
    pinned("pg_dump.wasm", "cdbc551ec339cc9867003203bc8f03911858be2be92b3e88376922b09ccdf58c");

/// The place of that package's files, from PGlite's files on, as npm puts them.
const BESIDE_PGLITE: &str = "../../pglite-tools/dist";

impl Artefact {
    /// The content of the client program `file`, which is beside PGlite's files, or in a package beside PGlite's.
    ///
    /// # Errors
    /// When it is in neither place, cannot be read, or has a different hash.
    pub fn read_tool(&self, file: PinnedFile) -> Result<Vec<u8>, ArtefactError> {
        let places: Vec<PathBuf> =
            ["", BESIDE_PGLITE].iter().map(|place| self.directory.join(place).join(file.name)).collect();
        let Some(path) = places.iter().find(|path| path.is_file()) else {
            return Err(ArtefactError::MissingTool { name: file.name, places });
        };
        let content = fs::read(path).map_err(|error| ArtefactError::Unreadable { path: path.clone(), error })?;
        check_hash(path, file, &content)?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_places_and_what_to_do() {
        let outer = tempfile::tempdir().unwrap();
        let artefact = Artefact { directory: outer.path().join("pglite/dist") };
        let error = artefact.read_tool(PG_DUMP_WASM).unwrap_err().to_string();
        assert!(error.contains("pglite/dist/pg_dump.wasm") && error.contains("pglite-tools/dist"), "{error}");
        assert!(error.contains(TOOLS_VERSION) && error.contains("npm ci"), "{error}");
    }

    #[test]
    fn a_foreign_program_is_refused_in_both_places() {
        let outer = tempfile::tempdir().unwrap();
        let artefact = Artefact { directory: outer.path().join("pglite/dist") };
        let directories = ["pglite-tools/dist", "pglite/dist"];
        directories.iter().for_each(|directory| fs::create_dir_all(outer.path().join(directory)).unwrap());
        for directory in directories {
            fs::write(outer.path().join(directory).join("pg_dump.wasm"), "not wasm").unwrap();
            let error = artefact.read_tool(PG_DUMP_WASM).unwrap_err();
            assert!(matches!(error, ArtefactError::Foreign { .. }), "{directory}: {error}");
        }
    }
}
