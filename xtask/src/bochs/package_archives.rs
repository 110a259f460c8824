//! The package archives that this machine's apt is configured for.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::Result;

use crate::{prerequisites, session::Session};

/// apt's own downloader, which is not meant for the command line and so not on the path.
pub(crate) const DOWNLOADER: &str = "/usr/lib/apt/apt-helper";

/// The components of Debian and of Ubuntu in which Bochs is.
const COMPONENTS: [&str; 2] = ["main", "universe"];

/// Addresses under which a file of the source package `bochs` can be looked for, or why there is
/// none.
///
/// A source package stays at the same address for as long as any release of the distribution has
/// it; the suite that this machine is configured for plays no part.
pub(crate) fn addresses(
    session: &mut Session<'_>,
    file: &str,
) -> Result<std::result::Result<Vec<String>, String>> {
    if prerequisites::found("apt-get").is_none() || !Path::new(DOWNLOADER).exists() {
        return Ok(Err("no fit Bochs, and no apt to get its source package with".into()));
    }
    // apt reads both forms of its configuration, and resolves what is in them.
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI) $(COMPONENT)",
        "Identifier: Packages",
    ]);
    let finished = session.run(command, &mut |_| None)?;
    let addresses = derived(&finished.output, file);
    if !finished.ending.success() || addresses.is_empty() {
        session.show(&finished.output)?;
        return Ok(Err("no fit Bochs, and apt is configured for no package archive".into()));
    }
    Ok(Ok(addresses))
}

/// From lines `ADDRESS COMPONENT`, each archive as often as it has releases and architectures.
fn derived(targets: &str, file: &str) -> Vec<String> {
    let archives: BTreeSet<_> = targets
        .lines()
        .filter_map(|line| line.trim_end().rsplit_once(' '))
        .filter(|(address, _)| address.contains(":/") && !address.contains(' '))
        .filter(|(_, component)| COMPONENTS.contains(component))
        .map(|(address, component)| (component, address.trim_end_matches('/')))
        .collect();
    let address = |(component, archive)| format!("{archive}/pool/{component}/b/bochs/{file}");
    archives.into_iter().map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_archive_is_asked_once() {
        let targets = "\
http://deb.example.org/debian/ main
http://deb.example.org/debian/ main
http://deb.example.org/debian/ contrib
mirror+file:/etc/apt/mirrors/debian.list/ main
http://archive.example.org/ubuntu/ universe
http://flat.example.org/packages/ $(COMPONENT)
";
        assert_eq!(
            derived(targets, "bochs_3.0.tar.xz"),
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
        assert!(derived(said, "x").is_empty());
    }
}
