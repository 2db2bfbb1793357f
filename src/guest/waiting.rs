//! Waiting for the client or for the disk, and the work meanwhile.

use std::{
    sync::atomic::{AtomicPtr, Ordering},
    time::{Duration, Instant},
};

use wasmtime::{AsContextMut, Caller, StoreContextMut};

use super::{Guest, heap, memory};
use crate::{
    client::{Interest, Readiness},
    cluster::Seat,
    fs::Errno,
};

/// How long a session waits for its client's next message before it returns its free memory to the system. A client
/// that sends one query after the other never reaches it. For a client that sends one query each second, each query
/// costs as many page faults as it writes pages, which takes microseconds for a small query.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// For how long a commit begins to let other processes have their turns, so that they commit in time for its sync.
const GROUP_TIME: Duration = Duration::from_millis(1);

/// Work on fewer bytes is done before another process could notice that it waits.
const LONG: usize = 256 << 10;

/// Waits as [`Client::wait`](crate::client::Client::wait) does; other sessions of the cluster have their turns
/// meanwhile.
///
/// # Errors
/// When another session of the cluster has crashed.
pub(crate) fn wait(
    store: &mut impl AsContextMut<Data = Guest>,
    interest: Interest,
    deadline: Option<Instant>,
) -> wasmtime::Result<Readiness> {
    without_turn(store, |context| {
        let idle_at = Instant::now() + IDLE_TIME;
        let client = &mut context.data_mut().client;
        if interest == Interest::Read && deadline.is_none_or(|deadline| deadline > idle_at) {
            match client.wait(interest, Some(idle_at)) {
                Readiness::TimedOut => {
                    heap::give_back(context)?;
                    Ok(context.data_mut().client.wait(interest, deadline))
                }
                readiness => Ok(readiness),
            }
        } else {
            Ok(client.wait(interest, deadline))
        }
    })?
}

/// Has the file or the directory behind `fd` on the disk (`fsync` and `fdatasync`). Meanwhile the other processes of
/// the cluster have their turns, and what they commit is on the disk with the next sync.
///
/// # Errors
/// When another process of the cluster has crashed. The inner error is the guest's.
pub(super) fn sync(caller: &mut Caller<'_, Guest>, fd: i32) -> wasmtime::Result<Result<(), Errno>> {
    match caller.data_mut().files.to_sync(fd) {
        Ok(Some(to_sync)) => {
            let begun = Instant::now();
            let synced = without_turn(caller, |_| (to_sync.sync(), begun.elapsed()));
            synced.map(|(synced, took)| {
                caller.data().tally.syncs.observe(took);
                synced
            })
        }
        Ok(None) => Ok(Ok(())),
        Err(errno) => Ok(Err(errno)),
    }
}

/// Waits until another process of the cluster has cleared the byte `flag` of shared memory, which ends a wait on a
/// semaphore. A process without a cluster does not wait.
///
/// # Errors
/// When another process of the cluster has crashed, or `flag` is outside of the memory.
pub(super) fn wait_until_cleared(caller: &mut Caller<'_, Guest>, flag: u32) -> wasmtime::Result<()> {
    let memory = caller.data().memory()?;
    memory::read_bytes(memory.data(&caller), flag, 1)?;
    let byte = AtomicPtr::new(memory.data_ptr(&caller).wrapping_add(flag as usize));
    // SAFETY: the byte is inside the memory, as was checked, and the memory neither moves nor shrinks, nor is it freed
    // before `sleep` has returned, because this thread keeps its store. `sleep` calls this only before it returns, in
    // a thread that has the turn, so that no process writes the byte meanwhile.
    let is_cleared = move || unsafe { byte.load(Ordering::Relaxed).read_volatile() } == 0;
    match &mut caller.data_mut().seat {
        Some(seat) => Ok(seat.sleep(is_cleared)?),
        None => Ok(()),
    }
}

/// Lets the other processes of the cluster have their turns for as long as one of them waits for its turn, but begins
/// no further round after [`GROUP_TIME`]. A round ends after a slice, as soon as the process that has the turn then
/// checks for interrupts, whether all have had their turns or not.
///
/// # Errors
/// When another process of the cluster has crashed.
pub(super) fn wait_for_others(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let Some(seat) = &mut caller.data_mut().seat else { return Ok(()) };
    let mut end = None;
    while seat.others_wait() && *end.get_or_insert_with(|| Instant::now() + GROUP_TIME) > Instant::now() {
        seat.lend_turn()?;
    }
    Ok(())
}

/// Lets sessions have their turns if this is a process of the cluster itself that has had its own for a while. A
/// checkpoint checks for no interrupts while it writes (`BufferSync` in `src/backend/storage/buffer/bufmgr.c`).
///
/// # Errors
/// When another process of the cluster has crashed.
pub(super) fn yield_to_sessions(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    match &mut caller.data_mut().seat {
        Some(seat) => Ok(seat.give_way()?),
        None => Ok(()),
    }
}

/// Calls `act`, which works on so many bytes; the other processes of the cluster have their turns meanwhile if it takes
/// long. `act` may only use memory that no other process uses. What is longer than a page of shared buffers is in such
/// memory.
///
/// # Errors
/// When another process of the cluster has crashed.
pub(super) fn without_turn_if_long<T>(
    store: &mut impl AsContextMut<Data = Guest>,
    bytes: usize,
    act: impl FnOnce(&mut StoreContextMut<'_, Guest>) -> T,
) -> wasmtime::Result<T> {
    if bytes < LONG { Ok(act(&mut store.as_context_mut())) } else { without_turn(store, act) }
}

/// Lets the processes that wait for their turn have it, as a safepoint does that the process is stopped at. It is for
/// host functions that compute for long and call the guest, which therefore need the turn.
///
/// # Errors
/// When another process of the cluster has crashed.
pub(super) fn give_way(store: &mut impl AsContextMut<Data = Guest>) -> wasmtime::Result<()> {
    let others_wait = store.as_context().data().seat.as_ref().is_some_and(Seat::others_wait);
    if others_wait { without_turn(store, |_| ()) } else { Ok(()) }
}

/// Calls `act` while the other processes of the cluster have their turns, and then takes the next turn.
///
/// # Errors
/// When another process of the cluster has crashed.
pub(super) fn without_turn<T>(
    store: &mut impl AsContextMut<Data = Guest>,
    act: impl FnOnce(&mut StoreContextMut<'_, Guest>) -> T,
) -> wasmtime::Result<T> {
    let mut context = store.as_context_mut();
    if let Some(seat) = &mut context.data_mut().seat {
        seat.end_turn();
    }
    let done = act(&mut context);
    if let Some(seat) = &mut context.data_mut().seat {
        seat.take_turn()?;
    }
    Ok(done)
}
