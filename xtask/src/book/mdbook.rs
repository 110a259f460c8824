//! mdBook: found on the path or in the cache, or built into the cache when the user asks for it.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};

use crate::{
    cache::Place,
    packages,
    session::{self, Session},
    workspace::Workspace,
};

const PROGRAM: &str = "mdbook";
const VERSION: &str = "0.5.4";

/// A site needs its search, and neither a server nor a watch over files.
const FEATURES: [&str; 3] = ["--no-default-features", "--features", "search"];

/// Why there is no site, and what to do about it.
pub(super) fn missing() -> String {
    "there is no mdbook; `cargo xtask docs --install` builds one, in some minutes".into()
}

fn place() -> Result<Place, String> {
    Place::of_user(&format!("{PROGRAM}-{VERSION}"), &FEATURES.join(" "))
}

fn program(place: &Place) -> PathBuf {
    place.directory().join("bin").join(PROGRAM)
}

/// The one on the path, or the one that an earlier run has built.
pub(super) fn find() -> Option<PathBuf> {
    packages::found(PROGRAM).or_else(|| {
        let built = program(&place().ok()?);
        built.exists().then_some(built)
    })
}

/// Builds it into the cache, or says why it could not.
pub(super) fn install(
    session: &mut Session<'_>,
    workspace: &Workspace,
) -> Result<Result<PathBuf, String>> {
    let place = match place() {
        Ok(place) => place,
        Err(reason) => return Ok(Err(reason)),
    };
    if let Err(reason) = place.make_parent() {
        return Ok(Err(reason));
    }
    let Some(_lock) = place.lock(session, "building mdBook")? else {
        return Ok(Err("interrupted".into()));
    };
    if program(&place).exists() {
        // The other one's.
        return Ok(Ok(program(&place)));
    }
    let start = Instant::now();
    session.say(&format!("   building mdBook {VERSION}, once for this machine; some minutes"))?;
    let directory = place.begin()?;
    let made = directory.path().join("made");
    let mut command = workspace.cargo(&["install", PROGRAM, "--locked", "--version", VERSION]);
    command.args(FEATURES).arg("--root").arg(&made);
    command.arg("--target-dir").arg(directory.path().join("target"));
    // Not in the workspace, whose settings are for its own programs.
    command.current_dir(directory.path());
    if !packages::run(session, command)? {
        return Ok(Err("mdBook could not be built".into()));
    }
    fs::metadata(made.join("bin").join(PROGRAM)).context("cargo install has left no mdbook")?;
    place.finish(&made)?;
    session.say(&format!("   built in {}", session::duration(start.elapsed())))?;
    Ok(Ok(program(&place)))
}
