use std::io::BufReader;

use super::*;
use crate::fuzz::{Corpus, Input, fuzz};

/// The statements of a file that has nothing else, with their lines.
fn statements(file: &str) -> Vec<(u64, String)> {
    let mut scanner = Scanner::new(file.as_bytes());
    let mut found = Vec::new();
    while let Some((line, piece)) = scanner.next().unwrap() {
        match piece {
            Piece::Statement { sql, copies_in: false } => found.push((line, String::from_utf8(sql).unwrap())),
            other => panic!("{other:?}"),
        }
    }
    found
}

fn texts(file: &str) -> Vec<String> {
    statements(file).into_iter().map(|(_, sql)| sql).collect()
}

#[test]
fn statements_end_at_semicolons_and_begin_where_their_text_does() {
    let file = "-- first\n\nselect 1;\n  select\n  2; select 3 -- a; b\n;\n;;\nselect 4";
    let expected = [(3, "select 1"), (4, "select\n  2"), (5, "select 3 -- a; b\n"), (8, "select 4")];
    assert_eq!(statements(file), expected.map(|(line, sql)| (line, sql.to_owned())));
    assert_eq!(statements(" \n-- nothing\n"), []);
}

#[test]
fn a_semicolon_in_quotes_comments_and_parentheses_is_none() {
    for whole in [
        "select 'a;''b;'",
        "select 'two\nlines;'",
        r"select 'a\', E'b;\';c', e'\\', U&'d;'",
        "select \"a;\"\"b;\"",
        "select $$a;'b$$",
        "select $x$ $$ ; $ $x $x$",
        "select /* a; /* b; */ ; 'c */ 1",
        "create rule r as on insert to t do also (delete from a; delete from b)",
        "select 'it' 'goes;on'",
    ] {
        let file = format!("{whole};select 1;");
        assert_eq!(texts(&file), [whole, "select 1"]);
    }
}

#[test]
fn a_dollar_in_a_word_or_before_a_number_begins_no_string() {
    for whole in ["select a$b$c", "prepare p as select $1, $2", "select a$$", "select 1 $ 2", "select $1$"] {
        assert_eq!(texts(&format!("{whole};select 1")), [whole, "select 1"]);
    }
}

#[test]
fn the_body_of_a_function_ends_at_its_end() {
    let whole = "create or replace function f(a int) returns int begin atomic select case when a > 0 then 1 else 2 end; \
        select 3; end";
    assert_eq!(texts(&format!("{whole};select 1;")), [whole, "select 1"]);
    let whole = "CREATE PROCEDURE p() BEGIN ATOMIC delete from t; END";
    assert_eq!(texts(&format!("{whole};select 1;")), [whole, "select 1"]);
    assert_eq!(texts("begin;end;create table begin (a int);"), ["begin", "end", "create table begin (a int)"]);
}

#[test]
fn rows_follow_a_copy_and_end_at_their_mark() {
    let file = "COPY public.t (a, b) FROM stdin;\n1\t;'\n\\\\.\n\\.\n\nselect 1;\ncopy t from STDIN with (format text);\n\\.\nx";
    let mut scanner = Scanner::new(file.as_bytes());
    let copy = |sql: &str| Piece::Statement { sql: sql.into(), copies_in: true };
    assert_eq!(scanner.next().unwrap(), Some((1, copy("COPY public.t (a, b) FROM stdin"))));
    assert_eq!(scanner.rows().unwrap().as_deref(), Some(&b"1\t;'\n\\\\.\n"[..]));
    assert_eq!(scanner.rows().unwrap(), None);
    let select = Piece::Statement { sql: "select 1".into(), copies_in: false };
    assert_eq!(scanner.next().unwrap(), Some((6, select)));
    assert_eq!(scanner.next().unwrap(), Some((7, copy("copy t from STDIN with (format text)"))));
    assert_eq!(scanner.rows().unwrap(), None);
    let rest = Piece::Statement { sql: "x".into(), copies_in: false };
    assert_eq!(scanner.next().unwrap(), Some((9, rest)));
    assert_eq!(scanner.next().unwrap(), None);
}

