//! The guest's page walk (SDM Vol. 3A, "Paging").
//!
//! Four formats: no paging, 32-bit paging, PAE paging and 4-level paging. 5-level paging and
//! protection keys are not offered to guests. Every entry is read once, and what was read is what is
//! checked and used; accessed and dirty flags are set in a step of their own, by comparing with what
//! was read, so that they never go to an entry that meanwhile says something else.
//!
//! With PAE paging the processor reads the four PDPTEs when CR3 is loaded; here they come from
//! memory.

use arrayvec::ArrayVec;
use subpage::address::Gpa;

use super::bits::{
    CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE, RFLAGS_AC,
};
use super::{Exception, Fault, PagingFeatures, is_canonical};
use crate::guest::{PhysicalMemory, State};

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)] // four independent bits of the access, as the SDM has them
pub struct Access {
    /// A write.
    pub write: bool,
    /// A user-mode access: made at CPL 3, and not to a system table.
    pub user: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// An implicit access to a system table (GDT, LDT, IDT, TSS), which RFLAGS.AC does not exempt
    /// from SMAP.
    pub implicit: bool,
}

impl Access {
    /// An explicit data read with the privilege of `state`.
    pub const fn read_by(state: &State) -> Self {
        Self { write: false, user: state.cpl == 3, fetch: false, implicit: false }
    }

    /// An explicit data write with the privilege of `state`.
    pub const fn write_by(state: &State) -> Self {
        Self { write: true, ..Self::read_by(state) }
    }

    /// An instruction fetch with the privilege of `state`.
    pub const fn fetch_by(state: &State) -> Self {
        Self { fetch: true, ..Self::read_by(state) }
    }

    /// A read of a system table.
    pub const SYSTEM_READ: Self = Self { write: false, user: false, fetch: false, implicit: true };
}

/// Flags that the processor would set in one entry of the guest's page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The entry.
    pub entry: Gpa,
    /// Its size in bytes: 4 or 8.
    pub entry_bytes: u8,
    /// The flags, as bits of the entry: accessed (bit 5), in the last entry of a write also dirty
    /// (bit 6). Only those that are clear.
    pub flags: u64,
    /// The eight aligned bytes that hold the entry, as they were read.
    current: u64,
}

impl Mark {
    /// The eight aligned bytes that hold the entry, and the bits to set in them.
    fn unit(&self) -> (Gpa, u64) {
        let at = self.entry.as_u64();
        (Gpa::new(at & !7), self.flags << ((at & 4) * 8))
    }
}

/// Where a linear address leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// The entries to be marked, from the root on.
    pub marks: ArrayVec<Mark, 4>,
}

impl Translation {
    /// Sets the flags that the processor would have set.
    ///
    /// False if an entry is no longer as it was read: the walk must be done again. The flags of the
    /// entries before it are set then, as they are when a processor's walk ends early.
    #[must_use = "a walk whose entries have changed leads somewhere else"]
    pub fn mark_accessed<M: PhysicalMemory>(&self, memory: &M) -> Result<bool, Fault> {
        for mark in &self.marks {
            let (unit, bits) = mark.unit();
            match memory.set_bits(unit, mark.current, bits) {
                Ok(Ok(())) => {}
                Ok(Err(_changed)) => return Ok(false),
                Err(_) => return Err(Fault::NotMemory(unit.as_u64())),
            }
        }
        Ok(true)
    }
}

pub(super) const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits of a page fault's error code (SDM Vol. 3A, "Page-Fault Exceptions").
mod code {
    pub(super) const PROTECTION: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Bits32,
    Pae,
    Level4,
}

impl Format {
    pub(super) const fn of(state: &State) -> Self {
        if state.efer & EFER_LMA != 0 {
            Self::Level4
        } else if state.cr4 & CR4_PAE != 0 {
            Self::Pae
        } else {
            Self::Bits32
        }
    }

    pub(super) const fn levels(self) -> u32 {
        match self {
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
        }
    }

    pub(super) const fn entry_bytes(self) -> u8 {
        if matches!(self, Self::Bits32) { 4 } else { 8 }
    }

