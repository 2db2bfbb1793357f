//! System calls that take a descriptor.

use wasmtime::{Caller, Linker};

use super::{SyscallResult, count, four, not_negative, one, structures, three, two};
use crate::{
    fs::{Errno, Files, MAX_DESCRIPTORS, OpenFlags},
    guest::{Guest, memory, waiting},
};

/// `O_CLOEXEC`, which has no effect, because the guest cannot `exec`.
const O_CLOEXEC: u32 = 0o2_000_000;
/// The flags that `F_SETFL` can change, as in Emscripten: `O_APPEND`, `O_NONBLOCK`, `O_ASYNC`, `O_DIRECT`,
/// `O_NOATIME`.
const CHANGEABLE: u32 = 0o2000 | 0o4000 | 0o20_000 | 0o40_000 | 0o1_000_000;
/// The size of `struct pollfd`: the descriptor, requested events (at 4), returned events (at 6).
const POLLFD: u32 = 8;

/// Commands of `fcntl`.
mod f {
    pub(super) const DUPFD: u32 = 0;
    pub(super) const GETFD: u32 = 1;
    pub(super) const SETFD: u32 = 2;
    pub(super) const GETFL: u32 = 3;
    pub(super) const SETFL: u32 = 4;
    pub(super) const GETLK: u32 = 12;
    pub(super) const SETLK: u32 = 13;
    pub(super) const SETLKW: u32 = 14;
}
/// The `l_type` that `F_GETLK` returns when there is no lock.
const F_UNLCK: u16 = 2;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    one(linker, "__syscall_dup", dup)?;
    three(linker, "__syscall_dup3", dup3)?;
    three(linker, "__syscall_fcntl64", fcntl64)?;
    two(linker, "__syscall_fstat64", fstat64)?;
    two(linker, "__syscall_fchmod", fchmod)?;
    three(linker, "__syscall_fchown32", fchown32)?;
    two(linker, "__syscall_ftruncate64", ftruncate64)?;
    four(linker, "__syscall_fallocate", fallocate)?;
    four(linker, "__syscall_fadvise64", fadvise64)?;
    linker.func_wrap(
        "env",
        "__syscall_fdatasync",
        |mut caller: Caller<'_, Guest>, fd: i32| -> wasmtime::Result<i32> {
            Ok(waiting::sync(&mut caller, fd)?.map_or_else(|errno| -errno.number(), |()| 0))
        },
    )?;
    three(linker, "__syscall_getdents64", getdents64)?;
    two(linker, "__syscall_pipe2", pipe2)?;
    three(linker, "__syscall_poll", poll)
}

pub(super) fn dup(_memory: &mut [u8], files: &mut Files, fd: i32) -> SyscallResult {
    files.dup(fd, 0)
}

pub(super) fn dup3(_memory: &mut [u8], files: &mut Files, fd: i32, new: i32, flags: u32) -> SyscallResult {
    if fd == new || flags & !O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    files.dup_to(fd, new)
}

