//! The tables of conversions in the guest's memory (`src/include/mb/pg_wchar.h`).

use super::super::memory::{self, OutOfBounds};
use crate::postgres::encoding::{COMBINED, radix_tree};

/// `pg_mb_radix_tree`: from the bytes of one character to its code in the other encoding.
#[derive(Debug)]
pub(super) struct RadixTree {
    /// The values, 16 or 32 bits wide.
    values: u32,
    wide: bool,
    /// The trees for characters of one, two, three and four bytes.
    roots: [Root; 4],
}

/// The root of the tree for characters of one length.
#[derive(Clone, Copy, Debug, Default)]
struct Root {
    index: u32,
    /// The least and the greatest value of each byte.
    bounds: [(u8, u8); 4],
}

impl RadixTree {
    /// The tree at `address`.
    pub(super) fn read(memory: &[u8], address: u32) -> Result<Self, OutOfBounds> {
        let mut roots = [Root::default(); 4];
        for (root, (offset, length)) in roots.iter_mut().zip(radix_tree::ROOTS.into_iter().zip(1..)) {
            let at = address.wrapping_add(offset);
            root.index = memory::read_u32(memory, at)?;
            let bounds = memory::read_bytes(memory, at.wrapping_add(radix_tree::BOUNDS), 2 * length)?;
            for (bound, pair) in root.bounds.iter_mut().zip(bounds.chunks_exact(2)) {
                *bound = (pair[0], pair[1]);
            }
        }
        let narrow = memory::read_u32(memory, address.wrapping_add(radix_tree::CHARS16))?;
        let wide = memory::read_u32(memory, address.wrapping_add(radix_tree::CHARS32))?;
        Ok(Self { values: if wide == 0 { narrow } else { wide }, wide: wide != 0, roots })
    }

    /// The code of a character of one to four bytes, if it has one.
    pub(super) fn look_up(&self, memory: &[u8], character: &[u8]) -> Result<Option<u32>, OutOfBounds> {
        let Some(root) = character.len().checked_sub(1).and_then(|place| self.roots.get(place)) else {
            return Ok(None);
        };
        let steps = character.iter().zip(&root.bounds);
        if steps.clone().any(|(byte, (least, greatest))| byte < least || byte > greatest) {
            return Ok(None);
        }
        // An index of zero leads to zeros for all following bytes.
        let mut value = root.index;
        for (byte, (least, _)) in steps {
            let index = value.wrapping_add(u32::from(byte - least));
            value = if self.wide {
                memory::read_u32(memory, self.values.wrapping_add(index.wrapping_mul(4)))?
            } else {
                memory::read_u16(memory, self.values.wrapping_add(index.wrapping_mul(2)))?.into()
            };
        }
        Ok(Some(value).filter(|&code| code != 0))
    }
}

/// A sorted array of characters with one code in the local encoding and two in Unicode: three words each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Combined {
    address: u32,
    count: u32,
}

impl Combined {
    /// The array of `count` entries at `address`; none at the null pointer.
    pub(super) fn new(address: u32, count: i32) -> wasmtime::Result<Option<Self>> {
        let count = u32::try_from(count)?;
        Ok((address != 0).then_some(Self { address, count }))
    }

    /// The local code of two characters in a `pg_utf_to_local_combined` array.
    pub(super) fn to_local(self, memory: &[u8], characters: (u32, u32)) -> Result<Option<u32>, OutOfBounds> {
        let found = self.search(memory, |[first, second, _]| (first, second).cmp(&characters))?;
        Ok(found.map(|[_, _, code]| code))
    }

    /// The two characters of a local code in a `pg_local_to_utf_combined` array.
    pub(super) fn to_unicode(self, memory: &[u8], code: u32) -> Result<Option<(u32, u32)>, OutOfBounds> {
        let found = self.search(memory, |[entry, _, _]| entry.cmp(&code))?;
        Ok(found.map(|[_, first, second]| (first, second)))
    }

