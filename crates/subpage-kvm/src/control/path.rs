//! Where the control socket is if nobody says where.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tempfile::TempDir;

use super::error::ControlError;
use super::socket::system;

/// A path for a control socket, in a directory that only this user can enter.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// The directory, if it was made for this socket alone: removed with it.
    _directory: Option<TempDir>,
}

impl SocketPath {
    /// The path. Drop the [`Server`](super::Server) that listens there before this.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `$XDG_RUNTIME_DIR/subpage/PID.sock`, or a file in a fresh directory under the directory for
/// temporary files where there is no such directory of this user's.
pub fn default_path() -> Result<SocketPath, ControlError> {
    choose(env::var_os("XDG_RUNTIME_DIR").as_deref(), &env::temp_dir())
}

fn choose(runtime: Option<&OsStr>, temporary: &Path) -> Result<SocketPath, ControlError> {
    let name = format!("{}.sock", std::process::id());
    // The variable may have come along from another user, by `sudo -E`; then it is not used.
    let runtime = runtime.map(Path::new).filter(|path| path.is_absolute() && is_private(path));
    if let Some(runtime) = runtime {
        let directory = runtime.join("subpage");
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(system("make the directory", &directory, cause));
            }
            _ if is_private(&directory) => {}
            _ => return Err(ControlError::Directory { path: directory }),
        }
        return Ok(SocketPath { path: directory.join(name), _directory: None });
    }
    // Made with mode 0700, whatever the umask is.
    let directory = tempfile::Builder::new()
        .prefix("subpage-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir_in(temporary)
        .map_err(|cause| system("make a directory in", temporary, cause))?;
    Ok(SocketPath { path: directory.path().join(name), _directory: Some(directory) })
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
    use std::path::Path;

    use super::choose;
    use crate::control::ControlError;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn in_the_runtime_directory_if_there_is_one() {
        let root = tempfile::tempdir().expect("a directory");
        let chosen = choose(Some(root.path().as_os_str()), Path::new("none")).expect("a path");
        let directory = root.path().join("subpage");
        assert_eq!(chosen.path(), directory.join(format!("{}.sock", std::process::id())));
        assert_eq!(mode(&directory), 0o700);
        // It is used again, and stays.
        let again = choose(Some(root.path().as_os_str()), Path::new("none")).expect("a path");
        assert_eq!(again.path(), chosen.path());
        drop((chosen, again));
        assert!(directory.is_dir());
    }

    #[test]
    fn a_directory_that_others_may_change_is_an_error() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("subpage");
        fs::create_dir(&directory).expect("a directory");
        fs::set_permissions(&directory, Permissions::from_mode(0o777)).expect("more open");
        let error = choose(Some(root.path().as_os_str()), root.path()).expect_err("too open");
        assert!(matches!(error, ControlError::Directory { .. }), "{error}");

        fs::remove_dir(&directory).expect("it is empty");
        std::os::unix::fs::symlink(root.path(), &directory).expect("a link");
        let error = choose(Some(root.path().as_os_str()), root.path()).expect_err("a link");
        assert!(matches!(error, ControlError::Directory { .. }), "{error}");
    }

    #[test]
    fn in_a_fresh_directory_otherwise() {
        let root = tempfile::tempdir().expect("a directory");
        let missing = root.path().join("missing");
        for runtime in [None, Some(Path::new("")), Some(Path::new("relative")), Some(&missing)] {
            let chosen = choose(runtime.map(Path::as_os_str), root.path()).expect("a path");
            let directory = chosen.path().parent().expect("it has one").to_owned();
            assert_eq!(directory.parent(), Some(root.path()));
            assert_eq!(mode(&directory), 0o700);
            drop(chosen);
            assert!(!directory.exists());
        }
        choose(None, &missing).expect_err("no directory for temporary files");
    }
}
