//! Checksums of data pages (`src/include/storage/checksum_impl.h`), verified by the rules of `pg_checksums` and
//! `pg_basebackup`.

use crate::postgres::{page, relation_file};

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
        if stored == page::checksum(bytes, self.first.wrapping_add(number)) {
            Ok(true)
        } else {
            Err(Wrong { page: number, lsn: page::lsn(bytes) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page that is not new, with its right checksum.
    fn page(number: u32) -> [u8; page::SIZE] {
        let mut bytes = [7; page::SIZE];
        let right = page::checksum(&bytes, number);
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
