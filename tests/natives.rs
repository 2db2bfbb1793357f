//! Functions that the host computes in place of the guest. Longer numbers, fewer bytes, and patterns with a backslash are
//! left to the guest's own code, so that both can be compared.

mod support;

use support::server::{Server, rows, sqlstate};

/// More digits than the host parses.
const PADDING: usize = 80;

/// xorshift64: the same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Texts of numbers without a sign.
fn texts(numbers: &mut Numbers) -> Vec<String> {
    let mut texts: Vec<String> =
        ["0", "0.0", ".5", "5.", "1e5", "1E+5", "1e-5", "00012", "0e999", "1.e2", "9007199254740993"]
            .map(str::to_owned)
            .into();
    // The largest and the smallest normal numbers of both types.
    texts.extend(
        ["1.7976931348623157e308", "2.2250738585072014e-308", "3.4028235e38", "1.17549435e-38"].map(str::to_owned),
    );
    for _ in 0..4000 {
        let (bits, length) = (numbers.next(), numbers.next() % 20);
        let number = f64::from_bits(bits & !(1 << 63));
        if number.is_normal() {
            texts.push(format!("{number:e}"));
            // Between two numbers, or not far from there.
            texts.push(format!("{number:.*e}", usize::try_from(length).expect("small")));
        }
        let narrow = f32::from_bits(u32::try_from(bits >> 33).expect("31 bits"));
        if narrow.is_normal() {
            texts.push(format!("{narrow:e}"));
            texts.push(format!("{:.12e}", f64::from(narrow) * (1.0 + 2_f64.powi(-24))));
        }
        texts.push(format!("{}.{:0width$}", bits >> 44, bits & 0xffff_ffff, width = 10));
    }
    texts
}

#[test]
fn numbers_are_parsed_as_the_guest_parses_them() {
    let server = Server::start();
    let mut client = server.connect();
    let (mut numbers, mut compared) = (Numbers(0x9e37_79b9_7f4a_7c15), 0);
    let texts = texts(&mut numbers);
    for (ty, send, range) in
        [("float8", "float8send", 0.0..=f64::MAX), ("float4", "float4send", 1.175_494_3e-38..=3.402_823_5e38)]
    {
        // PostgreSQL refuses what is out of range; that is for the next test.
        let value = |text: &String| text.parse::<f64>().expect("a number");
        let in_range = |text: &&String| value(text) == 0.0 || range.contains(&value(text));
        let texts: Vec<&String> = texts.iter().filter(in_range).collect();
        for texts in texts.chunks(1000) {
            for sign in ["", "-", "+"] {
                let row = |text: &&String| format!("('{sign}{text}', '{sign}{}{text}')", "0".repeat(PADDING));
                let values: Vec<String> = texts.iter().map(row).collect();
                let sql = format!(
                    "SELECT string_agg(host, ' ') FROM (VALUES {}) v(host, guest) \
                     WHERE {send}(host::{ty}) <> {send}(guest::{ty})",
                    values.join(", ")
                );
                assert_eq!(rows(&mut client, &sql), ["NULL"], "{ty}");
                compared += texts.len();
            }
        }
    }
    assert!(compared > 30_000, "{compared}");
}

#[test]
fn what_is_no_plain_number_or_out_of_range_is_seen_as_before() {
    let server = Server::start();
    let mut client = server.connect();
    for (text, ty, expected) in [
        ("NaN", "float8", "NaN"),
        ("-Infinity", "float8", "-Infinity"),
        ("inf", "float4", "Infinity"),
        ("  12.5  ", "float8", "12.5"),
        ("0x1p3", "float8", "8"),
        ("0X1F", "float8", "31"),
        ("-0", "float8", "-0"),
        ("4.9e-324", "float8", "5e-324"),
        ("1e-45", "float4", "1e-45"),
        ("1e400", "float8", "22003"),
        ("1e-400", "float8", "22003"),
        ("1e39", "float4", "22003"),
        ("1e-60", "float4", "22003"),
        ("12abc", "float8", "22P02"),
        ("1e", "float8", "22P02"),
        ("1e+", "float8", "22P02"),
        (".", "float8", "22P02"),
        ("-", "float8", "22P02"),
        ("", "float8", "22P02"),
        ("1.5.2", "float8", "22P02"),
        ("1_000", "float8", "22P02"),
    ] {
        let sql = format!("SELECT '{text}'::{ty}");
        if ["22003", "22P02"].contains(&expected) {
            assert_eq!(sqlstate(client.simple_query(&sql)), expected, "{text} {ty}");
        } else {
            assert_eq!(rows(&mut client, &sql), [expected], "{text} {ty}");
        }
    }
    // Where a number ends: types with several numbers parse on from there.
    assert_eq!(rows(&mut client, "SELECT '(1.5,-2e3)'::point"), ["(1.5,-2000)"]);
    assert_eq!(rows(&mut client, "SELECT '<(1,2),0.25>'::circle"), ["<(1,2),0.25>"]);
}

