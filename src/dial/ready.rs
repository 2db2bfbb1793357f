//! Whether a server takes clients, as `pg_isready` asks it, and one step further: a client that is let in has a
//! statement carried out.

use std::{fmt, thread, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use crossbeam_channel::{RecvTimeoutError, bounded};
use postgres_protocol::message::{
    backend::{ErrorFields, Header, Message},
    frontend,
};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::{Line, Server};

/// The longest message that is awaited, as in libpq (`fe-connect.c`, `PQconnectPoll`): what seems to be longer is none.
const LONGEST: i32 = 30_000;

/// What a server does with clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It lets clients in and carries out their statements.
    Ready,
    /// It asks clients for a password.
    AsksForPassword,
    /// It refuses clients.
    Refuses {
        /// The SQLSTATE: `57P03` while it starts or recovers.
        code: String,
        /// Why.
        message: String,
    },
    /// Nothing answers there as a server does.
    NoAnswer(String),
}

impl fmt::Display for Readiness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => formatter.write_str("the server is ready"),
            Self::AsksForPassword => formatter.write_str("the server is ready, and asks for a password"),
            Self::Refuses { code, message } => write!(formatter, "the server refuses clients: {message} ({code})"),
            Self::NoAnswer(error) => write!(formatter, "the server does not answer: {error}"),
        }
    }
}

impl Server {
    /// Whether it takes clients. It has `patience` for everything together.
    pub fn readiness(self, patience: Duration) -> Readiness {
        // On a thread of its own, because looking up a host's name cannot be given a time.
        let (sender, answer) = bounded(1);
        let ask = move || drop(sender.send(self.ask()));
        let started = thread::Builder::new().name("ready".to_owned()).spawn(ask);
        let asked = started.map_err(anyhow::Error::from).and_then(|_| {
            answer.recv_timeout(patience).unwrap_or_else(|error| match error {
                RecvTimeoutError::Timeout => bail!("nothing came within {} seconds", patience.as_secs_f64()),
                RecvTimeoutError::Disconnected => bail!("the thread that asks has panicked"),
            })
        });
        asked.unwrap_or_else(|error| Readiness::NoAnswer(format!("{error:#}")))
    }

    fn ask(&self) -> anyhow::Result<Readiness> {
        let line = self.dial()?;
        let mut packet = BytesMut::new();
        frontend::startup_message(self.startup_parameters(), &mut packet)?;
        line.send(&packet)?;
        let mut arrived = BytesMut::new();
        loop {
            match next(&line, &mut arrived)? {
                Message::AuthenticationOk
                | Message::ParameterStatus(_)
                | Message::BackendKeyData(_)
                | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(error) => return refusal(error.fields()),
                Message::AuthenticationCleartextPassword
                | Message::AuthenticationMd5Password(_)
                | Message::AuthenticationSasl(_)
                | Message::AuthenticationGss
                | Message::AuthenticationSspi => return Ok(Readiness::AsksForPassword),
                _ => bail!("its answer is not one of PostgreSQL's"),
            }
        }
        let mut query = BytesMut::new();
        frontend::query("SELECT 1", &mut query)?;
        line.send(&query)?;
        let mut has_row = false;
        loop {
            match next(&line, &mut arrived)? {
                Message::DataRow(_) => has_row = true,
                Message::ReadyForQuery(_) if has_row => break,
                Message::ErrorResponse(error) => return refusal(error.fields()),
                Message::ReadyForQuery(_) => bail!("SELECT 1 has no row there"),
                _ => {}
            }
        }
        let mut end = BytesMut::new();
        frontend::terminate(&mut end);
        // The session ends in any case.
        let _ = line.send(&end);
        Ok(Readiness::Ready)
    }
}

/// The next message of the server.
fn next(line: &Line, arrived: &mut BytesMut) -> anyhow::Result<Message> {
    let mut buffer = [0; 1024];
    loop {
        let length = Header::parse(arrived)?.map(Header::len);
        ensure!(length.is_none_or(|length| length <= LONGEST), "its answer is not one of PostgreSQL's");
        if let Some(message) = Message::parse(arrived).context("its answer is not one of PostgreSQL's")? {
            return Ok(message);
        }
        match line.receive(&mut buffer, true)? {
            Some(count @ 1..) => arrived.extend_from_slice(&buffer[..count]),
            _ => bail!("it has closed the connection"),
        }
    }
}

fn refusal(mut fields: ErrorFields<'_>) -> anyhow::Result<Readiness> {
    let (mut code, mut message) = (String::new(), String::new());
    while let Some(field) = fields.next()? {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = value,
            b'M' => message = value,
            _ => {}
        }
    }
    Ok(Readiness::Refuses { code, message })
}
