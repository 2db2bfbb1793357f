//! Clients that need no authentication, whatever `pg_hba.conf` says: the host's own sessions, and those for which the
//! parent of a `port` answers.

use wasmtime::{Caller, Linker};

use super::{Guest, call};
use crate::instrument::{HOOK_MODULE, Hook};

/// `AuthenticationOk` (`PostgreSQL` manual, "Message Formats").
pub(crate) const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ClientIsTrusted.name(),
        |mut caller: Caller<'_, Guest>| -> wasmtime::Result<i32> {
            if !caller.data().client.is_trusted() {
                return Ok(0);
            }
            // The negotiation of the protocol's version comes before.
            call::export::<(), ()>(&mut caller, "pgl_pq_flush", ())?;
            caller.data_mut().client.write_all(AUTHENTICATION_OK);
            Ok(1)
        },
    )?;
    Ok(())
}
