//! The socket as a file: only its owner can connect to it, and a dead process's is replaced.
//!
//! Two facts make it private from the first moment. Linux gives a socket's file the mode of the
//! socket itself, minus the umask, so `fchmod` before `bind` leaves no moment in which the file is
//! more open; the umask, which all threads share, is not touched. And until `listen` nobody can
//! connect whatever the mode is, so the file is checked before that.
//!
//! Whether a socket that is there already is a dead process's is told by a lock on a file beside it,
//! which the kernel releases when a process ends, however it ends. Asking the socket itself cannot
//! tell: one that is bound and not yet listening looks dead.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};

use super::error::ControlError;

/// Nobody but the owner.
const MODE: u32 = 0o600;

/// How often the lock file may be exchanged under us: each time another process has just ended.
const LOCK_ATTEMPTS: u32 = 16;

/// A socket's file that is ours. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode of the socket: another one at the same path is not ours to remove.
    identity: (u64, u64),
    lock: LockFile,
}

#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    /// Held until it is dropped.
    _lock: Flock<File>,
}

impl SocketFile {
    /// Makes the socket at `path`, and listens.
    pub(super) fn listen(path: &Path) -> Result<(Self, UnixListener), ControlError> {
        let address =
            UnixAddr::new(path).map_err(|_| ControlError::PathTooLong { path: path.to_owned() })?;
        let lock = LockFile::take(path)?;
        remove_stale(path, &address)?;
        let system = |doing| move |cause: io::Error| system(doing, path, cause);

        let descriptor = new_socket(SockFlag::empty()).map_err(system("make a socket for"))?;
        let descriptor = File::from(descriptor);
        descriptor
            .set_permissions(Permissions::from_mode(MODE))
            .map_err(system("make private the control socket"))?;
        bind(descriptor.as_raw_fd(), &address)
            .map_err(|error| system("make the control socket")(error.into()))?;
        let identity = fs::symlink_metadata(path).map(|made| identity(&made));
        let identity = identity.map_err(system("see the control socket"))?;
        // From here on an error removes the socket.
        let file = Self { path: path.to_owned(), identity, lock };
        file.make_private().map_err(system("make private the control socket"))?;
        let descriptor = OwnedFd::from(descriptor);
        listen(&descriptor, Backlog::MAXCONN)
            .map_err(|error| system("listen on the control socket")(error.into()))?;
        Ok((file, UnixListener::from(descriptor)))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the mode what it has to be, if the umask took from it or the file system ignored it.
    fn make_private(&self) -> io::Result<()> {
        if mode(&self.path)? != MODE {
            fs::set_permissions(&self.path, Permissions::from_mode(MODE))?;
        }
        match mode(&self.path)? {
            MODE => Ok(()),
            other => Err(io::Error::other(format!("its mode stays {other:o}"))),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|at| identity(&at) == self.identity);
        if ours {
            // What cannot be removed is replaced by the next process.
            let _ = fs::remove_file(&self.path);
        }
        // While the lock is still held: whoever opened the file meanwhile sees that it is gone.
        let _ = fs::remove_file(&self.lock.path);
    }
}

impl LockFile {
    /// Takes the lock that belongs to the socket `socket`.
    fn take(socket: &Path) -> Result<Self, ControlError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        for _ in 0..LOCK_ATTEMPTS {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(MODE)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path)
                .map_err(|cause| system("make the lock file", &path, cause))?;
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, error)| match error {
                    Errno::EWOULDBLOCK => ControlError::InUse { path: socket.to_owned() },
                    other => system("lock", &path, other.into()),
                },
            )?;
            let locked = lock.metadata().map_err(|cause| system("see", &path, cause))?;
            if fs::symlink_metadata(&path).is_ok_and(|at| identity(&at) == identity(&locked)) {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(ControlError::InUse { path: socket.to_owned() })
    }
}

