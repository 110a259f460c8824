//! Exceptions for the guest.

use subpage_emulate::Exception;
use subpage_emulate::bits::{DR6_BS, RFLAGS_TF};

use super::Next;
use crate::failure::Failure;
use crate::vcpu::{Interrupted, Processor, ProcessorError};

/// Has the guest receive an exception in place of the instruction at RIP.
pub fn inject(processor: &Processor, exception: Exception) -> Result<Next, Failure> {
    if let Some(address) = exception.address {
        processor.set_page_fault_address(address)?;
    }
    let mut events = processor.events()?;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = exception.vector;
    events.exception.has_error_code = u8::from(exception.error_code.is_some());
    events.exception.error_code = exception.error_code.unwrap_or(0);
    // What else is pending, others may have added to since it was read.
    events.flags = 0;
    processor.set_events(&events)?;
    Ok(Next::Enter)
}

/// What ends with a completed instruction: blocking by STI and MOV SS, and, if RFLAGS.TF was set, the
/// single-step trap begins. `shadow` tells of such blocking at the exit.
pub fn end_instruction(
    processor: &mut Processor,
    before: &Interrupted,
    shadow: bool,
) -> Result<(), ProcessorError> {
    let stepping = before.state.rflags & RFLAGS_TF != 0;
    if !shadow && !stepping {
        return Ok(());
    }
    processor.give_back()?;
    let mut events = processor.events()?;
    events.interrupt.shadow = 0;
    // Nothing else: what is pending, others may have added to since it was read.
    events.flags = kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW;
    if stepping {
        let mut debug = processor.debug_registers()?;
        debug.dr6 |= DR6_BS;
        processor.set_debug_registers(&debug)?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = Exception::DEBUG.vector;
        events.exception.has_error_code = 0;
    }
    processor.set_events(&events)?;
    Ok(())
}
