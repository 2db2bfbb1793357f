//! Waiting for the client or for the disk, and the work meanwhile.

use std::time::{Duration, Instant};

use wasmtime::{AsContextMut, Caller};

use super::{Guest, heap};
use crate::{
    client::{Interest, Readiness},
    fs::{Errno, Files},
};

/// How long a session waits for its client's next message before it returns its free memory to the system. A client
/// that sends one query after the other never reaches it. For a client that sends one query each second, each query
/// costs as many page faults as it writes pages, which takes microseconds for a small query.
const IDLE_TIME: Duration = Duration::from_secs(1);

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
    let mut context = store.as_context_mut();
    let guest = context.data_mut();
    if let Some(seat) = &mut guest.seat {
        seat.end_turn();
    }
    let idle_at = Instant::now() + IDLE_TIME;
    let readiness = if interest == Interest::Read && deadline.is_none_or(|deadline| deadline > idle_at) {
        match guest.client.wait(interest, Some(idle_at)) {
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

/// Has the file or the directory behind `fd` on the disk, without giving the turn away (`fsync`).
///
/// `PostgreSQL` calls it for files that no other process may meet before: a new segment of WAL has a name with a
/// process id in it until it is whole, and all processes of a cluster write the same one there.
pub(super) fn sync(files: &Files, fd: i32) -> Result<(), Errno> {
    files.to_sync(fd)?.map_or(Ok(()), |to_sync| to_sync.sync())
}

/// Has the bytes of the file behind `fd` on the disk (`fdatasync`), as `PostgreSQL` does for WAL at each commit.
/// Meanwhile the other processes of the cluster have their turns, and what they commit is on the disk with the next
/// sync.
///
/// # Errors
/// When another process of the cluster has crashed. The inner error is the guest's.
pub(super) fn sync_data(caller: &mut Caller<'_, Guest>, fd: i32) -> wasmtime::Result<Result<(), Errno>> {
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
