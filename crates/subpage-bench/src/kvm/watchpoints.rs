//! Ten thousand watchpoints of a debugger: how long it takes to set them, and what stores elsewhere cost
//! then.

use std::io;

use subpage_bench::report::Record;
use subpage_kvm::trap::TrapBy;

use crate::guarded::Guarded;
use crate::guest::{Level, Work};
use crate::pairs::{Comparison, Unit};
use crate::rows::{Out, measurable};
use crate::unprotected_pages::{MEMORY, ROUNDS, TARGET, pair};

pub(crate) const NAME: &str = "watchpoints";

/// Watchpoints of one byte, each in a page of its own.
const WATCHPOINTS: u64 = 10_000;
const FROM: u64 = 16 << 20;

/// At most so many milliseconds for all of them.
const MOST_MILLISECONDS: f64 = 1000.0;

/// Guests whose watchpoints are timed; an odd number, so that the median is a measurement.
const GUESTS: usize = 5;

pub(crate) fn run(out: &mut Out) -> io::Result<()> {
    for (by, note) in [(TrapBy::Slots, "read-only slots"), (TrapBy::Mprotect, "mprotect")] {
        if !measurable(out, NAME, by, note)? {
            continue;
        }
        out.print(&setting(by).with_note(&format!("10,000 set, {note}")))?;
        let comparison = Comparison {
            name: NAME,
            unit: Unit::Nanoseconds,
            baseline_name: "none",
            rounds: ROUNDS,
            target: Some(TARGET),
        };
        let record = comparison.run(|number| {
            pair(by, Level::User, number, |guest| {
                guest.start_watched(FROM, WATCHPOINTS);
            })
        });
        out.print(&record.with_note(&format!("stores elsewhere, 10,000 set, {note}, CPL 3")))?;
    }
    Ok(())
}

/// From the first watchpoint until the guest runs, by packets as gdb sends them.
fn setting(by: TrapBy) -> Record {
    let mut milliseconds: Vec<f64> = (0..GUESTS)
        .map(|_| {
            let mut guest = Guarded::new(by, Level::User, Work::Plain, MEMORY);
            guest.start_watched(FROM, WATCHPOINTS).as_secs_f64() * 1e3
        })
        .collect();
    milliseconds.sort_unstable_by(f64::total_cmp);
    Record::figure(NAME, "ms", milliseconds[GUESTS / 2])
        .with("max", milliseconds[GUESTS - 1])
        .with("target", MOST_MILLISECONDS)
}
