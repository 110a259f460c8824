//! Staying with a guest until its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use subpage_kvm::event::{Delivery, Subscription};
use subpage_kvm::vm::Vm;

use super::count::Count;
use super::desk::Desk;
use super::ending::{Cut, RunEnd};
use crate::events::{EventWriter, FailedEvent};
use crate::failure::Failure;
use crate::terminal::{Lines, Screen};

/// How long an event is waited for before anything else is looked at.
const TICK: Duration = Duration::from_millis(20);

/// What else may end a run.
pub(super) struct Limits<'a> {
    /// When the guest's time is up.
    pub(super) deadline: Option<Instant>,
    /// Set when this program is told to end.
    pub(super) interrupted: &'a AtomicBool,
    /// A guest that cannot go on is kept until somebody ends it.
    pub(super) keeps_failed: bool,
    /// Where `subpage ctl` reaches the guest.
    pub(super) control: &'a str,
}

impl Limits<'_> {
    fn cut(&self) -> Option<Cut> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Some(Cut::Interrupted);
        }
        self.deadline.is_some_and(|at| Instant::now() >= at).then_some(Cut::TimedOut)
    }
}

/// Shows and counts every event until the guest has ended and all of them are shown.
///
/// Fails if they cannot be written; the guest is then still to be ended by dropping it.
pub(super) fn supervise(
    vm: &Vm,
    desk: &Desk,
    subscription: &Subscription,
    limits: &Limits<'_>,
    count: &mut Count,
    events: &mut EventWriter<Lines>,
    screen: &Screen,
) -> Result<RunEnd, Failure> {
    let mut cut = None;
    let mut end = None;
    let mut kept = false;
    loop {
        match subscription.next(Some(TICK)) {
            Some(Delivery::Event(event)) => {
                count.event(&event);
                events.live_write(&event)?;
            }
            Some(Delivery::Dropped(dropped)) => count.dropped(dropped),
            Some(Delivery::Closed) => break,
            // A prompt has no end of line that would show it.
            None => screen.flush()?,
        }
        if end.is_some() {
            continue;
        }
        if cut.is_none() {
            cut = limits.cut();
            if cut.is_some() {
                vm.stop();
            }
        }
        let Some(ending) = vm.wait(Duration::ZERO) else { continue };
        let run_end = RunEnd::of(&ending, cut);
        if limits.keeps_failed && ending.is_failure() && cut.is_none() && !desk.stop_is_asked() {
            if !kept {
                kept = true;
                events.failed(&FailedEvent {
                    message: run_end.message,
                    control: limits.control.to_owned(),
                })?;
            }
            continue;
        }
        // When all processors can be held, none of them is about to report something.
        vm.with_processors(|_| ());
        vm.close_events();
        end = Some(run_end);
    }
    Ok(end.expect("events end when the guest has"))
}
