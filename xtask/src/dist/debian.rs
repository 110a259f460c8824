//! The Debian package: laid out by us, packed by `dpkg-deb`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    contents::{Contents, File},
    output_of,
};
use crate::packages;

/// Packs Debian packages; every Debian has it.
pub(crate) const PROGRAM: &str = "dpkg-deb";

/// Writes `subpage_VERSION_amd64.deb` into a directory; none where `dpkg-deb` is missing.
pub(crate) fn write(contents: &Contents, directory: &Path) -> Result<Option<PathBuf>> {
    if packages::found(PROGRAM).is_none() {
        return Ok(None);
    }
    let stage = tempfile::tempdir_in(directory).context("cannot make a directory")?;
    let root = stage.path().join("root");
    let manual = packed(&contents.manual)?;
    let changelog = gzip(contents.text("CHANGELOG.md"))?;
    let copyright = copyright(&String::from_utf8_lossy(contents.text("LICENSE-MIT")));
    let mut files = vec![
        File { path: "usr/bin/subpage".into(), bytes: &contents.program, executable: true },
        File::data("usr/share/doc/subpage/changelog.gz", &changelog),
        File::data("usr/share/doc/subpage/copyright", copyright.as_bytes()),
        File::data("usr/share/doc/subpage/THIRD-PARTY.txt", contents.text("THIRD-PARTY.txt")),
    ];
    for (name, page) in &manual {
        files.push(File::data(format!("usr/share/man/man1/{name}"), page));
    }
    for (shell, name, script) in &contents.completions {
        let directory = match *shell {
            "bash" => "bash-completion/completions",
            // Debian's own directory for what packages bring.
            "zsh" => "zsh/vendor-completions",
            _ => "fish/vendor_completions.d",
        };
        files.push(File::data(format!("usr/share/{directory}/{name}"), script));
    }
    for file in &files {
        file.write(&root)?;
    }
    let size: usize = files.iter().map(|file| file.bytes.len().div_ceil(1 << 10)).sum();
    let control = control(contents, size);
    let sums = sums(&root, &files)?;
    for (name, text) in [("control", control.as_bytes()), ("md5sums", &sums)] {
        File::data(format!("DEBIAN/{name}"), text).write(&root)?;
    }
    let path = directory.join(format!("subpage_{}_amd64.deb", contents.version));
    let built = Command::new(PROGRAM)
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([&root, &path])
        .env("SOURCE_DATE_EPOCH", &contents.epoch)
        .output()
        .context("cannot start dpkg-deb")?;
    let told = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "dpkg-deb failed: {}", told.trim());
    Ok(Some(path))
}

/// Debian Policy, section 5.3, "Binary package control files".
fn control(contents: &Contents, kibibytes: usize) -> String {
    let variable =
        |name: &str, otherwise: &str| env::var(name).unwrap_or_else(|_| otherwise.into());
    // As all of Debian's tools have it.
    let name = variable("DEBFULLNAME", "The Subpage developers");
    let address = variable("DEBEMAIL", "subpage@developers.invalid");
    format!(
        "Package: subpage\n\
         Version: {}\n\
         Architecture: amd64\n\
         Maintainer: {name} <{address}>\n\
         Installed-Size: {kibibytes}\n\
         Suggests: valgrind\n\
         Section: utils\n\
         Priority: optional\n\
         Description: {}\n \
         Subpage write-protects pieces of 128 bytes of a virtual machine's memory,\n \
         and lets the rest of the page be. It guards a guest on KVM while it runs,\n \
         or the recorded writes of an ordinary program. Recording needs valgrind.\n",
        contents.version,
        synopsis(&contents.description),
    )
}

/// The one line of a description: what stands before the colon of the crate's, or all of it.
fn synopsis(description: &str) -> &str {
    description.split_once(": ").map_or(description, |(_, after)| after)
}

/// Machine-readable copyright, <https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/>.
fn copyright(mit: &str) -> String {
    let holder = mit.lines().find_map(|line| line.strip_prefix("Copyright (c) "));
    let licence: String = mit
        .lines()
        .skip_while(|line| !line.starts_with("Permission"))
        .map(|line| if line.is_empty() { " .\n".into() } else { format!(" {line}\n") })
        .collect();
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: subpage\n\
         Comment: The program holds other projects' code: see THIRD-PARTY.txt beside this file.\n \
         It also holds, as texts, the sources of a tool for Valgrind and of a plugin for QEMU, both under\n \
         GPL-2.0-or-later; they are compiled and used as programs of their own.\n\
         \n\
         Files: *\n\
         Copyright: {}\n\
         License: Apache-2.0 or Expat\n\
         \n\
         License: Apache-2.0\n \
         On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n\
         \n\
         License: Expat\n{licence}",
        holder.unwrap_or("The Subpage developers"),
    )
}

/// The checksums by which `dpkg --verify` finds damage.
fn sums(root: &Path, files: &[File<'_>]) -> Result<Vec<u8>> {
    let mut paths: Vec<_> = files.iter().map(|file| &file.path).collect();
    paths.sort();
    output_of(Command::new("md5sum").arg("--").args(paths).current_dir(root), &[])
}

fn packed(pages: &[(String, Vec<u8>)]) -> Result<Vec<(String, Vec<u8>)>> {
    pages.iter().map(|(name, page)| Ok((format!("{name}.gz"), gzip(page)?))).collect()
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    output_of(Command::new("gzip").args(["-9", "--no-name"]), bytes)
}

/// What `dpkg-deb` says about a package.
pub(crate) fn ask(question: &str, package: &Path) -> Result<String> {
    let said = output_of(Command::new(PROGRAM).arg(question).arg(package), &[])?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Unpacks what is installed.
pub(crate) fn unpack(package: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).context("cannot make a directory")?;
    output_of(Command::new(PROGRAM).arg("--extract").args([package, directory]), &[]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_synopsis_is_without_the_name() {
        assert_eq!(synopsis("The subpage command: guards guests"), "guards guests");
        assert_eq!(synopsis("guards guests"), "guards guests");
    }

    #[test]
    fn a_licence_is_one_field() {
        let text = copyright("MIT License\n\nCopyright (c) Us\n\nPermission is granted\n\nAS IS\n");
        assert!(text.contains("\nCopyright: Us\n"), "{text}");
        assert!(text.ends_with("License: Expat\n Permission is granted\n .\n AS IS\n"), "{text}");
    }
}
