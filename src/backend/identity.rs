//! State that no two backends may share, though one is the copy of another: random numbers and start times.
//!
//! Code that needs unpredictable bytes reads `/dev/urandom`; a cancel key is made when a client connects.

use anyhow::ensure;

use super::Backend;
use crate::{
    guest::{memory, seed_prng},
    postgres::timestamp::{EPOCH, START_TIMESTAMP},
    random::Entropy,
};

/// A time as `PostgreSQL` counts it (`TimestampTz`): in microseconds since its epoch.
pub(crate) fn timestamp(time: jiff::Timestamp) -> i64 {
    time.as_microsecond() - EPOCH
}

impl Backend {
    /// Gives it random numbers of its own (`pg_global_prng_state`).
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(crate) fn reseed(&mut self) -> anyhow::Result<()> {
        let memory = self.exports()?.memory;
        let (memory, guest) = memory.data_and_store_mut(&mut self.store);
        // Whoever it is a copy of may have seeded `random()`.
        memory::write_bytes(memory, guest.facts.random_is_seeded, &[0])?;
        seed_prng(memory, &guest.facts, &Entropy::default())
    }

    /// Sets `MyStartTime` and `MyStartTimestamp`, which are the same moment in seconds and microseconds, to now;
    /// returns the timestamp.
    ///
    /// # Errors
    /// When the module's facts lack them.
    pub(crate) fn set_start_time(&mut self) -> anyhow::Result<i64> {
        let now = jiff::Timestamp::now();
        let timestamp = timestamp(now);
        let address = self.facts().address("MyStartTime")?;
        self.write(address, &now.as_second().to_le_bytes())?;
        self.write(address + START_TIMESTAMP, &timestamp.to_le_bytes())?;
        Ok(timestamp)
    }

    /// Sets `PgStartTime` and `PgReloadTime` to `start` if they are earlier: those of a cluster that this one is a copy of.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn set_server_start(&mut self, start: jiff::Timestamp) -> anyhow::Result<()> {
        let start = timestamp(start);
        for address in [self.facts().server_start, self.facts().configuration_load] {
            // A page that is not written needs no copy.
            if memory::read_u64(self.memory()?, address)?.cast_signed() < start {
                self.write(address, &start.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// `MyStartTimestamp`: microseconds since the epoch of `PostgreSQL`.
    ///
    /// # Errors
    /// When what follows `MyStartTime` is another moment, so that it cannot be `MyStartTimestamp`.
    pub(crate) fn start_timestamp(&self) -> anyhow::Result<i64> {
        let (memory, address) = (self.memory()?, self.facts().address("MyStartTime")?);
        let seconds = memory::read_u64(memory, address)?.cast_signed();
        let timestamp = memory::read_u64(memory, address + START_TIMESTAMP)?.cast_signed();
        ensure!(
            (timestamp + EPOCH).div_euclid(1_000_000) == seconds,
            "MyStartTimestamp ({timestamp}) does not follow MyStartTime ({seconds}) in this version of PGlite"
        );
        Ok(timestamp)
    }
}
