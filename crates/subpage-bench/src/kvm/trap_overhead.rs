//! A permitted write that traps: through the VMM, and through the barest loop for the same exit.

use std::io;
use std::time::Duration;

use subpage::access::SUB_PAGE_BYTES;
use subpage_bench::report::Record;
use subpage_kvm::trap::TrapBy;

use crate::bare::Bare;
use crate::guarded::Guarded;
use crate::guest::{DENIED, Level, Work};
use crate::pairs::{Comparison, Contender, Pair, Unit};
use crate::rows::{Out, measurable};

pub(crate) const NAME: &str = "trap_overhead";

/// At most so many times the time of the barest loop.
const TARGET: f64 = 1.10;

const MEMORY: u64 = 16 << 20;

/// Stores of a round: a few milliseconds, of which the round's own two exits are little.
const STORES: u32 = 100;
const ROUNDS: usize = 61;

/// The same where the store lies so close before the denied sub-page that KVM has to be asked whether
/// more of it follows. It has no target: `docs/kvm.md` says what it costs.
const CLOSE_NAME: &str = "trap_overhead_close";
const CLOSE: u64 = SUB_PAGE_BYTES * DENIED as u64 - 8;

pub(crate) fn run(out: &mut Out) -> io::Result<()> {
    let four = Work::Trapping { bytes: 4, at: 0 };
    let eight = Work::Trapping { bytes: 8, at: 0 };
    for (by, level, work, note) in [
        (TrapBy::Slots, Level::Kernel, four, "read-only slot, CPL 0, 4 bytes"),
        (TrapBy::Slots, Level::Kernel, eight, "read-only slot, CPL 0, 8 bytes"),
        (TrapBy::Slots, Level::User, four, "read-only slot, CPL 3, 4 bytes"),
        (TrapBy::Slots, Level::User, eight, "read-only slot, CPL 3, 8 bytes"),
        (TrapBy::Mprotect, Level::User, four, "mprotect, CPL 3, 4 bytes"),
        (TrapBy::Mprotect, Level::User, eight, "mprotect, CPL 3, 8 bytes"),
        (TrapBy::Mprotect, Level::User, Work::Varied, "mprotect, CPL 3, four instructions"),
    ] {
        if measurable(out, NAME, by, note)? {
            out.print(&measure(NAME, by, level, work, Some(TARGET)).with_note(note))?;
        }
    }
    let work = Work::Trapping { bytes: 8, at: CLOSE };
    let note = "read-only slot, CPL 0, the 8 bytes before denied ones";
    if measurable(out, CLOSE_NAME, TrapBy::Slots, note)? {
        let record = measure(CLOSE_NAME, TrapBy::Slots, Level::Kernel, work, None);
        out.print(&record.with_note(note))?;
    }
    Ok(())
}

fn measure(
    name: &'static str,
    by: TrapBy,
    level: Level,
    work: Work,
    target: Option<f64>,
) -> Record {
    let comparison = Comparison {
        name,
        unit: Unit::Microseconds,
        baseline_name: "bare loop",
        rounds: ROUNDS,
        target,
    };
    comparison.run(|number| pair(by, level, work, number))
}

fn pair(by: TrapBy, level: Level, work: Work, number: usize) -> Pair {
    let early = number.is_multiple_of(2).then(|| Trapping::new(by, level, work));
    let bare = || {
        let mut bare = Bare::new(by, level, work, MEMORY);
        bare.set_stores(STORES);
        Box::new(bare)
    };
    let (baseline, control) = (bare(), bare());
    let measured = early.unwrap_or_else(|| Trapping::new(by, level, work));
    Pair { measured: Box::new(measured), baseline, control, stores: STORES }
}

/// A guest all of whose stores are to a guarded page.
struct Trapping {
    guest: Guarded,
    rounds: u64,
}

impl Trapping {
    fn new(by: TrapBy, level: Level, work: Work) -> Self {
        let mut guest = Guarded::new(by, level, work, MEMORY);
        guest.restrict();
        guest.set_count(STORES / work.stores_a_turn());
        guest.start();
        Self { guest, rounds: 0 }
    }
}

impl Contender for Trapping {
    fn round(&mut self) -> Duration {
        let took = self.guest.round();
        self.rounds += 1;
        let stores = self.rounds * u64::from(STORES);
        assert_eq!(self.guest.trapped(), stores, "each store leaves the guest once");
        took
    }
}
