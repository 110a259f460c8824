//! Looking after processors that do not leave the guest by themselves.
//!
//! Several times a second each is asked whether it gets on. That finds a guest that has halted for
//! good, which KVM does not report, and stores that KVM's emulator repeats forever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::VmShared;

/// How often processors are asked.
const INTERVAL: Duration = Duration::from_millis(50);

/// What is known of the processors since they were last asked.
#[derive(Debug)]
pub(crate) struct Watch {
    asked: Vec<AtomicBool>,
    /// How often all were asked.
    round: AtomicU64,
    /// For each processor, the round in which it last had halted for good, and since which round it has
    /// said so each time.
    halted: Vec<(AtomicU64, AtomicU64)>,
}

impl Watch {
    pub(crate) fn new(processors: usize) -> Self {
        Self {
            asked: (0..processors).map(|_| AtomicBool::new(false)).collect(),
            round: AtomicU64::new(0),
            halted: (0..processors).map(|_| Default::default()).collect(),
        }
    }

    /// Whether a processor was asked since the last call.
    pub(crate) fn asks(&self, number: u32) -> bool {
        self.asked[number as usize].swap(false, Ordering::AcqRel)
    }

    /// The processor has halted, or waits to be started, with no interrupt to wake it. True if all say
    /// so in this round and did in the round before: what one said before another woke it and halted
    /// itself does not count.
    pub(crate) fn halted(&self, number: u32) -> bool {
        let round = self.round.load(Ordering::SeqCst);
        let (last, since) = &self.halted[number as usize];
        if last.swap(round, Ordering::SeqCst) + 1 < round {
            since.store(round, Ordering::SeqCst);
        }
        self.halted.iter().all(|(last, since)| {
            last.load(Ordering::SeqCst) == round && since.load(Ordering::SeqCst) < round
        })
    }

    fn ask(&self, number: usize) {
        self.asked[number].store(true, Ordering::Release);
    }
}

/// Asks all processors until the machine ends.
pub(crate) fn run(machine: &Arc<VmShared>) {
    while !machine.ending.wait(INTERVAL) {
        machine.watch.round.fetch_add(1, Ordering::SeqCst);
        for number in 0..machine.vcpus.processors() {
            machine.watch.ask(number);
            machine.vcpus.kick(number);
        }
    }
}
