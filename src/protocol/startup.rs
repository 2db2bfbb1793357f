//! The first packet of a connection: encryption requests, cancel requests and the startup message. Does no I/O.
//!
//! Follows `ProcessStartupPacket` in PostgreSQL 18's `src/backend/tcop/backend_startup.c`, with its limits and its
//! messages: a client whose bytes are not a packet gets no answer, and the error is logged (`COMMERROR` there). One
//! difference: bytes that follow an encryption request before its answer are accepted if encryption is refused. If it
//! is accepted, they are taken for the beginning of a TLS handshake. The minor version is not negotiated here: the guest reads the startup packet again and does that itself.

use std::ffi::CStr;

use byteorder::{BigEndian, ByteOrder};

use crate::protocol::error_response::{ErrorResponse, sqlstate};

#[cfg(test)]
mod tests;

/// The largest startup packet without its length word, in bytes (`MAX_STARTUP_PACKET_LENGTH` in
/// `libpq/pqcomm.h`).
pub const MAX_STARTUP_PACKET_LENGTH: usize = 10_000;
/// Bytes of the length word.
const LENGTH: usize = 4;
/// Bytes of the protocol version or request code.
const CODE: usize = 4;
/// The longest secret key of a cancel request, in bytes (PostgreSQL manual, "Message Formats",
/// `CancelRequest`).
const MAX_CANCEL_KEY: usize = 256;
/// The supported major protocol version.
const MAJOR: u16 = 3;

/// `CANCEL_REQUEST_CODE` (`libpq/pqcomm.h`)
const CANCEL_REQUEST: u32 = request_code(5678);
/// `NEGOTIATE_SSL_CODE`
const SSL_REQUEST: u32 = request_code(5679);
/// `NEGOTIATE_GSS_CODE`
const GSSENC_REQUEST: u32 = request_code(5680);

/// Numbers in the form of protocol version 1234 (`PG_PROTOCOL(1234, n)`).
const fn request_code(n: u32) -> u32 {
    (1234 << u16::BITS) + n
}

/// Reads the packets of one connection up to its startup message.
#[derive(Clone, Debug, Default)]
pub struct Negotiation {
    ssl_answered: bool,
    gssenc_answered: bool,
}

/// The next step of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The packet is incomplete; read this many more bytes and no more, then try again.
    NeedMore(usize),
    /// The client requests TLS: answer `N` and read the next packet, or answer `S`, call [`Negotiation::encrypted`],
    /// and read the next packet encrypted.
    Encrypt,
    /// The client requests encryption of another kind: answer `N` and read the next packet.
    RefuseEncryption,
    /// The client requests to cancel a session's statement: do that, send no answer, close.
    Cancel(CancelRequest),
    /// The client requests a session.
    Start(StartupMessage),
}

/// The request to cancel a session's statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelRequest {
    /// The process id from the session's `BackendKeyData`.
    pub process_id: i32,
    /// The secret key from there, 1 to 256 bytes.
    pub secret_key: Vec<u8>,
}

/// The request for a session. Names and values are bytes, because the client's encoding is not yet known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupMessage {
    /// Major and minor protocol version.
    pub protocol: (u16, u16),
    /// The database user, not empty.
    pub user: Vec<u8>,
    /// The database; the user's name if the client specified none.
    pub database: Vec<u8>,
    /// Command-line arguments for the backend, if given.
    pub options: Option<Vec<u8>>,
    /// The replication mode, if given.
    pub replication: Option<Vec<u8>>,
    /// All other parameters in the client's order: settings and `_pq_.` protocol options.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a client's first packet is refused. The texts are PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length word is below 8 or above [`MAX_STARTUP_PACKET_LENGTH`] + 4, as in most bytes of other protocols.
    #[error("invalid length of startup packet")]
    InvalidLength,
    /// The client disconnected in the middle of a packet.
    #[error("incomplete startup packet")]
    Incomplete,
    /// A cancel request without a complete process id.
    #[error("invalid length of cancel request packet")]
    InvalidCancelLength,
    /// A cancel request without a key of 1 to 256 bytes.
    #[error("invalid length of cancel key in cancel request packet")]
    InvalidCancelKeyLength,
    /// The parameters do not end at the end of the packet.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    InvalidLayout,
    /// A protocol version other than 3, or a second request for the same encryption.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    UnsupportedProtocol {
        /// Major version as sent.
        major: u16,
        /// Minor version as sent.
        minor: u16,
    },
    /// No `user`, or an empty one.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

