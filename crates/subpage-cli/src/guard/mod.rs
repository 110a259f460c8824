//! `subpage guard`: a guest under a policy.

mod byte_rules;
mod intervals;
mod model;
mod tally;

pub use byte_rules::ByteRules;
pub use model::{MAX_PAGES, Model};
pub use tally::Tally;

use std::io::Write;
use std::time::Instant;

use crate::command_line::{BackendChoice, GuardArguments};
use crate::events::{EventWriter, RuleEvent, StartEvent};
use crate::failure::{Failure, Status};
use crate::hex::Hex;
use crate::new_file;
use crate::policy::{Draft, Policy, PolicySource};
use crate::progress::Progress;
use crate::report;
use crate::summary::Summary;
use crate::terminal::{ColorWhen, Output};
use crate::trace_file::{TraceFile, bytes_of};
use crate::write_event::Verdict;
use subpage::address::ByteRange;

/// What enforces a policy.
pub trait Enforcer {
    /// The word for events and reports.
    fn name(&self) -> &'static str;

    /// Lets a write happen or not.
    ///
    /// `None` if no rule has anything to say; else the index in the policy of the rule that
    /// decided, and what became of the write. After [`Verdict::Stopped`] no write follows.
    ///
    /// Fails if the enforcer itself cannot go on.
    fn write(&mut self, bytes: ByteRange) -> Result<Option<(usize, Verdict)>, Failure>;
}

/// Runs the command.
pub fn run(
    arguments: &GuardArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Status, Failure> {
    // What is quick to find wrong is looked at before what takes long.
    if let Some(path) = &arguments.report {
        new_file::check(path, "the report")?;
    }
    let source = PolicySource::read(&arguments.policy).map_err(|error| Failure::bad(&error))?;
    let draft = Draft::parse(source);
    let mut trace = TraceFile::open(&arguments.guest)?;
    let policy =
        draft.resolve(&trace.names()).map_err(|mistakes| Failure::Policy(Box::new(mistakes)))?;
    let policy_name = arguments.policy.display().to_string();
    let mut events = EventWriter::new(&mut *out, arguments.json);
    let progress = Progress::new(color, "guarding", trace.bytes);
    let summary = match arguments.backend {
        BackendChoice::Auto | BackendChoice::Model => {
            let enforcer = Model::new(&policy)?;
            replay(&mut trace, &policy, policy_name, enforcer, &mut events, &progress)?
        }
    };
    drop(progress);
    events.summary(&summary)?;
    if let Some(path) = &arguments.report {
        report::write(&summary, path).map_err(|error| Failure::bad(&error))?;
    }
    Ok(if summary.denied() > 0 { Status::Denied } else { Status::Clean })
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
    })?;
    let began = Instant::now();
    let mut tally = Tally::new(policy);
    let mut block = Vec::new();
    'trace: while trace.next_block(&mut block)? {
        for write in &block {
            let bytes = bytes_of(write);
            let decision = enforcer.write(bytes)?;
            let event = tally.count(bytes, decision);
            if let (Some(mut event), Some((rule, _))) = (event, decision) {
                event.pc = (write.pc != 0).then_some(Hex(write.pc));
                if events.shows(&event) {
                    progress.aside(|| events.write(&event))?;
                } else {
                    events.write(&event)?;
                }
                let stopped = event.verdict == Verdict::Stopped;
                tally.keep(rule, event);
                if stopped {
                    break 'trace;
                }
            }
        }
        progress.at(trace.reader.bytes_read(), tally.writes());
    }
    let mut summary = tally.into_summary();
    summary.guest.clone_from(&trace.name);
    summary.policy = policy_name;
    enforcer.name().clone_into(&mut summary.backend);
    summary.elapsed = Some(began.elapsed());
    Ok(summary)
}
