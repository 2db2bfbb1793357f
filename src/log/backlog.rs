//! A bounded queue of bytes for one output, with many producers and one writer.
//!
//! Adding bytes never waits for the output. Bytes that may be lost are dropped and counted when there is no room.
//! Producers of other bytes wait for room before they make them.

use std::{
    io::{self, Write},
    time::Instant,
};

use crate::sync::{Condvar, Mutex};

#[cfg(all(test, feature = "loom"))]
mod interleavings;

/// There is room while fewer bytes than this are queued.
pub(crate) const ROOM: usize = 1 << 20;

/// The queue.
#[derive(Default)]
pub(crate) struct Backlog {
    queue: Mutex<Queue>,
    /// Notified when there is something to write.
    filled: Condvar,
    /// Notified when the writer has taken or written bytes.
    drained: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The queued bytes; one write takes them all.
    bytes: Vec<u8>,
    /// Whether the writer is writing bytes that it has taken.
    writing: bool,
    /// Whether the writer has ended, so that bytes are discarded.
    closed: bool,
    /// How many times bytes were dropped since the last report.
    dropped: u64,
}

impl Backlog {
    /// Queues what `append` appends, without a check for room.
    pub(crate) fn push(&self, append: impl FnOnce(&mut Vec<u8>)) {
        self.queue.lock().push(append);
        self.filled.notify_one();
    }

    /// Queues what `append` appends if there is room, and otherwise counts it as dropped.
    pub(crate) fn push_if_room(&self, append: impl FnOnce(&mut Vec<u8>)) {
        let mut queue = self.queue.lock();
        if queue.bytes.len() >= ROOM {
            queue.dropped += 1;
            return;
        }
        queue.push(append);
        self.filled.notify_one();
    }

    /// The bytes that are queued. Those that are being written are not.
    pub(crate) fn len(&self) -> usize {
        self.queue.lock().bytes.len()
    }

    /// Waits until there is room or the writer has ended.
    pub(crate) fn wait_for_room(&self) {
        let mut queue = self.queue.lock();
        while queue.bytes.len() >= ROOM && !queue.closed {
            self.drained.wait(&mut queue);
        }
    }

    /// Waits until everything queued has been written, at most until `deadline`; returns whether it has.
    pub(crate) fn flush(&self, deadline: Instant) -> bool {
        let mut queue = self.queue.lock();
        while (queue.writing || !queue.bytes.is_empty()) && !queue.closed {
            if self.drained.wait_until(&mut queue, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Writes the queued bytes in order until `output` fails. When there is room again after bytes were dropped,
    /// `report` appends a message with the given count of drops.
    ///
    /// # Errors
    /// The error of `output`; bytes are discarded from then on.
    pub(crate) fn write_to(&self, mut output: impl Write, report: impl Fn(u64, &mut Vec<u8>)) -> io::Error {
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
                let dropped = std::mem::take(&mut queue.dropped);
                if dropped > 0 {
                    report(dropped, &mut queue.bytes);
                }
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
    fn push(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        if !self.closed {
            append(&mut self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, pipe},
        sync::Arc,
        thread,
        time::Duration,
    };

    use super::*;

    /// A backlog without room.
    fn full() -> Arc<Backlog> {
        let backlog = Arc::new(Backlog::default());
        backlog.push(|bytes| bytes.resize(ROOM, b'x'));
        backlog
    }

    fn no_report(_: u64, _: &mut Vec<u8>) {}

    #[test]
    fn nobody_waits_for_a_writer_that_has_failed() {
        let backlog = full();
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        assert_eq!(backlog.write_to(writer, no_report).kind(), io::ErrorKind::BrokenPipe);
        backlog.push(|bytes| bytes.resize(2 * ROOM, 0));
        backlog.wait_for_room();
        assert!(backlog.flush(Instant::now() + Duration::from_mins(1)));
        assert!(backlog.queue.lock().bytes.is_empty());
    }

    #[test]
    fn a_flush_returns_when_the_last_byte_is_out_and_gives_up_at_its_deadline() {
        let backlog = full();
        assert!(!backlog.flush(Instant::now()));
        let (mut reader, writer) = pipe().expect("a pipe");
        let written = backlog.clone();
        thread::spawn(move || written.write_to(writer, no_report));
        // More than a pipe holds, so that the writer waits for a reader.
        assert!(!backlog.flush(Instant::now() + Duration::from_millis(1)));
        let read = thread::spawn(move || reader.read_exact(&mut vec![0; ROOM]));
        assert!(backlog.flush(Instant::now() + Duration::from_mins(1)));
        read.join().expect("no panic").expect("all bytes");
    }

    #[test]
    fn what_finds_no_room_is_counted_and_reported_when_there_is_some() {
        let backlog = full();
        for _ in 0..3 {
            backlog.push_if_room(|bytes| bytes.extend(b"dropped"));
        }
        let (mut reader, writer) = pipe().expect("a pipe");
        thread::spawn(move || {
            backlog.write_to(writer, |count, bytes| bytes.extend(format!("{count} dropped").as_bytes()))
        });
        let mut bytes = vec![0; ROOM + 9];
        reader.read_exact(&mut bytes).expect("all bytes");
        assert_eq!(&bytes[ROOM - 1..], b"x3 dropped");
    }
}
