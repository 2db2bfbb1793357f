//! Bytes on their way to one output: everybody puts them in, one writer takes them out.
//!
//! Putting bytes in never waits for the output. What may be lost is dropped and counted when there is no room, and
//! what may wait is put in only when there is room, so that the queue stays bounded.

use std::{
    io::{self, Write},
    time::Instant,
};

use crate::sync::{Condvar, Mutex};

#[cfg(all(test, feature = "loom"))]
mod interleavings;

/// With so many queued bytes there is no room.
pub(crate) const ROOM: usize = 1 << 20;

/// The queue.
#[derive(Default)]
pub(crate) struct Backlog {
    queue: Mutex<Queue>,
    /// Told when there is something to write.
    filled: Condvar,
    /// Told when the writer has taken or written something.
    drained: Condvar,
}

#[derive(Default)]
struct Queue {
    /// One write takes as many as there are.
    bytes: Vec<u8>,
    /// Whether the writer is busy with bytes that it has taken.
    writing: bool,
    /// Whether the writer is gone, so that everything is thrown away.
    closed: bool,
    /// How often bytes were dropped since the last report of that.
    dropped: u64,
}

impl Backlog {
    /// Queues what `append` appends, at once.
    pub(crate) fn push(&self, append: impl FnOnce(&mut Vec<u8>)) {
        self.queue.lock().push(append);
        self.filled.notify_one();
    }

    /// Queues what `append` appends if there is room, and otherwise counts that it was dropped.
    pub(crate) fn push_if_room(&self, append: impl FnOnce(&mut Vec<u8>)) {
        let mut queue = self.queue.lock();
        if queue.bytes.len() >= ROOM {
            queue.dropped += 1;
            return;
        }
        queue.push(append);
        self.filled.notify_one();
    }

    /// Waits until there is room, or nothing will be written any more.
    pub(crate) fn wait_for_room(&self) {
        let mut queue = self.queue.lock();
        while queue.bytes.len() >= ROOM && !queue.closed {
            self.drained.wait(&mut queue);
        }
    }

    /// Waits until everything queued has been written, at most until `deadline`; says whether it has.
    pub(crate) fn flush(&self, deadline: Instant) -> bool {
        let mut queue = self.queue.lock();
        while (queue.writing || !queue.bytes.is_empty()) && !queue.closed {
            if self.drained.wait_until(&mut queue, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// The writer: writes what is queued, in order, for as long as `output` takes it. When there is room again after
    /// something was dropped, `report` is told how often that was, and appends what is to be said of it.
    ///
    /// # Errors
    /// The error that ended it; everything is thrown away from then on.
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
        sync::{Arc, mpsc::channel},
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
    fn a_wait_for_room_lasts_until_the_writer_has_taken_something() {
        let backlog = full();
        let (sender, room) = channel();
        let waiting = backlog.clone();
        thread::spawn(move || {
            waiting.wait_for_room();
            sender.send(()).expect("the test waits");
        });
        assert!(room.try_recv().is_err());
        thread::spawn(move || backlog.write_to(io::sink(), no_report));
        room.recv_timeout(Duration::from_mins(1)).expect("room");
    }

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
        // More than a pipe holds, so the writer needs a reader.
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
