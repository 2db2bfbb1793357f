//! Options: pairs of strings in the form of Postgres' startup packet, `key\0value\0…\0`.

use std::ffi::CStr;

/// The longest value that [`Options::with`] keeps whole, in bytes. With this limit, several options always fit into one
/// frame.
pub(super) const MAX_VALUE: usize = 65_536;

/// Pairs of a key and a value, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(String, String)>);

/// Why bytes are not options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedOptions {
    /// The bytes end inside a key or a value, or the closing NUL is missing.
    #[error("options end without their final NUL byte")]
    Unterminated,
    /// Something follows the closing NUL.
    #[error("options go on for {0} bytes after their final NUL byte")]
    Trailing(usize),
    /// A key or a value is not UTF-8.
    #[error("options are not UTF-8")]
    NotUtf8,
}

impl Options {
    /// No options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// These options and one more.
    ///
    /// A NUL, which the encoding cannot represent, becomes U+FFFD; a value is cut after 64 KiB.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "takes numbers and texts alike")]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        debug_assert!(!key.is_empty(), "an empty key ends the options");
        let mut value = value.to_string().replace('\0', "\u{fffd}");
        value.truncate(value.floor_char_boundary(MAX_VALUE));
        self.0.push((key.replace('\0', "\u{fffd}"), value));
        self
    }

    /// The value of `key`. If there are several, the last one is returned, as in a startup packet.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// All pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Appends the encoded options to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for part in self.0.iter().flat_map(|(key, value)| [key, value]) {
            out.extend_from_slice(part.as_bytes());
            out.push(0);
        }
        out.push(0);
    }

    /// The encoded options.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }

    /// Reads options that take up all of `bytes`.
    ///
    /// # Errors
    /// [`MalformedOptions`] says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, MalformedOptions> {
        let mut rest = bytes;
        let mut pairs = Vec::new();
        loop {
            let key = take_string(&mut rest)?;
            if key.is_empty() {
                break;
            }
            pairs.push((key, take_string(&mut rest)?));
        }
        if rest.is_empty() { Ok(Self(pairs)) } else { Err(MalformedOptions::Trailing(rest.len())) }
    }
}

/// Removes the string up to the next NUL, and that NUL, from the front of `rest`, and returns the string.
fn take_string(rest: &mut &[u8]) -> Result<String, MalformedOptions> {
    let string = CStr::from_bytes_until_nul(rest).map_err(|_| MalformedOptions::Unterminated)?;
    *rest = &rest[string.count_bytes() + 1..];
    string.to_str().map(str::to_owned).map_err(|_| MalformedOptions::NotUtf8)
}
