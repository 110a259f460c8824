//! Builds Bochs 3.0 from the distribution's source package, once for a machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::{
    cache::{Place, hexadecimal},
    packages::{self, Package, archives},
    session::{self, Session},
};

/// The archive of Debian's source package `bochs`, version 3.0+dfsg.
const ARCHIVE: &str = "bochs_3.0+dfsg.orig.tar.xz";
const ARCHIVE_SHA256: &str = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b";

/// Without `--disable-show-ips` a message that comes once a second can make Bochs wait for itself.
const CONFIGURE: &[&str] = &[
    "--enable-cpu-level=6",
    "--enable-x86-64",
    "--enable-vmx=2",
    "--enable-smp",
    "--enable-avx",
    "--enable-evex",
    "--with-nogui",
    "--enable-pci",
    "--enable-all-optimizations",
    "--enable-cet",
    "--enable-pkeys",
    "--disable-plugins",
    "--disable-docbook",
    "--disable-show-ips",
];
const OPTIMISATION: &str = "-O3";

/// How many lines of a failed build are shown.
const LOG_LINES: usize = 60;

const NEEDED: [Package; 3] = [
    Package { program: "g++", name: "g++", why: WHY, otherwise: OTHERWISE },
    Package { program: "make", name: "make", why: WHY, otherwise: OTHERWISE },
    Package { program: "xz", name: "xz-utils", why: WHY, otherwise: OTHERWISE },
];
const WHY: &str = "Bochs is built with it";
const OTHERWISE: &str = "Bochs cannot be built";

/// Where the emulator of this machine's user is kept, or why nowhere.
pub(super) fn place() -> Result<Place, String> {
    let way = [&[ARCHIVE_SHA256, OPTIMISATION], CONFIGURE].concat().join(" ");
    Place::of_user("bochs-3.0", &way)
}

/// The emulator in its place, where it may not be yet.
pub(super) fn program(place: &Place) -> PathBuf {
    place.directory().join("bochs")
}

/// Builds the emulator into the cache, or says why it could not.
pub(crate) fn build(
    session: &mut Session<'_>,
    place: &Place,
    install: bool,
) -> Result<Result<(), String>> {
    if let Err(reason) = place.make_parent() {
        return Ok(Err(reason));
    }
    let Some(_lock) = place.lock(session, "building Bochs")? else {
        return Ok(Err("interrupted".into()));
    };
    if program(place).exists() {
        // The other one's.
        return Ok(Ok(()));
    }
    for package in &NEEDED {
        if !packages::package(session, package, install)? {
            return Ok(Err(format!(
                "no fit Bochs, and to build one, {} is missing",
                package.program
            )));
        }
    }
    let start = Instant::now();
    session.say("   building Bochs 3.0, once for this machine; about two minutes")?;
    let directory = place.begin()?;
    let path = directory.path();
    if let Err(reason) = fetch(session, path)? {
        return Ok(Err(reason));
    }
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--file", ARCHIVE, "--strip-components=1", "--no-same-owner"]);
    let mut configure = Command::new("./configure");
    configure.args(CONFIGURE).env("CFLAGS", OPTIMISATION).env("CXXFLAGS", OPTIMISATION);
    let mut make = Command::new("make");
    make.arg(format!("-j{jobs}")).arg("bochs");
    for mut command in [unpack, configure, make] {
        command.current_dir(path).env("LC_ALL", "C").env_remove("MAKEFLAGS");
        let finished = session.run(command, &mut |_| None)?;
        if !finished.ending.success() {
            session.show(&last_lines(&finished.output, LOG_LINES))?;
            return Ok(Err("Bochs could not be built".into()));
        }
    }
    // What is in the cache is whole: it comes there in one step.
    let finished = path.join("finished");
    fs::create_dir(&finished).context("cannot make a directory")?;
    fs::rename(path.join("bochs"), finished.join("bochs")).context("make has left no bochs")?;
    place.finish(&finished)?;
    session.say(&format!(
        "   built {} in {}",
        program(place).display(),
        session::duration(start.elapsed())
    ))?;
    Ok(Ok(()))
}

/// Gets the archive from where this machine gets its packages, by apt's own means: they know of
/// proxies and passwords.
fn fetch(session: &mut Session<'_>, directory: &Path) -> Result<Result<(), String>> {
    let archives = match archives::configured(session)? {
        Ok(archives) => archives,
        Err(reason) => return Ok(Err(format!("no fit Bochs, and {reason}"))),
    };
    let addresses = archives::pool_addresses(&archives, "b/bochs", ARCHIVE);
    let path = directory.join(ARCHIVE);
    let mut said = String::new();
    for address in &addresses {
        let mut command = Command::new(archives::DOWNLOADER);
        command.args(["download-file", address]).arg(&path).arg(format!("SHA256:{ARCHIVE_SHA256}"));
        let finished = session.run(command, &mut |_| None)?;
        if session.interrupted() {
            return Ok(Err("interrupted".into()));
        }
        if finished.ending.success() && path.exists() {
            // apt has compared them already; a version that ignores the argument has not.
            let bytes = fs::read(&path).context("cannot read the archive")?;
            if hexadecimal(&Sha256::digest(&bytes)) == ARCHIVE_SHA256 {
                return Ok(Ok(()));
            }
            said += "the archive is not the one that is expected\n";
            fs::remove_file(&path).context("cannot remove a wrong archive")?;
        }
        said += &finished.output;
    }
    session.show(&said)?;
    Ok(Err(format!("no package archive of this machine has {ARCHIVE}")))
}

fn last_lines(text: &str, most: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_says_why() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
