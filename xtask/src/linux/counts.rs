//! What the hypervisor tells last of a run of a Linux kernel: what it has counted.

/// Sums of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) exits: u64,
    /// EPT violations.
    pub(crate) violations: u64,
    pub(crate) sub_page_events: u64,
    /// Single steps over walks of guarded page tables.
    pub(crate) steps: u64,
    /// Writes of guarded bytes that were denied.
    pub(crate) denied: u64,
    /// Writes of guarded bytes that were let through and reported.
    pub(crate) reported: u64,
    /// Stores that were completed in software, the reported ones too.
    pub(crate) completed: u64,
    /// Stores that trapped in a sub-page without guarded bytes.
    pub(crate) open: u64,
    /// Walks of guarded page tables that exited.
    pub(crate) walks: u64,
    /// The time-stamp counter at the end, which in Bochs counts instructions, and time without any.
    pub(crate) ticks: u64,
    /// Those in the hypervisor, from exits to entries.
    pub(crate) hypervisor: u64,
}

impl Counts {
    /// From the lines of the hypervisor; `None` if one is missing.
    pub(crate) fn of(lines: &[String]) -> Option<Self> {
        let rest = |start: &str| lines.iter().find_map(|line| line.strip_prefix(start));
        let exits = rest("hypervisor: exits by basic reason: ")?;
        let of = |reason: &str| {
            let mut parts = exits.split(", ");
            let count = parts.find_map(|part| part.strip_prefix(reason)?.parse().ok());
            count.unwrap_or(0)
        };
        let before = |line: &str, what: &str| {
            let (count, _) = line.split_once(what)?;
            count.rsplit(' ').next()?.parse::<u64>().ok()
        };
        let writes = rest("hypervisor: writes that trapped: ")?;
        let (_, ticks) = writes.split_once("time-stamp counter ")?;
        let besides = rest("hypervisor: besides: ")?;
        Some(Self {
            exits: of("all "),
            violations: of("48: "),
            sub_page_events: of("66: "),
            steps: of("37: "),
            denied: before(writes, " denied")?,
            reported: before(writes, " reported")?,
            completed: before(writes, " completed in software")?,
            open: before(besides, " stores in open sub-pages")?,
            walks: before(besides, " walks of guarded tables")?,
            ticks: ticks.parse().ok()?,
            hypervisor: before(besides, " ticks in the hypervisor")?,
        })
    }

    /// Stores beside the guarded bytes that trapped.
    pub(crate) fn beside(&self) -> u64 {
        self.completed.saturating_sub(self.reported)
    }

    /// Those in a sub-page with guarded bytes.
    pub(crate) fn same_sub_page(&self) -> u64 {
        self.beside().saturating_sub(self.open)
    }

    /// How many instructions more than in `base`. The guest executes the same in both; how long it waits
    /// differs from run to run by more than that.
    pub(crate) fn more(&self, base: &Self) -> u64 {
        self.hypervisor.saturating_sub(base.hypervisor)
    }
}

/// Of a whole, in hundredths of a percent, rounded.
pub(crate) fn part(part: u64, whole: u64) -> u64 {
    (part * 10_000 + whole / 2) / whole.max(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Lines with a different number in each place.
    pub(crate) const LINES: [&str; 3] = [
        "hypervisor: exits by basic reason: all 6912, 10: 10, 48: 5240, 37: 3",
        "hypervisor: besides: 4000 stores in open sub-pages, 7 walks of guarded tables, 50000 ticks in \
         the hypervisor",
        "hypervisor: writes that trapped: 2 denied, 4 reported, 4366 completed in software; 0 retried, 0 \
         SPP misses; time-stamp counter 1010000",
    ];

    #[test]
    fn a_runs_last_lines_are_counts() {
        let lines = LINES.map(str::to_owned);
        let counts = Counts::of(&lines).expect("all are there");
        let expected = Counts {
            exits: 6912,
            violations: 5240,
            sub_page_events: 0,
            steps: 3,
            denied: 2,
            reported: 4,
            completed: 4366,
            open: 4000,
            walks: 7,
            ticks: 1_010_000,
            hypervisor: 50_000,
        };
        assert_eq!(counts, expected);
        assert_eq!((counts.beside(), counts.same_sub_page()), (4362, 362));
        assert_eq!(counts.more(&Counts { hypervisor: 40_000, ..counts }), 10_000);
        assert_eq!((part(10_000, 1_000_000), part(1, 20_000), part(1, 0)), (100, 1, 10_000));
        for missing in 0..3 {
            let mut lines = lines.to_vec();
            lines.remove(missing);
            assert_eq!(Counts::of(&lines), None);
        }
    }
}
