//! Data of a side module: bytes, the pointers in them, and their symbols.

use std::collections::BTreeMap;

/// The size of a pointer, in bytes.
pub(super) const POINTER_SIZE: u32 = 4;

/// What a pointer points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pointee {
    /// Data of the side module, at this offset.
    Own(u32),
    /// The datum that the main module has under this symbol, and so many bytes behind it.
    Imported(String, u32),
    /// The function of the side module in this place of its table.
    Function(u32),
}

/// A word of data.
pub(super) enum Word {
    Number(u32),
    Pointer(Pointee),
}

/// The data of a side module.
#[derive(Default)]
pub(super) struct Data {
    pub(super) bytes: Vec<u8>,
    /// What is to be written at which offset, when the side module is at its place.
    pub(super) pointers: Vec<(u32, Pointee)>,
    /// The offset of each symbol.
    pub(super) symbols: BTreeMap<String, u32>,
}

impl Data {
    /// Where the next datum will be.
    pub(super) fn end(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// Adds words; returns their offset.
    pub(super) fn words(&mut self, words: impl IntoIterator<Item = Word>) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(POINTER_SIZE as usize), 0);
        let start = self.end();
        for word in words {
            let number = match word {
                Word::Number(number) => number,
                Word::Pointer(pointee) => {
                    self.pointers.push((self.end(), pointee));
                    0
                }
            };
            self.bytes.extend(number.to_le_bytes());
        }
        start
    }

    /// Adds words that have a symbol; returns their offset.
    pub(super) fn named(&mut self, symbol: String, words: impl IntoIterator<Item = Word>) -> u32 {
        let offset = self.words(words);
        self.symbols.insert(symbol, offset);
        offset
    }

    /// Adds a C string; returns its offset.
    pub(super) fn text(&mut self, text: &str) -> u32 {
        let start = self.end();
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
        start
    }
}
