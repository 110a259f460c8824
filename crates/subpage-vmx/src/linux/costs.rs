//! What rules cost a guest with devices, besides its exits: told with the last lines.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Sums of all processors since the start.
#[derive(Debug, Default)]
pub struct Costs {
    open: AtomicU64,
    walks: AtomicU64,
    ticks: AtomicU64,
}

impl Costs {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { open: AtomicU64::new(0), walks: AtomicU64::new(0), ticks: AtomicU64::new(0) }
    }

    /// A store trapped in a sub-page that no rule touches: another one of its page is guarded.
    pub fn open_sub_page(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// The processor's walk through a guarded page table of the guest exited.
    pub fn walk(&self) {
        self.walks.fetch_add(1, Ordering::Relaxed);
    }

    /// A processor was in the hypervisor for so many ticks of its time-stamp counter.
    pub fn ticks(&self, ticks: u64) {
        self.ticks.fetch_add(ticks, Ordering::Relaxed);
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} stores in open sub-pages, {} walks of guarded tables, {} ticks in the hypervisor",
            of(&self.open),
            of(&self.walks),
            of(&self.ticks)
        )
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    #[test]
    fn each_is_told_as_itself() {
        let costs = Costs::new();
        costs.open_sub_page();
        costs.walk();
        costs.walk();
        costs.ticks(30);
        costs.ticks(4);
        let expected =
            "1 stores in open sub-pages, 2 walks of guarded tables, 34 ticks in the hypervisor";
        assert_eq!(costs.to_string(), expected);
    }
}
