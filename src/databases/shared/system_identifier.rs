//! The system identifier of a new cluster, by which backups and replication tell clusters apart (`BootStrapXLOG` in
//! `PostgreSQL`'s `src/backend/access/transam/xlog.c`). New clusters are copies of one cluster that `initdb` has made,
//! so each gets a new identifier, and a new secret from which it makes answers about roles that do not exist
//! (`mock_scram_secret` in `src/backend/libpq/auth-scram.c`).

use anyhow::Context;

use super::data_directory::{PG_CONTROL, read, write};
use crate::{
    fs::{Storage, joined},
    postgres::{control_file, wal},
    random,
};

/// Gives the cluster in `storage`, which was shut down, a new identifier and secret.
///
/// # Errors
/// When its files are not those of a cluster of this `PostgreSQL`, or cannot be written.
pub(super) fn renew(storage: &dyn Storage) -> anyhow::Result<()> {
    let identifier = new()?;
    let mut control = read(storage, PG_CONTROL.as_bytes())?;
    let mut nonce = [0; control_file::NONCE_LENGTH];
    random::fill(&mut nonce)?;
    control_file::renew(&mut control, identifier, nonce).context("global/pg_control has another layout")?;
    write(storage, PG_CONTROL.as_bytes(), 0, &control)?;
    for entry in storage.list(wal::DIRECTORY)? {
        if entry.name.len() == wal::NAME_LENGTH && entry.name.iter().all(u8::is_ascii_hexdigit) {
            let path = joined(wal::DIRECTORY, &entry.name);
            // A segment that was made in advance has no header yet.
            if wal::has_identifier(&read(storage, &path)?) {
                write(storage, &path, wal::IDENTIFIER, &identifier.to_le_bytes())?;
            }
        }
    }
    Ok(())
}

/// An identifier in PostgreSQL's form: seconds, microseconds, and 12 bits, which are random here and those of the
/// process id in PostgreSQL.
fn new() -> anyhow::Result<u64> {
    let mut process = [0; 2];
    random::fill(&mut process)?;
    let now = jiff::Timestamp::now();
    let (seconds, microseconds) = (now.as_second().cast_unsigned(), now.subsec_microsecond().unsigned_abs());
    Ok(seconds << 32 | u64::from(microseconds) << 12 | u64::from(u16::from_le_bytes(process) & 0xfff))
}
