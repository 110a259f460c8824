//! The static program: musl where rustup has it or can get it, else this machine's glibc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    elf::{DT_NEEDED, ET_DYN, ET_EXEC, PT_DYNAMIC, PT_INTERP},
    read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _},
};

use super::paths;
use crate::{lab::programs, packages, workspace::Workspace};

/// What the program is linked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Musl,
    Glibc,
}

impl Target {
    /// musl, installed by rustup if that is there; glibc where it cannot be had. Says which.
    pub(super) fn choose(workspace: &Workspace, glibc: bool) -> Result<Self> {
        if glibc || !Self::Musl.is_there(workspace)? && !Self::Musl.install(workspace) {
            eprintln!("linking statically against this machine's glibc");
            return Ok(Self::Glibc);
        }
        eprintln!("linking statically against musl");
        Ok(Self::Musl)
    }

    /// As rustc calls it.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Musl => "x86_64-unknown-linux-musl",
            Self::Glibc => "x86_64-unknown-linux-gnu",
        }
    }

    pub(super) fn c_library(self) -> &'static str {
        match self {
            Self::Musl => "musl",
            Self::Glibc => "glibc",
        }
    }

    /// Whether the toolchain has the standard library for it.
    pub(crate) fn is_there(self, workspace: &Workspace) -> Result<bool> {
        let output = Command::new("rustc")
            .current_dir(workspace.root())
            .args(["--print", "target-libdir", "--target", self.triple()])
            .output()
            .context("cannot start rustc")?;
        let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Ok(output.status.success() && directory.is_dir())
    }

    fn install(self, workspace: &Workspace) -> bool {
        if packages::found("rustup").is_none() {
            return false;
        }
        eprintln!("$ rustup target add {}", self.triple());
        let mut rustup = Command::new("rustup");
        rustup.current_dir(workspace.root()).args(["target", "add", self.triple()]);
        rustup.status().is_ok_and(|status| status.success())
    }

    /// Builds the tool, for every x86-64 processor; cargo's progress goes to the terminal.
    pub(super) fn build(self, workspace: &Workspace) -> Result<PathBuf> {
        let mut flags =
            vec!["-Ctarget-feature=+crt-static".to_owned(), "-Ctarget-cpu=x86-64".into()];
        flags.extend(paths::flags(&paths::prefixes(workspace)?));
        let output = workspace
            .cargo(&[
                "build",
                "--profile=dist",
                "--locked",
                "--package=subpage-cli",
                "--bin=subpage",
            ])
            .arg(format!("--target={}", self.triple()))
            .arg("--message-format=json-render-diagnostics")
            // Instead of the workspace's flags, which are for newer processors.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_PROFILE_DIST_STRIP", "debuginfo")
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "the build failed: {}", output.status);
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut programs = messages.lines().filter_map(programs::artifact);
        let program = programs.find(|(name, _)| name == "subpage");
        Ok(program.context("cargo names no program")?.1)
    }
}

/// Refuses a program that needs a dynamic linker or libraries.
pub(super) fn check_static(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = ElfFile64::<object::Endianness>::parse(&*bytes).context("not an ELF file")?;
    let endian = file.endian();
    let kind = file.elf_header().e_type(endian);
    ensure!(kind == ET_EXEC || kind == ET_DYN, "{} is no program", program.display());
    for header in file.elf_program_headers() {
        match header.p_type(endian) {
            PT_INTERP => bail!("{} needs a dynamic linker", program.display()),
            PT_DYNAMIC => {
                let entries = header.dynamic(endian, &*bytes).context("its dynamic section")?;
                let mut entries = entries.unwrap_or_default().iter();
                let needed = entries.any(|entry| entry.tag(endian) == DT_NEEDED);
                ensure!(!needed, "{} needs a library", program.display());
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test is a program that has a dynamic linker.
    #[test]
    fn a_program_with_a_dynamic_linker_is_refused() {
        let own = std::env::current_exe().expect("a path");
        let error = check_static(&own).expect_err("it is not static").to_string();
        assert!(error.contains("needs a"), "{error}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("text");
        fs::write(&path, "text").expect("files can be written");
        assert!(check_static(&path).is_err());
    }
}
