//! Packages that are unpacked and not installed, by an apt with lists, cache and state of its own.
//!
//! What the machine has installed is neither changed nor looked at: all that a package needs comes
//! with it. The signature of the distribution's index vouches for each file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::archives::{self, Archive};
use crate::session::Session;

/// Where the package `debian-archive-keyring` has the distribution's keys; one of them.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// An apt of ours, in a directory of its own.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
}

/// A package in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) package: String,
    pub(crate) version: String,
}

impl Apt {
    /// Fetches the signed index of a release of Debian, by codename, from where this machine gets
    /// its packages; or says why there is none. Its backports come first.
    pub(crate) fn prepare(
        session: &mut Session<'_>,
        directory: PathBuf,
        codename: &str,
    ) -> Result<Result<Self, String>> {
        let archives = match archives::configured(session)? {
            Ok(archives) => archives,
            Err(reason) => return Ok(Err(reason)),
        };
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).exists());
        let Some(sources) = sources(&archives, codename, keyring) else {
            return Ok(Err("apt is not configured for an archive of Debian".into()));
        };
        for name in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(name)).context("cannot make a directory for apt")?;
        }
        let write = |name: &str, text: &str| {
            fs::write(directory.join(name), text).context("cannot write a file for apt")
        };
        write("status", "")?;
        write("sources.list", &sources)?;
        write("apt.conf", &configuration(&directory, codename)?)?;
        let apt = Self { directory };
        let mut command = apt.command("apt-get");
        command.args(["--error-on=any", "update"]);
        let finished = session.run(command, &mut |_| None)?;
        if !finished.ending.success() {
            session.show(&finished.output)?;
            return Ok(Err(format!("the index of Debian's {codename} cannot be had")));
        }
        Ok(Ok(apt))
    }

    /// The packages whose names the regular expression matches, with all their versions, the
    /// newest first.
    pub(crate) fn versions(&self, session: &mut Session<'_>, name: &str) -> Result<Vec<Version>> {
        let mut command = self.command("apt-cache");
        command.args(["search", "--names-only", name]);
        let finished = session.run(command, &mut |_| None)?;
        let names = finished.output.lines().filter_map(|line| line.split_once(" - "));
        let mut command = self.command("apt-cache");
        command.arg("madison").args(names.map(|(name, _)| name.to_owned()));
        let finished = session.run(command, &mut |_| None)?;
        Ok(finished.output.lines().filter_map(version).collect())
    }

    /// Fetches a package and, if asked to, all that it needs, and unpacks that into `root`.
    /// Without success the output has been shown.
    pub(crate) fn unpack(
        &self,
        session: &mut Session<'_>,
        wanted: &Version,
        with_dependencies: bool,
        root: &Path,
    ) -> Result<bool> {
        let archives = self.directory.join("cache/archives");
        let name = format!("{}={}", wanted.package, wanted.version);
        let mut command = self.command("apt-get");
        command.arg("--yes");
        if with_dependencies {
            command.args(["--download-only", "install", &name]);
        } else {
            command.current_dir(&archives).args(["download", &name]);
        }
        let finished = session.run(command, &mut |_| None)?;
        if !finished.ending.success() {
            session.show(&finished.output)?;
            return Ok(false);
        }
        let mut files: Vec<_> = fs::read_dir(&archives)
            .context("cannot read what apt has fetched")?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        files.sort_unstable();
        fs::create_dir_all(root).context("cannot make a directory")?;
        for file in files {
            let mut command = Command::new("dpkg-deb");
            command.arg("--extract").arg(&file).arg(root);
            let finished = session.run_unshown(command, &mut |_| None)?;
            if !finished.ending.success() {
                session.show(&finished.output)?;
                return Ok(false);
            }
            fs::remove_file(&file).context("cannot remove a package")?;
        }
        Ok(true)
    }

    /// A command of apt that knows nothing of the machine's packages and lists.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("--config-file").arg(self.directory.join("apt.conf"));
        command
    }
}

