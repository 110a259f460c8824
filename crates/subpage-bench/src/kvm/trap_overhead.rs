//! A permitted write that traps: through the VMM, and through the barest loop for the same exit.

use std::io;

use subpage_bench::report::Record;
use subpage_bench::rounds::Rounds;
use subpage_kvm::trap::TrapBy;
use subpage_kvm::vm::TrapChoice;

use crate::bare::Bare;
use crate::guarded::Guarded;
use crate::guest::{Level, Work};

pub(crate) const NAME: &str = "trap_overhead";

/// At most so many times the time of the barest loop.
const TARGET: f64 = 1.10;

const MEMORY: u64 = 16 << 20;

/// Stores of a round: a few milliseconds, of which the round's own two exits are little.
const STORES: u32 = 100;
const ROUNDS: usize = 301;

pub(crate) fn run(print: &mut dyn FnMut(Record) -> io::Result<()>) -> io::Result<()> {
    for (by, level, bytes, note) in [
        (TrapBy::Slots, Level::Kernel, 4, "read-only slot, CPL 0, 4 bytes"),
        (TrapBy::Slots, Level::Kernel, 8, "read-only slot, CPL 0, 8 bytes"),
        (TrapBy::Slots, Level::User, 4, "read-only slot, CPL 3, 4 bytes"),
        (TrapBy::Slots, Level::User, 8, "read-only slot, CPL 3, 8 bytes"),
        (TrapBy::View, Level::User, 4, "read-only view, CPL 3, 4 bytes"),
        (TrapBy::View, Level::User, 8, "read-only view, CPL 3, 8 bytes"),
    ] {
        print(measure(by, level, bytes).with_note(note))?;
    }
    Ok(())
}

fn measure(by: TrapBy, level: Level, bytes: u8) -> Record {
    let trap = match by {
        TrapBy::Slots => TrapChoice::Slots,
        TrapBy::View => TrapChoice::View,
    };
    let work = Work::Trapping(bytes);
    let mut guarded = Guarded::new(trap, level, work, MEMORY);
    guarded.restrict();
    guarded.set_count(STORES);
    guarded.start();
    let mut bare = Bare::new(by, level, work, MEMORY);
    bare.set_count(STORES);
    let mut turns = 0;
    let rounds = Rounds::run_many(
        ROUNDS,
        [
            &mut || {
                turns += 1;
                guarded.round()
            },
            &mut || bare.round(),
        ],
    );
    assert_eq!(guarded.trapped(), turns * u64::from(STORES), "each store leaves the guest once");
    let microseconds = |side| rounds.nanoseconds(side, STORES) / 1e3;
    Record::new(NAME, "us", microseconds(0), "bare loop", microseconds(1))
        .with_ratio(rounds.ratio(0, 1))
        .with("target", TARGET)
}
