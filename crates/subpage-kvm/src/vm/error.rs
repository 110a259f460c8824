//! Why a virtual machine cannot be had.

use std::io;

use thiserror::Error;

use crate::boot::BootError;
use crate::guard::ChangeError;
use crate::memory::MemoryError;
use crate::snapshot::SnapshotError;
use crate::vcpu::{FeatureError, ProcessorError};

/// Why a call on a virtual machine failed.
#[derive(Debug, Error)]
pub enum VmError {
    /// There is no `/dev/kvm`.
    #[error(
        "there is no /dev/kvm: the kernel has no KVM, or the processor's virtualization is switched \
         off in the firmware (try `modprobe kvm_intel` or `modprobe kvm_amd`)"
    )]
    NoKvm,
    /// It may not be opened.
    #[error("/dev/kvm may not be opened by this user: join the group kvm, or run as root")]
    NoPermission,
    /// It cannot be opened for another reason.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(vmm_sys_util::errno::Error),
    /// The kernel's KVM is another one.
    #[error("KVM speaks API version {0}; this program speaks 12")]
    ApiVersion(i32),
    /// KVM cannot do something.
    #[error("this kernel's KVM lacks {0}")]
    Missing(&'static str),
    /// KVM refuses something.
    #[error("KVM cannot {what}: {error}")]
    Kvm {
        /// What was asked, as the end of a sentence.
        what: &'static str,
        /// What the kernel says.
        error: vmm_sys_util::errno::Error,
    },
    /// The number of processors is not one.
    #[error("{cpus} processors are not between 1 and {most}, the most that this KVM has")]
    Processors {
        /// What was asked for.
        cpus: u32,
        /// What KVM has.
        most: u32,
    },
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A processor.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The features that are asked for are not there.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// The guest cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A change of what is guarded.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Its state cannot be saved or restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// No thread or event descriptor is left.
    #[error("the host has no thread or descriptor left for the guest: {0}")]
    Thread(io::Error),
}
