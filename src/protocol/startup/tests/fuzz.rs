//! The packets before a session, damaged.

use super::*;
use crate::fuzz::{Corpus, Input, fuzz};

/// What a client's packets lead to, if as many bytes are read as each step says.
fn negotiate(mut arrived: &[u8]) -> (Vec<Step>, usize, Option<StartupError>) {
    let (mut negotiation, mut steps, mut packet, mut taken) = (Negotiation::default(), Vec::new(), Vec::new(), 0);
    loop {
        match negotiation.accept(&packet) {
            Ok(Step::NeedMore(missing)) => {
                assert!((1..=LENGTH + MAX_STARTUP_PACKET_LENGTH).contains(&missing), "{missing}");
                let Some((more, rest)) = arrived.split_at_checked(missing) else {
                    packet.extend_from_slice(arrived);
                    return (steps, taken + arrived.len(), negotiation.left_after(&packet));
                };
                packet.extend_from_slice(more);
                (arrived, taken) = (rest, taken + missing);
                assert!(packet.len() <= LENGTH + MAX_STARTUP_PACKET_LENGTH);
            }
            Ok(step @ (Step::Encrypt | Step::RefuseEncryption)) => {
                steps.push(step);
                packet.clear();
                // Each kind of encryption is refused once.
                assert!(steps.len() <= 2);
            }
            Ok(step) => {
                steps.push(step);
                return (steps, taken, None);
            }
            Err(error) => return (steps, taken, Some(error)),
        }
    }
}

/// A startup message is what its packet says, and so are the settings in it.
fn check_message(message: &StartupMessage) {
    assert!(!message.user.is_empty() && !message.database.is_empty());
    let named = [
        (&b"user"[..], Some(&message.user)),
        (b"database", Some(&message.database)),
        (b"options", message.options.as_ref()),
        (b"replication", message.replication.as_ref()),
    ];
    let named = named.into_iter().filter_map(|(name, value)| Some((name, &value?[..])));
    let others = message.parameters.iter().map(|(name, value)| (&name[..], &value[..]));
    let mut body = Vec::new();
    for (name, value) in named.chain(others) {
        for string in [name, value] {
            body.extend_from_slice(string);
            body.push(0);
        }
    }
    body.push(0);
    let (major, minor) = message.protocol;
    // The name of the user may have become the name of the database as well.
    if body.len() + CODE <= MAX_STARTUP_PACKET_LENGTH {
        let packet = packet(version(major.into(), minor.into()), &body);
        assert_eq!(started(&packet), *message);
        if body.len() + CODE + 20 <= MAX_STARTUP_PACKET_LENGTH {
            let with = started(&StartupMessage::with_parameter(&packet, "pglite.cluster", "c"));
            assert_eq!(with.setting("pglite.cluster").as_deref(), Some(&b"c"[..]));
            assert_eq!(with.parameters[..message.parameters.len()], message.parameters);
        }
    }
    for (name, value) in &message.parameters {
        let last = |(other, _): &&(Vec<u8>, Vec<u8>)| other.eq_ignore_ascii_case(name);
        if let Ok(text) = std::str::from_utf8(name) {
            let expected = &message.parameters.iter().rfind(last).expect("it is there").1;
            assert_eq!(message.setting(text).as_ref(), Some(expected), "{value:?}");
        }
    }
    // On the command line in `options`.
    let setting = message.setting("search_path");
    let length = message.options.as_ref().map_or(0, Vec::len)
        + message.parameters.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    assert!(setting.is_none_or(|value| value.len() <= length));
    let _ = message.asks_for_replication();
}

/// Packets do not depend on what follows them, a refusal has an SQLSTATE, and a session has a user.
fn check(input: &Input) {
    let (steps, taken, error) = negotiate(&input.bytes);
    let (same, ..) = negotiate(&input.bytes[..taken]);
    assert_eq!(same, steps);
    if let Some(error) = error {
        let response = error.to_response();
        assert!(response.code.len() == 5 && response.code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(!response.message.is_empty() && response.severity != Severity::Error);
    }
    match steps.last() {
        Some(Step::Start(message)) => check_message(message),
        Some(Step::Cancel(request)) => assert!((1..=MAX_CANCEL_KEY).contains(&request.secret_key.len())),
        _ => {}
    }
    // A packet that has arrived whole is the same as one that arrives in pieces.
    let mut arrived = Vec::new();
    let whole = first(&input.bytes);
    for piece in input.pieces() {
        arrived.extend_from_slice(piece);
        match first(&arrived) {
            Ok(Step::NeedMore(_)) => {}
            result => return assert_eq!(result, whole),
        }
    }
    assert!(matches!(whole, Ok(Step::NeedMore(_))), "{whole:?}");
}

#[test]
fn damaged_packets_before_a_session_are_read_alike_however_they_arrive() {
    fuzz!(Corpus::kept("startup"), check);
}
