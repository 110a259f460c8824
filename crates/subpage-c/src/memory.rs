//! Where a guest has memory, and which host pages hold it.

use core::mem::MaybeUninit;

use subpage::address::{Gfn, GfnRange, Hpa};
use subpage::domain::HostPage;
use subpage::ept::MemoryType;
use subpage::level::PageSize;
use subpage::slots::{SlotFlags, SlotId};

use crate::domain::{Domain, space_of};
use crate::status::{Failed, INVALID, done, given, valid};

/// The guest may not write to the slot at all; permissions do not apply there.
pub const SUBPAGE_SLOT_READ_ONLY: u32 = 1;
/// The pages of the slot that are written are noted, for subpage_harvest_dirty.
pub const SUBPAGE_SLOT_LOG_DIRTY: u32 = 2;

/// A host page behind guest frames.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Page {
    /// Host-physical address of its first byte, a multiple of its size.
    pub hpa: u64,
    /// Its size in bytes: 4 KiB, 2 MiB or 1 GiB.
    pub bytes: u64,
    /// The host lets the guest write to it now.
    pub writable: bool,
    /// The guest may execute it.
    pub executable: bool,
    /// EPT memory type: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB.
    pub memory_type: u8,
}

impl Page {
    fn host(&self) -> Result<HostPage, Failed> {
        let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
        let size = sizes.into_iter().find(|size| size.bytes() == self.bytes).ok_or(INVALID)?;
        let memory_type = match self.memory_type {
            0 => MemoryType::Uncacheable,
            1 => MemoryType::WriteCombining,
            4 => MemoryType::WriteThrough,
            5 => MemoryType::WriteProtected,
            6 => MemoryType::WriteBack,
            _ => return Err(INVALID),
        };
        let hpa = valid(Hpa::try_new(self.hpa))?;
        Ok(HostPage {
            hpa,
            size,
            writable: self.writable,
            executable: self.executable,
            memory_type,
        })
    }
}

pub(crate) fn frames(first: u64, pages: u64) -> Result<GfnRange, Failed> {
    valid(GfnRange::new(valid(Gfn::try_new(first))?, pages))
}

fn flags_of(bits: u32) -> Result<SlotFlags, Failed> {
    if bits & !(SUBPAGE_SLOT_READ_ONLY | SUBPAGE_SLOT_LOG_DIRTY) != 0 {
        return Err(INVALID);
    }
    Ok(SlotFlags {
        read_only: bits & SUBPAGE_SLOT_READ_ONLY != 0,
        log_dirty: bits & SUBPAGE_SLOT_LOG_DIRTY != 0,
    })
}

/// Gives the guest `pages` frames of memory from frame `first_gfn` on, as slot `id`.
///
/// -EINVAL: it overlaps another slot, or the number is taken; no frames, or some that the processor
/// cannot address; a flag that is not known.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_add_slot(
    domain: Option<&mut Domain>,
    space: u32,
    id: u16,
    first_gfn: u64,
    pages: u64,
    flags: u32,
) -> i64 {
    done((|| {
        let (space, range) = (space_of(space)?, frames(first_gfn, pages)?);
        Ok(given(domain)?.engine.add_slot(space, SlotId(id), range, flags_of(flags)?)?)
    })())
}

/// Gives the guest `pages` frames from `first_gfn` on that are the memory of the frames from
/// `original_gfn` on, which the guest has already: one more name. What guards one name guards all.
///
/// As for subpage_add_slot, and -EFAULT: an original frame belongs to no slot. -EBUSY: a page of the new
/// name is tracked. The guest may use the new name once the change is in force.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_add_alias(
    domain: Option<&mut Domain>,
    space: u32,
    id: u16,
    first_gfn: u64,
    pages: u64,
    flags: u32,
    original_gfn: u64,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (space, range) = (space_of(space)?, frames(first_gfn, pages)?);
        let (flags, original) = (flags_of(flags)?, valid(Gfn::try_new(original_gfn))?);
        given(domain)?.change(change, |engine| {
            Ok(((), engine.add_alias(space, SlotId(id), range, flags, original)?))
        })
    })())
}

/// Takes a slot away and unmaps its frames; rules there stay and hold again when memory comes back.
/// `*change` becomes the number for `subpage_invalidated`, 0 if nothing is to be invalidated.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_remove_slot(
    domain: Option<&mut Domain>,
    space: u32,
    id: u16,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let space = space_of(space)?;
        given(domain)?.change(change, |engine| Ok(((), engine.remove_slot(space, SlotId(id))?)))
    })())
}

/// Moves a slot to another first frame; permissions belong to addresses and do not move.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_move_slot(
    domain: Option<&mut Domain>,
    space: u32,
    id: u16,
    first_gfn: u64,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (space, first) = (space_of(space)?, valid(Gfn::try_new(first_gfn))?);
        given(domain)?
            .change(change, |engine| Ok(((), engine.move_slot(space, SlotId(id), first)?)))
    })())
}

/// Changes the flags of a slot.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_set_slot_flags(
    domain: Option<&mut Domain>,
    space: u32,
    id: u16,
    flags: u32,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (space, flags) = (space_of(space)?, flags_of(flags)?);
        given(domain)?
            .change(change, |engine| Ok(((), engine.set_slot_flags(space, SlotId(id), flags)?)))
    })())
}

/// Maps a host page at frame `gfn`; it is broken into smaller leaves where pages of it are restricted.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_map(
    domain: Option<&mut Domain>,
    space: u32,
    gfn: u64,
    page: Option<&Page>,
) -> i64 {
    done((|| {
        let (space, gfn) = (space_of(space)?, valid(Gfn::try_new(gfn))?);
        Ok(given(domain)?.engine.map(space, gfn, given(page)?.host()?)?)
    })())
}

/// Unmaps frames.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_unmap(
    domain: Option<&mut Domain>,
    space: u32,
    first_gfn: u64,
    pages: u64,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (space, range) = (space_of(space)?, frames(first_gfn, pages)?);
        given(domain)?.change(change, |engine| Ok(((), engine.unmap(space, range)?)))
    })())
}

/// Says whether the host lets the guest write to frames that are mapped now.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_protect(
    domain: Option<&mut Domain>,
    space: u32,
    first_gfn: u64,
    pages: u64,
    writable: bool,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (space, range) = (space_of(space)?, frames(first_gfn, pages)?);
        given(domain)?.change(change, |engine| Ok(((), engine.protect(space, range, writable)?)))
    })())
}
