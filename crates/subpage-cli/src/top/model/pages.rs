//! The hottest pages: what is drawn as a heat map.

use std::collections::HashMap;

use subpage::access::{AccessMap, SUB_PAGE_BYTES};
use subpage::address::PAGE_BYTES;
use subpage_kvm::control::protocol::HeatPage;

use super::rates::{Count, hottest_first};
use crate::ctl::cells;
use crate::heat::CELLS;

/// A page as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PageRow {
    pub(crate) gfn: u64,
    /// The sub-pages that may not be written.
    pub(crate) guarded: AccessMap,
    pub(crate) writes: Count,
    pub(crate) sub_pages: [Count; CELLS],
    pub(crate) denied: [Count; CELLS],
}

impl PageRow {
    fn new(page: &HeatPage) -> Self {
        let (writes, denied) = cells(page);
        Self {
            gfn: page.gfn,
            guarded: !AccessMap::from_bits(page.map),
            writes: Count::first(page.writes),
            sub_pages: writes.map(Count::first),
            denied: denied.map(Count::first),
        }
    }

    fn unwritten(&self) -> Self {
        let none = [Count::first(0); CELLS];
        Self { writes: Count::first(0), sub_pages: none, denied: none, ..*self }
    }

    fn after(mut self, before: &Self, seconds: f64) -> Self {
        let next = |now: &mut Count, before: Count| *now = before.next(now.total, seconds);
        next(&mut self.writes, before.writes);
        for (now, before) in self.sub_pages.iter_mut().zip(before.sub_pages) {
            next(now, before);
        }
        for (now, before) in self.denied.iter_mut().zip(before.denied) {
            next(now, before);
        }
        self
    }

    /// Its first byte. A hostile server may name a page that no address reaches.
    pub(crate) const fn address(&self) -> u64 {
        self.gfn.saturating_mul(PAGE_BYTES)
    }

    /// First and last byte of a sub-page.
    pub(crate) fn cell_bytes(&self, cell: usize) -> (u64, u64) {
        let first = self.address().saturating_add(cell as u64 * SUB_PAGE_BYTES);
        (first, first.saturating_add(SUB_PAGE_BYTES - 1))
    }
}

/// What the cells of the heat map show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum HeatMode {
    /// Writes a second, over the last interval.
    #[default]
    Live,
    /// Writes since the start.
    Total,
}

impl HeatMode {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Live => Self::Total,
            Self::Total => Self::Live,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Live => "a second",
            Self::Total => "since the start",
        }
    }

    /// How hot a count is.
    pub(crate) fn heat(self, count: Count) -> u64 {
        match self {
            Self::Live => count.rate_class(),
            Self::Total => count.total,
        }
    }
}

/// The rows of the pages as they are now, `seconds` after those before, which were `complete`: all that
/// were ever written.
pub(super) fn rows(
    before: &[PageRow],
    now: &[HeatPage],
    seconds: Option<f64>,
    complete: bool,
) -> Vec<PageRow> {
    let before: HashMap<u64, &PageRow> = before.iter().map(|row| (row.gfn, row)).collect();
    let row = |page: &HeatPage| {
        let row = PageRow::new(page);
        match (before.get(&page.gfn), seconds) {
            (Some(before), Some(seconds)) => row.after(before, seconds),
            // Nobody had written it.
            (None, Some(seconds)) if complete => row.clone().after(&row.unwritten(), seconds),
            _ => row,
        }
    };
    now.iter().map(row).collect()
}

/// Puts rows in order.
pub(super) fn sort(rows: &mut [PageRow], mode: HeatMode) {
    rows.sort_by(|a, b| {
        let order = match mode {
            HeatMode::Live => hottest_first(a.writes, b.writes),
            HeatMode::Total => b.writes.total.cmp(&a.writes.total),
        };
        order.then(a.gfn.cmp(&b.gfn))
    });
}
