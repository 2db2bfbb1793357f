//! Conversions between character encodings.

mod support;

use std::fs;

use postgres::NoTls;
use support::{
    server::{Server, rows, sqlstate, text},
    session::errors,
    wire,
};

#[test]
fn texts_are_converted_to_other_encodings_and_back() {
    let server = Server::start();
    let mut client = server.connect();
    for (encoding, text, bytes) in [
        ("LATIN1", "grüße", "\\x6772fcdf65"),
        ("LATIN2", "žluťoučký", "\\xbe6c75bb6f75e86bfd"),
        ("WIN1252", "„€“", "\\x848093"),
        ("WIN1251", "Привет", "\\xcff0e8e2e5f2"),
        ("KOI8R", "Привет", "\\xf0d2c9d7c5d4"),
        ("EUC_JP", "日本語", "\\xc6fccbdcb8ec"),
        ("SJIS", "日本語", "\\x93fa967b8cea"),
        ("EUC_JIS_2004", "か゚", "\\xa4f7"),
        ("GBK", "中文", "\\xd6d0cec4"),
        ("BIG5", "中文", "\\xa4a4a4e5"),
        ("EUC_KR", "한국어", "\\xc7d1b1b9beee"),
        ("GB18030", "😀€", "\\x9439fc36a2e3"),
    ] {
        let there = format!("select convert_to('{text}', '{encoding}')");
        assert_eq!(rows(&mut client, &there), [bytes], "{encoding}");
        let back = format!("select convert_from('{bytes}', '{encoding}')");
        assert_eq!(rows(&mut client, &back), [text], "{encoding}");
    }
    assert_eq!(rows(&mut client, "select convert('\\xe4be', 'LATIN2', 'WIN1250')"), ["\\xe49e"]);
    assert_eq!(rows(&mut client, "select convert('\\xf0d2', 'KOI8R', 'WIN866')"), ["\\x8fe0"]);
}

#[test]
fn every_conversion_answers_as_postgresql_itself_does() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let server = Server::start();
    let output = server.psql(&[&format!("--file={golden}/encodings.sql")]);
    let expected = fs::read_to_string(format!("{golden}/encodings.txt")).expect("a file");
    for (line, expected) in text(&output).lines().zip(expected.lines()) {
        assert_eq!(line, expected);
    }
    assert_eq!(text(&output).lines().count(), expected.lines().count());
}

#[test]
fn what_has_no_equivalent_and_what_is_no_character_are_errors_that_show_the_bytes() {
    let server = Server::start();
    let mut client = server.connect();
    for (sql, sqlstate, message) in [
        (
            "select convert_to('a€', 'LATIN1')",
            "22P05",
            "character with byte sequence 0xe2 0x82 0xac in encoding \"UTF8\" has no equivalent in encoding \"LATIN1\"",
        ),
        (
            "select convert_from('\\x81', 'WIN1252')",
            "22P05",
            "character with byte sequence 0x81 in encoding \"WIN1252\" has no equivalent in encoding \"UTF8\"",
        ),
        ("select convert_from('\\x41e4', 'EUC_JP')", "22021", "invalid byte sequence for encoding \"EUC_JP\": 0xe4"),
        ("select convert_from('\\x00', 'LATIN1')", "22021", "invalid byte sequence for encoding \"LATIN1\": 0x00"),
        ("select convert_from('\\xe4', 'UTF8')", "22021", "invalid byte sequence for encoding \"UTF8\": 0xe4"),
        (
            "select convert('\\x8e', 'WIN1251', 'KOI8R')",
            "22P05",
            "character with byte sequence 0x8e in encoding \"WIN1251\" has no equivalent in encoding \"KOI8R\"",
        ),
    ] {
        let error = client.simple_query(sql).expect_err(sql);
        let error = error.as_db_error().expect("an error of the server");
        assert_eq!((error.code().code(), error.message()), (sqlstate, message), "{sql}");
    }
    assert_eq!(rows(&mut client, "select 'alive'"), ["alive"]);
}

#[test]
fn a_text_of_a_megabyte_is_converted_whole() {
    let server = Server::start();
    let mut client = server.connect();
    for (encoding, part) in [("LATIN2", "ž plain "), ("SJIS", "日本語 plain "), ("GB18030", "😀 plain ")] {
        let sql = format!(
            "with t as (select repeat('{part}', 1000000 / octet_length('{part}')) as whole)
             select octet_length(whole) > 999900, convert_from(convert_to(whole, '{encoding}'), '{encoding}') = whole from t"
        );
        assert_eq!(rows(&mut client, &sql), ["t|t"], "{encoding}");
    }
}

#[test]
fn copy_reads_files_in_other_encodings_whatever_lies_on_the_border_of_its_buffer() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create table t (line text)").expect("a table");
    // Two bytes a character at odd and even offsets, in many times 64 KiB.
    let line = |number: usize| [&b"x".repeat(number % 3)[..], &b"\x93\xfa\x96\x7b".repeat(50), b"\n"].concat();
    let mut writer = client.copy_in("copy t from stdin (encoding 'SJIS')").expect("it starts");
    for number in 0..3000 {
        std::io::Write::write_all(&mut writer, &line(number)).expect("it takes the line");
    }
    assert_eq!(writer.finish().expect("it ends"), 3000);
    let expected = "select count(*) from t where line ~ '^x?x?(日本){50}$'";
    assert_eq!(rows(&mut client, expected), ["3000"]);
    let mut writer = client.copy_in("copy t from stdin (encoding 'SJIS')").expect("it starts");
    std::io::Write::write_all(&mut writer, b"ok\n\x93").expect("it takes the line");
    assert_eq!(sqlstate(writer.finish()), "22021");
}

#[test]
fn a_client_talks_in_an_encoding_of_its_own_and_may_change_it() {
    let server = Server::start();
    let mut session = server.session(&[("client_encoding", "EUC_JP")]);
    session.send(&wire::message(b'Q', b"select '\xc6\xfc', length('\xc6\xfc\xcb\xdc')\0"));
    let messages = session.until_ready();
    assert_eq!(messages[1].body[6..8], *b"\xc6\xfc");
    assert_eq!(messages[1].body[12..], *b"2");
    session.values("set client_encoding = 'KOI8R'");
    session.query("select chr(1055)");
    assert_eq!(session.until_ready()[1].body[6..], [0xf0]);
    session.query("select chr(8364)");
    assert_eq!(errors(&session.until_ready()), ["22P05"]);
    session.send(&wire::message(b'Q', b"select '\xe2\0"));
    assert_eq!(errors(&session.until_ready()), ["42601"], "the error message is in the client's encoding, too");
    assert_eq!(session.values("show client_encoding"), ["KOI8R"]);
}

#[test]
fn a_database_may_have_another_encoding() {
    let server = Server::start();
    let mut client = server.config().connect(NoTls).expect("a session");
    client
        .batch_execute("create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
        .expect("a database");
    let encoding = "select pg_encoding_to_char(encoding) from pg_database where datname = 'latin'";
    assert_eq!(rows(&mut client, encoding), ["LATIN1"]);
}
