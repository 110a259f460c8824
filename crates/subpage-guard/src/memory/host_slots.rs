//! Guest memory that somebody else owns: memory slots, each a range of host addresses.
//!
//! Unsafe because windows on it are memory that the guest writes, too, and because the protection of
//! somebody else's mapping is changed.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::mman::{ProtFlags, mprotect};
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PAGE_BYTES};
use subpage::domain::WriteParts;
use subpage_emulate::Window;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};

use super::alias::{Alias, Pair};
use super::{GuestMemory, HostSlotError, NoWindow, ViewError};
use crate::trap::PageSet;

/// One slot.
#[derive(Debug)]
pub(crate) struct HostSlot {
    /// Its number.
    pub(crate) number: u32,
    /// Its pages.
    pub(crate) pages: GfnRange,
    /// Where KVM has it.
    pub(crate) host: usize,
    direct: Alias,
}

/// Memory by guest-physical address.
#[derive(Debug, Default)]
pub(crate) struct HostSlots {
    /// Ascending by page; apart from each other.
    slots: Vec<HostSlot>,
    /// Pages written here since they were last taken, if anybody takes them.
    dirty: Mutex<Option<PageSet>>,
}

impl HostSlots {
    /// Takes a slot in.
    ///
    /// # Safety
    /// `host` is mapped for as many bytes, KVM's and the VMM's alone, until the slot is removed.
    pub(crate) unsafe fn add(
        &mut self,
        number: u32,
        pages: GfnRange,
        host: usize,
    ) -> Result<(), HostSlotError> {
        let bytes =
            usize::try_from(pages.pages() * PAGE_BYTES).map_err(|_| HostSlotError::Place)?;
        if host == 0 || !host.is_multiple_of(4096) || host.checked_add(bytes).is_none() {
            return Err(HostSlotError::Place);
        }
        let overlaps = |slot: &HostSlot| slot.pages.intersection(pages).is_some();
        if let Some(other) = self.slots.iter().find(|slot| overlaps(slot)) {
            return Err(HostSlotError::Overlap(other.number));
        }
        // SAFETY: promised by the caller.
        let direct = unsafe { Alias::new(host, bytes) }.map_err(HostSlotError::of)?;
        let at = self.slots.partition_point(|slot| slot.pages.first() < pages.first());
        self.slots.insert(at, HostSlot { number, pages, host, direct });
        Ok(())
    }

    /// Lets a slot go.
    pub(crate) fn remove(&mut self, number: u32) {
        self.slots.retain(|slot| slot.number != number);
    }

    /// The slot with a number.
    pub(crate) fn slot(&self, number: u32) -> Option<&HostSlot> {
        self.slots.iter().find(|slot| slot.number == number)
    }

    /// All slots, ascending.
    pub(crate) fn slots(&self) -> &[HostSlot] {
        &self.slots
    }

    fn containing(&self, gfn: Gfn) -> Option<&HostSlot> {
        let behind = self.slots.partition_point(|slot| slot.pages.first() <= gfn);
        let slot = &self.slots[behind.checked_sub(1)?];
        slot.pages.contains(gfn).then_some(slot)
    }

    /// Where bytes of one slot lie in the guard's own mapping.
    fn direct(&self, first: Gpa, bytes: u64) -> Option<*mut u8> {
        let slot = self.containing(first.gfn())?;
        let offset = first.as_u64() - slot.pages.first().gpa().as_u64();
        let left = slot.pages.pages() * PAGE_BYTES - offset;
        (bytes <= left)
            .then(|| slot.direct.byte(usize::try_from(offset).expect("a slot is mapped")))
    }

    fn word(&self, gpa: Gpa) -> Option<&AtomicU64> {
        #[allow(clippy::cast_ptr_alignment)] // Checked below.
        let at = self.direct(gpa, 8)?.cast::<u64>();
        assert!(at.is_aligned(), "a page begins at a multiple of 8");
        // SAFETY: in the guard's own mapping, which lives as long as `self`; nothing here takes guest
        // memory for unshared.
        Some(unsafe { AtomicU64::from_ptr(at) })
    }

    /// Begins, or ends, to note which pages are written here.
    pub(crate) fn note_dirty(&self, on: bool) {
        *self.dirty.lock().unwrap_or_else(PoisonError::into_inner) = on.then(PageSet::new);
    }

    /// The pages of `range` that were written here, which are forgotten.
    pub(crate) fn take_dirty(&self, range: GfnRange) -> Vec<Gfn> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(dirty) = dirty.as_mut() else { return Vec::new() };
        let taken = dirty.runs_in(range).flat_map(|run| run.iter().collect::<Vec<_>>()).collect();
        dirty.remove(range);
        taken
    }

    fn written(&self, pages: GfnRange) {
        if let Some(dirty) = self.dirty.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            dirty.insert(pages);
        }
    }
}

