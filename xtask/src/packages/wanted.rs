//! Which version of a package is taken.

use anyhow::Result;

use super::private::{Apt, Version};
use crate::session::Session;

/// One package: the version that was tried, and what else will do.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// A regular expression for the names that will do.
    pub(crate) names: &'static str,
}

impl Wanted {
    /// The version to take, or that there is none; says so if it is another than the one that was
    /// tried.
    pub(crate) fn find(
        &self,
        session: &mut Session<'_>,
        apt: &Apt,
    ) -> Result<Result<Version, String>> {
        let known = apt.versions(session, self.names)?;
        let Some(version) = self.choose(&known) else {
            return Ok(Err(format!("no package {}, nor one like it", self.package)));
        };
        if !self.was_tried(version) {
            session.say(&format!(
                "   taking {} {} instead of {} {}, which was tried and is no longer there",
                version.package, version.version, self.package, self.version
            ))?;
        }
        Ok(Ok(version.clone()))
    }

    fn was_tried(&self, version: &Version) -> bool {
        version.package == self.package && version.version == self.version
    }

    /// The one that was tried, or else the newest: the highest number in the name, and of that the
    /// version that apt lists first.
    fn choose<'a>(&self, known: &'a [Version]) -> Option<&'a Version> {
        known.iter().find(|version| self.was_tried(version)).or_else(|| {
            let newest = known.iter().map(|version| numbers(&version.package)).max()?;
            known.iter().find(|version| numbers(&version.package) == newest)
        })
    }
}

/// The numbers in a name, so that 56 is less than 100.
fn numbers(name: &str) -> Vec<u64> {
    let parts = name.split(|character: char| !character.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Wanted = Wanted {
        package: "linux-image-6.1.0-56-cloud-amd64",
        version: "6.1.192-2",
        names: "^linux-image-",
    };

    fn version(package: &str, version: &str) -> Version {
        Version { package: package.to_owned(), version: version.to_owned() }
    }

    #[test]
    fn the_version_that_was_tried_comes_first() {
        let known = [
            version("linux-image-6.1.0-100-cloud-amd64", "6.1.300-1"),
            version(KERNEL.package, "6.1.192-3"),
            version(KERNEL.package, KERNEL.version),
        ];
        assert_eq!(KERNEL.choose(&known), Some(&known[2]));
        assert_eq!(KERNEL.choose(&known[..2]), Some(&known[0]));
        assert_eq!(KERNEL.choose(&known[1..2]), Some(&known[1]));
        assert_eq!(KERNEL.choose(&[]), None);
    }

    #[test]
    fn of_one_package_the_newest_is_taken() {
        let known = [version(KERNEL.package, "6.1.300-1"), version(KERNEL.package, "6.1.200-1")];
        assert_eq!(KERNEL.choose(&known), Some(&known[0]));
    }
}