    /// Lowest bit of the linear address that selects an entry at `level`.
    const fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * if matches!(self, Self::Bits32) { 10 } else { 9 }
    }

    const fn index(self, linear: u64, level: u32) -> u64 {
        let mask = match (self, level) {
            (Self::Bits32, _) => 0x3ff,
            (Self::Pae, 3) => 3,
            _ => 0x1ff,
        };
        linear >> self.shift(level) & mask
    }

    /// How many bytes a table at `level` has.
    pub(super) const fn table_bytes(self, level: u32) -> usize {
        if matches!(self, Self::Pae) && level == 3 { 32 } else { 4096 }
    }

    pub(super) const fn root(self, cr3: u64) -> u64 {
        match self {
            Self::Bits32 => cr3 & 0xffff_f000,
            Self::Pae => cr3 & 0xffff_ffe0,
            Self::Level4 => cr3 & 0x000f_ffff_ffff_f000,
        }
    }

    /// Whether an entry at `level` with this value maps a page.
    pub(super) const fn is_leaf(self, state: &State, level: u32, entry: u64) -> bool {
        level == 1
            || entry & PAGE_SIZE != 0
                && match self {
                    Self::Bits32 => state.cr4 & CR4_PSE != 0,
                    Self::Pae => level == 2,
                    Self::Level4 => level <= 3,
                }
    }

    /// The bits that must be 0 in an entry.
    pub(super) fn reserved(
        self,
        paging: PagingFeatures,
        state: &State,
        level: u32,
        leaf: bool,
    ) -> u64 {
        let width = paging.physical_width.bits();
        let beyond = !((1_u64 << width) - 1);
        let high = beyond & 0x000f_ffff_ffff_f000;
        let no_execute = if state.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        match self {
            Self::Bits32 if leaf && level == 2 => {
                // Bits 20:13 are address bits 39:32.
                1 << 21 | (beyond >> 32 & 0xff) << 13
            }
            Self::Bits32 => 0,
            Self::Pae if level == 3 => beyond | 0x1e6,
            Self::Pae | Self::Level4 => {
                let ignored = if self == Self::Pae { 0x7ff << 52 } else { 0 };
                let size = if leaf && level > 1 {
                    ((1 << self.shift(level)) - 1) & !0x1fff
                } else if level == 4 || level == 3 && !paging.gigabyte_pages {
                    PAGE_SIZE
                } else {
                    0
                };
                let no_gigabyte =
                    if leaf && level == 3 && !paging.gigabyte_pages { PAGE_SIZE } else { 0 };
                high | ignored | no_execute | size | no_gigabyte
            }
        }
    }

    /// The guest-physical address in an entry: of the next table, or of the page.
    pub(super) const fn address(self, level: u32, leaf: bool, entry: u64) -> u64 {
        match self {
            Self::Bits32 if leaf && level == 2 => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            Self::Bits32 => entry & 0xffff_f000,
            Self::Pae | Self::Level4 if leaf => {
                entry & 0x000f_ffff_ffff_f000 & !((1 << self.shift(level)) - 1)
            }
            Self::Pae | Self::Level4 => entry & 0x000f_ffff_ffff_f000,
        }
    }
}

/// What the entries of a walk permit together.
struct Rights {
    write: bool,
    user: bool,
    execute: bool,
}

impl Rights {
    #[inline]
    fn permit(&self, state: &State, access: Access) -> bool {
        let mode = if access.user {
            self.user
        } else if !self.user {
            true
        } else if access.fetch {
            state.cr4 & CR4_SMEP == 0
        } else {
            state.cr4 & CR4_SMAP == 0 || !access.implicit && state.rflags & RFLAGS_AC != 0
        };
        let write = !access.write || self.write || !access.user && state.cr0 & CR0_WP == 0;
        mode && write && (!access.fetch || self.execute)
    }
}

fn page_fault(state: &State, linear: u64, access: Access, cause: u32) -> Fault {
    let mut error_code = cause;
    if access.write {
        error_code |= code::WRITE;
    }
    if access.user {
        error_code |= code::USER;
    }
    let pae = state.cr4 & CR4_PAE != 0 || state.efer & EFER_LMA != 0;
    if access.fetch && (state.cr4 & CR4_SMEP != 0 || pae && state.efer & EFER_NXE != 0) {
        error_code |= code::FETCH;
    }
    Exception::page_fault(linear, error_code).into()
}

/// Reads the eight aligned bytes around `at`, and the entry there.
fn load<M: PhysicalMemory>(memory: &M, at: u64, bytes: u8) -> Result<(Gpa, u64, u64), Fault> {
    let entry = Gpa::try_new(at).map_err(|_| Fault::NotMemory(at))?;
    let unit = memory.read_word(Gpa::new(at & !7)).map_err(|_| Fault::NotMemory(at))?;
    let value = if bytes == 8 { unit } else { unit >> ((at & 4) * 8) & 0xffff_ffff };
    Ok((entry, unit, value))
}

/// The common case of [`translate`]: 4-level paging, no fault, and no flag to be set. `None` if it is
/// another case.
///
/// What the entries of a walk have in common is collected on the way and looked at in the end.
#[inline]
pub fn translate_marked<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
) -> Option<Gpa> {
    const TABLE: u64 = 0x000f_ffff_ffff_f000;
    if state.efer & EFER_LMA == 0 || state.cr0 & CR0_PG == 0 || !is_canonical(linear) {
        return None;
    }
    let (mut all, mut any) = (u64::MAX, 0);
    let mut table = state.cr3 & TABLE;
    let mut shift = 39;
    let value = loop {
        let entry = table | (linear >> shift & 0x1ff) << 3;
        let value = memory.read_word(Gpa::try_new(entry).ok()?).ok()?;
        all &= value;
        any |= value;
        if shift == 12 || value & PAGE_SIZE != 0 {
            break value;
        }
        table = value & TABLE;
        shift -= 9;
    };
    let offset = (1 << shift) - 1;
    let beyond = !((1_u64 << paging.physical_width.bits()) - 1) & TABLE;
    let no_execute = if state.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
    // Bit 12 of the entry of a large page is PAT.
    let low = if shift == 12 { 0 } else { offset & !0x1fff };
    let size = shift < 30 || shift == 30 && paging.gigabyte_pages;
    let rights = Rights {
        write: all & WRITABLE != 0,
        user: all & USER != 0,
        execute: any & NO_EXECUTE == 0,
    };
    let marked =
        all & (PRESENT | ACCESSED) == PRESENT | ACCESSED && (!access.write || value & DIRTY != 0);
    if !marked || any & (beyond | no_execute) | value & low != 0 || !size {
        return None;
    }
    if !rights.permit(state, access) {
        return None;
    }
    Gpa::try_new(value & TABLE & !offset | linear & offset).ok()
}

