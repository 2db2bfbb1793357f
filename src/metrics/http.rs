//! One request and one response on a connection, as much of HTTP/1.1 as an endpoint for metrics needs.
//!
//! A request's head has at most [`HEAD`] bytes, a body is not read, and a connection ends after one response or at its
//! deadline, so that a client can hold little memory and one thread, and for seconds only.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

/// The longest head of a request, in bytes.
const HEAD: usize = 8 << 10;

/// How many headers a request may have.
const HEADERS: usize = 64;

/// The longest response that [`fetch`] takes: that of ten thousand clusters.
const LONGEST: u64 = 256 << 20;

/// The media type of Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    /// The value of the header `Host`; empty without it.
    pub(super) host: String,
}

/// A response.
pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Response {
    /// A sentence.
    pub(super) fn text(status: u16, sentence: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{sentence}\n") }
    }

    /// Metrics.
    pub(super) fn metrics(body: String) -> Self {
        Self { status: 200, content_type: METRICS, body }
    }

    fn head(&self) -> String {
        let Self { status, content_type, body } = self;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            421 => "Misdirected Request",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let allow = if *status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            body.len()
        )
    }
}

/// Reads a request, answers it with what `respond` returns, and closes the connection, all of it within `patience`.
///
/// # Errors
/// When the client is gone or too slow.
pub(super) fn answer(
    stream: TcpStream,
    patience: Duration,
    respond: impl FnOnce(&Request) -> Response,
) -> io::Result<()> {
    let mut stream = Timed { stream, deadline: Instant::now() + patience };
    let (is_head, response) = match read(&mut stream)? {
        Ok(request) => (request.method == "HEAD", respond(&request)),
        Err(refusal) => (false, refusal),
    };
    stream.write_all(response.head().as_bytes())?;
    if !is_head {
        stream.write_all(response.body.as_bytes())?;
    }
    stream.stream.shutdown(Shutdown::Write)?;
    // Closing a socket with unread input would reset the connection, and the client might not get the response.
    io::copy(&mut stream.take(HEAD as u64), &mut io::sink())?;
    Ok(())
}

/// Reads the head of a request. The inner error is the response if it is none.
fn read(stream: &mut impl Read) -> io::Result<Result<Request, Response>> {
    let mut head = Vec::new();
    loop {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&piece[..count]);
        match parse(&head) {
            Ok(Some(request)) => return Ok(Ok(request)),
            Ok(None) if head.len() < HEAD => {}
            Ok(None) | Err(httparse::Error::TooManyHeaders) => {
                return Ok(Err(Response::text(431, "the head of the request is too long")));
            }
            Err(error) => return Ok(Err(Response::text(400, &format!("this is no request: {error}")))),
        }
    }
}

/// The request with that head; `None` if the head is not complete.
fn parse(head: &[u8]) -> Result<Option<Request>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    if parsed.parse(head)?.is_partial() {
        return Ok(None);
    }
    let path = parsed.path.unwrap_or_default();
    let host = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    Ok(Some(Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path.split_once('?').map_or(path, |(path, _)| path).to_owned(),
        host: host.map(|header| String::from_utf8_lossy(header.value).into_owned()).unwrap_or_default(),
    }))
}

/// Fetches `path` from `address`, HOST:PORT, within `patience`; returns the status and the body.
///
/// # Errors
/// When nothing answers there, or not in HTTP.
pub(super) fn fetch(address: &str, path: &str, patience: Duration) -> io::Result<(u16, String)> {
    let mut stream = Timed { stream: TcpStream::connect(address)?, deadline: Instant::now() + patience };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut response = Vec::new();
    stream.take(LONGEST).read_to_end(&mut response)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let head = parsed.parse(&response).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let (httparse::Status::Complete(head), Some(status)) = (head, parsed.code) else {
        return Err(ErrorKind::UnexpectedEof.into());
    };
    let body = String::from_utf8(response.split_off(head));
    Ok((status, body.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?))
}

/// A connection whose operations fail from a deadline on.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(remaining)) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.remaining()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.remaining()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a request in pieces of one byte.
    fn request(text: &str) -> Result<Request, u16> {
        struct Bytes<'a>(&'a [u8]);
        impl Read for Bytes<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(1);
                self.0.read(&mut buffer[..count])
            }
        }
        read(&mut Bytes(text.as_bytes())).map_err(|_| 0_u16)?.map_err(|response| response.status)
    }

    #[test]
    fn requests_are_read_to_the_end_of_their_heads() {
        let read = request("GET /metrics?x=1 HTTP/1.1\r\nAccept: */*\r\nhOST: localhost:1\r\n\r\nbody");
        let expected = Request { method: "GET".into(), path: "/metrics".into(), host: "localhost:1".into() };
        assert_eq!(read, Ok(expected));
        assert_eq!(request("GET / HTTP/1.0\r\n\r\n").unwrap().host, "");
    }

    #[test]
    fn what_is_no_request_or_too_long_is_refused() {
        assert_eq!(request("\0\0\0\x08\x04\u{d2}\x16/"), Err(400));
        assert_eq!(request("GET / HTTP/1.1\r\n"), Err(0), "the client has left");
        assert_eq!(request(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD))), Err(431));
        assert_eq!(request(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS + 1))), Err(431));
    }
}
