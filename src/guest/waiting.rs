//! Waiting for the client or for the disk, and what is done meanwhile.

use std::time::{Duration, Instant};

use wasmtime::{AsContextMut, Caller};

use super::{Guest, heap};
use crate::{
    client::{Interest, Readiness},
    fs::Errno,
};

/// How long a session waits for its client's next message before its free memory goes back to the system. A client
/// that asks one question after the other never waits for that; whoever asks once a second waits for as many page
/// faults as the answer writes pages, microseconds for a small one.
const MOMENT: Duration = Duration::from_secs(1);

/// Waits as [`Client::wait`](crate::client::Client::wait) does; meanwhile the other sessions of its cluster have
/// their turns.
///
/// # Errors
/// When another session of the cluster has crashed.
pub(crate) fn wait(
    store: &mut impl AsContextMut<Data = Guest>,
    interest: Interest,
    deadline: Option<Instant>,
) -> wasmtime::Result<Readiness> {
    let mut context = store.as_context_mut();
    let guest = context.data_mut();
    if let Some(seat) = &mut guest.seat {
        seat.end_turn();
    }
    let moment = Instant::now() + MOMENT;
    let readiness = if interest == Interest::Read && deadline.is_none_or(|deadline| deadline > moment) {
        match guest.client.wait(interest, Some(moment)) {
            Readiness::TimedOut => {
                heap::give_back(&context)?;
                context.data_mut().client.wait(interest, deadline)
            }
            readiness => readiness,
        }
    } else {
        guest.client.wait(interest, deadline)
    };
    if let Some(seat) = &mut context.data_mut().seat {
        seat.take_turn()?;
    }
    Ok(readiness)
}

/// Has the file or the directory behind `fd` on the disk (`fsync`, `fdatasync`). Meanwhile the other processes of the
/// cluster have their turns, and what they commit is on the disk with the next sync.
///
/// # Errors
/// When another process of the cluster has crashed. The inner error is the guest's.
pub(super) fn sync(caller: &mut Caller<'_, Guest>, fd: i32) -> wasmtime::Result<Result<(), Errno>> {
    let guest = caller.data_mut();
    let to_sync = match guest.files.to_sync(fd) {
        Ok(Some(to_sync)) => to_sync,
        Ok(None) => return Ok(Ok(())),
        Err(errno) => return Ok(Err(errno)),
    };
    if let Some(seat) = &mut guest.seat {
        seat.end_turn();
    }
    let synced = to_sync.sync();
    if let Some(seat) = &mut guest.seat {
        seat.take_turn()?;
    }
    Ok(synced)
}
