//! A policy out of a plan.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use subpage::access::SUB_PAGE_BYTES;
use subpage::rules::RuleName;

use super::{MixedPage, PageCounts};
use crate::policy::{NamedRange, Names};
use crate::terminal::{grouped, plural, printable};

/// Sub-pages of a page.
const PER_PAGE: u64 = 32;

/// Writes a policy with a rule for every cold name of `pages` that has no byte in a hot sub-page of any
/// page in `counts`: `deny` where no write of the trace touched one of its sub-pages, else `log`. Names
/// that are not unique, or that no rule can have, are left out.
pub fn write_policy(
    out: &mut impl Write,
    guest: &str,
    pages: &[MixedPage],
    counts: &[PageCounts],
    names: &Names,
) -> io::Result<()> {
    let written: HashMap<u64, &PageCounts> =
        counts.iter().map(|page| (page.gfn.as_u64(), page)).collect();
    let mut seen = HashSet::new();
    let cold = pages.iter().flat_map(|page| &page.cold_names).filter(|name| seen.insert(*name));
    let rules: Vec<(&NamedRange, u64)> = cold
        .filter(|name| RuleName::new(name).is_ok())
        .filter_map(|name| names.find_exactly(name).ok())
        .map(|named| (named, most_writes(named, &written)))
        // The rule covers the whole name: each write to a hot part of it would exit.
        .filter_map(|(named, most)| (!most.is_hot).then_some((named, most.writes)))
        .collect();
    writeln!(out, "# Suggested by `subpage plan --suggest` from {}.", printable(guest))?;
    writeln!(out, "# Look at each rule: cold in one recording is not cold in every run.")?;
    writeln!(out, "version = 1")?;
    if rules.is_empty() {
        writeln!(
            out,
            "# No name that a rule can have lies in cold sub-pages alone beside hot data: nothing to suggest."
        )?;
        writeln!(out, "rule = []")?;
    }
    for (named, writes) in rules {
        let action = if writes == 0 { "deny" } else { "log" };
        // A text of JSON is one of TOML.
        let name = serde_json::Value::from(named.name.as_str());
        let (count, noun) = (grouped(writes), plural(writes, "write"));
        writeln!(out, "\n# {count} {noun} to the most written sub-page that holds a byte of it.")?;
        writeln!(out, "[[rule]]\nname = {name}\nregion = {name}\naction = \"{action}\"")?;
    }
    Ok(())
}

/// The sub-pages that hold bytes of a name, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Most {
    /// Writes to the most written of them.
    writes: u64,
    /// Whether one is hot in its page.
    is_hot: bool,
}

fn most_writes(named: &NamedRange, written: &HashMap<u64, &PageCounts>) -> Most {
    let first = named.start / SUB_PAGE_BYTES;
    let last = named.start.saturating_add(named.length.max(1) - 1) / SUB_PAGE_BYTES;
    let pages = first / PER_PAGE..=last / PER_PAGE;
    let inside = |page: &PageCounts, index: u64| {
        (first..=last).contains(&(page.gfn.as_u64() * PER_PAGE + index))
    };
    let of = |most: Most, page: &&PageCounts| {
        let touched = (0..).zip(page.sub_pages).enumerate();
        touched.filter(|(_, (index, _))| inside(page, *index)).fold(
            most,
            |most, (index, (_, writes))| Most {
                writes: most.writes.max(writes),
                is_hot: most.is_hot || page.is_hot(index),
            },
        )
    };
    // A long thing spans many pages that were never written: those that were are fewer.
    if pages.end() - pages.start() < written.len() as u64 {
        pages.filter_map(|page| written.get(&page)).fold(Most::default(), of)
    } else {
        written.values().filter(|page| pages.contains(&page.gfn.as_u64())).fold(Most::default(), of)
    }
}

#[cfg(test)]
mod tests {
    use subpage::address::Gfn;

    use super::*;

    /// Pages with a hot first sub-page, and one write to the last sub-page.
    fn pages(gfns: &[u64]) -> Vec<PageCounts> {
        let page = |gfn: &u64| {
            let mut sub_pages = [0; 32];
            (sub_pages[0], sub_pages[31]) = (999, *gfn);
            PageCounts { gfn: Gfn::new(*gfn), writes: 999 + gfn, sub_pages }
        };
        gfns.iter().map(page).collect()
    }

    /// By its own pages where they are fewer than the written ones, else by the written ones: both ends
    /// of a name count either way, and nothing outside of it.
    #[test]
    fn a_short_and_a_long_name_are_counted_to_their_last_sub_page() {
        let few = pages(&[1, 2]);
        let many = pages(&(0..100).collect::<Vec<_>>());
        for pages in [few, many] {
            let written: HashMap<u64, &PageCounts> =
                pages.iter().map(|page| (page.gfn.as_u64(), page)).collect();
            for (start, length, writes, is_hot) in [
                // From behind the first sub-page of page 1 to before, and into, its last.
                (0x1080, 0xf00, 0, false),
                (0x1080, 0xf01, 1, false),
                // To the end of page 1, and one byte on.
                (0x1080, 0xf80, 1, false),
                (0x1080, 0xf81, 999, true),
                // The last sub-page of page 1 begins at 0x1f80.
                (0x1f7f, 1, 0, false),
                (0x1f80, 0, 1, false),
            ] {
                let named = NamedRange { name: String::new(), start, length };
                let found = most_writes(&named, &written);
                assert_eq!(found, Most { writes, is_hot }, "{start:#x}+{length:#x} of {written:?}");
            }
        }
        // Over more pages than are written.
        let few = pages(&[5]);
        let written: HashMap<u64, &PageCounts> =
            few.iter().map(|page| (page.gfn.as_u64(), page)).collect();
        let most = |start, end: u64| {
            most_writes(&NamedRange { name: String::new(), start, length: end - start }, &written)
        };
        assert_eq!(most(0, 0x5000), Most::default());
        assert_eq!(most(0, 0x5001), Most { writes: 999, is_hot: true });
        assert_eq!(most(0x5fff, u64::MAX), Most { writes: 5, is_hot: false });
        assert_eq!(most(0x6000, u64::MAX), Most::default());
    }
}
