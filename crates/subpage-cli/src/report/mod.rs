//! One self-contained page about a guarded run: no network, no script, light and dark.

mod exits;
mod heat_map;
mod page;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use subpage_trace::destination;
use thiserror::Error;

use crate::summary::Summary;

/// Why no report was written.
#[derive(Debug, Error)]
#[error("cannot write the report {}; nothing is left under that name that was not there", path.display())]
pub struct ReportError {
    path: PathBuf,
    source: io::Error,
}

/// The page as HTML. Every text of the summary is escaped; the page forbids itself to load anything.
pub fn render(summary: &Summary) -> String {
    page::render(summary).into_string()
}

/// Writes the page under `path`, whole or not at all: a new file takes the name when it is complete.
///
/// Fails as [`destination`] does, and where the file cannot be created or written.
pub fn write(summary: &Summary, path: &Path) -> Result<(), ReportError> {
    let failed = |source| ReportError { path: path.to_owned(), source };
    let target = destination(path).map_err(failed)?;
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".subpage-report-").suffix(".html");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: the process's umask takes away what it wants.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory).map_err(failed)?;
    file.write_all(render(summary).as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&target).map_err(|error| failed(error.error))?;
    Ok(())
}
