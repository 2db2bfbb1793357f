//! Finds the statements, the commands of `psql` and the rows of `COPY ... FROM stdin` in an SQL file, as `psql` does
//! (`src/fe_utils/psqlscan.l`): without understanding SQL, but for its quotation marks, comments, parentheses, and the
//! bodies of functions between `BEGIN ATOMIC` and `END`.

use std::io::{self, BufRead, Read};

/// How many bytes of rows are passed on at once, or a little more.
const PIECE: usize = 1 << 16;
/// The line behind the rows of a `COPY`.
const END_OF_ROWS: &[u8] = br"\.";
/// How many words at the beginning of a statement are looked at.
const FIRST_WORDS: usize = 4;

/// A part of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A statement without the semicolon behind it. If it `copies_in`, its rows follow.
    Statement { sql: Vec<u8>, copies_in: bool },
    /// A command of `psql` with its backslash, up to the end of the line.
    Command(String),
}

/// What the next byte is in.
#[derive(Debug, Default, PartialEq, Eq)]
enum Inside {
    #[default]
    Nothing,
    /// A string; in one with `escapes` a backslash takes the next byte with it.
    String { escapes: bool },
    /// A quoted identifier.
    Identifier,
    /// A string between two times this tag, dollars included.
    Dollars(Vec<u8>),
    /// So many comments in each other.
    Comment(u32),
}

/// Reads a file piece by piece.
pub(super) struct Scanner<R> {
    input: R,
    /// The line that is being scanned, its number, and how far it has been scanned.
    line: Vec<u8>,
    number: u64,
    at: usize,
    statement: Statement,
    /// Whether the next row is at the beginning of a line, and whether there are no more.
    begins_row: bool,
    rows_have_ended: bool,
}

/// The statement so far.
#[derive(Debug, Default)]
struct Statement {
    text: Vec<u8>,
    /// The line that it begins in.
    begins: u64,
    inside: Inside,
    parentheses: u32,
    /// Bodies and `CASE`s that have begun and not ended.
    bodies: u32,
    first_words: Vec<Vec<u8>>,
    last_is_from: bool,
    copies_in: bool,
}

impl<R: BufRead> Scanner<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
            at: 0,
            statement: Statement::default(),
            begins_row: true,
            rows_have_ended: false,
        }
    }

    /// The next piece and the line that it begins in; `None` at the end. What has no semicolon at the end of the file is
    /// a statement as well.
    ///
    /// # Errors
    /// Those of the input.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Piece)>> {
        loop {
            if self.at == self.line.len() {
                self.line.clear();
                self.at = 0;
                if self.input.read_until(b'\n', &mut self.line)? == 0 {
                    let rest = std::mem::take(&mut self.statement);
                    return Ok((!rest.text.trim_ascii().is_empty()).then(|| rest.end()));
                }
                self.number += 1;
            }
            while self.at < self.line.len() {
                let rest = &self.line[self.at..];
                if let (b'\\', Inside::Nothing) = (rest[0], &self.statement.inside) {
                    let command = String::from_utf8_lossy(rest.trim_ascii()).into_owned();
                    self.at = self.line.len();
                    self.statement = Statement::default();
                    return Ok(Some((self.number, Piece::Command(command))));
                }
                if self.statement.text.is_empty() {
                    self.statement.begins = self.number;
                }
                let (taken, is_end) = self.statement.take(rest);
                self.at += taken;
                if is_end {
                    return Ok(Some(std::mem::take(&mut self.statement).end()));
                }
            }
        }
    }

    /// The number of the line that was read last.
    pub(super) fn line(&self) -> u64 {
        self.number
    }

    /// The next rows of a `COPY`; `None` when they have ended.
    ///
    /// # Errors
    /// Those of the input; [`io::ErrorKind::UnexpectedEof`] when the input ends before the rows do.
    pub(super) fn rows(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut rows = Vec::new();
        while rows.len() < PIECE && !self.rows_have_ended {
            self.line.clear();
            let mut row = Read::take(&mut self.input, PIECE as u64);
            if row.read_until(b'\n', &mut self.line)? == 0 {
                self.at = 0;
                let reason = r"it was cut off within the rows of a COPY: the line \. behind them is missing";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
            let begins = self.begins_row;
            self.begins_row = self.line.ends_with(b"\n");
            self.number += u64::from(self.begins_row);
            if begins && self.line.trim_ascii_end() == END_OF_ROWS {
                self.rows_have_ended = true;
            } else {
                rows.extend_from_slice(&self.line);
            }
        }
        // What is behind the statement in its line is no row, and no statement.
        self.line.clear();
        self.at = 0;
        if rows.is_empty() {
            (self.begins_row, self.rows_have_ended) = (true, false);
            return Ok(None);
        }
        Ok(Some(rows))
    }
}

impl Statement {
    /// The piece, without the semicolon that is no part of it.
    fn end(self) -> (u64, Piece) {
        (self.begins, Piece::Statement { sql: self.text, copies_in: self.copies_in })
    }

