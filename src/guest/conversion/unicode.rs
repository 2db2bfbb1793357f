//! Conversions from and to UTF-8 (`UtfToLocal` and `LocalToUtf` in `src/backend/utils/mb/conv.c`).

use std::str;

use wasmtime::{AsContextMut, Caller, TypedFunc};

use super::{
    super::{Guest, memory, table_function, waiting},
    Combined, Converted, Encoding, RadixTree, Reason,
};

/// The tables and the function for the conversion of one encoding; each may be missing.
pub(super) struct Maps {
    tree: Option<RadixTree>,
    combined: Option<Combined>,
    /// Computes the code of a character that is not in the tables; zero if there is none.
    function: Option<TypedFunc<u32, u32>>,
}

impl Maps {
    /// The tables at the given addresses; `function` is a function pointer.
    pub(super) fn find(
        caller: &mut Caller<'_, Guest>,
        tree: u32,
        combined: Option<Combined>,
        function: u32,
    ) -> wasmtime::Result<Self> {
        let function = if function == 0 { None } else { Some(table_function(caller, function)?) };
        let tree = if tree == 0 { None } else { Some(RadixTree::read(memory::of(caller)?.0, tree)?) };
        Ok(Self { tree, combined, function })
    }

    /// From UTF-8 to the local encoding.
    pub(super) fn from_utf8(&self, caller: &mut Caller<'_, Guest>, text: &[u8]) -> wasmtime::Result<Converted> {
        let valid = waiting::without_turn_if_long(caller, text.len(), |_| valid_characters(text))?;
        let mut pace = Pace::default();
        let mut converted = Converted::default();
        let mut characters = valid.char_indices().map(|(at, character)| (at, &text[at..][..character.len_utf8()]));
        let mut next = characters.next();
        while let Some((at, character)) = next {
            pace.step(caller)?;
            next = characters.next();
            if let [ascii] = *character {
                converted.bytes.push(ascii);
                continue;
            }
            let memory = memory::of(caller)?.0;
            if let Some(combined) = self.combined {
                match next {
                    Some((_, follower)) if follower.len() > 1 => {
                        if let Some(code) = combined.to_local(memory, (code(character), code(follower)))? {
                            store(&mut converted.bytes, code);
                            next = characters.next();
                            continue;
                        }
                    }
                    // The truncated bytes may be a part of this character.
                    None if valid.len() < text.len() && text[valid.len()] != 0 => {
                        converted.stop(at, Reason::Invalid);
                        return Ok(converted);
                    }
                    _ => {}
                }
            }
            let found = match &self.tree {
                Some(tree) => tree.look_up(memory, character)?,
                None => None,
            };
            if let Some(code) = found.map_or_else(|| self.compute(caller, code(character)), |code| Ok(Some(code)))? {
                store(&mut converted.bytes, code);
            } else {
                converted.stop(at, Reason::Untranslatable);
                return Ok(converted);
            }
        }
        if valid.len() < text.len() {
            converted.stop(valid.len(), Reason::Invalid);
        }
        Ok(converted)
    }

    /// From the local encoding to UTF-8; `text` is at `address`.
    pub(super) fn to_utf8(
        &self,
        caller: &mut Caller<'_, Guest>,
        encoding: &Encoding,
        address: u32,
        text: &[u8],
    ) -> wasmtime::Result<Converted> {
        let single_bytes = encoding.longest(memory::of(caller)?.0)? == 1;
        let mut converted = Converted::default();
        let (mut at, mut pace) = (0, Pace::default());
        while let Some(&first) = text.get(at) {
            pace.step(caller)?;
            if first.is_ascii() && first != 0 {
                converted.bytes.push(first);
                at += 1;
                continue;
            }
            let length = match (first, single_bytes) {
                (0, _) => None,
                (_, true) => Some(1),
                // Only the main module can tell which bytes are characters.
                (_, false) => {
                    let place = address.wrapping_add(u32::try_from(at)?);
                    encoding.verify(caller, place, i32::try_from(text.len() - at)?)?
                }
            };
            let Some(character) = length.and_then(|length| text.get(at..at + length as usize)) else {
                converted.stop(at, Reason::Invalid);
                break;
            };
            let memory = memory::of(caller)?.0;
            if let Some(tree) = &self.tree {
                if let Some(code) = tree.look_up(memory, character)? {
                    store(&mut converted.bytes, code);
                    at += character.len();
                    continue;
                }
                let pair = self.combined.map(|combined| combined.to_unicode(memory, code(character))).transpose()?;
                if let Some((first, second)) = pair.flatten() {
                    store(&mut converted.bytes, first);
                    store(&mut converted.bytes, second);
                    at += character.len();
                    continue;
                }
            }
            let Some(code) = self.compute(caller, code(character))? else {
                converted.stop(at, Reason::Untranslatable);
                break;
            };
            store(&mut converted.bytes, code);
            at += character.len();
        }
        Ok(converted)
    }

    fn compute(&self, caller: &mut Caller<'_, Guest>, character: u32) -> wasmtime::Result<Option<u32>> {
        let Some(function) = &self.function else { return Ok(None) };
        Ok(Some(function.call(caller.as_context_mut(), character)?).filter(|&code| code != 0))
    }
}

/// Counts the characters of a long text, and lets other processes have their turns from time to time.
#[derive(Default)]
struct Pace(u16);

impl Pace {
    fn step(&mut self, caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
        self.0 = self.0.wrapping_add(1);
        if self.0 == 0 { waiting::give_way(caller) } else { Ok(()) }
    }
}

/// The text up to its first NUL or its first byte that is not UTF-8.
fn valid_characters(text: &[u8]) -> &str {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    match str::from_utf8(text) {
        Ok(valid) => valid,
        Err(error) => str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// The bytes of a character as a number, the first highest.
fn code(character: &[u8]) -> u32 {
    character.iter().fold(0, |code, byte| code << 8 | u32::from(*byte))
}

/// Appends the bytes of a code.
fn store(bytes: &mut Vec<u8>, code: u32) {
    bytes.extend(code.to_be_bytes().into_iter().filter(|byte| *byte != 0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_and_codes_are_each_others_bytes() {
        assert_eq!(code("€".as_bytes()), 0x00e2_82ac);
        let mut bytes = Vec::new();
        store(&mut bytes, 0x00e2_82ac);
        store(&mut bytes, 0x41);
        assert_eq!(bytes, "€A".as_bytes());
    }

    #[test]
    fn a_text_is_valid_up_to_its_first_nul_or_broken_character() {
        assert_eq!(valid_characters("a\u{e4}\0b".as_bytes()), "aä");
        assert_eq!(valid_characters(b"a\xc3"), "a");
        assert_eq!(valid_characters(b"a\xed\xa0\x80"), "a", "a surrogate");
        assert_eq!(valid_characters(b"\xc0\x80"), "", "an overlong NUL");
        assert_eq!(valid_characters(b""), "");
    }
}
