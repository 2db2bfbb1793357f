//! SQL errors raised by the host, with the functions behind `ereport` (`PostgreSQL`, `src/backend/utils/error/elog.c`).

use wasmtime::{AsContextMut, Caller, Func, FuncType, bail};

use super::{Guest, call};

/// `elog` level of an error (`src/include/utils/elog.h`).
const ERROR: i32 = 21;
/// That of an error which ends the session.
const FATAL: i32 = 22;

/// Raises an SQL error with that SQLSTATE and message: the exception that it throws is the error returned, and has to be passed on.
pub(super) fn error(store: &mut impl AsContextMut<Data = Guest>, sqlstate: &str, message: &str) -> wasmtime::Error {
    raise(store, ERROR, sqlstate, message, None)
}

/// As [`error`], with an error that ends the session: it is the guest's exit that is returned.
pub(crate) fn fatal(
    store: &mut impl AsContextMut<Data = Guest>,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
) -> wasmtime::Error {
    raise(store, FATAL, sqlstate, message, detail)
}

fn raise(
    store: &mut impl AsContextMut<Data = Guest>,
    level: i32,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
) -> wasmtime::Error {
    match report(store, level, sqlstate, message, detail) {
        Err(thrown) => thrown,
        Ok(()) => wasmtime::format_err!("errfinish returned after an error ({sqlstate}: {message})"),
    }
}

fn report(
    store: &mut impl AsContextMut<Data = Guest>,
    level: i32,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
) -> wasmtime::Result<()> {
    let instance = store.as_context().data().exports()?.instance;
    let start = instance.get_typed_func::<(i32, u32), i32>(&mut *store, "errstart")?;
    let code = instance.get_typed_func::<i32, i32>(&mut *store, "errcode")?;
    let finish = instance.get_typed_func::<(u32, i32, u32), ()>(&mut *store, "errfinish")?;
    if start.call(&mut *store, (level, 0))? == 0 {
        bail!("PostgreSQL ignored an error ({sqlstate}: {message})");
    }
    code.call(&mut *store, encode(sqlstate))?;
    for (function, text) in [("errmsg_internal", Some(message)), ("errdetail_internal", detail)] {
        let Some(text) = text else { continue };
        // The text is a format; it has no arguments. Unwinding restores the guest's stack pointer.
        let format = text.replace('\0', "").replace('%', "%%");
        let address = call::push_string(store, format.as_bytes())?;
        let function = instance.get_typed_func::<(u32, u32), i32>(&mut *store, function)?;
        function.call(&mut *store, (address, 0))?;
    }
    finish.call(&mut *store, (0, 0, 0))
}

/// `MAKE_SQLSTATE` (`src/include/utils/elog.h`): six bits a character, the first lowest.
fn encode(sqlstate: &str) -> i32 {
    sqlstate.bytes().rev().fold(0, |code, character| (code << 6) | i32::from(character.wrapping_sub(b'0') & 0x3f))
}

/// A function that a side module imports and nobody defines: calling it is an SQL error that names it.
pub(super) fn undefined(store: &mut impl AsContextMut<Data = Guest>, ty: FuncType, name: &str) -> Func {
    let message = format!("the function {name}, which this library needs, is not part of PGlite");
    Func::new(store, ty, move |mut caller: Caller<'_, Guest>, _, _| Err(error(&mut caller, "0A000", &message)))
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