impl PhysicalMemory for HostSlots {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let mut at = gpa.as_u64();
        let mut rest = buffer;
        while !rest.is_empty() {
            let (word, skipped) = (at & !7, (at & 7) as usize);
            let bytes = self.read_word(Gpa::try_new(word).map_err(|_| NotMemory)?)?.to_ne_bytes();
            let (now, later) = rest.split_at_mut(rest.len().min(8 - skipped));
            now.copy_from_slice(&bytes[skipped..skipped + now.len()]);
            at = word + 8;
            rest = later;
        }
        Ok(())
    }

    fn read_word(&self, gpa: Gpa) -> Result<u64, NotMemory> {
        Ok(self.word(gpa).ok_or(NotMemory)?.load(Ordering::Acquire))
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        let Ok(range) = ByteRange::new(gpa, bytes.len() as u64) else { return Err(NotMemory) };
        if !self.holds(range) {
            return Err(NotMemory);
        }
        for (at, byte) in (range.first().as_u64()..).zip(bytes) {
            let to = Gpa::try_new(at).ok().and_then(|at| self.direct(at, 1)).ok_or(NotMemory)?;
            // SAFETY: as in `word`.
            unsafe { AtomicU8::from_ptr(to) }.store(*byte, Ordering::Release);
        }
        self.written(range.gfns());
        Ok(())
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        let word = self.word(gpa).ok_or(NotMemory)?;
        let new = current | bits;
        let set = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        self.written(GfnRange::one(gpa.gfn()));
        Ok(set.map(drop))
    }
}

impl GuestMemory for HostSlots {
    fn runs(&self) -> impl Iterator<Item = GfnRange> {
        self.slots.iter().map(|slot| slot.pages)
    }

    fn holds(&self, range: ByteRange) -> bool {
        let last = range.last().gfn();
        let mut next = range.first().gfn();
        while let Some(slot) = self.containing(next) {
            if slot.pages.last() >= last {
                return true;
            }
            let Some(behind) = slot.pages.last().checked_add(1) else { return false };
            next = behind;
        }
        false
    }

    fn set_writable(&self, pages: GfnRange, writable: bool) -> Result<(), ViewError> {
        let slot = self.containing(pages.first()).expect("pages of a slot");
        assert!(pages.last() <= slot.pages.last(), "pages of one slot");
        let offset = (pages.first().as_u64() - slot.pages.first().as_u64()) * PAGE_BYTES;
        let at = slot.host + usize::try_from(offset).expect("a slot is mapped");
        let bytes = usize::try_from(pages.pages() * PAGE_BYTES).expect("a slot is mapped");
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let at = NonNull::new(ptr::with_exposed_provenance_mut(at)).expect("no slot is at 0");
        // SAFETY: the pages are the guest's memory as KVM has it, by the promise of `add`. Who writes
        // them there has been told to ask first.
        unsafe { mprotect(at, bytes, protection) }.map_err(ViewError::of)
    }

    fn with_window<T>(
        &self,
        write: &WriteParts,
        work: impl FnOnce(&mut Window<'_>) -> T,
    ) -> Result<T, NoWindow> {
        let length = usize::try_from(write.bytes()).map_err(|_| NoWindow)?;
        for run in write.runs() {
            self.written(run.gfns());
        }
        if let &[whole] = write.runs()
            && let Some(first) = self.direct(whole.first(), whole.bytes())
        {
            // SAFETY: in the guard's own mapping, which is readable and writable and lives as long as
            // `self`. No Rust reference covers guest memory.
            let mut window = unsafe { Window::new(first, length) };
            return Ok(work(&mut window));
        }
        // Of two runs, or of one that crosses from one slot to the next.
        let (first, last) = match write.runs() {
            &[whole] => (whole.first(), whole.last()),
            runs => (runs[0].first(), runs[1].first()),
        };
        let page = |gpa: Gpa| self.direct(gpa.gfn().gpa(), PAGE_BYTES).ok_or(NoWindow);
        // SAFETY: pages of the guard's own mappings.
        let pair = unsafe { Pair::new([page(first)?, page(last)?]) }.map_err(|_| NoWindow)?;
        let offset = usize::try_from(first.as_u64() % PAGE_BYTES).expect("less than a page");
        // SAFETY: two pages are mapped readable and writable until `pair` is dropped, after the work;
        // the bytes begin in the first and end in the second. No Rust reference covers them.
        let mut window = unsafe { Window::new(pair.byte(offset), length) };
        Ok(work(&mut window))
    }

    fn remedy(&self, _: ByteRange) -> String {
        "tell the guard of the memory slot before, or give addresses of memory".to_owned()
    }
}
