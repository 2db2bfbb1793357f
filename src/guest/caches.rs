//! The caches of system catalogs with which a process begins, if another one has made them.

use std::sync::atomic::{AtomicBool, Ordering};

use wasmtime::{AsContext, Caller, Linker};

use super::{Guest, memory, report};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::messages,
    protocol::error_response::sqlstate,
};

/// The state of the catalogs when the caches were made with which processes of one cluster begin.
#[derive(Debug)]
pub(crate) struct Caches {
    made: CatalogState,
    is_outdated: AtomicBool,
}

/// What tells whether catalogs have changed, and which ones a process looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CatalogState {
    /// The number of the next message about a changed catalog.
    pub(crate) next_message: u32,
    /// `MyDatabaseId` and `MyDatabaseTableSpace`.
    database: [u32; 2],
}

impl CatalogState {
    /// That of a process.
    ///
    /// # Errors
    /// When there is no shared memory.
    pub(crate) fn of(store: impl AsContext<Data = Guest>) -> wasmtime::Result<Self> {
        let guest = store.as_context().data();
        let memory = guest.memory()?.data(&store);
        let queue = memory::read_u32(memory, guest.facts.message_queue)?;
        let next_message = memory::read_u32(memory, queue.wrapping_add(messages::NEXT))?;
        let variable = |name| -> wasmtime::Result<u32> { Ok(memory::read_u32(memory, guest.facts.address(name)?)?) };
        Ok(Self { next_message, database: [variable("MyDatabaseId")?, variable("MyDatabaseTableSpace")?] })
    }
}

impl Caches {
    pub(crate) fn new(made: CatalogState) -> Self {
        Self { made, is_outdated: AtomicBool::new(false) }
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

/// Catalogs have changed since the caches were made with which a process has begun.
#[derive(Debug, thiserror::Error)]
#[error("the process has begun with caches that are outdated")]
pub(crate) struct Outdated;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(HOOK_MODULE, Hook::Exit.name(), |status: i32| -> wasmtime::Result<()> {
        Err(StoppedAtExit(status).into())
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::InheritCaches.name(), |caller: Caller<'_, Guest>| check_messages(&caller))?;
    linker.func_wrap(HOOK_MODULE, Hook::DatabaseChosen.name(), |mut caller: Caller<'_, Guest>| {
        check_database(&mut caller)
    })?;
    Ok(())
}

/// Fails if catalogs have changed since the caches were made with which the process has begun, if it has.
///
/// # Errors
/// [`Outdated`]; others when there is no shared memory.
pub(crate) fn check_messages(store: impl AsContext<Data = Guest>) -> wasmtime::Result<()> {
    let found = CatalogState::of(&store)?;
    match &store.as_context().data().caches {
        Some(caches) if caches.made.next_message != found.next_message => {
            caches.is_outdated.store(true, Ordering::Relaxed);
            Err(Outdated.into())
        }
        _ => Ok(()),
    }
}

/// Refuses a session whose database was replaced by another one of its name, or moved, after it has entered the queue of
/// messages and before it has locked the database.
fn check_database(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let found = CatalogState::of(&*caller)?;
    let made = caller.data().caches.as_ref().map(|caches| caches.made.database);
    if made.is_none_or(|made| made == found.database) {
        return Ok(());
    }
    let message = "the database was replaced while the session began";
    Err(report::fatal(caller, sqlstate::CANNOT_CONNECT_NOW, message, None))
}
