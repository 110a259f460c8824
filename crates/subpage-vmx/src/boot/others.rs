//! The processors besides the first: how many are started, and what keeps those from the guest that it
//! does not run on.
//!
//! Unsafe because each gets its own descriptors.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicUsize, Ordering};

use super::{MAX_PROCESSORS, fatal};
use crate::processor::{console, interrupts, segments};
use crate::vmx::Capabilities;
use crate::vmx::structure;

/// Starts them, and gives how many processors there are then. A kernel that has the APIC can start every
/// processor that the firmware lists: so `listed` ones are started, of which it uses `wanted`.
pub(super) fn start(
    listed: Option<usize>,
    wanted: Option<usize>,
    start: impl FnOnce(Option<usize>) -> usize,
) -> usize {
    if let Some(listed) = listed.filter(|&listed| listed > MAX_PROCESSORS) {
        fatal(format_args!(
            "the firmware lists {listed} processors, and a Linux kernel could start those past the first \
             {MAX_PROCESSORS} outside of the hypervisor: switch them off in the firmware's setup"
        ));
    }
    let started = start(listed.map_or(wanted, |listed| wanted.max(Some(listed.max(1)))));
    if let Some(wanted) = wanted.filter(|&wanted| started < wanted) {
        fatal(format_args!("cpus={wanted}, but only {started} processors have started"));
    }
    if let Some(listed) = listed.filter(|&listed| started < listed) {
        fatal(format_args!(
            "the firmware lists {listed} processors, but only {started} have started; a Linux kernel could \
             start the others outside of the hypervisor"
        ));
    }
    started
}

/// Processors that are in VMX operation and run no guest.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Keeps a processor from the guest, which could start it outside of the hypervisor: in VMX operation it
/// takes no INIT, and without one no start-up message (SDM Vol. 3C, "Restrictions on VMX Operation").
pub(super) fn hold(capabilities: &Capabilities, index: usize) {
    // SAFETY: the first thing on this processor; the boot code's flat segments are in use.
    let _ = unsafe { segments::install(index) };
    interrupts::install();
    if let Err(error) = structure::start(capabilities) {
        fatal(format_args!("{error}"));
    }
    HELD.fetch_add(1, Ordering::Release);
}

/// Waits until so many processors are held.
pub(super) fn wait_until_held(count: usize) {
    /// Turns of a loop: some seconds, where microseconds are enough.
    const PATIENCE: u64 = 1 << 30;
    let all_are = || HELD.load(Ordering::Acquire) >= count;
    let came = (0..PATIENCE).any(|_| {
        core::hint::spin_loop();
        all_are()
    });
    if !came {
        fatal(format_args!("{count} processors beyond cpus= do not enter VMX operation"));
    }
    console::print_line(format_args!(
        "hypervisor: {count} processors more are held: the kernel finds them listed and cannot start them"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_that_is_listed_is_started() {
        for (listed, wanted, awaited) in [
            (None, None, None),
            (None, Some(1), Some(1)),
            (Some(2), Some(1), Some(2)),
            (Some(4), None, Some(4)),
            (Some(0), None, Some(1)),
            (Some(1), Some(1), Some(1)),
        ] {
            let begin = |asked: Option<usize>| {
                assert_eq!(asked, awaited, "{listed:?} {wanted:?}");
                asked.unwrap_or(3)
            };
            assert_eq!(start(listed, wanted, begin), awaited.unwrap_or(3));
        }
    }
}
