//! Messages about the rows of a transaction, gathered on their way to a subscriber.
//!
//! `PostgreSQL`'s walsender sends every message by itself, and looks for an answer after each (`WalSndWriteData` in
//! `src/backend/replication/walsender.c`): two system calls a row, and a wake-up of the subscriber. A subscriber can do
//! nothing with the rows of a transaction before its end, or before the end of the part in which a large one is streamed.
//! So they wait for that here, up to [`MAX`] bytes of them. What ends a transaction, and everything that is not part of
//! one, is sent at once, after what was gathered; an error or the end of the session is, too.

use std::io;

/// Up to this many bytes are gathered.
const MAX: usize = 32 << 10;

/// The kind of a message with a part of a `COPY`, which a message of the replication is in.
const COPY_DATA: u8 = b'd';

/// What is gathered.
#[derive(Default)]
pub(super) struct Gathered {
    bytes: Vec<u8>,
    /// How many of them are sent.
    sent: usize,
    /// Whether what is written next is about a transaction that goes on.
    goes_on: bool,
    /// Whether there is no need to look for an answer.
    is_busy: bool,
}

impl Gathered {
    /// The plugin has made a message about a transaction after which there is another one.
    pub(super) fn transaction_goes_on(&mut self) {
        self.goes_on = true;
    }

    /// Takes what the session writes, if it can wait.
    pub(super) fn takes(&mut self, written: &[u8]) -> bool {
        let has_room = self.bytes.len() + written.len() <= MAX;
        self.is_busy = self.goes_on && has_room && is_copy_data(written);
        if has_room || self.bytes.is_empty() {
            // Otherwise what is gathered is sent, and the same bytes are written again.
            self.goes_on = false;
        }
        if self.is_busy {
            self.bytes.extend_from_slice(written);
        }
        self.is_busy
    }

    /// Whether the session need not look for an answer of its client: it has just written something that waits.
    pub(super) fn is_busy(&mut self) -> bool {
        std::mem::take(&mut self.is_busy)
    }

    /// Sends what is gathered by `write`.
    ///
    /// # Errors
    /// Those of `write`; what was not sent is kept.
    pub(super) fn send(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            self.sent += write(&self.bytes[self.sent..])?;
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Whether these bytes are complete messages with parts of a `COPY`, behind which another message must come.
fn is_copy_data(mut bytes: &[u8]) -> bool {
    while let [COPY_DATA, rest @ ..] = bytes {
        let Some(length) = rest.first_chunk().map(|length| u32::from_be_bytes(*length) as usize) else { return false };
        match rest.get(length..) {
            Some([]) => return true,
            Some(next) => bytes = next,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_data(length: u32) -> Vec<u8> {
        [&b"d"[..], &length.to_be_bytes(), &vec![b'x'; length as usize - 4]].concat()
    }

    /// What is sent, when the socket takes at most `room` bytes at a time and no more than `total`.
    fn sent(gathered: &mut Gathered, room: usize, total: usize) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        let is_all = gathered.send(|bytes| {
            let count = bytes.len().min(room).min(total - all.len());
            all.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
        });
        (all, is_all.is_ok())
    }

    #[test]
    fn rows_wait_and_the_end_of_their_transaction_does_not() {
        let mut gathered = Gathered::default();
        gathered.transaction_goes_on();
        assert!(gathered.takes(&copy_data(20)));
        assert!(gathered.is_busy());
        assert!(!gathered.is_busy(), "it looks for an answer after that");
        assert!(!gathered.takes(&copy_data(30)), "nobody has said that another one comes");
        assert!(!gathered.is_busy());
        assert_eq!(sent(&mut gathered, 7, 100), (copy_data(20), true));
        assert_eq!(sent(&mut gathered, 7, 100), (Vec::new(), true));
    }

    #[test]
    fn what_does_not_fit_is_kept_for_the_next_attempt() {
        let mut gathered = Gathered::default();
        gathered.transaction_goes_on();
        let all = copy_data(50);
        assert!(gathered.takes(&all));
        assert_eq!(sent(&mut gathered, 10, 20), (all[..20].to_vec(), false));
        assert_eq!(sent(&mut gathered, 10, 100), (all[20..].to_vec(), true));
    }

    #[test]
    fn what_is_full_takes_the_same_message_when_it_was_sent() {
        let mut gathered = Gathered::default();
        let half = copy_data(u32::try_from(MAX).unwrap() / 2);
        gathered.transaction_goes_on();
        assert!(gathered.takes(&half));
        gathered.transaction_goes_on();
        assert!(!gathered.takes(&half));
        assert!(sent(&mut gathered, MAX, MAX).1);
        assert!(gathered.takes(&half));
    }

    #[test]
    fn what_is_too_long_to_wait_is_not_followed_by_something_that_waits() {
        let mut gathered = Gathered::default();
        gathered.transaction_goes_on();
        assert!(!gathered.takes(&copy_data(u32::try_from(MAX).unwrap() + 1)));
        assert!(!gathered.takes(&copy_data(20)));
    }

    #[test]
    fn only_complete_parts_of_a_copy_wait() {
        for other in [&b"D\0\0\0\x04"[..], b"d\0\0\0", b"d\0\0\0\x05", b"d\0\0\0\x04C\0\0\0\x04", b""] {
            let mut gathered = Gathered::default();
            gathered.transaction_goes_on();
            assert!(!gathered.takes(other), "{other:?}");
        }
        let mut gathered = Gathered::default();
        gathered.transaction_goes_on();
        assert!(gathered.takes(&[copy_data(10), copy_data(4)].concat()));
    }
}
