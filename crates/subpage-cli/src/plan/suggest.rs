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

/// Writes a policy with a rule for every name with bytes in cold sub-pages of `pages`: `deny` where no
/// write of the trace touched one of its sub-pages, else `log`. Names that are not unique, or that no
/// rule can have, are left out.
pub fn write_policy(
    out: &mut impl Write,
    guest: &str,
    pages: &[MixedPage],
    counts: &[PageCounts],
    names: &Names,
) -> io::Result<()> {
    let written: HashMap<u64, &[u64]> =
        counts.iter().map(|page| (page.gfn.as_u64(), &page.sub_pages[..])).collect();
    let mut seen = HashSet::new();
    let cold = pages.iter().flat_map(|page| &page.cold_names).filter(|name| seen.insert(*name));
    let rules: Vec<(&NamedRange, u64)> = cold
        .filter(|name| RuleName::new(name).is_ok())
        .filter_map(|name| names.find_exactly(name).ok())
        .map(|named| (named, most_writes(named, &written)))
        .collect();
    writeln!(out, "# Suggested by `subpage plan --suggest` from {}.", printable(guest))?;
    writeln!(out, "# Look at each rule: cold in one recording is not cold in every run.")?;
    writeln!(out, "version = 1")?;
    if rules.is_empty() {
        writeln!(out, "# No name of this trace lies cold beside hot data: nothing to suggest.")?;
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

fn most_writes(named: &NamedRange, written: &HashMap<u64, &[u64]>) -> u64 {
    let first = named.start / SUB_PAGE_BYTES;
    let last = (named.start + named.length.max(1) - 1) / SUB_PAGE_BYTES;
    let of = |sub_page: u64| {
        let page = written.get(&(sub_page / PER_PAGE))?;
        usize::try_from(sub_page % PER_PAGE).ok().map(|index| page[index])
    };
    // A long thing spans many pages that were never written: those that were are fewer.
    if last - first < written.len() as u64 * PER_PAGE {
        return (first..=last).filter_map(of).max().unwrap_or(0);
    }
    let inside = |page: &u64, index: u64| (first..=last).contains(&(page * PER_PAGE + index));
    let pages = written.iter().flat_map(|(page, sub_pages)| {
        (0..).zip(*sub_pages).filter(|(index, _)| inside(page, *index)).map(|(_, writes)| *writes)
    });
    pages.max().unwrap_or(0)
}
