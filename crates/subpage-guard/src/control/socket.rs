//! The socket as a file: only its owner can connect to it, and a dead process's is replaced.
//!
//! Two facts make it private from the first moment. Linux gives a socket's file the mode of the
//! socket itself, minus the umask, so `fchmod` before `bind` leaves no moment in which the file is
//! more open; the umask, which all threads share, is not touched. And until `listen` nobody can
//! connect whatever the mode is, so the file is checked before that.
//!
//! Whether a socket that is there already is a dead process's is told by a lock on a file next to it,
//! which the kernel releases when a process ends, however it ends. Asking the socket itself cannot
//! tell: one that is bound and not yet listening looks dead.
//!
//! The lock file says what it is: another file of its name is neither locked nor removed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
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
use crate::temporary_file::nameless;

/// Nobody but the owner.
const MODE: u32 = 0o600;

/// What a lock file holds.
const MARK: &[u8] = b"The lock of a control socket of subpage.\n";

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
        // While the lock is still held: a process that opened the file meanwhile sees that it is gone.
        let _ = fs::remove_file(&self.lock.path);
    }
}

impl LockFile {
    /// Takes the lock that belongs to the socket `socket`.
    fn take(socket: &Path) -> Result<Self, ControlError> {
        let path = lock_path(socket);
        for _ in 0..LOCK_ATTEMPTS {
            if let Some(lock) = Self::make(&path)? {
                return Ok(lock);
            }
            if let Some(lock) = Self::adopt(&path, socket)? {
                return Ok(lock);
            }
        }
        Err(ControlError::InUse { path: socket.to_owned() })
    }

    /// Makes the lock file; `None` if there is one. It is locked before it is seen.
    fn make(path: &Path) -> Result<Option<Self>, ControlError> {
        let failed = |cause| system("make the lock file", path, nameless(cause));
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut file = tempfile::Builder::new()
            .prefix(".subpage-")
            .suffix(LOCK_SUFFIX)
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(parent.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        file.write_all(MARK).map_err(failed)?;
        // The lock belongs to both descriptors.
        let lock = file.as_file().try_clone().map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| failed(error.into()))?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(Some(Self { path: path.to_owned(), _lock: lock })),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(failed(error.error)),
        }
    }

    /// Takes the lock file that is there; `None` if it goes meanwhile.
    fn adopt(path: &Path, socket: &Path) -> Result<Option<Self>, ControlError> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A link, a socket or a directory.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ELOOP | libc::ENXIO | libc::EISDIR)
                ) =>
            {
                return Err(ControlError::NotALock { path: path.to_owned() });
            }
            Err(cause) => return Err(system("open the lock file", path, cause)),
        };
        let found = file.metadata().map_err(|cause| system("see", path, cause))?;
        if !found.is_file() || !is_marked(&file) {
            return Err(ControlError::NotALock { path: path.to_owned() });
        }
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, error)| match error {
                    Errno::EWOULDBLOCK => ControlError::InUse { path: socket.to_owned() },
                    other => system("lock", path, other.into()),
                },
            )?;
        let is_there = fs::symlink_metadata(path).is_ok_and(|at| identity(&at) == identity(&found));
        Ok(is_there.then(|| Self { path: path.to_owned(), _lock: lock }))
    }
}

const LOCK_SUFFIX: &str = ".lock";

fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(LOCK_SUFFIX);
    PathBuf::from(path)
}

fn is_marked(mut file: &File) -> bool {
    let mut content = Vec::new();
    let read = (&mut file).take(MARK.len() as u64 + 1).read_to_end(&mut content);
    read.is_ok() && content == MARK
}

/// Removes what dead processes have left of sockets in a directory that only this user may change;
/// whether there was something. What cannot be removed stays.
pub(super) fn remove_dead(directory: &Path) -> bool {
    let mut removed = false;
    let Ok(files) = fs::read_dir(directory) else { return false };
    for file in files.flatten() {
        let path = file.path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let socket = path.with_extension("");
        // The holder of the lock is alive, in whatever namespace.
        let Ok(Some(lock)) = LockFile::adopt(&path, &socket) else { continue };
        if fs::symlink_metadata(&socket).is_ok_and(|found| found.file_type().is_socket()) {
            let _ = fs::remove_file(&socket);
        }
        removed |= fs::remove_file(&lock.path).is_ok();
    }
    removed
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

pub(super) fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
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

    use super::{MARK, MODE, SocketFile, mode, new_socket, remove_dead};
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
        fs::write(directory.path().join("guest.sock.lock"), MARK).expect("a lock file");
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

    /// The lock's name may belong to another program, whose file is not ours to lock or to remove.
    #[test]
    fn a_file_that_is_no_lock_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, lock) = (directory.path().join("x"), directory.path().join("x.lock"));
        for content in ["", "kept", "The lock of a control socket of subpage.\nkept"] {
            fs::write(&lock, content).expect("a file");
            let error = SocketFile::listen(&path).expect_err("a file");
            assert!(matches!(error, ControlError::NotALock { .. }), "{error}");
            assert_eq!(fs::read_to_string(&lock).expect("still there"), content);
        }
        fs::remove_file(&lock).expect("it is there");
        let other = directory.path().join("other");
        fs::write(&other, MARK).expect("a file");
        std::os::unix::fs::symlink(&other, &lock).expect("a link");
        let error = SocketFile::listen(&path).expect_err("a link");
        assert!(matches!(error, ControlError::NotALock { .. }), "{error}");
        fs::remove_file(&lock).expect("it is there");
        drop(SocketFile::listen(&path).expect("nothing stands in the way"));
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn only_what_the_dead_have_left_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let (_living, _listener) = SocketFile::listen(&at("7.sock")).expect("a socket");
        drop(UnixListener::bind(at("8.sock")).expect("a socket"));
        fs::write(at("8.sock.lock"), MARK).expect("a lock file");
        fs::write(at("9.sock.lock"), MARK).expect("a lock file");
        fs::write(at("9.sock"), "no socket").expect("a file");
        fs::write(at("other.lock"), "another program's").expect("a file");
        assert!(remove_dead(directory.path()));
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .expect("it is there")
            .map(|file| file.expect("a file").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["7.sock", "7.sock.lock", "9.sock", "other.lock"]);
        assert!(!remove_dead(directory.path()));
        UnixStream::connect(at("7.sock")).expect("it still listens");
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
