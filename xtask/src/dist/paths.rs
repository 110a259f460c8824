//! Where the machine that builds a program has its files, which is nothing to those who get it: rustc
//! writes other names into the program, and what is shipped is searched for the true ones.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::runtime;
use crate::workspace::Workspace;

/// A directory of this machine, and what the program calls it.
pub(super) struct Prefix {
    here: PathBuf,
    shipped: &'static str,
}

/// The directories that what is compiled lies in, the one that rustc is to prefer last.
pub(super) fn prefixes(workspace: &Workspace) -> Result<Vec<Prefix>> {
    let home = env::home_dir();
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| home.as_ref().map(|home| home.join(".cargo")));
    let named = [
        (home, "/home"),
        (cargo, "/cargo"),
        (Some(runtime::sysroot(workspace.root())?), "/rust"),
        (Some(workspace.root().to_owned()), "/subpage"),
        (Some(workspace.separate_target("")), "/target"),
    ];
    Ok(named
        .into_iter()
        .filter_map(|(here, shipped)| Some(Prefix { here: here?, shipped }))
        // Without a home directory it is the root of all.
        .filter(|prefix| prefix.here.components().count() > 1)
        .collect())
}

/// What has rustc write the other names.
pub(super) fn flags(prefixes: &[Prefix]) -> impl Iterator<Item = String> {
    prefixes.iter().map(|Prefix { here, shipped }| {
        // With a slash at its end a directory would not match itself.
        let here: PathBuf = here.components().collect();
        format!("--remap-path-prefix={}={shipped}", here.display())
    })
}

/// Refuses a program that names a directory of this machine.
pub(super) fn check(workspace: &Workspace, program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    for Prefix { here, .. } in prefixes(workspace)? {
        // A name that begins like it is another's.
        let directory = format!("{}/", here.components().collect::<PathBuf>().display());
        let found = found(&bytes, directory.as_bytes());
        ensure!(found.is_empty(), "{} names {directory}: {found:?}", program.display());
    }
    Ok(())
}

/// Most finds that an error lists.
const MAX_FOUND: usize = 5;

/// Longest piece of a find that an error shows.
const MAX_SHOWN: usize = 120;

/// The printable text from each place on at which `directory` stands: the first few.
fn found(bytes: &[u8], directory: &[u8]) -> Vec<String> {
    let places = bytes.windows(directory.len()).enumerate();
    let text = |from: usize| {
        let bytes = bytes[from..].iter().take(MAX_SHOWN);
        bytes
            .take_while(|byte| (b' '..=b'~').contains(byte))
            .map(|byte| char::from(*byte))
            .collect()
    };
    places
        .filter(|(_, window)| *window == directory)
        .map(|(place, _)| text(place))
        .take(MAX_FOUND)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A program that names its source, built with and without the flags.
    #[test]
    fn a_program_built_with_the_flags_names_no_directory_of_this_machine() {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let source = home.path().join("names.rs");
        fs::write(&source, "fn main() { println!(\"{}\", file!()); }")
            .expect("files can be written");
        let prefixes = [Prefix { here: home.path().join(""), shipped: "/home" }];
        let directory = format!("{}/", home.path().display());
        for (flags, named) in [(vec![], 1), (flags(&prefixes).collect::<Vec<_>>(), 0)] {
            let program = home.path().join("names");
            let mut rustc = Command::new("rustc");
            rustc.args(&flags).args(["-Cstrip=debuginfo", "-o"]).args([&program, &source]);
            assert!(rustc.status().expect("rustc starts").success());
            let bytes = fs::read(&program).expect("it is built");
            assert_eq!(found(&bytes, directory.as_bytes()).len(), named, "{flags:?}");
        }
    }

    #[test]
    fn what_is_found_is_shown_to_its_end() {
        let bytes = b"x\0/home/me/a.rs\0/home/men\0/home/me/b.rs";
        assert_eq!(found(bytes, b"/home/me/"), ["/home/me/a.rs", "/home/me/b.rs"]);
    }
}
