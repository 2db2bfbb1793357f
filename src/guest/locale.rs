//! The locales of the C library and of ICU that exist, and the case mapping of the C library.
//!
//! The musl in `pglite.wasm` accepts any name of a locale and treats it like `C.UTF-8`; ICU uses its root collation
//! for a language without data. `PostgreSQL` would then behave as if the requested locale existed, so the host
//! decides.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wasmtime::{Caller, Linker};

use crate::{
    fs::{At, Follow},
    icu::{self, Lacking},
    instrument::{HOOK_MODULE, Hook},
    protocol::error_response::sqlstate,
};

use super::{Guest, memory, report};

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::LocaleExists.name(),
        |mut caller: Caller<'_, Guest>, name: u32| -> wasmtime::Result<i32> {
            compute(&mut caller, Hook::LocaleExists, |caller| {
                let memory = caller.data().memory()?;
                Ok(locale_exists(memory::read_c_string(memory.data(caller), name)?).into())
            })
        },
    )?;
    linker.func_wrap(HOOK_MODULE, Hook::ToUpper.name(), |mut caller: Caller<'_, Guest>, code_point: u32| {
        compute(&mut caller, Hook::ToUpper, |_| Ok(map(code_point, upper)))
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::ToLower.name(), |mut caller: Caller<'_, Guest>, code_point: u32| {
        compute(&mut caller, Hook::ToLower, |_| Ok(map(code_point, lower)))
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::OpenCollator.name(), open_collator)?;
    linker.func_wrap(HOOK_MODULE, Hook::ImportRules.name(), import_rules)?;
    Ok(())
}

/// Runs the part of a hook that only computes. A panic in it is logged and becomes an SQL error. It ends the
/// statement; if it ended the process, the whole cluster would start again.
///
/// # Errors
/// Those of `computation`, and that SQL error.
fn compute<T>(
    caller: &mut Caller<'_, Guest>,
    hook: Hook,
    computation: impl FnOnce(&Caller<'_, Guest>) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    if let Ok(result) = catch(|| computation(caller)) {
        return result;
    }
    let message = format!("the host function {} failed; the reason is in the program's log", hook.name());
    Err(report::error(caller, sqlstate::INTERNAL_ERROR, &message))
}

/// A computation panicked.
#[derive(Debug, PartialEq, Eq)]
struct Panicked;

/// The computation must not change anything that outlives it.
fn catch<T>(computation: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(computation)).map_err(|_| Panicked)
}

/// Whether the C library has the locale `name`: musl implements only `C` and `C.UTF-8`. The name of the character set
/// may be spelled in the ways that glibc accepts. An empty name is that of the environment's locale, which is one of
/// these.
fn locale_exists(name: &[u8]) -> bool {
    match name {
        b"" | b"C" | b"POSIX" => true,
        _ => name
            .strip_prefix(b"C.")
            .is_some_and(|set| [&b"utf-8"[..], b"utf8"].iter().any(|utf8| set.eq_ignore_ascii_case(utf8))),
    }
}

fn map(code_point: u32, mapping: fn(char) -> char) -> u32 {
    char::from_u32(code_point).map_or(code_point, |character| mapping(character).into())
}

/// The uppercase letter, or the character itself: Unicode's simple mapping, which is one to one, as glibc's
/// `towupper`.
fn upper(character: char) -> char {
    let mut mapped = character.to_uppercase();
    if mapped.len() == 1 {
        return mapped.next().unwrap_or(character);
    }
    // Only Greek letters with iota subscript map to several characters and also have a simple mapping
    // (UnicodeData.txt).
    let distance = match character {
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => 8,
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => 9,
        _ => 0,
    };
    char::from_u32(u32::from(character) + distance).unwrap_or(character)
}

/// The lowercase letter, as [`upper`]. Only U+0130 maps to two characters; the second is the dot above.
fn lower(character: char) -> char {
    character.to_lowercase().next().unwrap_or(character)
}

