//! A map from code points to bytes in ICU's binary form: `UCPTrie` of type "fast" with 8-bit values
//! (`icu4c/source/common/ucptrie_impl.h`).

use std::collections::HashMap;

/// `Tri3`.
const SIGNATURE: u32 = 0x5472_6933;
/// Fast type in bits 7..6 and 8-bit values in bits 2..0.
const OPTIONS: u16 = 2;
/// Values in the block of a code point of the Basic Multilingual Plane, and of a supplementary code point.
const BASIC_BLOCK: usize = 64;
const SUPPLEMENTARY_BLOCK: usize = 16;
/// The number of entries in the tables of the second and third level.
const FANOUT: usize = 32;
/// `UCPTRIE_BMP_INDEX_LENGTH`.
const BASIC_INDEX: usize = 0x1_0000 / BASIC_BLOCK;
/// The value for "no null block".
const NO_INDEX_NULL: u16 = 0x7fff;
const NO_DATA_NULL: u32 = 0xf_ffff;

/// The trie of `values`, one for each code point from 0 on. Code points after its end have the value `rest`. The
/// number of different blocks must be small.
pub(super) fn trie(values: &[u8], rest: u8) -> Vec<u8> {
    let step = SUPPLEMENTARY_BLOCK * FANOUT;
    let mut values = values.to_vec();
    values.resize(values.len().max(0x1_0000).next_multiple_of(step), rest);
    let high_start = values.len();
    let (basic, supplementary) = values.split_at(0x1_0000);
    let mut data = Blocks::default();
    let mut index: Vec<u16> = basic.chunks(BASIC_BLOCK).map(|block| data.place(block)).collect();
    // Three levels: one entry here for 32 tables of 32 blocks of 16 values.
    let tables: Vec<Vec<u16>> = supplementary
        .chunks(step)
        .map(|part| part.chunks(SUPPLEMENTARY_BLOCK).map(|block| data.place(block)).collect())
        .collect();
    let first_level = tables.len().div_ceil(FANOUT);
    index.resize(BASIC_INDEX + first_level, 0);
    let mut third = Blocks { values: Vec::new(), start: u16_of(index.len()), ..Blocks::default() };
    let second: Vec<u16> = tables.iter().map(|table| third.place(table)).collect();
    index.extend(third.values);
    for (entry, table) in second.chunks(FANOUT).enumerate() {
        index[BASIC_INDEX + entry] = u16_of(index.len());
        index.extend(table);
    }
    // The value of code points from `high_start` on, and the value of what is not a code point.
    data.values.extend([rest, 0]);
    // Align the data, which follow the index.
    index.resize(index.len().next_multiple_of(2), 0);

    let data_length = u32::try_from(data.values.len()).unwrap_or(u32::MAX);
    let upper = |number: u32| u16_of((number >> 16) as usize);
    let lower = |number: u32| u16_of((number & 0xffff) as usize);
    let mut trie = SIGNATURE.to_le_bytes().to_vec();
    for half in [
        OPTIONS | upper(data_length) << 12 | upper(NO_DATA_NULL) << 8,
        u16_of(index.len()),
        lower(data_length),
        NO_INDEX_NULL,
        lower(NO_DATA_NULL),
        u16_of(high_start >> 9),
    ]
    .into_iter()
    .chain(index)
    {
        trie.extend(half.to_le_bytes());
    }
    trie.extend(data.values);
    trie
}

fn u16_of(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Blocks of an array; equal blocks are stored once.
#[derive(Default)]
struct Blocks<T> {
    values: Vec<T>,
    places: HashMap<Vec<T>, u16>,
    /// The offset of the first block.
    start: u16,
    /// The place of the block that came last; blocks beside each other are often equal.
    last: Option<u16>,
}

impl<T: Copy + Eq + std::hash::Hash> Blocks<T> {
    fn place(&mut self, block: &[T]) -> u16 {
        let stored = |place: u16| self.values.get(usize::from(place - self.start)..);
        if let Some(last) = self.last.filter(|last| stored(*last).is_some_and(|stored| stored.starts_with(block))) {
            return last;
        }
        let place = *self.places.entry(block.to_vec()).or_insert_with(|| {
            let place = u16_of(usize::from(self.start) + self.values.len());
            self.values.extend(block);
            place
        });
        self.last = Some(place);
        place
    }
}
