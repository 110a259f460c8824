//! One self-contained page about a guarded run: no network, no script, light and dark.

mod exits;
mod heat_map;
mod page;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::new_file;
use crate::summary::Summary;

/// What every report begins with.
pub const BEGINS: &[u8] = b"<!DOCTYPE html>";

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

/// Writes the page under `path`, whole or not at all; fails as [`new_file::write`] does.
pub fn write(summary: &Summary, path: &Path) -> Result<(), ReportError> {
    new_file::write(path, render(summary).as_bytes())
        .map_err(|source| ReportError { path: path.to_owned(), source })
}
