//! The barest possible loop around `KVM_RUN` for the exits of a guest: it looks at the exit, gets the
//! processor past the store if KVM has not, and enters again. It decides nothing and stores nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};
use subpage::address::GfnRange;
use subpage_kvm::boot;
use subpage_kvm::memory::Ram;
use subpage_kvm::trap::{PageSet, Slots, TrapBy};
use subpage_kvm::vcpu::cpuid;

use crate::guest::{self, BEGIN, END, Image, Level, SERIAL, Work};
use crate::pairs::Contender;

/// A guest and its loop.
pub(crate) struct Bare {
    processor: VcpuFd,
    ram: Ram,
    store_bytes: u64,
    stores_a_turn: u32,
    stores: u32,
    /// Registers come with exits.
    shares: bool,
    // What must live as long as the processor.
    _slots: Slots,
    _vm: Arc<VmFd>,
}

impl Bare {
    /// A guest whose stores to the guarded page trap in one of the two ways.
    pub(crate) fn new(by: TrapBy, level: Level, work: Work, memory: u64) -> Self {
        let kvm = Kvm::new().expect("it was opened before");
        let vm = Arc::new(kvm.create_vm().expect("a machine"));
        let ram = Ram::new(memory).expect("memory");
        let page = GfnRange::one(guest::guarded_page());
        let read_only: PageSet = [page].into_iter().collect();
        let has = vm.check_extension_int(Cap::NrMemslots);
        let mut slots =
            Slots::new(Arc::clone(&vm), usize::try_from(has).expect("a number of slots"));
        slots.lay_out(&ram).expect("one slot");
        match by {
            TrapBy::Slots => slots.set_read_only(&ram, &read_only, true).expect("three slots"),
            TrapBy::Mprotect => ram.view().set_writable(page, false).expect("one more mapping"),
        }
        let image = Image::new(work);
        let boot = boot::load(&ram, &image.request(1)).expect("a flat guest");
        guest::write_tables(&ram);
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("features");
        let mut processor = vm.create_vcpu(0).expect("a processor");
        processor.set_cpuid2(&cpuid::for_guest(&supported, 0, 1)).expect("supported features");
        let from = processor.get_sregs().expect("registers");
        let (registers, special) = guest::start(level, &boot.special_registers(from));
        processor.set_sregs(&special).expect("registers that can be set");
        processor.set_regs(&registers).expect("registers that can be set");
        let shares = by == TrapBy::Mprotect && kvm.check_extension_int(Cap::SyncRegs) & 1 != 0;
        if shares {
            processor.set_sync_valid_reg(SyncReg::Register);
        }
        let store_bytes = image.store_bytes;
        Self {
            processor,
            ram,
            store_bytes,
            stores_a_turn: work.stores_a_turn(),
            stores: 0,
            shares,
            _slots: slots,
            _vm: vm,
        }
    }

    /// Sets how many stores the next rounds have, in whole turns.
    pub(crate) fn set_stores(&mut self, stores: u32) {
        guest::set_count(&self.ram, stores / self.stores_a_turn);
        self.stores = stores;
    }

    /// Past the store, which has not happened.
    ///
    /// By the registers that come with the exit, where KVM can do that: calls of their own would make
    /// the loop slower than the barest one is.
    fn skip(&mut self, trapped: &mut u32) {
        if self.shares {
            self.processor.sync_regs_mut().regs.rip += self.store_bytes;
            self.processor.set_sync_dirty_reg(SyncReg::Register);
        } else {
            let mut registers = self.processor.get_regs().expect("registers");
            registers.rip += self.store_bytes;
            self.processor.set_regs(&registers).expect("registers that can be set");
        }
        *trapped += 1;
    }
}

impl Contender for Bare {
    /// One round, from behind the exit that begins it to the one that ends it.
    ///
    /// # Panics
    /// If a store does not trap, or something else happens.
    fn round(&mut self) -> Duration {
        let mut began = None;
        let mut trapped = 0;
        loop {
            match self.processor.run() {
                Ok(VcpuExit::MmioWrite(..)) => trapped += 1,
                Ok(VcpuExit::MemoryFault { .. }) => self.skip(&mut trapped),
                Err(error) if error.errno() == libc::EFAULT => self.skip(&mut trapped),
                Ok(VcpuExit::IoOut(SERIAL, [BEGIN])) => began = Some(Instant::now()),
                Ok(VcpuExit::IoOut(SERIAL, [END])) => {
                    let took = began.expect("a round begins before it ends").elapsed();
                    assert_eq!(trapped, self.stores, "each store leaves the guest once");
                    return took;
                }
                other => panic!("the guest left for {other:?}"),
            }
        }
    }
}
