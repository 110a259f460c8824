//! A machine that another program runs, as the guard knows it.
//!
//! Unsafe because descriptors and memory of another owner are taken over.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};
use nix::errno::Errno;
use subpage::address::{Gfn, GfnRange, Gpa, PAGE_BYTES};
use subpage::slots::SlotId;
use subpage_emulate::PagingFeatures;
use thiserror::Error;

use super::Seat;
use crate::event::{Broadcast, Subscription, Witness};
use crate::guard::{ChangeError, Guard};
use crate::memory::{GuestMemory, HostSlot, HostSlotError, HostSlots};
use crate::metrics::{Clock, Metrics};
use crate::store::{Recorder, StoreContext};
use crate::trap::{NoSlots, TrapBy, Traps};
use crate::vcpu::{Processor, ProcessorError};

/// Why a machine, a slot or a processor cannot be guarded.
#[derive(Debug, Error)]
pub enum MachineError {
    /// A descriptor cannot be had a second time, or is none of KVM's.
    #[error("cannot take over the {what}: {error}")]
    Descriptor {
        /// Whose.
        what: &'static str,
        /// What the host says.
        error: Errno,
    },
    /// Registers cannot be exchanged through the shared page.
    #[error(
        "this KVM does not share registers (KVM_CAP_SYNC_REGS, Linux 4.17): use a newer kernel"
    )]
    NoSyncRegs,
    /// A memory slot was not taken in.
    #[error(transparent)]
    Slot(#[from] HostSlotError),
    /// The engine refuses the memory, or its pages cannot be made to trap.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A processor does not answer.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
}

/// The memory of a slot, as in `KVM_SET_USER_MEMORY_REGION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotMemory {
    /// Guest-physical address of the first byte.
    pub first: Gpa,
    /// A multiple of 4096.
    pub bytes: u64,
    /// Where this process has it mapped, readable, writable and shared: KVM's `userspace_addr`.
    pub host: usize,
}

/// A machine on KVM that another program runs. A clone is another handle on the same.
#[derive(Clone)]
pub struct Machine {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    vm: VmFd,
    paging: PagingFeatures,
    /// Locked before the guard. Who handles an exit holds it, so slots change between exits.
    memory: RwLock<HostSlots>,
    guard: Mutex<Guard>,
    pub(super) events: Recorder,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    pub(super) processors: Mutex<u32>,
    /// Held by whoever changes rules or maps: a change lets go of the guard while it waits for a store.
    pub(super) changing: Mutex<()>,
}

impl Shared {
    pub(super) fn memory(&self) -> RwLockReadGuard<'_, HostSlots> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().expect("the guard is whole")
    }

    pub(super) fn stores<'a>(&'a self, memory: &'a HostSlots) -> StoreContext<'a, HostSlots> {
        StoreContext {
            ram: memory,
            paging: self.paging,
            guard: &self.guard,
            metrics: &self.metrics,
            events: &self.events,
            // Nobody here steps over an instruction: what depends on that is not to be asked for.
            native: false,
        }
    }
}

impl Machine {
    /// A machine without memory, processors and rules. `paging` is what its guest's CPUID says
    /// ([`paging_features`](crate::vcpu::cpuid::paging_features)).
    ///
    /// Asks KVM to tell of every instruction that it cannot emulate (`KVM_CAP_EXIT_ON_EMULATION_FAILURE`),
    /// and keeps a second descriptor of the machine open until it is dropped.
    ///
    /// # Safety
    /// The descriptor is that of a virtual machine of KVM.
    pub unsafe fn new(vm: &impl AsRawFd, paging: PagingFeatures) -> Result<Self, MachineError> {
        let descriptor = |error| MachineError::Descriptor { what: "virtual machine", error };
        let kvm = Kvm::new().map_err(|error| descriptor(Errno::from_raw(error.errno())))?;
        // SAFETY: of the caller's machine, by its promise.
        let second = unsafe { again(vm.as_raw_fd()) }.map_err(descriptor)?;
        // SAFETY: the descriptor is this value's own.
        let vm = unsafe { kvm.create_vmfd_from_rawfd(second) }
            .map_err(|error| descriptor(Errno::from_raw(error.errno())))?;
        let tell = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        // Kernels before 5.14 do not know it.
        let _ = vm.enable_cap(&tell);
        let traps = Traps::new(TrapBy::Mprotect, Box::new(NoSlots));
        // KVM may carry stores out by itself, page by page.
        let guard = Guard::new(paging.physical_width, traps, true)?;
        let broadcast = Arc::new(Broadcast::new());
        let metrics = Arc::new(Metrics::new(Arc::clone(&broadcast)));
        subpage_emulate::prepare();
        Ok(Self {
            shared: Arc::new(Shared {
                vm,
                paging,
                memory: RwLock::default(),
                guard: Mutex::new(guard),
                events: Recorder::new(broadcast, Arc::clone(&metrics)),
                metrics,
                clock: Clock::new(None),
                processors: Mutex::new(0),
                changing: Mutex::new(()),
            }),
        })
    }

