//! Pages of tables and indexes (`src/include/storage/bufpage.h`), and their checksums
//! (`src/include/storage/checksum_impl.h`).

/// `BLCKSZ`
pub(crate) const SIZE: usize = 8192;
/// `RELSEG_SIZE`: pages of a file, after which the relation goes on in the next file.
pub(crate) const IN_SEGMENT: u32 = 131_072;
/// Offset of `pd_checksum`, a `uint16`, behind `pd_lsn`.
pub(crate) const CHECKSUM: usize = 8;
/// Offset of `pd_upper`, a `uint16`, which is zero in a page that was never written to.
const UPPER: usize = 14;

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

/// `pd_lsn`: two words, the higher one first.
pub(crate) fn lsn(page: &[u8; SIZE]) -> u64 {
    let word = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    word(0) << 32 | word(4)
}

/// `PageIsNew`
pub(crate) fn is_new(page: &[u8; SIZE]) -> bool {
    page[UPPER..UPPER + 2] == [0; 2]
}

/// The checksum of a page with that number in its relation (`pg_checksum_page`).
pub(crate) fn checksum(page: &[u8; SIZE], number: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    // A loop without conditions, of which the compiler makes vector instructions.
    let mut add = |words: &[[u8; 4]]| {
        for (sum, word) in sums.iter_mut().zip(words) {
            let mixed = *sum ^ u32::from_le_bytes(*word);
            *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
    };
    let (first, rest) = page.as_chunks().0.split_at(SUMS);
    // The checksum itself counts as zero.
    let mut without: [[u8; 4]; SUMS] = first.try_into().unwrap_or_default();
    without[CHECKSUM / 4][..2].fill(0);
    add(&without);
    rest.chunks_exact(SUMS).for_each(&mut add);
    add(&[[0; 4]; SUMS]);
    add(&[[0; 4]; SUMS]);
    let folded = sums.into_iter().fold(0, |all, sum| all ^ sum) ^ number;
    // Never zero, which would look like a page without a checksum.
    u16::try_from(folded % 65_535).map_or(1, |checksum| checksum + 1)
}