#[test]
fn texts_are_searched_as_the_guest_searches_them() {
    let server = Server::start();
    let mut client = server.connect();
    let mut numbers = Numbers(0xd1b5_4a32_d192_ed03);
    // Few letters, so that texts often have a part, or the beginning of one, several times.
    let mut word = |most: u64| -> String {
        let length = numbers.next() % (most + 1);
        (0..length).map(|_| ['a', 'b', 'ä', '€'][usize::try_from(numbers.next() % 4).expect("small")]).collect()
    };
    let mut values = Vec::new();
    for _ in 0..3000 {
        let parts: Vec<String> = (0..2).map(|_| word(2)).collect();
        let pattern = format!("%{}", parts.join("%"));
        // The guest's own code sees characters behind a backslash as these characters.
        let escaped: String =
            pattern.chars().flat_map(|letter| (letter != '%').then_some('\\').into_iter().chain([letter])).collect();
        values.push(format!("('{}', '{pattern}', '{escaped}')", word(12)));
    }
    let compare = format!(
        "SELECT count(*) FILTER (WHERE (t LIKE p) <> (t LIKE e)), count(*) FILTER (WHERE t LIKE p) BETWEEN 300 AND 2700 \
         FROM (VALUES {}) v(t, p, e) WHERE e LIKE '%\\\\%'",
        values.join(", ")
    );
    assert_eq!(rows(&mut client, &compare), ["0|t"]);
    for (condition, expected) in [
        ("'' LIKE '%'", "t"),
        ("'abc' LIKE '%%'", "t"),
        ("'abc' LIKE '%c'", "t"),
        ("'abc' LIKE '%b'", "f"),
        ("'aab' LIKE '%a%b'", "t"),
        ("'ab' LIKE '%ab%b'", "f"),
        ("'abc' LIKE '%_c'", "t"),
        ("'a%c' LIKE '%!%%' ESCAPE '!'", "t"),
        ("'ABC' ILIKE '%bc'", "t"),
        ("'abc'::bytea LIKE '%bc'::bytea", "t"),
        ("repeat('x', 3000000) || 'end' LIKE '%xe%d'", "t"),
        // A collation that does not compare bytes.
        ("U&'xa\\0308y' LIKE '%ä%'", "f"),
        ("U&'xa\\0308y' LIKE '%ä%' COLLATE same", "t"),
    ] {
        let sql = "CREATE COLLATION IF NOT EXISTS same (provider = icu, locale = 'und', deterministic = false)";
        client.batch_execute(sql).expect("a collation");
        assert_eq!(rows(&mut client, &format!("SELECT {condition}")), [expected], "{condition}");
    }
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[test]
fn checksums_of_any_length_are_right() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of the algorithm");
    let server = Server::start();
    let mut client = server.connect();
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    // The host begins at 256 bytes.
    for length in [0, 1, 7, 100, 254, 255, 256, 257, 300, 1000, 4095, 8192, 100_003] {
        let bytes: Vec<u8> = (0..length).map(|_| numbers.next().to_le_bytes()[0]).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let values = rows(&mut client, &format!("SELECT crc32c('\\x{hex}'::bytea)"));
        assert_eq!(values, [crc32c(&bytes).to_string()], "{length} bytes");
    }
}
