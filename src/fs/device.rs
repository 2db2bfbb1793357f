//! Character devices, and the console that the terminal devices write to.

use serde::{Deserialize, Serialize};

use super::errno::Errno;
use crate::random::Entropy;

/// Which of a process' two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Where a process' terminal output goes.
pub trait Console: Send {
    /// Takes bytes as they were written, in portions of any size.
    fn write(&mut self, stream: Stream, bytes: &[u8]);
}

/// A console that discards its output.
pub struct Silent;

impl Console for Silent {
    fn write(&mut self, _stream: Stream, _bytes: &[u8]) {}
}

/// The devices below `/dev`; device numbers are those of Emscripten's `FS.createDefaultDevices` (`libfs.js`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// Empty when read; takes everything.
    Null,
    /// Endless zeros; takes everything.
    Zero,
    /// Endless random bytes, of the quality that keys need unless they are those of a seed.
    Random,
    /// Empty when read: a guest has no standard input. PGlite's standard input is at its end as well.
    Stdin,
    /// The console's [`Stream::Out`], a terminal; empty when read.
    Terminal,
    /// The console's [`Stream::Err`], a terminal that cannot be read.
    ErrorTerminal,
}

impl Device {
    /// `st_rdev`: major number × 256 + minor number.
    #[must_use]
    pub fn number(self) -> u32 {
        let (major, minor) = match self {
            Self::Null => (1, 3),
            Self::Zero => (1, 5),
            Self::Random => (1, 9),
            Self::Terminal => (5, 0),
            Self::ErrorTerminal => (6, 0),
            Self::Stdin => (64, 0),
        };
        major << 8 | minor
    }

    /// The result of `isatty`.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Terminal | Self::ErrorTerminal)
    }

    pub(super) fn read(self, buffer: &mut [u8], entropy: &Entropy) -> Result<usize, Errno> {
        match self {
            Self::Null | Self::Stdin | Self::Terminal => Ok(0),
            Self::ErrorTerminal => Err(Errno::ENXIO),
            Self::Zero => {
                buffer.fill(0);
                Ok(buffer.len())
            }
            Self::Random => {
                entropy.fill(buffer).map_err(|_| Errno::EIO)?;
                Ok(buffer.len())
            }
        }
    }

    pub(super) fn write(self, bytes: &[u8], console: &mut dyn Console) -> Result<usize, Errno> {
        match self {
            Self::Null | Self::Zero | Self::Random => {}
            Self::Stdin => return Err(Errno::EIO),
            Self::Terminal => console.write(Stream::Out, bytes),
            Self::ErrorTerminal => console.write(Stream::Err, bytes),
        }
        Ok(bytes.len())
    }
}
