//! Whether a server takes clients, as `pg_isready` asks it, and one step further: a client that is let in has a
//! statement carried out.

use std::{fmt, thread, time::Duration};

use anyhow::bail;
use crossbeam_channel::{RecvTimeoutError, bounded};
use postgres_protocol::message::backend::{ErrorFields, Message};

use super::{Report, Server, Session, session::asks_for_password};

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
        let mut session = Session::open(self, &[])?;
        loop {
            match session.next()? {
                Message::AuthenticationOk
                | Message::ParameterStatus(_)
                | Message::BackendKeyData(_)
                | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(error) => return refusal(error.fields()),
                message if asks_for_password(&message) => return Ok(Readiness::AsksForPassword),
                _ => bail!("its answer is not one of PostgreSQL's"),
            }
        }
        session.query("SELECT 1")?;
        let mut has_row = false;
        loop {
            match session.next()? {
                Message::DataRow(_) => has_row = true,
                Message::ReadyForQuery(_) if has_row => break,
                Message::ErrorResponse(error) => return refusal(error.fields()),
                Message::ReadyForQuery(_) => bail!("SELECT 1 has no row there"),
                _ => {}
            }
        }
        session.terminate();
        Ok(Readiness::Ready)
    }
}

fn refusal(fields: ErrorFields<'_>) -> anyhow::Result<Readiness> {
    let Report { code, message, .. } = Report::of(fields)?;
    Ok(Readiness::Refuses { code, message })
}