/// Translates `linear` for an access, as the processor of `state` would.
///
/// Sets no flags; see [`Translation::mark_accessed`]. Outside of IA-32e mode linear addresses have
/// 32 bits, and the rest of `linear` is ignored. A linear address that is not canonical is #GP(0).
pub fn translate<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
) -> Result<Translation, Fault> {
    let mut marks = ArrayVec::new();
    let gpa = walk(memory, paging, state, linear, access, |_, mark| marks.extend(mark))?;
    Ok(Translation { gpa, marks })
}

/// The entries that a walk for an access marks, also if it ends in a fault.
///
/// The processor may set the accessed flag of every entry that it uses on the way to a fault, but
/// neither flag of the entry that faults (SDM Vol. 3A, "Accessed and Dirty Flags").
pub fn walk_marks<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
) -> ArrayVec<Mark, 4> {
    let mut marks = ArrayVec::new();
    // The caller asks for the marks; what became of the access is `translate`'s to say.
    let _ = walk(memory, paging, state, linear, access, |_, mark| marks.extend(mark));
    marks
}

/// The entries of the guest's page tables that a walk reads, from the root on, also if it ends in a
/// fault.
pub fn walk_entries<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
) -> ArrayVec<Gpa, 4> {
    let mut entries = ArrayVec::new();
    let access = Access::read_by(state);
    let _ = walk(memory, paging, state, linear, access, |entry, _| entries.push(entry));
    entries
}

fn walk<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
    entry_used: impl FnMut(Gpa, Option<Mark>),
) -> Result<Gpa, Fault> {
    match Format::of(state) {
        Format::Level4 => {
            walk_in(Format::Level4, memory, paging, state, linear, access, entry_used)
        }
        format => walk_in(format, memory, paging, state, linear, access, entry_used),
    }
}

/// A walk of 4-level paging has a copy of its own: nearly all are such, and what a format is asked for
/// at every level is a constant there.
#[inline]
fn walk_in<M: PhysicalMemory>(
    format: Format,
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
    mut entry_used: impl FnMut(Gpa, Option<Mark>),
) -> Result<Gpa, Fault> {
    let linear = if format == Format::Level4 { linear } else { linear & 0xffff_ffff };
    if !is_canonical(linear) {
        return Err(Exception::general_protection(0).into());
    }
    if state.cr0 & CR0_PG == 0 {
        return Gpa::try_new(linear).map_err(|_| Fault::NotMemory(linear));
    }
    let mut rights = Rights { write: true, user: true, execute: true };
    let mut table = format.root(state.cr3);
    let mut level = format.levels();
    loop {
        let at = table + format.index(linear, level) * u64::from(format.entry_bytes());
        let (entry, current, value) = load(memory, at, format.entry_bytes())?;
        if value & PRESENT == 0 {
            entry_used(entry, None);
            return Err(page_fault(state, linear, access, 0));
        }
        let leaf = format.is_leaf(state, level, value);
        if value & format.reserved(paging, state, level, leaf) != 0 {
            entry_used(entry, None);
            return Err(page_fault(state, linear, access, code::PROTECTION | code::RESERVED));
        }
        // A PDPTE of PAE paging has neither rights nor flags.
        let has_flags = !(format == Format::Pae && level == 3);
        if has_flags {
            rights.write &= value & WRITABLE != 0;
            rights.user &= value & USER != 0;
            rights.execute &= format == Format::Bits32 || value & NO_EXECUTE == 0;
        }
        if leaf && !rights.permit(state, access) {
            entry_used(entry, None);
            return Err(page_fault(state, linear, access, code::PROTECTION));
        }
        let dirty = if leaf && access.write { DIRTY } else { 0 };
        let flags = (ACCESSED | dirty) & !value;
        let mark = Mark { entry, entry_bytes: format.entry_bytes(), flags, current };
        entry_used(entry, (has_flags && flags != 0).then_some(mark));
        let address = format.address(level, leaf, value);
        if leaf {
            let physical = address | linear & ((1 << format.shift(level)) - 1);
            return Gpa::try_new(physical).map_err(|_| Fault::NotMemory(physical));
        }
        table = address;
        level -= 1;
    }
}
