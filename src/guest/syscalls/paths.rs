//! System calls that take a path.

use wasmtime::{Caller, Linker};

use super::{SyscallResult, answer, at, count, five, four, not_negative, one, structures, three, two};
use crate::{
    fs::{Access, At, Errno, Files, Follow, NewTime, OpenFlags, Timestamp},
    guest::{Guest, dylink, memory},
};

const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
const AT_REMOVEDIR: u32 = 0x200;
const AT_SYMLINK_FOLLOW: u32 = 0x400;
const AT_EMPTY_PATH: u32 = 0x1000;

/// The nanoseconds with which `utimensat` sets the current time.
const UTIME_NOW: u32 = 0x3fff_ffff;
/// The nanoseconds with which `utimensat` leaves a time unchanged.
const UTIME_OMIT: u32 = 0x3fff_fffe;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    four(linker, "__syscall_openat", openat)?;
    four(linker, "__syscall_faccessat", faccessat)?;
    linker.func_wrap("env", "__syscall_stat64", |mut caller: Caller<'_, Guest>, path: u32, buffer: u32| {
        let status = answer(&mut caller, |memory, files| stat64(memory, files, path, buffer))?;
        if status == -Errno::ENOENT.number() {
            dylink::explain_missing(&mut caller, path)?;
        }
        Ok(status)
    })?;
    two(linker, "__syscall_lstat64", lstat64)?;
    four(linker, "__syscall_newfstatat", newfstatat)?;
    three(linker, "__syscall_statfs64", statfs64)?;
    three(linker, "__syscall_mkdirat", mkdirat)?;
    one(linker, "__syscall_rmdir", rmdir)?;
    three(linker, "__syscall_unlinkat", unlinkat)?;
    four(linker, "__syscall_renameat", renameat)?;
    five(linker, "__syscall_linkat", linkat)?;
    three(linker, "__syscall_symlinkat", symlinkat)?;
    four(linker, "__syscall_readlinkat", readlinkat)?;
    two(linker, "__syscall_chmod", chmod)?;
    four(linker, "__syscall_fchmodat2", fchmodat2)?;
    five(linker, "__syscall_fchownat", fchownat)?;
    four(linker, "__syscall_utimensat", utimensat)?;
    two(linker, "__syscall_truncate64", truncate64)?;
    one(linker, "__syscall_chdir", chdir)?;
    two(linker, "__syscall_getcwd", getcwd)?;
    one(linker, "__syscall_umask", umask)
}

fn follow_unless(nofollow: u32) -> Follow {
    if nofollow == 0 { Follow::Yes } else { Follow::No }
}

/// `arguments` is the address of the variable argument, if there is one: the mode of a new file.
pub(super) fn openat_flags(memory: &[u8], flags: u32, arguments: u32) -> Result<(OpenFlags, u32), Errno> {
    let flags = OpenFlags(flags);
    let mode = if flags.has(OpenFlags::CREATE) && arguments != 0 { memory::read_u32(memory, arguments)? } else { 0 };
    Ok((flags, mode))
}

pub(super) fn openat(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    flags: u32,
    arguments: u32,
) -> SyscallResult {
    let (flags, mode) = openat_flags(memory, flags, arguments)?;
    files.open(at(directory), memory::read_c_string(memory, path)?, flags, mode)
}

pub(super) fn faccessat(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    mode: u32,
    _flags: u32,
) -> SyscallResult {
    let ways = [(4, Access::Read), (2, Access::Write), (1, Access::Execute)];
    if mode & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted: Vec<Access> = ways.into_iter().filter(|(bit, _)| mode & bit != 0).map(|(_, access)| access).collect();
    files.access(at(directory), memory::read_c_string(memory, path)?, &wanted).map(|()| 0)
}

pub(super) fn stat64(memory: &mut [u8], files: &mut Files, path: u32, buffer: u32) -> SyscallResult {
    let stat = files.stat(At::WorkingDirectory, memory::read_c_string(memory, path)?, Follow::Yes)?;
    structures::write_stat(memory, buffer, &stat)
}

pub(super) fn lstat64(memory: &mut [u8], files: &mut Files, path: u32, buffer: u32) -> SyscallResult {
    let stat = files.stat(At::WorkingDirectory, memory::read_c_string(memory, path)?, Follow::No)?;
    structures::write_stat(memory, buffer, &stat)
}

pub(super) fn newfstatat(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    buffer: u32,
    flags: u32,
) -> SyscallResult {
    let path = memory::read_c_string(memory, path)?;
    let stat = if !path.is_empty() {
        files.stat(at(directory), path, follow_unless(flags & AT_SYMLINK_NOFOLLOW))?
    } else if flags & AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT);
    } else {
        match at(directory) {
            At::WorkingDirectory => files.stat(At::WorkingDirectory, b".", Follow::Yes)?,
            At::Descriptor(fd) => files.fstat(fd)?,
        }
    };
    structures::write_stat(memory, buffer, &stat)
}

pub(super) fn statfs64(memory: &mut [u8], files: &mut Files, path: u32, _size: u32, buffer: u32) -> SyscallResult {
    files.stat(At::WorkingDirectory, memory::read_c_string(memory, path)?, Follow::Yes)?;
    let inodes = files.tree().lock().inodes();
    structures::write_statfs(memory, buffer, inodes)
}

pub(super) fn mkdirat(memory: &mut [u8], files: &mut Files, directory: i32, path: u32, mode: u32) -> SyscallResult {
    files.mkdir(at(directory), memory::read_c_string(memory, path)?, mode).map(|()| 0)
}

