//! Checksums of data pages (`src/include/storage/checksum_impl.h`), verified by the rules of `pg_checksums` and
//! `pg_basebackup`.

use crate::postgres::{page, relation_file};

/// The number of sums that are computed side by side (`N_SUMS`).
const SUMS: usize = 32;
/// The multiplier of the hash function FNV-1a (`FNV_PRIME`).
const FNV_PRIME: u32 = 16_777_619;
/// What the sums begin with (`checksumBaseOffsets`).
const BASE_OFFSETS: [u32; SUMS] = [
    0x5b1f_36e9,
    0xb852_5960,
    0x02ab_50aa,
    0x1de6_6d2a,
    0x79ff_467a,
    0x9bb9_f8a3,
    0x217e_7cd2,
    0x83e1_3d2c,
    0xf8d4_474f,
    0xe39e_b970,
    0x42c6_ae16,
    0x9932_16fa,
    0x7b09_3b5d,
    0x98da_ff3c,
    0xf718_902a,
    0x0b1c_9cdb,
    0xe58f_764b,
    0x1876_36bc,
    0x5d7b_3bb1,
    0xe73d_e7de,
    0x92be_c979,
    0xcca6_c0b2,
    0x304a_0979,
    0x85aa_43d4,
    0x7831_25bb,
    0x6ca8_eaa2,
    0xe407_eac6,
    0x4b5c_fc3e,
    0x9fbf_8c76,
    0x15ca_20be,
    0xf2ca_9fd3,
    0x959b_d756,
];

/// A page whose checksum is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The number of the page in the file.
    pub(super) page: u32,
    /// The position in WAL up to which the page says that it was changed.
    pub(super) lsn: u64,
}

/// The pages of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pages {
    /// The number that the file's first page has in the relation.
    first: u32,
}

impl Pages {
    /// Those of the file at that path below the data directory; `None` if it has none.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/')?;
        let database = directory.rsplit_once('/');
        let is_of_databases = database.is_some_and(|(space, database)| {
            let is_space = space == "base" || super::origin::name_of(space).starts_with("PG_");
            is_space && database.bytes().all(|byte| byte.is_ascii_digit())
        });
        if directory != "global" && !is_of_databases {
            return None;
        }
        let name = relation_file::parse(name)?;
        Some(Self { first: name.segment.checked_mul(page::IN_SEGMENT)? })
    }

    /// Verifies the whole pages of a piece of the file, which begins with one at `offset`; calls `on_wrong` for each
    /// that is wrong, and returns how many had a right checksum.
    pub(super) fn verify_all(self, offset: u64, piece: &[u8], mut on_wrong: impl FnMut(Wrong)) -> u64 {
        let first = u32::try_from(offset / page::SIZE as u64).unwrap_or(u32::MAX);
        let (pages, _) = piece.as_chunks();
        let mut right = 0;
        for (number, page) in (first..).zip(pages) {
            match self.verify(number, page) {
                Ok(has_checksum) => right += u64::from(has_checksum),
                Err(wrong) => on_wrong(wrong),
            }
        }
        right
    }

    /// Verifies the page `number` of the file, and returns whether it had a checksum.
    ///
    /// # Errors
    /// When the checksum is wrong.
    fn verify(self, number: u32, bytes: &[u8; page::SIZE]) -> Result<bool, Wrong> {
        if page::is_new(bytes) {
            return Ok(false);
        }
        let stored = u16::from_le_bytes([bytes[page::CHECKSUM], bytes[page::CHECKSUM + 1]]);
        if stored == checksum(bytes, self.first.wrapping_add(number)) {
            Ok(true)
        } else {
            Err(Wrong { page: number, lsn: page::lsn(bytes) })
        }
    }
}

/// The checksum of a page with that number in its relation (`pg_checksum_page`).
fn checksum(bytes: &[u8; page::SIZE], number: u32) -> u16 {
    let add = |sum: &mut u32, value: u32| {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    };
    let mut sums = BASE_OFFSETS;
    for (row, words) in bytes.chunks_exact(4 * SUMS).enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(words.chunks_exact(4)).enumerate() {
            let mut word = [word[0], word[1], word[2], word[3]];
            // The checksum itself counts as zero.
            if (row, column) == (0, page::CHECKSUM / 4) {
                word[..2].fill(0);
            }
            add(sum, u32::from_le_bytes(word));
        }
    }
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| add(sum, 0));
    }
    let folded = sums.into_iter().fold(0, |all, sum| all ^ sum) ^ number;
    // Never zero, which would look like a page without a checksum.
    u16::try_from(folded % 65_535).map_or(1, |checksum| checksum + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page that is not new, with its right checksum.
    fn page(number: u32) -> [u8; page::SIZE] {
        let mut bytes = [7; page::SIZE];
        let right = checksum(&bytes, number);
        bytes[page::CHECKSUM..page::CHECKSUM + 2].copy_from_slice(&right.to_le_bytes());
        bytes
    }

    #[test]
    fn a_page_is_right_in_its_own_place_only_and_as_long_as_no_bit_changes() {
        let pages = Pages::of("base/5/16384").expect("a table's file");
        let mut bytes = page(3);
        assert_eq!(pages.verify(3, &bytes), Ok(true));
        assert_eq!(pages.verify(4, &bytes), Err(Wrong { page: 4, lsn: 0x0707_0707_0707_0707 }));
        for at in [0, 8, 9, 10, 4095, 8191] {
            bytes[at] ^= 0x10;
            assert!(pages.verify(3, &bytes).is_err(), "{at}");
            bytes[at] ^= 0x10;
        }
        assert_eq!(pages.verify(0, &[0; page::SIZE]), Ok(false), "a page that was never written to has none");
    }

    #[test]
    fn the_pages_of_a_later_file_are_numbered_on() {
        let pages = Pages::of("base/5/16384.2").expect("a table's file");
        assert_eq!(pages.verify(1, &page(2 * 131_072 + 1)), Ok(true));
    }

    #[test]
    fn files_of_relations_have_pages_and_others_do_not() {
        for path in ["global/1262", "base/5/1259_fsm", "pg_tblspc/16400/PG_18_202506291/5/16401", "s/PG_18_1/5/1_vm.1"]
        {
            assert!(Pages::of(path).is_some(), "{path}");
        }
        for path in
            ["global/pg_control", "PG_VERSION", "base/5/PG_VERSION", "pg_xact/0000", "base/5/pg_filenode.map", "5"]
        {
            assert!(Pages::of(path).is_none(), "{path}");
        }
    }
}
