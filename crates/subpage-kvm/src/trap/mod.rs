//! Making writes to restricted pages leave the guest.
//!
//! KVM knows pages, not sub-pages: a page with a restricted sub-page is made read-only for the guest,
//! in one of two ways (`docs/kvm.md` compares them):
//!
//! - [`TrapBy::Slots`]: the page lies in a memory slot of its own with `KVM_MEM_READONLY`. KVM
//!   carries the instruction out in its emulator and reports what it would have stored. That is exact
//!   for a single processor.
//! - [`TrapBy::View`]: the host mapping behind the slot is read-only. KVM reports the fault before
//!   the instruction has happened, so that it can be completed here, locked instructions included.

mod layout;
mod pages;
mod slots;

pub use layout::{PlannedSlot, plan};
pub use pages::PageSet;
pub use slots::{SlotError, Slots};

use subpage::address::{Gfn, GfnRange};
use thiserror::Error;

use crate::memory::{Ram, ViewError};

/// How writes to restricted pages are made to leave the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapBy {
    /// By read-only memory slots.
    Slots,
    /// By a read-only host mapping.
    View,
}

/// Why the set of trapped pages could not be changed; it is as it was.
#[derive(Debug, Error)]
pub enum TrapError {
    /// A memory slot could not be made.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The host mapping could not be changed.
    #[error(transparent)]
    View(#[from] ViewError),
}

/// The pages whose writes leave the guest, and what makes them do so.
#[derive(Debug)]
pub struct Traps {
    by: TrapBy,
    trapped: PageSet,
    /// Pages that are in read-only slots although the view is what traps: they hold page tables of
    /// the guest, which KVM's own walker has to be able to use.
    tables: PageSet,
    slots: Slots,
    /// How often the sets have changed.
    changes: u64,
}

impl Traps {
    /// Nothing is trapped; `slots` hold all of memory.
    pub const fn new(by: TrapBy, slots: Slots) -> Self {
        Self { by, trapped: PageSet::new(), tables: PageSet::new(), slots, changes: 0 }
    }

    /// How pages are trapped.
    pub const fn by(&self) -> TrapBy {
        self.by
    }

    /// Whether writes to a page leave the guest.
    pub fn traps(&self, gfn: Gfn) -> bool {
        self.trapped.contains(gfn)
    }

    /// Whether a page traps because its host mapping is read-only: it can be opened while the guest
    /// runs.
    pub fn traps_by_view(&self, gfn: Gfn) -> bool {
        self.by == TrapBy::View && self.traps(gfn) && !self.tables.contains(gfn)
    }

    /// The trapped pages.
    pub const fn trapped(&self) -> &PageSet {
        &self.trapped
    }

    /// How often it has changed what traps, and how. A processor may have left the guest for what
    /// trapped before the last change.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// How many memory slots there are.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Makes exactly `wanted` the trapped pages. All or nothing.
    ///
    /// If slots change, no processor may be in the guest.
    pub fn apply(&mut self, ram: &Ram, wanted: &PageSet) -> Result<(), TrapError> {
        let tables = self.tables.intersection(wanted);
        self.change(ram, wanted, &tables)
    }

    /// Puts trapped pages that hold page tables of the guest into read-only slots.
    ///
    /// No processor may be in the guest.
    pub fn hold_tables(&mut self, ram: &Ram, pages: &PageSet) -> Result<(), TrapError> {
        let trapped = self.trapped.clone();
        let tables = self.tables.union(&pages.intersection(&trapped));
        self.change(ram, &trapped, &tables)
    }

    fn change(&mut self, ram: &Ram, wanted: &PageSet, tables: &PageSet) -> Result<(), TrapError> {
        if *wanted == self.trapped && *tables == self.tables {
            return Ok(());
        }
        let old = self.by_view(&self.trapped, &self.tables);
        let new = self.by_view(wanted, tables);
        // What is to trap anew first: a failure then leaves more pages trapped, never fewer.
        let tighten = new.difference(&old);
        if let Err(error) = set_writable(ram, &tighten, false) {
            let _ = set_writable(ram, &tighten, true);
            return Err(error.into());
        }
        let read_only = match self.by {
            TrapBy::Slots => wanted,
            TrapBy::View => tables,
        };
        if let Err(error) = self.slots.apply(ram, read_only) {
            let _ = set_writable(ram, &tighten, true);
            return Err(error.into());
        }
        // Opening a page may split a mapping, for which the kernel may have no room: such a page stays
        // trapped, and writes to it are let through one by one.
        let closed = open(ram, &old.difference(&new));
        self.changes = self.changes.wrapping_add(1);
        self.trapped = wanted.union(&closed);
        self.tables = tables.clone();
        Ok(())
    }

    /// Opens one page that traps by the view alone, if that can be done.
    pub fn open_page(&mut self, ram: &Ram, gfn: Gfn) {
        if self.by == TrapBy::View && !self.tables.contains(gfn) && self.trapped.contains(gfn) {
            let page: PageSet = [GfnRange::one(gfn)].into_iter().collect();
            if open(ram, &page).is_empty() {
                self.trapped.remove(gfn);
                self.changes = self.changes.wrapping_add(1);
            }
        }
    }

    fn by_view(&self, trapped: &PageSet, tables: &PageSet) -> PageSet {
        match self.by {
            TrapBy::Slots => PageSet::new(),
            TrapBy::View => trapped.difference(tables),
        }
    }
}

fn set_writable(ram: &Ram, pages: &PageSet, writable: bool) -> Result<(), ViewError> {
    for run in pages.runs() {
        for region in ram.regions() {
            if let Some(part) = region.pages.intersection(*run) {
                ram.view().set_writable(part, writable)?;
            }
        }
    }
    Ok(())
}

/// Lets the guest write the pages; those that could not be opened.
fn open(ram: &Ram, pages: &PageSet) -> PageSet {
    pages
        .runs()
        .iter()
        .filter(|run| set_writable(ram, &[**run].into_iter().collect(), true).is_err())
        .copied()
        .collect()
}

/// The pages of a range as a set.
pub fn pages_of(ranges: impl IntoIterator<Item = GfnRange>) -> PageSet {
    ranges.into_iter().collect()
}
