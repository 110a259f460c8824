//! What sub-page protection spares: the same workload without a rule, by SPP and by pages.

use std::time::Instant;

use anyhow::Result;

use super::BOOT_LIMIT;
use crate::{
    bochs::{emulator::Emulator, last_words, linux::LinuxMachine},
    count::Count,
    linux::{
        command_line,
        counts::{Counts, part},
        scenario::HALTED,
    },
    session::{self, Session},
    suites::bochs,
};

/// The test that compares runs.
pub(super) const NAME: &str = "spp_spares_exits";

/// Fewer stores beside the rules than this tell nothing.
const LEAST: u64 = 1000;

/// The most that rules may cost by SPP, in hundredths of a percent of all instructions.
const MOST_MORE: u64 = 200;

/// A workload that writes beside the bytes of five rules: what they cost by SPP and by pages.
pub(super) fn check(
    session: &mut Session<'_>,
    emulator: &Emulator,
    plain: &LinuxMachine,
    policy: &[u8],
) -> Result<Count> {
    let begun = Instant::now();
    let mut counts = Vec::new();
    for (what, guarded) in [("no rule", false), ("spp=on", true), ("spp=off", true)] {
        let option = if guarded { what } else { "" };
        let machine = LinuxMachine {
            options: format!("cpus=1 events=ring {option}"),
            policy: guarded.then(|| policy.to_vec()),
            command_line: command_line(1, &["work 300", "poweroff"]),
            ..plain.clone()
        };
        let left = session.deadline().saturating_duration_since(Instant::now());
        let interrupt = session.interrupt().clone();
        let done = machine.start(emulator, BOOT_LIMIT.min(left), &interrupt, &mut |_| {})?;
        let worked = done.console.iter().any(|line| line.starts_with("work: 300 rounds in "));
        let ended = last_words::ended(&done.run, HALTED);
        let ended = if worked { ended } else { Err("its work was not done".to_owned()) };
        match (ended, Counts::of(&done.run.lines)) {
            (Ok(()), Some(found)) => counts.push(found),
            (ended, _) => {
                let reason = ended.err().unwrap_or_else(|| "it told no counts".into());
                session.say(&format!("   failed {NAME} with {what}: {reason}"))?;
                bochs::show(session, &done.run)?;
                return Ok(Count::FAILED);
            }
        }
    }
    let took = session::duration(begun.elapsed());
    let [none, by_spp, by_pages] = counts[..] else { unreachable!("there were three runs") };
    match judge(&none, &by_spp, &by_pages) {
        Ok(told) => {
            session.say(&format!("   passed {NAME} in {took}: {told}"))?;
            Ok(Count::PASSED)
        }
        Err(reason) => {
            session.say(&format!("   failed {NAME} after {took}: {reason}"))?;
            Ok(Count::FAILED)
        }
    }
}

/// The goals: 95 % of what page protection makes trap is spared, and the kernel has next to nothing more
/// to execute; no walk of the guarded page table is stepped over.
fn judge(none: &Counts, by_spp: &Counts, by_pages: &Counts) -> Result<String, String> {
    let (spp, pages, more) =
        (by_spp.beside(), by_pages.beside(), part(by_spp.more(none), none.ticks));
    let told = format!(
        "{spp} stores trapped beside the rules by SPP, {pages} by pages; {}.{:02} % more by SPP",
        more / 100,
        more % 100
    );
    let goals = [
        (none.beside() == 0, "without a rule none should trap"),
        (pages >= LEAST, "that is too little work"),
        (spp * 20 <= pages, "95 % should be spared"),
        (by_spp.open == 0, "by SPP no sub-page without guarded bytes should trap"),
        (more <= MOST_MORE, "at most 2 % more are wanted"),
        (by_spp.steps + by_pages.steps == 0, "no walk should be stepped over"),
    ];
    match goals.iter().find(|(reached, _)| !reached) {
        None => Ok(told),
        Some((_, goal)) => Err(format!("{told}; {goal}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_goal_can_be_missed() {
        let none = Counts { ticks: 1_000_000, ..Counts::default() };
        let by_spp = Counts { hypervisor: 20_000, completed: 60, reported: 4, ..none };
        let by_pages = Counts { completed: 1204, open: 1100, ..by_spp };
        let told = judge(&none, &by_spp, &by_pages).expect("all goals are reached");
        assert_eq!(
            told,
            "56 stores trapped beside the rules by SPP, 1200 by pages; 2.00 % more by SPP"
        );
        let missed = [
            (Counts { completed: 1, ..none }, by_spp, by_pages),
            (none, by_spp, Counts { completed: 1003, ..by_pages }),
            (none, Counts { completed: 65, ..by_spp }, by_pages),
            (none, Counts { open: 1, ..by_spp }, by_pages),
            (none, Counts { hypervisor: 20_100, ..by_spp }, by_pages),
            (none, Counts { steps: 1, ..by_spp }, by_pages),
            (none, by_spp, Counts { steps: 1, ..by_pages }),
        ];
        for (none, by_spp, by_pages) in missed {
            assert!(judge(&none, &by_spp, &by_pages).is_err(), "{none:?} {by_spp:?} {by_pages:?}");
        }
    }
}
