//! ICU's resource bundles, written as binary files (`.res`).
//!
//! The format is that of ICU's `icu4c/source/common/uresdata.h`, version 2.0, without a pool bundle. Of its several
//! kinds of tables and strings only the oldest are written; the newer ones are smaller.

use std::collections::BTreeMap;

use super::header::file_with_header;

/// Types of resources in the upper four bits of a resource word.
const STRING: u32 = 0;
const TABLE: u32 = 2;

/// The number of words in `indexes`: `URES_INDEX_TOP`.
const INDEXES: usize = 8;
/// `URES_ATT_NO_FALLBACK`: the bundle has no parent.
const NO_FALLBACK: u32 = 1;

/// A value in a bundle.
#[derive(Clone, Debug)]
pub(super) enum Resource {
    /// A string.
    String(String),
    /// Values by key; keys are ASCII.
    Table(BTreeMap<String, Resource>),
}

impl From<&str> for Resource {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl<K: Into<String>, V: Into<Resource>, const N: usize> From<[(K, V); N]> for Resource {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Into<String>, V: Into<Resource>> FromIterator<(K, V)> for Resource {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        Self::Table(entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl Resource {
    /// The file of a bundle with this root, a table. Its keys take less than 64 KiB.
    pub(super) fn to_file(&self) -> Vec<u8> {
        let mut writer = Writer { keys: BTreeMap::new(), key_bytes: Vec::new(), words: Vec::new(), longest: 0 };
        writer.collect_keys(self);
        // Align the words of tables, which follow the keys.
        writer.key_bytes.resize(writer.key_bytes.len().next_multiple_of(4), 0xaa);
        let root = writer.put(self);
        let keys_top = u32_of(1 + INDEXES + writer.key_bytes.len() / 4);
        let top = keys_top + u32_of(writer.words.len());
        // In the order of the `URES_INDEX_*` constants.
        let indexes: [u32; INDEXES] =
            [u32_of(INDEXES), keys_top, top, top, u32_of(writer.longest), NO_FALLBACK, keys_top, 0];
        let mut content = root.to_le_bytes().to_vec();
        content.extend(indexes.iter().flat_map(|word| word.to_le_bytes()));
        content.extend(&writer.key_bytes);
        content.extend(writer.words.iter().flat_map(|word| word.to_le_bytes()));
        file_with_header(*b"ResB", [2, 0, 0, 0], &content)
    }
}

/// A length in memory as a number of the format.
fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

struct Writer {
    /// Offsets of the keys from the root word.
    keys: BTreeMap<String, u16>,
    key_bytes: Vec<u8>,
    /// All values except the root word; they follow the keys.
    words: Vec<u32>,
    /// The length of the longest table.
    longest: usize,
}

impl Writer {
    fn collect_keys(&mut self, resource: &Resource) {
        let Resource::Table(entries) = resource else { return };
        for (key, value) in entries {
            if !self.keys.contains_key(key) {
                let offset = (1 + INDEXES) * 4 + self.key_bytes.len();
                self.keys.insert(key.clone(), u16::try_from(offset).unwrap_or(u16::MAX));
                self.key_bytes.extend(key.as_bytes());
                self.key_bytes.push(0);
            }
            self.collect_keys(value);
        }
    }

    /// Writes the value and returns its resource word.
    fn put(&mut self, resource: &Resource) -> u32 {
        match resource {
            Resource::String(text) if text.is_empty() => STRING << 28,
            Resource::String(text) => {
                let units: Vec<u16> = text.encode_utf16().collect();
                let at = self.here(STRING);
                self.words.push(u32_of(units.len()));
                self.put_halves(units.into_iter().chain([0]));
                at
            }
            Resource::Table(entries) => {
                // Children first, because a table contains their words. The map iterates over keys in ASCII order,
                // which the format requires.
                let values: Vec<u32> = entries.values().map(|value| self.put(value)).collect();
                let offsets: Vec<u16> = entries.keys().map(|key| self.keys.get(key).copied().unwrap_or(0)).collect();
                self.longest = self.longest.max(entries.len());
                let at = self.here(TABLE);
                let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
                self.put_halves([count].into_iter().chain(offsets));
                self.words.extend(values);
                at
            }
        }
    }

    /// The resource word of the next value, which has that type.
    fn here(&self, kind: u32) -> u32 {
        kind << 28 | u32_of(1 + INDEXES + self.key_bytes.len() / 4 + self.words.len())
    }

    fn put_halves(&mut self, halves: impl Iterator<Item = u16>) {
        let halves: Vec<u16> = halves.collect();
        let word = |pair: &[u16]| pair.iter().rev().fold(0, |word, half| word << 16 | u32::from(*half));
        self.words.extend(halves.chunks(2).map(word));
    }
}
