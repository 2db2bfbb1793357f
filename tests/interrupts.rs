//! What reaches a session from outside while it runs: cancel requests, orders to end, the end of its client.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    client::{Client, Interest, write_all},
    port::Ending,
    protocol::error_response::ErrorResponse,
    session::{SessionEnd, SessionStart, cancel::Interrupt},
};
use support::{PATIENCE, fake::Fake, port::Port, texts, wire};

/// The message with which those sessions say that they have registered.
const REGISTERED: &[u8] = b"1\0\0\0\x04";

/// Sessions that register under process id 42 and the user's name, pass interrupts on and end when they are to.
fn interruptible() -> (Port, Receiver<Interrupt>) {
    let (sender, interrupts) = channel();
    let port = Port::with_sessions(Fake(move |request: &SessionStart<'_>, client: &mut dyn Client| {
        let (terminated, waker): (Arc<AtomicBool>, _) = (Arc::default(), client.waker());
        let (flag, interrupts): (_, Sender<Interrupt>) = (terminated.clone(), sender.clone());
        let _registration = request.control.register(42, &request.startup.user, move |interrupt| {
            flag.fetch_or(matches!(interrupt, Interrupt::Terminate | Interrupt::ShutDown), Ordering::SeqCst);
            waker.wake();
            // The test may not be interested any more.
            let _ = interrupts.send(interrupt);
        });
        write_all(client, REGISTERED).expect("the window is open");
        loop {
            client.wait(Interest::Read, None);
            if terminated.load(Ordering::SeqCst) {
                return SessionEnd::Refused(ErrorResponse::fatal("57P01", "told to go"));
            }
            if matches!(client.read(&mut [0; 100]), Ok(0)) {
                return SessionEnd::ClientGone;
            }
        }
    }));
    (port, interrupts)
}

#[test]
fn a_cancel_request_reaches_the_session_with_that_key_and_a_wrong_key_reaches_none() {
    let (mut port, interrupts) = interruptible();
    port.start(1, "secret");
    port.data_of(1, REGISTERED.len());
    for (id, process_id, key) in [(2, 42, b"wrong!"), (3, 41, b"secret"), (4, 42, b"secret")] {
        port.open(id);
        port.data(id, &wire::cancel_request(process_id, key));
        assert_eq!(port.until_closed(id), (vec![], texts(["LOG", "00000", "connection closed"])));
        let interrupted = interrupts.try_recv().ok();
        assert_eq!(interrupted, (id == 4).then_some(Interrupt::Cancel), "{id}");
    }
}

#[test]
fn a_session_that_has_ended_cannot_be_cancelled() {
    let (mut port, interrupts) = interruptible();
    port.start(1, "secret");
    port.data_of(1, REGISTERED.len());
    port.close(1);
    port.until_closed(1);
    port.open(2);
    port.data(2, &wire::cancel_request(42, b"secret"));
    port.until_closed(2);
    assert!(interrupts.try_iter().all(|interrupt| interrupt != Interrupt::Cancel));
}

#[test]
fn a_shutdown_terminates_sessions_and_the_port_ends_after_the_last() {
    let (mut port, _interrupts) = interruptible();
    port.start(1, "one");
    port.data_of(1, REGISTERED.len());
    port.signals.send(()).expect("the port runs");
    let (bytes, reason) = port.until_closed(1);
    let told = texts(["FATAL", "57P01", "told to go"]);
    assert_eq!((wire::error(bytes), reason), (told.clone(), told));
    assert_eq!(port.ending(), Ending::ShutDown);
}

#[test]
fn a_session_that_registers_after_it_was_to_end_is_told_at_once() {
    let (go, gone) = channel::<()>();
    let (sender, interrupts) = channel();
    let gate = Mutex::new(gone);
    let mut port = Port::with_sessions(Fake(move |request: &SessionStart<'_>, client: &mut dyn Client| {
        write_all(client, b"booting").expect("the window is open");
        gate.lock().expect("no panic").recv().expect("the test says when");
        let sender = sender.clone();
        let _registration = request.control.register(1, b"key", move |interrupt| {
            sender.send(interrupt).expect("the test waits");
        });
        SessionEnd::Orderly
    }));
    port.start(1, "slow");
    port.data_of(1, 7);
    port.close(1);
    port.assert_silent();
    go.send(()).expect("the session waits");
    assert_eq!(interrupts.recv_timeout(PATIENCE), Ok(Interrupt::ClientGone));
    port.until_closed(1);
}

#[test]
fn the_end_of_stdin_ends_the_port_within_two_seconds_even_if_a_session_never_does() {
    let mut port = Port::with_sessions(Fake(|_: &SessionStart<'_>, client: &mut dyn Client| {
        write_all(client, b"computing").expect("the window is open");
        loop {
            thread::park();
        }
    }));
    port.start(1, "busy");
    port.data_of(1, 9);
    let started = Instant::now();
    port.end_input();
    assert_eq!(port.ending(), Ending::ParentGone);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
