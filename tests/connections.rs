//! What lies around a session, with sessions that are not PostgreSQL: windows, ends of every kind, log frames.

mod support;

use std::sync::mpsc::channel;

use pglite_port::{
    client::{Client, Interest, write_all},
    log::Level,
    port::frame::{Kind, Options, WINDOW},
    protocol::error_response::ErrorResponse,
    session::{Mode, SessionEnd, SessionStart},
};
use support::{
    PATIENCE,
    fake::{Fake, echo, read_some},
    port::Port,
    texts, wire,
};

const WINDOW_BYTES: usize = WINDOW as usize;

/// The sessions of most tests: the user's name says how one behaves.
fn port() -> Port {
    Port::with_sessions(Fake(behave))
}

fn behave(request: &SessionStart<'_>, client: &mut dyn Client) -> SessionEnd {
    match request.startup.user.as_slice() {
        b"echo" => echo(client),
        b"flood" => {
            let bytes = vec![b'x'; 2 * WINDOW_BYTES];
            let written = write_all(client, &bytes);
            written.map_or(SessionEnd::ClientGone, |()| SessionEnd::Orderly)
        }
        b"swallow" => {
            while !read_some(client).is_empty() {}
            SessionEnd::ClientGone
        }
        b"deaf" => loop {
            // Reads nothing, and ends with its test.
            client.wait(Interest::Nothing, None);
        },
        b"panic" => panic!("the session has lost its mind"),
        b"trap" => SessionEnd::Trapped(anyhow::anyhow!("unreachable executed").context("backtrace")),
        b"trap in a message" => {
            write_all(client, b"D\0\0\0\x0chalf").expect("the window is open");
            SessionEnd::Trapped(anyhow::anyhow!("unreachable executed"))
        }
        b"refused" => SessionEnd::Refused(ErrorResponse::fatal("3D000", "database \"x\" does not exist")),
        other => panic!("no behaviour for {other:?}"),
    }
}

#[test]
fn a_session_gets_the_startup_packet_whole_and_parsed_and_the_bytes_behind_it_from_its_client() {
    let (sender, seen) = channel();
    let mut port = Port::with_sessions(Fake(move |request: &SessionStart<'_>, client: &mut dyn Client| {
        let seen = (request.packet.to_vec(), request.startup.database.clone(), request.mode, read_some(client));
        sender.send(seen).expect("the test waits");
        SessionEnd::Orderly
    }));
    let packet = wire::startup(&[("user", "alice"), ("application_name", "test")]);
    let stream = [&wire::ssl_request(), &packet[..], b"Q..."].concat();
    for (id, mode) in [(1, Mode::Shared), (2, Mode::Isolated)] {
        port.send_frame(Kind::Open, id, &Options::new().with("mode", mode).to_bytes());
        port.data(id, &stream);
        let expected = (packet.clone(), b"alice".to_vec(), mode, b"Q...".to_vec());
        assert_eq!(seen.recv_timeout(PATIENCE), Ok(expected));
        assert_eq!(port.until_closed(id), (b"N".to_vec(), texts(["LOG", "00000", "connection closed"])));
    }
}

#[test]
fn bytes_go_in_and_come_out_and_the_end_of_the_client_is_the_end_of_the_session() {
    let mut port = port();
    port.start(1, "echo");
    port.data(1, b"hello");
    assert_eq!(port.data_of(1, 5), b"hello");
    port.close(1);
    assert_eq!(port.until_closed(1), (vec![], texts(["LOG", "00000", "the client is gone"])));
}

#[test]
fn a_session_sends_exactly_what_the_window_allows_and_the_rest_when_it_opens() {
    let mut port = port();
    port.start(1, "flood");
    port.data_of(1, WINDOW_BYTES);
    port.assert_silent();
    port.window(1, 1);
    port.data_of(1, 1);
    port.assert_silent();
    port.window(1, WINDOW - 1);
    port.data_of(1, WINDOW_BYTES - 1);
    assert_eq!(port.until_closed(1).1[1], "00000");
}

#[test]
fn a_session_whose_client_leaves_before_the_window_opens_ends() {
    let mut port = port();
    port.start(1, "flood");
    port.data_of(1, WINDOW_BYTES);
    port.close(1);
    assert_eq!(port.until_closed(1), (vec![], texts(["LOG", "00000", "the client is gone"])));
}

#[test]
fn a_slow_connection_stalls_no_other() {
    let mut port = port();
    port.start(1, "flood");
    port.data_of(1, WINDOW_BYTES);
    port.start(2, "deaf");
    port.data(2, &vec![0; WINDOW_BYTES / 2]);
    port.start(3, "echo");
    for _ in 0..100 {
        port.data(3, b"ping");
        assert_eq!(port.data_of(3, 4), b"ping");
    }
}