/// Removes a socket that nobody serves. Call it with the lock held.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), ControlError> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(system("see", path, cause)),
    };
    if !there.file_type().is_socket() {
        return Err(ControlError::NotASocket { path: path.to_owned() });
    }
    // Other programs do not take our lock. Not blocking: a living one may have a full backlog.
    let probe = new_socket(SockFlag::SOCK_NONBLOCK)
        .map_err(|cause| system("make a socket to try", path, cause))?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(|cause| system("remove the old socket", path, cause))
        }
        Err(Errno::ENOENT) => Ok(()),
        _ => Err(ControlError::InUse { path: path.to_owned() }),
    }
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

fn mode(path: &Path) -> io::Result<u32> {
    Ok(fs::symlink_metadata(path)?.permissions().mode() & 0o777)
}

fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

pub(super) fn system(doing: &'static str, path: &Path, cause: io::Error) -> ControlError {
    ControlError::System { doing, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::socket::{SockFlag, UnixAddr, bind};

    use super::{MODE, SocketFile, mode, new_socket};
    use crate::control::ControlError;

    #[test]
    fn only_the_owner_may_connect() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("guest.sock");
        let (socket, _listener) = SocketFile::listen(&path).expect("a socket");
        assert_eq!(mode(&path).expect("it is there"), 0o600);
        let lock = directory.path().join("guest.sock.lock");
        assert_eq!(mode(&lock).expect("it is there"), 0o600);
        assert_eq!(socket.path(), path);
        UnixStream::connect(&path).expect("it listens");
        drop(socket);
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    /// The fact that the module relies on, on the kernel that runs this.
    #[test]
    fn a_socket_hands_its_mode_to_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, wanted) in [("private", MODE), ("closed", 0o400)] {
            let path = directory.path().join(name);
            let socket = File::from(new_socket(SockFlag::empty()).expect("a socket"));
            socket.set_permissions(Permissions::from_mode(wanted)).expect("it has a mode");
            let address = UnixAddr::new(&path).expect("a short path");
            bind(socket.as_raw_fd(), &address).expect("a file");
            assert_eq!(mode(&path).expect("it is there"), wanted);
        }
    }

    #[test]
    fn a_dead_process_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("guest.sock");
        // What `kill -9` leaves: the files, and nobody who holds them.
        drop(UnixListener::bind(&path).expect("a socket"));
        fs::write(directory.path().join("guest.sock.lock"), "").expect("a lock file");
        let (socket, listener) = SocketFile::listen(&path).expect("the old socket is replaced");

        let error = SocketFile::listen(&path).expect_err("it is in use");
        assert!(matches!(error, ControlError::InUse { .. }), "{error}");
        UnixStream::connect(&path).expect("the first one was left alone");
        drop((socket, listener));

        // A program that knows nothing of the lock.
        let other = UnixListener::bind(&path).expect("a socket");
        let error = SocketFile::listen(&path).expect_err("it is in use");
        assert!(matches!(error, ControlError::InUse { .. }), "{error}");
        drop(other);
        SocketFile::listen(&path).expect("now it is not");
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "kept").expect("a file");
        let error = SocketFile::listen(&path).expect_err("a file");
        assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"kept");

        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("nowhere"), &link).expect("a link");
        let error = SocketFile::listen(&link).expect_err("a link");
        assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
    }

    #[test]
    fn a_path_that_does_not_fit_or_is_not_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x".repeat(107));
        let error = SocketFile::listen(&path).expect_err("too long");
        assert!(matches!(error, ControlError::PathTooLong { .. }), "{error}");
        assert!(error.to_string().contains("107"), "{error}");

        let path = directory.path().join("none/guest.sock");
        let error = SocketFile::listen(&path).expect_err("no directory");
        assert!(matches!(error, ControlError::System { .. }), "{error}");
    }

    #[test]
    fn a_socket_that_took_the_place_is_not_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("guest.sock");
        let (socket, _listener) = SocketFile::listen(&path).expect("a socket");
        // The other one exists before the first is gone: no inode is used twice.
        let elsewhere = directory.path().join("other.sock");
        let _other = UnixListener::bind(&elsewhere).expect("another socket");
        fs::rename(&elsewhere, &path).expect("it takes the place");
        drop(socket);
        UnixStream::connect(&path).expect("the other one is still there");
    }
}
