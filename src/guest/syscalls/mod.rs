//! The system calls of Emscripten's C library that concern files (`src/lib/libsyscall.js` in Emscripten).
//!
//! A system call is a function of the guest's memory, its files and the call's arguments. It returns a number that is
//! not negative, or an errno, which the C library gets as a negative number.

mod descriptors;
mod paths;
mod sockets;
mod structures;
mod terminal;

use wasmtime::{Caller, Linker, WasmTy};

use super::{Guest, growth::within_quota};
use crate::fs::{At, Errno, Files};

/// The result of a system call.
type SyscallResult = Result<i32, Errno>;

/// `AT_FDCWD`: relative to the working directory.
const AT_FDCWD: i32 = -100;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    paths::add_to_linker(linker)?;
    descriptors::add_to_linker(linker)?;
    sockets::add_to_linker(linker)?;
    three(linker, "__syscall_ioctl", terminal::ioctl)?;
    // The guest's only user is root, as in Emscripten; PGlite's PostgreSQL accepts that.
    for name in ["__syscall_getuid32", "__syscall_geteuid32", "__syscall_getgid32", "__syscall_getegid32"] {
        linker.func_wrap("env", name, || 0_i32)?;
    }
    Ok(())
}

/// Runs a system call and encodes its result as one number.
fn answer(
    caller: &mut Caller<'_, Guest>,
    call: impl Fn(&mut [u8], &mut Files) -> SyscallResult,
) -> wasmtime::Result<i32> {
    Ok(within_quota(caller, call)?.unwrap_or_else(|errno| -errno.number()))
}

/// A numeric argument of a system call.
trait Argument: WasmTy + Copy + 'static {}

impl<T: WasmTy + Copy + 'static> Argument for T {}

/// Adds a system call of one argument.
fn one<A: Argument>(
    linker: &mut Linker<Guest>,
    name: &str,
    call: fn(&mut [u8], &mut Files, A) -> SyscallResult,
) -> wasmtime::Result<()> {
    let call = move |mut caller: Caller<'_, Guest>, a: A| answer(&mut caller, |memory, files| call(memory, files, a));
    linker.func_wrap("env", name, call).map(|_| ())
}

/// Adds a system call of two arguments.
fn two<A: Argument, B: Argument>(
    linker: &mut Linker<Guest>,
    name: &str,
    call: fn(&mut [u8], &mut Files, A, B) -> SyscallResult,
) -> wasmtime::Result<()> {
    let call =
        move |mut caller: Caller<'_, Guest>, a: A, b: B| answer(&mut caller, |memory, files| call(memory, files, a, b));
    linker.func_wrap("env", name, call).map(|_| ())
}

/// Adds a system call of three arguments.
fn three<A: Argument, B: Argument, C: Argument>(
    linker: &mut Linker<Guest>,
    name: &str,
    call: fn(&mut [u8], &mut Files, A, B, C) -> SyscallResult,
) -> wasmtime::Result<()> {
    let call = move |mut caller: Caller<'_, Guest>, a: A, b: B, c: C| {
        answer(&mut caller, |memory, files| call(memory, files, a, b, c))
    };
    linker.func_wrap("env", name, call).map(|_| ())
}

/// Adds a system call of four arguments.
fn four<A: Argument, B: Argument, C: Argument, D: Argument>(
    linker: &mut Linker<Guest>,
    name: &str,
    call: fn(&mut [u8], &mut Files, A, B, C, D) -> SyscallResult,
) -> wasmtime::Result<()> {
    let call = move |mut caller: Caller<'_, Guest>, a: A, b: B, c: C, d: D| {
        answer(&mut caller, |memory, files| call(memory, files, a, b, c, d))
    };
    linker.func_wrap("env", name, call).map(|_| ())
}

/// Adds a system call of five arguments.
fn five<A: Argument, B: Argument, C: Argument, D: Argument, E: Argument>(
    linker: &mut Linker<Guest>,
    name: &str,
    call: fn(&mut [u8], &mut Files, A, B, C, D, E) -> SyscallResult,
) -> wasmtime::Result<()> {
    let call = move |mut caller: Caller<'_, Guest>, a: A, b: B, c: C, d: D, e: E| {
        answer(&mut caller, |memory, files| call(memory, files, a, b, c, d, e))
    };
    linker.func_wrap("env", name, call).map(|_| ())
}

/// The start of a relative path in calls with names that end in `at`.
fn at(descriptor: i32) -> At {
    if descriptor == AT_FDCWD { At::WorkingDirectory } else { At::Descriptor(descriptor) }
}

/// A length or an offset, which must not be negative.
fn not_negative(number: i64) -> Result<u64, Errno> {
    u64::try_from(number).map_err(|_| Errno::EINVAL)
}

/// A count as the guest's number.
fn count(count: usize) -> SyscallResult {
    i32::try_from(count).map_err(|_| Errno::EINVAL)
}
