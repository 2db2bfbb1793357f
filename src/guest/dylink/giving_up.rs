//! Libraries that give up: `abort()` and assertions that fail.
//!
//! Where PostgreSQL itself gives up, its cluster recovers. A library that does has found out that something of its own
//! is not as it should be, or got no memory from `operator new`, which without exceptions calls `abort()`. The latter
//! is an error of the statement, as wherever else memory is refused. In the former case the session ends, as the
//! process would in a PostgreSQL server: what the library keeps in its memory is in doubt. The other sessions have
//! memory of their own and go on. A session that has its cluster alone goes on as well, because the cluster would end
//! with it.

use wasmtime::{AsContextMut, Caller, Func, FuncType, Val};

use crate::{
    guest::{Guest, memory, report},
    protocol::error_response::sqlstate,
};

/// `abort()`, and what `assert()` calls.
pub(super) const ABORT: &str = "abort";
const ASSERT_FAIL: &str = "__assert_fail";

/// The function `name` for the library at `path`, if it is one with which a library gives up.
pub(super) fn function(
    store: &mut impl AsContextMut<Data = Guest>,
    ty: &FuncType,
    name: &str,
    path: &str,
) -> Option<Func> {
    let library = library(path).to_owned();
    match name {
        ABORT => Some(Func::new(store, ty.clone(), move |mut caller: Caller<'_, Guest>, _, _| {
            Err(abort(&mut caller, &library))
        })),
        ASSERT_FAIL => Some(Func::new(store, ty.clone(), move |mut caller: Caller<'_, Guest>, arguments, _| {
            Err(assertion(&mut caller, &library, arguments))
        })),
        _ => None,
    }
}

/// The name of the library in the file at `path`.
fn library(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".so").unwrap_or(name)
}

fn abort(caller: &mut Caller<'_, Guest>, library: &str) -> wasmtime::Error {
    if caller.data().growth.was_refused() {
        let detail = format!("The library {library:?} has called abort() when it got no memory.");
        return report::error_with_detail(caller, sqlstate::OUT_OF_MEMORY, "out of memory", Some(&detail));
    }
    give_up(caller, &format!("the library {library:?} has called abort()"), None)
}

/// An assertion with the arguments of `__assert_fail`: condition, file, line and function.
fn assertion(caller: &mut Caller<'_, Guest>, library: &str, arguments: &[Val]) -> wasmtime::Error {
    let number = |place: usize| arguments.get(place).and_then(Val::i32).unwrap_or(0);
    let detail = memory::of(caller).map(|(memory, _)| {
        let text = |place: usize| match number(place).cast_unsigned() {
            0 => "?".to_owned(),
            address => memory::read_text(memory, address).unwrap_or_else(|_| "?".to_owned()),
        };
        format!("{}, in {} at {}:{}", text(0), text(3), text(1), number(2))
    });
    give_up(caller, &format!("an assertion has failed in the library {library:?}"), detail.ok().as_deref())
}

fn give_up(caller: &mut Caller<'_, Guest>, message: &str, detail: Option<&str>) -> wasmtime::Error {
    if caller.data().seat.is_some() {
        report::fatal(caller, sqlstate::INTERNAL_ERROR, message, detail)
    } else {
        report::error_with_detail(caller, sqlstate::INTERNAL_ERROR, message, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_called_as_in_sql() {
        assert_eq!(library("/pglite/lib/postgresql/postgis-3.so"), "postgis-3");
        assert_eq!(library("own"), "own");
        assert_eq!(library("C++ runtime"), "C++ runtime");
    }
}
