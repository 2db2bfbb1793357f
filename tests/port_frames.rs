//! `pglite-port port` as its parent sees it: raw bytes on stdin, raw bytes on stdout. Nothing here needs
//! a session.

mod support;

use std::{io::Read, time::Duration};

use pglite_port::port::frame::{Kind, WINDOW};
use rustix::process::Signal;
use support::{
    port::{Port, frame},
    program::Program,
    texts, wire,
};

/// The promise for the end of stdin.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn hello_comes_first_and_once_and_says_versions_and_limits() {
    let mut program = Program::spawn(&["port"]);
    let (id, mut stdout) = (program.id().to_string(), program.take_stdout());
    let mut payload = Vec::new();
    for (key, value) in [
        ("protocol", "1"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("pglite", "0.5.16"),
        ("postgres", "18.6"),
        ("max_frame", "1048576"),
        ("window", "262144"),
        ("pid", &id),
    ] {
        payload.extend([key.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    payload.push(0);
    let expected = frame(Kind::Hello, 0, &payload);
    let mut hello = vec![0; expected.len()];
    stdout.read_exact(&mut hello).expect("a frame");
    assert_eq!(hello, expected);
    drop(program.take_stdin());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("its end");
    assert_eq!((program.wait().0.code(), rest), (Some(0), Vec::new()));
}

#[test]
fn a_malformed_frame_ends_the_program_with_status_2_and_a_line_that_says_what_and_where() {
    for (bytes, what) in [
        (&b"\0\0\0\0"[..], "frame length 0 is too short: a frame has at least 5 bytes"),
        (b"\0\0\0\x04D\0\0\0", "frame length 4 is too short"),
        (b"\0\x10\0\x01D\0\0\0\x01", "frame length 1048577 is too long: a frame has at most 1048576 bytes"),
        (b"\xff\xff\xff\xff", "frame length 4294967295 is too long"),
        (b"GET / HTTP/1.1\r\n", "frame length 1195725856 is too long"),
        (b"\0\0\0\x05Z\0\0\0\x01", "unknown frame kind 'Z' (byte 0x5a)"),
        (b"\0\0\0\x05H\0\0\0\0", "frame kind 'H' is only sent by the program"),
        (b"\0\0\0\x05R\0\0\0\x01", "frame kind 'R' is only sent by the program"),
        (b"\0\0\0\x05L\0\0\0\0", "frame kind 'L' is only sent by the program"),
    ] {
        let mut port = Port::spawn(&[]);
        // One good frame of ten bytes in front, so that the offset means something.
        port.open(1);
        port.send(bytes);
        assert_eq!(port.exit_status().0, Some(2), "{what}");
        let stderr = port.stderr();
        assert!(stderr.iter().any(|line| line.contains(&format!("byte 10 of stdin: {what}"))), "{what}: {stderr:?}");
    }
}

#[test]
fn a_frame_for_a_connection_that_does_not_exist_is_answered_and_nothing_else_is_lost() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    for (kind, payload) in [(Kind::Data, &b"x"[..]), (Kind::Window, &[0, 0, 0, 1]), (Kind::Close, b"")] {
        for id in [7, 0] {
            port.send_frame(kind, id, payload);
            let closed = port.next();
            assert_eq!(closed.id, id);
            assert_eq!(closed.reason(), texts(["FATAL", "08003", &format!("connection {id} does not exist")]));
        }
    }
    port.data(1, &wire::ssl_request());
    assert_eq!(port.data_of(1, 1), b"N");
}

#[test]
fn first_bytes_that_are_no_packet_are_answered_by_nothing_but_a_close_that_says_why() {
    let mut port = Port::spawn(&[]);
    for mode in [&b"mode\0shared\0\0"[..], b"mode\0isolated\0\0"] {
        for (id, (bytes, why)) in (1..).zip(wire::STRANGERS) {
            port.send_frame(Kind::Open, id, mode);
            port.data(id, bytes);
            assert_eq!(port.until_closed(id), (vec![], texts(["LOG", "08P01", why])), "{bytes:?}");
        }
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_first_packet_is_told_nothing() {
    let mut port = Port::spawn(&[]);
    for (id, bytes, reason) in [
        (1, &b""[..], ["LOG", "00000", "the client is gone"]),
        (2, b"\0\0", ["LOG", "08P01", "incomplete startup packet"]),
        (3, b"\0\0\0\x09\0\x03", ["LOG", "08P01", "incomplete startup packet"]),
    ] {
        port.open(id);
        port.data(id, bytes);
        port.close(id);
        assert_eq!(port.until_closed(id), (vec![], texts(reason)), "{bytes:?}");
    }
}

#[test]
fn a_startup_packet_that_will_not_do_gets_the_error_that_postgresql_gives() {
    let mut port = Port::spawn(&[]);
    let unsupported = "unsupported frontend protocol 2.0: server supports 3.0 to 3.2";
    for (id, packet, code, message) in [
        (1, wire::packet(2 << 16, b"user\0u\0\0"), "0A000", unsupported),
        (2, wire::startup(&[("database", "d")]), "28000", "no PostgreSQL user name specified in startup packet"),
        (
            3,
            wire::packet(3 << 16, b"user\0u\0"),
            "08P01",
            "invalid startup packet layout: expected terminator as last byte",
        ),
    ] {
        port.open(id);
        port.data(id, &packet);
        let (bytes, reason) = port.until_closed(id);
        assert_eq!(wire::error(bytes), texts(["FATAL", code, message]));
        assert_eq!(reason, texts(["FATAL", code, message]));
    }
}

#[test]
fn encryption_is_refused_once_each_and_then_the_startup_packet_is_read() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.data(1, &wire::ssl_request());
    assert_eq!(port.data_of(1, 1), b"N");
    port.data(1, &wire::gssenc_request());
    assert_eq!(port.data_of(1, 1), b"N");
    port.data(1, &wire::ssl_request());
    let message = "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2";
    assert_eq!(port.until_closed(1).1, texts(["FATAL", "0A000", message]));
}

#[test]
fn a_cancel_request_with_a_wrong_key_is_answered_by_nothing_but_the_close() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.data(1, &wire::cancel_request(42, &[1; 32]));
    assert_eq!(port.until_closed(1), (vec![], texts(["LOG", "00000", "connection closed"])));
}

#[test]
fn frames_can_be_cut_at_every_byte() {
    let mut port = Port::spawn(&[]);
    let stream = |id| {
        let refused = wire::packet(2 << 16, b"\0");
        [frame(Kind::Open, id, b"\0"), frame(Kind::Data, id, &wire::ssl_request()), frame(Kind::Data, id, &refused)]
            .concat()
    };
    for cut in 1..u32::try_from(stream(1).len()).expect("short") {
        let stream = stream(cut);
        let (one, other) = stream.split_at(usize::try_from(cut).expect("it fits"));
        port.send(one);
        port.send(other);
        let (bytes, reason) = port.until_closed(cut);
        assert_eq!((&bytes[..2], reason[1].as_str()), (&b"NE"[..], "0A000"), "cut at {cut}");
    }
    let stream = stream(1000);
    stream.chunks(1).for_each(|byte| port.send(byte));
    assert_eq!(port.until_closed(1000).1[1], "0A000");
}

#[test]
fn a_startup_packet_can_be_cut_at_every_byte_into_data_frames() {
    let mut port = Port::spawn(&[]);
    let packets = [wire::ssl_request(), wire::gssenc_request(), wire::packet(2 << 16, b"user\0u\0\0")].concat();
    for cut in 0..=packets.len() {
        let id = u32::try_from(cut + 1).expect("short");
        port.open(id);
        port.data(id, &packets[..cut]);
        port.data(id, &packets[cut..]);
        let (bytes, reason) = port.until_closed(id);
        assert_eq!((&bytes[..3], reason[1].as_str()), (&b"NNE"[..], "0A000"), "cut at {cut}");
    }
}

#[test]
fn a_second_open_of_an_open_connection_closes_it_and_an_open_of_0_or_with_bad_options_is_refused() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.open(1);
    assert_eq!(port.until_closed(1).1, texts(["FATAL", "08P01", "connection 1 was opened a second time"]));
    for (id, options, code) in [
        (0, &b"\0"[..], "08P01"),
        (2, b"", "08P01"),
        (3, b"mode\0isolated\0", "08P01"),
        (4, b"mode\0both\0\0", "22023"),
    ] {
        port.send_frame(Kind::Open, id, options);
        assert_eq!(port.until_closed(id).1[1], code);
    }
    // The id is free again.
    port.open(1);
    port.data(1, &wire::ssl_request());
    assert_eq!(port.data_of(1, 1), b"N");
}

#[test]
fn whoever_exceeds_the_window_or_mishandles_it_is_closed() {
    let mut port = Port::spawn(&[]);
    let one_too_many = vec![0; usize::try_from(WINDOW).expect("it fits") + 1];
    port.open(1);
    port.data(1, &one_too_many);
    let message = "262145 bytes of data exceed the window of 262144 bytes";
    assert_eq!(port.until_closed(1).1, texts(["FATAL", "08P01", message]));
    port.open(2);
    port.window(2, u32::MAX);
    assert_eq!(port.until_closed(2).1[1], "08P01");
    port.open(3);
    port.send_frame(Kind::Window, 3, &[0, 0, 1]);
    assert_eq!(port.until_closed(3).1, texts(["FATAL", "08P01", "a window frame has 4 bytes, not 3"]));
}

#[test]
fn frames_that_were_under_way_when_a_connection_closed_are_not_answered() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.data(1, b"garbage!");
    port.until_closed(1);
    port.data(1, b"more");
    port.window(1, 1);
    port.close(1);
    port.assert_silent();
}

