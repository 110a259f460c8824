//! A permitted write that traps: through the VMM, and through the barest loop for the same exit.

use std::io;

use subpage::access::SUB_PAGE_BYTES;
use subpage_bench::report::Record;
use subpage_bench::rounds::Rounds;
use subpage_kvm::trap::TrapBy;
use subpage_kvm::vm::TrapChoice;

use crate::bare::Bare;
use crate::guarded::Guarded;
use crate::guest::{DENIED, Level, Work};

pub(crate) const NAME: &str = "trap_overhead";

/// At most so many times the time of the barest loop.
const TARGET: f64 = 1.10;

const MEMORY: u64 = 16 << 20;

/// Stores of a round: a few milliseconds, of which the round's own two exits are little.
const STORES: u32 = 100;
const ROUNDS: usize = 301;

/// The same where the store lies so close before the denied sub-page that KVM has to be asked whether
/// more of it follows. It has no target: `docs/kvm.md` says what it costs.
const CLOSE_NAME: &str = "trap_overhead_close";
const CLOSE: u64 = SUB_PAGE_BYTES * DENIED as u64 - 8;

pub(crate) fn run(print: &mut dyn FnMut(Record) -> io::Result<()>) -> io::Result<()> {
    for (by, level, bytes, note) in [
        (TrapBy::Slots, Level::Kernel, 4, "read-only slot, CPL 0, 4 bytes"),
        (TrapBy::Slots, Level::Kernel, 8, "read-only slot, CPL 0, 8 bytes"),
        (TrapBy::Slots, Level::User, 4, "read-only slot, CPL 3, 4 bytes"),
        (TrapBy::Slots, Level::User, 8, "read-only slot, CPL 3, 8 bytes"),
        (TrapBy::View, Level::User, 4, "read-only view, CPL 3, 4 bytes"),
        (TrapBy::View, Level::User, 8, "read-only view, CPL 3, 8 bytes"),
    ] {
        let record = measure(NAME, by, level, Work::Trapping { bytes, at: 0 }, Some(TARGET));
        print(record.with_note(note))?;
    }
    let work = Work::Trapping { bytes: 8, at: CLOSE };
    let record = measure(CLOSE_NAME, TrapBy::Slots, Level::Kernel, work, None);
    print(record.with_note("read-only slot, CPL 0, the 8 bytes before denied ones"))
}

fn measure(
    name: &'static str,
    by: TrapBy,
    level: Level,
    work: Work,
    target: Option<f64>,
) -> Record {
    let trap = match by {
        TrapBy::Slots => TrapChoice::Slots,
        TrapBy::View => TrapChoice::View,
    };
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
    Record::new(name, "us", microseconds(0), "bare loop", microseconds(1))
        .with_cost(rounds.ratio(0, 1).median, target)
}
