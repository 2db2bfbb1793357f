//! The caches of system catalogs with which a process begins, if another one has made them.

use std::sync::atomic::{AtomicBool, Ordering};

use wasmtime::{AsContext, Caller, Linker};

use super::{Guest, memory};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::messages,
};

/// The caches that processes of one cluster begin with.
#[derive(Debug)]
pub(crate) struct Caches {
    /// The number of the next message about a changed catalog when they were made.
    next_message: u32,
    is_outdated: AtomicBool,
}

impl Caches {
    pub(crate) fn new(next_message: u32) -> Self {
        Self { next_message, is_outdated: AtomicBool::new(false) }
    }

    /// Whether a process has found that catalogs have changed since they were made.
    pub(crate) fn are_outdated(&self) -> bool {
        self.is_outdated.load(Ordering::Relaxed)
    }
}

/// A process was stopped before it exits with this status.
#[derive(Debug, thiserror::Error)]
#[error("the process is stopped before it exits with status {0}")]
pub(crate) struct StoppedAtExit(pub(crate) i32);

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(HOOK_MODULE, Hook::Exit.name(), |status: i32| -> wasmtime::Result<()> {
        Err(StoppedAtExit(status).into())
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::InheritCaches.name(), |mut caller: Caller<'_, Guest>| inherit(&mut caller))?;
    Ok(())
}

/// The number of the next message about a changed catalog, and the address of the queue.
///
/// # Errors
/// When there is no shared memory.
pub(crate) fn next_message(store: impl AsContext<Data = Guest>) -> wasmtime::Result<(u32, u32)> {
    let guest = store.as_context().data();
    let memory = guest.memory()?.data(&store);
    let queue = memory::read_u32(memory, guest.facts.messages.queue)?;
    Ok((memory::read_u32(memory, queue.wrapping_add(messages::NEXT))?, queue))
}

/// Has the process drop all that it has in its caches if catalogs have changed since they were made: it has not got the
/// messages that say what. It has entered the queue, so that it gets those that follow.
fn inherit(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let (next, queue) = next_message(&*caller)?;
    let (memory, guest) = memory::of(caller)?;
    // Only a process with caches calls this.
    let Some(caches) = guest.caches.as_ref().filter(|caches| caches.next_message != next) else { return Ok(()) };
    caches.is_outdated.store(true, Ordering::Relaxed);
    let facts = &guest.facts.messages;
    let number = memory::read_u32(memory, facts.my_number)?;
    let place = queue.wrapping_add(facts.places).wrapping_add(number.wrapping_mul(messages::PLACE));
    // As `SICleanupQueue` does with a process that is too far behind (`src/backend/storage/ipc/sinvaladt.c`). The
    // process reads both when it next looks for messages; others set them only.
    for flag in [messages::HAS_MISSED, messages::HAS_MESSAGES] {
        memory::write_bytes(memory, place.wrapping_add(flag), &[1])?;
    }
    Ok(())
}
