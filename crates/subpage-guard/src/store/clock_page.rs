//! What a guest has this program write: the rate and the beginning of its clock.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::KVM_CLOCK_TSC_STABLE;
use kvm_ioctls::VmFd;
use subpage::address::{ByteRange, Gpa};
use subpage::domain::{Decision, WriteParts};
use subpage_trap::{Account, Met, Origin, Response, report};

use super::backend::{Backend, Before};
use super::{Next, StoreContext};
use crate::failure::Failure;
use crate::guard::{Guard, SPACE};
use crate::memory::GuestMemory;
use crate::vcpu::Processor;
use crate::vcpu::clock::{ClockRequest, rate, time_of_day};

/// The time-stamp counter.
const TIME_STAMP_COUNTER: u32 = 0x10;

/// Writes what the processor has asked for by an MSR; KVM has the instruction still to complete.
///
/// The place is the guest's choice, so it is decided about as a write of the processor: denied, it is not
/// done, and the instruction goes on. A place that is no memory gets nothing, as with KVM's own clock.
pub fn write_clock(
    context: StoreContext<'_, impl GuestMemory>,
    guard: &mut Guard,
    vm: &VmFd,
    processor: &mut Processor,
    request: ClockRequest,
) -> Result<Next, Failure> {
    let khz = processor.fd.get_tsc_khz().unwrap_or(0);
    match request {
        ClockRequest::Rate(place) => {
            // KVM itself knows whether the counters of all processors agree and stay so.
            let stable = vm.get_clock().is_ok_and(|now| now.flags & KVM_CLOCK_TSC_STABLE != 0);
            match rate(khz, stable) {
                Some(bytes) => write(context, guard, processor, place, &bytes),
                None => Ok(Next::Enter),
            }
        }
        ClockRequest::TimeOfDay(place) => {
            let counter = processor.msr(TIME_STAMP_COUNTER)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            match time_of_day(now, counter, khz) {
                Some(bytes) => write(context, guard, processor, place, &bytes),
                None => Ok(Next::Enter),
            }
        }
    }
}

fn write(
    context: StoreContext<'_, impl GuestMemory>,
    guard: &mut Guard,
    processor: &mut Processor,
    place: u64,
    bytes: &[u8],
) -> Result<Next, Failure> {
    let range = Gpa::try_new(place).ok().and_then(|at| ByteRange::new(at, bytes.len() as u64).ok());
    let Some(range) = range.filter(|range| context.ram.holds(*range)) else {
        return Ok(Next::Enter);
    };
    let parts = WriteParts::one(range);
    context.metrics.checks(1);
    guard.count_untrapped(&parts);
    let decision = guard.domain_mut().authorize_write_parts(SPACE, &parts).map_err(|_| {
        let reason = "the engine has no memory left for a record of a write";
        Failure::new(processor.number, reason.to_owned())
    })?;
    if let Decision::NotEligible { .. } | Decision::NotMapped { .. } = decision {
        unreachable!("all memory lies in slots that may be written");
    }
    if decision.permits() {
        context
            .ram
            .with_window(&parts, |window| window.store(bytes, 1))
            .expect("what is permitted lies in a slot, which is memory");
    }
    if let Some(met) = Met::of(decision) {
        let at = processor.interrupted()?;
        let account = Account {
            origin: Origin::of(&at.state, processor.number),
            when: context.events.when(),
            parts: &parts,
            gla: None,
            length: Some(parts.bytes()),
            bytes,
            instruction: &WRMSR,
            during_delivery: false,
            qualification: None,
            in_software: true,
        };
        let extended = &mut None;
        let (tables, before) = (&at.tables, Before::Known(&at.state));
        let mut backend = Backend {
            context,
            guard: &mut *guard,
            processor,
            tables,
            before,
            extended,
            settle: false,
        };
        let event = report(&mut backend, met, Response::Skip, &account);
        if let Met::Forbidden { stop: true, .. } = met {
            return Ok(Next::Stopped(event));
        }
    }
    if decision.permits() {
        guard.note_write(processor.number, &parts);
    }
    let settle = decision.permits() && guard.after_write(context.ram, &parts);
    Ok(if settle { Next::Settle } else { Next::Enter })
}

/// The instruction that asked, which has no operands.
const WRMSR: [u8; 2] = [0x0f, 0x30];
