//! Two bytes of the memory that a processor shares with KVM: one to get it out of the guest, and one
//! that tells how wide an access to a port is.
//!
//! Unsafe because they are reached by others than the processor's own thread, and while that thread has the
//! data of an exit borrowed.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering, fence};

use kvm_ioctls::VcpuFd;

/// Not 0, which is all that KVM asks for, and not what a VMM writes.
const OURS: u8 = 2;

/// The bytes `immediate_exit` and `io.size` of a processor's `kvm_run`.
///
/// While the first is not 0, `KVM_RUN` completes what is pending of the last exit and returns EINTR.
#[derive(Debug, Clone, Copy)]
pub struct Kick {
    immediate_exit: *mut u8,
    io_size: *mut u8,
}

// SAFETY: the bytes are only accessed atomically, from any thread; `Kick::new` asks that they live.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// The bytes of a processor.
    ///
    /// # Safety
    /// The processor outlives the value and all its copies.
    pub unsafe fn new(fd: &mut VcpuFd) -> Self {
        let run = fd.get_kvm_run();
        let immediate_exit = &raw mut run.immediate_exit;
        // SAFETY: taking the address of a part of the union reads nothing.
        let io_size = unsafe { &raw mut run.__bindgen_anon_1.io.size };
        Self { immediate_exit, io_size }
    }

    fn byte(&self) -> &AtomicU8 {
        // SAFETY: the byte is mapped as long as the processor lives (promised to `new`), and is
        // accessed through this reference only, by this process; KVM reads it.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }
    }

    /// Bytes of one access of the last exit for a port: 1, 2 or 4. To be asked by the processor's
    /// thread, after such an exit only.
    pub fn port_bytes(&self) -> usize {
        // SAFETY: mapped as long as the processor lives; KVM writes it only within KVM_RUN, in which
        // the calling thread is not.
        let size = unsafe { AtomicU8::from_ptr(self.io_size) }.load(Ordering::Relaxed);
        usize::from(size).clamp(1, 4)
    }

    /// Makes the next `KVM_RUN` return at once, until [`clear`](Self::clear) or [`lower`](Self::lower).
    pub fn raise(&self) {
        // A 1 is somebody else's, who waits for its effect.
        let _ = self.byte().compare_exchange(0, OURS, Ordering::SeqCst, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Takes back what [`raise`](Self::raise) did, and nothing else: whoever wants the processor out of
    /// the guest meanwhile still gets it.
    pub fn lower(&self) {
        let _ = self.byte().compare_exchange(OURS, 0, Ordering::SeqCst, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Lets the processor run. The caller then looks once more whether it should.
    pub fn clear(&self) {
        self.byte().store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}
