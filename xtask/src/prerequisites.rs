//! What the tests need besides a Rust toolchain, found or installed, never in silence.

use std::process::Command;

use anyhow::Result;

use crate::{
    bochs::emulator::{self, Availability},
    linux::modules,
    packages::{Package, found, package, run},
    session::Session,
};

const VALGRIND: Package = Package {
    program: "valgrind",
    name: "valgrind",
    why: "the recorder's tests record real programs under it",
    otherwise: "the tests that need Valgrind are skipped",
};

const GDB: Package = Package {
    program: "gdb",
    name: "gdb",
    why: "tests debug guests on KVM with it",
    otherwise: "the tests that need gdb pass without it, and say so",
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
    /// Whether there is what kernel modules are built with, or why not.
    pub(crate) compiler: std::result::Result<(), String>,
}

impl Prerequisites {
    /// Looks for everything, with `install` also gets what is missing, and prints what it does.
    /// Only with `emulator` it looks for Bochs, too, and builds it, and for what modules of the kernel that
    /// runs in it are built with.
    pub(crate) fn prepare(
        session: &mut Session<'_>,
        install: bool,
        emulator: bool,
    ) -> Result<Self> {
        session.begin("prerequisites")?;
        // Its tests look for it themselves.
        package(session, &GDB, install)?;
        Ok(Self {
            rustfmt: component(session, &RUSTFMT, install)?,
            clippy: component(session, &CLIPPY, install)?,
            valgrind: package(session, &VALGRIND, install)?,
            emulator: if emulator {
                emulator::prepare(session, install)?
            } else {
                Err("no suite was to use it".into())
            },
            compiler: if emulator && modules::tools(session, install)? {
                Ok(())
            } else {
                Err("gcc or make is missing".into())
            },
        })
    }
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

/// Whether the program answers: rustup puts a stand-in on the path even where the component
/// behind it is not installed.
fn works(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_does_not_work() {
        assert!(!works("false"));
        assert!(!works("subpage-no-such-program"));
        assert!(works("cargo"));
    }
}
