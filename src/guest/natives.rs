//! Functions of the guest that often run and take the host's processor less time: parsing of numbers, checksums, `LIKE`.
//! Their results are those of the guest's own code, to the bit.

use std::str::{self, FromStr};

use memchr::memmem;
use wasmtime::{Caller, Linker};

use super::{Guest, memory};
use crate::{
    instrument::{HOOK_MODULE, Hook},
    postgres::{like, page},
};

/// Longer numbers are left to the guest.
const LONGEST: usize = 64;

/// Longer texts are left to the guest, because other sessions have no turn while the host searches them.
const LONGEST_TEXT: u32 = 1 << 20;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ParseDouble.name(),
        |mut caller: Caller<'_, Guest>, text: u32, end: u32| -> wasmtime::Result<(f64, i32)> {
            Ok(answer(parse(&mut caller, text, end, f64::is_normal)?))
        },
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::ParseFloat.name(),
        |mut caller: Caller<'_, Guest>, text: u32, end: u32| -> wasmtime::Result<(f32, i32)> {
            Ok(answer(parse(&mut caller, text, end, f32::is_normal)?))
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
    linker.func_wrap(
        HOOK_MODULE,
        Hook::Like.name(),
        |mut caller: Caller<'_, Guest>,
         text: u32,
         text_length: u32,
         pattern: u32,
         pattern_length: u32,
         locale: u32|
         -> wasmtime::Result<(i32, i32)> {
            let (memory, _) = memory::of(&mut caller)?;
            let is_by_bytes =
                locale == 0 || memory::read_bytes(memory, locale.wrapping_add(like::DETERMINISTIC), 1)? != [0];
            if !is_by_bytes || text_length > LONGEST_TEXT {
                return Ok(answer(None));
            }
            let text = memory::read_bytes(memory, text, text_length)?;
            let pattern = memory::read_bytes(memory, pattern, pattern_length)?;
            Ok(answer(matches(text, pattern)))
        },
    )?;
    Ok(())
}

/// The results of a hook that may have no answer: the answer, and whether it is one.
fn answer<T: Default>(answer: Option<T>) -> (T, i32) {
    let is_answer = answer.is_some().into();
    (answer.unwrap_or_default(), is_answer)
}

/// Whether a text is `LIKE` a pattern that begins with `%`. `None` if it has more than bytes and `%`.
fn matches(text: &[u8], pattern: &[u8]) -> Option<i32> {
    if memchr::memchr2(b'_', b'\\', pattern).is_some() {
        return None;
    }
    let mut parts = pattern.strip_prefix(b"%")?.split(|byte| *byte == b'%');
    let last = parts.next_back()?;
    let mut rest = text;
    // The first place is the best one for each part, because `%` is anything.
    for part in parts {
        let Some(at) = memmem::find(rest, part) else { return Some(like::ABORT) };
        rest = &rest[at + part.len()..];
    }
    Some(if rest.ends_with(last) { like::TRUE } else { like::ABORT })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn double(text: &str) -> Option<(u32, u64)> {
        number(text.as_bytes(), f64::is_normal).map(|(length, number)| (length, number.to_bits()))
    }

    #[test]
    fn a_plain_number_has_an_answer_and_its_length() {
        for (text, length, value) in [
            ("1", 1, 1.0),
            ("-1.5abc", 4, -1.5),
            ("+.5e3)", 5, 500.0),
            ("7.,8", 2, 7.0),
            ("12e-1-3", 5, 1.2),
            ("0e999 ", 5, 0.0),
            ("-0", 2, -0.0),
            ("1.7976931348623158e308", 22, f64::MAX),
            ("2.2250738585072014e-308", 23, f64::MIN_POSITIVE),
        ] {
            assert_eq!(double(text), Some((length, f64::to_bits(value))), "{text}");
        }
    }

    #[test]
    fn other_texts_are_left_to_the_guest() {
        for text in ["", "-", ".", "+.e5", "e5", " 1", "0x10", "1e", "1e+", "inf", "nan", "1.7976931348623159e308"] {
            assert_eq!(double(text), None, "{text}");
        }
        // Smaller than the smallest normal number.
        assert_eq!(double("2.2250738585072011e-308"), None);
        assert_eq!(number(b"1.1754942e-38", f32::is_normal), None);
        assert_eq!(number(b"1.17549435e-38", f32::is_normal), Some((14, f32::MIN_POSITIVE)));
        assert_eq!(number(b"3.4028236e38", f32::is_normal), None);
    }

    #[test]
    fn a_number_is_seen_whole_or_not_at_all() {
        for (digits, behind) in
            [(62, "e5"), (62, "e+5"), (63, ".5"), (63, "e5"), (64, ""), (64, ".5"), (64, "e5"), (65, "")]
        {
            let text = format!("{}{behind}", "1".repeat(digits));
            let expected = text.parse::<f64>().expect("a number").to_bits();
            // The caller shows one byte more than is allowed.
            let shown = &text[..text.len().min(LONGEST + 1)];
            let is_whole = text.len() <= LONGEST;
            assert_eq!(
                double(shown),
                is_whole.then_some((u32::try_from(text.len()).expect("short"), expected)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_pattern_without_special_characters_is_searched() {
        for (text, pattern, answer) in [
            ("", "%", Some(like::TRUE)),
            ("abcabd", "%ab%d", Some(like::TRUE)),
            ("abcabd", "%abd%b%", Some(like::ABORT)),
            ("ab", "%ab%b", Some(like::ABORT)),
            ("aa", "%a%a%a", Some(like::ABORT)),
            ("abc", "%_c", None),
            ("abc", r"%\c", None),
        ] {
            assert_eq!(matches(text.as_bytes(), pattern.as_bytes()), answer, "{text} {pattern}");
        }
    }
}
