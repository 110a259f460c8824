//! The memory slots of the virtual machine.
//!
//! Unsafe because a slot tells KVM which memory of this process is the guest's.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use subpage::address::{Gfn, PAGE_BYTES};

use super::{PageSet, PlannedSlot, ReadOnlySlots, SlotError, replan};
use crate::memory::Ram;

/// The memory slots that KVM has.
#[derive(Debug)]
pub struct Slots {
    vm: Arc<VmFd>,
    /// By first page: what there is, and its number.
    active: BTreeMap<Gfn, (PlannedSlot, u32)>,
    /// Numbers that were used and are free again.
    free: Vec<u32>,
    limit: usize,
    read_only: bool,
}

impl Slots {
    /// No slot yet. `limit` is KVM's own, or less.
    pub fn new(vm: Arc<VmFd>, limit: usize) -> Self {
        let read_only = vm.check_extension(Cap::ReadonlyMem);
        Self { vm, active: BTreeMap::new(), free: Vec::new(), limit, read_only }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// The slots there are, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &PlannedSlot> {
        self.active.values().map(|(slot, _)| slot)
    }

    /// Makes the slots of all memory, where there is none yet; the guest may write all of it.
    pub fn lay_out(&mut self, ram: &Ram) -> Result<(), SlotError> {
        let slots: Vec<_> = ram
            .mapped()
            .iter()
            .map(|region| PlannedSlot {
                pages: region.pages,
                offset: region.offset,
                read_only: false,
            })
            .collect();
        self.replace(ram, &[], &slots)
    }

    /// Makes pages read-only, or writable, with as few slots as that takes. All or nothing.
    ///
    /// A slot that changes is absent for a moment: no processor may be in the guest. Slots without a
    /// page that changes, or one next to it, are not touched.
    ///
    /// # Panics
    /// If KVM refuses a slot and then refuses to take back the ones before, too: the guest's memory
    /// is gone.
    pub fn set_read_only(
        &mut self,
        ram: &Ram,
        pages: &PageSet,
        read_only: bool,
    ) -> Result<(), SlotError> {
        if pages.is_empty() {
            return Ok(());
        }
        if read_only && !self.read_only {
            return Err(SlotError::NoReadOnlySlots);
        }
        let mut old: Vec<PlannedSlot> = Vec::new();
        for run in pages.runs() {
            let first = run.first().as_u64().checked_sub(1).map_or(run.first(), Gfn::new);
            let last = run.last().checked_add(1).unwrap_or(run.last());
            // Ascending, like the runs: what two of them touch is the last of the first.
            let known = old.last().map(|slot| slot.pages.first());
            let before = self.active.range(..first).next_back();
            let touched = before.into_iter().chain(self.active.range(first..=last));
            old.extend(
                touched
                    .map(|(_, (slot, _))| *slot)
                    .filter(|slot| slot.pages.last() >= first)
                    .filter(|slot| known.is_none_or(|known| known < slot.pages.first())),
            );
        }
        let new = replan(old.iter().copied(), pages, read_only);
        let stays = |slot: &PlannedSlot, others: &[PlannedSlot]| {
            let key = |slot: &PlannedSlot| slot.pages.first();
            let found = others.binary_search_by_key(&key(slot), key);
            found.is_ok_and(|at| others[at] == *slot)
        };
        let removed: Vec<_> = old.iter().filter(|slot| !stays(slot, &new)).copied().collect();
        let added: Vec<_> = new.iter().filter(|slot| !stays(slot, &old)).copied().collect();
        self.replace(ram, &removed, &added)
    }

    /// Takes slots away and makes others of the same memory.
    fn replace(
        &mut self,
        ram: &Ram,
        removed: &[PlannedSlot],
        added: &[PlannedSlot],
    ) -> Result<(), SlotError> {
        let needed = self.len() - removed.len() + added.len();
        if needed > self.limit {
            return Err(SlotError::TooMany { needed, limit: self.limit });
        }
        let mut gone = 0;
        let mut made = 0;
        let result = removed
            .iter()
            .try_for_each(|slot| self.remove(ram, slot).inspect(|()| gone += 1))
            .and_then(|()| {
                added.iter().try_for_each(|slot| self.make(ram, *slot).inspect(|()| made += 1))
            });
        if result.is_err() {
            let back = added[..made]
                .iter()
                .try_for_each(|slot| self.remove(ram, slot))
                .and_then(|()| removed[..gone].iter().try_for_each(|slot| self.make(ram, *slot)));
            back.expect("KVM takes back the slots that it had");
        }
        result
    }

    fn make(&mut self, ram: &Ram, slot: PlannedSlot) -> Result<(), SlotError> {
        let next = u32::try_from(self.active.len()).expect("fewer than the limit");
        let number = self.free.pop().unwrap_or(next);
        if let Err(error) = self.set(ram, number, &slot, slot.pages.pages() * PAGE_BYTES) {
            self.free.push(number);
            return Err(error);
        }
        self.active.insert(slot.pages.first(), (slot, number));
        Ok(())
    }

    fn remove(&mut self, ram: &Ram, slot: &PlannedSlot) -> Result<(), SlotError> {
        let (_, number) = self.active[&slot.pages.first()];
        self.set(ram, number, slot, 0)?;
        self.active.remove(&slot.pages.first());
        self.free.push(number);
        Ok(())
    }

    /// Tells KVM of a slot of so many bytes; of none, to remove it.
    fn set(&self, ram: &Ram, number: u32, slot: &PlannedSlot, bytes: u64) -> Result<(), SlotError> {
        let pages = slot.pages;
        let address = ram.view().host_address(pages.first().gpa()).expect("a slot is memory");
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: if slot.read_only && bytes != 0 { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: pages.first().gpa().as_u64(),
            memory_size: bytes,
            userspace_addr: address,
        };
        // SAFETY: the memory is the view's mapping, which lives as long as the virtual machine: `Ram`
        // is kept next to it. It is shared with the guest, and no Rust reference covers it.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|error| SlotError::Refused {
            first: pages.first().as_u64(),
            pages: pages.pages(),
            error,
        })
    }
}

/// The slots of a guest's memory, which they know.
#[derive(Debug)]
pub struct RamSlots {
    slots: Slots,
    ram: Ram,
}

impl RamSlots {
    /// The slots of all memory, where there is none yet; the guest may write all of it.
    pub fn lay_out(mut slots: Slots, ram: &Ram) -> Result<Self, SlotError> {
        slots.lay_out(ram)?;
        Ok(Self { slots, ram: ram.clone() })
    }
}

impl ReadOnlySlots for RamSlots {
    fn set_read_only(&mut self, pages: &PageSet, read_only: bool) -> Result<(), SlotError> {
        self.slots.set_read_only(&self.ram, pages, read_only)
    }

    fn count(&self) -> usize {
        self.slots.len()
    }
}
