//! Which rows of a benchmark this machine's KVM can measure.

use std::io::{self, StdoutLock};

use subpage_bench::report::Report;
use subpage_kvm::probe::is_native;
use subpage_kvm::trap::TrapBy;

/// Where results go.
pub(crate) type Out = Report<StdoutLock<'static>>;

/// Whether a row is of the way to trap that it names; prints that it is left out if not.
///
/// Where the processor runs a guest's kernel itself, a guest that asks for slots gets the other way:
/// its figures would stand under the wrong name.
pub(crate) fn measurable(out: &mut Out, name: &str, by: TrapBy, note: &str) -> io::Result<bool> {
    let measurable = by != TrapBy::Slots || !is_native();
    if !measurable {
        out.skip(&format!(
            "{name}: {note}: this KVM runs a guest's kernel natively, where slots are not used"
        ))?;
    }
    Ok(measurable)
}
