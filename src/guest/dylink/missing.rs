//! Libraries of packages that are not installed: PostgreSQL's error for a file that is not there gets a hint.

use wasmtime::Caller;

use crate::{
    engine::artefact::Package,
    guest::{Guest, memory, report},
    protocol::error_response::sqlstate,
};

/// Where PostgreSQL looks for libraries (`$libdir`).
const DIRECTORY: &str = "/pglite/lib/postgresql/";

/// Raises PostgreSQL's own error with a hint, if there is nothing at `path`, which the guest has just looked at,
/// because a package is not installed.
///
/// To load the library `NAME`, PostgreSQL looks for `$libdir/NAME` and `$libdir/NAME.so`, and then reports the error of
/// looking for `NAME` (`expand_dynamic_library_name` and `internal_load_library` in `src/backend/utils/fmgr/dfmgr.c`).
pub(in crate::guest) fn explain(caller: &mut Caller<'_, Guest>, path: u32) -> wasmtime::Result<()> {
    let path = memory::read_c_string(memory::of(caller)?.0, path).unwrap_or_default();
    let name = String::from_utf8_lossy(path).into_owned();
    let looked_for = name.strip_prefix(DIRECTORY).and_then(Package::with_library);
    let before = std::mem::replace(&mut caller.data_mut().missing, looked_for);
    let Some(package) = before.filter(|package| package.has_library(&format!("{name}.so"))) else { return Ok(()) };
    let message = format!("could not access file \"{name}\": No such file or directory");
    Err(report::error_with_hint(caller, sqlstate::UNDEFINED_FILE, &message, Some(&package.advice())))
}
