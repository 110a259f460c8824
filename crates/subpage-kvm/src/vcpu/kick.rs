//! Getting a processor out of the guest.
//!
//! Unsafe because it writes a byte of the memory that a processor shares with KVM while the
//! processor's own thread is in `KVM_RUN`, which is what that byte is for.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering, fence};

use kvm_ioctls::VcpuFd;

/// The byte `immediate_exit` of a processor's `kvm_run`.
///
/// While it is 1, `KVM_RUN` completes what is pending of the last exit and returns EINTR.
#[derive(Debug, Clone, Copy)]
pub struct Kick(*mut u8);

// SAFETY: the byte is only accessed atomically, from any thread; `Kick::new` asks that it lives.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// The byte of a processor.
    ///
    /// # Safety
    /// The processor outlives the value and all its copies.
    pub unsafe fn new(fd: &mut VcpuFd) -> Self {
        Self(&raw mut fd.get_kvm_run().immediate_exit)
    }

    fn byte(&self) -> &AtomicU8 {
        // SAFETY: the byte is mapped as long as the processor lives (promised to `new`), and is
        // accessed through this reference only, by this process; KVM reads it.
        unsafe { AtomicU8::from_ptr(self.0) }
    }

    /// Makes the next `KVM_RUN` return at once, until [`clear`](Self::clear).
    pub fn raise(&self) {
        self.byte().store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Lets the processor run. The caller then looks once more whether it should.
    pub fn clear(&self) {
        self.byte().store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}
