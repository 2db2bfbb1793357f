//! Functions of the guest that often run and take the host's processor less time: parsing of numbers, checksums. Their
//! results are those of the guest's own code, to the bit.

use std::str::{self, FromStr};

use wasmtime::{Caller, Linker};

use super::{Guest, memory};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::page,
};

/// Longer numbers are left to the guest.
const LONGEST: usize = 64;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ParseDouble.name(),
        |mut caller: Caller<'_, Guest>, text: u32, end: u32| -> wasmtime::Result<(f64, i32)> {
            Ok(parse(&mut caller, text, end, f64::is_normal)?.map_or((0.0, 0), |number| (number, 1)))
        },
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ParseFloat.name(),
        |mut caller: Caller<'_, Guest>, text: u32, end: u32| -> wasmtime::Result<(f32, i32)> {
            Ok(parse(&mut caller, text, end, f32::is_normal)?.map_or((0.0, 0), |number| (number, 1)))
        },
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::PageChecksum.name(),
        |mut caller: Caller<'_, Guest>, page: u32, number: u32| -> wasmtime::Result<u32> {
            let (memory, _) = memory::of(&mut caller)?;
            Ok(page::checksum(memory::array_at(memory, page)?, number).into())
        },
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::Crc32c.name(),
        |mut caller: Caller<'_, Guest>, crc: u32, bytes: u32, length: u32| -> wasmtime::Result<u32> {
            let (memory, _) = memory::of(&mut caller)?;
            // The crate's function inverts the bits before and after; PostgreSQL's macros do that around this one.
            Ok(!crc32c::crc32c_append(!crc, memory::read_bytes(memory, bytes, length)?))
        },
    )?;
    Ok(())
}

/// The number at the address `text`, and in `end`, if that is not 0, where it ends. `None` if it is left to the guest.
fn parse<T: Copy + FromStr>(
    caller: &mut Caller<'_, Guest>,
    text: u32,
    end: u32,
    is_normal: fn(T) -> bool,
) -> wasmtime::Result<Option<T>> {
    let (memory, _) = memory::of(caller)?;
    let rest = memory.get(text as usize..).unwrap_or_default();
    let Some((length, number)) = number(&rest[..rest.len().min(LONGEST + 1)], is_normal) else {
        return Ok(None);
    };
    if end != 0 {
        memory::write_u32(memory, end, text.wrapping_add(length))?;
    }
    Ok(Some(number))
}

/// The decimal number that `bytes` begin with, and its length. `None` for what C sees in another way, or reports as out
/// of range.
fn number<T: Copy + FromStr>(bytes: &[u8], is_normal: fn(T) -> bool) -> Option<(u32, T)> {
    let digits_from = |at: usize| bytes.iter().skip(at).take_while(|byte| byte.is_ascii_digit()).count();
    let is_at = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|byte| wanted.contains(byte));
    let start = usize::from(is_at(0, b"+-"));
    let mut end = start + digits_from(start);
    let mut digits = end - start;
    // A hexadecimal number begins with a zero, too.
    if is_at(end, b"xX") {
        return None;
    }
    if is_at(end, b".") {
        let decimals = digits_from(end + 1);
        digits += decimals;
        end += 1 + decimals;
    }
    let is_zero = !bytes[start..end].iter().any(|byte| (b'1'..=b'9').contains(byte));
    if is_at(end, b"eE") {
        let exponent = end + 1 + usize::from(is_at(end + 1, b"+-"));
        match digits_from(exponent) {
            0 => return None,
            digits => end = exponent + digits,
        }
    }
    if digits == 0 || end > LONGEST {
        return None;
    }
    let number = str::from_utf8(&bytes[..end]).ok()?.parse().ok()?;
    (is_zero || is_normal(number)).then_some((u32::try_from(end).ok()?, number))
}