/// `arguments` is the address of the variable argument. Locks are always granted, as in Emscripten: PostgreSQL locks
/// no files.
pub(super) fn fcntl64(memory: &mut [u8], files: &mut Files, fd: i32, command: u32, arguments: u32) -> SyscallResult {
    let flags = files.flags(fd)?;
    match command {
        f::DUPFD => files.dup(fd, memory::read_u32(memory, arguments)?.cast_signed()),
        f::GETFD | f::SETFD | f::SETLK | f::SETLKW => Ok(0),
        f::GETFL => Ok(flags.0.cast_signed()),
        f::SETFL => {
            let wanted = memory::read_u32(memory, arguments)?;
            files.set_flags(fd, OpenFlags(flags.0 & !CHANGEABLE | wanted & CHANGEABLE))?;
            Ok(0)
        }
        f::GETLK => {
            let lock = memory::read_u32(memory, arguments)?;
            memory::write_u16(memory, lock, F_UNLCK)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn fstat64(memory: &mut [u8], files: &mut Files, fd: i32, buffer: u32) -> SyscallResult {
    let stat = files.fstat(fd)?;
    structures::write_stat(memory, buffer, &stat)
}

pub(super) fn fchmod(_memory: &mut [u8], files: &mut Files, fd: i32, mode: u32) -> SyscallResult {
    files.fchmod(fd, mode).map(|()| 0)
}

/// There is only one user, so owners cannot change; the call succeeds, as in Emscripten.
pub(super) fn fchown32(_memory: &mut [u8], files: &mut Files, fd: i32, _owner: u32, _group: u32) -> SyscallResult {
    files.flags(fd).map(|_| 0)
}

pub(super) fn ftruncate64(_memory: &mut [u8], files: &mut Files, fd: i32, length: i64) -> SyscallResult {
    files.ftruncate(fd, not_negative(length)?).map(|()| 0)
}

pub(super) fn fallocate(
    _memory: &mut [u8],
    files: &mut Files,
    fd: i32,
    mode: u32,
    offset: i64,
    length: i64,
) -> SyscallResult {
    if mode != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let end = not_negative(offset)?.saturating_add(not_negative(length)?);
    files.allocate(fd, end).map(|()| 0)
}

pub(super) fn fadvise64(
    _memory: &mut [u8],
    files: &mut Files,
    fd: i32,
    _offset: i64,
    _length: i64,
    _advice: u32,
) -> SyscallResult {
    if files.is_seekable(fd)? { Ok(0) } else { Err(Errno::ESPIPE) }
}

/// Fills `buffer` with as many `struct dirent` as fit into `size` bytes, and returns their total size; 0 at the end of
/// the directory.
pub(super) fn getdents64(memory: &mut [u8], files: &mut Files, fd: i32, buffer: u32, size: u32) -> SyscallResult {
    let room = size / structures::DIRENT;
    if room == 0 {
        return Err(Errno::EINVAL);
    }
    // Checked before the position in the directory changes.
    memory::read_bytes(memory, buffer, room * structures::DIRENT)?;
    let entries = files.read_directory(fd, room as usize)?;
    let mut end = buffer;
    for entry in &entries {
        structures::write_dirent(memory, end, entry)?;
        end += structures::DIRENT;
    }
    count((end - buffer) as usize)
}

pub(super) fn pipe2(memory: &mut [u8], files: &mut Files, ends: u32, flags: u32) -> SyscallResult {
    if flags & !(O_CLOEXEC | OpenFlags::NONBLOCKING.0) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    // Checked before the pipe is made. Address 0 is inside the memory, but no valid pointer of a C program.
    memory::read_u64(memory, ends)?;
    if ends == 0 {
        return Err(Errno::EFAULT);
    }
    let (read, write) = files.pipe(OpenFlags(flags & OpenFlags::NONBLOCKING.0))?;
    memory::write_u32(memory, ends, read.cast_unsigned())?;
    memory::write_u32(memory, ends + 4, write.cast_unsigned())?;
    Ok(0)
}

/// Reports what is ready and never waits, as Emscripten's `doPollSync`. A negative descriptor is reported as well
/// (`POLLNVAL`); Linux would ignore it. PostgreSQL waits in a hook of `WaitEventSetWait` instead.
pub(super) fn poll(
    memory: &mut [u8],
    files: &mut Files,
    descriptors: u32,
    number: u32,
    _timeout: i32,
) -> SyscallResult {
    if number as usize > MAX_DESCRIPTORS {
        return Err(Errno::EINVAL);
    }
    let mut ready = 0;
    for entry in (0..number).map(|index| descriptors.wrapping_add(index * POLLFD)) {
        let fd = memory::read_u32(memory, entry)?.cast_signed();
        let happened = files.poll(fd, memory::read_u16(memory, entry.wrapping_add(4))?);
        memory::write_u16(memory, entry.wrapping_add(6), happened)?;
        ready += i32::from(happened != 0);
    }
    Ok(ready)
}
