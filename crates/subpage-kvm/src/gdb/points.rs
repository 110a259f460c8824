//! What a debugger wants the guest to stop for.

use std::collections::{BTreeMap, BTreeSet};

use subpage::address::{ByteRange, Gpa, PAGE_BYTES};

/// Most bytes of a watchpoint: 1 GiB.
const MOST_BYTES: u64 = 1 << 30;

/// Most watchpoints at once.
const MOST_WATCHES: usize = 1 << 16;

/// Most runs of physical memory that all watchpoints together lie in.
const MOST_RUNS: usize = 1 << 20;

/// Most breakpoints at once.
const MOST_BREAKPOINTS: usize = 1 << 16;

/// A watchpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watch {
    /// How often gdb has set it.
    times: u32,
    /// Where its bytes are, in their order.
    runs: Vec<ByteRange>,
}

/// Watchpoints and breakpoints of a debugger.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// By linear address and length.
    watches: BTreeMap<(u64, u64), Watch>,
    runs: usize,
    /// INT3 by linear address: where it is, and how often it was set.
    breakpoints: BTreeMap<u64, (Gpa, u32)>,
    /// In debug registers, by linear address.
    pub(super) hardware: BTreeSet<u64>,
}

impl Points {
    /// Watches bytes; false if that is too much, or no memory. `translate` gives the place of a linear
    /// address.
    pub(super) fn watch(
        &mut self,
        linear: u64,
        bytes: u64,
        translate: impl FnMut(u64) -> Option<Gpa>,
    ) -> bool {
        if let Some(watch) = self.watches.get_mut(&(linear, bytes)) {
            let Some(times) = watch.times.checked_add(1) else { return false };
            watch.times = times;
            return true;
        }
        if !(1..=MOST_BYTES).contains(&bytes) || self.watches.len() >= MOST_WATCHES {
            return false;
        }
        let Some(runs) = runs_of(linear, bytes, MOST_RUNS - self.runs, translate) else {
            return false;
        };
        self.runs += runs.len();
        self.watches.insert((linear, bytes), Watch { times: 1, runs });
        true
    }

    /// Does so no more; false if there is no such watchpoint.
    pub(super) fn unwatch(&mut self, linear: u64, bytes: u64) -> bool {
        let Some(watch) = self.watches.get_mut(&(linear, bytes)) else { return false };
        watch.times -= 1;
        if watch.times == 0 {
            self.runs -= watch.runs.len();
            self.watches.remove(&(linear, bytes));
        }
        true
    }

    /// All watched bytes.
    pub(super) fn watched(&self) -> Vec<ByteRange> {
        self.watches.values().flat_map(|watch| &watch.runs).copied().collect()
    }

    /// Linear addresses of watched bytes that a write touches: for each watchpoint, the first.
    pub(super) fn touched_by(&self, write: ByteRange) -> Vec<u64> {
        let (start, end) = (write.first().as_u64(), write.last().as_u64());
        let mut touched: Vec<u64> = self
            .watches
            .iter()
            .filter_map(|((linear, _), watch)| {
                let mut before = 0;
                for run in &watch.runs {
                    let (first, last) = (run.first().as_u64(), run.last().as_u64());
                    if start <= last && first <= end {
                        return Some(linear.wrapping_add(before + start.saturating_sub(first)));
                    }
                    before += run.bytes();
                }
                None
            })
            .collect();
        touched.dedup();
        touched
    }

    /// Whether a byte is still watched.
    pub(super) fn watches(&self, linear: u64) -> bool {
        self.watches.keys().any(|&(start, bytes)| linear.wrapping_sub(start) < bytes)
    }

    /// Sets a breakpoint; false if that is too much.
    pub(super) fn break_at(&mut self, linear: u64, at: Gpa) -> bool {
        let room = self.breakpoints.len() < MOST_BREAKPOINTS;
        match self.breakpoints.get_mut(&linear) {
            Some((gpa, times)) => {
                *gpa = at;
                *times = times.saturating_add(1);
                true
            }
            None => room && self.breakpoints.insert(linear, (at, 1)).is_none(),
        }
    }