#[test]
fn a_client_that_leaves_is_closed_exactly_once() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.close(1);
    assert_eq!(port.until_closed(1), (vec![], texts(["LOG", "00000", "the client is gone"])));
    port.close(1);
    port.assert_silent();
}

#[test]
fn requests_are_answered_and_those_that_nobody_knows_are_refused() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.request(5, "stats");
    let reply = port.next();
    let (word, stats) = reply.reply();
    assert_eq!((reply.id, word.as_str(), stats.get("connections")), (5, "ok", Some("1")));
    let memory: u64 = stats.get("memory").expect("on Linux").parse().expect("bytes");
    assert!(memory > 1 << 20, "{memory}");
    let figure = |name: &str| stats.get(name).expect("a figure").parse::<u64>().expect("a number");
    assert_eq!((figure("ready"), figure("queued_frames")), (1, 0));
    assert!(figure("turns") > 0 && figure("images") > 1 << 20);
    let allocated: u64 = ["linear_memory", "files_in_memory", "shared_memory", "images"].map(figure).iter().sum();
    assert!(figure("memory_used") >= allocated, "{stats:?}");
    port.close(1);
    port.until_closed(1);
    port.open(1);
    port.request(7, "stats");
    let (_, stats) = port.next().reply();
    let counted = ["connections", "connections_opened"].map(|key| stats.get(key));
    assert_eq!(counted, [Some("1"), Some("2")], "one is open, two were opened");
    for (payload, code) in [(&b"dance\0\0"[..], "0A000"), (b"stats", "08P01"), (b"stats\0", "08P01"), (b"", "08P01")] {
        port.send_frame(Kind::Request, 6, payload);
        let (word, options) = port.next().reply();
        assert_eq!((word.as_str(), options.get("code")), ("error", Some(code)));
    }
}

