//! Conversions between character encodings: the functions that `pglite.wasm` lacks.
//!
//! `PostgreSQL`'s conversions are side modules that consist of tables and of calls into the server
//! (`src/backend/utils/mb/conv.c`, `mbutils.c`, `src/common/wchar.c`). PGlite was linked without those functions,
//! because its main module does not use them. The host provides them under the names that the side modules import.
//!
//! * `mod`: the functions, with the arguments of their C declarations (`src/include/mb/pg_wchar.h`)
//! * `encoding`: an encoding's functions in the main module
//! * `map`: the tables of the side modules in the guest's memory
//! * `unicode`: conversions from and to UTF-8
//! * `bytes`: conversions between single bytes, and from and to the "Mule internal code"

mod bytes;
mod encoding;
mod map;
mod unicode;

use wasmtime::{Caller, Linker};

use super::{Guest, memory, report, waiting};
use crate::{
    postgres::encoding::{MULE_INTERNAL, UTF8},
    protocol::error_response::sqlstate,
};
use bytes::{ByteMap, from_mule, from_single_bytes};
use encoding::Encoding;
use map::{Combined, RadixTree};
use unicode::Maps;

/// Why a conversion stopped before the end of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The bytes are not a character of the source encoding.
    Invalid,
    /// The character does not exist in the target encoding.
    Untranslatable,
}

/// The text of a conversion, and the address of its result.
#[derive(Clone, Copy)]
struct Passage {
    source: u32,
    length: i32,
    destination: u32,
    /// Numbers of the encodings.
    from: i32,
    to: i32,
    /// Whether to stop silently instead of raising an error.
    no_error: bool,
}

/// A result, with the place and reason if the conversion stopped early.
#[derive(Debug, Default, PartialEq, Eq)]
struct Converted {
    bytes: Vec<u8>,
    /// Offset in the text, and the reason.
    stopped: Option<(usize, Reason)>,
}

impl Converted {
    fn stop(&mut self, at: usize, reason: Reason) {
        self.stopped = Some((at, reason));
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    add_unicode(linker)?;
    add_bytes(linker)?;
    linker.func_wrap(
        "env",
        "pg_encoding_verifymbchar",
        |mut caller: Caller<'_, Guest>, encoding: i32, text: u32, length: i32| -> wasmtime::Result<i32> {
            let encoding = Encoding::find(&mut caller, encoding)?;
            Ok(encoding.verify(&mut caller, text, length)?.map_or(Ok(-1), i32::try_from)?)
        },
    )?;
    linker.func_wrap(
        "env",
        "pg_utf8_islegal",
        |mut caller: Caller<'_, Guest>, text: u32, length: i32| -> wasmtime::Result<i32> {
            // The first byte gives the length, so that exactly one character is checked.
            let text = memory::read_bytes(memory::of(&mut caller)?.0, text, u32::try_from(length)?)?;
            Ok(i32::from(std::str::from_utf8(text).is_ok()))
        },
    )?;
    linker.func_wrap(
        "env",
        "report_invalid_encoding",
        |mut caller: Caller<'_, Guest>, encoding: i32, text: u32, length: i32| -> wasmtime::Result<()> {
            Err(error(&mut caller, Reason::Invalid, (encoding, encoding), text, length))
        },
    )?;
    linker.func_wrap(
        "env",
        "report_untranslatable_char",
        |mut caller: Caller<'_, Guest>, from: i32, to: i32, text: u32, length: i32| -> wasmtime::Result<()> {
            Err(error(&mut caller, Reason::Untranslatable, (from, to), text, length))
        },
    )?;
    Ok(())
}

fn add_unicode(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for (name, is_from_utf8) in [("UtfToLocal", true), ("LocalToUtf", false)] {
        linker.func_wrap(
            "env",
            name,
            move |mut caller: Caller<'_, Guest>,
                  source: u32,
                  length: i32,
                  destination: u32,
                  tree: u32,
                  combined: u32,
                  combined_count: i32,
                  function: u32,
                  encoding: i32,
                  no_error: i32|
                  -> wasmtime::Result<i32> {
                let (from, to) = if is_from_utf8 { (UTF8, encoding) } else { (encoding, UTF8) };
                let passage = Passage { source, length, destination, from, to, no_error: no_error != 0 };
                convert(&mut caller, passage, |caller, text| {
                    let maps = Maps::find(caller, tree, Combined::new(combined, combined_count)?, function)?;
                    if is_from_utf8 {
                        return maps.from_utf8(caller, text);
                    }
                    let encoding = Encoding::find(caller, encoding)?;
                    maps.to_utf8(caller, &encoding, source, text)
                })
            },
        )?;
    }
    Ok(())
}

fn add_bytes(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "env",
        "local2local",
        |mut caller: Caller<'_, Guest>,
         source: u32,
         destination: u32,
         length: i32,
         from: i32,
         to: i32,
         table: u32,
         no_error: i32|
         -> wasmtime::Result<i32> {
            let map = ByteMap::read(memory::of(&mut caller)?.0, table)?;
            let passage = Passage { source, length, destination, from, to, no_error: no_error != 0 };
            convert(&mut caller, passage, |caller, text| {
                waiting::without_turn_if_long(caller, text.len(), |_| from_single_bytes(text, None, &map))
            })
        },
    )?;
    add_mule(
        linker,
        "latin2mic",
        |encoding| (encoding, MULE_INTERNAL),
        |text, leading, map| from_single_bytes(text, Some(leading), map),
    )?;
    add_mule(linker, "mic2latin", |encoding| (MULE_INTERNAL, encoding), from_mule)
}