/// Raises an error where ICU would use the root collation, because the guest's files do not contain the data of the
/// locale's own collation.
fn open_collator(mut caller: Caller<'_, Guest>, locale: u32) -> wasmtime::Result<()> {
    let missing = compute(&mut caller, Hook::OpenCollator, |caller| {
        let locale = memory::read_text(caller.data().memory()?.data(caller), locale)?;
        let Some(Lacking { collation }) = lacking(caller, &locale) else { return Ok(None) };
        Ok(Some(format!("the data of the ICU collation {collation:?}, which locale {locale:?} uses, is not installed")))
    })?;
    refuse(&mut caller, missing)
}

/// As [`open_collator`], for collations that rules import: `[import LANGUAGE-TAG]`. ICU has parsed the tag. The error
/// skips ICU's own error handling, so about 50 kB that ICU has allocated for the collator stay until the session ends.
fn import_rules(mut caller: Caller<'_, Guest>, _importer: u32, locale: u32, kind: u32) -> wasmtime::Result<()> {
    let missing = compute(&mut caller, Hook::ImportRules, |caller| {
        let memory = caller.data().memory()?.data(caller);
        let (locale, kind) = (memory::read_text(memory, locale)?, memory::read_text(memory, kind)?);
        let Some(Lacking { collation }) = lacking(caller, &format!("{locale}@collation={kind}")) else {
            return Ok(None);
        };
        Ok(Some(format!("the data of the ICU collation {collation:?}, which the rules import, is not installed")))
    })?;
    refuse(&mut caller, missing)
}

fn lacking(caller: &Caller<'_, Guest>, locale: &str) -> Option<Lacking> {
    let files = &caller.data().files;
    icu::lacking(locale, |path| files.stat(At::WorkingDirectory, path.as_bytes(), Follow::Yes).is_ok())
}

/// Raises an SQL error with the message `missing`, if there is one.
fn refuse(caller: &mut Caller<'_, Guest>, missing: Option<String>) -> wasmtime::Result<()> {
    let Some(message) = missing else { return Ok(()) };
    let hint = "Start the server with the option --icu-data (in Elixir icu_data:) and the data of ICU 76.";
    Err(report::error_with_hint(caller, sqlstate::FEATURE_NOT_SUPPORTED, &message, Some(hint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_c_and_c_utf_8_are_locales_of_the_c_library() {
        for name in ["", "C", "POSIX", "C.UTF-8", "C.utf8", "C.UTF8", "C.utf-8", "C.Utf-8"] {
            assert!(locale_exists(name.as_bytes()), "{name}");
        }
        for name in ["c", "posix", "C.", "c.UTF-8", "C.UTF-16", "C.UTF-8/", "POSIX.UTF-8", "en_US", "en_US.UTF-8", "xx"]
        {
            assert!(!locale_exists(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_panic_in_a_computation_is_caught() {
        assert_eq!(catch(|| 1), Ok(1));
        assert_eq!(catch(|| "é".split_at(1)), Err(Panicked));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_can_be_a_name_and_any_number_a_character(name: Vec<u8>, code_point: u32) {
            let _ = locale_exists(&name);
            let _ = (map(code_point, upper), map(code_point, lower));
        }
    }

    #[test]
    fn letters_change_case_one_to_one() {
        for (letter, uppercase) in [('ä', 'Ä'), ('ß', 'ß'), ('ŉ', 'ŉ'), ('ⓐ', 'Ⓐ'), ('ǆ', 'Ǆ'), ('ı', 'I')]
        {
            assert_eq!(upper(letter), uppercase);
        }
        for (letter, uppercase) in [('\u{1f80}', '\u{1f88}'), ('\u{1fa7}', '\u{1faf}'), ('\u{1ff3}', '\u{1ffc}')] {
            assert_eq!(upper(letter), uppercase);
            assert_eq!(lower(uppercase), letter);
        }
        for (letter, lowercase) in [('Ä', 'ä'), ('İ', 'i'), ('ẞ', 'ß'), ('Σ', 'σ'), ('\u{2126}', 'ω')] {
            assert_eq!(lower(letter), lowercase);
        }
        assert_eq!(map(0xd800, upper), 0xd800);
        assert_eq!(map(0x0011_0000, lower), 0x0011_0000);
    }
}