#[test]
fn rows_without_their_mark_are_an_error_and_nothing_follows_them() {
    for file in ["copy t from stdin;", "copy t from stdin;\n1\n2", "copy t from stdin;\n1\n\\.\\."] {
        let mut scanner = Scanner::new(file.as_bytes());
        scanner.next().unwrap();
        assert_eq!(scanner.rows().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{file}");
        assert_eq!(scanner.next().unwrap(), None, "{file}");
    }
}

#[test]
fn rows_of_any_length_are_passed_on_in_pieces() {
    let (long, short) = ("x".repeat(3 * PIECE + 5), "y\n".repeat(PIECE));
    let file = format!("copy t from stdin;\n{long}\\.\n{short}\\.\nselect 1");
    let mut scanner = Scanner::new(file.as_bytes());
    scanner.next().unwrap();
    let mut rows = Vec::new();
    while let Some(piece) = scanner.rows().unwrap() {
        assert!(piece.len() <= 2 * PIECE);
        rows.extend(piece);
    }
    assert_eq!(rows, format!("{long}\\.\n{short}").as_bytes());
    assert_eq!(scanner.next().unwrap().unwrap().0, 4 + PIECE as u64);
}

#[test]
fn what_only_looks_like_a_copy_from_the_client_is_a_statement() {
    for whole in
        ["copy (select 1 from stdin) to stdout", "copy t to stdout", "copy t from '/stdin'", "select 1 from stdin"]
    {
        assert_eq!(texts(whole), [whole]);
    }
}

#[test]
fn a_command_goes_to_the_end_of_its_line() {
    let mut scanner = Scanner::new(&b"\\restrict abc\nselect '\\x';\n\\unrestrict abc\n"[..]);
    let command = |text: &str| Piece::Command(text.to_owned());
    assert_eq!(scanner.next().unwrap(), Some((1, command(r"\restrict abc"))));
    assert!(matches!(scanner.next().unwrap(), Some((2, Piece::Statement { .. }))));
    assert_eq!(scanner.next().unwrap(), Some((3, command(r"\unrestrict abc"))));
    assert_eq!(scanner.next().unwrap(), None);
}

/// All that is in a file: the line of each piece, its text without what was skipped, and its rows.
fn scan(input: impl BufRead) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let (mut scanner, mut found) = (Scanner::new(input), Vec::new());
    while let Some((line, piece)) = scanner.next().unwrap() {
        let (text, copies_in) = match piece {
            Piece::Statement { sql, copies_in } => (sql, copies_in),
            Piece::Command(command) => (command.into_bytes(), false),
        };
        let mut rows = Vec::new();
        // What is cut off within rows has an error in place of the last ones.
        while let Some(more) = if copies_in { scanner.rows().unwrap_or_default() } else { None } {
            assert!(!more.is_empty() && more.len() <= 2 * PIECE);
            rows.extend(more);
        }
        found.push((line, text, rows));
    }
    found
}

#[test]
fn a_damaged_file_has_the_same_pieces_whether_it_is_read_at_once_or_byte_by_byte() {
    let corpus = Corpus::made([
        include_bytes!("../../../tests/dump/everything.sql").to_vec(),
        b"copy t from stdin;\n1\t2\n\\.\nselect $a$ ; $a$, E'\\';', \"x;\"\"y\"; /* ; /* */ */ select 1;".to_vec(),
        b"\\restrict k\ncreate function f() returns int begin atomic select case 1 when 2 then 3 end; end;\n".to_vec(),
    ]);
    fuzz!(corpus, |input: &Input| {
        let found = scan(&input.bytes[..]);
        assert_eq!(scan(BufReader::with_capacity(1, &input.bytes[..])), found);
        let lines = input.bytes.split(|byte| *byte == b'\n').count() as u64;
        let mut rest = &input.bytes[..];
        for (line, text, rows) in found {
            assert!((1..=lines).contains(&line));
            // Statements and rows are in the file, in this order. A command may have other bytes for wrong ones.
            let is_kept =
                |part: &&Vec<u8>| !part.is_empty() && !part.windows(3).any(|bytes| bytes == "\u{fffd}".as_bytes());
            for part in [text, rows].iter().filter(is_kept) {
                let at = rest.windows(part.len()).position(|bytes| bytes == part.as_slice());
                rest = &rest[at.expect("it is in the file") + part.len()..];
            }
        }
    });
}
