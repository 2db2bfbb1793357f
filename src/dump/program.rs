//! `pg_dump` as a guest.
//!
//! It is built as Emscripten's side modules are: it imports its memory, its table, and where its data and its stack
//! are. Its libpq calls three functions of the host instead of a socket's; `poll` in it always says that bytes have
//! arrived (`pgl_recv`, `pgl_send` and `pgl_poll` in PGlite's sources).

use std::{io, sync::Arc};

use anyhow::Context;
use wasmtime::{
    Caller, Extern, ExternType, Func, Global, GlobalType, Linker, Memory, Module, Mutability, Ref, RefType, Store,
    Table, TableType, Val, ValType, bail,
};

use super::wire::Wire;
use crate::{
    fs::{At, Errno, Files, OpenFlags},
    guest::{Exports, Guest, Setup, call, memory, set_errno, write_local_time},
    instrument::IMPORTING_DATA,
    template::Tools,
};

/// Its path in the guest's files, where it looks for itself.
pub(super) const EXECUTABLE: &str = "/bin/pg_dump";

/// The size of its stack. It grows down from here to address 0, so that a stack that is too small ends the guest.
const STACK: u32 = 8 << 20;
/// The first slot of its functions in the table, as in Emscripten: slot 0 is the null pointer.
const FIRST_SLOT: u32 = 1;

/// The names of encodings by their numbers (`pg_enc2name_tbl` in `src/common/encnames.c`).
const ENCODINGS: [&str; 42] = [
    "SQL_ASCII",
    "EUC_JP",
    "EUC_CN",
    "EUC_KR",
    "EUC_TW",
    "EUC_JIS_2004",
    "UTF8",
    "MULE_INTERNAL",
    "LATIN1",
    "LATIN2",
    "LATIN3",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "WIN1256",
    "WIN1258",
    "WIN866",
    "WIN874",
    "KOI8R",
    "WIN1251",
    "WIN1252",
    "ISO_8859_5",
    "ISO_8859_6",
    "ISO_8859_7",
    "ISO_8859_8",
    "WIN1250",
    "WIN1253",
    "WIN1254",
    "WIN1255",
    "WIN1257",
    "KOI8U",
    "SJIS",
    "BIG5",
    "GBK",
    "UHC",
    "GB18030",
    "JOHAB",
    "SHIFT_JIS_2004",
];

/// Runs `pg_dump` with these arguments until it ends, and returns its exit status.
///
/// # Errors
/// When it is missing or cannot be linked, and when it traps.
pub(super) fn run(tools: &Tools, files: Files, wire: Arc<Wire>, arguments: &[String]) -> anyhow::Result<i32> {
    let program = &tools.program;
    let module = program.pg_dump(&tools.artefact)?;
    let setup = Setup { environment: wire.environment(), ..Setup::backend(program, files) };
    let mut store = Store::new(program.engine(), Guest::new(setup)?);
    let mut linker = program.libraries().linker().clone();
    let table = lay_out(&mut store, &mut linker, &module)?;
    add_to_linker(&mut linker, &wire)?;
    let instance = linker.instantiate(&mut store, &module).map_err(anyhow::Error::from);
    let instance = instance.context("pg_dump cannot be linked")?;
    let exports = Exports::find(&mut store, instance)?;
    store.data_mut().exports = Some(exports);
    call::export::<(), ()>(&mut store, "__wasm_apply_data_relocs", ())?;
    call::export::<(), ()>(&mut store, "__wasm_call_ctors", ())?;
    let (receive, send) = (receive(&mut store, &wire), send(&mut store, &wire));
    let slots = [receive, send].map(|function| {
        let slot = table.grow(&mut store, 1, Ref::Func(Some(function)))?;
        Ok::<_, anyhow::Error>(u32::try_from(slot)?)
    });
    let [receive, send] = slots;
    call::export::<(u32, u32), ()>(&mut store, "pgl_set_rw_cbs", (receive?, send?))?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = call::main(&mut store, EXECUTABLE, &arguments)?;
    call::flush(&mut store)?;
    store.data_mut().files.close_all();
    Ok(status)
}

