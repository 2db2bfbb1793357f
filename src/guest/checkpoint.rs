//! Requests to a cluster's checkpointer: the parts that PGlite's build lacks of `RequestCheckpoint` (`PostgreSQL`,
//! `src/backend/postmaster/checkpointer.c`), and of `XLogWrite` (`src/backend/access/transam/xlog.c`), which requests
//! a checkpoint when the amount of WAL reaches `max_wal_size`.

use wasmtime::{AsContextMut, Caller};

use super::{
    Guest,
    call::{export as call, setting_value},
    memory, report,
};
use crate::{
    cluster::Signal,
    postgres::{checkpoint, process, wait_event, wal_usage},
    protocol::error_response::sqlstate,
};

/// The WAL that a process has begun.
#[derive(Debug, Default)]
pub(crate) struct Wal {
    /// The segments since the last checkpoint that the host has had it make, if it has its cluster alone.
    begun: u32,
    /// Whether they are so many that the next checkpoint is due.
    pub(crate) is_checkpoint_due: bool,
    /// Whether the process makes a checkpoint.
    pub(super) is_in_checkpoint: bool,
    /// The bytes that were counted already.
    counted: u64,
    /// Whether it writes no more WAL before a checkpoint has removed some.
    must_wait: bool,
}

impl Wal {
    /// A message of the client begins: a checkpoint that is still due is made when there is no transaction.
    pub(crate) fn begin_message(&mut self) {
        self.must_wait = false;
    }
}

/// Requests a checkpoint, and waits for it if `flags` contain that. An interrupt ends the wait like an SQL error.
///
/// # Errors
/// An SQL error when the checkpoint fails; others when the guest traps or its cluster has crashed.
pub(super) fn request(mut caller: Caller<'_, Guest>, flags: i32) -> wasmtime::Result<()> {
    ask(&mut caller, flags.cast_unsigned())
}

/// The process begins a WAL segment. If the number of segments since the last checkpoint reaches the limit, it
/// requests the next checkpoint (`XLogCheckpointNeeded` and `CalculateCheckpointSegments`). A process that has its
/// cluster alone makes that itself, after its client's message.
///
/// If the segments since then have all of `max_wal_size`, which a long statement writes faster than the checkpointer
/// works, it waits for the checkpoint at its next check for interrupts ([`wait_if_due`]).
///
/// # Errors
/// When the guest traps.
pub(super) fn count_segment(mut caller: Caller<'_, Guest>) -> wasmtime::Result<()> {
    let caller = &mut caller;
    let checkpointer = caller.data().facts.checkpointer.shared;
    let memory = memory::of(caller)?.0;
    let shared = memory::read_u32(memory, checkpointer)?;
    let started = memory::read_u32(memory, shared.wrapping_add(checkpoint::STARTED))?;
    let guest = caller.data_mut();
    guest.tally.wal_segments.add(1);
    let begun = if let Some(seat) = &guest.seat {
        seat.count_wal_segment(started)
    } else {
        guest.wal.begun += 1;
        guest.wal.begun
    };
    let [megabytes, segment_size, target] =
        ["max_wal_size", "wal_segment_size", "checkpoint_completion_target"].map(|name| number(caller, name));
    let segment_size = segment_size?;
    let growth = &caller.data().growth;
    let quota = growth.quota();
    // WAL in memory must not use up the cluster's memory.
    let quarter = quota.memory_limit().map_or(u32::MAX, |limit| u32::try_from(limit >> 22).unwrap_or(u32::MAX));
    let most = megabytes?.min(quarter.into()) * f64::from(1 << 20) / segment_size;
    let allowed = most / (1.0 + target?);
    if (f64::from(begun) >= most || quota.is_over()) && !growth.is_unlimited() {
        let guest = caller.data_mut();
        guest.wal.must_wait = true;
        guest.signals.interrupt();
    }
    if f64::from(begun) >= allowed.floor().max(1.0) - 1.0 {
        match &caller.data().seat {
            Some(_) => ask(caller, checkpoint::CAUSE_XLOG)?,
            None => caller.data_mut().wal.is_checkpoint_due = true,
        }
    }
    Ok(())
}

