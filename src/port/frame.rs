//! Frames: what `pglite-port port` reads from stdin and writes to stdout. Pure encoding and decoding, no I/O.
//!
//! A frame is `length: u32 big-endian` of what follows, `kind: u8`, `id: u32 big-endian`, payload. On
//! the BEAM `{:packet, 4}` deals with the length. `tests/golden/frames.txt` holds one example of each,
//! for both languages.

use byteorder::{BigEndian, ByteOrder};

mod options;

pub use options::{MalformedOptions, Options};

#[cfg(test)]
mod tests;

/// The version of this protocol, as the hello frame announces it.
pub const PROTOCOL_VERSION: u32 = 1;
/// The largest value of a frame's length word, in bytes: kind, id and payload together.
pub const MAX_FRAME: usize = 1 << 20;
/// The largest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEAD;
/// How many payload bytes of data frames each side of a new connection may send before it is given more,
/// in bytes.
pub const WINDOW: u32 = 262_144;

/// Bytes of the length word.
const LENGTH: usize = 4;
/// Bytes of kind and id.
const HEAD: usize = 5;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// From the program, first and once, id 0: versions and limits, as options.
    Hello,
    /// To the program: opens the connection `id`; options.
    Open,
    /// Both ways: bytes of the Postgres protocol, split anywhere.
    Data,
    /// Both ways: how many more data bytes may be sent, a big-endian `u32`.
    Window,
    /// To the program: the client is gone; empty. From the program: the connection is closed; the reason
    /// as options.
    Close,
    /// To the program: a request, its verb with a NUL behind it, then options.
    Request,
    /// From the program: the reply to the request `id`, `ok` or `error` with a NUL behind it, then options.
    Reply,
    /// From the program: a log line of connection `id`, or of the program if `id` is 0; options.
    Log,
}

/// Which side may send a kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Parent,
    Program,
    Both,
}

/// All kinds with their letters and senders. A new kind is a row here and a variant of [`Kind`].
const KINDS: [(Kind, u8, Sender); 8] = [
    (Kind::Hello, b'H', Sender::Program),
    (Kind::Open, b'O', Sender::Parent),
    (Kind::Data, b'D', Sender::Both),
    (Kind::Window, b'W', Sender::Both),
    (Kind::Close, b'C', Sender::Both),
    (Kind::Request, b'Q', Sender::Parent),
    (Kind::Reply, b'R', Sender::Program),
    (Kind::Log, b'L', Sender::Program),
];

impl Kind {
    /// The kind that `letter` stands for.
    #[must_use]
    pub fn from_letter(letter: u8) -> Option<Self> {
        KINDS.iter().find(|row| row.1 == letter).map(|row| row.0)
    }

    /// The byte that stands for this kind in a frame.
    #[must_use]
    pub fn letter(self) -> u8 {
        self.row().1
    }

    /// Whether the program may be sent this kind of frame.
    #[must_use]
    pub fn is_for_the_program(self) -> bool {
        self.row().2 != Sender::Program
    }

    fn row(self) -> (Self, u8, Sender) {
        // The enum and the table have the same order, which a test checks.
        KINDS[self as usize]
    }
}

/// One frame with a borrowed payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The connection or request that it belongs to; 0 for the program itself.
    pub id: u32,
    /// Its payload, without kind and id.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Appends this frame to `out`.
    ///
    /// # Errors
    /// [`Malformed::TooLong`], with `out` unchanged, if the payload is longer than [`MAX_PAYLOAD`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let length = u32::try_from(HEAD + self.payload.len()).unwrap_or(u32::MAX);
        if self.payload.len() > MAX_PAYLOAD {
            return Err(Malformed::TooLong { length });
        }
        out.reserve(LENGTH + HEAD + self.payload.len());
        out.extend_from_slice(&length.to_be_bytes());
        out.push(self.kind.letter());
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(self.payload);
        Ok(())
    }
}

/// The result of [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The bytes so far are the beginning of a frame; at least this many more are needed to go on.
    NeedMore(usize),
    /// A whole frame.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// How many bytes of the input it took.
        consumed: usize,
    },
}

/// Why bytes are not a frame; the stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The length word does not even cover kind and id.
    #[error("frame length {length} is too short: a frame has at least {HEAD} bytes (kind and id)")]
    TooShort {
        /// The length word.
        length: u32,
    },
    /// The length word exceeds [`MAX_FRAME`].
    #[error("frame length {length} is too long: a frame has at most {MAX_FRAME} bytes")]
    TooLong {
        /// The length word.
        length: u32,
    },
    /// No kind has this letter.
    #[error("unknown frame kind {:?} (byte {letter:#04x})", char::from(*letter))]
    UnknownKind {
        /// The byte in the kind's place.
        letter: u8,
    },
    /// The kind is only ever sent the other way.
    #[error("frame kind {:?} is only sent by the program", char::from(*letter))]
    WrongSender {
        /// The kind's letter.
        letter: u8,
    },
}

/// Reads the frame that `bytes` begin with.
///
/// The length is checked as soon as its four bytes have arrived, and the kind as soon as its byte has. So a malformed
/// frame is refused before its end has arrived, and before memory is allocated for it.
///
/// # Errors
/// [`Malformed`] says what is wrong; it concerns the frame that starts at the first byte.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Malformed> {
    let Some((length_word, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Ok(Parsed::NeedMore(LENGTH - bytes.len()));
    };
    let length = u32::from_be_bytes(*length_word);
    let length_in_memory = usize::try_from(length).unwrap_or(usize::MAX);
    if length_in_memory < HEAD {
        return Err(Malformed::TooShort { length });
    }
    if length_in_memory > MAX_FRAME {
        return Err(Malformed::TooLong { length });
    }
    if let Some(&letter) = rest.first()
        && Kind::from_letter(letter).is_none()
    {
        return Err(Malformed::UnknownKind { letter });
    }
    let Some((&[letter, ref id @ ..], payload)) =
        rest.get(..length_in_memory).and_then(<[u8]>::split_first_chunk::<HEAD>)
    else {
        return Ok(Parsed::NeedMore(length_in_memory - rest.len()));
    };
    let kind = Kind::from_letter(letter).ok_or(Malformed::UnknownKind { letter })?;
    let frame = Frame { kind, id: BigEndian::read_u32(id), payload };
    Ok(Parsed::Frame { frame, consumed: LENGTH + length_in_memory })
}
