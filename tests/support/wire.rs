//! The parts of PostgreSQL's protocol that tests need: packets and messages to send, messages received.

use std::collections::HashMap;

/// First bytes of clients of other protocols, and the logged error for each.
pub const STRANGERS: [(&[u8], &str); 5] = [
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "invalid length of startup packet"),
    // The beginning of a TLS ClientHello.
    (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "invalid length of startup packet"),
    // A driver that ends a connection before its start sends Terminate.
    (b"X\0\0\0\x04", "invalid length of startup packet"),
    (b"\0\0\0\x0b\x04\xd2\x16\x2e\0\0\0", "invalid length of cancel request packet"),
    (b"\0\0\0\x0c\x04\xd2\x16\x2e\0\0\0\x01", "invalid length of cancel key in cancel request packet"),
];

/// A startup packet of any version or request code.
pub fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + rest.len()).expect("a short packet");
    [&length.to_be_bytes(), &code.to_be_bytes(), rest].concat()
}

/// The startup message of protocol 3.0 with these parameters.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut rest: Vec<u8> =
        parameters.iter().flat_map(|(k, v)| [k.as_bytes(), b"\0", v.as_bytes(), b"\0"].concat()).collect();
    rest.push(0);
    packet(3 << 16, &rest)
}

/// The request for TLS.
pub fn ssl_request() -> Vec<u8> {
    packet(80_877_103, b"")
}

/// The request for GSSAPI encryption.
pub fn gssenc_request() -> Vec<u8> {
    packet(80_877_104, b"")
}

/// The request to cancel a session's statement.
pub fn cancel_request(process_id: i32, secret_key: &[u8]) -> Vec<u8> {
    packet(80_877_102, &[&process_id.to_be_bytes(), secret_key].concat())
}

/// A message with its type and its length.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message");
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// A simple query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

/// `Parse`: prepares a statement; the server determines the types of its parameters.
pub fn parse(statement: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[statement.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat())
}

/// `Bind`: a portal of a statement with these parameters as text, for results as text.
pub fn bind(portal: &str, statement: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
    body.extend(u16::try_from(parameters.len()).expect("a few").to_be_bytes());
    for parameter in parameters {
        let length = parameter.map_or(-1, |text| i32::try_from(text.len()).expect("it fits"));
        body.extend(length.to_be_bytes());
        body.extend(parameter.unwrap_or_default().as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// `Describe` of a portal (`P`) or a statement (`S`).
pub fn describe(what: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[what], name.as_bytes(), b"\0"].concat())
}

/// `Execute`: at most `rows` rows of a portal; 0 for all.
pub fn execute(portal: &str, rows: i32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
}

/// `Close` of a portal (`P`) or a statement (`S`).
pub fn close(what: u8, name: &str) -> Vec<u8> {
    message(b'C', &[&[what], name.as_bytes(), b"\0"].concat())
}

/// `Sync`
pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// `Flush`
pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// The end of a session.
pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

/// A message from the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: u8,
    /// The bytes after the length.
    pub body: Vec<u8>,
}

impl Message {
    /// Takes the first message off `bytes`, if it is complete.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().expect("four bytes"));
        let end = 1 + usize::try_from(length).expect("it fits");
        let body = bytes.get(5..end)?.to_vec();
        let kind = bytes[0];
        bytes.drain(..end);
        Some(Self { kind, body })
    }

    /// All messages in `bytes`.
    pub fn all(mut bytes: Vec<u8>) -> Vec<Self> {
        let messages = std::iter::from_fn(|| Self::take(&mut bytes)).collect();
        assert!(bytes.is_empty(), "half a message: {bytes:?}");
        messages
    }

    /// The values of a `DataRow` as text, `NULL` for null.
    pub fn values(&self) -> Vec<String> {
        assert_eq!(self.kind, b'D', "no row: {self:?}");
        let (mut values, mut rest) = (Vec::new(), &self.body[2..]);
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (value, after) = match usize::try_from(i32::from_be_bytes(*length)) {
                Ok(length) => after.split_at(length),
                Err(_) => (&b"NULL"[..], after),
            };
            values.push(String::from_utf8_lossy(value).into_owned());
            rest = after;
        }
        values
    }

    /// The fields of an `ErrorResponse` or `NoticeResponse`, by their letter.
    pub fn fields(&self) -> HashMap<char, String> {
        assert!(matches!(self.kind, b'E' | b'N'), "no error or notice: {self:?}");
        let fields = self.body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
        fields.map(|field| (char::from(field[0]), String::from_utf8_lossy(&field[1..]).into_owned())).collect()
    }
}

/// The values of all rows in the answers to `sql`.
///
/// # Panics
/// When one of them is an error.
pub fn values(sql: &str, answers: &[Message]) -> Vec<String> {
    if let Some(error) = answers.iter().find(|message| message.kind == b'E') {
        panic!("{sql}: {:?}", error.fields());
    }
    answers.iter().filter(|message| message.kind == b'D').flat_map(Message::values).collect()
}

/// Names and values of the `ParameterStatus` messages.
pub fn parameters(messages: &[Message]) -> Vec<(String, String)> {
    let statuses = messages.iter().filter(|message| message.kind == b'S');
    let pair = |message: &Message| {
        let mut parts = message.body.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        (parts.next().expect("a name"), parts.next().expect("a value"))
    };
    statuses.map(pair).collect()
}

/// Severity, code and message of the only `ErrorResponse` in `bytes`.
pub fn error(bytes: Vec<u8>) -> [String; 3] {
    let messages = Message::all(bytes);
    let [message] = &messages[..] else { panic!("not one message: {messages:?}") };
    let mut fields = message.fields();
    ['S', 'C', 'M'].map(|field| fields.remove(&field).expect("the field is always there"))
}