    /// Does so no more; false if there is none.
    pub(super) fn unbreak(&mut self, linear: u64) -> bool {
        let Some((_, times)) = self.breakpoints.get_mut(&linear) else { return false };
        *times -= 1;
        if *times == 0 {
            self.breakpoints.remove(&linear);
        }
        true
    }

    /// Where INT3 belongs.
    pub(super) fn breakpoints(&self) -> impl Iterator<Item = Gpa> {
        self.breakpoints.values().map(|(at, _)| *at)
    }
}

/// The runs of physical memory that linear bytes lie in, at most so many; none if some byte is nowhere.
fn runs_of(
    linear: u64,
    bytes: u64,
    most: usize,
    mut translate: impl FnMut(u64) -> Option<Gpa>,
) -> Option<Vec<ByteRange>> {
    let mut runs: Vec<ByteRange> = Vec::new();
    let (mut at, mut left) = (linear, bytes);
    while left > 0 {
        let gpa = translate(at)?;
        let here = left.min(PAGE_BYTES - u64::from(gpa.page_offset()));
        let piece = ByteRange::new(gpa, here).ok()?;
        let room = runs.len() < most;
        match runs.last_mut() {
            Some(run) if run.last().checked_add(1) == Some(gpa) => {
                *run = ByteRange::new(run.first(), run.bytes() + here).ok()?;
            }
            _ if room => runs.push(piece),
            _ => return None,
        }
        // A range that wraps around has no bytes beyond.
        left -= here;
        at = if left > 0 { at.checked_add(here)? } else { at };
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages from 0x1000 on, of which the second lies elsewhere.
    fn translate(linear: u64) -> Option<Gpa> {
        match linear {
            0x1000..0x2000 | 0x3000..0x4000_0000_0000 => Some(Gpa::new(linear)),
            0x2000..0x3000 => Some(Gpa::new(linear + 0x10_0000)),
            _ => None,
        }
    }

    #[test]
    fn a_write_touches_the_watchpoints_whose_bytes_it_writes() {
        let mut points = Points::default();
        assert!(points.watch(0x1ff8, 16, translate));
        assert!(points.watch(0x1ffc, 2, translate));
        let write = |at, bytes| ByteRange::new(Gpa::new(at), bytes).expect("a range");
        assert_eq!(points.touched_by(write(0x1ff0, 8)), [0_u64; 0]);
        assert_eq!(points.touched_by(write(0x1ffc, 1)), [0x1ffc]);
        assert_eq!(points.touched_by(write(0x10_2004, 4)), [0x2004]);
        assert_eq!(points.touched_by(write(0x10_2008, 4)), [0_u64; 0]);
        assert_eq!(points.touched_by(write(0x1ff0, 16)), [0x1ff8, 0x1ffc]);
        assert_eq!(points.watched().len(), 3);
        assert!(points.unwatch(0x1ff8, 16) && !points.unwatch(0x1ff8, 16));
        assert_eq!((points.watched().len(), points.runs), (1, 1));
        assert!(points.watches(0x1ffd) && !points.watches(0x1ffe));
    }

    #[test]
    fn what_is_too_much_or_nowhere_is_refused() {
        let mut points = Points::default();
        for (at, bytes) in
            [(0x1000, 0), (0x3000, MOST_BYTES + 1), (0x1000, u64::MAX), (0, 1), (0xff8, 16)]
        {
            assert!(!points.watch(at, bytes, translate), "{bytes} bytes at {at:#x}");
        }
        assert!(points.watch(0x3000, MOST_BYTES, translate));
        for number in 1..MOST_WATCHES as u64 {
            assert!(points.watch(0x3000 + number, 1, translate));
        }
        assert!(!points.watch(0x1000, 1, translate), "there are too many");
        // Each byte in another place: no run joins the next.
        let scattered = |linear: u64| Some(Gpa::new(linear * 2));
        assert_eq!(runs_of(0x1000, 3 * 4096, 2, scattered), None);
        assert!(runs_of(0x1000, 3 * 4096, 3, scattered).is_some());
        assert_eq!(runs_of(u64::MAX - 7, 16, 9, |_| Some(Gpa::new(0xff8))), None);
    }
}
