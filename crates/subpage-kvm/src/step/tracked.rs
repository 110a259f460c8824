//! Page tables that trap for tracking alone.
//!
//! Nothing in them is denied, so nothing is lost by opening them but which sub-pages are written. The
//! first walks are stepped over, and the harvest is exact; a table that stays in use is opened,
//! and the harvest tells all of it: every walk of it counts as a write for this processor.

use std::collections::BTreeMap;

use subpage::access::{AccessMap, SUB_PAGE_BYTES};
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa};
use subpage::domain::WriteParts;

use crate::guard::{Guard, SPACE};
use crate::memory::Ram;
use crate::trap::PageSet;

/// Exits for walks of one table until it is opened.
const PATIENCE: u32 = 32;

/// Tables that are counted at a time; the counts of all are forgotten then.
const COUNTED: usize = 1 << 16;

/// How often walks of tables have left the guest.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    exits: BTreeMap<Gfn, u32>,
}

impl Tracked {
    /// Counts an exit for these tables, and opens those of which it was one too many. Whether any was
    /// opened; an error if the engine has no memory for the record.
    pub(super) fn open(
        &mut self,
        ram: &Ram,
        guard: &mut Guard,
        tables: &PageSet,
    ) -> Result<bool, &'static str> {
        let mut opened = false;
        for gfn in tables.runs().flat_map(GfnRange::iter) {
            if !only_tracked(guard, gfn) {
                continue;
            }
            if self.exits.len() >= COUNTED {
                self.exits.clear();
            }
            let exits = self.exits.entry(gfn).or_default();
            *exits += 1;
            if *exits <= PATIENCE {
                continue;
            }
            self.exits.remove(&gfn);
            let page = ByteRange::of_pages(GfnRange::one(gfn));
            for sub_page in 0..page.bytes() / SUB_PAGE_BYTES {
                let at = Gpa::new(page.first().as_u64() + sub_page * SUB_PAGE_BYTES);
                let noted = guard.domain_mut().note_marked(SPACE, at);
                noted.map_err(|_| "the engine has no memory left for a record of a write")?;
            }
            // By mprotect pages open at once: there is nothing to settle later.
            let _ = guard.after_write(ram, &WriteParts::one(page));
            opened |= !guard.traps().traps(gfn);
        }
        Ok(opened)
    }
}

/// Whether a page traps for tracking alone.
fn only_tracked(guard: &Guard, gfn: Gfn) -> bool {
    let page = ByteRange::of_pages(GfnRange::one(gfn));
    let domain = guard.domain();
    domain.names_of(page).all(|name| domain.rules().touching(name).next().is_none())
        && guard.domain().permitted(gfn) == AccessMap::ALL
}
