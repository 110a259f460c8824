//! Guards any 128 bytes of the guest of a VMM that knows nothing of it, from inside its process.
//!
//! The dynamic linker loads this library before the C library (`LD_PRELOAD`); `subpage run` does so.
//! It takes the calls by which a VMM makes a machine on KVM and moves bytes into its guest's memory
//! (`exports`), passes them on, and looks at what comes back:
//!
//! - `memory`: a slot's pages become shared, so that there is a second, writable mapping; the VMM's
//!   own mapping of guarded pages is closed by `mprotect`, for KVM and the VMM at once;
//! - `processor`: stores of the guest that end `KVM_RUN`, carried out by `subpage-trap`;
//! - `device`: the VMM's own writes, which arrive as SIGSEGV, or by calls of the kernel with a buffer
//!   in guest memory;
//! - `machine`: what is guarded, and the control socket.
//!
//! In a process without the variable `SUBPAGE_RUN`, and in one that makes no machine, it does nothing
//! and says nothing. `docs/interpose.md` tells who is asked about which write.
#![deny(unsafe_code)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod configuration;
mod descriptors;
mod device;
mod exports;
mod hooks;
mod kvm;
mod machine;
mod memory;
mod next;
mod processor;
mod say;
