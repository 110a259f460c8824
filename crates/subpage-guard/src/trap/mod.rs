//! Making writes to restricted pages leave the guest.
//!
//! KVM knows pages, not sub-pages: a page with a restricted sub-page is made read-only for the guest,
//! in one of two ways (`docs/kvm.md` compares them):
//!
//! - [`TrapBy::Slots`]: the page lies in a memory slot of its own with `KVM_MEM_READONLY`. KVM
//!   carries the instruction out in its emulator and reports what it would have stored. That is exact
//!   for a single processor.
//! - [`TrapBy::Mprotect`]: the host mapping behind the slot is read-only by `mprotect`. KVM reports the fault before
//!   the instruction has happened, so that it can be completed here, locked instructions included.

mod pages;
mod slots;

pub use pages::PageSet;
pub use slots::{NoSlots, ReadOnlySlots, SlotError};

use std::cell::Cell;

use subpage::address::{Gfn, GfnRange};
use thiserror::Error;

use crate::memory::{GuestMemory, ViewError};

/// How writes to restricted pages are made to leave the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapBy {
    /// By read-only memory slots.
    Slots,
    /// By a host mapping that is read-only by `mprotect`.
    Mprotect,
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
    /// Pages that are in read-only slots although `mprotect` is what makes pages trap: they hold page tables of
    /// the guest, which KVM's own walker has to be able to use.
    tables: PageSet,
    slots: Box<dyn ReadOnlySlots>,
    /// How often the sets have changed.
    changes: u64,
    /// A page that traps, most likely the next one that is asked for; of the sets as they are.
    recent: Cell<Option<Gfn>>,
}

impl Traps {
    /// Nothing is trapped; `slots` hold all of memory.
    pub fn new(by: TrapBy, slots: Box<dyn ReadOnlySlots>) -> Self {
        Self {
            by,
            trapped: PageSet::new(),
            tables: PageSet::new(),
            slots,
            changes: 0,
            recent: Cell::new(None),
        }
    }

    /// How pages are trapped.
    pub const fn by(&self) -> TrapBy {
        self.by
    }

    /// Whether writes to a page leave the guest.
    pub fn traps(&self, gfn: Gfn) -> bool {
        if self.recent.get() == Some(gfn) {
            return true;
        }
        let traps = self.trapped.contains(gfn);
        if traps {
            self.recent.set(Some(gfn));
        }
        traps
    }

    fn changed(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.recent.set(None);
    }

    /// Whether a page traps because its host mapping is read-only: it can be opened while the guest
    /// runs.
    pub fn traps_by_mprotect(&self, gfn: Gfn) -> bool {
        self.by == TrapBy::Mprotect && self.traps(gfn) && !self.tables.contains(gfn)
    }

    /// The trapped pages.
    pub const fn trapped(&self) -> &PageSet {
        &self.trapped
    }

    /// Those of them that are in read-only slots because they hold page tables of the guest.
    pub const fn tables(&self) -> &PageSet {
        &self.tables
    }

    /// How often it has changed what traps, and how. A processor may have left the guest for what
    /// trapped before the last change.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// How many memory slots there are.
    pub fn slot_count(&self) -> usize {
        self.slots.count()
    }

    /// Whether some of the pages trap, or would trap, by slots: no processor may be in the guest when
    /// that changes.
    pub fn need_slots(&self, pages: &PageSet) -> bool {
        match self.by {
            TrapBy::Slots => !pages.is_empty(),
            TrapBy::Mprotect => pages.runs().any(|run| self.tables.runs_in(run).next().is_some()),
        }
    }

    /// Makes pages of memory trap; those that did not before. All or nothing.
    ///
    /// In force when it returns. If slots change, no processor may be in the guest.
    pub fn close(&mut self, ram: &impl GuestMemory, pages: &PageSet) -> Result<PageSet, TrapError> {
        let fresh = pages.difference(&self.trapped);
        if fresh.is_empty() {
            return Ok(fresh);
        }
        match self.by {
            TrapBy::Slots => self.slots.set_read_only(&fresh, true)?,
            TrapBy::Mprotect => {
                if let Err(error) = set_writable(ram, &fresh, false) {
                    let _ = set_writable(ram, &fresh, true);
                    return Err(error.into());
                }
            }
        }
        self.changed();
        self.trapped.extend(fresh.runs());
        Ok(fresh)
    }

    /// Lets the guest write pages; those that trap all the same, because the kernel has no room for
    /// another mapping or KVM none for another slot.
    ///
    /// If slots change, no processor may be in the guest.
    pub fn open(&mut self, ram: &impl GuestMemory, pages: &PageSet) -> PageSet {
        let pages = pages.intersection(&self.trapped);
        let mut left = PageSet::new();
        let in_slots = match self.by {
            TrapBy::Slots => pages.clone(),
            TrapBy::Mprotect => pages.intersection(&self.tables),
        };
        if self.slots.set_read_only(&in_slots, false).is_ok() {
            in_slots.runs().for_each(|run| self.tables.remove(run));
        } else {
            left = in_slots.clone();
        }
        if self.by == TrapBy::Mprotect {
            left.extend(open(ram, &pages.difference(&in_slots)).runs());
        }
        if !pages.is_empty() {
            self.changed();
        }
        for run in pages.difference(&left).runs() {
            self.trapped.remove(run);
        }
        left
    }

    /// Takes pages out that are no memory by these names any more; what they are is left as it is.
    pub fn forget(&mut self, pages: &PageSet) {
        for run in pages.runs() {
            self.trapped.remove(run);
            self.tables.remove(run);
        }
        self.changed();
    }

    /// Puts trapped pages that hold page tables of the guest into read-only slots.
    ///
    /// No processor may be in the guest.
    pub fn hold_tables(
        &mut self,
        ram: &impl GuestMemory,
        pages: &PageSet,
    ) -> Result<(), TrapError> {
        let fresh = pages.intersection(&self.trapped).difference(&self.tables);
        if self.by == TrapBy::Slots || fresh.is_empty() {
            return Ok(());
        }
        self.slots.set_read_only(&fresh, true)?;
        self.tables.extend(fresh.runs());
        self.changed();
        // A page that its mapping keeps closed, too, traps as before.
        open(ram, &fresh);
        Ok(())
    }
}

fn set_writable(ram: &impl GuestMemory, pages: &PageSet, writable: bool) -> Result<(), ViewError> {
    for run in pages.runs() {
        for region in ram.runs() {
            if let Some(part) = region.intersection(run) {
                ram.set_writable(part, writable)?;
            }
        }
    }
    Ok(())
}

/// Lets the guest write the pages; those that could not be opened.
fn open(ram: &impl GuestMemory, pages: &PageSet) -> PageSet {
    let fails = |run: &GfnRange| set_writable(ram, &[*run].into_iter().collect(), true).is_err();
    pages.runs().filter(fails).collect()
}

/// The pages of a range as a set.
pub fn pages_of(ranges: impl IntoIterator<Item = GfnRange>) -> PageSet {
    ranges.into_iter().collect()
}
