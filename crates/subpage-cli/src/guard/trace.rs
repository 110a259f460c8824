//! A trace as a guest: its writes, one after the other.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use subpage_trace::Code;
use subpage_trap::{Armed, Function, Record, SourceLine, Timestamp, Verdict};

use super::intervals::Intervals;
use super::moments::{Coming, Waiting, check_moments, settle};
use super::{Enforcer, Model, RunCounters};
use crate::command_line::GuardArguments;
use crate::events::{EventWriter, RuleEvent, RunHeader, StartEvent, WarningEvent, WarningKind};
use crate::failure::Failure;
use crate::policy::{Draft, Names, Policy, PolicyRule};
use crate::progress::Progress;
use crate::summary::Summary;
use crate::terminal::{ColorWhen, Output, grouped, plural};
use crate::trace_file::{TraceFile, bytes_of};

/// Replays the trace at `path` under a policy and tells what happened.
pub(super) fn run(
    path: &Path,
    draft: Draft,
    arguments: &GuardArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Summary, Failure> {
    let policy_name = draft.name();
    let header = RunHeader::now(Some(&draft));
    let mut trace = TraceFile::open(path, arguments.process)?;
    let names = trace.names(arguments.machine.symbols.as_deref())?;
    let list = trace.names_command();
    let mut policy = draft
        .resolve_listed(&names, &list)
        .map_err(|mistakes| Failure::Policy(Box::new(mistakes)))?;
    check_moments(&policy, trace.is_machine())?;
    settle(&mut policy, trace.is_machine());
    let mut warnings = policy.overruled();
    if arguments.strict && !warnings.is_empty() {
        return Err(Failure::Strict { warnings, before_a_run: true });
    }
    let mut events = EventWriter::new(&mut *out, arguments.json, arguments.detail());
    let progress = Progress::new(color, "guarding", trace.bytes);
    let enforcer = Model::new(&policy)?;
    events.start(&StartEvent {
        header: header.clone(),
        guest: trace.name.clone(),
        policy: policy_name.clone(),
        backend: enforcer.name().to_owned(),
        rules: policy.rules.iter().map(RuleEvent::from).collect(),
        live: None,
    })?;
    events.warnings(&warnings)?;
    let (mut summary, unmet, waiting) =
        replay(&mut trace, &policy, policy_name, enforcer, &mut events, &progress)?;
    drop(progress);
    let named = bytes_with_names(&names);
    let mut late: Vec<_> = unmet
        .into_iter()
        .filter_map(|rule| unmet_and_nameless(&policy.rules[rule], &named, &list))
        .collect();
    late.extend(waiting.never(&policy));
    // Whoever names a process has chosen.
    late.extend(other_processes(&trace).filter(|_| arguments.process.is_none()));
    events.warnings(&late)?;
    warnings.extend(late);
    summary.warnings = warnings;
    summary.header = header;
    events.summary(&summary)?;
    Ok(summary)
}

/// Puts every write of a trace before an enforcer; gives the rules that none of them met, and those that
/// never held, as well.
fn replay<E: Enforcer, W: Write>(
    trace: &mut TraceFile,
    policy: &Policy,
    policy_name: String,
    mut enforcer: E,
    events: &mut EventWriter<W>,
    progress: &Progress,
) -> Result<(Summary, Vec<usize>, Waiting), Failure> {
    let began = Instant::now();
    let mut counters = RunCounters::new(policy);
    let process = trace.event_process();
    let mut waiting = Waiting::of(policy);
    let mut block = Vec::new();
    'trace: while trace.next_block(&mut block)? {
        let mut coming = waiting.next(&block);
        for (at, write) in block.iter().enumerate() {
            while let Some(now) = coming.take_if(|coming| coming.at == at) {
                if !now.rules.is_empty() {
                    enforcer.arm(&now.rules)?;
                    counters.arm(&now.rules);
                    let armed = armed(&now, policy, counters.writes() + 1, began);
                    progress.aside(|| events.armed(&armed))?;
                }
                coming = waiting.next(&block[at..]);
                if let Some(coming) = &mut coming {
                    coming.at += at;
                }
            }
            let bytes = bytes_of(write);
            let decision = enforcer.write(bytes)?;
            let event = counters.count(bytes, decision);
            if let (Some(mut event), Some((rule, _))) = (event, decision) {
                event.event.origin.rip = (write.pc != 0).then_some(write.pc);
                event.process.clone_from(&process);
                name_instruction(&mut event, trace.code(), write.pc);
                if events.shows(&event) {
                    progress.aside(|| events.write(&event))?;
                } else {
                    events.write(&event)?;
                }
                let stopped = event.event.verdict == Verdict::Stopped;
                counters.keep(rule, event);
                if stopped {
                    break 'trace;
                }
            }
        }
        progress.at(trace.reader.bytes_read(), counters.writes());
    }
    // A run that a rule stopped has not seen what came behind.
    let unmet = if counters.is_stopped() { Vec::new() } else { counters.unmet() };
    let mut summary = counters.into_summary();
    summary.guest.clone_from(&trace.name);
    summary.policy = policy_name;
    enforcer.name().clone_into(&mut summary.backend);
    summary.elapsed = Some(began.elapsed());
    Ok((summary, unmet, waiting))
}