    fn search(
        self,
        memory: &[u8],
        order: impl Fn([u32; 3]) -> std::cmp::Ordering,
    ) -> Result<Option<[u32; 3]>, OutOfBounds> {
        let size = self.count.saturating_mul(COMBINED);
        let (entries, _) = memory::read_bytes(memory, self.address, size)?.as_chunks::<{ COMBINED as usize }>();
        let words = |entry: &[u8; COMBINED as usize]| {
            let (words, _) = entry.as_chunks::<4>();
            [0, 1, 2].map(|word: usize| u32::from_le_bytes(words[word]))
        };
        let place = entries.binary_search_by(|entry| order(words(entry)));
        Ok(place.ok().map(|place| words(&entries[place])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory with a tree at 0 that maps the bytes 81 40 to 0x1234, in 16-bit or 32-bit values from 48 on.
    fn memory_with_tree(wide: bool) -> Vec<u8> {
        let mut memory = vec![0; 128];
        memory::write_u32(&mut memory, if wide { 4 } else { 0 }, 48).unwrap();
        memory::write_u32(&mut memory, 16, 4).unwrap(); // b2root
        memory::write_bytes(&mut memory, 20, &[0x81, 0x82, 0x40, 0x41]).unwrap();
        // Four zeros; 81 leads to index 6, 82 nowhere; 40 has a code, 41 has none.
        for (place, value) in [0, 0, 0, 0, 6, 0, 0x1234, 0].into_iter().enumerate() {
            let place = u32::try_from(place).unwrap();
            if wide {
                memory::write_u32(&mut memory, 48 + 4 * place, value).unwrap();
            } else {
                memory::write_u16(&mut memory, 48 + 2 * place, u16::try_from(value).unwrap()).unwrap();
            }
        }
        memory
    }

    #[test]
    fn a_radix_tree_knows_its_characters_and_no_others() {
        for wide in [false, true] {
            let memory = memory_with_tree(wide);
            let tree = RadixTree::read(&memory, 0).unwrap();
            assert_eq!(tree.look_up(&memory, &[0x81, 0x40]), Ok(Some(0x1234)));
            let others: [&[u8]; 7] =
                [&[0x81, 0x41], &[0x82, 0x40], &[0x83, 0x40], &[0x81, 0x3f], &[0x81], &[], &[1, 2, 3, 4, 5]];
            for other in others {
                assert_eq!(tree.look_up(&memory, other), Ok(None), "{other:x?}");
            }
        }
    }

    #[test]
    fn a_tree_outside_the_memory_is_refused() {
        assert!(RadixTree::read(&[0; 40], 0).is_err());
        let mut memory = memory_with_tree(false);
        // Its values are far outside.
        memory::write_u32(&mut memory, 0, u32::MAX / 2).unwrap();
        assert!(RadixTree::read(&memory, 0).unwrap().look_up(&memory, &[0x81, 0x40]).is_err());
    }

    #[test]
    fn combined_characters_are_found_in_both_directions() {
        let mut memory = vec![0; 64];
        for (place, word) in [1, 9, 0xa1, 2, 3, 0xa2, 2, 8, 0xa3].into_iter().enumerate() {
            memory::write_u32(&mut memory, u32::try_from(4 * place).unwrap(), word).unwrap();
        }
        let combined = Combined::new(0, 3).unwrap();
        assert!(combined.is_none(), "the null pointer is no array");
        let combined = Combined { address: 0, count: 3 };
        assert_eq!(combined.to_local(&memory, (2, 3)), Ok(Some(0xa2)));
        assert_eq!(combined.to_local(&memory, (2, 4)), Ok(None));
        assert_eq!(combined.to_unicode(&memory, 1), Ok(Some((9, 0xa1))));
        assert_eq!(combined.to_unicode(&memory, 3), Ok(None));
        assert!(Combined { address: 60, count: 1 }.to_unicode(&memory, 3).is_err());
    }
}
