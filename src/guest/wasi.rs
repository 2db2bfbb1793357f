//! The functions of WASI preview 1 that take descriptors, on the same table as the system calls.
//!
//! They return 0 or a positive errno; results are stored at a given address (Emscripten, `src/lib/libwasi.js`).

use wasmtime::{Caller, Linker};

use super::{Guest, growth::within_quota, memory, waiting};
use crate::fs::{Errno, Files, Whence};

/// The size of an `iovec`: address and length of a buffer.
const IOVEC: u32 = 8;
/// The maximum number of buffers, as in Linux (`UIO_MAXIOV`).
const IOVEC_MAX: u32 = 1024;
/// The size of `__wasi_fdstat_t`; Emscripten's C library reads only the file type in it.
const FDSTAT: u32 = 24;

/// The result of a function.
type WasiResult = Result<(), Errno>;
/// [`read()`] or [`write()`].
type Transfer = fn(&mut [u8], &mut Files, i32, (u32, u32), Option<i64>, u32) -> WasiResult;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    const MODULE: &str = "wasi_snapshot_preview1";
    linker.func_wrap(MODULE, "fd_close", |mut caller: Caller<'_, Guest>, fd: i32| {
        answer(&mut caller, |_, files| files.close(fd))
    })?;
    linker.func_wrap(MODULE, "fd_sync", |mut caller: Caller<'_, Guest>, fd: i32| -> wasmtime::Result<i32> {
        Ok(waiting::sync(&mut caller, fd)?.map_or_else(Errno::number, |()| 0))
    })?;
    linker.func_wrap(MODULE, "fd_fdstat_get", |mut caller: Caller<'_, Guest>, fd: i32, buffer: u32| {
        answer(&mut caller, |memory, files| fdstat_get(memory, files, fd, buffer))
    })?;
    linker.func_wrap(
        MODULE,
        "fd_seek",
        |mut caller: Caller<'_, Guest>, fd: i32, offset: i64, whence: u32, position: u32| {
            answer(&mut caller, |memory, files| seek(memory, files, fd, offset, whence, position))
        },
    )?;
    for (name, at_offset, transfer) in [("fd_read", "fd_pread", read as Transfer), ("fd_write", "fd_pwrite", write)] {
        linker.func_wrap(
            MODULE,
            name,
            move |mut caller: Caller<'_, Guest>, fd: i32, buffers: u32, number: u32, count: u32| {
                answer(&mut caller, |memory, files| transfer(memory, files, fd, (buffers, number), None, count))
            },
        )?;
        linker.func_wrap(
            MODULE,
            at_offset,
            move |mut caller: Caller<'_, Guest>, fd: i32, buffers: u32, number: u32, offset: i64, count: u32| {
                let done = answer(&mut caller, |memory, files| {
                    transfer(memory, files, fd, (buffers, number), Some(offset), count)
                })?;
                waiting::yield_to_sessions(&mut caller)?;
                wasmtime::Result::Ok(done)
            },
        )?;
    }
    Ok(())
}

fn answer(caller: &mut Caller<'_, Guest>, call: impl Fn(&mut [u8], &mut Files) -> WasiResult) -> wasmtime::Result<i32> {
    Ok(within_quota(caller, call)?.map_or_else(Errno::number, |()| 0))
}

fn fdstat_get(memory: &mut [u8], files: &mut Files, fd: i32, buffer: u32) -> WasiResult {
    const CHARACTER_DEVICE: u8 = 2;
    const DIRECTORY: u8 = 3;
    const REGULAR_FILE: u8 = 4;
    let is_terminal = files.device(fd)?.is_some_and(crate::fs::Device::is_terminal);
    let kind = if is_terminal {
        CHARACTER_DEVICE
    } else if files.fstat(fd)?.mode & crate::fs::S_IFMT == crate::fs::S_IFDIR {
        DIRECTORY
    } else {
        REGULAR_FILE
    };
    let fields = memory::bytes_mut(memory, buffer, FDSTAT)?;
    fields.fill(0);
    memory::write_bytes(fields, 0, &[kind])?;
    Ok(())
}

fn seek(memory: &mut [u8], files: &mut Files, fd: i32, offset: i64, whence: u32, position: u32) -> WasiResult {
    let whence = match whence {
        0 => Whence::Start,
        1 => Whence::Current,
        2 => Whence::End,
        _ => return Err(Errno::EINVAL),
    };
    let new = files.seek(fd, offset, whence)?;
    memory::write_u64(memory, position, new)?;
    Ok(())
}

/// Address and length of the buffer that the `index`th `iovec` describes.
fn buffer(memory: &[u8], buffers: u32, index: u32) -> Result<(u32, u32), Errno> {
    let iovec = buffers.checked_add(index * IOVEC).ok_or(Errno::EFAULT)?;
    Ok((memory::read_u32(memory, iovec)?, memory::read_u32(memory, iovec.saturating_add(4))?))
}

/// Calls `transfer` with memory, position, address and length of each buffer until one is not transferred completely,
/// and stores the number of bytes at `count`. An error is returned only if nothing has been transferred before it; an
/// error of the disk in a later buffer is returned by the next call, because no sync succeeds after one has failed.
fn transfer(
    memory: &mut [u8],
    (buffers, number): (u32, u32),
    offset: Option<i64>,
    count: u32,
    mut transfer: impl FnMut(&mut [u8], Option<u64>, u32, u32) -> Result<usize, Errno>,
) -> WasiResult {
    if number > IOVEC_MAX {
        return Err(Errno::EINVAL);
    }
    let mut position = offset.map(u64::try_from).transpose().map_err(|_| Errno::EINVAL)?;
    let mut total = 0_u32;
    for index in 0..number {
        let step = buffer(memory, buffers, index)
            .and_then(|(address, length)| Ok((transfer(memory, position, address, length)?, length)));
        let (transferred, length) = match step {
            Ok(step) => step,
            Err(_) if total > 0 => break,
            Err(errno) => return Err(errno),
        };
        position = position.map(|position| position.saturating_add(transferred as u64));
        total = u32::try_from(transferred).ok().and_then(|more| total.checked_add(more)).ok_or(Errno::EINVAL)?;
        if transferred < length as usize {
            break;
        }
    }
    memory::write_u32(memory, count, total)?;
    Ok(())
}

fn read(
    memory: &mut [u8],
    files: &mut Files,
    fd: i32,
    buffers: (u32, u32),
    offset: Option<i64>,
    count: u32,
) -> WasiResult {
    transfer(memory, buffers, offset, count, |memory, position, address, length| {
        files.read(fd, position, memory::bytes_mut(memory, address, length)?)
    })
}

fn write(
    memory: &mut [u8],
    files: &mut Files,
    fd: i32,
    buffers: (u32, u32),
    offset: Option<i64>,
    count: u32,
) -> WasiResult {
    transfer(memory, buffers, offset, count, |memory, position, address, length| {
        files.write(fd, position, memory::read_bytes(memory, address, length)?)
    })
}
