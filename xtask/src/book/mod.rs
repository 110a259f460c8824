//! The documentation as a site: `cargo xtask docs`.
//!
//! The pages are written to be read in the repository: their links lead from file to file. The site is
//! made of copies that lie as the originals do, so every link is right in both places.

pub(crate) mod citations;
mod mdbook;
pub(crate) mod pages;
mod site;
pub(crate) mod summary;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    markdown,
    session::{Interrupt, Session},
    workspace::Workspace,
};

/// What `cargo xtask docs` is told.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Build mdBook into the cache first, if this machine has none
    #[arg(long)]
    install: bool,
}

/// `cargo xtask docs`.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let mut out = io::stdout().lock();
    let mut session = Session::new(&mut out, interrupt, Duration::from_secs(3600));
    let program = match mdbook::find() {
        None if arguments.install => mdbook::install(&mut session, workspace)?,
        found => found.ok_or_else(mdbook::missing),
    };
    let program = match program {
        Ok(program) => program,
        Err(reason) => bail!(reason),
    };
    let faults = build(&mut session, workspace, &program)?;
    Ok(if faults == Some(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The mdBook of this machine; or a line that says how to get one.
pub(crate) fn program() -> Result<PathBuf, String> {
    mdbook::find().ok_or_else(mdbook::missing)
}

/// Builds the site, says where it is, and follows each link in it. Returns how many lead nowhere, each
/// of which has been said; nothing if mdBook failed, whose output has been shown.
pub(crate) fn build(
    session: &mut Session<'_>,
    workspace: &Workspace,
    program: &Path,
) -> Result<Option<usize>> {
    let directory = workspace.separate_target("book");
    remove(&directory)?;
    let copied = assemble(workspace.root(), &directory.join("src"))?;
    let settings = workspace.root().join("docs/book.toml");
    fs::copy(&settings, directory.join("book.toml"))
        .with_context(|| format!("cannot copy {}", settings.display()))?;
    let mut command = Command::new(program);
    command.arg("build").arg(&directory);
    let finished = session.run(command, &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
        return Ok(None);
    }
    let html = directory.join("html");
    let faults = site::broken_links(&html)?;
    for fault in &faults {
        session.say(&format!("   site: {fault}"))?;
    }
    session.say(&format!("   {copied} pages; begin at {}", html.join("index.html").display()))?;
    Ok(Some(faults.len()))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Copies the pages and what they link to, and makes the table of contents; returns how many pages.
fn assemble(root: &Path, source: &Path) -> Result<usize> {
    let mut files = BTreeSet::new();
    let pages = pages::all(root)?;
    for page in &pages {
        files.insert(page.clone());
        files.extend(markdown::linked_files(root, page)?);
    }
    for file in files {
        let place = file.strip_prefix(root).context("a page lies in the repository")?;
        if place == Path::new(summary::PLACE) {
            continue;
        }
        let copy = source.join(place);
        let directory = copy.parent().context("a file lies in a directory")?;
        fs::create_dir_all(directory)
            .and_then(|()| fs::copy(&file, &copy))
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let contents = summary::from_root(&markdown::read(&root.join(summary::PLACE))?);
    fs::write(source.join("SUMMARY.md"), contents).context("cannot write the contents")?;
    Ok(pages.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_what_they_link_to_lie_as_in_the_repository() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let root = directory.path().join("root");
        for (file, text) in [
            ("README.md", "[a](docs/a.md)"),
            ("docs/a.md", "[code](../crates/x/src/lib.rs#L3) [out](https://example.org)"),
            ("docs/SUMMARY.md", "- [One](../README.md)\n- [A](a.md)\n"),
            ("crates/x/src/lib.rs", "code"),
            ("crates/x/src/other.rs", "code"),
        ] {
            let file = root.join(file);
            fs::create_dir_all(file.parent().expect("a directory")).expect("directories");
            fs::write(file, text).expect("files can be written");
        }
        let source = directory.path().join("src");
        assert_eq!(assemble(&root, &source).expect("nothing hinders it"), 2);
        assert!(source.join("docs/a.md").exists() && source.join("crates/x/src/lib.rs").exists());
        assert!(!source.join("crates/x/src/other.rs").exists());
        let contents = fs::read_to_string(source.join("SUMMARY.md")).expect("it is there");
        assert_eq!(contents, "- [One](README.md)\n- [A](docs/a.md)\n");
    }
}
