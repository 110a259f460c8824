//! Model against processor: random tables and accesses, the same in the model and in Bochs; and models with
//! known wrong behaviours, which Bochs has to contradict.

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
    let output = |session: &mut Session<'_>, features: &[&str], operation: &str| -> Result<_> {
        let own = env::current_exe().context("cannot tell where this program is")?;
        let begin = ["run", "--quiet", "--release", "--package", "subpage-conformance"];
        let mut command = plan.cargo(&[&begin, features, &["--", operation]].concat());
        command
            .arg("--emulator")
            .arg(own)
            .env(PROGRAM_VARIABLE, &emulator.program)
            .env(images::DIRECTORY_VARIABLE, images.directory());
        session.run(command, &mut |line| Some(line.to_owned()))
    };
    let finished = output(session, &[], "run")?;
    let tally = finished.output.lines().rev().find_map(result);
    let passed = finished.ending.success() && tally.is_some_and(Tally::proves);
    match tally {
        Some(outcome) if outcome.disagreements == 0 && outcome.accesses < LEAST_ACCESSES => {
            session.say(&format!("   failed: fewer than {LEAST_ACCESSES} accesses"))?;
        }
        Some(_) => {}
        None => session.say("   failed: it printed no result")?,
    }
    let mut count = Count::check(passed);
    if session.interrupted() {
        return Ok(count);
    }
    // Whether it would have found anything.
    let finished = output(session, &["--features=mutations"], "mutations")?;
    let found = finished.output.lines().rev().find_map(contradicted);
    let passed = finished.ending.success() && found.is_some_and(Contradicted::proves);
    if !passed {
        session.say("   failed: not every wrong model was contradicted")?;
    }
    count += Count::check(passed);
    Ok(count)
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

/// Fewer wrong models than this prove too little.
const LEAST_MUTANTS: u64 = 21;

/// What the comparison of wrong models came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contradicted {
    found: u64,
    all: u64,
}

impl Contradicted {
    fn proves(self) -> bool {
        self.found == self.all && self.all >= LEAST_MUTANTS
    }
}

/// Reads `mutations: N of M contradicted`.
fn contradicted(line: &str) -> Option<Contradicted> {
    let (found, all) =
        line.strip_prefix("mutations: ")?.strip_suffix(" contradicted")?.split_once(" of ")?;
    Some(Contradicted { found: found.parse().ok()?, all: all.parse().ok()? })
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
    fn every_wrong_model_has_to_be_contradicted() {
        let told = |line| contradicted(line).map(Contradicted::proves);
        assert_eq!(told("mutations: 21 of 21 contradicted"), Some(true));
        assert_eq!(told("mutations: 20 of 21 contradicted"), Some(false));
        assert_eq!(told("mutations: 0 of 0 contradicted"), Some(false));
        assert_eq!(told("inverted-bits: contradicted after 7 accesses: memory"), None);
    }

    #[test]
    fn many_accesses_without_a_disagreement_prove_something() {
        assert!(Tally { accesses: 20_000, disagreements: 0 }.proves());
        assert!(!Tally { accesses: 19_999, disagreements: 0 }.proves());
        assert!(!Tally { accesses: 20_000, disagreements: 1 }.proves());
    }
}
