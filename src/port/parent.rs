//! The end of the parent while the program starts, before anything reads stdin.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd, OwnedFd},
    thread,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, ioctl_fionread},
};

/// Watches stdin until it is dropped.
pub struct ParentWatch {
    gone: Receiver<()>,
    /// Held, because a channel without senders is ready to be received from.
    _tell: Sender<()>,
    /// Held, because its other end is closed when the watch is over.
    _end: PipeWriter,
}

impl ParentWatch {
    /// Watches stdin.
    ///
    /// # Errors
    /// The operating system's, if stdin is closed, or if no thread can be started.
    pub fn start() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let (end, held) = io::pipe()?;
        let (tell, gone) = bounded(1);
        let told = tell.clone();
        thread::Builder::new().name("parent".to_owned()).spawn(move || watch(&input, &end, &told))?;
        Ok(Self { gone, _tell: tell, _end: held })
    }

    /// Receives a message when stdin, a pipe or a socket, is at its end. What the parent has written before is still
    /// carried out, so there is none if stdin has unread bytes.
    #[must_use]
    pub fn gone(&self) -> &Receiver<()> {
        &self.gone
    }
}

fn watch(input: &OwnedFd, end: &PipeReader, tell: &Sender<()>) {
    // Hang-ups are always told.
    let mut files = [PollFd::new(input, PollFlags::RDHUP), PollFd::new(end, PollFlags::empty())];
    while poll(&mut files, None) == Err(Errno::INTR) {}
    let [input_events, _] = files.map(|file| file.revents());
    let is_hung_up = input_events.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR);
    if is_hung_up && ioctl_fionread(input).unwrap_or(0) == 0 {
        // The receiver is gone after the start.
        let _ = tell.send(());
    }
}
