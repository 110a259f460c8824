//! `subpage guard`: a guest under a policy.

mod byte_rules;
mod guest;
mod intervals;
#[cfg_attr(not(feature = "kvm"), path = "no_machine.rs")]
mod machine;
mod model;
mod moments;
mod page_costs;
mod run_counters;
mod touch_index;
mod trace;

pub use byte_rules::ByteRules;
pub(crate) use guest::check_policy;
pub use guest::is_trace;
pub use model::{MAX_PAGES, Model};
pub(crate) use moments::check_moments;
pub use run_counters::RunCounters;

use std::path::{Path, PathBuf};

use subpage::address::ByteRange;
use subpage_trap::Verdict;

use crate::command_line::GuardArguments;
use crate::failure::{Failure, Status};
use crate::new_file;
use crate::policy::{Draft, PolicySource};
use crate::report;
use crate::summary::Summary;
use crate::terminal::{ColorWhen, Output};
use guest::GuestFile;

/// Why a build without the feature `kvm` runs no guest.
pub(crate) const NO_VMM: &str = "this subpage guards traces only: it was built without the feature \
                                 `kvm` (build it with cargo's default features)";

/// Why a build without the feature `metrics` serves none.
#[cfg(not(feature = "metrics"))]
pub(crate) const NO_METRICS: &str = "this subpage serves no metrics: it was built without the feature \
                                     `metrics` (build it with cargo's default features)";

/// What enforces a policy.
pub trait Enforcer {
    /// The word for events and reports.
    fn name(&self) -> &'static str;

    /// Lets a write happen or not.
    ///
    /// `None` if no rule has anything to say; else the index in the policy of the rule that
    /// decided, and what became of the write. After [`Verdict::Stopped`] no write follows.
    ///
    /// Fails if the enforcer itself cannot continue.
    fn write(&mut self, bytes: ByteRange) -> Result<Option<(usize, Verdict)>, Failure>;

    /// Brings rules that [waited](crate::policy::PolicyRule::holds_from_start) into force; their indices
    /// in the policy.
    ///
    /// Fails if the enforcer itself cannot continue.
    fn arm(&mut self, rules: &[usize]) -> Result<(), Failure>;
}

/// Runs the command.
pub fn run(
    arguments: &GuardArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Status, Failure> {
    // What is quick to find wrong is looked at before what takes long.
    check_files(arguments)?;
    let ran = match guest::of(arguments)? {
        GuestFile::Trace { trace, policy } => {
            let summary = trace::run(trace, draft(policy, arguments)?, arguments, color, out)?;
            write_report(&summary, arguments)?;
            let status = if summary.denied() > 0 { Status::Denied } else { Status::Clean };
            return Ok(strictly(status, &summary, arguments));
        }
        GuestFile::Image { image, policy } => {
            machine::run(image, draft(policy, arguments)?, arguments, color)?
        }
        GuestFile::Saved { file } => machine::restore(file, arguments, color)?,
    };
    let status = strictly(ran.status, &ran.summary, arguments);
    // First: whoever reads the output may be in no hurry.
    let report = write_report(&ran.summary, arguments);
    ran.finish(out);
    report.map(|()| status)
}

/// Finds out whether the files that are named can be read and written beside each other.
fn check_files(arguments: &GuardArguments) -> Result<(), Failure> {
    for (what, path) in arguments.written_files() {
        new_file::check(path, what)?;
        new_file::keep(path, what, arguments.inputs())?;
    }
    // Both streams may be one file.
    for stream in [("standard output", "/dev/stdout"), ("standard error", "/dev/stderr")] {
        let stream = (stream.0, Path::new(stream.1));
        let files: Vec<_> = arguments.outputs().chain([stream]).collect();
        new_file::apart(&files)?;
    }
    if let Some(path) = &arguments.report {
        new_file::replace(path, "the report", report::BEGINS)?;
    }
    new_file::one_stdin(arguments.inputs())
}

/// The status where `--strict` makes warnings errors. What was denied is what people run this for.
fn strictly(status: Status, summary: &Summary, arguments: &GuardArguments) -> Status {
    let wrong = arguments.strict && !summary.warnings.is_empty() && status != Status::Denied;
    if wrong { Status::BadInput } else { status }
}

fn write_report(summary: &Summary, arguments: &GuardArguments) -> Result<(), Failure> {
    match &arguments.report {
        Some(path) => report::write(summary, path).map_err(|error| Failure::bad(&error)),
        None => Ok(()),
    }
}

/// The policy's files, read, and those that they include, none of which is written.
fn draft(paths: &[PathBuf], arguments: &GuardArguments) -> Result<Draft, Failure> {
    let draft = Draft::read(paths).map_err(|error| Failure::bad(&error))?;
    for (what, path) in arguments.written_files() {
        new_file::keep(path, what, draft.sources().map(PolicySource::path))?;
    }
    Ok(draft)
}
