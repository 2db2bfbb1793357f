//! A stream of frames, damaged.

use super::*;
use crate::fuzz::{Corpus, Input, fuzz};

/// The golden file's frames, options and incomplete frames.
fn corpus() -> Corpus {
    let golden = include_str!("../../../../tests/golden/frames.txt");
    let lines = golden.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Corpus::made(lines.filter_map(|line| {
        let mut fields = line.split(' ');
        let bytes = match fields.next()? {
            "frame" => fields.nth(4),
            "incomplete" => fields.nth(2),
            _ => fields.nth(1),
        };
        Some(unhex(bytes?))
    }))
}

/// The frames that `bytes` begin with, by kind, id and payload, and why there are no more: an error, or how many bytes
/// are missing.
fn frames(mut bytes: &[u8]) -> (Vec<(Kind, u32, Vec<u8>)>, Result<usize, Malformed>) {
    let mut frames = Vec::new();
    loop {
        match parse(bytes) {
            Ok(Parsed::Frame { frame, consumed }) => {
                frames.push((frame.kind, frame.id, frame.payload.to_vec()));
                bytes = &bytes[consumed..];
            }
            Ok(Parsed::NeedMore(missing)) => return (frames, Ok(missing)),
            Err(error) => return (frames, Err(error)),
        }
    }
}

/// Frames do not depend on how their bytes arrive, each is encoded as it was read, and what is waited for has a limit.
fn check(input: &Input) {
    let (whole, end) = frames(&input.bytes);
    let mut encoded = Vec::new();
    for (kind, id, payload) in &whole {
        Frame { kind: *kind, id: *id, payload }.encode(&mut encoded).expect("it was read");
        if let Ok(options) = Options::parse(payload) {
            assert_eq!(options.to_bytes(), *payload);
        }
    }
    assert!(input.bytes.starts_with(&encoded));
    let rest = input.bytes.len() - encoded.len();
    if let Ok(missing) = end {
        assert!(missing > 0 && rest + missing <= LENGTH + MAX_FRAME, "{missing}");
        // No more is asked for than the frame has.
        let mut longer = input.bytes[encoded.len()..].to_vec();
        longer.resize(rest + missing - 1, 0);
        assert!(matches!(parse(&longer), Ok(Parsed::NeedMore(_)) | Err(_)));
    }
    // As `read_frames` does.
    let (mut unread, mut arrived, mut error) = (Vec::new(), Vec::new(), None);
    for piece in input.pieces() {
        unread.extend_from_slice(piece);
        let (more, end) = frames(&unread);
        let length: usize = more.iter().map(|(_, _, payload)| LENGTH + HEAD + payload.len()).sum();
        unread.drain(..length);
        arrived.extend(more);
        error = end.err();
        if error.is_some() {
            break;
        }
    }
    assert_eq!((arrived, error), (whole, end.err()));
}

#[test]
fn a_damaged_stream_of_frames_is_read_alike_however_it_arrives() {
    fuzz!(corpus(), check);
}
