use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    client::Endpoints,
    port::{
        outbox::Outbox,
        relay::{Certificates, Relay},
    },
    quota::Limits,
    session::Sessions,
};

/// Makes no session, and fails the test that asks for one.
struct None;

impl Sessions for None {
    fn serve(&self, request: SessionStart<'_>, _: Box<dyn Client>) -> SessionEnd {
        panic!("a session for {:?}", request.startup)
    }
}

fn opening() -> Opening {
    Opening {
        id: 1,
        mode: Mode::Shared,
        cluster: Option::None,
        template: Option::None,
        limits: Limits::default(),
        is_trusted: false,
        log: LogSink::to_own_log(),
    }
}

fn relay() -> Relay {
    Relay::new(1, Arc::new(Outbox::default()), Endpoints::default(), Certificates::default())
}

/// Starts a connection, whose end is told to `on_end`.
fn start(connections: &Arc<Connections>, relay: Relay, on_end: impl FnOnce(ErrorResponse) + Send + 'static) {
    assert!(connections.start(relay, opening(), move |_, report| on_end(report)).is_ok());
}

#[test]
fn a_client_that_does_not_finish_its_startup_packet_is_not_waited_for_forever() {
    let connections = Connections::new(Arc::new(None)).with_startup_timeout(Duration::from_millis(20));
    let relay = relay();
    relay.data(&[0, 0, 0]).expect("within the window");
    let (sender, ended) = crossbeam_channel::bounded(1);
    start(&Arc::new(connections), relay, move |report| sender.send(report).expect("the test waits"));
    let report = ended.recv_timeout(Duration::from_mins(1)).expect("it ends");
    assert_eq!((report.severity, report.code), (Severity::Log, sqlstate::QUERY_CANCELED));
}

#[test]
fn a_client_that_comes_after_the_end_has_begun_is_told_to_stay_away() {
    let connections = Arc::new(Connections::new(Arc::new(None)));
    connections.terminate_all();
    let (sender, ended) = crossbeam_channel::bounded(1);
    start(&connections, relay(), move |report| sender.send(report).expect("the test waits"));
    let report = ended.recv_timeout(Duration::from_mins(1)).expect("it ends");
    assert_eq!((report.code, report.message.as_str()), ("57P03", "the database system is shutting down"));
    connections.shut_down();
    assert_eq!(connections.count(), 0);
}

#[test]
fn a_connection_whose_end_is_told_is_counted_no_more_but_waited_for() {
    let connections = Arc::new(Connections::new(Arc::new(None)));
    connections.terminate_all();
    let (counts, counted) = crossbeam_channel::bounded(1);
    let (go_on, told) = crossbeam_channel::bounded::<()>(0);
    let counting = connections.clone();
    start(&connections, relay(), move |_| {
        counts.send(counting.count()).expect("the test waits");
        assert!(told.recv().is_err(), "the sender is dropped");
    });
    assert_eq!(counted.recv_timeout(Duration::from_mins(1)).expect("it ends"), 0);
    let (done, shut_down) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        connections.shut_down();
        done.send(()).expect("the test waits");
    });
    assert!(shut_down.recv_timeout(Duration::from_millis(50)).is_err(), "one has not told its end yet");
    drop(go_on);
    shut_down.recv_timeout(Duration::from_mins(1)).expect("all have ended");
}
