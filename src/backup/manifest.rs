//! The checksums of a backup's files in PostgreSQL's format, which `pg_verifybackup` reads
//! (`src/backend/backup/backup_manifest.c`; "Backup Manifest Format" in the manual).

use std::{collections::HashMap, fmt::Write};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::origin::WalRange;
use crate::postgres::wal::format_lsn;

/// The name of the checksum.
const ALGORITHM: &str = "CRC32C";

/// A manifest that is being written.
pub(super) struct Manifest {
    text: String,
    has_files: bool,
}

impl Manifest {
    /// That of the cluster with this system identifier.
    pub(super) fn new(identifier: u64) -> Self {
        let text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {identifier},\n\"Files\": ["
        );
        Self { text, has_files: false }
    }

    /// Adds a file; `modified` is in seconds since 1970.
    pub(super) fn add(&mut self, path: &str, size: u64, modified: u64, checksum: u32) {
        let separator = if std::mem::replace(&mut self.has_files, true) { ",\n" } else { "\n" };
        let path = serde_json::Value::from(path);
        let modified = i64::try_from(modified).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        let modified = modified.unwrap_or_default().strftime("%Y-%m-%d %H:%M:%S GMT");
        let checksum = hex(&checksum.to_le_bytes());
        // Writing to a string cannot fail.
        let _ = write!(
            self.text,
            "{separator}{{ \"Path\": {path}, \"Size\": {size}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"{ALGORITHM}\", \"Checksum\": \"{checksum}\" }}"
        );
    }

    /// The whole manifest.
    pub(super) fn finish(mut self, wal: Option<&WalRange>) -> Vec<u8> {
        self.text.push_str("\n],\n\"WAL-Ranges\": [\n");
        if let Some(WalRange { timeline, start, end }) = wal {
            let (start, end) = (format_lsn(*start), format_lsn(*end));
            let _ =
                write!(self.text, "{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}");
        }
        self.text.push_str("\n],\n");
        let checksum = hex(&Sha256::digest(self.text.as_bytes()));
        let _ = writeln!(self.text, "\"Manifest-Checksum\": \"{checksum}\"}}");
        self.text.into_bytes()
    }
}

/// The length of a file, and its checksum if it has one of [`ALGORITHM`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) size: u64,
    checksum: Option<String>,
}

impl Expected {
    /// Whether a file is as expected.
    pub(super) fn is_met_by(&self, size: u64, checksum: u32) -> bool {
        let is_right = |expected: &String| expected.eq_ignore_ascii_case(&hex(&checksum.to_le_bytes()));
        self.size == size && self.checksum.as_ref().is_none_or(is_right)
    }
}

/// Reads a manifest: the files by their paths.
///
/// # Errors
/// When it is not one, or was changed.
pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<HashMap<String, Expected>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Whole {
        files: Vec<File>,
        #[serde(rename = "Manifest-Checksum")]
        checksum: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct File {
        /// A path that is not UTF-8 has another key, and is never in an archive of ours.
        path: Option<String>,
        size: u64,
        #[serde(rename = "Checksum-Algorithm")]
        algorithm: Option<String>,
        checksum: Option<String>,
    }
    let whole: Whole = serde_json::from_slice(bytes).context("it is not in PostgreSQL's format")?;
    // The last line has the checksum of those before it.
    let end = bytes.trim_ascii_end().iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    ensure!(hex(&Sha256::digest(&bytes[..end])).eq_ignore_ascii_case(&whole.checksum), "its own checksum is wrong");
    let files = whole.files.into_iter().filter_map(|file| {
        let checksum = file.checksum.filter(|_| file.algorithm.as_deref() == Some(ALGORITHM));
        Some((file.path?, Expected { size: file.size, checksum }))
    });
    Ok(files.collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Vec<u8> {
        let mut manifest = Manifest::new(7);
        manifest.add("base/1/\"odd\"", 8, 1_700_000_000, crc32c::crc32c(b"contents"));
        manifest.add("PG_VERSION", 3, 0, crc32c::crc32c(b"18\n"));
        manifest.finish(Some(&WalRange { timeline: 1, start: 0x1_0200_0028, end: 0x1_0200_0100 }))
    }

    #[test]
    fn what_was_written_is_read() {
        let text = String::from_utf8(manifest()).expect("text");
        assert!(text.contains("\"Last-Modified\": \"2023-11-14 22:13:20 GMT\""), "{text}");
        assert!(text.contains("\"Start-LSN\": \"1/2000028\""), "{text}");
        let files = parse(text.as_bytes()).expect("a manifest");
        assert_eq!(files.len(), 2);
        let odd = &files["base/1/\"odd\""];
        assert!(odd.is_met_by(8, crc32c::crc32c(b"contents")));
        assert!(!odd.is_met_by(9, crc32c::crc32c(b"contents")));
        assert!(!odd.is_met_by(8, crc32c::crc32c(b"contentz")));
    }

    #[test]
    fn a_manifest_that_was_changed_is_refused() {
        let text = String::from_utf8(manifest()).expect("text");
        assert!(parse(text.replace("\"Size\": 8", "\"Size\": 9").as_bytes()).is_err());
        assert!(parse(&text.as_bytes()[..text.len() / 2]).is_err());
        assert!(parse(b"").is_err());
    }
}
