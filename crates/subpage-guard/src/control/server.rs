//! The server: one thread that takes connections, and one for each client.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle, Scope};
use std::time::Duration;

use nix::sys::socket::{self, sockopt};
use nix::unistd::geteuid;
use tempfile::TempDir;

use super::connection::{Connection, send_refusal};
use super::connections::Connections;
use super::error::ControlError;
use super::path;
use super::protocol::{Refusal, Reply, Request};
use super::socket::{SocketFile, system};
use crate::event::Subscription;

/// Clients that may be connected at once.
pub const MAX_CLIENTS: usize = 32;

/// How long a client may leave the server's bytes unread until it is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same while the server stops.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Before the next attempt when connections cannot be taken, as without free file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What carries out the clients' requests.
pub trait RequestHandler: Send + Sync {
    /// Does what is asked, however long that takes; when it returns, it is in force. Called from
    /// several threads at once. Not called for [`Request::Watch`].
    fn perform(&self, request: Request) -> Result<Reply, Refusal>;

    /// The events from now on, for a client that watches.
    fn subscribe(&self) -> Subscription;
}

/// A control socket that is served.
///
/// Dropping it removes the socket and sends the clients away. A request that is being performed is
/// finished first, so do not drop it in [`RequestHandler::perform`].
#[derive(Debug)]
pub struct Server {
    socket: SocketFile,
    /// To wake the thread that waits for connections.
    listener: UnixListener,
    connections: Arc<Connections>,
    accepting: Option<JoinHandle<()>>,
    /// The directory that was made for the socket, which goes after it.
    _directory: Option<TempDir>,
}

impl Server {
    /// Makes a Unix socket at `path`, which must be shorter than 108 bytes, with mode 0600, and
    /// serves it.
    ///
    /// A socket that a dead process left there is replaced. Beside it lies `PATH.lock` meanwhile.
    pub fn listen(path: &Path, handler: Arc<dyn RequestHandler>) -> Result<Self, ControlError> {
        let socket = SocketFile::listen(path)?;
        Self::serve(socket, None, handler)
    }

    /// The same at a path that nobody else uses, in a directory that only this user can enter:
    /// `$XDG_RUNTIME_DIR/subpage/PID.sock`, or one in a fresh directory for temporary files.
    ///
    /// What killed processes have left there is removed.
    pub fn listen_somewhere(handler: Arc<dyn RequestHandler>) -> Result<Self, ControlError> {
        let (socket, directory) = path::find(SocketFile::listen)?;
        Self::serve(socket, directory, handler)
    }

    fn serve(
        (socket, listener): (SocketFile, UnixListener),
        directory: Option<TempDir>,
        handler: Arc<dyn RequestHandler>,
    ) -> Result<Self, ControlError> {
        let path = socket.path().to_owned();
        let cannot = |cause| system("serve the control socket", &path, cause);
        let connections = Arc::new(Connections::default());
        let accepting = {
            let listener = listener.try_clone().map_err(cannot)?;
            let connections = Arc::clone(&connections);
            thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || accept(&listener, &*handler, &connections))
                .map_err(cannot)?
        };
        Ok(Self {
            socket,
            listener,
            connections,
            accepting: Some(accepting),
            _directory: directory,
        })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.connections.stop(GRACE);
        // Linux ends an `accept` of a listening socket that is shut down, also a coming one.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            // A panic in it has been printed already, and concerned a client only.
            let _ = accepting.join();
        }
    }
}

/// Takes connections until the server stops, then waits for the clients' threads.
fn accept(listener: &UnixListener, handler: &dyn RequestHandler, connections: &Connections) {
    thread::scope(|scope| {
        loop {
            let accepted = listener.accept();
            if connections.stopping() {
                return;
            }
            match accepted {
                Ok((stream, _)) => welcome(scope, stream, handler, connections),
                Err(_) => connections.pause(PAUSE),
            }
        }
    });
}

/// Gives a client its thread, or says why not.
fn welcome<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    stream: UnixStream,
    handler: &'env dyn RequestHandler,
    connections: &'env Connections,
) {
    // What is refused here is written into an empty buffer, so it does not block; and who got no
    // refusal sees the connection closed.
    if stream.set_write_timeout(Some(WRITE_TIMEOUT)).is_err() {
        return;
    }
    match peer(&stream) {
        Ok(peer) if may_use(peer, geteuid().as_raw()) => {}
        Ok(peer) => {
            let error = format!("user {peer} may not control this guest, only its owner may");
            return send_refusal(&stream, &Refusal::new("EPERM", error));
        }
        Err(cause) => {
            let error = format!("cannot tell who you are: {cause}");
            return send_refusal(&stream, &Refusal::new("EPERM", error));
        }
    }
    let stream = Arc::new(stream);
    let Some(place) = connections.admit(&stream, MAX_CLIENTS) else {
        let error = format!(
            "{MAX_CLIENTS} clients watch, or have something done, already: end one of them"
        );
        return send_refusal(&stream, &Refusal::new("EBUSY", error));
    };
    let connection = Connection { stream: Arc::clone(&stream), place, handler };
    let spawned = thread::Builder::new()
        .name("control client".to_owned())
        .spawn_scoped(scope, move || connection.serve());
    if let Err(cause) = spawned {
        let error = format!("cannot start a thread for you: {cause}");
        send_refusal(&stream, &Refusal::new("ENOMEM", error));
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// The user at the other end, as of when it connected.
fn peer(stream: &UnixStream) -> io::Result<u32> {
    Ok(socket::getsockopt(stream, sockopt::PeerCredentials)?.uid())
}

/// The file's mode keeps others out already, unless somebody changes it.
const fn may_use(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::unistd::geteuid;

    use super::{may_use, peer};

    #[test]
    fn the_owner_and_root_may_use_it() {
        assert!(may_use(1000, 1000));
        assert!(may_use(0, 1000));
        assert!(may_use(0, 0));
        assert!(!may_use(1000, 0));
        assert!(!may_use(1000, 1001));
        let (one, _other) = UnixStream::pair().expect("a pair of sockets");
        assert_eq!(peer(&one).expect("it has a peer"), geteuid().as_raw());
    }
}