    /// Takes a memory slot in, before KVM is told of it. One of the same number is let go first; if only its
    /// flags change (`KVM_MEM_LOG_DIRTY_PAGES`), nothing happens, and what traps goes on to do so.
    ///
    /// If all of its host addresses are in one other slot, it is a second name of that memory: a rule for
    /// one name holds for both. If some are, it is refused. Its pages trap where rules want it when this returns.
    ///
    /// # Safety
    /// 1. The memory is mapped at `host` until the slot is removed, readable and writable.
    /// 2. Nothing but KVM and callers of [`device_write`](Self::device_write) writes it there: other
    ///    writes to pages with a rule fault.
    pub unsafe fn set_slot(&self, number: u32, memory: SlotMemory) -> Result<(), MachineError> {
        let id = slot_id(number)?;
        let SlotMemory { first, bytes, host } = memory;
        if bytes == 0 || !(bytes | first.as_u64()).is_multiple_of(PAGE_BYTES) {
            return Err(HostSlotError::Place.into());
        }
        let pages =
            GfnRange::new(first.gfn(), bytes / PAGE_BYTES).map_err(|_| HostSlotError::Place)?;
        let same = |slot: &HostSlot| slot.pages == pages && slot.host == host;
        if self.shared.memory().slot(number).is_some_and(same) {
            return Ok(());
        }
        self.remove_slot(number)?;
        let mut slots = self.shared.memory.write().unwrap_or_else(PoisonError::into_inner);
        let original = original(&slots, host, bytes)?;
        // SAFETY: promised by the caller.
        unsafe { slots.add(number, pages, host) }?;
        let mut guard = self.shared.guard();
        let added = match original {
            None => guard.add_memory(id, pages),
            Some(original) => guard.add_alias(id, pages, original),
        };
        let result = added.and_then(|()| {
            guard.close_wanted(&*slots).inspect_err(|_| {
                let _ = guard.remove_memory(&*slots, id, pages);
            })
        });
        if result.is_err() {
            slots.remove(number);
        }
        Ok(result?)
    }

    /// Lets a slot go, after KVM was told; nothing if there is none. Its rules wait for memory to come
    /// there again.
    ///
    /// Fails if the memory has a second name: remove that slot first.
    pub fn remove_slot(&self, number: u32) -> Result<(), MachineError> {
        let id = slot_id(number)?;
        let mut slots = self.shared.memory.write().unwrap_or_else(PoisonError::into_inner);
        let Some(pages) = slots.slot(number).map(|slot| slot.pages) else { return Ok(()) };
        self.shared.guard().remove_memory(&*slots, id, pages)?;
        slots.remove(number);
        Ok(())
    }

    /// A seat for the processor of this number, to be used by its thread. Make it before the thread's
    /// seccomp filter is in force, and drop it when the processor goes.
    ///
    /// # Safety
    /// The descriptor is that of a processor of this machine, which has one seat.
    pub unsafe fn seat(&self, number: u32, vcpu: &impl AsRawFd) -> Result<Seat, MachineError> {
        let descriptor = |error| MachineError::Descriptor { what: "virtual processor", error };
        // SAFETY: of the caller's processor, by its promise.
        let second = unsafe { again(vcpu.as_raw_fd()) }.map_err(descriptor)?;
        // SAFETY: the descriptor is this value's own.
        let fd = unsafe { self.shared.vm.create_vcpu_from_rawfd(second) }
            .map_err(|error| descriptor(Errno::from_raw(error.errno())))?;
        let mut processor = Processor::of(&self.shared.vm, fd, number);
        processor.exchange_registers(&self.shared.vm);
        if !processor.exchanges() {
            return Err(MachineError::NoSyncRegs);
        }
        *self.shared.processors.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(Seat::new(Arc::clone(&self.shared), processor))
    }

    /// Events from now on, of which at most `capacity` wait.
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        self.shared.events.broadcast.subscribe(capacity)
    }

    /// What is counted: of exits, those of stores that trapped.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Has this name the writers of events from now on; false if there was another.
    pub fn name_by(&self, witness: Box<dyn Witness>) -> bool {
        self.shared.events.name_by(witness)
    }

    /// Notes from now on which pages the guard writes, or no longer: KVM does not.
    pub fn note_dirty(&self, on: bool) {
        self.shared.memory().note_dirty(on);
    }

    /// Pages of a range that the guard has written since the last call, ascending: to be added to what
    /// `KVM_GET_DIRTY_LOG` tells, which is asked first.
    pub fn take_dirty(&self, pages: GfnRange) -> Vec<Gfn> {
        self.shared.memory().take_dirty(pages)
    }

    /// Bytes of guest memory, by all names.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.memory().runs().map(|run| run.pages() * PAGE_BYTES).sum()
    }
}

/// The engine's number of a slot. The upper half of KVM's is the address space.
fn slot_id(number: u32) -> Result<SlotId, HostSlotError> {
    u16::try_from(number).map(SlotId).map_err(|_| HostSlotError::Space(number))
}

/// The first page of the slot, or part of one, whose memory these host addresses are; none if they are no
/// other slot's. Fails if some of them are, since each byte has one slot that all its names go by.
fn original(slots: &HostSlots, host: usize, bytes: u64) -> Result<Option<Gfn>, HostSlotError> {
    let host = host as u64;
    let end = host.checked_add(bytes).ok_or(HostSlotError::Place)?;
    let bytes_of = |slot: &HostSlot| slot.pages.pages() * PAGE_BYTES;
    let shares = |slot: &&HostSlot| {
        let first = slot.host as u64;
        host < first + bytes_of(slot) && first < end
    };
    // Names of one slot's memory lie in it; that slot is the largest of those that share some.
    let Some(slot) = slots.slots().iter().filter(shares).max_by_key(|slot| bytes_of(slot)) else {
        return Ok(None);
    };
    let inside = host.checked_sub(slot.host as u64).filter(|at| at + bytes <= bytes_of(slot));
    let page = inside.and_then(|at| slot.pages.first().checked_add(at / PAGE_BYTES));
    page.map(Some).ok_or(HostSlotError::Shares(slot.number))
}

/// The same open file by another number, which programs that are executed do not get.
///
/// # Safety
/// The descriptor is open.
unsafe fn again(fd: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: promised by the caller.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let second = fd.try_clone_to_owned();
    second
        .map(IntoRawFd::into_raw_fd)
        .map_err(|error| error.raw_os_error().map_or(Errno::EBADF, Errno::from_raw))
}
