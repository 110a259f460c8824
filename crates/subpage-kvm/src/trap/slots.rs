//! The memory slots of the virtual machine.
//!
//! Unsafe because a slot tells KVM which memory of this process is the guest's.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use subpage::address::PAGE_BYTES;
use thiserror::Error;

use super::{PageSet, PlannedSlot, plan};
use crate::memory::Ram;

/// Why memory slots could not be changed; they are as they were.
#[derive(Debug, Error)]
pub enum SlotError {
    /// Each run of guarded pages needs one slot, and one more for what lies behind it.
    #[error(
        "{needed} memory slots are needed, KVM has {limit}: guard fewer separate pages, or trap by \
         the view (--trap view)"
    )]
    TooMany {
        /// How many the layout needs.
        needed: usize,
        /// How many KVM has.
        limit: usize,
    },
    /// The kernel cannot do what is asked for.
    #[error(
        "this kernel's KVM has no read-only memory slots (KVM_CAP_READONLY_MEM): trap by the view \
         (--trap view)"
    )]
    NoReadOnlySlots,
    /// KVM refused a slot.
    #[error("KVM refuses the memory slot of {pages} pages at frame {first:#x}: {error}")]
    Refused {
        /// First frame.
        first: u64,
        /// Pages.
        pages: u64,
        /// What the kernel says.
        error: vmm_sys_util::errno::Error,
    },
}

/// The memory slots that KVM has.
#[derive(Debug)]
pub struct Slots {
    vm: Arc<VmFd>,
    /// By slot number; none where the number is free.
    active: Vec<Option<PlannedSlot>>,
    limit: usize,
    read_only: bool,
}

impl Slots {
    /// No slot yet. `limit` is KVM's own, or less.
    pub fn new(vm: Arc<VmFd>, limit: usize) -> Self {
        let read_only = vm.check_extension(Cap::ReadonlyMem);
        Self { vm, active: Vec::new(), limit, read_only }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.active.iter().flatten().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slots there are, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &PlannedSlot> {
        self.active.iter().flatten()
    }

    /// Makes exactly the pages of `read_only` read-only, with as few slots as that takes.
    ///
    /// A slot that changes is absent for a moment: no processor may be in the guest. Slots that stay
    /// as they are are not touched.
    ///
    /// # Panics
    /// If KVM refuses a slot and then refuses to take back the ones before, too: the guest's memory
    /// is gone.
    pub fn apply(&mut self, ram: &Ram, read_only: &PageSet) -> Result<(), SlotError> {
        if !read_only.is_empty() && !self.read_only {
            return Err(SlotError::NoReadOnlySlots);
        }
        let wanted = plan(ram.regions(), read_only);
        if wanted.len() > self.limit {
            return Err(SlotError::TooMany { needed: wanted.len(), limit: self.limit });
        }
        let before = self.active.clone();
        let result = self.replace(ram, &wanted);
        if result.is_err() {
            let old: Vec<_> = before.iter().flatten().copied().collect();
            self.replace(ram, &old).expect("KVM takes back the slots that it had");
        }
        result
    }

    fn replace(&mut self, ram: &Ram, wanted: &[PlannedSlot]) -> Result<(), SlotError> {
        let key = |slot: &PlannedSlot| slot.pages.first();
        for number in 0..self.active.len() {
            let Some(slot) = self.active[number] else { continue };
            let stays =
                wanted.binary_search_by_key(&key(&slot), key).is_ok_and(|at| wanted[at] == slot);
            if !stays {
                self.set(ram, number, None)?;
            }
        }
        let mut have: Vec<_> = self.iter().map(key).collect();
        have.sort_unstable();
        let mut number = 0;
        for slot in wanted {
            if have.binary_search(&key(slot)).is_ok() {
                continue;
            }
            while self.active.get(number).is_some_and(Option::is_some) {
                number += 1;
            }
            self.set(ram, number, Some(*slot))?;
        }
        Ok(())
    }

    /// Makes a slot, or removes it.
    fn set(
        &mut self,
        ram: &Ram,
        number: usize,
        slot: Option<PlannedSlot>,
    ) -> Result<(), SlotError> {
        if number >= self.active.len() {
            self.active.resize(number + 1, None);
        }
        let pages = slot.or(self.active[number]).expect("a slot is made or removed").pages;
        let address = ram.view().host_address(pages.first().gpa()).expect("a slot is memory");
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(number).expect("fewer than the limit"),
            flags: if slot.is_some_and(|slot| slot.read_only) { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: pages.first().gpa().as_u64(),
            memory_size: slot.map_or(0, |_| pages.pages() * PAGE_BYTES),
            userspace_addr: address,
        };
        // SAFETY: the memory is the view's mapping, which lives as long as the virtual machine: `Ram`
        // is kept beside it. It is shared with the guest, and no Rust reference covers it.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|error| SlotError::Refused {
            first: pages.first().as_u64(),
            pages: pages.pages(),
            error,
        })?;
        self.active[number] = slot;
        Ok(())
    }
}
