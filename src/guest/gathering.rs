//! Messages about the rows of a transaction, gathered on their way to a subscriber.
//!
//! `PostgreSQL`'s walsender sends every message by itself (`WalSndWriteData` in `src/backend/replication/walsender.c`):
//! a system call a row, and a wake-up of the subscriber. A subscriber can do nothing with the rows of a transaction
//! before its end, or before the end of the part in which a large one is streamed. So they wait for that here, up to
//! [`MAX`] bytes of them. What ends a transaction, and everything that is not part of one, is sent at once, after what
//! was gathered; so is an error. What waits when a session ends is of a transaction that the subscriber will get from
//! its beginning again.

use std::io;

/// Up to this many bytes are gathered.
const MAX: usize = 32 << 10;

/// The kind of a message with a part of a `COPY`, which a message of the replication is in.
const COPY_DATA: u8 = b'd';

/// The first byte in that of a message with WAL, or with what the plugin has made of it (`WalSndPrepareWrite`).
const WAL_DATA: u8 = b'w';

/// What is gathered.
#[derive(Default)]
pub(super) struct Gathered {
    bytes: Vec<u8>,
    /// How many of them are sent.
    sent: usize,
    /// Whether what is written next is about a transaction that goes on.
    goes_on: bool,
}

impl Gathered {
    /// The plugin has made a message about a transaction after which there is another one.
    pub(super) fn transaction_goes_on(&mut self) {
        self.goes_on = true;
    }

    /// Takes what the session writes, if it can wait.
    pub(super) fn takes(&mut self, written: &[u8]) -> bool {
        let has_room = self.bytes.len() + written.len() <= MAX;
        let can_wait = self.goes_on && has_room && is_row(written);
        if has_room || self.bytes.is_empty() {
            // Otherwise what is gathered is sent, and the same bytes are written again.
            self.goes_on = false;
        }
        if can_wait {
            self.bytes.extend_from_slice(written);
        }
        can_wait
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

/// Whether these bytes are one complete message of the plugin, and no other: a keepalive before or behind it is sent at
/// once.
fn is_row(bytes: &[u8]) -> bool {
    let [COPY_DATA, rest @ ..] = bytes else { return false };
    let length = rest.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    length == Some(rest.len()) && rest.get(4) == Some(&WAL_DATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_data(length: u32) -> Vec<u8> {
        [&b"d"[..], &length.to_be_bytes(), &vec![b'w'; length as usize - 4]].concat()
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
        assert!(!gathered.takes(&copy_data(30)), "nobody has said that another one comes");
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
    fn only_single_complete_messages_of_the_plugin_wait() {
        let keepalive = b"d\0\0\0\x05k";
        let row = copy_data(10);
        let behind_a_keepalive = [&keepalive[..], &row].concat();
        let before_a_keepalive = [&row[..], keepalive].concat();
        for other in [
            &b"D\0\0\0\x05w"[..],
            b"d\0\0\0",
            b"d\0\0\0\x06w",
            b"d\0\0\0\x05wC\0\0\0\x04",
            b"d\0\0\0\x04",
            b"",
            keepalive,
            &behind_a_keepalive,
            &before_a_keepalive,
        ] {
            let mut gathered = Gathered::default();
            gathered.transaction_goes_on();
            assert!(!gathered.takes(other), "{other:?}");
        }
    }
}
