//! What is made once for a machine's user and kept outside of any build directory.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::session::Session;

/// How often one that waits for another's work looks whether it is done.
const WAIT: Duration = Duration::from_millis(200);

/// One directory in the user's cache: not there, or whole.
#[derive(Debug)]
pub(crate) struct Place {
    /// Holds one directory for each thing, and for each way of making it.
    parent: PathBuf,
    name: String,
}

impl Place {
    /// The directory `NAME-HASH` of the user, where HASH stands for the way in which its contents
    /// are made; or why there is none.
    pub(crate) fn of_user(name: &str, way: &str) -> Result<Self, String> {
        let directory = |name| env::var_os(name).map(PathBuf::from);
        Self::in_directories(directory("XDG_CACHE_HOME"), directory("HOME"), name, way)
    }

    /// A path that is not absolute is none (XDG Base Directory Specification).
    fn in_directories(
        cache: Option<PathBuf>,
        home: Option<PathBuf>,
        name: &str,
        way: &str,
    ) -> Result<Self, String> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let home = || home.filter(absolute).map(|home| home.join(".cache"));
        let cache = cache.filter(absolute).or_else(home);
        let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME names a directory")?;
        let hash = &hexadecimal(&Sha256::digest(way))[..16];
        Ok(Self { parent: cache.join("subpage"), name: format!("{name}-{hash}") })
    }

    /// The finished directory, which may not be there.
    pub(crate) fn directory(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// What names a directory that is being made.
    fn prefix(&self) -> String {
        format!("{}.building-", self.name)
    }

    /// Makes the directory that holds it, or says why that cannot be.
    pub(crate) fn make_parent(&self) -> Result<(), String> {
        let parent = &self.parent;
        fs::create_dir_all(parent)
            .map_err(|error| format!("cannot make the directory {}: {error}", parent.display()))
    }

    /// Keeps others from making the same; `None` if the user has stopped the waiting. `doing` tells
    /// what the other one is doing.
    pub(crate) fn lock(
        &self,
        session: &mut Session<'_>,
        doing: &str,
    ) -> Result<Option<Flock<File>>> {
        let path = self.parent.join(format!("{}.lock", self.name));
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
                session.say(&format!("   another run is {doing}; waiting for it"))?;
                told = true;
            }
            if session.interrupted() {
                return Ok(None);
            }
            thread::sleep(WAIT);
        }
    }

    /// A directory to make it in, on the same file system; what killed runs have left is removed.
    /// Only for one that holds the lock.
    pub(crate) fn begin(&self) -> Result<TempDir> {
        self.remove_leftovers()?;
        tempfile::Builder::new()
            .prefix(&self.prefix())
            .tempdir_in(&self.parent)
            .context("cannot make a directory to build in")
    }

    /// Moves what is whole to its place, in one step.
    pub(crate) fn finish(&self, made: &Path) -> Result<()> {
        if self.directory().exists() {
            fs::remove_dir_all(self.directory()).context("cannot empty the cache")?;
        }
        fs::rename(made, self.directory())
            .with_context(|| format!("cannot move {} into the cache", made.display()))
    }

    fn remove_leftovers(&self) -> Result<()> {
        for entry in fs::read_dir(&self.parent).context("cannot read the cache")? {
            let entry = entry.context("cannot read the cache")?;
            if entry.file_name().to_string_lossy().starts_with(&self.prefix()) {
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
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(cache: Option<&str>, home: Option<&str>) -> Option<PathBuf> {
        let (cache, home) = (cache.map(PathBuf::from), home.map(PathBuf::from));
        Place::in_directories(cache, home, "thing", "way").ok().map(|place| place.parent)
    }

    #[test]
    fn the_cache_is_where_the_user_keeps_caches() {
        assert_eq!(parent(Some("/c"), Some("/h")), Some("/c/subpage".into()));
        assert_eq!(parent(None, Some("/h")), Some("/h/.cache/subpage".into()));
        assert_eq!(parent(Some("c"), Some("/h")), Some("/h/.cache/subpage".into()));
        assert_eq!(parent(Some(""), None), None);
        assert_eq!(parent(None, Some("h")), None);
    }

    #[test]
    fn a_killed_build_leaves_nothing_for_ever() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let place = Place { parent: directory.path().into(), name: "thing-x".into() };
        let leftover = directory.path().join("thing-x.building-1");
        let finished = place.directory();
        for path in [&leftover, &finished] {
            fs::create_dir_all(path.join("deep")).expect("directories can be made");
        }
        place.remove_leftovers().expect("nothing hinders it");
        assert!(!leftover.exists() && finished.exists());
    }

    #[test]
    fn what_is_finished_takes_the_place_of_the_old() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let place = Place { parent: directory.path().into(), name: "thing-x".into() };
        fs::create_dir_all(place.directory().join("old")).expect("directories can be made");
        let building = place.begin().expect("a directory");
        let made = building.path().join("made");
        fs::create_dir_all(made.join("new")).expect("directories can be made");
        place.finish(&made).expect("nothing hinders it");
        assert!(place.directory().join("new").exists() && !place.directory().join("old").exists());
    }

    #[test]
    fn hashes_are_written_as_usual() {
        // FIPS 180-4's own example.
        assert_eq!(
            hexadecimal(&Sha256::digest("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
