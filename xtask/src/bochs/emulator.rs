//! A Bochs that is fit for the suites: found, or built.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{build_emulator, probe};
use crate::{packages, session::Session};

/// Names the Bochs to use, before all others.
pub(crate) const PROGRAM_VARIABLE: &str = "SUBPAGE_BOCHS";

/// A Bochs with VMX and SPP.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    pub(crate) program: PathBuf,
}

/// The emulator, or why there is none.
pub(crate) type Availability = std::result::Result<Emulator, String>;

/// Finds an emulator or builds one, and says what it does. `install` allows it to install what a
/// build needs; the build itself stays within the user's cache.
pub(crate) fn prepare(session: &mut Session<'_>, install: bool) -> Result<Availability> {
    if let Some(emulator) = named(session)? {
        return Ok(emulator);
    }
    if let Some(program) = packages::found("bochs")
        && let Some(emulator) = fit(session, &program)?
    {
        return Ok(Ok(emulator));
    }
    let place = match build_emulator::place() {
        Ok(place) => place,
        Err(reason) => return Ok(Err(reason)),
    };
    let program = build_emulator::program(&place);
    if program.exists()
        && let Some(emulator) = fit(session, &program)?
    {
        return Ok(Ok(emulator));
    }
    if let Err(reason) = build_emulator::build(session, &place, install)? {
        return Ok(Err(reason));
    }
    let built = fit(session, &program)?;
    Ok(built.ok_or_else(|| "the Bochs that was built is not fit".into()))
}

/// The one that the user, or the suite that started this program, has named: no other will do.
fn named(session: &mut Session<'_>) -> Result<Option<Availability>> {
    let Some(program) = env::var_os(PROGRAM_VARIABLE).filter(|program| !program.is_empty()) else {
        return Ok(None);
    };
    let program = PathBuf::from(program);
    let reason = || format!("{PROGRAM_VARIABLE} names {}, which is not fit", program.display());
    Ok(Some(fit(session, &program)?.ok_or_else(reason)))
}

fn fit(session: &mut Session<'_>, program: &Path) -> Result<Option<Emulator>> {
    match probe::probe(program, session.interrupt())? {
        Ok(version) => {
            session.say(&format!(
                "   found Bochs {version} with VMX and SPP at {}",
                program.display()
            ))?;
            Ok(Some(Emulator { program: program.to_owned() }))
        }
        Err(reason) => {
            session.say(&format!("   {} is not fit: {reason}", program.display()))?;
            Ok(None)
        }
    }
}
