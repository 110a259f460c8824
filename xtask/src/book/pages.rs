//! Which pages there are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::summary;

/// Directories whose directories may have pages.
const GROUPS: [&str; 3] = ["crates", "crates/subpage-trace", "examples"];

/// Every page that people read: at the root, in `docs`, in each crate and each example, and beside the tools of
/// the recorder. The table of contents is none.
pub(crate) fn all(root: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = in_directory(root)?;
    pages.extend(in_directory(&root.join("docs"))?);
    for group in GROUPS {
        for directory in sorted(&root.join(group))? {
            pages.extend(in_directory(&directory)?);
        }
    }
    pages.retain(|page| page.strip_prefix(root) != Ok(Path::new(summary::PLACE)));
    Ok(pages)
}

/// The pages in a directory, in the order of their names; none where there is no directory.
fn in_directory(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = sorted(directory)?;
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    Ok(pages)
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let cannot = || format!("cannot list {}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(cannot)? {
        paths.push(entry.with_context(cannot)?.path());
    }
    paths.sort();
    Ok(paths)
}
