//! How a run of the hypervisor with a guest has ended, by what it has printed.

use super::{configuration::Run, machine::GUEST_MARK};
use crate::execute::Ending;

/// The hypervisor's last line begins so, and then says why it ends.
const STOPPED: &str = "hypervisor: stopped: ";

/// The reason after a guest that has ended itself and is content.
pub(crate) const CONTENT: &str = "guest ended with status 0";

/// Whether the guest has ended itself and was content, and no test of it has failed.
pub(crate) fn succeeded(run: &Run) -> Result<(), String> {
    no_failure(run)?;
    ended(run, CONTENT)
}

/// Whether the guest has told of no failure, of whatever test.
pub(crate) fn no_failure(run: &Run) -> Result<(), String> {
    match guest_lines(run).find(|line| line.starts_with("FAIL ")) {
        Some(line) => Err(line.to_owned()),
        None => Ok(()),
    }
}

/// What the guest has printed.
pub(crate) fn guest_lines(run: &Run) -> impl Iterator<Item = &str> {
    run.lines.iter().filter_map(|line| line.strip_prefix(GUEST_MARK))
}

/// Whether Bochs has come to its end with the hypervisor's last line, and that gives a reason with
/// `words` in it.
pub(crate) fn ended(run: &Run, words: &str) -> Result<(), String> {
    match run.ending {
        Ending::Exited(_) => {}
        Ending::TimeLimit => return Err("its time limit was reached, and it was killed".into()),
        Ending::Runaway => return Err("it printed without end and was killed".into()),
        Ending::LeftBehind | Ending::Interrupted => return Err(run.complaint()),
    }
    let last = run.lines.iter().rev().find(|line| !line.trim().is_empty());
    let reason = last.and_then(|line| line.strip_prefix(STOPPED));
    match reason {
        Some(reason) if reason.contains(words) => Ok(()),
        Some(reason) => Err(format!("it stopped: {reason} (expected: {words})")),
        None => Err(format!("it ended without a last word of the hypervisor: {}", run.complaint())),
    }
}
