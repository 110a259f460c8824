//! Files that appear whole or not at all.

use std::io::{self, Write};
use std::path::Path;

use subpage_trace::destination;

use crate::failure::Failure;

/// Finds out whether `path` can be written, before long work is done for it; `what` names the file
/// to people ("the report").
pub fn check(path: &Path, what: &str) -> Result<(), Failure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if path.is_dir() {
        return Err(Failure::Input(format!(
            "cannot write {what} {}: it is a directory; name a file",
            path.display()
        )));
    }
    match parent {
        Some(parent) if !parent.is_dir() => Err(Failure::Input(format!(
            "cannot write {what} {}: there is no directory {}; create it first",
            path.display(),
            parent.display()
        ))),
        _ => destination(path).map(|_| ()).map_err(|error| {
            Failure::input(format_args!("cannot write {what} {}", path.display()), &error)
        }),
    }
}

/// Writes `bytes` under `path`, whole or not at all: a new file beside it takes the name when it is
/// complete.
///
/// Fails as [`destination`] does, and where the file cannot be created or written.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = destination(path)?;
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".subpage-").suffix(".new");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: the process's umask takes away what it wants.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    Ok(())
}
