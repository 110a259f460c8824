//! Programs from the distribution's packages: found, or installed, never in silence.

pub(crate) mod archives;
pub(crate) mod private;
pub(crate) mod wanted;

use std::{
    env,
    ffi::OsStr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::session::Session;

/// A program from a Debian package.
pub(crate) struct Package {
    pub(crate) program: &'static str,
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
    pub(crate) otherwise: &'static str,
}

/// Whether the program is there; with `install` it gets what is missing, and prints what it does.
pub(crate) fn package(session: &mut Session<'_>, wanted: &Package, install: bool) -> Result<bool> {
    let Package { program, name: package, why, otherwise } = wanted;
    if let Some(path) = found(program) {
        session.say(&format!("   found {program} at {} ({why})", path.display()))?;
        return Ok(true);
    }
    let obstacle = if !install {
        Some("only `cargo xtask bochs`, and `test` without arguments, installs".to_owned())
    } else if found("apt-get").is_none() {
        Some("there is no apt-get here".to_owned())
    } else if !nix::unistd::geteuid().is_root() {
        Some(format!("installing needs root: apt-get install {package}"))
    } else {
        None
    };
    if let Some(obstacle) = obstacle {
        session.say(&format!("   no {program} ({why}); {obstacle}; {otherwise}"))?;
        return Ok(false);
    }
    session.say(&format!("   installing the Debian package {package}: {why}"))?;
    // A fresh machine may have no package lists yet, or ones too old to fetch by.
    let fetched = apt_get(session, &["install", "--no-install-recommends", package])?
        || (apt_get(session, &["update"])?
            && apt_get(session, &["install", "--no-install-recommends", package])?);
    match found(program) {
        Some(path) if fetched => {
            session.say(&format!("   installed {program} at {}", path.display()))?;
            Ok(true)
        }
        _ => {
            session.say(&format!("   {package} could not be installed; {otherwise}"))?;
            Ok(false)
        }
    }
}

fn apt_get(session: &mut Session<'_>, arguments: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command
        .args(["--yes", "--option", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(session, command)
}

/// Whether the command succeeds; its output is shown if it does not.
pub(crate) fn run(session: &mut Session<'_>, command: Command) -> Result<bool> {
    let finished = session.run(command, &mut |_| None)?;
    let success = finished.ending.success();
    if !success {
        session.show(&finished.output)?;
    }
    Ok(success)
}

/// The program that a shell would start.
pub(crate) fn found(program: &str) -> Option<PathBuf> {
    found_in(program, &env::var_os("PATH")?)
}

fn found_in(program: &str, search: &OsStr) -> Option<PathBuf> {
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(search).map(|directory| directory.join(program)).find(|path| executable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_file_is_a_program() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path();
        std::fs::write(path.join("plain"), "").expect("files can be written");
        std::fs::create_dir(path.join("directory")).expect("directories can be made");
        let script = path.join("script");
        std::fs::write(&script, "").expect("files can be written");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
            .expect("permissions can be set");
        let search = env::join_paths([&path.join("none"), path]).expect("plain paths join");
        assert_eq!(found_in("plain", &search), None);
        assert_eq!(found_in("directory", &search), None);
        assert_eq!(found_in("absent", &search), None);
        assert_eq!(found_in("script", &search), Some(script));
    }
}
