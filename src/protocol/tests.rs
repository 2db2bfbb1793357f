//! Streams of messages, and rules for clients, damaged.

use std::{io, time::Instant};

use super::{
    boundary::Followed,
    hba::{Requirement, translate},
    messages::{READY_FOR_QUERY, messages, result},
};
use crate::{
    client::{Client, Interest, Readiness, Waker},
    fuzz::{Corpus, Input, fuzz},
};

/// A client that takes everything, and has always sent something.
pub(super) struct Taking;

impl Client for Taking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn wait(&mut self, _interest: Interest, _deadline: Option<Instant>) -> Readiness {
        Readiness::Ready
    }

    fn waker(&self) -> Waker {
        Waker::new(|| {})
    }
}

/// What is known of a stream that was sent in these pieces: whether a message may begin behind it, and whether a
/// transaction is open.
fn followed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (bool, bool) {
    let mut client = Followed::new(Taking);
    for piece in pieces {
        client.write(piece).expect("it takes everything");
    }
    (client.is_between_messages(), client.transaction().is_open())
}

/// The state behind a stream does not depend on its pieces, and is that of the messages in it; reading an answer has an
/// end and makes no more of it than there was.
fn check_stream(input: &Input) {
    let whole = followed(std::iter::once(&input.bytes[..]));
    assert_eq!(followed(input.pieces()), whole);
    let (mut length, mut status) = (0, None);
    for (kind, body) in messages(&input.bytes) {
        length += 5 + body.len();
        if let (READY_FOR_QUERY, Some(&first)) = (kind, body.first()) {
            status = Some(first);
        }
    }
    assert_eq!(whole.0, length == input.bytes.len());
    // The first byte of an incomplete message may be a status as well.
    if whole.0 {
        assert_eq!(whole.1, status.is_some_and(|status| status != b'I'));
    }
    match result(&input.bytes) {
        Ok(rows) => {
            // A null takes four bytes, and so does the length of every other value.
            assert!(rows.iter().map(Vec::len).sum::<usize>() * 4 <= input.bytes.len());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

#[test]
fn a_damaged_stream_of_messages_is_followed_alike_however_it_is_sent() {
    fuzz!(Corpus::kept("messages"), check_stream);
}

/// The rules of a file as PostgreSQL joins them from lines, without empty ones.
fn joined(text: &str) -> Vec<String> {
    let (mut rules, mut rule, mut before) = (Vec::new(), String::new(), 0);
    for line in text.split('\n') {
        rule.push_str(line);
        rule.truncate(rule.trim_end_matches('\r').len());
        if rule.len() > before && rule.ends_with('\\') {
            rule.pop();
            before = rule.len();
        } else {
            rules.push(std::mem::take(&mut rule));
            before = 0;
        }
    }
    rules.push(rule);
    rules.retain(|rule| !rule.trim().is_empty());
    rules
}

/// The words of a rule without quotes.
fn words(rule: &str) -> Vec<&str> {
    let rule = rule.split('#').next().unwrap_or_default();
    rule.split([' ', '\t', '\r', ',']).filter(|word| !word.is_empty()).collect()
}

/// A translated rule says what is left to the host, others stay as they are, and nothing is translated twice.
fn check_rules(input: &Input) {
    let Ok(text) = str::from_utf8(&input.bytes) else { return };
    let Ok(translated) = translate(text) else { return };
    assert_eq!(translate(&translated).as_deref(), Ok(&translated[..]));
    assert_eq!(translated.matches('\n').count(), text.matches('\n').count());
    let (before, after) = (joined(text), joined(&translated));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        // A rule that trusts clients because of their certificates is marked.
        assert!(before == after || Requirement::of(after).is_some(), "{before}\n{after}");
        if before.contains('"') {
            continue;
        }
        let (before, after) = (words(before), words(after));
        // Nothing but the method and options about certificates has changed.
        let lost: Vec<_> = before.iter().filter(|word| !after.contains(word)).collect();
        let is_about = |word: &&&str| **word == "cert" || word.starts_with("clientcert=") || **word == "clientname=CN";
        assert!(lost.iter().all(is_about), "{lost:?}: {before:?} {after:?}");
    }
}

#[test]
fn damaged_rules_are_refused_or_translated_with_a_mark() {
    fuzz!(Corpus::kept("rules"), check_rules);
}
