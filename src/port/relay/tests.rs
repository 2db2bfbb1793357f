use std::{io::Read, thread, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    port::frame::{self, Parsed},
    protocol::error_response::sqlstate,
};

/// What can happen to a connection, in sizes that fill its windows within a few steps.
#[derive(Clone, Debug)]
enum Event {
    DataArrives(usize),
    SessionReads(usize),
    SessionWrites(usize),
    WindowOpens(u32),
    ClientGoes,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let size = prop_oneof![0..10_usize, 0..150_000_usize];
    let event = prop_oneof![
        8 => size.clone().prop_map(Event::DataArrives),
        8 => size.clone().prop_map(Event::SessionReads),
        8 => size.prop_map(Event::SessionWrites),
        8 => (0..150_000_u32).prop_map(Event::WindowOpens),
        1 => Just(Event::ClientGoes),
    ];
    prop::collection::vec(event, 0..60)
}

/// All frames in an outbox, as kind and payload.
fn frames(outbox: &Arc<Outbox>) -> Vec<(Kind, Vec<u8>)> {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let source = outbox.clone();
    let end = Frame { kind: Kind::Reply, id: 0, payload: b"" };
    outbox.push(end);
    thread::spawn(move || source.write_to(writer));
    let (mut bytes, mut frames, mut chunk) = (Vec::new(), Vec::new(), vec![0; 65_536]);
    loop {
        let read = reader.read(&mut chunk).expect("the outbox writes");
        bytes.extend_from_slice(&chunk[..read]);
        let mut at = 0;
        while let Parsed::Frame { frame, consumed } = frame::parse(&bytes[at..]).expect("frames") {
            at += consumed;
            if frame == end {
                return frames;
            }
            frames.push((frame.kind, frame.payload.to_vec()));
        }
        bytes.drain(..at);
    }
}

/// So many bytes of a stream in which no two places look alike for long.
fn stream(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| u8::try_from(at % 251).expect("a byte")).collect()
}

fn would_block(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: bytes arrive unchanged and in order, neither side exceeds its
    /// window, all credit given back was consumed, and no more than half a window of it is ever held
    /// back.
    #[test]
    fn the_windows_hold(events in events()) {
        let window = usize::try_from(WINDOW).expect("it fits");
        let outbox = Arc::new(Outbox::default());
        let mut relay = Relay::new(1, outbox.clone(), Endpoints::default(), Certificates::default());
        let (mut arrived, mut read, mut written, mut gone) = (0, 0, 0, false);
        let (mut may_arrive, mut unreturned, mut may_send) = (window, 0, window);
        for event in events {
            match event {
                Event::DataArrives(size) => {
                    let result = relay.data(&stream(arrived, size));
                    if size > may_arrive {
                        let credit = u32::try_from(may_arrive).expect("it fits");
                        prop_assert_eq!(result, Err(WindowViolation::Overrun { sent: size, credit }));
                    } else {
                        prop_assert_eq!(result, Ok(()));
                        may_arrive -= size;
                        if !gone {
                            arrived += size;
                        }
                    }
                }
                Event::SessionReads(size) => {
                    let mut buffer = vec![0; size];
                    let result = relay.read(&mut buffer);
                    let expected = size.min(arrived - read);
                    if expected == 0 && size > 0 && !gone {
                        prop_assert!(would_block(&result));
                        continue;
                    }
                    prop_assert_eq!(result.expect("bytes or the end"), expected);
                    prop_assert_eq!(&buffer[..expected], &stream(read, expected)[..]);
                    read += expected;
                    if !gone {
                        unreturned += expected;
                        if unreturned >= window / 2 {
                            may_arrive += std::mem::take(&mut unreturned);
                        }
                    }
                }
                Event::SessionWrites(size) => {
                    let result = relay.write(&stream(written, size));
                    if gone {
                        prop_assert_eq!(result.expect_err("gone").kind(), io::ErrorKind::BrokenPipe);
                    } else if may_send == 0 && size > 0 {
                        prop_assert!(would_block(&result));
                    } else {
                        prop_assert_eq!(result.expect("a part"), size.min(may_send));
                        written += size.min(may_send);
                        may_send -= size.min(may_send);
                    }
                }
                Event::WindowOpens(credit) => {
                    prop_assert_eq!(relay.window(credit), Ok(()));
                    may_send += usize::try_from(credit).expect("it fits");
                }
                Event::ClientGoes => {
                    relay.client_gone();
                    gone = true;
                }
            }
        }
        let (mut sent, mut returned) = (Vec::new(), 0);
        for (kind, payload) in frames(&outbox) {
            match kind {
                Kind::Data => sent.extend(payload),
                Kind::Window => returned += u32::from_be_bytes(payload.try_into().expect("four bytes")) as usize,
                other => panic!("{other:?}"),
            }
        }
        prop_assert_eq!(sent, stream(0, written));
        prop_assert!(returned <= read);
        prop_assert!(gone || read - returned < window / 2);
    }
}

#[test]
fn nothing_follows_the_close_frame_and_it_comes_once() {
    let outbox = Arc::new(Outbox::default());
    let mut relay = Relay::new(1, outbox.clone(), Endpoints::default(), Certificates::default());
    relay.data(&stream(0, 200_000)).expect("within the window");
    let reason = ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, "enough");
    relay.close(&reason);
    relay.close(&ErrorResponse::fatal(sqlstate::INTERNAL_ERROR, "too late"));
    assert!(relay.write(b"x").is_err());
    assert_eq!(relay.read(&mut vec![0; 200_000]).expect("what had arrived"), 200_000);
    assert_eq!(frames(&outbox), [(Kind::Close, close_options(&reason).to_bytes())]);
}

#[test]
fn a_wake_up_is_reported_once_and_though_nobody_waited_yet() {
    let mut relay = Relay::new(1, Arc::new(Outbox::default()), Endpoints::default(), Certificates::default());
    let waker = relay.waker();
    waker.wake();
    waker.wake();
    assert_eq!(relay.wait(Interest::Write, None), Readiness::Woken);
    assert_eq!(relay.wait(Interest::Write, None), Readiness::Ready);
    let soon = Some(Instant::now() + Duration::from_millis(1));
    assert_eq!(relay.wait(Interest::Read, soon), Readiness::TimedOut);
}

#[test]
fn a_wait_ends_when_what_it_is_for_comes_from_another_thread() {
    type Event = fn(&Relay);
    let data: Event = |relay| relay.data(b"x").expect("within the window");
    let window: Event = |relay| relay.window(1).expect("not too wide");
    let wake_up: Event = |relay| relay.waker().wake();
    for (interest, event, expected) in [
        (Interest::Read, data, Readiness::Ready),
        (Interest::Write, window, Readiness::Ready),
        (Interest::Read, Relay::client_gone, Readiness::Ready),
        (Interest::Write, Relay::client_gone, Readiness::Ready),
        (Interest::Either, data, Readiness::Ready),
        (Interest::Either, window, Readiness::Ready),
        (Interest::Nothing, wake_up, Readiness::Woken),
    ] {
        let mut relay = Relay::new(1, Arc::new(Outbox::default()), Endpoints::default(), Certificates::default());
        while relay.write(&[0; 4096]).is_ok() {}
        let mut waiting = relay.clone();
        let waiter = thread::spawn(move || waiting.wait(interest, None));
        event(&relay);
        assert_eq!(waiter.join().expect("no panic"), expected);
    }
}