#[test]
fn shutdown_is_confirmed_then_connections_are_told_then_the_program_ends() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.request(9, "shutdown");
    assert_eq!(port.next().reply().0, "ok");
    let (bytes, reason) = port.until_closed(1);
    let told = texts(["FATAL", "57P01", "terminating connection due to administrator command"]);
    assert_eq!((wire::error(bytes), reason), (told.clone(), told));
    port.assert_at_end();
    assert_eq!(port.exit_status().0, Some(0));
}

#[test]
fn sigterm_is_an_orderly_stop_and_sigint_is_left_to_the_parent() {
    let mut port = Port::spawn(&[]);
    port.open(1);
    port.assert_silent();
    port.signal(Signal::INT);
    port.assert_silent();
    port.signal(Signal::TERM);
    assert_eq!(port.until_closed(1).1[1], "57P01");
    assert_eq!(port.exit_status().0, Some(0));
}

#[test]
fn the_end_of_stdin_ends_the_program_also_in_the_middle_of_a_frame() {
    for last_bytes in [&b""[..], b"\0\0", b"\0\0\0\x09D\0\0\0\x01"] {
        let mut port = Port::spawn(&[]);
        port.open(1);
        port.send(last_bytes);
        port.end_input();
        let (status, took) = port.exit_status();
        assert_eq!(status, Some(0));
        assert!(took < AT_ONCE, "{took:?}");
    }
}

#[test]
fn a_parent_that_closes_stdout_ends_the_program() {
    let mut program = Program::spawn(&["port"]);
    let mut stdin = program.take_stdin();
    drop(program.take_stdout());
    std::io::Write::write_all(&mut stdin, b"\0\0\0\x0cQ\0\0\0\x01stats\0\0").expect("it reads");
    let (status, took) = program.wait();
    assert_eq!(status.code(), Some(0));
    assert!(took < AT_ONCE, "{took:?}");
    drop(stdin);
}
