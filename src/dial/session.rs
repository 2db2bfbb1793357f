//! A session by the simple protocol, message by message.
//!
//! The driver cannot run files of SQL: it sends a `Sync` of its own behind a `COPY ... FROM stdin` that it begins, and
//! when the server refuses that statement, every later answer is taken for that of the statement before it.

use std::{
    collections::HashMap,
    fmt,
    io::{self, ErrorKind},
    sync::Arc,
};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::BytesMut;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, ErrorFields, Message},
        frontend,
    },
};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::{Cancel, Line, Server};

/// The kinds of messages that may be long (`VALID_LONG_MESSAGE_TYPE` in `src/interfaces/libpq/fe-protocol3.c`), how
/// long they may be, and how long the others and those before the authentication may be.
const LONG_KINDS: &[u8] = b"TDdVENA";
const LONGEST: u32 = 1 << 30;
const SHORT: u32 = 30_000;

const NO_MESSAGE: &str = "what answers does not speak PostgreSQL's protocol: its message is not one of PostgreSQL's";

/// How much is received while the server takes nothing.
const BUFFERED: usize = 64 << 20;

/// How many bytes are received at once.
const PIECE: usize = 1 << 16;

/// A session, from its startup packet on.
pub(crate) struct Session {
    line: Line,
    /// What has arrived and was not taken yet.
    received: BytesMut,
    has_ended: bool,
    /// The number of its process, and the key that cancels its statements.
    key: (i32, i32),
}

/// What the server reports: an error or a notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) severity: String,
    /// The SQLSTATE.
    pub(crate) code: String,
    pub(crate) message: String,
    detail: Option<String>,
    hint: Option<String>,
    context: Option<String>,
    /// The number of the character in the statement, from 1 on.
    pub(crate) position: Option<usize>,
}

impl Session {
    /// Begins a session of `server`, with that name in `pg_stat_activity` unless the address has another.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the session, with its [`Report`].
    pub(super) fn begin(server: &Server, application: &str) -> anyhow::Result<Self> {
        let config = &server.config;
        let application = config.get_application_name().unwrap_or(application);
        let own = [("application_name", application), ("client_encoding", "UTF8")];
        let mut session = Self::open(server, &own)?;
        session.authenticate(config.get_user().unwrap_or_default(), config.get_password())?;
        loop {
            match session.next()? {
                Message::BackendKeyData(key) => session.key = (key.process_id(), key.secret_key()),
                Message::ErrorResponse(body) => return Err(Report::of(body.fields())?.into()),
                Message::ReadyForQuery(_) => return Ok(session),
                _ => {}
            }
        }
    }

    /// Opens a session of `server`, whose startup packet has these parameters besides its own. The next message is about
    /// the authentication, or refuses the session.
    ///
    /// # Errors
    /// When nobody answers.
    pub(super) fn open(server: &Server, more: &[(&str, &str)]) -> anyhow::Result<Self> {
        let config = &server.config;
        let user = config.get_user().unwrap_or_default();
        let parameters = [("user", user), ("database", config.get_dbname().unwrap_or(user))];
        let options = config.get_options().map(|options| ("options", options));
        let mut startup = BytesMut::new();
        frontend::startup_message(parameters.into_iter().chain(options).chain(more.iter().copied()), &mut startup)?;
        let line = server.dial()?;
        let mut session = Self { line, received: BytesMut::new(), has_ended: false, key: (0, 0) };
        session.send(&startup)?;
        Ok(session)
    }