#[test]
fn credit_comes_back_as_the_session_reads_and_in_large_pieces() {
    let mut port = port();
    let packet = wire::startup(&[("user", "swallow")]);
    port.start(1, "swallow");
    let (mut sent, mut credit) = (packet.len(), WINDOW_BYTES - packet.len());
    while sent < 10 * WINDOW_BYTES {
        let piece = credit.min(50_000);
        if piece == 0 {
            let window = port.next();
            assert_eq!((window.kind, window.id), (Kind::Window, 1));
            let given = u32::from_be_bytes(window.payload.try_into().expect("four bytes")) as usize;
            assert!(given >= WINDOW_BYTES / 2, "{given}");
            credit += given;
        } else {
            port.data(1, &vec![0; piece]);
            (sent, credit) = (sent + piece, credit - piece);
        }
    }
}

#[test]
fn a_parent_that_sends_more_than_a_session_reads_is_stopped_at_the_window() {
    let mut port = port();
    let packet = wire::startup(&[("user", "deaf")]);
    port.start(1, "deaf");
    port.data(1, &vec![0; WINDOW_BYTES - packet.len()]);
    port.assert_silent();
    port.data(1, b"x");
    let message = "1 bytes of data exceed the window of 0 bytes";
    assert_eq!(port.until_closed(1).1, texts(["FATAL", "08P01", message]));
}

#[test]
fn a_panic_ends_only_its_own_connection() {
    let mut port = port();
    port.start(1, "echo");
    port.start(2, "panic");
    let (bytes, reason) = port.until_closed(2);
    let message = "the connection's thread panicked: the session has lost its mind";
    assert_eq!(
        (wire::error(bytes), &reason),
        (texts(["FATAL", "XX000", message]), &texts(["FATAL", "XX000", message]))
    );
    port.data(1, b"alive");
    assert_eq!(port.data_of(1, 5), b"alive");
}

#[test]
fn a_trap_is_told_as_an_internal_error() {
    let mut port = port();
    port.start(1, "trap");
    let (bytes, reason) = port.until_closed(1);
    let told = texts(["FATAL", "XX000", "the backend trapped: unreachable executed"]);
    assert_eq!((wire::error(bytes), reason), (told.clone(), told));
}

#[test]
fn a_trap_in_the_middle_of_a_message_does_not_pretend_to_be_a_part_of_it() {
    let mut port = port();
    port.start(1, "trap in a message");
    let (bytes, reason) = port.until_closed(1);
    assert_eq!((&bytes[..], reason[1].as_str()), (&b"D\0\0\0\x0chalf"[..], "XX000"));
}

#[test]
fn a_session_that_could_not_start_has_its_reason_told() {
    let mut port = port();
    port.start(1, "refused");
    let (bytes, reason) = port.until_closed(1);
    let told = texts(["FATAL", "3D000", "database \"x\" does not exist"]);
    assert_eq!((wire::error(bytes), reason), (told.clone(), told));
}

#[test]
fn an_id_can_be_used_again_after_its_close() {
    let mut port = port();
    for _ in 0..10 {
        port.start(1, "echo");
        port.data(1, b"once more");
        assert_eq!(port.data_of(1, 9), b"once more");
        port.close(1);
        assert_eq!(port.until_closed(1).1[1], "00000");
    }
}

#[test]
fn many_connections_run_at_once() {
    let mut port = port();
    for id in 1..=100 {
        port.start(id, "echo");
    }
    for id in 1..=100 {
        port.data(id, &id.to_be_bytes());
        assert_eq!(port.data_of(id, 4), id.to_be_bytes());
    }
    port.request(1, "stats");
    assert_eq!(port.next().reply().1.get("connections"), Some("100"));
}

#[test]
fn lines_of_the_guest_become_log_frames_and_those_that_find_no_room_are_counted() {
    let (sender, logged) = channel();
    let mut port = Port::with_sessions(Fake(move |request: &SessionStart<'_>, client: &mut dyn Client| {
        let text = "x".repeat(1000);
        for line in 0..100_000 {
            request.log.line(Level::WARN, "guest::stderr", &format!("{line} {text}"));
        }
        sender.send(()).expect("the test waits");
        read_some(client);
        request.log.line(Level::INFO, "guest::stdout", "last");
        SessionEnd::Orderly
    }));
    port.pause_reading(true);
    port.start(7, "chatty");
    // None of these writes waited for anybody to read.
    logged.recv_timeout(PATIENCE).expect("logging does not block");
    port.pause_reading(false);
    port.data(7, b"go on");
    let (mut lines, mut dropped, mut closed) = (0, 0, false);
    while !closed || lines + dropped < 100_001 {
        let frame = port.next();
        if frame.kind == Kind::Close {
            closed = true;
            continue;
        }
        assert_eq!(frame.kind, Kind::Log);
        let options = frame.options();
        let text = options.get("text").expect("text");
        match (frame.id, options.get("level"), options.get("target")) {
            (7, Some("warn"), Some("guest::stderr")) => lines += 1,
            (7, Some("info"), Some("guest::stdout")) => {
                assert_eq!(text, "last");
                lines += 1;
            }
            (0, Some("warn"), _) => {
                let count = text.split(' ').next().expect("a word");
                dropped += count.parse::<u64>().expect("a count");
            }
            _ => panic!("{frame:?}"),
        }
    }
    assert_eq!(lines + dropped, 100_001);
    assert!(dropped > 0);
}
