//! What the tests need besides a Rust toolchain, found or installed, never in silence.

use std::{
    env,
    ffi::OsStr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    bochs::emulator::{self, Availability},
    session::Session,
};

/// A program from a Debian package.
pub(crate) struct Package {
    pub(crate) program: &'static str,
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
    pub(crate) otherwise: &'static str,
}

const VALGRIND: Package = Package {
    program: "valgrind",
    name: "valgrind",
    why: "the recorder's tests record real programs under it",
    otherwise: "the tests that need Valgrind are skipped",
};

/// A cargo subcommand from a component of the Rust toolchain.
struct Component {
    program: &'static str,
    name: &'static str,
    suite: &'static str,
}

const RUSTFMT: Component = Component { program: "cargo-fmt", name: "rustfmt", suite: "fmt" };
const CLIPPY: Component = Component { program: "cargo-clippy", name: "clippy", suite: "clippy" };

/// What is there for the tests to use.
#[derive(Debug)]
pub(crate) struct Prerequisites {
    pub(crate) valgrind: bool,
    pub(crate) rustfmt: bool,
    pub(crate) clippy: bool,
    pub(crate) emulator: Availability,
}

impl Prerequisites {
    /// Looks for everything, with `install` also gets what is missing, and prints what it does.
    /// Only with `emulator` it looks for Bochs, too, and builds it.
    pub(crate) fn prepare(
        session: &mut Session<'_>,
        install: bool,
        emulator: bool,
    ) -> Result<Self> {
        session.begin("prerequisites")?;
        Ok(Self {
            rustfmt: component(session, &RUSTFMT, install)?,
            clippy: component(session, &CLIPPY, install)?,
            valgrind: package(session, &VALGRIND, install)?,
            emulator: if emulator {
                emulator::prepare(session, install)?
            } else {
                Err("no suite was to use it".into())
            },
        })
    }
}

/// Whether the program is there; with `install` it gets what is missing, and prints what it does.
pub(crate) fn package(session: &mut Session<'_>, wanted: &Package, install: bool) -> Result<bool> {
    let Package { program, name: package, why, otherwise } = wanted;
    if let Some(path) = found(program) {
        session.say(&format!("   found {program} at {} ({why})", path.display()))?;
        return Ok(true);
    }
    let obstacle = if !install {
        Some("only `cargo xtask bochs`, and `test` without arguments, installs".to_owned())
    } else if found("apt-get").is_none() {
        Some("there is no apt-get here".to_owned())
    } else if !nix::unistd::geteuid().is_root() {
        Some(format!("installing needs root: apt-get install {package}"))
    } else {
        None
    };
    if let Some(obstacle) = obstacle {
        session.say(&format!("   no {program} ({why}); {obstacle}; {otherwise}"))?;
        return Ok(false);
    }
    session.say(&format!("   installing the Debian package {package}: {why}"))?;
    // A fresh machine may have no package lists yet, or ones too old to fetch by.
    let fetched = apt_get(session, &["install", "--no-install-recommends", package])?
        || (apt_get(session, &["update"])?
            && apt_get(session, &["install", "--no-install-recommends", package])?);
    match found(program) {
        Some(path) if fetched => {
            session.say(&format!("   installed {program} at {}", path.display()))?;
            Ok(true)
        }
        _ => {
            session.say(&format!("   {package} could not be installed; {otherwise}"))?;
            Ok(false)
        }
    }
}

fn apt_get(session: &mut Session<'_>, arguments: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command
        .args(["--yes", "--option", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(session, command)
}

fn component(session: &mut Session<'_>, wanted: &Component, install: bool) -> Result<bool> {
    let Component { program, name: component, suite } = wanted;
    if works(program) {
        session.say(&format!("   found {component} (the {suite} suite)"))?;
        return Ok(true);
    }
    if !install || found("rustup").is_none() {
        let how = format!("rustup component add {component}");
        session
            .say(&format!("   no {component}; to get it: {how}; the {suite} suite is skipped"))?;
        return Ok(false);
    }
    session
        .say(&format!("   installing the toolchain's component {component}: the {suite} suite"))?;
    let mut command = Command::new("rustup");
    command.args(["component", "add", component]);
    let installed = run(session, command)? && works(program);
    if !installed {
        session
            .say(&format!("   {component} could not be installed; the {suite} suite is skipped"))?;
    }
    Ok(installed)
}

fn run(session: &mut Session<'_>, command: Command) -> Result<bool> {
    let finished = session.run(command, &mut |_| None)?;
    let success = finished.ending.success();
    if !success {
        session.show(&finished.output)?;
    }
    Ok(success)
}

/// Whether the program answers: rustup puts a stand-in on the path even where the component
/// behind it is not installed.
fn works(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The program that a shell would start.
pub(crate) fn found(program: &str) -> Option<PathBuf> {
    found_in(program, &env::var_os("PATH")?)
}

fn found_in(program: &str, search: &OsStr) -> Option<PathBuf> {
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(search).map(|directory| directory.join(program)).find(|path| executable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_file_is_a_program() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path();
        std::fs::write(path.join("plain"), "").expect("files can be written");
        std::fs::create_dir(path.join("directory")).expect("directories can be made");
        let script = path.join("script");
        std::fs::write(&script, "").expect("files can be written");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
            .expect("permissions can be set");
        let search = env::join_paths([&path.join("none"), path]).expect("plain paths join");
        assert_eq!(found_in("plain", &search), None);
        assert_eq!(found_in("directory", &search), None);
        assert_eq!(found_in("absent", &search), None);
        assert_eq!(found_in("script", &search), Some(script));
    }

    #[test]
    fn a_program_that_fails_does_not_work() {
        assert!(!works("false"));
        assert!(!works("subpage-no-such-program"));
        assert!(works("cargo"));
    }
}
