//! Channel binding (`SCRAM-SHA-256-PLUS` with `tls-server-end-point`, RFC 5929): the proof of a client's password covers a
//! digest of the certificate that the client has seen, so that nobody between the two can use the proof.
//!
//! PostgreSQL does the exchange and checks the proof (`src/backend/libpq/auth-scram.c`). The parts for channel binding that
//! are compiled without OpenSSL are there; the others are here: to offer the mechanism, to let the client choose it, and
//! to compare the digest.

use wasmtime::{Caller, Linker};

use super::{Guest, call, memory, report};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::scram_state,
    protocol::error_response::sqlstate,
};

/// `SCRAM_SHA_256_PLUS_NAME` (`src/include/common/scram-common.h`)
const WITH_BINDING: &[u8] = b"SCRAM-SHA-256-PLUS";
/// `SCRAM_SHA_256_NAME`
const WITHOUT_BINDING: &[u8] = b"SCRAM-SHA-256";
/// What a client without channel binding says to be bound to: `n,,` in base64.
const UNBOUND: &[u8] = b"biws";
/// `p=tls-server-end-point,,` in base64. The digest that follows in the same text begins with a new group of base64,
/// because these are 24 bytes.
const BOUND: &str = "cD10bHMtc2VydmVyLWVuZC1wb2ludCws";

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ScramMechanisms.name(),
        |mut caller: Caller<'_, Guest>, _port: u32, buffer: u32| offer(&mut caller, buffer),
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ScramExchange.name(),
        |mut caller: Caller<'_, Guest>, state: u32, input: u32| prepare(&mut caller, state, input),
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ScramCompare.name(),
        |mut caller: Caller<'_, Guest>, text: u32, other: u32| {
            compare(&mut caller, text, other).map(|is_equal| i32::from(!is_equal))
        },
    )?;
    Ok(())
}

/// Appends the mechanism to those that are offered, if the client can be bound to a certificate.
fn offer(caller: &mut Caller<'_, Guest>, buffer: u32) -> wasmtime::Result<()> {
    if caller.data().client.certificate_digest().is_none() {
        return Ok(());
    }
    let stack: u32 = call::export(caller, "emscripten_stack_get_current", ())?;
    let name = call::push_string(caller, WITH_BINDING)?;
    let length = u32::try_from(WITH_BINDING.len() + 1)?;
    call::export::<_, ()>(caller, "appendBinaryStringInfo", (buffer, name, length))?;
    call::export(caller, "_emscripten_stack_restore", stack)
}

/// Lets PostgreSQL read the first message of a client that has chosen the mechanism as such a client's, and its last
/// message as that of another one, for which [`compare`] gives the answers.
fn prepare(caller: &mut Caller<'_, Guest>, state: u32, input: u32) -> wasmtime::Result<()> {
    let (memory, guest) = memory::of(caller)?;
    if guest.client.certificate_digest().is_none() {
        return Ok(());
    }
    let is_first = memory::read_u32(memory, state.wrapping_add(scram_state::STATE))? == scram_state::INIT;
    if guest.client.is_bound() {
        let in_use = state.wrapping_add(scram_state::CHANNEL_BINDING_IN_USE);
        memory::write_bytes(memory, in_use, &[u8::from(is_first)])?;
        if !is_first {
            memory::write_bytes(memory, state.wrapping_add(scram_state::BINDING_FLAG), b"n")?;
        }
        return Ok(());
    }
    if is_first && input != 0 && memory::read_bytes(memory, input, 1)? == b"y" {
        // Somebody between the two has hidden the offer.
        let detail = "The client supports SCRAM channel binding but thinks the server does not.  \
            However, this server does support channel binding.";
        return Err(refuse(caller, "SCRAM channel binding negotiation error", Some(detail)));
    }
    Ok(())
}

/// Compares two texts, of which the second one is PostgreSQL's own.
fn compare(caller: &mut Caller<'_, Guest>, text: u32, other: u32) -> wasmtime::Result<bool> {
    let (memory, guest) = memory::of(caller)?;
    let (text, other) = (memory::read_c_string(memory, text)?, memory::read_c_string(memory, other)?);
    let client = &mut guest.client;
    let digest = client.certificate_digest();
    if let (WITHOUT_BINDING, Some(_)) = (other, &digest) {
        client.bind(text == WITH_BINDING);
    }
    if !client.is_bound() {
        return Ok(text == other);
    }
    match (other, digest) {
        (WITHOUT_BINDING, _) => Ok(true),
        (UNBOUND, Some(digest)) => {
            if text == format!("{BOUND}{digest}").as_bytes() {
                return Ok(true);
            }
            Err(refuse(caller, "SCRAM channel binding check failed", None))
        }
        _ => Ok(text == other),
    }
}

fn refuse(caller: &mut Caller<'_, Guest>, message: &str, detail: Option<&str>) -> wasmtime::Error {
    report::fatal(caller, sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, message, detail)
}
