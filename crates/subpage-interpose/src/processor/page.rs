//! The page that a processor shares with KVM, and KVM's calls about it.
//!
//! Unsafe because the page is shared with KVM and with the VMM, and calls take pointers.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_run, kvm_sync_regs, kvm_xcrs,
};
use subpage_emulate::XsaveArea;

use crate::{kvm, next};

/// What a call to KVM gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) result: i32,
    /// The error number, if the result is negative.
    pub(crate) errno: i32,
}

/// What tells KVM to come back before it enters the guest. The VMM asks for that by 1, so that it is
/// seen if it did so meanwhile.
const BEFORE_ENTRY: u8 = 2;

const REGISTERS: u64 = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS) as u64;

/// The page and the descriptor of one processor, for its thread alone.
#[derive(Debug)]
pub(crate) struct Page {
    fd: i32,
    run: *mut kvm_run,
}

// SAFETY: the mapping belongs to this value, and is used by one thread at a time.
unsafe impl Send for Page {}

impl Page {
    /// Maps the page of a processor, `bytes` long.
    pub(crate) fn new(fd: i32, bytes: usize) -> io::Result<Self> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let run = unsafe { next::mmap(ptr::null_mut(), bytes, both, libc::MAP_SHARED, fd, 0) };
        if run == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped above. Children have no use for it.
        let _ = unsafe { next::madvise(run, bytes, libc::MADV_DONTFORK) };
        Ok(Self { fd, run: run.cast() })
    }

    fn call(&self, request: u64, argument: *mut c_void) -> Given {
        // SAFETY: the descriptor was a processor's; the callers pass what the request demands.
        let result = unsafe { next::ioctl(self.fd, request, argument) };
        Given { result, errno: if result < 0 { next::errno() } else { 0 } }
    }

    /// `KVM_RUN`.
    pub(crate) fn enter(&self) -> Given {
        self.call(kvm::RUN, ptr::null_mut())
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: a byte of the page, that others write only whole.
        let at = unsafe { &raw mut (*self.run).immediate_exit };
        // SAFETY: as above; the page is mapped as long as the process runs.
        unsafe { AtomicU8::from_ptr(at) }
    }

    /// `KVM_RUN` that completes the last exit and does not enter the guest. What the VMM says about
    /// leaving at once stays.
    pub(crate) fn complete(&self) -> Given {
        let order = Ordering::SeqCst;
        let _ = self.immediate_exit().compare_exchange(0, BEFORE_ENTRY, order, order);
        let given = self.enter();
        let _ = self.immediate_exit().compare_exchange(BEFORE_ENTRY, 0, order, order);
        given
    }

    /// Why the guest was left.
    pub(crate) fn reason(&self) -> u32 {
        // SAFETY: the page is mapped, and KVM writes it in calls of this thread only.
        unsafe { (*self.run).exit_reason }
    }

    /// Says why the guest was left.
    pub(crate) fn set_reason(&mut self, reason: u32) {
        // SAFETY: as above.
        unsafe { (*self.run).exit_reason = reason };
    }

    /// Says that KVM has failed, as it does of what it cannot emulate: the VMM stops the machine.
    pub(crate) fn set_failed(&mut self) {
        self.set_reason(kvm::KVM_EXIT_INTERNAL_ERROR);
        // SAFETY: as above.
        let exit = unsafe { &mut (*self.run).__bindgen_anon_1 };
        // KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: nobody retries that.
        exit.internal.suberror = 4;
        exit.internal.ndata = 0;
    }

    /// What mode the processor was in: `KVM_RUN_X86_SMM` (bit 0), `KVM_RUN_X86_GUEST_MODE` (bit 2).
    pub(crate) fn mode(&self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.run).flags }
    }

    /// The sub-error of an internal error.
    pub(crate) fn internal_error(&self) -> u32 {
        // SAFETY: as above.
        let exit = unsafe { (*self.run).__bindgen_anon_1 };
        // SAFETY: every bit pattern is a number.
        unsafe { exit.internal.suberror }
    }

    /// Address, bytes and how many of them, of a write to what KVM takes for a device; none for a read.
    pub(crate) fn device_write(&self) -> Option<(u64, [u8; 8], usize)> {
        // SAFETY: as above.
        let exit = unsafe { (*self.run).__bindgen_anon_1 };
        // SAFETY: every bit pattern is a number.
        let mmio = unsafe { exit.mmio };
        (mmio.is_write != 0).then(|| (mmio.phys_addr, mmio.data, (mmio.len as usize).min(8)))
    }

    /// Has KVM copy registers into the page, without entering the guest: no other call than `KVM_RUN` is
    /// needed, which a processor's thread may make under every filter.
    pub(crate) fn load(&mut self) -> Given {
        // SAFETY: as above.
        let wanted = unsafe { (*self.run).kvm_valid_regs };
        // SAFETY: as above.
        unsafe { (*self.run).kvm_valid_regs = wanted | REGISTERS };
        let given = self.complete();
        // SAFETY: as above.
        unsafe { (*self.run).kvm_valid_regs = wanted };
        given
    }

    /// The registers that were loaded.
    pub(crate) fn registers(&self) -> kvm_sync_regs {
        // SAFETY: as above.
        let shared = unsafe { (*self.run).s };
        // SAFETY: every bit pattern is a number.
        unsafe { shared.regs }
    }

    /// Registers for the next entry.
    pub(crate) fn set_registers(&mut self, registers: &kvm_sync_regs, special: bool, events: bool) {
        // SAFETY: as above.
        let shared = unsafe { &mut (*self.run).s };
        shared.regs = *registers;
        let mut dirty = u64::from(KVM_SYNC_X86_REGS);
        dirty |= if special { u64::from(KVM_SYNC_X86_SREGS) } else { 0 };
        dirty |= if events { u64::from(KVM_SYNC_X86_EVENTS) } else { 0 };
        // SAFETY: as above.
        unsafe { (*self.run).kvm_dirty_regs |= dirty };
    }

    /// The extended registers.
    pub(crate) fn extended(&self) -> Option<Box<XsaveArea>> {
        let mut area = Box::new(XsaveArea::INITIAL);
        let given = self.call(kvm::GET_XSAVE, area.0.as_mut_ptr().cast());
        if given.result < 0 {
            return None;
        }
        area.keep_mxcsr();
        Some(area)
    }

    /// Sets the extended registers.
    pub(crate) fn set_extended(&self, area: &XsaveArea) -> bool {
        // KVM only reads them.
        self.call(kvm::SET_XSAVE, area.0.as_ptr().cast_mut().cast()).result >= 0
    }

    /// XCR0; 1 (x87 alone) where KVM does not tell.
    pub(crate) fn xcr0(&self) -> u64 {
        let mut registers = kvm_xcrs::default();
        let given = self.call(kvm::GET_XCRS, (&raw mut registers).cast());
        let count = if given.result < 0 { 0 } else { registers.nr_xcrs as usize };
        let known = registers.xcrs.iter().take(count);
        known
            .filter(|register| register.xcr == 0)
            .map(|register| register.value)
            .next()
            .unwrap_or(1)
    }
}
