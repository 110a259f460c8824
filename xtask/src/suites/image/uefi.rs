//! The image by UEFI: QEMU emulates no VT-x, so a start comes as far as the line that says so.

use std::{
    cell::Cell,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{in_order, report};
use crate::{
    count::Count,
    execute::{self, Limits},
    image::tools::Tools,
    lab::qemu::Qemu,
    session::Session,
};

pub(super) const NAME: &str = "by_uefi";

/// Why the hypervisor stops on a processor without VT-x.
pub(super) const NO_VMX: &str = "this processor has no VMX (CPUID 1 ECX bit 5 is 0)";

/// UEFI takes some seconds until it starts GRUB.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the serial line may take behind port E9H.
const SERIAL_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn check(
    session: &mut Session<'_>,
    qemu: &Qemu,
    tools: &Tools,
    image: &Path,
) -> Result<Count> {
    let begun = Instant::now();
    let directory = tempfile::Builder::new()
        .prefix("subpage-qemu-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let image = image.canonicalize().context("the image is gone")?;
    let command = qemu.start_disc(&tools.uefi(), &image, directory.path());
    // The hypervisor stops the processor, but nothing ends QEMU.
    let stopped = Cell::new(None::<Instant>);
    let interrupt = session.interrupt().clone();
    let over = || interrupt.raised() || stopped.get().is_some_and(|at| at.elapsed() > SERIAL_LIMIT);
    let limit = LIMIT.min(session.deadline().saturating_duration_since(begun));
    let limits = Limits::new(begun + limit, &over);
    let mut lines = Vec::new();
    execute::run(execute::limited(&command, limit), &limits, &mut |line| {
        if line.contains("hypervisor: stopped: ") {
            stopped.set(Some(Instant::now()));
        }
        lines.push(line.to_owned());
    })?;
    let serial = fs::read(directory.path().join("console")).unwrap_or_default();
    let serial: Vec<_> =
        String::from_utf8_lossy(&serial).lines().map(|line| line.trim_end().to_owned()).collect();
    let verdict = ["port E9H", "the serial port"]
        .into_iter()
        .zip([&lines, &serial])
        .try_for_each(|(who, lines)| in_order(who, lines, &["hypervisor: stopped: ", NO_VMX]));
    report(session, NAME, begun, verdict, &[lines, serial])
}
