//! The event of a write that met a rule or a map.

use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
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

/// An instruction in words, Intel syntax.
fn disassemble(bitness: u32, rip: u64, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let mut text = String::new();
    IntelFormatter::new().format(&decoder.decode(), &mut text);
    text
}
