//! Standard streams that another process may have made non-blocking, used as blocking ones.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use rustix::event::{PollFd, PollFlags, poll};

/// A file that may be non-blocking, for example because of the parent. Reads and writes wait until it is ready.
pub(crate) struct Patient(File);

impl From<OwnedFd> for Patient {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl Patient {
    /// Calls `act`, and again after each wait for the file to become ready.
    fn when_ready<T>(&mut self, flags: PollFlags, mut act: impl FnMut(&mut File) -> io::Result<T>) -> io::Result<T> {
        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, flags)], None)?;
                }
                result => return result,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::IN, |file| file.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::OUT, |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
