//! `ioctl`: the attributes and size of terminals, and the number of bytes in a pipe.

use super::SyscallResult;
use crate::{
    fs::{Device, Errno, Files, OpenFlags},
    guest::memory,
};

/// Requests, as Linux numbers them.
mod request {
    /// The first of eight that get and set attributes.
    pub(super) const TCGETS: u32 = 0x5401;
    /// The last of them.
    pub(super) const TCSETAF: u32 = 0x5408;
    pub(super) const TCFLSH: u32 = 0x540b;
    pub(super) const TIOCGPGRP: u32 = 0x540f;
    pub(super) const TIOCSPGRP: u32 = 0x5410;
    pub(super) const TIOCGWINSZ: u32 = 0x5413;
    pub(super) const TIOCSWINSZ: u32 = 0x5414;
    pub(super) const FIONREAD: u32 = 0x541b;
    pub(super) const FIONBIO: u32 = 0x5421;
}

/// `c_iflag`, `c_oflag`, `c_cflag`, `c_lflag` of Emscripten's terminal (`libtty.js`).
const FLAGS: [u32; 4] = [0x6500, 0x5, 0xbf, 0x8a3b];
/// `c_cc` of Emscripten's terminal; further ones are 0.
const CONTROL_CHARACTERS: [u8; 16] = [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22];
/// The offset of `c_cc` in `struct termios`.
const C_CC: u32 = 17;
const NCCS: usize = 32;
/// Rows and columns of Emscripten's terminal.
const WINDOW: [u16; 2] = [24, 80];

/// `arguments` is the address of the variable argument, a pointer for all requests here.
pub(super) fn ioctl(memory: &mut [u8], files: &mut Files, fd: i32, request: u32, arguments: u32) -> SyscallResult {
    let device = files.device(fd)?;
    match request {
        request::FIONREAD => {
            let waiting = files.bytes_in_pipe(fd)?.ok_or(Errno::ENOTTY)?;
            let target = memory::read_u32(memory, arguments)?;
            memory::write_u32(memory, target, u32::try_from(waiting).unwrap_or(u32::MAX))?;
            return Ok(0);
        }
        request::FIONBIO => {
            files.bytes_in_pipe(fd)?.ok_or(Errno::ENOTTY)?;
            let on = memory::read_u32(memory, memory::read_u32(memory, arguments)?)? != 0;
            let others = files.flags(fd)?.0 & !OpenFlags::NONBLOCKING.0;
            files.set_flags(fd, OpenFlags(if on { others | OpenFlags::NONBLOCKING.0 } else { others }))?;
            return Ok(0);
        }
        request::TCGETS..=request::TCSETAF
        | request::TCFLSH
        | request::TIOCGPGRP
        | request::TIOCSPGRP
        | request::TIOCGWINSZ
        | request::TIOCSWINSZ => {}
        _ => return Err(Errno::EINVAL),
    }
    if !device.is_some_and(Device::is_terminal) {
        return Err(Errno::ENOTTY);
    }
    // In Emscripten only the terminal of standard output has attributes and a size; for standard error the structures
    // stay unchanged.
    let has_attributes = device == Some(Device::Terminal);
    match request {
        request::TCGETS if has_attributes => {
            let termios = memory::read_u32(memory, arguments)?;
            for (offset, flags) in (0..).step_by(4).zip(FLAGS) {
                memory::write_u32(memory, termios.wrapping_add(offset), flags)?;
            }
            let mut characters = [0; NCCS];
            characters[..CONTROL_CHARACTERS.len()].copy_from_slice(&CONTROL_CHARACTERS);
            memory::write_bytes(memory, termios.wrapping_add(C_CC), &characters)?;
        }
        request::TIOCGWINSZ if has_attributes => {
            let window = memory::read_u32(memory, arguments)?;
            for (offset, size) in (0..).step_by(2).zip(WINDOW) {
                memory::write_u16(memory, window.wrapping_add(offset), size)?;
            }
        }
        request::TIOCGPGRP => {
            let group = memory::read_u32(memory, arguments)?;
            memory::write_u32(memory, group, 0)?;
        }
        request::TIOCSPGRP => return Err(Errno::EINVAL),
        _ => {}
    }
    Ok(0)
}
