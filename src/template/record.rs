//! Files with one small value each: a magic number for the format and its version, a checksum, and the value in
//! postcard's encoding.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The number must change with the format of labels and recipes. Other changes of format only change the keys of
/// templates, which are then built again (`catalog.rs`).
const MAGIC: &[u8; 8] = b"PGLTMPL1";

/// The extension of copies.
const COPY: &str = "copy";

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

/// Writes a record and a copy of it, because it cannot be made again.
pub(super) fn write_with_copy(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write(path, value)?;
    write(&copy_of(path), value)
}

/// Reads a record, or its copy if it is damaged. If one of them is damaged, it is made again from the other.
pub(super) fn read_with_copy<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let copy = copy_of(path);
    match (read(path), read(&copy)) {
        (Err(_), Ok(value)) => {
            restore(path, &copy);
            Ok(value)
        }
        (Ok(value), Err::<T, _>(_)) => {
            restore(&copy, path);
            Ok(value)
        }
        (read, _) => read,
    }
}

/// Replaces the file `damaged` by a copy of `intact`. If it is not there, its template is being removed, or was made
/// before there were copies.
fn restore(damaged: &Path, intact: &Path) {
    if !damaged.exists() {
        return;
    }
    tracing::warn!("{} is damaged: it is made again from its copy", damaged.display());
    let directory = damaged.parent().unwrap_or(damaged);
    let replace = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&fs::read(intact)?)?;
        file.as_file().sync_all()?;
        file.persist(damaged).map(drop).map_err(|error| error.error)
    };
    if let Err(error) = replace() {
        tracing::debug!("{} stays as it is: {error}", damaged.display());
    }
}

pub(super) fn copy_of(path: &Path) -> PathBuf {
    path.with_added_extension(COPY)
}

/// The name of the file that a file with this name may be the copy of.
pub(super) fn without_copy(name: &str) -> &str {
    name.strip_suffix(COPY).and_then(|name| name.strip_suffix('.')).unwrap_or(name)
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
    use crate::{
        fuzz::{Corpus, Input, fuzz},
        template::recipe::{Recipe, Script},
    };

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

    /// A record whose checksum is right and whose content is damaged: it is refused, or a value like any other.
    fn check(input: &Input) {
        assert!(decode::<Recipe>(&input.bytes).is_err(), "it has no checksum");
        let record = [&MAGIC[..], &crc32fast::hash(&input.bytes).to_le_bytes(), &input.bytes].concat();
        if let Ok(recipe) = decode::<Recipe>(&record) {
            let again = postcard::to_allocvec(&recipe).unwrap();
            assert_eq!(postcard::from_bytes::<Recipe>(&again).as_ref(), Ok(&recipe));
            assert!(again.len() <= input.bytes.len());
        }
    }

    #[test]
    fn a_damaged_record_is_refused_or_a_value_like_any_other() {
        let script = Script { name: "a.sql".to_owned(), sql: "SELECT 1".to_owned() };
        let recipe = Recipe { scripts: vec![script.clone(), script], ..Recipe::empty("app") };
        let recipes = [recipe, Recipe::empty("postgres")];
        fuzz!(Corpus::made(recipes.map(|recipe| postcard::to_allocvec(&recipe).unwrap())), check);
    }
}