/// Makes the memory and the table that `module` imports, and says where in them its parts are. Returns the table.
fn lay_out(store: &mut Store<Guest>, linker: &mut Linker<Guest>, module: &Module) -> anyhow::Result<Table> {
    let (mut memory, mut table) = (None, None);
    for import in module.imports() {
        match import.ty() {
            ExternType::Memory(ty) => memory = Some(Memory::new(&mut *store, ty)?),
            ExternType::Table(ty) => {
                let size = u32::try_from(ty.minimum())?.saturating_add(FIRST_SLOT);
                let ty = TableType::new(RefType::FUNCREF, size, None);
                table = Some(Table::new(&mut *store, ty, Ref::Func(None))?);
            }
            _ => {}
        }
    }
    let memory = memory.context("pg_dump imports no memory")?;
    let table = table.context("pg_dump imports no table")?;
    linker.define(&*store, "env", "memory", memory)?;
    linker.define(&*store, "env", "__indirect_function_table", table)?;
    for (space, name, mutability, value) in [
        ("env", "__stack_pointer", Mutability::Var, STACK),
        ("env", "__memory_base", Mutability::Const, STACK),
        ("env", "__table_base", Mutability::Const, FIRST_SLOT),
        ("GOT.mem", "__heap_base", Mutability::Var, STACK + IMPORTING_DATA),
    ] {
        let ty = GlobalType::new(ValType::I32, mutability);
        let global = Global::new(&mut *store, ty, Val::I32(value.cast_signed()))?;
        linker.define(&*store, space, name, Extern::Global(global))?;
    }
    Ok(table)
}

/// Adds the functions that only `pg_dump` imports, or that are others for it.
fn add_to_linker(linker: &mut Linker<Guest>, wire: &Arc<Wire>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let wire = wire.clone();
    linker.func_wrap(
        "env",
        "__syscall_socket",
        move |mut caller: Caller<'_, Guest>, _: i32, _: i32, _: i32, _: i32, _: i32, _: i32| {
            if let Err(error) = wire.open() {
                tracing::error!("{error:#}");
                return -Errno::ECONNRESET.number();
            }
            // Something that can be closed.
            let files = &mut caller.data_mut().files;
            let opened = files.open(At::WorkingDirectory, b"/dev/null", OpenFlags::READ_WRITE, 0);
            opened.unwrap_or_else(|errno| -errno.number())
        },
    )?;
    // A dump in several processes needs `fork`, which there is not.
    linker.func_wrap("env", "__syscall_pipe", |_: u32| -Errno::EOPNOTSUPP.number())?;
    linker.func_wrap("env", "__syscall__newselect", |_: i32, _: u32, _: u32, _: u32, _: u32| {
        -Errno::EOPNOTSUPP.number()
    })?;
    linker.func_wrap("env", "emscripten_exit_with_live_runtime", || -> wasmtime::Result<()> {
        bail!("pg_dump jumped out of its main function")
    })?;
    linker.func_wrap("env", "pg_encoding_to_char", encoding_name)?;
    // An older version of Emscripten's, without a result.
    linker.func_wrap("env", "_localtime_js", |mut caller: Caller<'_, Guest>, time: i64, tm: u32| {
        write_local_time(memory::of(&mut caller)?.0, time, tm)
    })?;
    Ok(())
}

/// `pg_encoding_to_char`, which PGlite's build of the program lacks: the address of an encoding's name.
fn encoding_name(mut caller: Caller<'_, Guest>, number: i32) -> wasmtime::Result<u32> {
    let name = usize::try_from(number).ok().and_then(|number| ENCODINGS.get(number)).copied().unwrap_or_default();
    let bytes = [name.as_bytes(), b"\0"].concat();
    let malloc = caller.data().exports()?.malloc.clone();
    let address = malloc.call(&mut caller, u32::try_from(bytes.len())?)?;
    if address != 0 {
        memory::write_bytes(memory::of(&mut caller)?.0, address, &bytes)?;
    }
    Ok(address)
}

fn receive(store: &mut Store<Guest>, wire: &Arc<Wire>) -> Func {
    let wire = wire.clone();
    Func::wrap(store, move |mut caller: Caller<'_, Guest>, address: u32, length: u32| -> wasmtime::Result<i32> {
        let memory = memory::of(&mut caller)?.0;
        match wire.receive(memory::bytes_mut(memory, address, length)?) {
            Ok(count) => Ok(i32::try_from(count)?),
            Err(error) => failed(&mut caller, &error),
        }
    })
}

fn send(store: &mut Store<Guest>, wire: &Arc<Wire>) -> Func {
    let wire = wire.clone();
    Func::wrap(store, move |mut caller: Caller<'_, Guest>, address: u32, length: u32| -> wasmtime::Result<i32> {
        let memory = memory::of(&mut caller)?.0;
        match wire.send(memory::read_bytes(memory, address, length)?) {
            Ok(()) => Ok(length.cast_signed()),
            Err(error) => failed(&mut caller, &error),
        }
    })
}

/// The result of a call that has failed.
fn failed(caller: &mut Caller<'_, Guest>, error: &io::Error) -> wasmtime::Result<i32> {
    let errno = if error.kind() == io::ErrorKind::WouldBlock { Errno::EAGAIN } else { Errno::ECONNRESET };
    set_errno(caller, errno).map(|()| -1)
}
