//! Writes to pages without rules: with a thousand rules elsewhere, and with none.

use std::io;
use std::time::Duration;

use subpage_bench::report::Record;
use subpage_bench::rounds::Rounds;
use subpage_kvm::vm::TrapChoice;

use crate::guarded::Guarded;
use crate::guest::{Level, Work};

pub(crate) const NAME: &str = "unprotected_pages";

/// At most so many times the time without rules.
const TARGET: f64 = 1.02;

const MEMORY: u64 = 64 << 20;

/// Rules, each in a page of its own between pages without one.
const RULES: u64 = 1000;
const RULES_FROM: u64 = 32 << 20;

/// Least time of a round.
const LEAST: Duration = Duration::from_millis(2);
const ROUNDS: usize = 501;

pub(crate) fn run(print: &mut dyn FnMut(Record) -> io::Result<()>) -> io::Result<()> {
    for (trap, level, note) in [
        (TrapChoice::Slots, Level::Kernel, "1,000 rules, read-only slots, CPL 0"),
        (TrapChoice::Slots, Level::User, "1,000 rules, read-only slots, CPL 3"),
        (TrapChoice::View, Level::Kernel, "1,000 rules, read-only view, CPL 0"),
        (TrapChoice::View, Level::User, "1,000 rules, read-only view, CPL 3"),
    ] {
        print(measure(trap, level).with_note(note))?;
    }
    Ok(())
}

fn measure(trap: TrapChoice, level: Level) -> Record {
    let new = || Guarded::new(trap, level, Work::Plain, MEMORY);
    let (mut with, mut without) = (new(), new());
    with.add_rules(RULES_FROM, RULES);
    with.start();
    without.start();
    let count = enough(&without);
    with.set_count(count);
    let rounds = Rounds::run_many(ROUNDS, [&mut || with.round(), &mut || without.round()]);
    assert_eq!((with.trapped(), without.trapped()), (0, 0), "no write is to a guarded page");
    let nanoseconds = |side| rounds.nanoseconds(side, count);
    Record::new(NAME, "ns", nanoseconds(0), "no rules", nanoseconds(1))
        .with_cost(rounds.ratio(0, 1).median, Some(TARGET))
}

/// Sets so many stores that a round takes long enough; how many.
fn enough(guest: &Guarded) -> u32 {
    let mut count = 100;
    loop {
        guest.set_count(count);
        if guest.round() >= LEAST {
            return count;
        }
        count *= 2;
    }
}
