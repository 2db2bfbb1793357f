//! Pipes between descriptors of one process.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::errno::Errno;

/// One end of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    /// The end that is read from.
    Read,
    /// The end that is written to.
    Write,
}

/// The most bytes that a pipe holds; Linux' default (`pipe(7)`).
const CAPACITY: usize = 65_536;

/// A pipe and the number of open file descriptions of each of its ends.
///
/// Pipes never block, because a process that waits for its own empty pipe would wait for itself. Reading from an empty
/// pipe returns `EAGAIN`, as in Emscripten's PIPEFS.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pipe {
    bytes: VecDeque<u8>,
    readers: u32,
    writers: u32,
}

impl Pipe {
    /// A pipe with one reader and one writer.
    pub(super) fn new() -> Self {
        Self { bytes: VecDeque::new(), readers: 1, writers: 1 }
    }

    /// Bytes waiting to be read.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no descriptor of that end is left.
    pub(super) fn end_is_gone(&self, end: End) -> bool {
        match end {
            End::Read => self.readers == 0,
            End::Write => self.writers == 0,
        }
    }

    pub(super) fn close(&mut self, end: End) {
        match end {
            End::Read => self.readers = self.readers.saturating_sub(1),
            End::Write => self.writers = self.writers.saturating_sub(1),
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        if self.bytes.is_empty() && !buffer.is_empty() && self.writers > 0 {
            return Err(Errno::EAGAIN);
        }
        let count = buffer.len().min(self.bytes.len());
        for (target, byte) in buffer.iter_mut().zip(self.bytes.drain(..count)) {
            *target = byte;
        }
        Ok(count)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let count = bytes.len().min(CAPACITY - self.bytes.len());
        if count == 0 && !bytes.is_empty() {
            return Err(Errno::EAGAIN);
        }
        self.bytes.extend(&bytes[..count]);
        Ok(count)
    }
}
