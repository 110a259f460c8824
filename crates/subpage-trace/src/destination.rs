//! Where a file that appears complete or not at all may take its name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The path that a complete new file may be renamed to, so that it appears under `path`.
///
/// A link is followed, and stays; one that leads nowhere is replaced. A name that is free is given
/// back as it is.
///
/// Fails where something other than a regular file has the name: a rename would put a file in the
/// place of a device or a pipe, for every program of the machine.
pub fn destination(path: &Path) -> io::Result<PathBuf> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        // Whether the folder is there, its creator finds out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path.to_owned()),
        Err(error) => return Err(error),
    };
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a device, a pipe or a socket; name a regular file",
        ));
    }
    path.canonicalize()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_regular_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name| folder.path().join(name);
        assert_eq!(destination(&path("free")).expect("free"), path("free"));
        fs::write(path("file"), "older").expect("writable");
        symlink("file", path("link")).expect("a link");
        let file = path("file").canonicalize().expect("there");
        assert_eq!(destination(&path("file")).expect("a file"), file);
        assert_eq!(destination(&path("link")).expect("a link"), file);
        symlink("nothing", path("dangling")).expect("a link");
        assert_eq!(destination(&path("dangling")).expect("free"), path("dangling"));
        let error = destination(folder.path()).expect_err("a folder");
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        let _listener = UnixListener::bind(path("socket")).expect("a socket");
        let error = destination(&path("socket")).expect_err("a socket");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(destination(&path("file/below")).is_err());
    }
}
