//! Frames on their way to stdout: everybody puts them in, one writer takes them out.
//!
//! What is queued stays bounded, though putting a frame in never blocks a connection: data frames are
//! bounded by each connection's window, the frames that answer the parent's own wait for room
//! ([`Outbox::wait_for_room`]), and log lines are dropped and counted when there is none.

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
    /// Log lines dropped since the last report of that.
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
        self.push(Frame { kind, id, payload: &options.to_bytes() });
    }

    /// Queues a log line of a connection, or of the program, unless the parent reads too slowly.
    pub(crate) fn push_log(&self, connection: Option<u32>, level: Level, target: &str, text: &str) {
        let mut queue = self.queue.lock();
        if queue.bytes.len() >= ROOM {
            queue.dropped_lines += 1;
            return;
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
                queue.report_dropped_lines();
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

    /// Says how many log lines were dropped, now that there is room.
    fn report_dropped_lines(&mut self) {
        let dropped = std::mem::take(&mut self.dropped_lines);
        if dropped > 0 {
            let text = format!("{dropped} log lines were dropped because the parent reads too slowly");
            self.push_log_line(0, Level::WARN, module_path!(), &text);
        }
    }

    fn push_log_line(&mut self, id: u32, level: Level, target: &str, text: &str) {
        let level = level.as_str().to_ascii_lowercase();
        let options = Options::new().with("level", level).with("target", target).with("text", text);
        self.push(Frame { kind: Kind::Log, id, payload: &options.to_bytes() });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read, pipe},
        sync::{Arc, mpsc::channel},
        thread,
        time::Duration,
    };

    use super::*;

    /// An outbox without room.
    fn full() -> Arc<Outbox> {
        let outbox = Arc::new(Outbox::default());
        for id in 0..4 {
            outbox.push(Frame { kind: Kind::Data, id, payload: &vec![0; ROOM / 4] });
        }
        outbox
    }

    #[test]
    fn a_wait_for_room_lasts_until_the_writer_has_taken_something() {
        let outbox = full();
        let (sender, room) = channel();
        let waiting = outbox.clone();
        thread::spawn(move || {
            waiting.wait_for_room();
            sender.send(()).expect("the test waits");
        });
        assert!(room.try_recv().is_err());
        thread::spawn(move || outbox.write_to(io::sink()));
        room.recv_timeout(Duration::from_mins(1)).expect("room");
    }

    #[test]
    fn nobody_waits_for_a_writer_that_has_failed() {
        let outbox = full();
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        assert_eq!(outbox.write_to(writer).kind(), io::ErrorKind::BrokenPipe);
        for id in 0..10 {
            outbox.push(Frame { kind: Kind::Data, id, payload: &vec![0; ROOM / 4] });
        }
        outbox.wait_for_room();
        outbox.flush(Instant::now() + Duration::from_mins(1));
        assert!(outbox.queue.lock().bytes.is_empty());
    }

    #[test]
    fn a_flush_returns_when_the_last_byte_is_out_and_gives_up_at_its_deadline() {
        let outbox = full();
        outbox.flush(Instant::now());
        let (mut reader, writer) = pipe().expect("a pipe");
        let written = outbox.clone();
        thread::spawn(move || written.write_to(writer));
        // More than a pipe holds, so the writer needs a reader.
        outbox.flush(Instant::now() + Duration::from_millis(1));
        let length = 4 * (ROOM / 4 + 9);
        let read = thread::spawn(move || reader.read_exact(&mut vec![0; length]));
        outbox.flush(Instant::now() + Duration::from_mins(1));
        assert!(!outbox.queue.lock().writing);
        read.join().expect("no panic").expect("all bytes");
    }
}
