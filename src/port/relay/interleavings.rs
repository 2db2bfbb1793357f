//! The relay under a model checker: every order in which the session's thread and others can come at each other.

use std::io::Write;

use loom::thread;

use super::*;
use crate::{
    port::frame::{self, Parsed},
    protocol::error_response::sqlstate,
};

/// A connection whose windows are used up both ways.
fn blocked() -> (Arc<Outbox>, Relay) {
    let outbox = Arc::new(Outbox::default());
    let mut relay = Relay::new(1, outbox.clone(), Endpoints::default(), Certificates::default());
    relay.write(&vec![0; WINDOW as usize]).expect("the window is open");
    (outbox, relay)
}

/// Asserts that a wait ends with `expected`, whenever `event` comes.
fn assert_wait_ends(interest: Interest, event: fn(&Relay), expected: Readiness) {
    loom::model(move || {
        let (_, mut relay) = blocked();
        let other = relay.clone();
        let other = thread::spawn(move || event(&other));
        assert_eq!(relay.wait(interest, None), expected);
        other.join().unwrap();
    });
}

#[test]
fn a_wait_ends_whenever_what_it_is_for_comes() {
    let data: fn(&Relay) = |relay| relay.data(b"x").expect("within the window");
    let window: fn(&Relay) = |relay| relay.window(1).expect("not too wide");
    let wake_up: fn(&Relay) = |relay| relay.waker().wake();
    assert_wait_ends(Interest::Read, data, Readiness::Ready);
    assert_wait_ends(Interest::Write, window, Readiness::Ready);
    assert_wait_ends(Interest::Read, Relay::client_gone, Readiness::Ready);
    assert_wait_ends(Interest::Write, Relay::client_gone, Readiness::Ready);
    assert_wait_ends(Interest::Nothing, wake_up, Readiness::Woken);
}

#[test]
fn nothing_follows_the_close_frame_whoever_closes() {
    loom::model(|| {
        let outbox = Arc::new(Outbox::default());
        let mut relay = Relay::new(1, outbox.clone(), Endpoints::default(), Certificates::default());
        let others = ["one", "two"].map(|reason| {
            let relay = relay.clone();
            thread::spawn(move || relay.close(&ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, reason)))
        });
        let _ = relay.write(b"x");
        others.into_iter().for_each(|other| other.join().unwrap());
        let kinds = kinds(&outbox);
        assert!(matches!(kinds[..], [Kind::Close] | [Kind::Data, Kind::Close]), "{kinds:?}");
    });
}

/// The kinds of all frames in an outbox.
fn kinds(outbox: &Outbox) -> Vec<Kind> {
    let mut bytes = Vec::new();
    outbox.write_to(Last(&mut bytes));
    let (mut at, mut kinds) = (0, Vec::new());
    while let Parsed::Frame { frame, consumed } = frame::parse(&bytes[at..]).expect("frames") {
        kinds.push(frame.kind);
        at += consumed;
    }
    kinds
}

/// An output that takes one batch.
struct Last<'a>(&'a mut Vec<u8>);

impl Write for Last<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}