impl StartupMessage {
    /// The startup packet of protocol 3.0 with these parameters, length word included.
    #[must_use]
    pub fn packet(parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut body = (u32::from(MAJOR) << 16).to_be_bytes().to_vec();
        for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
            body.extend(text.bytes().filter(|&byte| byte != 0));
            body.push(0);
        }
        body.push(0);
        let length = u32::try_from(body.len() + LENGTH).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], &body].concat()
    }

    /// `packet`, a whole startup packet, with one more parameter, which precedes those of the same name.
    #[must_use]
    pub(crate) fn with_parameter(packet: &[u8], name: &str, value: &str) -> Vec<u8> {
        let body = packet.get(LENGTH..).and_then(|body| body.strip_suffix(&[0])).unwrap_or_default();
        let body = [body, name.as_bytes(), &[0], value.as_bytes(), &[0, 0]].concat();
        let length = u32::try_from(body.len() + LENGTH).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], &body].concat()
    }

    /// The value of the setting `name` that the client asks for, in a parameter or on the command line in
    /// [`options`](Self::options), as `process_startup_options` in `src/backend/utils/init/postinit.c` sets them: the
    /// last one wins, and parameters come after the command line.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<Vec<u8>> {
        let is_name = |other: &[u8]| other.eq_ignore_ascii_case(name.as_bytes());
        let parameter = self.parameters.iter().rev().find(|(other, _)| is_name(other)).map(|(_, value)| value.clone());
        parameter.or_else(|| {
            let settings = command_line_settings(self.options.as_deref()?);
            settings.into_iter().rev().find(|(other, _)| is_name(other)).map(|(_, value)| value)
        })
    }

    /// Whether the client requests a walsender: the parameter is `database`, or a boolean that is true (`parse_bool`
    /// in `src/backend/utils/adt/bool.c`).
    #[must_use]
    pub fn asks_for_replication(&self) -> bool {
        let refusals: [&[u8]; 5] = [b"false", b"no", b"off", b"0", b"f"];
        self.replication.as_ref().is_some_and(|mode| !refusals.contains(&&mode.to_ascii_lowercase()[..]))
    }
}

impl StartupError {
    /// The error report; the client gets it where PostgreSQL sends it.
    #[must_use]
    pub fn to_response(&self) -> ErrorResponse {
        let text = self.to_string();
        match self {
            Self::InvalidLength | Self::Incomplete | Self::InvalidCancelLength | Self::InvalidCancelKeyLength => {
                ErrorResponse::log(sqlstate::PROTOCOL_VIOLATION, text)
            }
            Self::InvalidLayout => ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, text),
            Self::UnsupportedProtocol { .. } => ErrorResponse::fatal(sqlstate::FEATURE_NOT_SUPPORTED, text),
            Self::NoUser => ErrorResponse::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text),
        }
    }
}

impl Negotiation {
    /// Parses `packet`, the bytes that have arrived so far, from the packet's length word on.
    ///
    /// A caller that always reads as many bytes as [`Step::NeedMore`] says reads nothing behind the packet.
    ///
    /// # Errors
    /// [`StartupError`] as soon as the bytes cannot become a valid packet.
    pub fn accept(&mut self, packet: &[u8]) -> Result<Step, StartupError> {
        let Some((length_word, body)) = packet.split_first_chunk::<LENGTH>() else {
            return Ok(Step::NeedMore(LENGTH - packet.len()));
        };
        let length = usize::try_from(u32::from_be_bytes(*length_word)).unwrap_or(usize::MAX);
        if !(LENGTH + CODE..=LENGTH + MAX_STARTUP_PACKET_LENGTH).contains(&length) {
            return Err(StartupError::InvalidLength);
        }
        let body_length = length - LENGTH;
        let Some((code, rest)) = body.get(..body_length).and_then(<[u8]>::split_first_chunk::<CODE>) else {
            return Ok(Step::NeedMore(body_length - body.len()));
        };
        match u32::from_be_bytes(*code) {
            CANCEL_REQUEST => cancel_request(rest).map(Step::Cancel),
            SSL_REQUEST if !self.ssl_answered => {
                self.ssl_answered = true;
                Ok(Step::Encrypt)
            }
            GSSENC_REQUEST if !self.gssenc_answered => {
                self.gssenc_answered = true;
                Ok(Step::RefuseEncryption)
            }
            _ => startup_message(*code, rest).map(Step::Start),
        }
    }

