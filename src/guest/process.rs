//! The life of the guest as a process: exit, abort, its heap.

use std::sync::atomic::Ordering;

use wasmtime::{Caller, Linker, bail};
use wasmtime_wasi::I32Exit;

use super::{Guest, memory};
use crate::instrument::SAFEPOINT_PAGE;

/// The maximum of PGlite's memory (`getHeapMax` in its JavaScript) without its last page, to which safepoints write.
const HEAP_MAX: u32 = SAFEPOINT_PAGE;
const PAGE: u64 = 1 << 16;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    // An exit unwinds up to the host's call into the guest, as `proc_exit` of wasmtime-wasi does.
    linker.func_wrap("env", "exit", |status: i32| -> wasmtime::Result<()> { Err(I32Exit(status).into()) })?;
    // It keeps a JavaScript runtime alive after `main`, which does not apply here.
    linker.func_wrap("env", "_emscripten_runtime_keepalive_clear", || {})?;
    linker.func_wrap("env", "_abort_js", || -> wasmtime::Result<()> { bail!("the guest called abort()") })?;
    linker.func_wrap(
        "env",
        "__assert_fail",
        |mut caller: Caller<'_, Guest>, condition: u32, file: u32, line: i32, function: u32| -> wasmtime::Result<()> {
            let memory = memory::of(&mut caller)?.0;
            let text = |address| memory::read_text(memory, address).unwrap_or_else(|_| "?".to_owned());
            bail!("assertion failed in the guest: {}, at {}:{line}, {}", text(condition), text(file), text(function))
        },
    )?;
    linker.func_wrap("env", "emscripten_get_heap_max", || HEAP_MAX)?;
    linker.func_wrap(
        "env",
        "emscripten_resize_heap",
        |mut caller: Caller<'_, Guest>, requested: u32| -> wasmtime::Result<i32> {
            let memory = caller.data().memory()?;
            let current = memory.data_size(&caller) as u64;
            let requested = u64::from(requested);
            caller.data_mut().growth.set_refused(true);
            if requested > u64::from(HEAP_MAX) {
                return Ok(0);
            }
            // A fifth more than the current size, but at most 96 MiB more than requested; less if that much is not
            // available, and in the end what was requested.
            for more in [current / 5, current / 10, current / 20, 0] {
                let overgrown = (current + more).min(requested + (96 << 20));
                let size = requested.max(overgrown).next_multiple_of(PAGE).min(HEAP_MAX.into());
                if memory.grow(&mut caller, (size.saturating_sub(current)).div_ceil(PAGE)).is_ok() {
                    caller.data().memory_size.store(memory.data_size(&caller), Ordering::Relaxed);
                    caller.data_mut().growth.set_refused(false);
                    return Ok(1);
                }
            }
            Ok(0)
        },
    )?;
    // An indirect call with the signature of a signal handler.
    linker.func_wrap(
        "env",
        "__call_sighandler",
        |mut caller: Caller<'_, Guest>, handler: u32, signal: i32| -> wasmtime::Result<()> {
            let handler = super::table_function::<i32, ()>(&mut caller, handler)?;
            handler.call(&mut caller, signal)
        },
    )?;
    Ok(())
}
