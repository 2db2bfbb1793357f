//! Calls into the guest as into a C program: arguments on its stack, `main`, its exit status.

use wasmtime::{AsContextMut, Store, WasmParams, WasmResults};
use wasmtime_wasi::I32Exit;

use super::{Guest, memory};

/// Calls the export `name`.
///
/// # Errors
/// When no export has that name and type, and when the guest traps, exits or throws.
pub(crate) fn export<P: WasmParams, R: WasmResults>(
    store: &mut impl AsContextMut<Data = Guest>,
    name: &str,
    parameters: P,
) -> wasmtime::Result<R> {
    let instance = store.as_context().data().exports()?.instance;
    let function = instance.get_typed_func::<P, R>(&mut *store, name)?;
    function.call(&mut *store, parameters)
}

/// Pushes bytes onto the guest's stack, where they stay until its stack pointer is restored.
///
/// # Errors
/// When the stack has no room for them, and while the instance is being made.
pub(crate) fn push(store: &mut impl AsContextMut<Data = Guest>, bytes: &[u8]) -> wasmtime::Result<u32> {
    let instance = store.as_context().data().exports()?.instance;
    let allocate = instance.get_typed_func::<u32, u32>(&mut *store, "_emscripten_stack_alloc")?;
    let address = allocate.call(&mut *store, u32::try_from(bytes.len())?)?;
    let memory = store.as_context().data().memory()?;
    memory::write_bytes(memory.data_mut(&mut *store), address, bytes)?;
    Ok(address)
}

/// [`push`] of a C string: `text` and its final NUL.
///
/// # Errors
/// As [`push`].
pub(crate) fn push_string(store: &mut impl AsContextMut<Data = Guest>, text: &[u8]) -> wasmtime::Result<u32> {
    push(store, &[text, b"\0"].concat())
}

/// The value of a setting (`GetConfigOption` in `src/backend/utils/misc/guc.c`); numbers have no unit.
///
/// # Errors
/// When there is no setting with that name, and when the guest traps.
pub(crate) fn setting_value(store: &mut impl AsContextMut<Data = Guest>, name: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let stack: u32 = export(store, "emscripten_stack_get_current", ())?;
    let name = push_string(store, name)?;
    let value: u32 = export(store, "GetConfigOption", (name, 0_i32, 0_i32))?;
    let memory = store.as_context().data().memory()?;
    let value = memory::read_c_string(memory.data(&*store), value)?.to_vec();
    export::<u32, ()>(store, "_emscripten_stack_restore", stack)?;
    Ok(value)
}

/// Runs `main` with these arguments until it returns or exits, and returns the exit status.
///
/// # Errors
/// When it traps.
pub(crate) fn main(store: &mut Store<Guest>, executable: &str, arguments: &[&str]) -> anyhow::Result<i32> {
    let mut argv = Vec::new();
    for argument in std::iter::once(&executable).chain(arguments) {
        argv.extend(push_string(store, argument.as_bytes())?.to_le_bytes());
    }
    let argc = i32::try_from(argv.len() / size_of::<u32>())?;
    argv.extend([0; size_of::<u32>()]);
    let argv = push(store, &argv)?;
    let instance = store.data().exports()?.instance;
    let main = instance.get_typed_func::<(i32, u32), i32>(&mut *store, "__main_argc_argv")?;
    store.data_mut().native_stack.begin();
    main.call(&mut *store, (argc, argv)).map_err(anyhow::Error::from).or_else(exit_status)
}

/// Writes the buffers of the C library's streams, as the end of a process does.
///
/// # Errors
/// When the guest traps.
pub(crate) fn flush(store: &mut Store<Guest>) -> wasmtime::Result<()> {
    let instance = store.data().exports()?.instance;
    let flush = instance.get_typed_func::<u32, i32>(&mut *store, "fflush")?;
    flush.call(&mut *store, 0).map(drop)
}

/// The status of an exit; any other error is passed on.
///
/// # Errors
/// The error itself.
pub(crate) fn exit_status(error: anyhow::Error) -> anyhow::Result<i32> {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(status)) => Ok(*status),
        None => Err(error),
    }
}
