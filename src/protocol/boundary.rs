//! Follows the messages to a client, to know where the next message may begin, whether a transaction is open, and what
//! errors it was sent.

use std::{io, sync::Arc, time::Instant};

use parking_lot::Mutex;

use super::messages::{ERROR_RESPONSE, Head, READY_FOR_QUERY};
use crate::{
    client::{Client, ClientCertificate, Endpoints, Interest, Readiness, Waker},
    tally::{Activity, Doing},
};

/// A client whose outgoing messages are followed. A clone follows the same messages.
#[derive(Clone)]
pub(crate) struct Followed<C> {
    client: C,
    position: Arc<Mutex<Position>>,
    activity: Arc<Activity>,
}

/// The position in a message after the bytes sent so far.
#[derive(Default)]
struct Position {
    /// The part of the message's head that has been sent; empty between messages.
    head: Vec<u8>,
    /// How many bytes of the body follow, once the head is complete.
    body: usize,
    /// Whether a byte of the body has been sent.
    has_begun: bool,
    /// The status in the last `ReadyForQuery`.
    status: Option<u8>,
    /// The beginning of an `ErrorResponse`.
    error: Vec<u8>,
    activity: Arc<Activity>,
    /// Called at the first `ReadyForQuery`.
    on_first: Option<Box<dyn FnOnce() + Send>>,
}

/// The statuses outside a transaction block, and in one that has not failed.
const IDLE: u8 = b'I';
const IN_TRANSACTION: u8 = b'T';

/// The SQLSTATE of an error is among this many first bytes of its message: only its severity, in the client's language
/// and in English, is before it (`send_message_to_frontend` in `src/backend/utils/error/elog.c`).
const ERROR_HEAD: usize = 96;

/// The transaction status that was last sent to a session's client.
#[derive(Clone, Default)]
pub struct TransactionStatus(Arc<Mutex<Position>>);

impl TransactionStatus {
    /// Whether a transaction block is open, which may have failed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.lock().status.is_some_and(|status| status != IDLE)
    }

    /// What the session does.
    pub(crate) fn activity(&self) -> Arc<Activity> {
        self.0.lock().activity.clone()
    }

    /// Calls `tell` when the first status is sent, which is when the session has let its client in. It must not use
    /// the status.
    pub(crate) fn on_first(&self, tell: impl FnOnce() + Send + 'static) {
        self.0.lock().on_first = Some(Box::new(tell));
    }
}

impl<C> Followed<C> {
    pub(crate) fn new(client: C) -> Self {
        let activity = Arc::<Activity>::default();
        let position = Position { activity: activity.clone(), ..Position::default() };
        Self { client, position: Arc::new(Mutex::new(position)), activity }
    }

    /// The session's transaction status.
    pub(crate) fn transaction(&self) -> TransactionStatus {
        TransactionStatus(self.position.clone())
    }

    /// Whether the last message has been sent completely.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.position.lock().head.is_empty()
    }
}

impl Position {
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.head.len() < Head::SIZE {
                let (head, rest) = bytes.split_at(bytes.len().min(Head::SIZE - self.head.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                if let Ok(head) = <[u8; Head::SIZE]>::try_from(self.head.as_slice()) {
                    (self.body, self.has_begun) = (Head::parse(head).body, false);
                }
            } else {
                let (body, rest) = bytes.split_at(bytes.len().min(self.body));
                let begins = !std::mem::replace(&mut self.has_begun, true);
                if let (true, Some(&READY_FOR_QUERY), Some(&status)) = (begins, self.head.first(), body.first()) {
                    self.status = Some(status);
                    self.activity.set(match status {
                        IDLE => Doing::Idle,
                        IN_TRANSACTION => Doing::IdleInTransaction,
                        _ => Doing::IdleInFailedTransaction,
                    });
                    if let Some(tell) = self.on_first.take() {
                        tell();
                    }
                }
                if self.head.first() == Some(&ERROR_RESPONSE) {
                    let missing = ERROR_HEAD - self.error.len();
                    self.error.extend_from_slice(&body[..body.len().min(missing)]);
                }
                self.body -= body.len();
                bytes = rest;
            }
            if self.head.len() == Head::SIZE && self.body == 0 {
                if self.head.first() == Some(&ERROR_RESPONSE) {
                    self.activity.error(sqlstate(&self.error));
                    self.error.clear();
                }
                self.head.clear();
            }
        }
    }
}

/// The SQLSTATE in the fields of an error; empty if there is none.
fn sqlstate(fields: &[u8]) -> &[u8] {
    fields.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"C")).unwrap_or_default()
}

