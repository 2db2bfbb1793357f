//! Counts what a process adds to the statistics of databases in shared memory (`pg_stat_database`), where only
//! processes of the cluster could read them.

use wasmtime::{Caller, Linker};

use super::{Guest, checkpoint, memory};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::database_statistics as offset,
};

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::DatabaseStatistics.name(),
        |mut caller: Caller<'_, Guest>, entry: u32, nowait: i32| count(&mut caller, entry, nowait != 0),
    )?;
    Ok(())
}

fn count(caller: &mut Caller<'_, Guest>, entry: u32, nowait: bool) -> wasmtime::Result<()> {
    let (memory, guest) = memory::of(caller)?;
    let word = |address: u32, offset: u32| memory::read_u32(memory, address.wrapping_add(offset));
    let state = word(word(entry, offset::SHARED)?, offset::LOCK_STATE)?;
    if nowait && state & offset::LOCKED != 0 {
        // The process tries again later, with the same numbers and what it will have counted until then.
        return Ok(());
    }
    let pending = word(entry, offset::PENDING)?;
    let number = |offset: u32| -> wasmtime::Result<u64> {
        let bytes = memory::read_bytes(memory, pending.wrapping_add(offset), 8)?;
        let number = bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
        // A guest in disorder cannot make a counter go down.
        Ok(u64::try_from(number).unwrap_or(0))
    };
    let counted = &guest.tally.database;
    // As pg_stat_get_db_blocks_fetched() - pg_stat_get_db_blocks_hit() in the view (system_views.sql).
    counted.blocks_read.add(number(offset::BLOCKS_FETCHED)?.saturating_sub(number(offset::BLOCKS_HIT)?));
    checkpoint::count_bytes(guest, memory)?;
    let counted = &guest.tally.database;
    for (offset, counter) in [
        (offset::COMMITS, &counted.commits),
        (offset::ROLLBACKS, &counted.rollbacks),
        (offset::BLOCKS_HIT, &counted.blocks_hit),
        (offset::TUPLES_RETURNED, &counted.tuples_returned),
        (offset::TUPLES_FETCHED, &counted.tuples_fetched),
        (offset::TUPLES_INSERTED, &counted.tuples_inserted),
        (offset::TUPLES_UPDATED, &counted.tuples_updated),
        (offset::TUPLES_DELETED, &counted.tuples_deleted),
        (offset::TEMPORARY_FILES, &counted.temporary_files),
        (offset::TEMPORARY_BYTES, &counted.temporary_bytes),
        (offset::DEADLOCKS, &counted.deadlocks),
    ] {
        counter.add(number(offset)?);
    }
    Ok(())
}
