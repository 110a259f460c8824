//! Where the control socket is if nobody says where.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tempfile::TempDir;

use super::error::ControlError;
use super::socket::{remove_dead, system};
use crate::temporary_file::nameless;

/// Longest path of a socket in bytes.
const MAX_PATH_BYTES: usize = 107;

/// How many processes of one number, in as many namespaces, find a name in one directory.
const NAMES: u32 = 64;

/// What the name of a directory for one socket begins with.
const PREFIX: &str = "subpage-";

/// Calls `listen` with paths, in directories that only this user can enter, until one is not in use.
/// Gives the directory, if it was made for this socket alone: to be dropped after the socket.
///
/// The paths are `$XDG_RUNTIME_DIR/subpage/PID.sock`, or `PID-N.sock` where a process of that number
/// in another namespace has it; and a file in a fresh directory under the directory for temporary
/// files, or under `/tmp`, where there is no such directory of this user's or its path is too long.
///
/// What killed processes have left in these places is removed.
pub(super) fn find<T>(
    listen: impl FnMut(&Path) -> Result<T, ControlError>,
) -> Result<(T, Option<TempDir>), ControlError> {
    let runtime = env::var_os("XDG_RUNTIME_DIR");
    find_in(runtime.as_deref(), &[&env::temp_dir(), Path::new("/tmp")], listen)
}

fn find_in<T>(
    runtime: Option<&OsStr>,
    temporary: &[&Path],
    mut listen: impl FnMut(&Path) -> Result<T, ControlError>,
) -> Result<(T, Option<TempDir>), ControlError> {
    let process = std::process::id();
    // The variable may have come along from another user, by `sudo -E`; then it is not used.
    let runtime = runtime.map(Path::new).filter(|path| path.is_absolute() && is_private(path));
    let directory = runtime.map(|runtime| runtime.join("subpage"));
    if let Some(directory) =
        directory.filter(|it| fits(&it.join(format!("{process}-{NAMES}.sock"))))
    {
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(system("make the directory", &directory, cause));
            }
            _ if is_private(&directory) => {}
            _ => return Err(ControlError::Directory { path: directory }),
        }
        remove_dead(&directory);
        for number in 1..NAMES {
            let name = match number {
                1 => format!("{process}.sock"),
                _ => format!("{process}-{number}.sock"),
            };
            match listen(&directory.join(name)) {
                Err(ControlError::InUse { .. }) => {}
                listening => return Ok((listening?, None)),
            }
        }
        return Err(ControlError::InUse { path: directory.join(format!("{process}.sock")) });
    }
    let path = |directory: &Path| directory.join(format!("{process}.sock"));
    let example = |temporary: &Path| path(&temporary.join(format!("{PREFIX}000000")));
    let chosen = temporary.iter().find(|temporary| fits(&example(temporary)));
    let Some(temporary) = chosen else {
        let path = temporary.first().map(|temporary| example(temporary));
        return Err(ControlError::PathTooLong { path: path.unwrap_or_default() });
    };
    remove_dead_directories(temporary);
    // Made with mode 0700, whatever the umask is.
    let directory = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(temporary)
        .map_err(|cause| system("make a directory in", temporary, nameless(cause)))?;
    Ok((listen(&path(directory.path()))?, Some(directory)))
}

/// The sockets of this user's running guests in the places where `find` makes them. Some may be of
/// processes that have been killed.
pub fn default_sockets() -> Vec<PathBuf> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|path| path.is_absolute()).map(|path| path.join("subpage"));
    let mut directories: Vec<PathBuf> = runtime.into_iter().collect();
    for temporary in [env::temp_dir(), PathBuf::from("/tmp")] {
        let own = entries(&temporary).filter(|path| {
            path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
        });
        directories.extend(own);
    }
    let mut sockets: Vec<_> = directories
        .iter()
        .filter(|directory| is_private(directory))
        .flat_map(|directory| entries(directory))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    sockets.dedup();
    sockets
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn fits(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() <= MAX_PATH_BYTES
}

/// Removes the directories of killed processes. One that is empty may belong to a process that is
/// just about to listen in it, and stays.
fn remove_dead_directories(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let named = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        if named && is_private(&path) && remove_dead(&path) {
            let _ = fs::remove_dir(&path);
        }
    }
}

