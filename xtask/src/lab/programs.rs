//! This workspace's programs, as a host takes them in: built, stripped, with their libraries.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{packages, session::Session, workspace::Workspace};

/// The tool, as it is shipped.
const TOOL: &[&str] = &["build", "--release", "--package", "subpage-cli", "--bin", "subpage"];

/// The VMM's tests, built as the suite `kvm` builds them.
const TESTS: &[&str] =
    &["test", "--workspace", "--test", "kvm", "--test", "example", "--test", "control", "--no-run"];

/// Programs by the name that they have in a host.
pub(crate) type Programs = BTreeMap<String, PathBuf>;

/// Builds the tool and the VMM's tests; without a result the build has failed, and its output has
/// been shown.
pub(crate) fn build(
    session: &mut Session<'_>,
    workspace: &Workspace,
    more: &[String],
) -> Result<Option<Programs>> {
    let mut programs = Programs::new();
    let more: Vec<_> = more.iter().map(String::as_str).collect();
    let more = [&["build", "--release", "--bin"], more.as_slice()].concat();
    let mut builds = vec![TOOL, TESTS];
    if more.len() > 3 {
        builds.push(&more);
    }
    for arguments in builds {
        if !add(session, workspace, arguments, &mut programs)? {
            return Ok(None);
        }
    }
    Ok(Some(programs))
}

/// Builds the tool; without a result the build has failed, and its output has been shown.
pub(crate) fn tool(session: &mut Session<'_>, workspace: &Workspace) -> Result<Option<PathBuf>> {
    let mut programs = Programs::new();
    let built = add(session, workspace, TOOL, &mut programs)?;
    Ok(if built { programs.remove("subpage") } else { None })
}

/// Adds what one build makes; false if it has failed, and its output has been shown.
fn add(
    session: &mut Session<'_>,
    workspace: &Workspace,
    arguments: &[&str],
    programs: &mut Programs,
) -> Result<bool> {
    let mut command = workspace.cargo(arguments);
    command
        .arg("--message-format=json-render-diagnostics")
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_QUIET", "false");
    let finished = session.run(command, &mut |_| None)?;
    let success = finished.ending.success();
    if success {
        programs.extend(finished.output.lines().filter_map(artifact));
    } else {
        let told = finished.output.lines().filter(|line| !line.starts_with('{'));
        session.show(&told.collect::<Vec<_>>().join("\n"))?;
    }
    Ok(success)
}

/// Name and place of a program, from one line of cargo's messages.
pub(crate) fn artifact(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = line.starts_with('{').then(|| serde_json::from_str(line).ok())??;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let name = message["target"]["name"].as_str()?;
    Some((name.to_owned(), message["executable"].as_str()?.into()))
}

/// The bytes of a program without symbols, made in `directory`; of any other file, as it is.
pub(crate) fn stripped(path: &Path, directory: &Path) -> Result<Vec<u8>> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let bytes = read(path)?;
    if !bytes.starts_with(b"\x7fELF") || packages::found("strip").is_none() {
        return Ok(bytes);
    }
    let target = directory.join("stripped");
    let status = Command::new("strip").arg("-o").arg(&target).arg(path).status();
    if status.context("cannot start strip")?.success() { read(&target) } else { Ok(bytes) }
}

/// The dynamic linker and the libraries that a program needs: where they are, and so where they
/// belong. Of a static program, and of anything else, none.
pub(crate) fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(path).output().context("cannot start ldd")?;
    let told = String::from_utf8_lossy(&output.stdout);
    let missing = told.lines().find(|line| line.contains("not found"));
    ensure!(missing.is_none(), "{}: {}", path.display(), missing.unwrap_or_default().trim());
    Ok(told.lines().filter_map(library).map(PathBuf::from).collect())
}

/// From `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<&str> {
    let (named, _) = line.trim().rsplit_once(" (0x")?;
    let path = named.rsplit_once(" => ").map_or(named, |(_, path)| path);
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_libraries() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"kvm"},"executable":"/t/kvm-1"}"#;
        assert_eq!(artifact(line), Some(("kvm".into(), "/t/kvm-1".into())));
        for line in [
            r#"{"reason":"compiler-artifact","target":{"name":"kvm"},"executable":null}"#,
            r#"{"reason":"build-finished","success":true}"#,
            "   Compiling kvm",
            "{",
        ] {
            assert_eq!(artifact(line), None, "{line}");
        }
    }

    #[test]
    fn libraries_are_those_with_a_path() {
        let told = "\tlinux-vdso.so.1 (0x00007ffd)
\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f)
\tnot a dynamic executable
";
        let found: Vec<_> = told.lines().filter_map(library).collect();
        let expected = ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected);
    }
}