/// Counts the WAL that the process has written since this was called before, which its memory may have from another one.
///
/// # Errors
/// When the guest traps.
pub(super) fn count_bytes(guest: &mut Guest, memory: &[u8]) -> wasmtime::Result<()> {
    let written = written(guest, memory)?;
    // A guest in disorder cannot make a counter go down.
    guest.tally.wal_bytes.add(written.saturating_sub(guest.wal.counted));
    guest.wal.counted = written;
    Ok(())
}

/// The process begins with `memory`, which has the numbers of another one.
///
/// # Errors
/// When there are no such numbers.
pub(crate) fn begin(guest: &mut Guest, memory: &[u8]) -> wasmtime::Result<()> {
    guest.wal.counted = written(guest, memory)?;
    Ok(())
}

/// The bytes of WAL in `pgWalUsage` (`src/backend/executor/instrument.c`).
pub(crate) fn written(guest: &Guest, memory: &[u8]) -> wasmtime::Result<u64> {
    let usage = guest.facts.address("pgWalUsage")?;
    let bytes = memory::read_bytes(memory, usage.wrapping_add(wal_usage::BYTES), 8)?;
    Ok(bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

/// Waits for the checkpoint that has to remove WAL before more is written, or makes it if there is no checkpointer. The
/// caller has checked that the process may handle interrupts.
///
/// # Errors
/// As [`request`]; an SQL error when the cluster then still uses more than it may.
pub(super) fn wait_if_due(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let guest = caller.data_mut();
    if !std::mem::take(&mut guest.wal.must_wait) {
        return Ok(());
    }
    if guest.seat.is_some() {
        ask(caller, checkpoint::IMMEDIATE | checkpoint::FORCE | checkpoint::WAIT)?;
    } else if call::<(), i32>(caller, "IsAbortedTransactionBlockState", ())? == 0 {
        make(caller)?;
    }
    if caller.data().growth.quota().is_over() {
        return Err(report::error(
            caller,
            sqlstate::DISK_FULL,
            "the cluster uses more than its limit of memory or disk",
        ));
    }
    Ok(())
}

/// A process that has its cluster alone makes a checkpoint, which no timeout ends halfway. Buffers that are pinned for it
/// need an owner, so there has to be a transaction that has not failed.
///
/// # Errors
/// When the checkpoint fails, or the guest traps. `PostgreSQL` handles interrupts again after an error.
pub(crate) fn make(store: &mut impl AsContextMut<Data = Guest>) -> wasmtime::Result<()> {
    let mut context = store.as_context_mut();
    let guest = context.data_mut();
    guest.wal = Wal { is_in_checkpoint: true, counted: guest.wal.counted, ..Wal::default() };
    let (holdoff, memory) = (guest.facts.address("InterruptHoldoffCount")?, guest.memory()?);
    // HOLD_INTERRUPTS and RESUME_INTERRUPTS (`src/include/miscadmin.h`).
    let held = memory::read_u32(memory.data(&*store), holdoff)?;
    memory::write_u32(memory.data_mut(&mut *store), holdoff, held + 1)?;
    let made = call::<i32, i32>(store, "CreateCheckPoint", (checkpoint::IMMEDIATE | checkpoint::FORCE).cast_signed());
    store.as_context_mut().data_mut().wal.is_in_checkpoint = false;
    made?;
    store.as_context_mut().data().tally.checkpoints.add(1);
    memory::write_u32(memory.data_mut(&mut *store), holdoff, held)?;
    Ok(())
}

/// A file could not grow. In memory, older WAL makes room at the next checkpoint, so that one is requested.
///
/// # Errors
/// When the guest traps.
pub(super) fn make_room(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    if caller.data().files.tree().lock().has_storage() {
        return Ok(());
    }
    if caller.data().seat.is_some() {
        return ask(caller, checkpoint::CAUSE_XLOG);
    }
    caller.data_mut().wal.is_checkpoint_due = true;
    Ok(())
}

/// Called before a process sleeps, as the checkpointer does after each checkpoint: counts checkpoints. And wakes a
/// checkpointer that does not run yet if its queue of sync requests is full. A process that has one more
/// waits, with a timeout, until there is room (`RegisterSyncRequest` in `src/backend/storage/sync/sync.c`), and wakes
/// the checkpointer only by its latch, which this one does not have (`ForwardSyncRequest`).
///
/// # Errors
/// When there is no shared memory.
pub(super) fn relieve(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let (memory, guest) = memory::of(caller)?;
    let Some(seat) = &guest.seat else { return Ok(()) };
    let shared = memory::read_u32(memory, guest.facts.checkpointer.shared)?;
    let read = |offset| memory::read_u32(memory, shared.wrapping_add(offset));
    if shared != 0 {
        seat.count_checkpoints(read(checkpoint::DONE)?);
        if read(checkpoint::REQUESTS)? >= read(checkpoint::MOST_REQUESTS)? {
            seat.send(process::CHECKPOINTER, Some(Signal::URG));
        }
    }
    Ok(())
}

/// The value of a setting in its base unit.
fn number(caller: &mut Caller<'_, Guest>, setting: &str) -> wasmtime::Result<f64> {
    let value = setting_value(caller, setting.as_bytes())?;
    Ok(String::from_utf8_lossy(&value).parse()?)
}

fn ask(caller: &mut Caller<'_, Guest>, mut flags: u32) -> wasmtime::Result<()> {
    let facts = caller.data().facts.clone();
    if facts.checkpointer.requests != checkpoint::REQUESTS {
        wasmtime::bail!("this version of PGlite requests checkpoints in a different way");
    }
    let shared = memory::read_u32(memory::of(caller)?.0, facts.checkpointer.shared)?;
    if flags & checkpoint::CAUSE_XLOG != 0 {
        // PGlite's RequestCheckpoint adds it to all requests; here the checkpointer spreads its writes.
        flags &= !checkpoint::IMMEDIATE;
    }
    let read = |caller: &mut Caller<'_, Guest>, offset| -> wasmtime::Result<u32> {
        Ok(memory::read_u32(memory::of(caller)?.0, shared.wrapping_add(offset))?)
    };
    let old_failed = read(caller, checkpoint::FAILED)?;
    let old_started = read(caller, checkpoint::STARTED)?;
    let asked = read(caller, checkpoint::FLAGS)? | flags | checkpoint::REQUESTED;
    memory::write_u32(memory::of(caller)?.0, shared.wrapping_add(checkpoint::FLAGS), asked)?;
    let checkpointer = read(caller, checkpoint::PROCESS_ID)?.cast_signed();
    if let Some(seat) = &caller.data().seat {
        // The handler sets the checkpointer's latch. A checkpointer that has not started yet will see the flags.
        seat.send(checkpointer, Some(Signal::USR1));
    }
    if flags & checkpoint::WAIT == 0 {
        return Ok(());
    }
    let started =
        wait_until(caller, shared.wrapping_add(checkpoint::START_CONDITION), wait_event::CHECKPOINT_START, |caller| {
            let started = read(caller, checkpoint::STARTED)?;
            Ok((started != old_started).then_some(started))
        })?;
    wait_until(caller, shared.wrapping_add(checkpoint::DONE_CONDITION), wait_event::CHECKPOINT_DONE, |caller| {
        let done = read(caller, checkpoint::DONE)?;
        Ok((done.wrapping_sub(started).cast_signed() >= 0).then_some(()))
    })?;
    if read(caller, checkpoint::FAILED)? != old_failed {
        return Err(report::error(
            caller,
            sqlstate::INTERNAL_ERROR,
            "checkpoint request failed; the reason is in the server log",
        ));
    }
    Ok(())
}

/// Sleeps on the condition variable until `look` returns a value.
fn wait_until<T>(
    caller: &mut Caller<'_, Guest>,
    condition: u32,
    wait_event: u32,
    look: impl Fn(&mut Caller<'_, Guest>) -> wasmtime::Result<Option<T>>,
) -> wasmtime::Result<T> {
    call::<u32, ()>(caller, "ConditionVariablePrepareToSleep", condition)?;
    let found = loop {
        if let Some(found) = look(caller)? {
            break found;
        }
        call::<(u32, u32), ()>(caller, "ConditionVariableSleep", (condition, wait_event))?;
    };
    call::<(), i32>(caller, "ConditionVariableCancelSleep", ())?;
    Ok(found)
}
