//! ICU's data, which decide what ICU collations can do: those that PGlite left out and that can be made here, and
//! those that a user brings.
//!
//! PGlite has the root collation and nothing else. A collation's attributes (`ks-level2`, `kn-true`), `initcap` and
//! the list of locales need small files, which are made here from facts of Unicode and CLDR. Languages with a
//! collation of their own need ICU's own data.
//!
//! * `header`: what every file of ICU's begins with
//! * `resource`: resource bundles
//! * `code_points`: a map from code points, in ICU's form
//! * `key_types`, `locales`, `words`: the files that are made here
//! * `package`: data that a user brings

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

/// Where the guest's ICU looks for its data: `ICU_DATA` in the guest's environment, and the name of its version's
/// data.
pub(crate) const DIRECTORY: &str = "/pglite/icu/icudt76l";

/// ICU's data besides those that PGlite has.
pub struct IcuData {
    /// By their path below [`DIRECTORY`].
    files: BTreeMap<String, Vec<u8>>,
    digest: [u8; 32],
}

impl IcuData {
    /// The files that are made here, and those at `path`, which come first: a directory with ICU's files or a
    /// package (`.dat`).
    ///
    /// # Errors
    /// When the path cannot be read, or has something else than data of ICU 76.
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

    /// Differs between data that differ.
    pub(crate) fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// Paths in the guest, and contents.
    pub(crate) fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.files.iter().map(|(name, bytes)| (format!("{DIRECTORY}/{name}"), bytes.as_slice()))
    }
}

/// `brkitr/root.res`: which file has the rules for words.
fn word_rules() -> Vec<u8> {
    Resource::from([("boundaries", Resource::from([("word", "word.brk")]))]).to_file()
}
