//! KVM's second address space, that of system-management mode, to which one processor moves for a step.
//!
//! A processor that KVM takes for one in system-management mode finds other memory slots and is
//! otherwise as before: no register changes, nothing is told to the guest. Its memory there is the
//! [twin](crate::memory::Twin).
//!
//! Unsafe because KVM is told where that memory is.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_X86_SMM, KVM_GUESTDBG_BLOCKIRQ,
    KVM_VCPUEVENT_VALID_SMM, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use subpage::address::PAGE_BYTES;

use crate::memory::Ram;
use crate::trap::Traps;
use crate::vcpu::{Processor, ProcessorError};

/// Bit of a slot's number that puts it into the second address space.
const SECOND: u32 = 1 << 16;

/// Makes the second address space with all of the guest's memory.
///
/// `traps` must not change meanwhile. The error is what is missing, as the end of a sentence.
pub(super) fn make(vm: &VmFd, ram: &Ram, traps: &Traps) -> Result<(), String> {
    let has = |capability: u32| vm.check_extension_raw(capability.into());
    if has(KVM_CAP_X86_SMM) < 1 || has(KVM_CAP_MULTI_ADDRESS_SPACE) < 2 {
        return Err(
            "KVM has no second address space (KVM_CAP_X86_SMM, KVM_CAP_MULTI_ADDRESS_SPACE)".into(),
        );
    }
    let flags = u32::try_from(has(KVM_CAP_SET_GUEST_DEBUG2)).unwrap_or(0);
    if flags & KVM_GUESTDBG_BLOCKIRQ == 0 {
        return Err("KVM cannot hold interrupts off during a step (KVM_GUESTDBG_BLOCKIRQ, \
                    kernel 5.15)"
            .into());
    }
    let closed: Vec<_> = traps.trapped().runs().collect();
    let twin = ram.twin(&closed).map_err(|error| error.to_string())?;
    for (number, region) in (0..).zip(ram.mapped()) {
        let slot = kvm_userspace_memory_region {
            slot: SECOND | number,
            flags: 0,
            guest_phys_addr: region.pages.first().gpa().as_u64(),
            memory_size: region.pages.pages() * PAGE_BYTES,
            userspace_addr: twin.host_address(region),
        };
        // SAFETY: the memory is the twin's mapping, which lives as long as the virtual machine: `Ram`
        // is kept next to it. The guest and the twin's atomic accesses are all that reaches it.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|error| format!("KVM refuses memory in its second address space: {error}"))?;
    }
    Ok(())
}

/// Moves a processor into the second address space, or back.
///
/// Events that it has pending stay as they are. An INIT that another processor sends between the two
/// requests to KVM would be lost; a processor gets one when it is started, and does not step then.
pub(super) fn go(processor: &Processor, second: bool) -> Result<(), ProcessorError> {
    let mut events = processor.events()?;
    events.flags = KVM_VCPUEVENT_VALID_SMM;
    events.smi.smm = u8::from(second);
    processor.set_events(&events)
}