pub(super) fn rmdir(memory: &mut [u8], files: &mut Files, path: u32) -> SyscallResult {
    files.rmdir(At::WorkingDirectory, memory::read_c_string(memory, path)?).map(|()| 0)
}

pub(super) fn unlinkat(memory: &mut [u8], files: &mut Files, directory: i32, path: u32, flags: u32) -> SyscallResult {
    let path = memory::read_c_string(memory, path)?;
    match flags {
        0 => files.unlink(at(directory), path)?,
        AT_REMOVEDIR => files.rmdir(at(directory), path)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub(super) fn renameat(
    memory: &mut [u8],
    files: &mut Files,
    old_directory: i32,
    old: u32,
    new_directory: i32,
    new: u32,
) -> SyscallResult {
    let old = (at(old_directory), memory::read_c_string(memory, old)?);
    let new = (at(new_directory), memory::read_c_string(memory, new)?);
    files.rename(old, new).map(|()| 0)
}

pub(super) fn linkat(
    memory: &mut [u8],
    files: &mut Files,
    old_directory: i32,
    old: u32,
    new_directory: i32,
    new: u32,
    flags: u32,
) -> SyscallResult {
    let old = (at(old_directory), memory::read_c_string(memory, old)?);
    let new = (at(new_directory), memory::read_c_string(memory, new)?);
    let follow = if flags & AT_SYMLINK_FOLLOW == 0 { Follow::No } else { Follow::Yes };
    files.link(old, new, follow).map(|()| 0)
}

pub(super) fn symlinkat(memory: &mut [u8], files: &mut Files, target: u32, directory: i32, path: u32) -> SyscallResult {
    let target = memory::read_c_string(memory, target)?;
    files.symlink(target, at(directory), memory::read_c_string(memory, path)?).map(|()| 0)
}

/// A target that does not fit into the buffer is truncated, and no NUL follows it.
pub(super) fn readlinkat(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    buffer: u32,
    size: u32,
) -> SyscallResult {
    if size.cast_signed() <= 0 {
        return Err(Errno::EINVAL);
    }
    let mut target = files.readlink(at(directory), memory::read_c_string(memory, path)?)?;
    target.truncate(size as usize);
    memory::write_bytes(memory, buffer, &target)?;
    count(target.len())
}

pub(super) fn chmod(memory: &mut [u8], files: &mut Files, path: u32, mode: u32) -> SyscallResult {
    files.chmod(At::WorkingDirectory, memory::read_c_string(memory, path)?, mode, Follow::Yes).map(|()| 0)
}

pub(super) fn fchmodat2(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    mode: u32,
    flags: u32,
) -> SyscallResult {
    let follow = follow_unless(flags & AT_SYMLINK_NOFOLLOW);
    files.chmod(at(directory), memory::read_c_string(memory, path)?, mode, follow).map(|()| 0)
}

/// There is only one user, so owners cannot change; the call succeeds, as in Emscripten.
pub(super) fn fchownat(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    _owner: u32,
    _group: u32,
    flags: u32,
) -> SyscallResult {
    let follow = follow_unless(flags & AT_SYMLINK_NOFOLLOW);
    files.stat(at(directory), memory::read_c_string(memory, path)?, follow).map(|_| 0)
}

pub(super) fn utimensat(
    memory: &mut [u8],
    files: &mut Files,
    directory: i32,
    path: u32,
    times: u32,
    flags: u32,
) -> SyscallResult {
    let (accessed, modified) = if times == 0 {
        (NewTime::Now, NewTime::Now)
    } else {
        (read_time(memory, times)?, read_time(memory, times.wrapping_add(16))?)
    };
    let follow = follow_unless(flags & AT_SYMLINK_NOFOLLOW);
    files.utimens(at(directory), memory::read_c_string(memory, path)?, accessed, modified, follow).map(|()| 0)
}

/// A `struct timespec` of `utimensat`: 64 bits of seconds, then 32 of nanoseconds.
fn read_time(memory: &[u8], address: u32) -> Result<NewTime, Errno> {
    let seconds = memory::read_u64(memory, address)?.cast_signed();
    match memory::read_u32(memory, address.wrapping_add(8))? {
        UTIME_NOW => Ok(NewTime::Now),
        UTIME_OMIT => Ok(NewTime::Keep),
        nanoseconds if nanoseconds < 1_000_000_000 => Ok(NewTime::At(Timestamp { seconds, nanoseconds })),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn truncate64(memory: &mut [u8], files: &mut Files, path: u32, length: i64) -> SyscallResult {
    files.truncate(memory::read_c_string(memory, path)?, not_negative(length)?).map(|()| 0)
}

pub(super) fn chdir(memory: &mut [u8], files: &mut Files, path: u32) -> SyscallResult {
    files.chdir(memory::read_c_string(memory, path)?).map(|()| 0)
}

/// Returns the length of the path with its final NUL.
pub(super) fn getcwd(memory: &mut [u8], files: &mut Files, buffer: u32, size: u32) -> SyscallResult {
    if size == 0 {
        return Err(Errno::EINVAL);
    }
    let mut path = files.getcwd()?;
    path.push(0);
    if path.len() > size as usize {
        return Err(Errno::ERANGE);
    }
    memory::write_bytes(memory, buffer, &path)?;
    count(path.len())
}

pub(super) fn umask(_memory: &mut [u8], files: &mut Files, mask: u32) -> SyscallResult {
    Ok(files.umask(mask).cast_signed())
}
