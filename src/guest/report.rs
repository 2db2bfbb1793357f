//! SQL errors raised by the host, with the functions behind `ereport` (`PostgreSQL`, `src/backend/utils/error/elog.c`).

use wasmtime::{AsContextMut, Caller, Func, FuncType, bail};

use super::{Guest, call};

/// `elog` level of an error (`src/include/utils/elog.h`).
const ERROR: i32 = 21;

/// Raises an SQL error with that SQLSTATE and message: the exception that it throws is the error returned, and has to be passed on.
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
    match raise(store, sqlstate, message, hint) {
        Err(thrown) => thrown,
        Ok(()) => wasmtime::format_err!("errfinish returned after an error ({sqlstate}: {message})"),
    }
}

fn raise(
    store: &mut impl AsContextMut<Data = Guest>,
    sqlstate: &str,
    message: &str,
    hint: Option<&str>,
) -> wasmtime::Result<()> {
    let instance = store.as_context().data().exports()?.instance;
    let start = instance.get_typed_func::<(i32, u32), i32>(&mut *store, "errstart")?;
    let code = instance.get_typed_func::<i32, i32>(&mut *store, "errcode")?;
    let text = instance.get_typed_func::<(u32, u32), i32>(&mut *store, "errmsg_internal")?;
    let finish = instance.get_typed_func::<(u32, i32, u32), ()>(&mut *store, "errfinish")?;
    // Unwinding restores the guest's stack pointer.
    let address = push_format(store, message)?;
    if start.call(&mut *store, (ERROR, 0))? == 0 {
        bail!("PostgreSQL ignored an error ({sqlstate}: {message})");
    }
    code.call(&mut *store, encode(sqlstate))?;
    text.call(&mut *store, (address, 0))?;
    if let Some(hint) = hint {
        let errhint = instance.get_typed_func::<(u32, u32), i32>(&mut *store, "errhint")?;
        let address = push_format(store, hint)?;
        errhint.call(&mut *store, (address, 0))?;
    }
    finish.call(&mut *store, (0, 0, 0))
}

/// A format without arguments that says `text`, on the guest's stack.
fn push_format(store: &mut impl AsContextMut<Data = Guest>, text: &str) -> wasmtime::Result<u32> {
    call::push_string(store, text.replace('\0', "").replace('%', "%%").as_bytes())
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
