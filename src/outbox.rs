//! Frames on their way to stdout: everybody puts them in, one writer takes them out.
//!
//! What is queued stays bounded, though putting a frame in never blocks a connection: data frames are bounded by each
//! connection's window, the frames that answer the parent's own wait for room ([`Outbox::wait_for_room`]), and log lines
//! are dropped and counted when there is none.

use std::{io::Write, time::Instant};

use parking_lot::{Condvar, Mutex};
use tracing::Level;

use crate::frame::{Frame, Kind, Options};

/// Above so many queued bytes log lines are dropped and the reader of stdin waits.
const ROOM: usize = 1 << 20;

/// The queue.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Told when there is something to write, or nothing more will come.
    filled: Condvar,
    /// Told when the writer has taken or written something.
    drained: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Encoded frames: one write takes as many as there are.
    bytes: Vec<u8>,
    /// Whether the writer is busy with bytes that it has taken.
    writing: bool,
    /// Whether the writer is gone, so that frames are thrown away.
    closed: bool,
    /// Log lines dropped since the last one that was queued.
    dropped_lines: u64,
}

impl Outbox {
    /// Queues a frame, at once.
    pub(crate) fn push(&self, frame: Frame<'_>) {
        self.queue.lock().push(frame);
        self.filled.notify_one();
    }

    /// Queues a frame whose payload is options.
    pub(crate) fn push_options(&self, kind: Kind, id: u32, options: &Options) {
        self.push(Frame {
            kind,
            id,
            payload: &options.to_bytes(),
        });
    }

    /// Queues a log line of a connection, or of the program, unless the parent reads too slowly.
    pub(crate) fn push_log(&self, connection: Option<u32>, level: Level, target: &str, text: &str) {
        let mut queue = self.queue.lock();
        if queue.bytes.len() >= ROOM {
            queue.dropped_lines += 1;
            return;
        }
        let dropped = std::mem::take(&mut queue.dropped_lines);
        if dropped > 0 {
            let text =
                format!("{dropped} log lines were dropped because the parent reads too slowly");
            queue.push_log_line(0, Level::WARN, module_path!(), &text);
        }
        queue.push_log_line(connection.unwrap_or(0), level, target, text);
        self.filled.notify_one();
    }

    /// Waits until the parent has read enough for another answer, or will read no more.
    pub(crate) fn wait_for_room(&self) {
        let mut queue = self.queue.lock();
        while queue.bytes.len() >= ROOM && !queue.closed {
            self.drained.wait(&mut queue);
        }
    }

    /// Waits until everything queued has been written, at most until `deadline`.
    pub(crate) fn flush(&self, deadline: Instant) {
        let mut queue = self.queue.lock();
        while (queue.writing || !queue.bytes.is_empty()) && !queue.closed {
            if self.drained.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }

    /// The writer: writes what is queued, in order, for as long as `output` takes it.
    ///
    /// # Errors
    /// The error that ended it; frames are thrown away from then on.
    pub(crate) fn write_to(&self, mut output: impl Write) -> std::io::Error {
        let mut batch = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock();
                queue.writing = false;
                self.drained.notify_all();
                while queue.bytes.is_empty() {
                    self.filled.wait(&mut queue);
                }
                batch.clear();
                batch.shrink_to(ROOM);
                std::mem::swap(&mut batch, &mut queue.bytes);
                queue.writing = true;
                self.drained.notify_all();
            }
            if let Err(error) = output.write_all(&batch).and_then(|()| output.flush()) {
                let mut queue = self.queue.lock();
                queue.closed = true;
                queue.bytes = Vec::new();
                self.drained.notify_all();
                return error;
            }
        }
    }
}

impl Queue {
    fn push(&mut self, frame: Frame<'_>) {
        if self.closed {
            return;
        }
        if let Err(error) = frame.encode(&mut self.bytes) {
            tracing::error!(kind = ?frame.kind, id = frame.id, %error, "a frame was not sent");
        }
    }

    fn push_log_line(&mut self, id: u32, level: Level, target: &str, text: &str) {
        let level = level.as_str().to_ascii_lowercase();
        let options = Options::new()
            .with("level", level)
            .with("target", target)
            .with("text", text);
        self.push(Frame {
            kind: Kind::Log,
            id,
            payload: &options.to_bytes(),
        });
    }
}
