//! The package archives that this machine's apt is configured for.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::Result;

use super::found;
use crate::session::Session;

/// apt's own downloader, which is not meant for the command line and so not on the path.
pub(crate) const DOWNLOADER: &str = "/usr/lib/apt/apt-helper";

/// One release of a package archive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Archive {
    /// Without a slash at its end.
    pub(crate) address: String,
    /// `bookworm`, or `bookworm-security`.
    pub(crate) release: String,
    /// `main`, for example.
    pub(crate) component: String,
}

/// What apt is configured for, each release and component once; or why nothing can be had.
pub(crate) fn configured(session: &mut Session<'_>) -> Result<Result<Vec<Archive>, String>> {
    if found("apt-get").is_none() || !Path::new(DOWNLOADER).exists() {
        return Ok(Err("there is no apt here to get it with".into()));
    }
    // apt reads both forms of its configuration, and resolves what is in them.
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Identifier: Packages",
    ]);
    let finished = session.run(command, &mut |_| None)?;
    let archives = told(&finished.output);
    if !finished.ending.success() || archives.is_empty() {
        session.show(&finished.output)?;
        return Ok(Err("apt is configured for no package archive".into()));
    }
    Ok(Ok(archives))
}

/// From lines `ADDRESS RELEASE COMPONENT`, each as often as it has architectures.
fn told(targets: &str) -> Vec<Archive> {
    let archives: BTreeSet<_> = targets.lines().filter_map(archive).collect();
    archives.into_iter().collect()
}

fn archive(line: &str) -> Option<Archive> {
    let words: Vec<_> = line.split(' ').collect();
    let &[address, release, component] = words.as_slice() else { return None };
    address.contains(":/").then(|| Archive {
        address: address.trim_end_matches('/').to_owned(),
        release: release.to_owned(),
        component: component.to_owned(),
    })
}

/// Addresses under which a file of a source package can be looked for: it stays at the same one
/// for as long as any release of the distribution has it, so the release plays no part.
///
/// `package` is the path of its directory below that of the component: `b/bochs`.
pub(crate) fn pool_addresses(archives: &[Archive], package: &str, file: &str) -> Vec<String> {
    // The components of Debian and of Ubuntu that have free software.
    let free = |archive: &&Archive| ["main", "universe"].contains(&archive.component.as_str());
    let pools: BTreeSet<_> = archives
        .iter()
        .filter(free)
        .map(|archive| (&archive.component, &archive.address))
        .collect();
    let address = |(component, archive)| format!("{archive}/pool/{component}/{package}/{file}");
    pools.into_iter().map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_archive_is_asked_once() {
        let targets = "\
http://deb.example.org/debian/ trixie main
http://deb.example.org/debian/ trixie-updates main
http://deb.example.org/debian/ trixie contrib
mirror+file:/etc/apt/mirrors/debian.list/ trixie main
http://archive.example.org/ubuntu/ noble universe
http://flat.example.org/packages/ / $(COMPONENT)
";
        assert_eq!(
            pool_addresses(&told(targets), "b/bochs", "bochs_3.0.tar.xz"),
            [
                "http://deb.example.org/debian/pool/main/b/bochs/bochs_3.0.tar.xz",
                "mirror+file:/etc/apt/mirrors/debian.list/pool/main/b/bochs/bochs_3.0.tar.xz",
                "http://archive.example.org/ubuntu/pool/universe/b/bochs/bochs_3.0.tar.xz",
            ]
        );
    }

    #[test]
    fn what_apt_says_besides_is_no_address() {
        let said = "\nmain\nE: no main\nW: see file:/etc/apt about main\nW: Skipping acquire of x";
        assert!(told(said).is_empty());
    }
}
