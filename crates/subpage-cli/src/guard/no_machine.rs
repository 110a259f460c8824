//! What stands for guests on KVM in a build without the feature `kvm`: each is refused.

use std::convert::Infallible;
use std::path::Path;

use super::NO_VMM;
use crate::command_line::GuardArguments;
use crate::failure::{Failure, Status};
use crate::policy::{Draft, Policy};
use crate::summary::Summary;
use crate::terminal::{ColorWhen, Output};

/// A guest that has run: there is none.
pub(super) struct Ran {
    pub(super) summary: Summary,
    pub(super) status: Status,
    never: Infallible,
}

impl Ran {
    pub(super) fn finish(self, _: &mut Output) {
        match self.never {}
    }
}

/// Refuses the guest in the file `image`.
pub(super) fn run(
    image: &Path,
    _: Draft,
    _: &GuardArguments,
    _: ColorWhen,
) -> Result<Ran, Failure> {
    Err(refusal(image))
}

/// Refuses a saved guest.
pub(super) fn restore(file: &Path, _: &GuardArguments, _: ColorWhen) -> Result<Ran, Failure> {
    Err(refusal(file))
}

/// Nothing is known of guests.
#[allow(clippy::unnecessary_wraps, reason = "what the other build has can fail")]
pub(super) fn check_policy(_: &Path, _: Option<&mut Policy>) -> Result<(), Failure> {
    Ok(())
}

fn refusal(guest: &Path) -> Failure {
    Failure::Input(format!("{} is no trace, and {NO_VMM}", guest.display()))
}
