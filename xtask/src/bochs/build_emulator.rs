//! Builds Bochs 3.0 from the distribution's source package, once for a machine.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use sha2::{Digest as _, Sha256};

use super::package_archives;
use crate::{
    prerequisites::{self, Package},
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

/// How often one that waits for another's build looks whether it is there.
const WAIT: Duration = Duration::from_millis(200);

const NEEDED: [Package; 3] = [
    Package { program: "g++", name: "g++", why: WHY, otherwise: OTHERWISE },
    Package { program: "make", name: "make", why: WHY, otherwise: OTHERWISE },
    Package { program: "xz", name: "xz-utils", why: WHY, otherwise: OTHERWISE },
];
const WHY: &str = "Bochs is built with it";
const OTHERWISE: &str = "Bochs cannot be built";

/// Where the emulator of this machine's user is kept, outside of any build directory.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Holds one directory for each way of building.
    parent: PathBuf,
    name: String,
}

impl Cache {
    /// The directory `subpage` in the user's cache directory, or why there is none.
    pub(crate) fn of_user() -> Result<Self, String> {
        let directory = |name| env::var_os(name).map(PathBuf::from);
        Self::in_directories(directory("XDG_CACHE_HOME"), directory("HOME"))
    }

    /// A path that is not absolute is none (XDG Base Directory Specification).
    fn in_directories(cache: Option<PathBuf>, home: Option<PathBuf>) -> Result<Self, String> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let home = || home.filter(absolute).map(|home| home.join(".cache"));
        let cache = cache.filter(absolute).or_else(home);
        let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME names a directory")?;
        let way = [&[ARCHIVE_SHA256, OPTIMISATION], CONFIGURE].concat().join(" ");
        let hash = &hexadecimal(&Sha256::digest(way))[..16];
        Ok(Self { parent: cache.join("subpage"), name: format!("bochs-3.0-{hash}") })
    }

    /// The finished emulator, if it is there.
    pub(crate) fn program(&self) -> PathBuf {
        self.directory().join("bochs")
    }

    fn directory(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// What names a build that is under way.
    fn prefix(&self) -> String {
        format!("{}.building-", self.name)
    }
}

/// Builds the emulator into the cache, or says why it could not.
pub(crate) fn build(
    session: &mut Session<'_>,
    cache: &Cache,
    install: bool,
) -> Result<Result<(), String>> {
    let parent = &cache.parent;
    if let Err(error) = fs::create_dir_all(parent) {
        return Ok(Err(format!("cannot make the directory {}: {error}", parent.display())));
    }
    let Some(_lock) = lock(session, cache)? else {
        return Ok(Err("interrupted".into()));
    };
    if cache.program().exists() {
        // The other one's.
        return Ok(Ok(()));
    }
    for package in &NEEDED {
        if !prerequisites::package(session, package, install)? {
            return Ok(Err(format!(
                "no fit Bochs, and to build one, {} is missing",
                package.program
            )));
        }
    }
    remove_leftovers(cache)?;
    let start = Instant::now();
    session.say("   building Bochs 3.0, once for this machine; about two minutes")?;
    let directory = tempfile::Builder::new()
        .prefix(&cache.prefix())
        .tempdir_in(parent)
        .context("cannot make a directory to build in")?;
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
    if cache.directory().exists() {
        fs::remove_dir_all(cache.directory()).context("cannot empty the cache")?;
    }
    fs::rename(&finished, cache.directory()).context("cannot move Bochs into the cache")?;
    session.say(&format!(
        "   built {} in {}",
        cache.program().display(),
        session::duration(start.elapsed())
    ))?;
    Ok(Ok(()))
}

/// Keeps others from building the same; none if the user has stopped the waiting.
fn lock(session: &mut Session<'_>, cache: &Cache) -> Result<Option<Flock<File>>> {
    let path = cache.parent.join(format!("{}.lock", cache.name));
    let mut file =
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut told = false;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => {
                return Err(errno).with_context(|| format!("cannot lock {}", path.display()));
            }
        };
        if !told {
            session.say("   another run is building Bochs; waiting for it")?;
            told = true;
        }
        if session.interrupted() {
            return Ok(None);
        }
        thread::sleep(WAIT);
    }
}

/// Builds that were killed; nobody else is building while the lock is held.
fn remove_leftovers(cache: &Cache) -> Result<()> {
    for entry in fs::read_dir(&cache.parent).context("cannot read the cache")? {
        let entry = entry.context("cannot read the cache")?;
        if entry.file_name().to_string_lossy().starts_with(&cache.prefix()) {
            match fs::remove_dir_all(entry.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).context("cannot remove what a killed build has left");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Gets the archive from where this machine gets its packages, by apt's own means: they know of
/// proxies and passwords.
fn fetch(session: &mut Session<'_>, directory: &Path) -> Result<Result<(), String>> {
    let addresses = match package_archives::addresses(session, ARCHIVE)? {
        Ok(addresses) => addresses,
        Err(reason) => return Ok(Err(reason)),
    };
    let path = directory.join(ARCHIVE);
    let mut said = String::new();
    for address in &addresses {
        let mut command = Command::new(package_archives::DOWNLOADER);
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

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text
}

fn last_lines(text: &str, most: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(cache: Option<&str>, home: Option<&str>) -> Option<PathBuf> {
        let cache = Cache::in_directories(cache.map(PathBuf::from), home.map(PathBuf::from));
        cache.ok().map(|cache| cache.parent)
    }

    #[test]
    fn the_cache_is_where_the_user_keeps_caches() {
        assert_eq!(cache(Some("/c"), Some("/h")), Some("/c/subpage".into()));
        assert_eq!(cache(None, Some("/h")), Some("/h/.cache/subpage".into()));
        assert_eq!(cache(Some("c"), Some("/h")), Some("/h/.cache/subpage".into()));
        assert_eq!(cache(Some(""), None), None);
        assert_eq!(cache(None, Some("h")), None);
    }

    #[test]
    fn a_killed_build_leaves_nothing_for_ever() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let cache = Cache { parent: directory.path().into(), name: "bochs-x".into() };
        let leftover = directory.path().join("bochs-x.building-1");
        let finished = cache.directory();
        for path in [&leftover, &finished] {
            fs::create_dir_all(path.join("deep")).expect("directories can be made");
        }
        remove_leftovers(&cache).expect("nothing hinders it");
        assert!(!leftover.exists() && finished.exists());
    }

    #[test]
    fn hashes_are_written_as_usual() {
        // FIPS 180-4's own example.
        assert_eq!(
            hexadecimal(&Sha256::digest("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn the_end_of_a_log_says_why() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
