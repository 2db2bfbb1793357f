//! Clients that need no authentication, whatever `pg_hba.conf` says: the host's own sessions, and those for which the
//! parent of a `port` answers.

use wasmtime::{Caller, Linker};

use super::{Guest, call, memory, report};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::port_struct,
    protocol::{error_response::sqlstate, hba::Requirement},
};

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
            let client = &mut caller.data_mut().client;
            client.write_all(AUTHENTICATION_OK);
            client.admit();
            Ok(1)
        },
    )?;
    linker.func_wrap(HOOK_MODULE, Hook::ClientAuthenticated.name(), |mut caller: Caller<'_, Guest>| {
        check_certificate(&mut caller)?;
        caller.data_mut().client.admit();
        Ok::<_, wasmtime::Error>(())
    })?;
    Ok(())
}

/// Does what the rule of the client says about its certificate, which PGlite cannot (`ClientAuthentication` and
/// `CheckCertAuth` in `src/backend/libpq/auth.c`).
fn check_certificate(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let (memory, guest) = memory::of(caller)?;
    let port = memory::read_u32(memory, guest.facts.address("MyProcPort")?)?;
    let rule = memory::read_u32(memory, port.wrapping_add(port_struct::RULE))?;
    let text = memory::read_u32(memory, rule.wrapping_add(port_struct::RULE_TEXT))?;
    let Some(requirement) = Requirement::of(&memory::read_text(memory, text)?) else { return Ok(()) };
    let user = memory::read_u32(memory, port.wrapping_add(port_struct::USER_NAME))?;
    let name = memory::read_text(memory, user)?;
    let code = sqlstate::INVALID_AUTHORIZATION_SPECIFICATION;
    let Some(certificate) = guest.client.certificate() else {
        return Err(report::fatal(caller, code, "connection requires a valid client certificate", None));
    };
    if requirement == Requirement::Signed || certificate.common_name.is_some_and(|common_name| common_name == name) {
        return Ok(());
    }
    let message = format!("certificate authentication failed for user \"{name}\"");
    Err(report::fatal(caller, code, &message, None))
}
