//! Writes to pages without rules: with a thousand rules elsewhere, and with none.

use std::io;
use std::time::Duration;

use subpage_kvm::trap::TrapBy;

use crate::guarded::Guarded;
use crate::guest::{Level, Work};
use crate::pairs::{Comparison, Contender, Pair, Unit};
use crate::rows::{Out, measurable};

pub(crate) const NAME: &str = "unprotected_pages";

/// At most so many times the time without rules.
pub(crate) const TARGET: f64 = 1.02;

pub(crate) const MEMORY: u64 = 64 << 20;

/// Rules, each in a page of its own between pages without one.
const RULES: u64 = 1000;
const RULES_FROM: u64 = 32 << 20;

/// Least time of a round.
const LEAST: Duration = Duration::from_millis(2);
pub(crate) const ROUNDS: usize = 101;

pub(crate) fn run(out: &mut Out) -> io::Result<()> {
    for (by, level, note) in [
        (TrapBy::Slots, Level::Kernel, "1,000 rules, read-only slots, CPL 0"),
        (TrapBy::Slots, Level::User, "1,000 rules, read-only slots, CPL 3"),
        (TrapBy::Mprotect, Level::Kernel, "1,000 rules, mprotect, CPL 0"),
        (TrapBy::Mprotect, Level::User, "1,000 rules, mprotect, CPL 3"),
    ] {
        if !measurable(out, NAME, by, note)? {
            continue;
        }
        let comparison = Comparison {
            name: NAME,
            unit: Unit::Nanoseconds,
            baseline_name: "no rules",
            rounds: ROUNDS,
            target: Some(TARGET),
        };
        let record = comparison.run(|number| {
            pair(by, level, number, |guest| {
                guest.add_rules(RULES_FROM, RULES);
                guest.start();
            })
        });
        out.print(&record.with_note(note))?;
    }
    Ok(())
}

/// Guests of which one is started in a way that gives it traps elsewhere. What is made first differs from
/// one pair to the next.
pub(crate) fn pair(by: TrapBy, level: Level, number: usize, start: impl Fn(&mut Guarded)) -> Pair {
    let new = |start: &dyn Fn(&mut Guarded)| {
        let mut guest = Guarded::new(by, level, Work::Plain, MEMORY);
        start(&mut guest);
        Plain(guest)
    };
    let early = number.is_multiple_of(2).then(|| new(&start));
    let (baseline, control) = (new(&Guarded::start), new(&Guarded::start));
    let measured = early.unwrap_or_else(|| new(&start));
    let stores = enough(&baseline.0);
    for guest in [&measured, &control] {
        guest.0.set_count(stores);
    }
    Pair {
        measured: Box::new(measured),
        baseline: Box::new(baseline),
        control: Box::new(control),
        stores,
    }
}

/// A guest none of whose writes is to a guarded page.
struct Plain(Guarded);

impl Contender for Plain {
    fn round(&mut self) -> Duration {
        let took = self.0.round();
        assert_eq!(self.0.trapped(), 0, "no write is to a guarded page");
        took
    }
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
