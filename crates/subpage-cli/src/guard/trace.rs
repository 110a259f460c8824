//! A trace as a guest: its writes, one after the other.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use subpage_trap::Verdict;

use super::{Enforcer, Model, RunCounters};
use crate::command_line::GuardArguments;
use crate::events::{EventWriter, RuleEvent, StartEvent};
use crate::failure::Failure;
use crate::policy::{Draft, Policy};
use crate::progress::Progress;
use crate::summary::Summary;
use crate::terminal::{ColorWhen, Output};
use crate::trace_file::{TraceFile, bytes_of};

/// Replays the trace at `path` under a policy and tells what happened.
pub(super) fn run(
    path: &Path,
    draft: Draft,
    arguments: &GuardArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Summary, Failure> {
    let policy_name = draft.source().path().display().to_string();
    let mut trace = TraceFile::open(path)?;
    let policy =
        draft.resolve(&trace.names()).map_err(|mistakes| Failure::Policy(Box::new(mistakes)))?;
    let mut events = EventWriter::new(&mut *out, arguments.json);
    let progress = Progress::new(color, "guarding", trace.bytes);
    let enforcer = Model::new(&policy)?;
    let summary = replay(&mut trace, &policy, policy_name, enforcer, &mut events, &progress)?;
    drop(progress);
    events.summary(&summary)?;
    Ok(summary)
}

/// Puts every write of a trace before an enforcer.
fn replay<E: Enforcer, W: Write>(
    trace: &mut TraceFile,
    policy: &Policy,
    policy_name: String,
    mut enforcer: E,
    events: &mut EventWriter<W>,
    progress: &Progress,
) -> Result<Summary, Failure> {
    events.start(&StartEvent {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        guest: trace.name.clone(),
        policy: policy_name.clone(),
        backend: enforcer.name().to_owned(),
        rules: policy.rules.iter().map(RuleEvent::from).collect(),
        live: None,
    })?;
    let began = Instant::now();
    let mut counters = RunCounters::new(policy);
    let mut block = Vec::new();
    'trace: while trace.next_block(&mut block)? {
        for write in &block {
            let bytes = bytes_of(write);
            let decision = enforcer.write(bytes)?;
            let event = counters.count(bytes, decision);
            if let (Some(mut event), Some((rule, _))) = (event, decision) {
                event.event.origin.rip = (write.pc != 0).then_some(write.pc);
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
    let mut summary = counters.into_summary();
    summary.guest.clone_from(&trace.name);
    summary.policy = policy_name;
    enforcer.name().clone_into(&mut summary.backend);
    summary.elapsed = Some(began.elapsed());
    Ok(summary)
}
