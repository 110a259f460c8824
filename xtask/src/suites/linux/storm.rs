//! What sub-page protection spares: the same workload by SPP and without.

use std::time::Instant;

use anyhow::Result;

use super::{BOOT_LIMIT, HALTED};
use crate::{
    bochs::{emulator::Emulator, last_words, linux::LinuxMachine},
    count::Count,
    linux::command_line,
    session::{self, Session},
    suites::bochs,
};

/// The test that compares runs.
pub(super) const NAME: &str = "spp_spares_exits";

/// A workload that writes beside the rule's bytes, by SPP and without it: how many of its writes trap.
pub(super) fn check(
    session: &mut Session<'_>,
    emulator: &Emulator,
    plain: &LinuxMachine,
    policy: &[u8],
) -> Result<Count> {
    let begun = Instant::now();
    let mut trapped = Vec::new();
    for spp in ["on", "off"] {
        let machine = LinuxMachine {
            options: format!("cpus=1 events=ring spp={spp}"),
            policy: Some(policy.to_vec()),
            command_line: command_line(1, &["work 300", "poweroff"]),
            ..plain.clone()
        };
        let left = session.deadline().saturating_duration_since(Instant::now());
        let interrupt = session.interrupt().clone();
        let done = machine.start(emulator, BOOT_LIMIT.min(left), &interrupt, &mut |_| {})?;
        let ended = last_words::ended(&done.run, HALTED);
        let count = done.run.lines.iter().find_map(|line| completed(line));
        match (ended, count) {
            (Ok(()), Some(count)) => trapped.push(count),
            (ended, _) => {
                let reason = ended.err().unwrap_or_else(|| "it told no count".into());
                session.say(&format!("   failed {NAME} with spp={spp}: {reason}"))?;
                bochs::show(session, &done.run)?;
                return Ok(Count::FAILED);
            }
        }
    }
    let took = session::duration(begun.elapsed());
    let (by_spp, without) = (trapped[0], trapped[1]);
    let told = format!("{by_spp} stores trapped beside the rule with SPP, {without} without");
    if without > 200 && by_spp * 20 <= without {
        session.say(&format!("   passed {NAME} in {took}: {told}"))?;
        return Ok(Count::PASSED);
    }
    session.say(&format!("   failed {NAME} after {took}: {told}; 95 % should be spared"))?;
    Ok(Count::FAILED)
}

/// How many stores were completed in software, if that is what a line of the hypervisor tells.
fn completed(line: &str) -> Option<u64> {
    let counts = line.strip_prefix("hypervisor: writes that trapped: ")?;
    let count = counts.split(", ").find_map(|part| part.split_once(" completed in software"))?;
    count.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found() {
        let line = "hypervisor: writes that trapped: 10 denied, 0 reported, 27 completed in software; 0 \
                    retried, 0 SPP misses; time-stamp counter 5";
        assert_eq!(completed(line), Some(27));
        assert_eq!(completed("hypervisor: the kernel begins, without a policy"), None);
    }
}
