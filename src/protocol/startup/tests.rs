use proptest::{collection::vec, prelude::*};

use super::*;
use crate::protocol::error_response::Severity;

mod fuzz;

/// A packet with its length word.
fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(LENGTH + CODE + rest.len()).expect("short");
    [&length.to_be_bytes(), &code.to_be_bytes(), rest].concat()
}

fn version(major: u32, minor: u32) -> u32 {
    (major << 16) + minor
}

/// The result of `packet` on a new connection.
fn first(packet: &[u8]) -> Result<Step, StartupError> {
    Negotiation::default().accept(packet)
}

fn started(packet: &[u8]) -> StartupMessage {
    match first(packet) {
        Ok(Step::Start(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_parameters_with_a_meaning_of_their_own_are_told_apart_and_the_others_keep_their_order() {
    let message = started(&packet(
        version(3, 0),
        b"b\x001\0user\0alice\0options\0-c x=y\0database\0shop\0a\x002\0replication\0true\0_pq_.z\x003\0\0",
    ));
    assert_eq!(message.protocol, (3, 0));
    assert_eq!((&message.user[..], &message.database[..]), (&b"alice"[..], &b"shop"[..]));
    assert_eq!((message.options, message.replication), (Some(b"-c x=y".to_vec()), Some(b"true".to_vec())));
    let others = [(&b"b"[..], &b"1"[..]), (b"a", b"2"), (b"_pq_.z", b"3")];
    assert_eq!(message.parameters, others.map(|(name, value)| (name.to_vec(), value.to_vec())));
}

#[test]
fn the_database_defaults_to_the_user() {
    assert_eq!(started(&packet(version(3, 2), b"user\0alice\0\0")).database, b"alice");
    assert_eq!(started(&packet(version(3, 2), b"user\0alice\0database\0\0\0")).database, b"alice");
}

#[test]
fn any_minor_version_of_3_starts_because_the_guest_negotiates_it() {
    for minor in [0, 2, 9999] {
        let message = started(&packet(version(3, minor), b"user\0u\0\0"));
        assert_eq!(u32::from(message.protocol.1), minor);
    }
}

#[test]
fn a_packet_without_a_user_is_refused_with_28000() {
    for parameters in [&b"\0"[..], b"user\0\0\0", b"database\0d\0\0"] {
        let error = first(&packet(version(3, 0), parameters)).expect_err("no user");
        assert_eq!(error, StartupError::NoUser);
        assert_eq!(error.to_response().code, "28000");
    }
}

#[test]
fn every_other_major_version_is_refused_by_its_number() {
    for (code, text) in [(version(2, 0), "2.0"), (version(4, 7), "4.7"), (0, "0.0")] {
        let error = first(&packet(code, b"user\0u\0\0")).expect_err("not supported").to_response();
        assert_eq!(error.code, "0A000");
        assert_eq!(error.message, format!("unsupported frontend protocol {text}: server supports 3.0 to 3.2"));
    }
}

#[test]
fn each_encryption_is_refused_once_in_either_order_and_a_second_request_is_an_unknown_protocol() {
    let (ssl, gssenc) = ((SSL_REQUEST, Step::Encrypt), (GSSENC_REQUEST, Step::RefuseEncryption));
    for [(one, step), (other, other_step)] in [[ssl.clone(), gssenc.clone()], [gssenc, ssl]] {
        let mut negotiation = Negotiation::default();
        assert_eq!(negotiation.accept(&packet(one, b"")), Ok(step));
        assert_eq!(negotiation.accept(&packet(other, b"")), Ok(other_step));
        let (major, minor) = (1234, u16::try_from(one & 0xffff).expect("sixteen bits"));
        let refused = Err(StartupError::UnsupportedProtocol { major, minor });
        assert_eq!(negotiation.accept(&packet(one, b"")), refused);
        assert!(matches!(negotiation.accept(&packet(version(3, 0), b"user\0u\0\0")), Ok(Step::Start(_))));
    }
}

#[test]
fn a_cancel_request_has_a_key_of_1_to_256_bytes() {
    for length in [1, 4, 32, 256] {
        let request = packet(CANCEL_REQUEST, &[&(-7_i32).to_be_bytes()[..], &vec![9; length]].concat());
        let expected = CancelRequest { process_id: -7, secret_key: vec![9; length] };
        assert_eq!(first(&request), Ok(Step::Cancel(expected)));
    }
    for (length, error) in [
        (0, StartupError::InvalidCancelLength),
        (3, StartupError::InvalidCancelLength),
        (4, StartupError::InvalidCancelKeyLength),
        (4 + 257, StartupError::InvalidCancelKeyLength),
    ] {
        let request = packet(CANCEL_REQUEST, &vec![9; length]);
        assert_eq!(first(&request), Err(error));
    }
}

#[test]
fn lengths_outside_the_limits_are_refused_after_four_bytes() {
    for length in [0, 4, 7, 10_005, u32::MAX] {
        assert_eq!(first(&length.to_be_bytes()), Err(StartupError::InvalidLength), "{length}");
    }
    assert_eq!(first(&8_u32.to_be_bytes()), Ok(Step::NeedMore(4)));
    assert_eq!(first(&10_004_u32.to_be_bytes()), Ok(Step::NeedMore(10_000)));
    assert_eq!(first(b"GET / HTTP/1.1\r\n\r\n"), Err(StartupError::InvalidLength));
}

#[test]
fn the_terminator_has_to_be_the_last_byte() {
    for parameters in [&b""[..], b"user\0u\0", b"user\0u", b"user\0", b"user\0u\0\0more", b"user\0u\0\0\0"] {
        assert_eq!(first(&packet(version(3, 0), parameters)), Err(StartupError::InvalidLayout), "{parameters:?}");
    }
}

#[test]
fn a_client_is_told_only_what_is_wrong_with_a_packet_that_is_one() {
    for error in [
        StartupError::InvalidLength,
        StartupError::Incomplete,
        StartupError::InvalidCancelLength,
        StartupError::InvalidCancelKeyLength,
    ] {
        assert_eq!((error.to_response().severity, error.to_response().code), (Severity::Log, "08P01"), "{error}");
    }
    let unsupported = StartupError::UnsupportedProtocol { major: 2, minor: 0 };
    for error in [StartupError::InvalidLayout, unsupported, StartupError::NoUser] {
        assert_eq!(error.to_response().severity, Severity::Fatal, "{error}");
    }
}

#[test]
fn a_client_may_leave_before_a_packet_but_not_in_the_middle_of_one() {
    let negotiation = Negotiation::default();
    assert_eq!(negotiation.left_after(b""), None);
    for begun in [&b"\0"[..], b"\0\0\0", b"\0\0\0\x09", b"\0\0\0\x09\0\x03"] {
        assert_eq!(negotiation.left_after(begun), Some(StartupError::Incomplete), "{begun:?}");
    }
    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        let mut negotiation = Negotiation::default();
        negotiation.accept(&packet(request, b"")).expect("a request");
        for (begun, meaning) in [(&b""[..], None), (b"\0\0", None), (b"\0\0\0\x09", Some(StartupError::Incomplete))] {
            assert_eq!(negotiation.left_after(begun), meaning, "{begun:?}");
        }
    }
}

#[test]
fn replication_is_asked_for_by_every_value_that_is_not_false() {
    let asks = |value: &str| {
        let parameters = format!("user\0u\0replication\0{value}\0\0");
        started(&packet(version(3, 0), parameters.as_bytes())).asks_for_replication()
    };
    for value in ["false", "no", "off", "0", "f", "FALSE", "No", "oFF", "F"] {
        assert!(!asks(value), "{value}");
    }
    for value in ["true", "yes", "on", "1", "database"] {
        assert!(asks(value), "{value}");
    }
    assert!(!started(&packet(version(3, 0), b"user\0u\0\0")).asks_for_replication());
}

#[test]
fn a_packet_of_the_hosts_own_has_the_parameters_that_it_was_made_of_and_no_other() {
    let message = started(&StartupMessage::packet(&[("user", "alice"), ("x", "1\0database\0evil")]));
    assert_eq!((message.protocol, &message.user[..], &message.database[..]), ((3, 0), &b"alice"[..], &b"alice"[..]));
    assert_eq!(message.parameters, [(b"x".to_vec(), b"1databaseevil".to_vec())]);
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let parameters = vec(("[a-z_.]{1,8}", "[^\0]{0,12}"), 0..6).prop_map(|pairs| {
        let mut bytes = b"user\0someone\0".to_vec();
        for (name, value) in pairs {
            bytes.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        bytes.push(0);
        bytes
    });
    let startup = (0..3_u32, parameters).prop_map(|(minor, bytes)| packet(version(3, minor), &bytes));
    let cancel = vec(any::<u8>(), 8..261).prop_map(|bytes| packet(CANCEL_REQUEST, &bytes));
    let encryption = prop::sample::select(vec![SSL_REQUEST, GSSENC_REQUEST]).prop_map(|code| packet(code, b""));
    prop_oneof![startup, cancel, encryption]
}

proptest! {
    #[test]
    fn a_packet_cut_anywhere_asks_for_no_more_than_the_rest_of_itself(packet in any_packet()) {
        for cut in 0..packet.len() {
            let step = first(&packet[..cut]);
            let Ok(Step::NeedMore(missing)) = step else { panic!("at {cut}: {step:?}") };
            prop_assert!(missing >= 1 && cut + missing <= packet.len());
        }
    }

    #[test]
    fn reading_as_many_bytes_as_asked_for_ends_exactly_at_the_end_of_the_packet(packet in any_packet()) {
        let (mut read, mut negotiation) = (0, Negotiation::default());
        while let Ok(Step::NeedMore(missing)) = negotiation.accept(&packet[..read]) {
            read += missing;
        }
        prop_assert_eq!(read, packet.len());
    }

    #[test]
    fn any_bytes_get_an_answer(
        bytes in vec(any::<u8>(), 0..64),
        parameters in vec(prop_oneof![Just(0_u8), any::<u8>()], 0..64),
    ) {
        let _ = (first(&bytes), first(&packet(version(3, 0), &parameters)));
    }

    #[test]
    fn the_last_user_and_the_last_database_count_and_a_database_without_a_name_is_the_user(
        pairs in vec((prop::sample::select(vec!["user", "database", "options", "x"]), "[ab]{0,2}"), 0..8),
    ) {
        let text: String = pairs.iter().map(|(name, value)| format!("{name}\0{value}\0")).collect();
        let last = |wanted: &str| pairs.iter().rev().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value);
        let (user, database) = (last("user"), last("database"));
        match first(&packet(version(3, 0), format!("{text}\0").as_bytes())) {
            Ok(Step::Start(message)) => {
                prop_assert!(!user.is_empty());
                prop_assert_eq!(message.user, user.as_bytes());
                prop_assert_eq!(message.database, if database.is_empty() { user } else { database }.as_bytes());
            }
            refused => prop_assert!(user.is_empty() && refused == Err(StartupError::NoUser), "{refused:?}"),
        }
    }
}

fn parsed(parameters: &[(&str, &str)]) -> StartupMessage {
    match Negotiation::default().accept(&StartupMessage::packet(parameters)) {
        Ok(Step::Start(startup)) => startup,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_setting_of_a_name_wins_and_parameters_come_after_the_command_line() {
    for (options, parameter, expected) in [
        ("-c a.b=1", None, Some("1")),
        ("-ca.b=1 --A.b=2", None, Some("2")),
        ("-c a.b=1", Some("2"), Some("2")),
        ("  -c\ta.b=x\\ y\\\\z\\", None, Some("x y\\z")),
        ("--a-b=1", None, None),
        ("-c", None, None),
        ("-c a.b", None, None),
        ("-e a.b=1", None, None),
        ("", None, None),
    ] {
        let parameter = parameter.map(|value| ("a.b", value));
        let parameters: Vec<_> = [("user", "u"), ("options", options)].into_iter().chain(parameter).collect();
        assert_eq!(parsed(&parameters).setting("A.B").as_deref(), expected.map(str::as_bytes), "{options:?}");
    }
    assert_eq!(parsed(&[("user", "u"), ("options", "--a-b=1")]).setting("a_b").as_deref(), Some(&b"1"[..]));
}

#[test]
fn a_parameter_that_is_added_to_a_packet_is_its_last_one() {
    let packet = StartupMessage::packet(&[("user", "u"), ("a.b", "1")]);
    let packet = StartupMessage::with_parameter(&packet, "a.b", "2");
    assert_eq!(packet, StartupMessage::packet(&[("user", "u"), ("a.b", "1"), ("a.b", "2")]));
}

#[test]
fn an_encrypted_connection_is_not_encrypted_again() {
    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        let mut negotiation = Negotiation::default();
        assert_eq!(negotiation.accept(&packet(SSL_REQUEST, b"")), Ok(Step::Encrypt));
        negotiation.encrypted();
        let refused = negotiation.accept(&packet(request, b""));
        assert!(matches!(refused, Err(StartupError::UnsupportedProtocol { major: 1234, .. })), "{refused:?}");
    }
}