/// What is told of rules that come into force before that write.
fn armed(coming: &Coming, policy: &Policy, write: u64, began: Instant) -> Armed {
    let name = |&rule: &usize| policy.rules[rule].rule.name.as_str().to_owned();
    Armed {
        rules: coming.rules.iter().map(name).collect(),
        by: coming.moment.word().to_owned(),
        time: Timestamp::now(),
        since_start: (began.elapsed().as_secs_f64() * 1e6).round() / 1e6,
        write: Some(write),
    }
}

/// Tells the function and the source line that wrote, as the trace has them.
fn name_instruction(event: &mut Record, code: &Code, pc: u64) {
    let Some(place) = code.find(pc) else { return };
    let function = place.function;
    event.function = function.map(|(name, offset)| Function { name: name.to_owned(), offset });
    event.source = place.line.map(|(file, line)| SourceLine { file: file.to_owned(), line });
}

/// The bytes that have a name; one of unknown length has its first byte.
fn bytes_with_names(names: &Names) -> Intervals {
    let runs = names
        .iter()
        .map(|named| (named.start, named.start.saturating_add(named.length.saturating_sub(1))));
    Intervals::new(runs.collect())
}

/// The warning about a rule that no write met, unless something of the trace has its name: then it is
/// known to be in the right place.
fn unmet_and_nameless(rule: &PolicyRule, named: &Intervals, list: &str) -> Option<WarningEvent> {
    let (first, last) = (rule.rule.range.first().as_u64(), rule.rule.range.last().as_u64());
    if named.touches(first, last) {
        return None;
    }
    let name = rule.rule.name.as_str();
    Some(WarningEvent {
        warning: WarningKind::RuleUnmet,
        message: format!(
            "the rule `{name}` ({}) may guard nothing: no write met its bytes {first:#x}..{:#x}, \
             and no name of the trace lies there",
            rule.place(),
            last + 1
        ),
        rule: Some(name.to_owned()),
        file: Some(rule.file.to_string()),
        line: Some(rule.line as u64),
        help: format!(
            "compare its place with `{list}`; a position-independent program lies elsewhere than its file \
             says"
        ),
    })
}

/// The warning about writes that were not put before the rules.
fn other_processes(trace: &TraceFile) -> Option<WarningEvent> {
    if trace.others == 0 {
        return None;
    }
    let (process, writes) = (trace.process(), trace.others);
    Some(WarningEvent {
        warning: WarningKind::OtherProcesses,
        message: format!(
            "only process {process} of this trace was put before the rules, not the {} {} of other \
             processes",
            grouped(writes),
            plural(writes, "write"),
        ),
        rule: None,
        file: None,
        line: None,
        help: "`subpage plan TRACE --processes` lists them; `--process N` takes one of them"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::NamedRange;

    #[test]
    fn a_name_is_known_by_each_of_its_bytes() {
        let named = |start, length| NamedRange { name: "n".to_owned(), start, length };
        let names = Names::new(vec![named(0x2000, 16), named(0x1000, 8), named(0x3000, 0)]);
        let bytes = bytes_with_names(&names);
        for (first, last, touches) in [
            (0, 0xfff, false),
            (0xfff, 0x1000, true),
            (0x1007, 0x1fff, true),
            (0x1008, 0x1fff, false),
            (0x200f, 0x2010, true),
            (0x2010, 0x2fff, false),
            // Of unknown length.
            (0x3000, 0x3007, true),
            (0x3001, u64::MAX, false),
        ] {
            assert_eq!(bytes.touches(first, last), touches, "{first:#x}..={last:#x}");
        }
    }
}