/// Adds a conversion from or to Mule's code, and the one with the name `…_with_table`. `between` returns the source
/// and target encodings for the encoding of the single bytes; `conversion` gets the text, the leading byte and the
/// table.
fn add_mule(
    linker: &mut Linker<Guest>,
    name: &str,
    between: fn(i32) -> (i32, i32),
    conversion: fn(&[u8], u8, &ByteMap) -> Converted,
) -> wasmtime::Result<()> {
    let run = move |caller: &mut Caller<'_, Guest>, passage: Passage, leading: i32, map: &ByteMap| {
        let leading = u8::try_from(leading)?;
        convert(caller, passage, |caller, text| {
            waiting::without_turn_if_long(caller, text.len(), |_| conversion(text, leading, map))
        })
    };
    linker.func_wrap(
        "env",
        name,
        move |mut caller: Caller<'_, Guest>,
              source: u32,
              destination: u32,
              length: i32,
              leading: i32,
              encoding: i32,
              no_error: i32| {
            let (from, to) = between(encoding);
            let passage = Passage { source, length, destination, from, to, no_error: no_error != 0 };
            run(&mut caller, passage, leading, &ByteMap::IDENTITY)
        },
    )?;
    linker.func_wrap(
        "env",
        &format!("{name}_with_table"),
        move |mut caller: Caller<'_, Guest>,
              source: u32,
              destination: u32,
              length: i32,
              leading: i32,
              encoding: i32,
              table: u32,
              no_error: i32| {
            let map = ByteMap::read(memory::of(&mut caller)?.0, table)?;
            let (from, to) = between(encoding);
            let passage = Passage { source, length, destination, from, to, no_error: no_error != 0 };
            run(&mut caller, passage, leading, &map)
        },
    )?;
    Ok(())
}

/// Converts the text of `passage` with `conversion`, writes the result and a NUL, and returns how many bytes of the
/// text were converted. If it stops early it raises an SQL error, unless the passage has `no_error`.
fn convert(
    caller: &mut Caller<'_, Guest>,
    passage: Passage,
    conversion: impl FnOnce(&mut Caller<'_, Guest>, &[u8]) -> wasmtime::Result<Converted>,
) -> wasmtime::Result<i32> {
    let Passage { source, length, destination, from, to, no_error } = passage;
    let (memory, size) = (caller.data().memory()?, u32::try_from(length)?);
    let text = waiting::without_turn_if_long(caller, size as usize, |context| {
        memory::read_bytes(memory.data(context), source, size).map(<[u8]>::to_vec)
    })??;
    let mut converted = conversion(caller, &text)?;
    let consumed = match converted.stopped {
        Some((at, reason)) if !no_error => {
            let at = u32::try_from(at)?;
            return Err(error(caller, reason, (from, to), source.wrapping_add(at), length - i32::try_from(at)?));
        }
        Some((at, _)) => at,
        None => text.len(),
    };
    converted.bytes.push(0);
    waiting::without_turn_if_long(caller, converted.bytes.len(), |context| {
        memory::write_bytes(memory.data_mut(context), destination, &converted.bytes)
    })??;
    Ok(i32::try_from(consumed)?)
}

/// The SQL error for the character at `text`, of which `length` bytes are available.
fn error(
    caller: &mut Caller<'_, Guest>,
    reason: Reason,
    encodings: (i32, i32),
    text: u32,
    length: i32,
) -> wasmtime::Error {
    let message = match describe(caller, reason, encodings, text, length) {
        Ok(message) => message,
        Err(error) => return error,
    };
    let sqlstate = match reason {
        Reason::Invalid => sqlstate::CHARACTER_NOT_IN_REPERTOIRE,
        Reason::Untranslatable => sqlstate::UNTRANSLATABLE_CHARACTER,
    };
    report::error(caller, sqlstate, &message)
}

/// The message of `report_invalid_encoding` or `report_untranslatable_char`.
fn describe(
    caller: &mut Caller<'_, Guest>,
    reason: Reason,
    (from, to): (i32, i32),
    text: u32,
    length: i32,
) -> wasmtime::Result<String> {
    let from = Encoding::find(caller, from)?;
    // As many bytes as the character has, at most those available, and at most eight.
    let length = from.length(caller, text)?.min(u32::try_from(length)?).min(8);
    let memory = memory::of(caller)?.0;
    let bytes: Vec<String> =
        memory::read_bytes(memory, text, length)?.iter().map(|byte| format!("0x{byte:02x}")).collect();
    let (bytes, name) = (bytes.join(" "), from.name(memory)?);
    Ok(match reason {
        Reason::Invalid => format!("invalid byte sequence for encoding \"{name}\": {bytes}"),
        Reason::Untranslatable => {
            let to = Encoding::find(caller, to)?;
            let to = to.name(memory::of(caller)?.0)?;
            format!(
                "character with byte sequence {bytes} in encoding \"{name}\" has no equivalent in encoding \"{to}\""
            )
        }
    })
}
