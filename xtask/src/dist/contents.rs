//! What a package holds: the program, and what it says about itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{epoch, licences, target::Target};
use crate::workspace::Workspace;

/// The shells that completions are for: what the tool calls each, and how its file is called.
const SHELLS: [(&str, &str); 3] =
    [("bash", "subpage"), ("zsh", "_subpage"), ("fish", "subpage.fish")];

/// The package of the workspace that is the tool.
const TOOL: &str = "subpage-cli";

/// A version of the tool with all that goes with it.
pub(crate) struct Contents {
    pub(super) version: String,
    pub(super) description: String,
    pub(super) program: Vec<u8>,
    /// File name and text of each manual page.
    pub(super) manual: Vec<(String, Vec<u8>)>,
    /// Shell, file name and script.
    pub(super) completions: Vec<(&'static str, &'static str, Vec<u8>)>,
    /// File name and text: licences and the changelog.
    pub(super) texts: Vec<(&'static str, Vec<u8>)>,
    /// Seconds since 1970 that every file was made.
    pub(super) epoch: String,
}

impl Contents {
    /// Asks the program, built for `target`, for its manual pages and completions.
    pub(crate) fn of(workspace: &Workspace, program: &Path, target: Target) -> Result<Self> {
        let package = workspace
            .packages()
            .iter()
            .find(|package| package["name"] == TOOL)
            .with_context(|| format!("the workspace has no {TOOL}"))?;
        let text = |key: &str| {
            let text = package[key].as_str().map(str::to_owned);
            text.with_context(|| format!("{TOOL} has no {key}"))
        };
        let root = workspace.root();
        let file = |name: &'static str| {
            let path = root.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
            Ok::<_, anyhow::Error>((name, bytes?))
        };
        let third = licences::of_others(workspace, TOOL, target)?;
        Ok(Self {
            version: text("version")?,
            description: text("description")?,
            program: fs::read(program)
                .with_context(|| format!("cannot read {}", program.display()))?,
            manual: manual(program)?,
            completions: SHELLS
                .into_iter()
                .map(|(shell, name)| Ok((shell, name, printed(program, &["completions", shell])?)))
                .collect::<Result<_>>()?,
            texts: vec![
                file("CHANGELOG.md")?,
                file("LICENSE-APACHE")?,
                file("LICENSE-MIT")?,
                ("THIRD-PARTY.txt", third.into_bytes()),
            ],
            epoch: epoch(root),
        })
    }

    /// The version, as the crate has it.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The text of this name.
    pub(super) fn text(&self, name: &str) -> &[u8] {
        let found = self.texts.iter().find(|(text, _)| *text == name);
        &found.expect("it is one of those above").1
    }
}

/// A file of a package: its path below the prefix.
pub(super) struct File<'a> {
    pub(super) path: String,
    pub(super) bytes: &'a [u8],
    pub(super) executable: bool,
}

impl<'a> File<'a> {
    pub(super) fn data(path: impl Into<String>, bytes: &'a [u8]) -> Self {
        Self { path: path.into(), bytes, executable: false }
    }

    /// Writes it below `prefix`, readable for everybody whatever the umask says.
    pub(super) fn write(&self, prefix: &Path) -> Result<()> {
        let path = prefix.join(&self.path);
        let write = || {
            let mode =
                |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
            let parent = path.parent().unwrap_or(prefix);
            fs::create_dir_all(parent)?;
            for directory in parent.ancestors().take_while(|directory| *directory != prefix) {
                mode(directory, 0o755)?;
            }
            mode(prefix, 0o755)?;
            fs::write(&path, self.bytes)?;
            mode(&path, if self.executable { 0o755 } else { 0o644 })
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn manual(program: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    printed(program, &["man", &directory.path().to_string_lossy()])?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(directory.path()).context("cannot list the manual pages")? {
        let path: PathBuf = entry.context("cannot list the manual pages")?.path();
        let name = path.file_name().context("a page has a name")?.to_string_lossy().into_owned();
        pages.push((name, fs::read(&path).context("cannot read a manual page")?));
    }
    pages.sort();
    ensure!(pages.iter().any(|(name, _)| name == "subpage.1"), "there is no subpage.1");
    Ok(pages)
}

/// What the tool prints.
fn printed(program: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "subpage {}: {}", arguments.join(" "), told.trim());
    Ok(output.stdout)
}
