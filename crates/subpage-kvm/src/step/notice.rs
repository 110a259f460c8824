//! What is told about page tables in pages that trap, and whether they are to be stepped through.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use subpage::address::{ByteRange, Gfn, GfnRange};

use crate::guard::Guard;
use crate::trap::PageSet;

/// Pages that are told of, at most: a guest must not fill the log.
const TOLD: usize = 64;

/// Pages that are remembered, at most, so that each of those beyond is counted once.
const REMEMBERED: usize = 4096;

/// What to do about a page table of the guest in a page that traps, where a walk of it counts as a
/// write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageTables {
    /// Every instruction that uses it is stepped over: exact and slow.
    #[default]
    Step,
    /// The guest is ended, and the rule and the table are named.
    Refuse,
}

/// Something slow that the author of the rules should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The rule; none for an access map or tracking.
    pub rule: Option<String>,
    /// The page that holds the table.
    pub table: Gfn,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "rule {rule:?} lies")?,
            None => f.write_str("guarded or tracked bytes lie")?,
        }
        write!(
            f,
            " in page {:#x}, which holds a live page table of the guest: every walk of it costs an \
             exit and a step, 10 microseconds and more",
            self.table.gpa().as_u64()
        )
    }
}

/// The notices of a machine.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    choice: PageTables,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    pages: BTreeSet<Gfn>,
    waiting: Vec<Notice>,
    /// Pages that are not told of.
    dropped: u64,
}

impl Seen {
    fn see(&mut self, gfn: Gfn, notice: impl FnOnce() -> Notice) {
        if self.pages.len() == REMEMBERED || !self.pages.insert(gfn) {
            return;
        }
        if self.pages.len() <= TOLD {
            self.waiting.push(notice());
        } else {
            self.dropped += 1;
        }
    }
}

impl Notices {
    pub(super) fn new(choice: PageTables) -> Self {
        Self { choice, ..Self::default() }
    }

    /// Whether page tables in pages that trap end the guest.
    pub(super) fn refuses(&self) -> bool {
        self.choice == PageTables::Refuse
    }

    /// Takes note of pages with live tables. The reason if they are to be refused, as a sentence
    /// without its end.
    pub(super) fn see(&self, guard: &Guard, tables: &PageSet) -> Result<(), String> {
        for gfn in tables.runs().flat_map(GfnRange::iter) {
            if self.refuses() {
                let notice = notice(guard, gfn);
                return Err(format!("{notice} (--page-tables refuse)"));
            }
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.see(gfn, || notice(guard, gfn));
        }
        Ok(())
    }

    /// What has not been told yet.
    pub(crate) fn take(&self) -> Vec<Notice> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut seen.waiting)
    }

    /// How many pages are not told of because there were too many: at most 4,032, pages beyond are not
    /// counted.
    pub(crate) fn dropped(&self) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }
}

fn notice(guard: &Guard, table: Gfn) -> Notice {
    let page = ByteRange::of_pages(GfnRange::one(table));
    let domain = guard.domain();
    let rule = domain.names_of(page).find_map(|name| domain.rules().touching(name).next());
    Notice { rule: rule.map(|active| active.rule.name.to_string()), table }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_tell_is_counted_once() {
        let mut seen = Seen::default();
        for _ in 0..2 {
            for page in 0..100 {
                let table = Gfn::new(page);
                seen.see(table, || Notice { rule: None, table });
            }
        }
        assert_eq!((seen.waiting.len(), seen.dropped), (TOLD, 100 - TOLD as u64));
        for page in 0..2 * REMEMBERED as u64 {
            let table = Gfn::new(page);
            seen.see(table, || Notice { rule: None, table });
        }
        assert_eq!(seen.pages.len(), REMEMBERED, "a guest does not fill memory");
        assert_eq!(seen.dropped, 4032, "what is not remembered is not counted");
    }
}