/// A directory, no link to one, of this user, which nobody else may change.
fn is_private(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|found| {
        found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use super::{MAX_PATH_BYTES, PREFIX, find_in};
    use crate::control::ControlError;
    use crate::control::socket::SocketFile;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    /// The first path that is tried.
    fn first(runtime: Option<&Path>, temporary: &[&Path]) -> Result<PathBuf, ControlError> {
        let listen = |path: &Path| Ok(path.to_owned());
        find_in(runtime.map(Path::as_os_str), temporary, listen).map(|found| found.0)
    }

    #[test]
    fn in_the_runtime_directory_if_there_is_one() {
        let root = tempfile::tempdir().expect("a directory");
        let chosen = first(Some(root.path()), &[]).expect("a path");
        let directory = root.path().join("subpage");
        assert_eq!(chosen, directory.join(format!("{}.sock", std::process::id())));
        assert_eq!(mode(&directory), 0o700);
        // It is used again, and stays.
        assert_eq!(first(Some(root.path()), &[]).expect("a path"), chosen);
        assert!(directory.is_dir());
    }

    /// As in two containers that share the directory and have a process of the same number each.
    #[test]
    fn two_processes_of_one_number_have_a_socket_each() {
        let root = tempfile::tempdir().expect("a directory");
        let listen = || find_in(Some(root.path().as_os_str()), &[], SocketFile::listen);
        let ((one, _first), _) = listen().expect("a socket");
        let ((two, _second), _) = listen().expect("another");
        assert_ne!(one.path(), two.path());
        drop(one);
        // The name that is free again is taken first.
        let ((three, _third), _) = listen().expect("a third");
        assert_ne!(three.path(), two.path());
        drop((two, three));
        assert_eq!(fs::read_dir(root.path().join("subpage")).expect("it is there").count(), 0);
    }

    #[test]
    fn a_directory_that_others_may_change_is_an_error() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("subpage");
        fs::create_dir(&directory).expect("a directory");
        fs::set_permissions(&directory, Permissions::from_mode(0o777)).expect("more open");
        let error = first(Some(root.path()), &[root.path()]).expect_err("too open");
        assert!(matches!(error, ControlError::Directory { .. }), "{error}");

        fs::remove_dir(&directory).expect("it is empty");
        std::os::unix::fs::symlink(root.path(), &directory).expect("a link");
        let error = first(Some(root.path()), &[root.path()]).expect_err("a link");
        assert!(matches!(error, ControlError::Directory { .. }), "{error}");
    }

    #[test]
    fn in_a_fresh_directory_otherwise() {
        let root = tempfile::tempdir().expect("a directory");
        let missing = root.path().join("missing");
        for runtime in [None, Some(Path::new("")), Some(Path::new("relative")), Some(&missing)] {
            let runtime = runtime.map(Path::as_os_str);
            let found = find_in(runtime, &[root.path()], SocketFile::listen).expect("a path");
            let ((socket, listener), directory) = found;
            let directory = directory.expect("it was made for this socket");
            assert_eq!(directory.path().parent(), Some(root.path()));
            assert_eq!(mode(directory.path()), 0o700);
            drop((listener, socket, directory));
            assert_eq!(fs::read_dir(root.path()).expect("it is there").count(), 0);
        }
        first(None, &[&missing]).expect_err("no directory for temporary files");
    }

    #[test]
    fn a_directory_whose_path_is_too_long_is_not_used() {
        let root = tempfile::tempdir().expect("a directory");
        let long = root.path().join("x".repeat(MAX_PATH_BYTES - 30));
        fs::create_dir(&long).expect("a directory");
        let listen = || find_in(Some(long.as_os_str()), &[&long, root.path()], SocketFile::listen);
        let ((socket, _listener), _directory) = listen().expect("the path fits");
        assert!(socket.path().starts_with(root.path()) && !socket.path().starts_with(&long));
        let error = first(Some(&long), &[&long]).expect_err("it does not fit");
        assert!(matches!(error, ControlError::PathTooLong { .. }), "{error}");
    }

    #[test]
    fn directories_of_killed_processes_are_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let listen = || find_in(None, &[root.path()], SocketFile::listen).expect("a path");
        let (living, killed) = (listen(), listen());
        // A killed process leaves both files, and no lock is held.
        let killed = killed.1.as_ref().expect("a directory").path().to_owned();
        let name = format!("{}.sock", std::process::id());
        let dead = root.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&dead).expect("a directory");
        fs::set_permissions(&dead, Permissions::from_mode(0o700)).expect("private");
        fs::copy(killed.join(format!("{name}.lock")), dead.join(format!("{name}.lock")))
            .expect("a lock file");
        let starting = root.path().join(format!("{PREFIX}starting"));
        fs::create_dir(&starting).expect("a directory");
        let other = root.path().join(format!("{PREFIX}other"));
        fs::create_dir(&other).expect("a directory");
        fs::write(other.join("kept"), "kept").expect("a file");
        drop(listen());
        assert!(!dead.exists());
        for there in [&starting, &other.join("kept"), &killed.join(&name)] {
            assert!(there.exists(), "{} is gone", there.display());
        }
        drop(living);
    }
}
