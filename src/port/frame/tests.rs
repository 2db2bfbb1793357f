use proptest::{collection::vec, prelude::*};

use super::*;

mod fuzz;

fn encoded(kind: Kind, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame { kind, id, payload }.encode(&mut bytes).expect("short enough");
    bytes
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(KINDS.map(|row| row.0).to_vec())
}

#[test]
fn the_table_of_kinds_is_in_the_order_of_the_enum_and_letters_are_unique() {
    for (index, (kind, letter, _)) in KINDS.iter().enumerate() {
        assert_eq!(*kind as usize, index);
        assert_eq!(kind.letter(), *letter);
        assert_eq!(Kind::from_letter(*letter), Some(*kind));
    }
}

#[test]
fn a_claimed_length_is_refused_before_anything_that_follows_it_has_arrived() {
    assert_eq!(parse(&[0xff; 4]), Err(Malformed::TooLong { length: u32::MAX }));
    assert_eq!(parse(&[0, 0x10, 0, 1]), Err(Malformed::TooLong { length: 0x10_0001 }));
    assert_eq!(parse(&[0, 0, 0, 4]), Err(Malformed::TooShort { length: 4 }));
    assert_eq!(parse(&[0, 0x10, 0, 0, b'Z']), Err(Malformed::UnknownKind { letter: b'Z' }));
}

#[test]
fn a_frame_of_exactly_one_mebibyte_passes_and_one_byte_more_is_not_encoded() {
    let payload = vec![7; MAX_PAYLOAD + 1];
    let bytes = encoded(Kind::Data, 1, &payload[1..]);
    let Ok(Parsed::Frame { frame, consumed }) = parse(&bytes) else { panic!("not parsed") };
    assert_eq!((frame.payload.len(), consumed), (MAX_PAYLOAD, MAX_FRAME + LENGTH));
    let mut out = vec![1, 2, 3];
    let refused = Frame { kind: Kind::Data, id: 1, payload: &payload }.encode(&mut out);
    assert_eq!(refused, Err(Malformed::TooLong { length: 0x10_0001 }));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn options_that_are_cut_short_or_go_on_or_are_not_utf8_are_refused() {
    assert_eq!(Options::parse(b""), Err(MalformedOptions::Unterminated));
    assert_eq!(Options::parse(b"mode"), Err(MalformedOptions::Unterminated));
    assert_eq!(Options::parse(b"mode\0"), Err(MalformedOptions::Unterminated));
    assert_eq!(Options::parse(b"mode\0shared\0"), Err(MalformedOptions::Unterminated));
    assert_eq!(Options::parse(b"\0mode\0"), Err(MalformedOptions::Trailing(5)));
    assert_eq!(Options::parse(b"mode\0\xff\0\0"), Err(MalformedOptions::NotUtf8));
}

#[test]
fn an_option_cannot_break_out_of_its_value_or_fill_a_frame() {
    let options = Options::new().with("a", "x\0b\0y").with("long", "é".repeat(options::MAX_VALUE));
    let parsed = Options::parse(&options.to_bytes()).expect("well formed");
    assert_eq!(parsed.get("a"), Some("x\u{fffd}b\u{fffd}y"));
    assert_eq!(parsed.get("long").map(str::len), Some(options::MAX_VALUE));
    assert_eq!(parsed.get("b"), None);
}

#[test]
fn the_last_of_several_values_counts() {
    assert_eq!(Options::new().with("k", 1).with("k", 2).get("k"), Some("2"));
}

/// One line of the golden file: `frame NAME KIND ID PAYLOAD FRAME`, and so on as its head says.
#[test]
fn the_golden_file_reads_and_writes_alike() {
    let golden = include_str!("../../../tests/golden/frames.txt");
    let mut kinds = Vec::new();
    for line in golden.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.splitn(6, ' ').collect();
        match fields[..] {
            ["frame", name, kind, id, payload, bytes] => {
                let (payload, bytes) = (unhex(payload), unhex(bytes));
                let kind = Kind::from_letter(kind.as_bytes()[0]).expect(name);
                let id = id.parse().expect(name);
                let frame = Frame { kind, id, payload: &payload };
                assert_eq!(parse(&bytes), Ok(Parsed::Frame { frame, consumed: bytes.len() }), "{name}");
                assert_eq!(encoded(kind, id, &payload), bytes, "{name}");
                kinds.push(kind);
            }
            ["incomplete", name, missing, bytes] => {
                let missing = missing.parse().expect(name);
                assert_eq!(parse(&unhex(bytes)), Ok(Parsed::NeedMore(missing)), "{name}");
            }
            ["malformed", name, bytes] => assert!(parse(&unhex(bytes)).is_err(), "{name}"),
            ["options", name, bytes, ..] => {
                let bytes = unhex(bytes);
                let pairs = line.splitn(4, ' ').nth(3).unwrap_or_default();
                let options = pairs.split('|').filter_map(|pair| pair.split_once('='));
                let options = options.fold(Options::new(), |options, (key, value)| options.with(key, value));
                assert_eq!(Options::parse(&bytes).as_ref(), Ok(&options), "{name}");
                assert_eq!(options.to_bytes(), bytes, "{name}");
            }
            _ => panic!("no such line: {line}"),
        }
    }
    for (kind, ..) in KINDS {
        assert!(kinds.contains(&kind), "the golden file has no frame of kind {kind:?}");
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits = if hex == "-" { "" } else { hex };
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    (0..digits.len()).step_by(2).map(byte).collect()
}

proptest! {
    #[test]
    fn a_frame_survives_being_cut_anywhere(kind in any_kind(), id: u32, payload in vec(any::<u8>(), 0..300)) {
        let bytes = encoded(kind, id, &payload);
        for cut in 0..bytes.len() {
            let Ok(Parsed::NeedMore(missing)) = parse(&bytes[..cut]) else { panic!("at {cut}") };
            prop_assert!(missing >= 1 && cut + missing <= bytes.len());
        }
        let frame = Frame { kind, id, payload: &payload };
        prop_assert_eq!(parse(&bytes), Ok(Parsed::Frame { frame, consumed: bytes.len() }));
    }

    #[test]
    fn what_follows_a_frame_does_not_matter(id: u32, payload in vec(any::<u8>(), 0..50), rest in vec(any::<u8>(), 0..50)) {
        let mut bytes = encoded(Kind::Data, id, &payload);
        let consumed = bytes.len();
        bytes.extend(rest);
        let frame = Frame { kind: Kind::Data, id, payload: &payload };
        prop_assert_eq!(parse(&bytes), Ok(Parsed::Frame { frame, consumed }));
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(Parsed::Frame { frame, consumed }) = parse(&bytes) {
            prop_assert_eq!(encoded(frame.kind, frame.id, frame.payload), &bytes[..consumed]);
        }
    }

    #[test]
    fn options_survive_the_trip(pairs in vec(("[^\0]{1,8}", "[^\0]{0,8}"), 0..6)) {
        let options = pairs.iter().fold(Options::new(), |options, (key, value)| options.with(key, value));
        prop_assert_eq!(Options::parse(&options.to_bytes()), Ok(options));
    }

    #[test]
    fn any_bytes_are_options_or_are_refused(bytes in vec(prop_oneof![Just(0_u8), any::<u8>()], 0..32)) {
        if let Ok(options) = Options::parse(&bytes) {
            prop_assert_eq!(options.to_bytes(), bytes);
        }
    }
}
