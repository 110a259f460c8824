//! All of a processor's state that KVM has.
//!
//! Unsafe because extended state is handed to KVM by pointer.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use super::{SnapshotError, clock};
use crate::vcpu::Processor;
use crate::vcpu::clock::ClockRegisters;

/// The state of one processor between two instructions.
// Plain numbers, whatever they are: KVM checks what it is given.
#[allow(clippy::unsafe_derive_deserialize)]
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessorState {
    registers: kvm_regs,
    special: kvm_sregs,
    extended: kvm_xsave,
    controls: kvm_xcrs,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    activity: kvm_mp_state,
    /// Rate of the time-stamp counter in kHz; `None` if KVM does not tell, and in snapshots that were
    /// made before it was saved.
    #[serde(default)]
    time_stamp_khz: Option<u32>,
    /// The MSRs of the guest's clock, which KVM does not keep.
    #[serde(default)]
    clock: ClockRegisters,
}

/// Most MSRs in one request to KVM.
const AT_ONCE: usize = 64;

impl ProcessorState {
    /// Completes what is pending of the last exit, so that nothing of it is in KVM alone, and reads
    /// the state. `msrs` are the numbers of the registers that KVM wants saved.
    pub fn save(processor: &mut Processor, msrs: &[u32]) -> Result<Self, SnapshotError> {
        // A store of several exits is taken in whole before its processor is let go of.
        let number = processor.number;
        processor.complete_exit().map_err(|found| SnapshotError::Busy { number, found })?;
        Self::at_rest(processor, msrs)
    }

    /// The state of a processor with no exit pending.
    pub(crate) fn at_rest(processor: &Processor, msrs: &[u32]) -> Result<Self, SnapshotError> {
        let number = processor.number;
        let failed = |what| move |error| SnapshotError::Processor { what, number, error };
        let fd = &processor.fd;
        Ok(Self {
            // Also completes what a start-up interrupt has begun.
            activity: fd.get_mp_state().map_err(failed("read the activity state"))?,
            registers: fd.get_regs().map_err(failed("read the registers"))?,
            special: fd.get_sregs().map_err(failed("read the system registers"))?,
            extended: fd.get_xsave().map_err(failed("read the extended state"))?,
            controls: fd.get_xcrs().map_err(failed("read XCR0"))?,
            msrs: read_msrs(processor, msrs)?,
            events: fd.get_vcpu_events().map_err(failed("read the events"))?,
            debug: fd.get_debug_regs().map_err(failed("read the debug registers"))?,
            local_apic: fd.get_lapic().map_err(failed("read the local APIC"))?,
            time_stamp_khz: clock::rate(processor),
            clock: processor.clock,
        })
    }

    /// Sets it.
    pub fn restore(&self, processor: &mut Processor) -> Result<(), SnapshotError> {
        let number = processor.number;
        let failed = |what| move |error| SnapshotError::Processor { what, number, error };
        let fd = &processor.fd;
        // CPUID was set when the processor was made. XCR0 goes before what it enables, the APIC's
        // base (in the system registers) before the APIC, and events last of all.
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
            .map_err(failed("set the activity state"))?;
        if let Some(rate) = self.time_stamp_khz {
            clock::restore(processor, rate)?;
        }
        fd.set_regs(&self.registers).map_err(failed("set the registers"))?;
        fd.set_sregs(&self.special).map_err(failed("set the system registers"))?;
        fd.set_xcrs(&self.controls).map_err(failed("set XCR0"))?;
        // SAFETY: no state beyond the 4096 bytes was asked for by arch_prctl: AMX is not offered.
        unsafe { fd.set_xsave(&self.extended) }.map_err(failed("set the extended state"))?;
        fd.set_debug_regs(&self.debug).map_err(failed("set the debug registers"))?;
        fd.set_lapic(&self.local_apic).map_err(failed("set the local APIC"))?;
        write_msrs(processor, &self.msrs)?;
        fd.set_mp_state(self.activity).map_err(failed("set the activity state"))?;
        fd.set_vcpu_events(&self.events).map_err(failed("set the events"))?;
        processor.clock = self.clock;
        processor.decode_cache = subpage_emulate::DecodeCache::default();
        Ok(())
    }
}

fn read_msrs(processor: &Processor, numbers: &[u32]) -> Result<Vec<kvm_msr_entry>, SnapshotError> {
    let mut entries = Vec::with_capacity(numbers.len());
    let mut rest = numbers;
    while !rest.is_empty() {
        let take = rest.len().min(AT_ONCE);
        let asked: Vec<_> = rest[..take]
            .iter()
            .map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() })
            .collect();
        let mut msrs = Msrs::from_entries(&asked).expect("at most AT_ONCE");
        let read = processor.fd.get_msrs(&mut msrs).map_err(|error| SnapshotError::Processor {
            what: "read the model-specific registers",
            number: processor.number,
            error,
        })?;
        entries.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first that this guest does not have: that one is left out.
        rest = &rest[if read < take { read + 1 } else { take }..];
    }
    Ok(entries)
}

fn write_msrs(processor: &Processor, entries: &[kvm_msr_entry]) -> Result<(), SnapshotError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let take = rest.len().min(AT_ONCE);
        let msrs = Msrs::from_entries(&rest[..take]).expect("at most AT_ONCE");
        let written = processor.fd.set_msrs(&msrs).map_err(|error| SnapshotError::Processor {
            what: "set the model-specific registers",
            number: processor.number,
            error,
        })?;
        rest = &rest[written..];
        if written < take {
            // KVM stops at the first that it does not set. One that it only lets be read may have its
            // value already.
            let refused = rest[0];
            if read_msrs(processor, &[refused.index])?.iter().all(|now| now.data != refused.data) {
                return Err(SnapshotError::Register {
                    register: refused.index,
                    value: refused.data,
                    number: processor.number,
                });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}