    /// The connection is encrypted from here on.
    pub fn encrypted(&mut self) {
        self.gssenc_answered = true;
    }

    /// The error when the client disconnects after `packet`, the bytes of its next packet so far. `None` if that is in
    /// order: when it has sent nothing, or has been refused encryption.
    #[must_use]
    pub fn left_after(&self, packet: &[u8]) -> Option<StartupError> {
        let has_length = packet.len() >= LENGTH;
        let is_first = !self.ssl_answered && !self.gssenc_answered;
        (has_length || (is_first && !packet.is_empty())).then_some(StartupError::Incomplete)
    }
}

fn cancel_request(rest: &[u8]) -> Result<CancelRequest, StartupError> {
    let (process_id, key) = rest.split_first_chunk::<4>().ok_or(StartupError::InvalidCancelLength)?;
    if !(1..=MAX_CANCEL_KEY).contains(&key.len()) {
        return Err(StartupError::InvalidCancelKeyLength);
    }
    Ok(CancelRequest { process_id: BigEndian::read_i32(process_id), secret_key: key.to_vec() })
}

fn startup_message(code: [u8; CODE], mut rest: &[u8]) -> Result<StartupMessage, StartupError> {
    let (major, minor) = (BigEndian::read_u16(&code[..2]), BigEndian::read_u16(&code[2..]));
    if major != MAJOR {
        return Err(StartupError::UnsupportedProtocol { major, minor });
    }
    let (mut user, mut database) = (Vec::new(), Vec::new());
    let (mut options, mut replication, mut parameters) = (None, None, Vec::new());
    loop {
        let name = take_string(&mut rest)?;
        if name.is_empty() {
            break;
        }
        let value = take_string(&mut rest)?;
        match name {
            b"user" => user = value.to_vec(),
            b"database" => database = value.to_vec(),
            b"options" => options = Some(value.to_vec()),
            b"replication" => replication = Some(value.to_vec()),
            _ => parameters.push((name.to_vec(), value.to_vec())),
        }
    }
    if !rest.is_empty() {
        return Err(StartupError::InvalidLayout);
    }
    if user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if database.is_empty() {
        database.clone_from(&user);
    }
    Ok(StartupMessage { protocol: (major, minor), user, database, options, replication, parameters })
}

/// The settings in command-line arguments: `-c name=value`, `-cname=value` and `--name=value`, where a `-` in a name
/// is a `_` (`ParseLongOption` in `src/backend/utils/misc/guc.c`).
fn command_line_settings(options: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut arguments = split_arguments(options).into_iter();
    let mut settings = Vec::new();
    while let Some(argument) = arguments.next() {
        let setting = match argument.strip_prefix(b"-c").or_else(|| argument.strip_prefix(b"--")) {
            Some(b"") if argument == b"-c" => arguments.next().unwrap_or_default(),
            Some(setting) => setting.to_vec(),
            None => continue,
        };
        if let Some(end) = setting.iter().position(|&byte| byte == b'=') {
            let name = setting[..end].iter().map(|&byte| if byte == b'-' { b'_' } else { byte });
            settings.push((name.collect(), setting[end + 1..].to_vec()));
        }
    }
    settings
}

/// Splits arguments at white space that no backslash precedes (`pg_split_opts` in `src/backend/utils/init/postinit.c`).
fn split_arguments(options: &[u8]) -> Vec<Vec<u8>> {
    let mut arguments = Vec::new();
    let mut current: Option<Vec<u8>> = None;
    let mut bytes = options.iter();
    while let Some(&byte) = bytes.next() {
        // As isspace() in the C locale.
        if byte.is_ascii_whitespace() || byte == 0x0b {
            arguments.extend(current.take());
            continue;
        }
        let argument = current.get_or_insert_default();
        match byte {
            b'\\' => argument.extend(bytes.next()),
            byte => argument.push(byte),
        }
    }
    arguments.extend(current);
    arguments
}

/// Takes the string up to the next NUL, and that NUL, from the front of `rest`.
fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], StartupError> {
    let string = CStr::from_bytes_until_nul(rest).map_err(|_| StartupError::InvalidLayout)?;
    *rest = &rest[string.count_bytes() + 1..];
    Ok(string.to_bytes())
}
