//! The backlog under a model checker: all orders of producers, waiters and the writer.

use std::sync::Arc;

use loom::thread;

use super::*;

/// An output that fails, and so ends the writer, after it has all expected bytes.
struct Output<'a> {
    bytes: &'a Mutex<Vec<u8>>,
    has_all: fn(&[u8]) -> bool,
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if (self.has_all)(&self.bytes.lock()) { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

/// Runs the writer to its end.
fn write(backlog: &Backlog, bytes: &Mutex<Vec<u8>>, has_all: fn(&[u8]) -> bool) {
    let output = Output { bytes, has_all };
    backlog.write_to(output, |count, bytes| bytes.extend(format!("{count} dropped").bytes()));
}

fn spawn<T: 'static>(backlog: &Arc<Backlog>, run: impl FnOnce(&Backlog) -> T + 'static) -> thread::JoinHandle<T> {
    let backlog = backlog.clone();
    thread::spawn(move || run(&backlog))
}

fn full() -> Arc<Backlog> {
    let backlog = Arc::new(Backlog::default());
    backlog.push(|bytes| bytes.resize(ROOM, b'x'));
    backlog
}

#[test]
fn everything_is_written_once_and_whole() {
    loom::model(|| {
        let (backlog, written) = (Arc::new(Backlog::default()), Mutex::default());
        let others =
            [b"ab", b"cd"].map(|text| spawn(&backlog, move |backlog| backlog.push(|bytes| bytes.extend(text))));
        write(&backlog, &written, |bytes| bytes.len() >= 4);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!([b"abcd".to_vec(), b"cdab".to_vec()].contains(&written.lock()));
    });
}

#[test]
fn a_wait_for_room_ends_when_there_is_room_and_not_before() {
    loom::model(|| {
        let backlog = full();
        let others = [(); 2].map(|()| {
            spawn(&backlog, |backlog| {
                backlog.wait_for_room();
                assert!(backlog.queue.lock().bytes.len() < ROOM);
            })
        });
        write(&backlog, &Mutex::default(), |_| true);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn a_flush_ends_when_the_last_byte_is_out_and_not_before() {
    loom::model(|| {
        let (backlog, written) = (Arc::new(Backlog::default()), Arc::new(Mutex::<Vec<u8>>::default()));
        let seen = written.clone();
        let other = spawn(&backlog, move |backlog| {
            backlog.push(|bytes| bytes.push(b'a'));
            assert!(backlog.flush(Instant::now()));
            assert_eq!(*seen.lock(), b"a");
            backlog.push(|bytes| bytes.push(b'b'));
        });
        write(&backlog, &written, |bytes| bytes.ends_with(b"b"));
        other.join().unwrap();
        assert_eq!(*written.lock(), b"ab");
    });
}

#[test]
fn what_is_pushed_if_there_is_room_is_written_or_counted() {
    loom::model(|| {
        let (backlog, written) = (full(), Mutex::default());
        let other = spawn(&backlog, |backlog| {
            backlog.push_if_room(|bytes| bytes.push(b'a'));
            backlog.push(|bytes| bytes.push(b'b'));
        });
        // The last byte, and one of the two others.
        write(&backlog, &written, |bytes| bytes[ROOM..].contains(&b'b') && bytes.len() > ROOM + 1);
        other.join().unwrap();
        let written = written.lock();
        assert!([&b"ab"[..], b"b1 dropped", b"1 droppedb"].contains(&&written[ROOM..]));
    });
}
