//! The hardware kit: an image that compares the machine with the processor model, and what it brings
//! along.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{iso::Contents, menu::Entry, tools::Tools};
use crate::{
    bochs::images::{Images, Purpose},
    session::Session,
    workspace::Workspace,
};

const PROGRAM: &str = "/boot/subpage-kit.elf";

/// What a kit brings along, in a directory of its own.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    directory: PathBuf,
}

impl Files {
    /// Makes them by the model; with `faults` also predictions of wrong models. Without a result that
    /// has failed, and the output has been shown.
    pub(crate) fn make(
        session: &mut Session<'_>,
        workspace: &Workspace,
        faults: bool,
    ) -> Result<Option<Self>> {
        let name = if faults { "kit-faults" } else { "kit" };
        let directory = workspace.separate_target("bare-metal").join(name);
        fs::create_dir_all(&directory).context("cannot make a directory for the kit")?;
        let mut command =
            workspace.cargo(&["run", "--quiet", "--release", "--package", "subpage-conformance"]);
        if faults {
            command.arg("--features=mutations");
        }
        command.args(["--", "kit", "--output"]).arg(&directory);
        let finished = session.run(command, &mut |line| Some(line.to_owned()))?;
        if finished.ending.success() {
            return Ok(Some(Self { directory }));
        }
        session.show(&finished.output)?;
        Ok(None)
    }

    /// The cases.
    pub(crate) fn cases(&self) -> PathBuf {
        self.directory.join("cases")
    }

    /// The guests that are measured.
    pub(crate) fn timing(&self) -> PathBuf {
        self.directory.join("timing")
    }

    /// What the architecture predicts, or another model.
    pub(crate) fn predicted(&self, model: Option<&str>) -> PathBuf {
        let name = model.map_or("predicted".to_owned(), |model| format!("predicted-{model}"));
        self.directory.join(name)
    }

    /// A file without any prediction.
    pub(crate) fn no_prediction(&self) -> Result<PathBuf> {
        let file = self.directory.join("empty");
        fs::write(&file, "no prediction\n").context("cannot write a file of the kit")?;
        Ok(file)
    }

    /// The names of the models other than the architecture.
    pub(crate) fn models(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).context("cannot read the kit's directory")? {
            let name = entry.context("cannot read the kit's directory")?.file_name();
            let name = name.to_string_lossy();
            names.extend(name.strip_prefix("predicted-").map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Makes the image; without success the reason has been said.
pub(crate) fn image(
    session: &mut Session<'_>,
    workspace: &Workspace,
    tools: &Tools,
    output: &Path,
) -> Result<bool> {
    let Some(images) = Images::build(session, workspace, Purpose::Kit)? else { return Ok(false) };
    let Some(files) = Files::make(session, workspace, false)? else { return Ok(false) };
    contents(&images, &files).write(session, tools, output)
}

/// The kit with what it brings along.
pub(crate) fn contents(images: &Images, files: &Files) -> Contents {
    let modules = [
        ("cases", files.cases()),
        ("predicted", files.predicted(None)),
        ("timing", files.timing()),
    ];
    let path = |name: &str| format!("/boot/{name}");
    let entry = Entry {
        program: PROGRAM.into(),
        words: vec!["subpage-kit".into()],
        modules: modules.iter().map(|(name, _)| (path(name), (*name).to_owned())).collect(),
    };
    let mut files = vec![(PROGRAM.to_owned(), images.kit_elf())];
    files.extend(modules.into_iter().map(|(name, file)| (path(name), file)));
    Contents { files, entry }
}
