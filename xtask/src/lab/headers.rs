//! The headers of the lab's kernel, by which modules for it are built: packages of Debian, unpacked into
//! the user's cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::ingredients::{CODENAME, Ingredients};
use crate::{
    cache::Place,
    packages::private::{Apt, Version},
    session::Session,
};

/// Where the packages have sources, and libraries that the kernel's tools are linked with.
const SOURCES: &str = "usr/src";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The library that the kernel's tools read ELF files with.
const LIBRARY: &str = "libelf1";

/// Headers, known to be there.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    root: PathBuf,
    /// `6.1.0-56-cloud-amd64`
    release: String,
}

impl Headers {
    /// Finds them in the cache or fetches them, and says what it does; or says why there are none.
    pub(crate) fn prepare(
        session: &mut Session<'_>,
        ingredients: &Ingredients,
    ) -> Result<Result<Self, String>> {
        let kernel = ingredients.kernel_version()?;
        let Some((release, packages)) = packages(&kernel.package) else {
            return Ok(Err(format!("no package of headers is known for {}", kernel.package)));
        };
        let place = match Place::of_user("headers", &format!("{CODENAME} {kernel:?} {LIBRARY}")) {
            Ok(place) => place,
            Err(reason) => return Ok(Err(reason)),
        };
        let headers = Self { root: place.directory(), release };
        if !headers.root.exists() {
            if let Err(reason) = place.make_parent() {
                return Ok(Err(reason));
            }
            let Some(_lock) = place.lock(session, "fetching the kernel's headers")? else {
                return Ok(Err("interrupted".into()));
            };
            if !headers.root.exists()
                && let Err(reason) = headers.fetch(session, &place, &kernel, &packages)?
            {
                return Ok(Err(reason));
            }
        }
        session.say(&format!(
            "   found the headers of Linux {} in {}",
            headers.release,
            headers.root.display()
        ))?;
        Ok(Ok(headers))
    }

    fn fetch(
        &self,
        session: &mut Session<'_>,
        place: &Place,
        kernel: &Version,
        packages: &[String],
    ) -> Result<Result<(), String>> {
        session.say("   fetching the kernel's headers, once for this machine; about 15 MB")?;
        let directory = place.begin()?;
        let apt = match Apt::prepare(session, directory.path().join("apt"), CODENAME)? {
            Ok(apt) => apt,
            Err(reason) => return Ok(Err(reason)),
        };
        let made = directory.path().join("made");
        let mut wanted: Vec<_> = packages
            .iter()
            .map(|package| Version { package: package.clone(), version: kernel.version.clone() })
            .collect();
        let libraries = apt.versions(session, &format!("^{LIBRARY}$"))?;
        let Some(library) = libraries.into_iter().next() else {
            return Ok(Err(format!(
                "no package {LIBRARY}, with which the kernel's tools read ELF files"
            )));
        };
        wanted.push(library);
        for version in wanted {
            if !apt.unpack(session, &version, false, &made)? {
                return Ok(Err(format!(
                    "the package {} {} cannot be had",
                    version.package, version.version
                )));
            }
        }
        // It names the other directory as it is where the package is installed.
        let makefile = self.directory_in(&made).join("Makefile");
        let text = fs::read_to_string(&makefile)
            .with_context(|| format!("cannot read {}", makefile.display()))?;
        fs::write(&makefile, text.replace("/usr/src/", "../"))
            .with_context(|| format!("cannot write {}", makefile.display()))?;
        place.finish(&made)?;
        Ok(Ok(()))
    }

    fn directory_in(&self, root: &Path) -> PathBuf {
        root.join(SOURCES).join(format!("linux-headers-{}", self.release))
    }

    /// Builds the modules whose sources are in `directory`, into it. False if that fails, which has been
    /// shown.
    pub(crate) fn build(&self, session: &mut Session<'_>, directory: &Path) -> Result<bool> {
        let mut command = Command::new("make");
        // The compiler that is here, not the one that the kernel was built with.
        command
            .arg("-C")
            .arg(self.directory_in(&self.root))
            .arg(format!("M={}", directory.display()))
            .args(["CC=gcc", "modules"])
            .env("LC_ALL", "C")
            .env("LD_LIBRARY_PATH", self.root.join(LIBRARIES));
        let finished = session.run(command, &mut |_| None)?;
        if !finished.ending.success() {
            session.show(&finished.output)?;
        }
        Ok(finished.ending.success())
    }
}

/// The release of the kernel in a package of Debian, and the packages with its headers.
fn packages(image: &str) -> Option<(String, [String; 3])> {
    let release = image.strip_prefix("linux-image-")?;
    let common = release.strip_suffix("-cloud-amd64")?;
    let mut numbers = common.split('.');
    let series = format!("{}.{}", numbers.next()?, numbers.next()?);
    let packages = [
        format!("linux-headers-{release}"),
        format!("linux-headers-{common}-common"),
        format!("linux-kbuild-{series}"),
    ];
    Some((release.to_owned(), packages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_very_kernel() {
        let (release, packages) = packages("linux-image-6.1.0-56-cloud-amd64").expect("a kernel");
        assert_eq!(release, "6.1.0-56-cloud-amd64");
        let expected = [
            "linux-headers-6.1.0-56-cloud-amd64",
            "linux-headers-6.1.0-56-common",
            "linux-kbuild-6.1",
        ];
        assert_eq!(packages, expected);
        assert_eq!(super::packages("linux-image-6.1.0-56-amd64"), None);
        assert_eq!(super::packages("busybox-static"), None);
    }
}