impl<C: Client> Client for Followed<C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.client.read(buffer)?;
        if read > 0 && self.activity.doing() != Doing::Starting {
            self.activity.set(Doing::Active);
        }
        Ok(read)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.client.write(bytes)?;
        self.position.lock().advance(&bytes[..written]);
        Ok(written)
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        self.client.wait(interest, deadline)
    }

    fn waker(&self) -> Waker {
        self.client.waker()
    }

    fn certificate(&self) -> Option<ClientCertificate> {
        self.client.certificate()
    }

    fn certificate_digest(&self) -> Option<Arc<str>> {
        self.client.certificate_digest()
    }

    fn endpoints(&self) -> Endpoints {
        self.client.endpoints()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{messages::message, tests::Taking},
        *,
    };

    proptest! {
        #[test]
        fn only_the_ends_of_messages_are_between_messages(
            bodies in prop::collection::vec(0..20_usize, 1..5),
            pieces in prop::collection::vec(1..9_usize, 1..100),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for body in bodies {
                stream.push(b'D');
                stream.extend(u32::try_from(body + 4).expect("small").to_be_bytes());
                stream.extend(vec![0xff; body]);
                ends.push(stream.len());
            }
            let (mut position, mut sent) = (Position::default(), 0);
            for piece in pieces {
                let end = stream.len().min(sent + piece);
                position.advance(&stream[sent..end]);
                sent = end;
                prop_assert_eq!(position.head.is_empty(), ends.contains(&sent));
            }
        }
    }

    /// A client that takes three bytes at a time.
    struct Slow;

    impl Client for Slow {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len().min(3))
        }

        fn wait(&mut self, _interest: Interest, _deadline: Option<Instant>) -> Readiness {
            Readiness::Ready
        }

        fn waker(&self) -> Waker {
            Waker::new(|| {})
        }
    }

    #[test]
    fn a_transaction_stands_as_the_last_ready_for_query_that_was_sent_says() {
        let mut client = Followed::new(Slow);
        let transaction = client.transaction();
        assert!(!transaction.is_open());
        for (status, is_open) in [(b'T', true), (b'I', false), (b'E', true), (b'I', false)] {
            let before = transaction.is_open();
            let message = [b'Z', 0, 0, 0, 5, status];
            assert_eq!(client.write(&message).unwrap(), 3);
            assert_eq!((transaction.is_open(), client.is_between_messages()), (before, false));
            assert_eq!(client.write(&message[3..]).unwrap(), 3);
            assert_eq!((transaction.is_open(), client.is_between_messages()), (is_open, true));
            // The body of another message is neither a status nor an error.
            for part in [&b"D\0\0"[..], b"\0\x05Z"] {
                client.write(part).unwrap();
            }
            assert_eq!(transaction.is_open(), is_open);
        }
        // Only the first byte of its body is the status.
        for part in [&b"Z\0\0\0\x06I"[..], b"T"] {
            client.write(part).unwrap();
            client.write(&part[part.len().min(3)..]).unwrap();
        }
        assert!(!transaction.is_open() && client.is_between_messages());
    }

    #[test]
    fn errors_are_counted_by_the_sqlstate_that_was_sent() {
        let (mut client, tally) = (Followed::new(Slow), Arc::<crate::tally::Tally>::default());
        tally.enter(&client.activity);
        let fields = |rest: &str| format!("SERREUR\0VERROR\0{rest}Mno\0\0").into_bytes();
        for body in [fields("C42P01\0"), fields(&format!("C23505\0D{}\0", "d".repeat(1000))), fields("")] {
            crate::client::write_all(&mut client, &message(ERROR_RESPONSE, &body).unwrap()).unwrap();
            crate::client::write_all(&mut client, &message(b'N', &fields("C42P01\0")).unwrap()).unwrap();
        }
        assert_eq!(tally.errors.by_class().collect::<Vec<_>>(), [("23", 1), ("42", 1), ("other", 1)]);
    }

    #[test]
    fn what_a_session_does_is_seen_in_what_it_reads_and_writes() {
        let mut client = Followed::new(Taking);
        client.read(&mut [0]).unwrap();
        assert_eq!(client.activity.doing(), Doing::Starting, "a password is no statement");
        for (status, doing) in
            [(b'I', Doing::Idle), (b'T', Doing::IdleInTransaction), (b'E', Doing::IdleInFailedTransaction)]
        {
            client.write(&[b'Z', 0, 0, 0, 5, status]).unwrap();
            assert_eq!(client.activity.doing(), doing);
            client.read(&mut [0]).unwrap();
            assert_eq!(client.activity.doing(), Doing::Active);
        }
    }
}
