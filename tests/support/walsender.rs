//! A client of the streaming replication protocol.

use super::{
    session::Session,
    wire::{self, Message},
};

/// A replication connection that receives WAL, or changes decoded from it.
pub struct Receiver {
    session: Session,
    /// Where what was received ends.
    position: u64,
}

impl Receiver {
    /// Starts replication with that command.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn start(mut session: Session, command: &str) -> Self {
        session.query(command);
        let answer = session.next().expect("an answer");
        assert_eq!(answer.kind, b'W', "{command}: {answer:?}");
        Self { session, position: 0 }
    }

    /// The next WAL or change; `None` when the server has ended the replication.
    ///
    /// # Panics
    /// When something else comes.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let Message { kind, body } = self.session.next()?;
            match (kind, body.split_first()) {
                (b'd', Some((b'w', message))) => {
                    let (header, data) = message.split_at(24);
                    let [start, end] = [0, 8].map(|at| u64::from_be_bytes(*header[at..].first_chunk().unwrap()));
                    self.position = end.max(start);
                    return Some(data.to_vec());
                }
                (b'd', Some((b'k', message))) => {
                    let end = u64::from_be_bytes(*message.first_chunk().expect("a position"));
                    self.position = self.position.max(end);
                    if message[16] == 1 {
                        self.acknowledge();
                    }
                }
                // The end of the copy and its tag, as an orderly shutdown sends them.
                (b'c' | b'C' | b'Z', _) => {}
                (kind, _) => panic!("a message of the kind {:?}: {body:?}", char::from(kind)),
            }
        }
    }

    /// Receives until the server is beyond a position, as in `0/16B3748`, and answers.
    ///
    /// # Panics
    /// When something other than its position comes.
    pub fn keep_up(&mut self, position: &str) {
        let (high, low) = position.split_once('/').expect("a position");
        let [high, low] = [high, low].map(|half| u64::from_str_radix(half, 16).expect("a number"));
        while self.position <= (high << 32 | low) {
            let Message { kind, body } = self.session.next().expect("a message");
            assert_eq!(kind, b'd', "{body:?}");
            // What is left of a change, or where the server is.
            if body[0] == b'k' {
                self.position = u64::from_be_bytes(*body[1..].first_chunk().expect("a position"));
            }
        }
        self.acknowledge();
    }

    /// Says that everything up to now is written, flushed and applied.
    pub fn acknowledge(&mut self) {
        let position = self.position.to_be_bytes();
        let status = [&b"r"[..], &position, &position, &position, &0_u64.to_be_bytes(), &[0]].concat();
        self.session.send(&wire::message(b'd', &status));
    }
}

/// The files in the archives that the answer to `BASE_BACKUP` contains.
///
/// # Panics
/// When it is none.
pub fn base_backup(session: &mut Session, options: &str) -> Vec<u8> {
    session.query(&format!("BASE_BACKUP ({options})"));
    let messages = session.until_ready();
    let errors = super::session::errors(&messages);
    assert!(errors.is_empty(), "{errors:?}");
    // A message of the kind `n` begins an archive, one of the kind `d` has data.
    let mut archives = 0;
    let mut archive = Vec::new();
    for message in messages.iter().filter(|message| message.kind == b'd') {
        match message.body[0] {
            b'n' => archives += 1,
            b'd' if archives == 1 => archive.extend_from_slice(&message.body[1..]),
            _ => {}
        }
    }
    assert!(archives > 0, "no archive");
    archive
}
