//! The tests that start guests on KVM. Without KVM none of them is run.

use std::{fs::File, io, path::Path};

use anyhow::Result;

use super::{
    Plan,
    cargo_test::{Names, at_least_one, run},
};
use crate::{count::Count, session::Session};

const DEVICE: &str = "/dev/kvm";

/// The test programs that are all about KVM.
const PROGRAMS: [&str; 4] = ["kvm", "example", "embed", "vmm"];

/// The test program that has tests of both sorts, as cargo selects it, and what the names of those
/// on KVM have in them.
pub(super) const MIXED: [&str; 3] = ["--workspace", "--test", MIXED_PROGRAM];
pub(super) const PART: &str = "kvm::";
const MIXED_PROGRAM: &str = "cli";

/// Whether this suite runs tests of a program.
pub(super) fn runs(program: &str) -> bool {
    program == MIXED_PROGRAM || PROGRAMS.contains(&program)
}

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    if let Err(error) = open(Path::new(DEVICE)) {
        session.say(&format!("   skipped: {DEVICE} cannot be opened: {error}"))?;
        return Ok(Count::SKIPPED);
    }
    // All of the workspace, as for the other suites: what is built for those then fits.
    let mut arguments = vec!["--workspace"];
    arguments.extend(PROGRAMS.iter().flat_map(|program| ["--test", program]));
    let mut count = run(session, plan, &arguments, &Names::All)?;
    count += run(session, plan, &MIXED, &Names::With(PART))?;
    at_least_one(session, plan, count)
}

/// Opens the device as a program does that makes a machine.
fn open(device: &Path) -> io::Result<()> {
    File::options().read(true).write(true).open(device).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_not_opened() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let device = directory.path().join("kvm");
        let error = open(&device).expect_err("there is no such file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        std::fs::write(&device, "").expect("files can be written");
        assert!(open(&device).is_ok());
    }

    #[test]
    fn tests_run_here_or_in_the_unit_suite() {
        for program in ["kvm", "example", "embed", "vmm", "cli"] {
            assert!(runs(program), "{program}");
        }
        assert!(!runs("control"));
        let (here, there) = (Names::With(PART), Names::Without(PART));
        for (name, on_kvm) in [("kvm::guard", true), ("commands::help", false), ("kvm", false)] {
            assert_eq!((here.has(name), there.has(name)), (on_kvm, !on_kvm), "{name}");
        }
    }
}
