//! The server of metrics: a thread that takes connections, and one for each of a bounded number.
//!
//! `tiny_http`, a small server that could be used, has neither a limit of connections nor a time limit, so
//! only the parser is a crate's.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket;
use thiserror::Error;

use super::Metrics;
use super::http::answer;

/// Connections that are served at once. One more ends the oldest: a scrape takes milliseconds, so
/// what is oldest among so many says nothing or does not read.
const MAX_CONNECTIONS: usize = 32;

/// Before the next attempt when connections cannot be taken, as without free file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why metrics are not served.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// Not an address.
    #[error("`{address}` is not an address to serve metrics at: {reason}; give `[HOST:]PORT`")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("cannot serve metrics at {address}: {cause}")]
    System {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    next: u64,
    /// The connections that have a thread, by age.
    streams: BTreeMap<u64, Arc<TcpStream>>,
}

#[derive(Debug)]
struct Shared {
    listener: TcpListener,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// The server stops, or a connection has ended.
    changed: Condvar,
}

/// Serves metrics until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves `GET /metrics` over HTTP at `address`. Everybody who can connect there can read them.
    pub fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Result<Self, MetricsError> {
        let cannot = |cause| MetricsError::System { address, cause };
        let listener = TcpListener::bind(address).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let shared = Shared { listener, metrics, state: Mutex::default(), changed: Condvar::new() };
        let shared = Arc::new(shared);
        let accepting = {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("metrics".to_owned());
            thread.spawn(move || shared.accept()).map_err(cannot)?
        };
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Where they are served: the port that was chosen, if 0 was asked for.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stopping = true;
        for stream in state.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        // Linux ends every `accept` of a listening socket that is shut down, also coming ones.
        let _ = socket::shutdown(self.shared.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            // A panic in it has been printed already.
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes connections until the server stops, then waits for their threads.
    fn accept(&self) {
        thread::scope(|scope| {
            loop {
                let accepted = self.listener.accept().map(|(stream, _)| Arc::new(stream));
                let Some(number) = self.admit(accepted.as_ref().ok()) else { return };
                let Ok(stream) = accepted else { continue };
                let thread = thread::Builder::new().name("metrics client".to_owned());
                let spawned = thread.spawn_scoped(scope, move || {
                    // What fails is this connection, and there is nobody to tell.
                    let _ = answer(&stream, || self.metrics.encode());
                    self.leave(number);
                });
                if spawned.is_err() {
                    self.leave(number);
                }
            }
        });
    }

    /// A place for a connection, after the oldest one has ended if there are too many, or a pause if
    /// there is none. None when the server stops.
    fn admit(&self, stream: Option<&Arc<TcpStream>>) -> Option<u64> {
        let mut state = self.state();
        let Some(stream) = stream else {
            let waited = self.changed.wait_timeout_while(state, PAUSE, |state| !state.stopping);
            let stopping = waited.unwrap_or_else(PoisonError::into_inner).0.stopping;
            return (!stopping).then_some(0);
        };
        while !state.stopping && state.streams.len() >= MAX_CONNECTIONS {
            if let Some((_, oldest)) = state.streams.first_key_value() {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            // Its thread finds the connection closed, whatever it does with it.
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopping {
            return None;
        }
        state.next += 1;
        let number = state.next;
        state.streams.insert(number, Arc::clone(stream));
        Some(number)
    }

    fn leave(&self, number: u64) {
        self.state().streams.remove(&number);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpStream};
    use std::sync::Arc;

    use super::{MAX_CONNECTIONS, MetricsError, MetricsServer};
    use crate::event::Broadcast;
    use crate::metrics::{ExitKind, Metrics, parse_address};

    fn serve() -> (Arc<Metrics>, MetricsServer) {
        let metrics = Arc::new(Metrics::new(Arc::new(Broadcast::new())));
        let address = parse_address("0").expect("any port");
        let server = MetricsServer::serve(address, Arc::clone(&metrics)).expect("loopback");
        assert!(server.local_addr().ip().is_loopback());
        assert_ne!(server.local_addr().port(), 0);
        (metrics, server)
    }

    fn get(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(request).expect("it reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("it answers, and closes");
        response
    }

    #[test]
    fn what_is_counted_is_served() {
        let (metrics, server) = serve();
        metrics.exit(ExitKind::Hlt);
        for hlts in 1..10 {
            let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let response = get(server.local_addr(), request);
            let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
            assert_eq!(body, metrics.encode());
            assert!(body.contains(&format!("subpage_exits_total{{kind=\"hlt\"}} {hlts}\n")));
            let mut head = head.lines();
            assert_eq!(head.next(), Some("HTTP/1.1 200 OK"));
            assert_eq!(
                head.collect::<Vec<_>>(),
                [
                    "Content-Type: text/plain; version=0.0.4; charset=utf-8",
                    &format!("Content-Length: {}", body.len()),
                    "Connection: close",
                ]
            );
            metrics.exit(ExitKind::Hlt);
        }
    }

    #[test]
    fn everything_else_is_an_error() {
        let (_, server) = serve();
        let long = format!("GET /metrics HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(20_000));
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
            ("nonsense\r\n\r\n", "400"),
            (&long, "431"),
        ] {
            let response = get(server.local_addr(), request.as_bytes());
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        }
        assert!(get(server.local_addr(), b"PUT /metrics HTTP/1.1\r\n\r\n").contains("Allow: GET"));
    }

    #[test]
    fn a_request_may_come_in_pieces() {
        let (_, server) = serve();
        let mut stream = TcpStream::connect(server.local_addr()).expect("it listens");
        for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" {
            stream.write_all(&[*byte]).expect("it reads");
        }
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("it answers");
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }

    #[test]
    fn it_ends_with_clients_that_say_nothing() {
        let (metrics, server) = serve();
        let address = server.local_addr();
        // One more than are served at once.
        let mut silent: Vec<_> = (0..=MAX_CONNECTIONS)
            .map(|_| TcpStream::connect(address).expect("it listens"))
            .collect();
        silent[0].write_all(b"GET /met").expect("it reads");
        drop(server);
        for stream in &mut silent {
            // Closed or reset: the end in either case.
            let read = stream.read(&mut [0]);
            assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
            let _ = stream.shutdown(Shutdown::Both);
        }
        TcpStream::connect(address).expect_err("nobody listens");
        assert_eq!(Arc::strong_count(&metrics), 1, "a thread is left");
    }

    /// Connections that say nothing do not keep others waiting: the oldest of them are ended.
    #[test]
    fn a_scrape_does_not_wait_for_silent_connections() {
        let (metrics, server) = serve();
        let address = server.local_addr();
        let connect = || TcpStream::connect(address).expect("it listens");
        let silent: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| connect()).collect();
        let response = get(address, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(response.ends_with(&metrics.encode()), "{response}");
        // The newest of them were still served at that moment: nothing waited for their time limit.
        let open = silent.iter().filter(|stream| {
            stream.set_nonblocking(true).expect("a mode");
            let read = (&**stream).read(&mut [0]);
            read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        assert!(open.count() >= MAX_CONNECTIONS / 2, "they were waited for");
    }

    #[test]
    fn an_address_in_use_is_an_error() {
        let (metrics, server) = serve();
        let error = MetricsServer::serve(server.local_addr(), metrics).expect_err("it is in use");
        assert!(matches!(error, MetricsError::System { .. }), "{error}");
        assert!(error.to_string().contains(&server.local_addr().to_string()), "{error}");
    }
}
