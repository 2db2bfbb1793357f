//! The queue of frames for stdout, from all connections to one writer.
//!
//! The queue is bounded, although queueing a frame never blocks a connection: data frames are bounded by each
//! connection's window, frames that answer a frame of the parent wait for room first ([`Outbox::wait_for_room`]), and
//! log lines are dropped and counted when there is no room.

use std::{
    io::{self, Write},
    time::Instant,
};

use tracing::Level;

use crate::{
    log::backlog::Backlog,
    port::frame::{Frame, Kind, Options},
};

/// The queue.
#[derive(Default)]
pub(crate) struct Outbox(Backlog);

impl Outbox {
    /// Queues a frame without waiting.
    pub(crate) fn push(&self, frame: Frame<'_>) {
        self.0.push(|bytes| append(bytes, frame));
    }

    /// Queues a frame whose payload is options.
    pub(crate) fn push_options(&self, kind: Kind, id: u32, options: &Options) {
        self.push(Frame { kind, id, payload: &options.to_bytes() });
    }

    /// Queues a log line of a connection, or of the program; drops it if there is no room.
    pub(crate) fn push_log(&self, connection: Option<u32>, level: Level, target: &str, text: &str) {
        self.0.push_if_room(|bytes| append_log_line(bytes, connection.unwrap_or(0), level, target, text));
    }

    /// The bytes that are queued.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Waits until there is room for another answer, or the writer has ended.
    pub(crate) fn wait_for_room(&self) {
        self.0.wait_for_room();
    }

    /// Waits until everything queued has been written, at most until `deadline`.
    pub(crate) fn flush(&self, deadline: Instant) {
        self.0.flush(deadline);
    }

    /// The writer: writes queued frames to `output`, in order, until a write fails.
    ///
    /// # Errors
    /// The error of the failed write; later frames are dropped.
    pub(crate) fn write_to(&self, output: impl Write) -> io::Error {
        self.0.write_to(output, |dropped, bytes| {
            let text = format!("{dropped} log lines were dropped because the parent reads too slowly");
            append_log_line(bytes, 0, Level::WARN, module_path!(), &text);
        })
    }
}

fn append(bytes: &mut Vec<u8>, frame: Frame<'_>) {
    if let Err(error) = frame.encode(bytes) {
        tracing::error!(kind = ?frame.kind, id = frame.id, %error, "a frame was not sent");
    }
}

fn append_log_line(bytes: &mut Vec<u8>, id: u32, level: Level, target: &str, text: &str) {
    let level = level.as_str().to_ascii_lowercase();
    let options = Options::new().with("level", level).with("target", target).with("text", text);
    append(bytes, Frame { kind: Kind::Log, id, payload: &options.to_bytes() });
}
