//! Listening for debuggers, of which one at a time is served.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::address::DebuggerAddress;
use super::connection::{Connection, Stream};
use super::greeting::greeting;
use super::peer;
use super::session::{End, serve};
use super::target::Debugged;
use crate::ending::Ending;
use crate::vm::{Vm, VmShared};

/// How often somebody new is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Most addresses of one guest.
const MOST_ADDRESSES: usize = 8;

/// Most that are listened to at once at one address, of which one at most has the guest.
const MOST_CALLERS: usize = 8;

/// Nobody can be listened for.
#[derive(Debug, Error)]
pub enum DebuggerError {
    /// The host refuses the address.
    #[error("cannot wait for a debugger at {address}: {cause}")]
    Listen {
        /// Where.
        address: DebuggerAddress,
        /// Why.
        cause: io::Error,
    },
    /// It waits at many addresses already.
    #[error("this guest waits for debuggers at {MOST_ADDRESSES} addresses already")]
    TooMany,
    /// The guest has ended.
    #[error("the guest has ended")]
    Ended,
}

/// A socket that waits, and the file to be removed with it.
struct Listener {
    socket: Socket,
    file: Option<PathBuf>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn new(address: &DebuggerAddress) -> io::Result<(Self, DebuggerAddress)> {
        match address {
            DebuggerAddress::Tcp(at) => {
                let socket = TcpListener::bind(at)?;
                socket.set_nonblocking(true)?;
                let bound = DebuggerAddress::Tcp(socket.local_addr()?);
                Ok((Self { socket: Socket::Tcp(socket), file: None }, bound))
            }
            DebuggerAddress::Unix(path) => {
                let socket = UnixListener::bind(path)?;
                let listener =
                    Self { socket: Socket::Unix(socket), file: Some(std::path::absolute(path)?) };
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                if let Socket::Unix(socket) = &listener.socket {
                    socket.set_nonblocking(true)?;
                }
                let bound = listener.file.clone().unwrap_or_default();
                Ok((listener, DebuggerAddress::Unix(bound)))
            }
        }
    }

    /// Who has come; none if nobody has, or another user than this process's.
    fn accept(&self) -> Option<Stream> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept().ok()?;
                let own = stream.local_addr().ok()?;
                peer::may_use(peer::user_of_tcp(peer, own)).then_some(Stream::Tcp(stream))
            }
            Socket::Unix(socket) => {
                let (stream, _) = socket.accept().ok()?;
                peer::may_use(peer::user_of_unix(&stream)).then_some(Stream::Unix(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

impl VmShared {
    /// Waits for debuggers, one at a time, until the machine ends; where.
    pub(crate) fn wait_for_debuggers(
        self: &Arc<Self>,
        address: &DebuggerAddress,
    ) -> Result<DebuggerAddress, DebuggerError> {
        let listen = |cause| DebuggerError::Listen { address: address.clone(), cause };
        let mut threads = self.debugger_threads();
        threads.retain(|thread| !thread.is_finished());
        if threads.len() >= MOST_ADDRESSES {
            return Err(DebuggerError::TooMany);
        }
        if self.vcpus.has_ended() {
            return Err(DebuggerError::Ended);
        }
        let (listener, bound) = Listener::new(address).map_err(listen)?;
        if let DebuggerAddress::Tcp(at) = &bound
            && !at.ip().is_loopback()
        {
            self.debugger_says(format!(
                "a debugger is waited for at {at}: whoever reaches that port has the whole guest"
            ));
        }
        let machine = Arc::clone(self);
        let waiting = thread::Builder::new()
            .name("gdb".to_owned())
            .spawn(move || wait(&machine, &listener))
            .map_err(listen)?;
        threads.push(waiting);
        Ok(bound)
    }
}

/// Serves who comes until the machine ends.
fn wait(machine: &Arc<VmShared>, listener: &Listener) {
    let callers = AtomicUsize::new(0);
    thread::scope(|scope| {
        while !machine.vcpus.has_ended() {
            let Some(stream) = listener.accept() else {
                machine.ending.wait(LOOK);
                continue;
            };
            if callers.load(Ordering::SeqCst) >= MOST_CALLERS {
                continue;
            }
            callers.fetch_add(1, Ordering::SeqCst);
            let callers = &callers;
            let session = thread::Builder::new().name("gdb session".to_owned());
            let spawned = session.spawn_scoped(scope, move || {
                attend(machine, stream);
                callers.fetch_sub(1, Ordering::SeqCst);
            });
            if spawned.is_err() {
                callers.fetch_sub(1, Ordering::SeqCst);
            }
        }
    });
}

/// One caller, who has the guest if it is a debugger, and no other has it.
fn attend(machine: &Arc<VmShared>, stream: Stream) {
    let Ok(mut connection) = Connection::new(stream) else { return };
    let Some(said) = greeting(&mut connection, || machine.vcpus.has_ended()) else { return };
    if !machine.begin_debugging() {
        // gdb shows the text of an error to its first packet.
        let _ = connection.answer("E.another debugger has this guest");
        return;
    }
    machine.hold();
    let mut target = Debugged::new(Arc::clone(machine));
    target.attached(machine.wait_for_stops(Duration::ZERO));
    machine.debugger_says("a debugger is attached".to_owned());
    let end = serve(&mut target, connection, &said);
    if matches!(end, End::Killed) {
        machine.end(Ending::Requested);
    }
    machine.hold();
    target.take_all_back();
    let goes_on = machine.end_debugging(!matches!(end, End::Broken(_)));
    let guest = if goes_on { "the guest goes on" } else { "the guest stays held" };
    machine.debugger_says(match end {
        End::Detached => format!("the debugger is gone, and {guest}"),
        End::SentAway => format!("the debugger was sent away, and {guest}"),
        End::Killed => "the debugger has ended the guest".to_owned(),
        End::GuestEnded => "the guest has ended under the debugger".to_owned(),
        End::Broken(reason) => format!("the debugger was turned away, and {guest}: {reason}"),
    });
}

impl Vm {
    /// Waits for debuggers at an address, one at a time, until the guest ends; where, with the port that
    /// was chosen. One that comes holds the guest, and lets it go on when it goes.
    pub fn wait_for_debuggers(
        &self,
        address: &DebuggerAddress,
    ) -> Result<DebuggerAddress, DebuggerError> {
        self.shared().wait_for_debuggers(address)
    }
}
