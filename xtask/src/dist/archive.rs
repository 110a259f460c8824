//! The archive: unpacked over a prefix such as `~/.local`, everything is where it is looked for.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    contents::{Contents, File},
    output_of,
};

/// Writes `subpage-VERSION-x86_64-linux.tar.gz` into a directory; the same bytes for the same contents.
pub(crate) fn write(contents: &Contents, directory: &Path) -> Result<PathBuf> {
    let name = format!("subpage-{}-x86_64-linux", contents.version);
    let stage = tempfile::tempdir_in(directory).context("cannot make a directory")?;
    for file in files(contents) {
        file.write(&stage.path().join(&name))?;
    }
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(stage.path());
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    tar.arg(format!("--mtime=@{}", contents.epoch)).args(["--create", "--file=-", &name]);
    let archive = output_of(&mut tar, &[])?;
    // Without a name and a time of its own.
    let archive = output_of(Command::new("gzip").args(["-9", "--no-name"]), &archive)?;
    let path = directory.join(name + ".tar.gz");
    std::fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn files(contents: &Contents) -> Vec<File<'_>> {
    let mut files =
        vec![File { path: "bin/subpage".into(), bytes: &contents.program, executable: true }];
    for (name, page) in &contents.manual {
        files.push(File::data(format!("share/man/man1/{name}"), page));
    }
    for (shell, name, script) in &contents.completions {
        let directory = match *shell {
            "bash" => "bash-completion/completions",
            "zsh" => "zsh/site-functions",
            _ => "fish/vendor_completions.d",
        };
        files.push(File::data(format!("share/{directory}/{name}"), script));
    }
    for (name, text) in &contents.texts {
        files.push(File::data(format!("share/doc/subpage/{name}"), text));
    }
    files
}
