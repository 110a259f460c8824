//! What lies beside a target, and with it what a rule on it costs.

use std::ops::Range;

use subpage_linux::{Kallsyms, LinkAddress, Symbol};

/// Names at most that are given.
const SHOWN: usize = 4;

/// Longest array, in bytes, that a distance is taken for.
const MAX_ARRAY: u64 = 4 << 20;

/// Pages and sub-pages, in bytes.
const PAGE: u64 = 4096;
const SUB_PAGE: u64 = 128;

/// What shares memory with a target and can be written once the kernel has started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Neighbours {
    /// Symbols in its pages.
    pub(super) in_pages: usize,
    /// Names of those in its sub-pages, the first few.
    pub(super) in_sub_pages: Vec<String>,
    /// How many more of those there are.
    pub(super) more: usize,
}

/// Where the kernel can write nothing once it has started, by symbols that say so.
#[derive(Debug)]
pub(super) struct Constants(Vec<Range<u64>>);

impl Constants {
    pub(super) fn of(kallsyms: &Kallsyms) -> Self {
        let range = |start, end| {
            let address = |name| Some(kallsyms.find(name)?.address.as_u64());
            Some(address(start)?..address(end)?)
        };
        let ranges = [
            ("_text", "_etext"),
            ("__start_rodata", "__end_rodata"),
            ("__start_ro_after_init", "__end_ro_after_init"),
        ];
        Self(ranges.into_iter().filter_map(|(start, end)| range(start, end)).collect())
    }

    fn holds(&self, address: u64) -> bool {
        self.0.iter().any(|range| range.contains(&address))
    }
}

impl Neighbours {
    /// Of the bytes from `start` on.
    pub(super) fn of(
        kallsyms: &Kallsyms,
        constants: &Constants,
        start: LinkAddress,
        length: u64,
    ) -> Self {
        let own = start.as_u64()..start.as_u64().saturating_add(length);
        let around = |unit: u64| {
            let start = own.start / unit * unit;
            start..own.end.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
        };
        let (pages, sub_pages) = (around(PAGE), around(SUB_PAGE));
        let beside = |symbol: &Symbol<'_>, next: u64, unit: &Range<u64>| {
            let first = symbol.address.as_u64();
            let end = symbol.length.map(|bytes| first.saturating_add(bytes));
            // What is too long for a length reaches to the next symbol, if that is anywhere near.
            let far =
                next.checked_sub(first).filter(|distance| *distance <= MAX_ARRAY).map(|_| next);
            let end = end.or(far).unwrap_or(first.saturating_add(1));
            first < unit.end && end > unit.start
        };
        let mut neighbours = Self { in_pages: 0, in_sub_pages: Vec::new(), more: 0 };
        let mut symbols = kallsyms.iter().peekable();
        while let Some(symbol) = symbols.next() {
            let address = symbol.address.as_u64();
            let next = symbols.peek().map_or(u64::MAX, |next| next.address.as_u64());
            if !matches!(symbol.kind.to_ascii_lowercase(), 'b' | 'd')
                || own.contains(&address)
                || constants.holds(address)
                || !beside(&symbol, next, &pages)
            {
                continue;
            }
            neighbours.in_pages += 1;
            if beside(&symbol, next, &sub_pages) {
                if neighbours.in_sub_pages.len() < SHOWN {
                    neighbours.in_sub_pages.push(symbol.name.to_owned());
                } else {
                    neighbours.more += 1;
                }
            }
        }
        neighbours
    }
}
