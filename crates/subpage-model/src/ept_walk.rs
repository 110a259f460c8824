//! The processor's walk of the extended page tables.
//!
//! SDM Vol. 3C, "EPT Translation Mechanism" and "EPT-Induced VM Exits". Nothing is shared with the
//! engine's own walks but the layout of an entry.

use arrayvec::ArrayVec;
use subpage::address::{Gpa, Hpa};
use subpage::ept::EptEntry;
use subpage::frames::{EntryIndex, TableFrame, TableFrames};
use subpage::level::{Level, PageSize};

use crate::decision::PageRights;
use crate::deviations::Deviations;
use crate::features::Features;
use crate::rights::Rights;

/// Bit 8 of an entry: accessed.
pub(crate) const ACCESSED: u64 = 1 << 8;
/// Bit 9 of a leaf: dirty.
pub(crate) const DIRTY: u64 = 1 << 9;

/// Where a walk begins: the root, or what a paging-structure cache remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Level of the entries in `table`.
    pub level: Level,
    /// The table to read first.
    pub table: TableFrame,
    /// AND of the rights of the entries above.
    pub rights: Rights,
}

impl Start {
    /// At the EPT's root.
    pub const fn root(table: TableFrame) -> Self {
        Self { level: Level::L4, table, rights: Rights::ALL }
    }
}

/// One entry that a walk used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the entry stands.
    pub table: TableFrame,
    /// Its index in the table.
    pub index: EntryIndex,
    /// The entry as it was read.
    pub bits: u64,
    /// AND of the rights of the entries so far, this one included.
    pub rights: Rights,
    /// The entry's level.
    pub level: Level,
    /// Whether the entry maps the page.
    pub leaf: bool,
}

impl Step {
    /// Where the walk continues; none behind the leaf.
    ///
    /// # Panics
    /// Never: every entry of the last level is a leaf, and bits 51:12 are 4 KiB aligned.
    pub fn below(&self) -> Option<Start> {
        if self.leaf {
            return None;
        }
        let level = self.level.below().expect("every entry of the last level is a leaf");
        let table = TableFrame::try_new(EptEntry::from(self.bits).hpa()).expect("4 KiB aligned");
        Some(Start { level, table, rights: self.rights })
    }
}

/// A walk that reached a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EptWalk {
    /// Host-physical address of the byte.
    pub hpa: Hpa,
    /// What the EPT says about the page.
    pub page: PageRights,
    /// The entries used, the leaf last.
    pub steps: ArrayVec<Step, 4>,
}

/// How a walk ends before it reaches a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EptFault {
    /// An entry is not present: an EPT violation, whatever the access. The AND of the rights,
    /// with the zeros of that entry, is empty.
    NotPresent,
    /// An entry is of a form that the processor does not define.
    Misconfiguration,
}

/// Walks from `start` to the page of `gpa`.
///
/// SDM Vol. 3C, "Prioritization of EPT Misconfigurations and EPT Violations": from the root down,
/// each entry is first checked for presence, then for its form; rights are looked at only after the
/// last one.
///
/// # Panics
/// If a table named by an entry is not an allocated frame.
pub fn walk<F: TableFrames>(
    frames: &F,
    start: Start,
    gpa: Gpa,
    features: &Features,
    deviations: Deviations,
) -> Result<EptWalk, EptFault> {
    let mut steps = ArrayVec::new();
    let mut at = start;
    loop {
        let index = at.level.index(gpa.gfn());
        let bits = frames.load(at.table, index);
        let mut entry = EptEntry::from(bits);
        if !is_present(entry, features) {
            return Err(EptFault::NotPresent);
        }
        let leaf = leaf_size(entry, at.level);
        if deviations.large_leaf_bit_12_ignored && leaf.is_some_and(|size| size != PageSize::Size4K)
        {
            entry = EptEntry::from(bits & !(1 << 12));
        }
        if is_misconfigured(entry, at.level, leaf, features) {
            return Err(EptFault::Misconfiguration);
        }
        let rights = at.rights & Rights::of_entry(bits);
        let step =
            Step { table: at.table, index, bits, rights, level: at.level, leaf: leaf.is_some() };
        steps.push(step);
        if let Some(size) = leaf {
            let hpa = Hpa::new(entry.hpa().as_u64() | gpa.as_u64() & (size.bytes() - 1));
            let page = PageRights { rights, size, sub_page_write: entry.sub_page_write() };
            return Ok(EptWalk { hpa, page, steps });
        }
        at = step.below().expect("not a leaf");
    }
}

/// SDM Vol. 3C, "EPT Translation Mechanism": present if any of bits 2:0 is 1; under mode-based
/// execute control, also if bit 10 is.
fn is_present(entry: EptEntry, features: &Features) -> bool {
    entry.read()
        || entry.write()
        || entry.execute()
        || features.mode_based_execute && entry.user_execute()
}

/// The size of the page that a present entry maps; `None` if it names a table. In the root, bit 7 is
/// reserved and maps nothing.
fn leaf_size(entry: EptEntry, level: Level) -> Option<PageSize> {
    match level {
        Level::L1 => Some(PageSize::Size4K),
        Level::L2 if entry.large() => Some(PageSize::Size2M),
        Level::L3 if entry.large() => Some(PageSize::Size1G),
        _ => None,
    }
}

/// SDM Vol. 3C, "EPT Misconfigurations"; the reserved bits of each level are in the tables of "EPT
/// Translation Mechanism".
fn is_misconfigured(
    entry: EptEntry,
    level: Level,
    leaf: Option<PageSize>,
    features: &Features,
) -> bool {
    let executes = entry.execute() || features.mode_based_execute && entry.user_execute();
    if !entry.read() && (entry.write() || executes && !features.execute_only) {
        return true;
    }
    // Bits 51:N, N being the physical width.
    if !features.width.holds(entry.hpa()) {
        return true;
    }
    let Some(size) = leaf else {
        // Bits 6:3 of an entry that names a table, and bit 7 in the root.
        let reserved = u64::from(entry) & 0b0111_1000 != 0;
        return reserved || level == Level::L4 && entry.large();
    };
    // The address bits below the size of the page, and bit 7 itself where it cannot map a page.
    if !entry.hpa().is_aligned(size.bytes()) || size == PageSize::Size1G && !features.pages_1g {
        return true;
    }
    matches!(entry.memory_type(), 2 | 3 | 7)
}