    fn authenticate(&mut self, user: &str, password: Option<&[u8]>) -> anyhow::Result<()> {
        let missing = || anyhow!("the server asks for a password: give it in the URL, in PGPASSWORD or in ~/.pgpass");
        loop {
            let mut answer = BytesMut::new();
            match self.next()? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password.with_context(missing)?, &mut answer)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password.with_context(missing)?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut answer)?;
                }
                Message::AuthenticationSasl(body) => {
                    self.authenticate_by_scram(&body, password.with_context(missing)?)?;
                    continue;
                }
                Message::ErrorResponse(body) => return Err(Report::of(body.fields())?.into()),
                Message::NoticeResponse(_) => continue,
                _ => bail!("the server asks for a kind of authentication that this command does not know"),
            }
            self.send(&answer)?;
        }
    }

    fn authenticate_by_scram(&mut self, body: &AuthenticationSaslBody, password: &[u8]) -> anyhow::Result<()> {
        let offered = body.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256))?;
        if !offered {
            bail!("the server does not offer {SCRAM_SHA_256}");
        }
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        let mut answer = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut answer)?;
        self.send(&answer)?;
        loop {
            match self.next()? {
                Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data())?;
                    answer.clear();
                    frontend::sasl_response(scram.message(), &mut answer)?;
                    self.send(&answer)?;
                }
                Message::AuthenticationSaslFinal(body) => return Ok(scram.finish(body.data())?),
                Message::ErrorResponse(body) => return Err(Report::of(body.fields())?.into()),
                _ => bail!("the server breaks off the authentication with {SCRAM_SHA_256}"),
            }
        }
    }

    /// What cancels the statements of the session.
    pub(crate) fn cancel(&self, server: &Arc<Server>) -> Cancel {
        Cancel::new(server.clone(), self.key)
    }

    /// Whether the session has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Ends a session in which the server has said what cannot be understood.
    pub(crate) fn give_up(&mut self) {
        self.line.hang_up();
        self.has_ended = true;
    }

    /// Sends statements.
    ///
    /// # Errors
    /// When there is a zero byte in it, or the connection is lost.
    pub(crate) fn query(&mut self, sql: &str) -> anyhow::Result<()> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).context("a statement has no zero bytes")?;
        self.send(&message)
    }

    /// Sends rows of a `COPY`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) fn copy_data(&mut self, rows: &[u8]) -> anyhow::Result<()> {
        let mut message = BytesMut::new();
        frontend::CopyData::new(rows)?.write(&mut message);
        self.send(&message)
    }

    /// Ends the rows of a `COPY`; with `failure`, it fails for that reason.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) fn end_copy(&mut self, failure: Option<&str>) -> anyhow::Result<()> {
        let mut message = BytesMut::new();
        match failure {
            Some(failure) => frontend::copy_fail(&failure.replace('\0', ""), &mut message)?,
            None => frontend::copy_done(&mut message),
        }
        self.send(&message)
    }

    /// Says that there are no more statements.
    pub(super) fn terminate(mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        // The session ends in any case.
        let _ = self.send(&message);
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// When the connection is lost, or what arrives is no message.
    pub(crate) fn next(&mut self) -> anyhow::Result<Message> {
        loop {
            self.check_length()?;
            if let Some(message) = Message::parse(&mut self.received).context(NO_MESSAGE)? {
                return Ok(message);
            }
            if self.has_ended || !self.receive(true).context("the connection to the server is lost")? {
                bail!("the server has closed the connection");
            }
        }
    }

    /// Checks the length that the next message begins with, as libpq does (`pqParseInput3` in
    /// `src/interfaces/libpq/fe-protocol3.c`): what is no message of PostgreSQL's would be taken for a long one.
    fn check_length(&self) -> anyhow::Result<()> {
        let Some(&[kind, ref len @ ..]) = self.received.first_chunk::<5>() else { return Ok(()) };
        let limit = if self.key != (0, 0) && LONG_KINDS.contains(&kind) { LONGEST } else { SHORT };
        let len = u32::from_be_bytes(*len);
        ensure!(len <= limit, "{NO_MESSAGE}: it begins with {:?} and {len} bytes", char::from(kind));
        Ok(())
    }

    /// Receives what is there, or waits for it; false at the end.
    fn receive(&mut self, waits: bool) -> io::Result<bool> {
        let len = self.received.len();
        self.received.resize(len + PIECE, 0);
        let received = self.line.receive(&mut self.received[len..], waits);
        self.received.truncate(len + received.as_ref().ok().copied().flatten().unwrap_or(0));
        self.has_ended = matches!(received, Ok(Some(0)) | Err(_));
        received.map(|_| !self.has_ended)
    }

    /// Sends all of `bytes`, and receives meanwhile: a server that cannot send its notices takes no rows.
    fn send(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() && !self.has_ended {
            let has_room = self.received.len() < BUFFERED;
            let (can_send, can_receive) = self.line.wait(has_room).context("the connection to the server is lost")?;
            if can_receive {
                // What the server has said before it left is told first.
                let _ = self.receive(false);
            }
            if can_send && !self.has_ended {
                match self.line.send_some(bytes) {
                    Ok(sent) => bytes = &bytes[sent..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("the connection to the server is lost"),
                }
            }
        }
        Ok(())
    }
}

/// Whether a server says with this message that a client has to show who it is.
pub(super) fn asks_for_password(message: &Message) -> bool {
    matches!(
        message,
        Message::AuthenticationCleartextPassword
            | Message::AuthenticationMd5Password(_)
            | Message::AuthenticationSasl(_)
            | Message::AuthenticationGss
            | Message::AuthenticationSspi
    )
}

impl Report {
    /// The report with these fields (`Error and Notice Message Fields` in `PostgreSQL`'s manual).
    ///
    /// # Errors
    /// When they are damaged.
    pub(crate) fn of(fields: ErrorFields<'_>) -> io::Result<Self> {
        let mut found: HashMap<u8, String> = fields
            .map(|field| Ok((field.type_(), String::from_utf8_lossy(field.value_bytes()).into_owned())))
            .collect()?;
        let mut take = |field| found.remove(&field);
        Ok(Self {
            severity: take(b'V').or_else(|| take(b'S')).unwrap_or_default(),
            code: take(b'C').unwrap_or_default(),
            message: take(b'M').unwrap_or_default(),
            detail: take(b'D'),
            hint: take(b'H'),
            context: take(b'W'),
            position: take(b'P').and_then(|position| position.parse().ok()),
        })
    }
}

impl fmt::Display for Report {
    /// With all that helps to understand it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, code, message, detail, hint, context, .. } = self;
        write!(formatter, "{severity}: {message} ({code})")?;
        for (name, text) in [("DETAIL", detail), ("HINT", hint), ("CONTEXT", context)] {
            if let Some(text) = text {
                write!(formatter, "\n{name}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
