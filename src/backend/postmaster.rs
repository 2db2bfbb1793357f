//! The postmaster's work inside its guest, which is stopped in its `InitProcess`: the parts of `PostmasterMain` and
//! `ServerLoop` (`PostgreSQL`, `src/backend/postmaster/postmaster.c`) that read and write its own memory.

use wasmtime::Caller;

use crate::{
    guest::{
        Guest,
        call::{export as call, setting_value},
        memory,
    },
    postgres::{destination, postmaster_signal, setting},
};

/// Brings the guest into the state with which a postmaster's children start: reads `pg_hba.conf`, and makes a `Port`
/// for their client.
///
/// # Errors
/// When the guest exits, because `pg_hba.conf` cannot be used, or traps.
pub(crate) fn prepare(caller: &mut Caller<'_, Guest>, process_id: i32) -> wasmtime::Result<()> {
    let facts = caller.data().facts.clone();
    call::<(), ()>(caller, "pgl_startPGlite", ())?;
    // PGlite has set IsUnderPostmaster, but this process is the postmaster.
    let memory = memory::of(caller)?.0;
    memory::write_bytes(memory, facts.address("IsUnderPostmaster")?, &[0])?;
    memory::write_u32(memory, facts.where_to_send_output, destination::NONE)?;
    // PostgreSQL then reports an orderly start or shutdown as notices, which are not logged.
    memory::write_bytes(memory, facts.is_postmaster_environment, &[0])?;
    memory::write_u32(memory, facts.postmaster.process_id, process_id.cast_unsigned())?;
    Ok(())
}

/// Reads the configuration files again (`process_pm_reload_request` in `src/backend/postmaster/postmaster.c`); returns
/// whether `pg_hba.conf` can be used. If it cannot, the one before stays in use.
///
/// # Errors
/// When the guest exits or traps.
pub(crate) fn reload(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<bool> {
    call::<i32, ()>(caller, "ProcessConfigFile", setting::ON_RELOAD)?;
    Ok(call::<(), i32>(caller, "load_hba", ())? != 0)
}

/// Takes the signals that children have sent to the postmaster; returns for each of [`postmaster_signal`] whether it
/// was sent.
///
/// # Errors
/// When there is no shared memory.
pub(crate) fn take_signals(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<[bool; postmaster_signal::COUNT]> {
    let address = caller.data().facts.postmaster.state;
    let memory = memory::of(caller)?.0;
    let flags = memory::read_u32(memory, address)?;
    let mut asked = [false; postmaster_signal::COUNT];
    for (flag, asked) in (flags..).step_by(4).zip(&mut asked) {
        *asked = memory::read_u32(memory, flag)? != 0;
        memory::write_u32(memory, flag, 0)?;
    }
    Ok(asked)
}

/// Exits with status 0, through `proc_exit`.
///
/// # Errors
/// Always: the exit, or a trap.
pub(crate) fn exit(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    call(caller, "proc_exit", 0_i32)
}

/// Whether autovacuum is enabled (`AutoVacuumingActive` in `src/backend/postmaster/autovacuum.c`).
///
/// # Errors
/// When the guest traps.
pub(crate) fn wants_autovacuum(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<bool> {
    Ok(setting_value(caller, b"autovacuum")? == b"on" && setting_value(caller, b"track_counts")? == b"on")
}
