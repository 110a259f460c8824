//! The event of a write that met a rule or a map.

use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
use subpage::address::ByteRange;
use subpage::domain::Decision;
use subpage::rules::Action;
use subpage_emulate::GuestInstruction;
use subpage_emulate::guest::State;
use subpage_trap as trap;

use super::Context;
use crate::event::{Event, Verdict};
use crate::guard::Guard;

/// Numbers, counts and publishes an event. The guard's lock orders events among processors.
///
/// `bitness`: 16, 32 or 64, of the guest's code.
pub(super) fn record(
    context: Context<'_>,
    guard: &mut Guard,
    bitness: u32,
    event: &trap::Event<&[u8]>,
) -> Arc<Event> {
    let name = event.rule.and_then(|rule| guard.domain().rules().get(rule));
    let name = name.map_or_else(String::new, |active| active.rule.name.to_string());
    let verdict = match event.verdict {
        trap::Verdict::Denied => Verdict::Denied,
        trap::Verdict::Stopped => Verdict::Stopped,
        trap::Verdict::Logged => Verdict::Logged,
        trap::Verdict::AllowedOnce => Verdict::AllowedOnce,
    };
    let origin = event.origin;
    let found = !event.instruction.is_empty();
    // Of an event's frame, the place that was interrupted is no instruction that wrote.
    let rip = origin.rip.filter(|_| found);
    let event = Event {
        seq: 0,
        write: 0,
        verdict,
        rule: event.rule.map(|rule| rule.0),
        rule_name: name,
        action: event.action,
        vcpu: origin.vcpu,
        rip,
        rip_exact: origin.rip_exact,
        cpl: origin.cpl,
        cr3: origin.cr3,
        gpa: event.gpa.as_u64(),
        gla: event.gla,
        at: event.at.as_u64(),
        bytes: event.bytes.to_vec(),
        instruction: event.instruction.to_vec(),
        text: rip.map(|rip| disassemble(bitness, rip, &event.instruction)),
    };
    let event = guard.ledger.record(event);
    let name = event.rule.map(|_| event.rule_name.as_str());
    match verdict {
        Verdict::Denied | Verdict::Stopped => context.metrics.denied(name),
        Verdict::Logged | Verdict::AllowedOnce => context.metrics.logged(name),
    }
    context.events.publish(Arc::clone(&event));
    event
}

/// Bytes that a step over one instruction has changed, or would have.
pub(crate) struct Stepped<'a> {
    pub(crate) vcpu: u32,
    /// Registers before it.
    pub(crate) state: &'a State,
    pub(crate) range: ByteRange,
    pub(crate) bytes: &'a [u8],
    pub(crate) code: Option<GuestInstruction>,
}

/// Records the event of what a step has stored, if a rule or a map met it.
pub(crate) fn report_step(
    context: Context<'_>,
    guard: &mut Guard,
    decision: Decision,
    step: &Stepped<'_>,
) -> Option<Arc<Event>> {
    let (rule, at) = match trap::Met::of(decision)? {
        trap::Met::Watched { rule, at } => (Some(rule), at),
        trap::Met::Forbidden { rule, at, .. } => (rule, at),
    };
    let active = rule.and_then(|rule| guard.domain().rules().get(rule));
    let action = active.map_or(Action::Deny, |active| active.rule.action);
    let verdict = match decision {
        Decision::Denied { stop: true, .. } => trap::Verdict::Stopped,
        Decision::Denied { .. } => trap::Verdict::Denied,
        _ if action == Action::AllowOnce => trap::Verdict::AllowedOnce,
        _ => trap::Verdict::Logged,
    };
    let code = step.code.as_ref().map_or(&[][..], GuestInstruction::bytes);
    let event = trap::Event {
        verdict,
        response: trap::Response::Skip,
        rule,
        action,
        origin: trap::Origin::of(step.state, step.vcpu),
        gpa: step.range.first(),
        gla: None,
        at,
        length: Some(step.range.bytes()),
        bytes: step.bytes,
        instruction: code.iter().copied().collect(),
        during_delivery: false,
        qualification: None,
        in_software: true,
    };
    Some(record(context, guard, step.state.bitness(), &event))
}

/// An instruction in words, Intel syntax.
fn disassemble(bitness: u32, rip: u64, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let mut text = String::new();
    IntelFormatter::new().format(&decoder.decode(), &mut text);
    text
}
