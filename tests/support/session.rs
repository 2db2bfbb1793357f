//! A session on a socket in which a test exchanges raw messages.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

use super::wire::{self, Message};

/// A client that sends raw messages and returns the messages that it receives.
pub struct Session {
    stream: TcpStream,
    received: Vec<u8>,
    /// Process id and secret key, once received.
    pub key: Option<(i32, Vec<u8>)>,
}

impl Session {
    /// A session on that connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, received: Vec::new(), key: None }
    }

    /// Sends raw bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            // The server's messages before it closed the connection can still be read.
            Err(error) if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => {}
            written => written.expect("the server reads"),
        }
    }

    /// Sends a simple query.
    pub fn query(&mut self, sql: &str) {
        self.send(&wire::query(sql));
    }

    /// The next message; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<Message> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            if let Some(message) = Message::take(&mut self.received) {
                if message.kind == b'K' {
                    let (process_id, secret) = message.body.split_at(4);
                    self.key = Some((i32::from_be_bytes(process_id.try_into().expect("four bytes")), secret.to_vec()));
                }
                return Some(message);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.received.is_empty(), "half a message: {:?}", self.received);
                    return None;
                }
                // The operating system may report this when the server closes while the client sends.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                read => self.received.extend_from_slice(&chunk[..read.expect("an answer in time")]),
            }
        }
    }

    /// All messages up to the next one of this type, included.
    pub fn until(&mut self, kind: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.next();
            let message = message.unwrap_or_else(|| panic!("the session ended after {messages:?}"));
            let done = message.kind == kind;
            messages.push(message);
            if done {
                return messages;
            }
        }
    }

    /// All messages up to the next `ReadyForQuery`, included.
    pub fn until_ready(&mut self) -> Vec<Message> {
        self.until(b'Z')
    }

    /// All messages up to the end of the connection.
    pub fn until_closed(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The types of all messages up to the next `ReadyForQuery`, included.
    pub fn kinds(&mut self) -> String {
        kinds(&self.until_ready())
    }

    /// Runs a simple query; returns the first values of its rows.
    pub fn values(&mut self, sql: &str) -> Vec<String> {
        self.query(sql);
        let messages = self.until_ready();
        assert!(messages.iter().all(|message| message.kind != b'E'), "{sql}: {messages:?}");
        messages.iter().filter(|message| message.kind == b'D').map(|row| row.values().swap_remove(0)).collect()
    }

    /// Process id and secret key.
    pub fn key(&self) -> (i32, Vec<u8>) {
        self.key.clone().expect("BackendKeyData has come")
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// The types of these messages.
pub fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.kind)).collect()
}

/// The SQLSTATEs of the errors among these messages.
pub fn errors(messages: &[Message]) -> Vec<String> {
    let errors = messages.iter().filter(|message| message.kind == b'E');
    errors.map(|message| message.fields().remove(&'C').expect("an SQLSTATE")).collect()
}