    /// Takes the next bytes of `rest`, which has some; returns how many, and whether the statement ends with them.
    fn take(&mut self, rest: &[u8]) -> (usize, bool) {
        let (taken, inside) = match &mut self.inside {
            Inside::Nothing => return self.take_outside(rest),
            Inside::String { escapes } => {
                let end = rest.iter().position(|byte| *byte == b'\'' || (*escapes && *byte == b'\\'));
                match end {
                    None => (rest.len(), None),
                    Some(at) if rest[at] == b'\\' || rest.get(at + 1) == Some(&b'\'') => (at + 2, None),
                    Some(at) => (at + 1, Some(Inside::Nothing)),
                }
            }
            Inside::Identifier => match rest.iter().position(|byte| *byte == b'"') {
                None => (rest.len(), None),
                Some(at) => (at + 1, Some(Inside::Nothing)),
            },
            Inside::Dollars(tag) => match rest.windows(tag.len()).position(|bytes| bytes == tag) {
                None => (rest.len(), None),
                Some(at) => (at + tag.len(), Some(Inside::Nothing)),
            },
            Inside::Comment(depth) => match rest.windows(2).position(|bytes| bytes == b"*/" || bytes == b"/*") {
                None => (rest.len(), None),
                Some(at) if rest[at] == b'/' => (at + 2, Some(Inside::Comment(*depth + 1))),
                Some(at) if *depth > 1 => (at + 2, Some(Inside::Comment(*depth - 1))),
                Some(at) => (at + 2, Some(Inside::Nothing)),
            },
        };
        self.inside = inside.unwrap_or(std::mem::take(&mut self.inside));
        let taken = taken.min(rest.len());
        self.text.extend_from_slice(&rest[..taken]);
        (taken, false)
    }

    fn take_outside(&mut self, rest: &[u8]) -> (usize, bool) {
        let taken = match rest {
            [b';', ..] if self.parentheses == 0 && self.bodies == 0 => {
                // A semicolon alone is no statement.
                return (1, !self.text.is_empty());
            }
            [b'-', b'-', ..] => {
                if self.text.is_empty() {
                    return (rest.len(), false);
                }
                rest.len()
            }
            [b'/', b'*', ..] => {
                self.inside = Inside::Comment(1);
                2
            }
            [b'\'', ..] => {
                self.inside = Inside::String { escapes: self.ends_with_escape() };
                1
            }
            [b'"', ..] => {
                self.inside = Inside::Identifier;
                1
            }
            [b'$', ..] => self.take_dollar(rest),
            [b'(', ..] => {
                self.parentheses += 1;
                1
            }
            [b')', ..] => {
                self.parentheses = self.parentheses.saturating_sub(1);
                1
            }
            [first, ..] if is_in_word(*first) => {
                let len = rest.iter().position(|byte| !is_in_word(*byte)).unwrap_or(rest.len());
                self.note(&rest[..len].to_ascii_lowercase());
                len
            }
            [first, ..] if self.text.is_empty() && first.is_ascii_whitespace() => return (1, false),
            _ => 1,
        };
        self.text.extend_from_slice(&rest[..taken]);
        (taken, false)
    }

    /// Whether a quotation mark that follows begins a string with escapes.
    fn ends_with_escape(&self) -> bool {
        match &self.text[..] {
            [.., before, b'e' | b'E'] => !is_in_word(*before),
            [b'e' | b'E'] => true,
            _ => false,
        }
    }

    /// Takes a dollar, or the tag of a string that it begins.
    fn take_dollar(&mut self, rest: &[u8]) -> usize {
        let name = rest[1..].iter().position(|byte| !is_in_word(*byte) || *byte == b'$').unwrap_or(rest.len() - 1);
        let begins_with_digit = rest[1..].first().is_some_and(u8::is_ascii_digit);
        if rest.get(1 + name) != Some(&b'$') || begins_with_digit {
            return 1;
        }
        self.inside = Inside::Dollars(rest[..name + 2].to_vec());
        name + 2
    }

    /// Notes a word, in lower case.
    fn note(&mut self, word: &[u8]) {
        if self.first_words.len() < FIRST_WORDS {
            self.first_words.push(word.to_vec());
        }
        if self.parentheses > 0 {
            return;
        }
        match word {
            b"stdin" if self.last_is_from => self.copies_in = self.first_words[0] == b"copy",
            b"begin" if self.makes_routine() => self.bodies += 1,
            b"case" if self.bodies > 0 => self.bodies += 1,
            b"end" => self.bodies = self.bodies.saturating_sub(1),
            _ => {}
        }
        self.last_is_from = word == b"from";
    }

    /// Whether it makes a function or a procedure, whose body may have statements of its own.
    fn makes_routine(&self) -> bool {
        let words: Vec<&[u8]> = self.first_words.iter().map(Vec::as_slice).collect();
        matches!(
            words[..],
            [b"create", b"function" | b"procedure", ..] | [b"create", b"or", b"replace", b"function" | b"procedure"]
        )
    }
}

/// Whether a byte may be a part of a word. A dollar may, but not as the first one.
fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || !byte.is_ascii()
}

#[cfg(test)]
mod tests;
