//! Files with one small value each: a magic number for the format and its version, a checksum, and the value in
//! postcard's encoding.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The number must change with the format of labels and recipes. Other changes of format only change the keys of
/// templates, which are then built again (`catalog.rs`).
const MAGIC: &[u8; 8] = b"PGLTMPL1";

pub(super) fn write(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let body = postcard::to_allocvec(value)?;
    let bytes = [&MAGIC[..], &crc32fast::hash(&body).to_le_bytes(), &body].concat();
    fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
}

/// # Errors
/// When the file cannot be read, is of another format or damaged. The first cause is the [`std::io::Error`] if there
/// is one.
pub(super) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    decode(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> anyhow::Result<T> {
    let rest = bytes.strip_prefix(MAGIC).context("it is not in the format of this program")?;
    let (checksum, body) = rest.split_first_chunk::<4>().context("it is too short")?;
    ensure!(crc32fast::hash(body) == u32::from_le_bytes(*checksum), "its checksum is wrong");
    Ok(postcard::from_bytes(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_and_every_changed_byte_of_its_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        write(&path, &("abc", 7_u32)).unwrap();
        assert_eq!(read::<(String, u32)>(&path).unwrap(), ("abc".to_owned(), 7));
        let good = fs::read(&path).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            assert!(decode::<(String, u32)>(&bad).is_err(), "byte {place}");
            assert!(decode::<(String, u32)>(&good[..place]).is_err(), "cut at {place}");
        }
    }
}
