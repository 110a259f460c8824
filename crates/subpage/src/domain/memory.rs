//! Memory slots and what they are mapped to.

use super::{Domain, DomainError, Observer};
use crate::address::{AddressError, Gfn, GfnRange, Hpa};
use crate::ept::{MemoryType, Place, update};
use crate::frames::TableFrames;
use crate::invalidate::Invalidation;
use crate::level::{Level, PageSize};
use crate::slots::{AddressSpace, DirtyBitmap, Slot, SlotError, SlotFlags, SlotId};

/// A page of host memory to map, as the host offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPage {
    /// First byte; a multiple of the size.
    pub hpa: Hpa,
    /// How much is contiguous. The engine maps it in smaller leaves where rules need that.
    pub size: PageSize,
    /// The guest may write it now: not shared with others, not copy-on-write.
    pub writable: bool,
    /// The guest may execute it.
    pub executable: bool,
    /// How the processor caches it.
    pub memory_type: MemoryType,
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Adds a slot. Rules and maps that its addresses have already hold from the first moment.
    ///
    /// Fails if the number is taken or a frame belongs to another slot of the address space, beyond
    /// the processor's width, and if memory is short (a logging slot needs one bit a page).
    pub fn add_slot(
        &mut self,
        space: AddressSpace,
        id: SlotId,
        pages: GfnRange,
        flags: SlotFlags,
    ) -> Result<(), DomainError> {
        self.check_width(pages)?;
        let set = &mut self.slots[space.index()];
        if set.get(id).is_ok() {
            return Err(SlotError::Exists(id).into());
        }
        set.overlap(pages, None)?;
        set.reserve_one()?;
        let dirty = if flags.log_dirty { Some(DirtyBitmap::new(pages)?) } else { None };
        set.insert(Slot { id, pages, read_only: flags.read_only, dirty });
        Ok(())
    }

    /// Removes a slot and unmaps its frames. Rules, maps and tracking of its addresses stay, but for
    /// the maps of an alias, which belong to memory that has other names.
    ///
    /// An alias must be unmapped before, by [`unmap`](Self::unmap), and that token completed: a
    /// processor that still knew its frames would find them open.
    ///
    /// Fails if there is no such slot, if its memory has further names (remove those first), if it is
    /// an alias with a frame mapped ([`DomainError::AlreadyMapped`]), and if memory is short.
    pub fn remove_slot(
        &mut self,
        space: AddressSpace,
        id: SlotId,
    ) -> Result<Invalidation, DomainError> {
        let pages = self.slots[space.index()].get(id)?.pages;
        if space == AddressSpace::Normal {
            self.names.check_not_original(pages)?;
        }
        if self.names.of_slot(space, id).is_some() {
            // Its vectors open at once: no processor may still know its frames.
            let mut mapped = None;
            self.tables.for_each_leaf(space, pages, |_, _, gfn| mapped = mapped.or(Some(gfn)));
            if let Some(gfn) = mapped {
                return Err(DomainError::AlreadyMapped(gfn));
            }
        }
        let token = self.tables.unmap(space, &self.slots, pages)?;
        // The originals lose no right, but tables that nothing needs any longer wait for a token.
        let opened = self.forget_alias(space, id)?;
        self.slots[space.index()].take(id);
        Ok(token.and(opened))
    }

    /// Moves a slot to other addresses and unmaps its frames; its dirty log moves along. Rules and
    /// maps do not move: they belong to addresses (D32).
    ///
    /// Fails if there is no such slot, its frames share memory with others, the place is taken or too
    /// high, or memory is short.
    pub fn move_slot(
        &mut self,
        space: AddressSpace,
        id: SlotId,
        first: Gfn,
    ) -> Result<Invalidation, DomainError> {
        let set = &self.slots[space.index()];
        let old = set.get(id)?.pages;
        let new = GfnRange::new(first, old.pages())?;
        self.check_width(new)?;
        set.overlap(new, Some(id))?;
        self.names.check_alone(old)?;
        let token = self.tables.unmap(space, &self.slots, old)?;
        let set = &mut self.slots[space.index()];
        if let Some(mut slot) = set.take(id) {
            slot.pages = new;
            if let Some(dirty) = &mut slot.dirty {
                dirty.rebase(new);
            }
            set.insert(slot);
        }
        Ok(token)
    }

    /// Changes a slot's flags; its leaves follow. Turning logging off lets pages merge again.
    pub fn set_slot_flags(
        &mut self,
        space: AddressSpace,
        id: SlotId,
        flags: SlotFlags,
    ) -> Result<Invalidation, DomainError> {
        let slot = self.slots[space.index()].get_mut(id)?;
        let pages = slot.pages;
        let fresh = match (&slot.dirty, flags.log_dirty) {
            (None, true) => Some(DirtyBitmap::new(pages)?),
            _ => None,
        };
        let stops_logging = slot.dirty.is_some() && !flags.log_dirty;
        if stops_logging {
            self.tables.reserve_merges(space, pages)?;
        }
        slot.read_only = flags.read_only;
        if !flags.log_dirty {
            slot.dirty = None;
        } else if fresh.is_some() {
            slot.dirty = fresh;
        }
        let mut required = self.tables.refresh(space, &self.slots, pages);
        if stops_logging {
            let before = self.tables.retired();
            for piece in pages.aligned_pieces(Level::L2.order()) {
                if self.tables.leaf_table(space, piece.first()).is_some() {
                    self.tables.merge(space, &self.slots, piece.first());
                }
            }
            required |= self.tables.retired() > before;
        }
        Ok(self.tables.token(required))
    }

    /// Maps a page of host memory at `gfn`, in the largest leaves that rules and slots allow.
    ///
    /// The leaf is computed with its final rights and stored once (D19). Fails if an address is not
    /// a multiple of the size or too wide, a frame belongs to no slot or is mapped already, or
    /// memory is short. Nothing has to be invalidated: processors do not cache absence (SDM
    /// Vol. 3C, "Information That May Be Cached").
    pub fn map(
        &mut self,
        space: AddressSpace,
        gfn: Gfn,
        page: HostPage,
    ) -> Result<(), DomainError> {
        let size = page.size;
        for (address, alignment) in
            [(page.hpa.as_u64(), size.bytes()), (gfn.gpa().as_u64(), size.bytes())]
        {
            if !address.is_multiple_of(alignment) {
                return Err(AddressError::Unaligned { address, alignment }.into());
            }
        }
        let last = page.hpa.checked_add(size.bytes() - 1);
        if !last.is_some_and(|last| self.tables.width.holds(last)) {
            return Err(AddressError::HpaTooWide { hpa: page.hpa.as_u64() }.into());
        }
        let range = GfnRange::new(gfn, size.frames())?;
        self.check_width(range)?;
        if let Some(gap) = self.slots[space.index()].first_gap(range) {
            return Err(DomainError::NoSlot(gap));
        }
        self.tables.map(space, &self.slots, gfn, page)
    }

    /// Removes the mappings of `range`, splitting large leaves at its ends.
    ///
    /// Only memory for a split, or for the list of freed tables, can be short.
    pub fn unmap(
        &mut self,
        space: AddressSpace,
        range: GfnRange,
    ) -> Result<Invalidation, DomainError> {
        self.tables.unmap(space, &self.slots, range)
    }

    /// Tells that the host's pages in `range` may or may not be written by the guest now, splitting
    /// large leaves at its ends (copy-on-write, page sharing, write-tracking by the host).
    pub fn protect(
        &mut self,
        space: AddressSpace,
        range: GfnRange,
        writable: bool,
    ) -> Result<Invalidation, DomainError> {
        let count = self.tables.splits_at_ends(space, range);
        let splits = self.tables.take_split_tables(count)?;
        self.tables.split_at_ends(space, &self.slots, range, splits);
        let mut tightened = false;
        self.tables.for_each_leaf(space, range, |tables, place, gfn| {
            let entry = place.entry.with_host_writable(writable);
            let rights = tables.rights_at(space, &self.slots, place.level, gfn, entry);
            let old = update(&mut tables.frames, place, |now| {
                rights.apply_to(now.with_host_writable(writable))
            });
            tightened |= rights.take_from(old);
        });
        Ok(self.tables.token(tightened))
    }

    /// The leaf that maps `gfn`, with its place; `None` if nothing is mapped.
    #[inline]
    pub fn mapping(&self, space: AddressSpace, gfn: Gfn) -> Option<Place> {
        let place = self.tables.epts[space.index()]?.find(&self.tables.frames, gfn);
        place.leaf_size().map(|_| place)
    }
}
