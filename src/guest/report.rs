//! SQL errors raised by the host, with the functions behind `ereport` (`PostgreSQL`,
//! `src/backend/utils/error/elog.c`).

use wasmtime::{AsContextMut, bail};

use super::{Guest, call};
use crate::{
    postgres::level::{ERROR, FATAL},
    protocol::error_response::sqlstate,
};

/// The fields of an error.
struct Report<'a> {
    level: i32,
    sqlstate: &'a str,
    message: &'a str,
    detail: Option<&'a str>,
    hint: Option<&'a str>,
}

/// Raises an SQL error with that SQLSTATE and message. The returned error is the exception that it throws, and must be
/// passed on.
pub(super) fn error(store: &mut impl AsContextMut<Data = Guest>, sqlstate: &str, message: &str) -> wasmtime::Error {
    error_with_hint(store, sqlstate, message, None)
}

/// As [`error`], with a hint for the user.
pub(super) fn error_with_hint(
    store: &mut impl AsContextMut<Data = Guest>,
    sqlstate: &str,
    message: &str,
    hint: Option<&str>,
) -> wasmtime::Error {
    raise(store, &Report { level: ERROR, sqlstate, message, detail: None, hint })
}

/// As [`error`], with a detail.
pub(super) fn error_with_detail(
    store: &mut impl AsContextMut<Data = Guest>,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
) -> wasmtime::Error {
    raise(store, &Report { level: ERROR, sqlstate, message, detail, hint: None })
}

/// As [`error`], with an error that ends the session: the returned error is the guest's exit.
pub(crate) fn fatal(
    store: &mut impl AsContextMut<Data = Guest>,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
) -> wasmtime::Error {
    raise(store, &Report { level: FATAL, sqlstate, message, detail, hint: None })
}

fn raise(store: &mut impl AsContextMut<Data = Guest>, report: &Report<'_>) -> wasmtime::Error {
    match tell(store, report) {
        Err(thrown) => thrown,
        Ok(()) => wasmtime::format_err!("errfinish returned after an error ({}: {})", report.sqlstate, report.message),
    }
}

fn tell(store: &mut impl AsContextMut<Data = Guest>, report: &Report<'_>) -> wasmtime::Result<()> {
    let Report { level, sqlstate, message, detail, hint } = *report;
    if call::export::<(i32, u32), i32>(store, "errstart", (level, 0))? == 0 {
        bail!("PostgreSQL ignored an error ({sqlstate}: {message})");
    }
    call::export::<i32, i32>(store, "errcode", encode(sqlstate))?;
    let texts = [("errmsg_internal", Some(message)), ("errdetail_internal", detail), ("errhint", hint)];
    for (function, text) in texts {
        let Some(text) = text else { continue };
        // The text is a format without arguments. Unwinding restores the guest's stack pointer.
        let address = call::push_string(store, text.replace('\0', "").replace('%', "%%").as_bytes())?;
        call::export::<(u32, u32), i32>(store, function, (address, 0))?;
    }
    call::export(store, "errfinish", (0_u32, 0_i32, 0_u32))
}

/// `MAKE_SQLSTATE` (`src/include/utils/elog.h`): six bits for each character, the first in the lowest bits.
fn encode(sqlstate: &str) -> i32 {
    sqlstate.bytes().rev().fold(0, |code, character| (code << 6) | i32::from(character.wrapping_sub(b'0') & 0x3f))
}

/// As [`error`], when a library calls a function that nothing defines.
pub(super) fn undefined(store: &mut impl AsContextMut<Data = Guest>, name: &str) -> wasmtime::Error {
    let message = format!("the function {name}, which a library needs, is not in PGlite or in another loaded library");
    error(store, sqlstate::FEATURE_NOT_SUPPORTED, &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_encoded_as_postgresql_does() {
        // ERRCODE_FEATURE_NOT_SUPPORTED and ERRCODE_CONNECTION_FAILURE as numbers in compiled PostgreSQL.
        assert_eq!(encode("00000"), 0);
        assert_eq!(encode("0A000"), 17 << 6);
        assert_eq!(encode("57P01"), 5 | (7 << 6) | (32 << 12) | (1 << 24));
    }
}
