//! ICU data files, which determine what ICU collations can do: small files that are generated here, and files that a
//! user provides.
//!
//! PGlite contains the root collation only. A collation's attributes (`ks-level2`, `kn-true`), `initcap` and the list
//! of locales need small files, which are generated from facts of Unicode and CLDR. Languages with their own collation
//! need ICU's own data.
//!
//! * `header`: the header of every ICU data file
//! * `resource`: resource bundles
//! * `code_points`: a map from code points, in ICU's format
//! * `key_types`, `locales`, `words`: the generated files
//! * `package`: data that a user provides

mod code_points;
mod header;
mod key_types;
mod locales;
mod package;
mod resource;
mod words;

use std::{collections::BTreeMap, path::Path};

use sha2::{Digest, Sha256};

use resource::Resource;

pub(crate) use locales::{Lacking, lacking};
pub use package::IcuDataError;

/// The directory of the guest's ICU data: `ICU_DATA` in the guest's environment, and the name that ICU 76 gives its
/// data.
pub(crate) const DIRECTORY: &str = "/pglite/icu/icudt76l";

/// ICU data that PGlite does not contain.
pub struct IcuData {
    /// By their path below [`DIRECTORY`].
    files: BTreeMap<String, Vec<u8>>,
    digest: [u8; 32],
}

impl IcuData {
    /// The generated files and those at `path`, which replace generated files of the same name: a directory with ICU's
    /// files or a package (`.dat`).
    ///
    /// # Errors
    /// When the path cannot be read, or contains anything but data of ICU 76.
    pub fn open(path: Option<&Path>) -> Result<Self, IcuDataError> {
        let mut files = BTreeMap::from([
            ("keyTypeData.res".to_owned(), key_types::file()),
            ("res_index.res".to_owned(), locales::index_file()),
            ("brkitr/root.res".to_owned(), word_rules()),
            ("brkitr/word.brk".to_owned(), words::file()),
        ]);
        if let Some(path) = path {
            files.extend(package::read(path)?);
        }
        let mut digest = Sha256::new();
        for (name, bytes) in &files {
            for part in [name.as_bytes(), bytes] {
                digest.update(part.len().to_le_bytes());
                digest.update(part);
            }
        }
        Ok(Self { files, digest: digest.finalize().into() })
    }

    /// A digest of all files.
    pub(crate) fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// Paths in the guest, and contents.
    pub(crate) fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.files.iter().map(|(name, bytes)| (format!("{DIRECTORY}/{name}"), bytes.as_slice()))
    }
}

/// `brkitr/root.res`: names the file with the rules for words.
fn word_rules() -> Vec<u8> {
    Resource::from([("boundaries", Resource::from([("word", "word.brk")]))]).to_file()
}
