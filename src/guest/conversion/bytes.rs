//! Conversions between single-byte encodings, and from and to the "Mule internal code", in which a leading byte
//! selects the character set of the next byte (`src/backend/utils/mb/conv.c`).

use super::{
    super::memory::{self, OutOfBounds},
    Converted, Reason,
};

/// The equivalents of the bytes from 0x80 on; zero if there is none.
pub(super) struct ByteMap([u8; 128]);

impl ByteMap {
    /// Maps every byte to itself.
    pub(super) const IDENTITY: Self = {
        let mut map = [0; 128];
        let mut byte = 128_u8;
        while byte != 0 {
            map[byte as usize - 128] = byte;
            byte = byte.wrapping_add(1);
        }
        Self(map)
    };

    /// The table at `address`.
    pub(super) fn read(memory: &[u8], address: u32) -> Result<Self, OutOfBounds> {
        let mut map = [0; 128];
        map.copy_from_slice(memory::read_bytes(memory, address, 128)?);
        Ok(Self(map))
    }

    /// The equivalent of a byte from 0x80 on.
    fn equivalent(&self, byte: u8) -> Option<u8> {
        byte.checked_sub(128).map(|place| self.0[usize::from(place)]).filter(|&byte| byte != 0)
    }
}

/// From a single-byte encoding to another one, or to Mule's code if there is a leading byte.
pub(super) fn from_single_bytes(text: &[u8], leading: Option<u8>, map: &ByteMap) -> Converted {
    let mut converted = Converted::default();
    for (at, &byte) in text.iter().enumerate() {
        if byte == 0 {
            converted.stop(at, Reason::Invalid);
            break;
        }
        if byte.is_ascii() {
            converted.bytes.push(byte);
            continue;
        }
        let Some(equivalent) = map.equivalent(byte) else {
            converted.stop(at, Reason::Untranslatable);
            break;
        };
        converted.bytes.extend(leading);
        converted.bytes.push(equivalent);
    }
    converted
}

/// From Mule's code to the single-byte encoding with the character set `leading`.
pub(super) fn from_mule(text: &[u8], leading: u8, map: &ByteMap) -> Converted {
    let mut converted = Converted::default();
    let mut rest = text;
    let stopped = loop {
        match *rest {
            [] => return converted,
            [0, ..] => break Reason::Invalid,
            [byte, ..] if byte.is_ascii() => {
                converted.bytes.push(byte);
                rest = &rest[1..];
            }
            [byte, ..] if rest.len() < mule_length(byte) => break Reason::Invalid,
            [first, second, ..] if first == leading && mule_length(first) == 2 => match map.equivalent(second) {
                Some(equivalent) => {
                    converted.bytes.push(equivalent);
                    rest = &rest[2..];
                }
                None => break Reason::Untranslatable,
            },
            _ => break Reason::Untranslatable,
        }
    };
    converted.stop(text.len() - rest.len(), stopped);
    converted
}

/// The length of a character in Mule's code, by its first byte (`pg_mule_mblen` in `src/common/wchar.c`).
fn mule_length(first: u8) -> usize {
    match first {
        0x81..=0x8d => 2,
        0x90..=0x9b => 3,
        0x9c | 0x9d => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maps 0x80 to 0xff and nothing else.
    fn one_byte() -> ByteMap {
        let mut map = [0; 128];
        map[0] = 0xff;
        ByteMap(map)
    }

    fn converted(bytes: &[u8], stopped: Option<(usize, Reason)>) -> Converted {
        Converted { bytes: bytes.to_vec(), stopped }
    }

    #[test]
    fn single_bytes_become_their_equivalents_up_to_the_first_that_has_none() {
        assert_eq!(from_single_bytes(b"a\x80b", None, &one_byte()), converted(b"a\xffb", None));
        let stopped = Some((2, Reason::Untranslatable));
        assert_eq!(from_single_bytes(b"a\x80\x81", None, &one_byte()), converted(b"a\xff", stopped));
        assert_eq!(from_single_bytes(b"a\0b", None, &one_byte()), converted(b"a", Some((1, Reason::Invalid))));
    }

    #[test]
    fn mules_code_has_a_leading_byte_before_each_byte_that_is_not_ascii() {
        let mule = from_single_bytes(b"a\xe4\xff", Some(0x81), &ByteMap::IDENTITY);
        assert_eq!(mule, converted(b"a\x81\xe4\x81\xff", None));
        assert_eq!(from_mule(&mule.bytes, 0x81, &ByteMap::IDENTITY), converted(b"a\xe4\xff", None));
    }

    #[test]
    fn mules_code_of_another_character_set_has_no_equivalent_and_half_a_character_is_invalid() {
        let stop = |text: &[u8]| from_mule(text, 0x81, &one_byte()).stopped;
        assert_eq!(stop(b"a\x82\xe4"), Some((1, Reason::Untranslatable)));
        assert_eq!(stop(b"\x81\x81"), Some((0, Reason::Untranslatable)));
        assert_eq!(stop(b"\x81A"), Some((0, Reason::Untranslatable)));
        assert_eq!(stop(b"\x92\xa1\xa1"), Some((0, Reason::Untranslatable)));
        assert_eq!(stop(b"\x92\xa1"), Some((0, Reason::Invalid)));
        assert_eq!(stop(b"\x81"), Some((0, Reason::Invalid)));
        assert_eq!(stop(b"a\0"), Some((1, Reason::Invalid)));
    }
}
