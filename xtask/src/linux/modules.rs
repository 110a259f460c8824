//! The modules of examples/linux-module: built for the lab's kernel, and put into an initrd.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    bochs::linux::read,
    lab::{headers::Headers, ingredients::Ingredients, initramfs::Initramfs},
    packages::{Package, package},
    session::Session,
    workspace::Workspace,
};

/// Where their sources are.
const SOURCES: &str = "examples/linux-module";

/// Their names.
const NAMES: [&str; 2] = ["attack", "locked"];

/// The policy that their attacks are about.
pub(crate) const POLICY: &str = "examples/linux-module/policy.toml";

const WHY: &str = "kernel modules are built with it";
const OTHERWISE: &str = "the tests with kernel modules are skipped";
const TOOLS: [Package; 2] = [
    Package { program: "gcc", name: "gcc", why: WHY, otherwise: OTHERWISE },
    Package { program: "make", name: "make", why: WHY, otherwise: OTHERWISE },
];

/// Whether there is what modules are built with; with `install` it gets what is missing.
pub(crate) fn tools(session: &mut Session<'_>, install: bool) -> Result<bool> {
    let mut all = true;
    for tool in &TOOLS {
        all &= package(session, tool, install)?;
    }
    Ok(all)
}

/// What has become of the wish for an initrd with modules.
pub(crate) enum Built {
    /// Here it is.
    Initrd(Vec<u8>),
    /// The headers cannot be had, for this reason.
    NoHeaders(String),
    /// A module does not compile, which has been shown.
    Broken,
}

/// Builds the modules, and adds them to the initrd, `/attack.ko` and `/locked.ko`.
pub(crate) fn initrd(
    session: &mut Session<'_>,
    workspace: &Workspace,
    ingredients: &Ingredients,
    initrd: &Path,
) -> Result<Built> {
    let headers = match Headers::prepare(session, ingredients)? {
        Ok(headers) => headers,
        Err(reason) => return Ok(Built::NoHeaders(reason)),
    };
    let directory = workspace.separate_target("linux-module");
    if directory.exists() {
        fs::remove_dir_all(&directory).context("cannot remove the modules built before")?;
    }
    fs::create_dir_all(&directory).context("cannot make a directory for modules")?;
    let sources = NAMES.map(|name| format!("{name}.c"));
    for name in sources.iter().map(String::as_str).chain(["Kbuild"]) {
        fs::copy(workspace.root().join(SOURCES).join(name), directory.join(name))
            .with_context(|| format!("cannot copy {SOURCES}/{name}"))?;
    }
    if !headers.build(session, &directory)? {
        return Ok(Built::Broken);
    }
    let mut archive = Initramfs::default();
    for name in NAMES.map(|name| format!("{name}.ko")) {
        archive.file(&name, 0o644, &read(&directory.join(&name))?);
    }
    let mut bytes = read(initrd)?;
    // A kernel unpacks one archive behind the other, each at a multiple of 4.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive.finish());
    Ok(Built::Initrd(bytes))
}
