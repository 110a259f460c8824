//! The event of a write that met a rule or a map.

use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
use subpage::address::Gpa;
use subpage::domain::WriteParts;
use subpage::rules::{Action, RuleId};
use subpage_emulate::guest::State;

use crate::event::{Event, Verdict};
use crate::guard::Guard;
use crate::vm::Machine;

/// What is known of a write besides its decision.
pub(super) struct Account<'a> {
    pub(super) vcpu: u32,
    /// Registers; RIP of the instruction only if `rip` says so.
    pub(super) state: &'a State,
    pub(super) parts: &'a WriteParts,
    pub(super) bytes: &'a [u8],
    pub(super) gla: Option<u64>,
    /// Address and bytes of the instruction, if it was found.
    pub(super) instruction: Option<(u64, &'a [u8])>,
    /// KVM told of the write before the instruction.
    pub(super) exact: bool,
}

/// What became of a write that is to be reported.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    /// It took effect.
    Reported { rule: RuleId, at: Gpa },
    /// It did not.
    Denied { rule: Option<RuleId>, at: Gpa, stop: bool },
}

/// Numbers, counts and publishes the event. The guard's lock orders events among processors.
pub(super) fn report(
    machine: &Machine,
    guard: &mut Guard,
    outcome: Outcome,
    account: &Account<'_>,
) -> Arc<Event> {
    let (rule, at) = match outcome {
        Outcome::Reported { rule, at } => (Some(rule), at),
        Outcome::Denied { rule, at, .. } => (rule, at),
    };
    let active = rule.and_then(|rule| guard.domain().rules().get(rule));
    let action = active.map_or(Action::Deny, |active| active.rule.action);
    let verdict = match outcome {
        Outcome::Reported { .. } if action == Action::AllowOnce => Verdict::AllowedOnce,
        Outcome::Reported { .. } => Verdict::Logged,
        Outcome::Denied { stop: true, .. } => Verdict::Stopped,
        Outcome::Denied { .. } => Verdict::Denied,
    };
    let state = account.state;
    let event = Event {
        seq: 0,
        write: 0,
        verdict,
        rule: rule.map(|rule| rule.0),
        rule_name: active.map_or_else(String::new, |active| active.rule.name.to_string()),
        action,
        vcpu: account.vcpu,
        rip: account.instruction.map(|(rip, _)| rip),
        rip_exact: account.exact,
        cpl: state.cpl,
        cr3: state.cr3,
        gpa: account.parts.first().first().as_u64(),
        gla: account.gla,
        at: at.as_u64(),
        bytes: account.bytes.to_vec(),
        instruction: account.instruction.map_or_else(Vec::new, |(_, bytes)| bytes.to_vec()),
        text: account.instruction.map(|(rip, bytes)| disassemble(state, rip, bytes)),
    };
    let event = guard.ledger.record(event);
    let name = event.rule.map(|_| event.rule_name.as_str());
    match verdict {
        Verdict::Denied | Verdict::Stopped => machine.metrics.denied(name),
        Verdict::Logged | Verdict::AllowedOnce => machine.metrics.logged(name),
    }
    machine.events.publish(Arc::clone(&event));
    event
}

/// An instruction in words, Intel syntax.
pub(crate) fn disassemble(state: &State, rip: u64, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(state.bitness(), bytes, rip, DecoderOptions::NONE);
    let mut text = String::new();
    IntelFormatter::new().format(&decoder.decode(), &mut text);
    text
}
