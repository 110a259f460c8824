//! The event of what a step over an instruction has stored.

use std::sync::Arc;

use subpage::address::ByteRange;
use subpage::domain::{Decision, WriteParts};
use subpage_emulate::GuestInstruction;
use subpage_emulate::guest::State;
use subpage_trap::{Account, Met, Origin, Record, Response, describe};

use super::StoreContext;
use crate::guard::Guard;
use crate::memory::GuestMemory;

/// Bytes that a step over one instruction has changed, or would have.
pub struct Stepped<'a> {
    /// Number of the processor.
    pub vcpu: u32,
    /// Registers before it.
    pub state: &'a State,
    /// Where they are.
    pub range: ByteRange,
    /// What they are now, or would be.
    pub bytes: &'a [u8],
    /// The instruction, if it could be fetched.
    pub code: Option<GuestInstruction>,
}

/// Records the event of what a step has stored, if a rule or a map met it.
pub fn report_step(
    context: StoreContext<'_, impl GuestMemory>,
    guard: &mut Guard,
    decision: Decision,
    step: &Stepped<'_>,
) -> Option<Arc<Record>> {
    let parts = WriteParts::one(step.range);
    let account = Account {
        origin: Origin::of(step.state, step.vcpu),
        when: context.events.when(),
        parts: &parts,
        gla: None,
        length: Some(step.range.bytes()),
        bytes: step.bytes,
        instruction: step.code.as_ref().map_or(&[], GuestInstruction::bytes),
        during_delivery: false,
        qualification: None,
        in_software: true,
    };
    let event = describe(guard.domain(), Met::of(decision)?, Response::Skip, &account);
    Some(context.events.record(context, guard, step.state, &event, &parts))
}