/// What apt reads behind the machine's own configuration, which knows of proxies and passwords.
fn configuration(directory: &Path, codename: &str) -> Result<String> {
    let directory = directory.to_str().context("apt's directory is not UTF-8")?;
    ensure!(!directory.contains(['"', '\n', ';']), "apt cannot work in {directory:?}");
    Ok(format!(
        "Dir::Etc::sourcelist \"{directory}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State \"{directory}/state\";\n\
         Dir::State::lists \"lists\";\n\
         Dir::State::status \"{directory}/status\";\n\
         Dir::Cache \"{directory}/cache\";\n\
         Dir::Cache::archives \"archives\";\n\
         APT::Default-Release \"{codename}-backports\";\n\
         APT::Install-Recommends \"false\";\n\
         APT::Get::AllowUnauthenticated \"false\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::AllowInsecureRepositories \"false\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\n\
         Acquire::http::Timeout \"30\";\n\
         Acquire::https::Timeout \"30\";\n\
         Debug::NoLocking \"true\";\n\
         #clear Acquire::IndexTargets::deb::DEP-11;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n"
    ))
}

/// The release, its security updates and its backports, from the archives that the machine uses for
/// its own release; `None` if those are not Debian's.
fn sources(archives: &[Archive], codename: &str, keyring: Option<&str>) -> Option<String> {
    let option = keyring.map_or(String::new(), |path| format!("[signed-by={path}] "));
    let source = |address: &str, release: &str| format!("deb {option}{address} {release} main\n");
    let main = |archive: &&Archive| archive.component == "main";
    let security = |archive: &&Archive| archive.release.ends_with("-security");
    let updates = |archive: &&Archive| archive.release.ends_with("-updates");
    // Only Debian has the one next to the other under these names.
    let base = archives.iter().filter(main).find(updates)?;
    let security = archives.iter().filter(main).find(security);
    let security =
        security.map(|archive| source(&archive.address, &format!("{codename}-security")));
    Some(
        source(&base.address, codename)
            + &source(&base.address, &format!("{codename}-backports"))
            + &security.unwrap_or_default(),
    )
}

/// From a line of `apt-cache madison`: ` PACKAGE |  VERSION | ADDRESS …`.
fn version(line: &str) -> Option<Version> {
    let mut fields = line.split('|').map(str::trim);
    let (package, version) = (fields.next()?, fields.next()?);
    fields.next()?;
    let word = |text: &str| !text.is_empty() && !text.contains(' ');
    (word(package) && word(version))
        .then(|| Version { package: package.to_owned(), version: version.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(address: &str, release: &str) -> Archive {
        Archive {
            address: address.to_owned(),
            release: release.to_owned(),
            component: "main".to_owned(),
        }
    }

    #[test]
    fn another_release_comes_from_where_the_machine_gets_its_own() {
        let archives = [
            archive("https://example.com/tool", "trixie"),
            archive("http://deb.example.org/debian", "trixie"),
            archive("http://deb.example.org/debian", "trixie-updates"),
            archive("http://deb.example.org/debian-security", "trixie-security"),
        ];
        assert_eq!(
            sources(&archives, "bookworm", Some("/keys")).as_deref(),
            Some(
                "deb [signed-by=/keys] http://deb.example.org/debian bookworm main\n\
                 deb [signed-by=/keys] http://deb.example.org/debian bookworm-backports main\n\
                 deb [signed-by=/keys] http://deb.example.org/debian-security bookworm-security main\n"
            )
        );
        assert_eq!(sources(&archives[..1], "bookworm", None), None);
    }

    #[test]
    fn versions_are_read_from_a_table() {
        let told = |line| version(line);
        let line = " qemu-system-x86 | 1:10.0.2+ds-2 | http://deb.example.org bookworm/main amd64";
        let expected =
            Version { package: "qemu-system-x86".into(), version: "1:10.0.2+ds-2".into() };
        assert_eq!(told(line), Some(expected));
        assert_eq!(told("N: Unable to locate package"), None);
        assert_eq!(told("W: a | warning here | and more"), None);
    }
}
