//! How long things take on the processor, in ticks of its time-stamp counter.
//!
//! Each case of the batch is one guest; its first step runs again and again. The differences between
//! guests are what is of interest: each has an entry, an exit and an invalidation besides.

use alloc::vec::Vec;

use super::report::line;
use crate::conformance::execute::{Arena, CaseRunner, pointers, prepare, store};
use crate::conformance::format::Batch;
use crate::processor::control;

/// Writes of a guest that writes in a loop.
pub const WRITES: u32 = 1000;

/// How often each is done; the median is told, and the least.
const ROUNDS: usize = 101;

/// What the cases of a timing batch are, in their order.
pub const GUESTS: [&str; 4] = [
    "VMCALL: entry and exit",
    "1000 writes to a page with W = 1",
    "1000 writes to a permitted sub-page",
    "a write to a denied sub-page: entry and exit",
];

/// The basic exit reasons that they end with: another is no measurement of what its name says.
pub const ENDINGS: [u32; 4] = [18, 18, 18, 48];

/// Runs each guest of the batch, and tells. Fails with the number of the guest that could not be
/// entered.
pub fn guests<P: CaseRunner>(
    batch: &Batch<'_>,
    processor: &mut P,
    before: &mut Arena,
) -> Result<(), u32> {
    for ((number, case), (name, ending)) in
        (0..).zip(batch.cases()).zip(GUESTS.into_iter().zip(ENDINGS))
    {
        prepare(batch.template(), &case, processor.arena(), before);
        let pointers = pointers(&case);
        let Some(step) = case.steps().next() else { return Err(number) };
        store(step.stores, processor.arena());
        let mut ticks = Vec::with_capacity(ROUNDS);
        let mut ended = ending;
        for _ in 0..ROUNDS {
            let begun = control::time_stamp();
            let exit = processor.run(&pointers, step.mode).map_err(|_| number)?;
            ticks.push(control::time_stamp().wrapping_sub(begun));
            if exit.reason != ending {
                ended = exit.reason;
            }
        }
        if ended == ending {
            tell(name, &mut ticks);
        } else {
            line(format_args!(
                "timing: {name}: none, it ends with exit {ended} instead of {ending}"
            ));
        }
    }
    Ok(())
}

/// Measures an operation of the host, and tells.
pub fn host(name: &str, mut operation: impl FnMut()) {
    let mut ticks = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = control::time_stamp();
        operation();
        ticks.push(control::time_stamp().wrapping_sub(begun));
    }
    tell(name, &mut ticks);
}

fn tell(name: &str, ticks: &mut [u64]) {
    let (least, median) = least_and_median(ticks);
    line(format_args!("timing: {name}: median {median}, least {least} ticks"));
}

/// Of a list that is not empty.
fn least_and_median(ticks: &mut [u64]) -> (u64, u64) {
    ticks.sort_unstable();
    (ticks[0], ticks[ticks.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_round_is_not_the_median() {
        assert_eq!(least_and_median(&mut [7, 9_000_000, 5]), (5, 7));
    }
}
