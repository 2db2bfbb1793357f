//! The postmaster's work inside its guest: the parts of `PostmasterMain` and `ServerLoop` (`PostgreSQL`,
//! `src/backend/postmaster/postmaster.c`) that read and write its own memory.
//!
//! A postmaster is booted up to its `InitProcess`, where its state is captured as a [`Fork`]. It goes on from there
//! when it has something to do.

use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::Caller;

use super::{Backend, Fork};
use crate::{
    backend::program::Program,
    cluster::Seat,
    fs::Files,
    guest::{
        Guest, Setup,
        call::{export as call, setting_value},
        memory,
    },
    postgres::{checkpoint, destination, postmaster_signal, process, setting},
};

/// The guest was stopped where a postmaster would begin to fork.
#[derive(Debug, thiserror::Error)]
#[error("the postmaster is stopped before it forks")]
struct Stopped;

impl Backend {
    /// Boots the postmaster of the cluster in `files`, with further arguments, up to the point at which it forks.
    /// Returns `None` if `PostgreSQL` exits before that; its log says why.
    ///
    /// # Errors
    /// When the guest traps, or the system has no memory.
    pub(crate) fn boot_postmaster(
        program: &Arc<Program>,
        files: Files,
        seat: Seat,
        settings: &[String],
    ) -> anyhow::Result<Option<Fork>> {
        let captured = Arc::new(Mutex::new(None));
        let stop = {
            let (captured, program) = (captured.clone(), program.clone());
            move |caller: &mut Caller<'_, Guest>| {
                prepare(caller)?;
                *captured.lock() = Some(Fork::first(caller, &program).map_err(wasmtime::Error::from_anyhow)?);
                Err(Stopped.into())
            }
        };
        let setup = Setup {
            seat: Some(seat),
            is_unlimited: true,
            before_fork: Some(Box::new(stop)),
            ..Setup::backend(program, files)
        };
        let mut backend = Self::new(program, setup)?;
        backend.take_turn()?;
        let exited = backend.run_postmaster(settings);
        match captured.lock().take() {
            Some(fork) => Ok(Some(fork)),
            None => exited.map(|_| None),
        }
    }

    /// Reads the configuration files again (`process_pm_reload_request` in `src/backend/postmaster/postmaster.c`);
    /// returns whether `pg_hba.conf` can be used. If it cannot, the one before stays in use.
    ///
    /// # Errors
    /// When the guest exits or traps.
    pub(crate) fn reload_as_postmaster(&mut self) -> anyhow::Result<bool> {
        self.call::<i32, ()>("ProcessConfigFile", setting::ON_RELOAD)?;
        Ok(self.call::<(), i32>("load_hba", ())? != 0)
    }

    /// Takes the signals that children have sent to the postmaster; returns for each of [`postmaster_signal`] whether
    /// it was sent.
    ///
    /// # Errors
    /// When there is no shared memory.
    pub(crate) fn take_postmaster_signals(&mut self) -> anyhow::Result<[bool; postmaster_signal::COUNT]> {
        let flags = self.read_u32(self.facts().postmaster.state)?;
        let mut asked = [false; postmaster_signal::COUNT];
        for (flag, asked) in (flags..).step_by(4).zip(&mut asked) {
            *asked = self.read_u32(flag)? != 0;
            self.write_u32(flag, 0)?;
        }
        Ok(asked)
    }

    /// Makes processes ask the checkpointer that will have the process id [`process::CHECKPOINTER`]. Without one,
    /// requests would wait for a checkpointer that starts by itself (`RequestCheckpoint` in
    /// `src/backend/postmaster/checkpointer.c`), or fail (`ForwardSyncRequest`).
    ///
    /// # Errors
    /// When there is no shared memory.
    pub(crate) fn announce_checkpointer(&mut self) -> anyhow::Result<()> {
        let shared = self.read_u32(self.facts().checkpointer.shared)?;
        self.write_u32(shared.wrapping_add(checkpoint::PROCESS_ID), process::CHECKPOINTER.cast_unsigned())
    }

    /// Whether autovacuum is enabled (`AutoVacuumingActive` in `src/backend/postmaster/autovacuum.c`).
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn wants_autovacuum(&mut self) -> anyhow::Result<bool> {
        let store = &mut self.store;
        Ok(setting_value(store, b"autovacuum")? == b"on" && setting_value(store, b"track_counts")? == b"on")
    }
}

/// Brings the guest into the state with which a postmaster's children start: reads `pg_hba.conf`, and makes a `Port`
/// for their client.
///
/// # Errors
/// When the guest exits, because `pg_hba.conf` cannot be used, or traps.
fn prepare(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let facts = caller.data().facts.clone();
    call::<(), ()>(caller, "pgl_startPGlite", ())?;
    // PGlite has set IsUnderPostmaster, but this process is the postmaster.
    let memory = memory::of(caller)?.0;
    memory::write_bytes(memory, facts.address("IsUnderPostmaster")?, &[0])?;
    memory::write_u32(memory, facts.where_to_send_output, destination::NONE)?;
    // PostgreSQL then reports an orderly start or shutdown as notices, which are not logged.
    memory::write_bytes(memory, facts.is_postmaster_environment, &[0])?;
    memory::write_u32(memory, facts.postmaster.process_id, process::FIRST.cast_unsigned())?;
    Ok(())
}
