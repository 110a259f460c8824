//! As much of HTTP/1.1 as Prometheus needs: one request a connection, all of it within a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::encode::MEDIA_TYPE;

/// Longest head of a request in bytes.
const MAX_HEAD_BYTES: usize = 8 << 10;

/// Most header fields of a request.
const MAX_HEADERS: usize = 64;

/// For a request to arrive, and again for its response to be taken.
const TIME: Duration = Duration::from_secs(5);

/// For a client to close after the response.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes after the head that are read and thrown away at most.
const MAX_REST_BYTES: usize = 64 << 10;

/// What is sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    Metrics,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLarge,
}

/// Answers one request. Errors concern this client only.
pub(super) fn answer(stream: &TcpStream, metrics: impl FnOnce() -> String) -> io::Result<()> {
    let response = read_request(stream, Deadline::after(TIME))?;
    let (status, allow, body) = match response {
        Response::Metrics => ("200 OK", "", metrics()),
        Response::BadRequest => ("400 Bad Request", "", "not an HTTP request\n".to_owned()),
        Response::NotFound => ("404 Not Found", "", "there is /metrics only\n".to_owned()),
        Response::MethodNotAllowed => {
            ("405 Method Not Allowed", "Allow: GET\r\n", "there is GET only\n".to_owned())
        }
        Response::TooLarge => {
            ("431 Request Header Fields Too Large", "", "the request is too long\n".to_owned())
        }
    };
    let kind = if response == Response::Metrics { MEDIA_TYPE } else { "text/plain" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\n{allow}\
         Connection: close\r\n\r\n",
        body.len()
    );
    let deadline = Deadline::after(TIME);
    write_all(stream, head.as_bytes(), deadline)?;
    write_all(stream, body.as_bytes(), deadline)?;
    linger(stream)
}

fn read_request(mut stream: &TcpStream, deadline: Deadline) -> io::Result<Response> {
    let mut head = [0; MAX_HEAD_BYTES];
    let mut filled = 0;
    loop {
        let free = head.get_mut(filled..).unwrap_or_default();
        if free.is_empty() {
            return Ok(Response::TooLarge);
        }
        stream.set_read_timeout(Some(deadline.left()?))?;
        match stream.read(free) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled = filled.saturating_add(read),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if let Some(response) = judge(head.get(..filled).unwrap_or_default()) {
            return Ok(response);
        }
    }
}

/// What a head asks for; `None` if it is not complete.
fn judge(head: &[u8]) -> Option<Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.and_then(|path| path.split('?').next());
            Some(match (request.method, path) {
                (_, Some(path)) if path != "/metrics" => Response::NotFound,
                (Some("GET"), Some(_)) => Response::Metrics,
                _ => Response::MethodNotAllowed,
            })
        }
        Err(httparse::Error::TooManyHeaders) => Some(Response::TooLarge),
        Err(_) => Some(Response::BadRequest),
    }
}

fn write_all(mut stream: &TcpStream, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(deadline.left()?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lets the client close first: a connection that is closed over bytes that nobody read is reset, and
/// the response with it.
fn linger(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let deadline = Deadline::after(LINGER);
    let mut rest = [0; 4096];
    let mut seen = 0_usize;
    while seen < MAX_REST_BYTES {
        stream.set_read_timeout(Some(deadline.left()?))?;
        match stream.read(&mut rest)? {
            0 => break,
            read => seen = seen.saturating_add(read),
        }
    }
    Ok(())
}

/// A time at which a client is given up, however often it sends a byte.
#[derive(Debug, Clone, Copy)]
struct Deadline(Instant);

impl Deadline {
    fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Time that is left, more than none.
    fn left(self) -> io::Result<Duration> {
        match self.0.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_HEADERS, Response, judge};

    #[test]
    fn one_path_and_one_method() {
        for (request, response) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Some(Response::Metrics)),
            ("GET /metrics HTTP/1.0\r\n\r\n", Some(Response::Metrics)),
            ("GET /metrics?name[]=a HTTP/1.1\r\n\r\n", Some(Response::Metrics)),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Some(Response::NotFound)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Response::NotFound)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Response::MethodNotAllowed)),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(Response::MethodNotAllowed)),
            ("GET /metrics HTTP/2\r\n\r\n", Some(Response::BadRequest)),
            ("\u{0}", Some(Response::BadRequest)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", None),
            ("GET /met", None),
            ("", None),
        ] {
            assert_eq!(judge(request.as_bytes()), response, "{request}");
        }
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(judge(many.as_bytes()), Some(Response::TooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(start in "(GET|POST|) ?/?(metrics)?[ -~\r\n]{0,40}", rest: Vec<u8>) {
            let _ = judge(&[start.as_bytes(), &rest].concat());
        }
    }
}
