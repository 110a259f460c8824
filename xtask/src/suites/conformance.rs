//! Model against processor: random tables and accesses, the same in the model and in Bochs.

use std::env;

use anyhow::{Context as _, Result};

use super::Plan;
use crate::{
    bochs::{
        emulator::PROGRAM_VARIABLE,
        images::{self, Images, Purpose},
    },
    count::Count,
    session::Session,
};

/// Fewer accesses than this prove too little.
const LEAST_ACCESSES: u64 = 20_000;

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let emulator = match &plan.prerequisites.emulator {
        Ok(emulator) => emulator,
        Err(reason) => {
            session.say(&format!("   skipped: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let Some(images) = Images::build(session, &plan.workspace, Purpose::Conformance)? else {
        return Ok(Count::FAILED);
    };
    let own = env::current_exe().context("cannot tell where this program is")?;
    let mut command = plan.cargo(&[
        "run",
        "--quiet",
        "--release",
        "--package",
        "subpage-conformance",
        "--",
        "run",
    ]);
    command
        .arg("--emulator")
        .arg(own)
        .env(PROGRAM_VARIABLE, &emulator.program)
        .env(images::DIRECTORY_VARIABLE, images.directory());
    let finished = session.run(command, &mut |line| Some(line.to_owned()))?;
    let result = finished.output.lines().rev().find_map(result);
    let passed = finished.ending.success() && result.is_some_and(Tally::proves);
    match result {
        Some(outcome) if outcome.disagreements == 0 && outcome.accesses < LEAST_ACCESSES => {
            session.say(&format!("   failed: fewer than {LEAST_ACCESSES} accesses"))?;
        }
        Some(_) => {}
        None => session.say("   failed: it printed no result")?,
    }
    Ok(Count::check(passed))
}

/// What the comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    accesses: u64,
    disagreements: u64,
}

impl Tally {
    fn proves(self) -> bool {
        self.disagreements == 0 && self.accesses >= LEAST_ACCESSES
    }
}

/// Reads `conformance: N accesses, D disagreements`.
fn result(line: &str) -> Option<Tally> {
    let (accesses, disagreements) = line
        .strip_prefix("conformance: ")?
        .strip_suffix(" disagreements")?
        .split_once(" accesses, ")?;
    Some(Tally { accesses: accesses.parse().ok()?, disagreements: disagreements.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_a_line() {
        let outcome = Tally { accesses: 24_000, disagreements: 3 };
        assert_eq!(result("conformance: 24000 accesses, 3 disagreements"), Some(outcome));
        for line in ["conformance: 24000 accesses", "conformance: many accesses, 0 disagreements"] {
            assert_eq!(result(line), None);
        }
    }

    #[test]
    fn many_accesses_without_a_disagreement_prove_something() {
        assert!(Tally { accesses: 20_000, disagreements: 0 }.proves());
        assert!(!Tally { accesses: 19_999, disagreements: 0 }.proves());
        assert!(!Tally { accesses: 20_000, disagreements: 1 }.proves());
    }
}
